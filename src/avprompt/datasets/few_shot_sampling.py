"""Few-shot training: which few clips of each category a run trains on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from avprompt.errors import ArgumentError

Item = TypeVar("Item", bound=Hashable)
Rule = Literal["first", "seeded"]


@dataclass(frozen=True)
class Shots:
    """A rule that draws clips.

    Args:
        number: clips of each category; 1, 2, 4, 8 and 16 are published.
        rule: `first`, those that stand first in the training split's file, is the released procedure of DG-SCT (Duan et
            al., NeurIPS 2023); `seeded` draws by chance, as CoOp (Zhou et al., IJCV 2022) and its successors do.
        seed: of `seeded`. The clips of fewer shots are among those of more, and a category's clips do not depend on
            the other categories.

    Raises:
        ArgumentError: a number is out of its range, or no such rule.
    """

    number: int
    rule: Rule = "first"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("shots", self.number, 1), ("shot_seed", self.seed, 0)):
            if value < least:
                raise ArgumentError(name, value, f"at least {least}", "Choose another value.")
        if self.rule not in ("first", "seeded"):
            raise ArgumentError("shot_sampling", self.rule, "first or seeded", "Correct the argument.")

    def draw(self, items: Sequence[Item], category: Callable[[Item], int],
             usable: Collection[Item] | None = None) -> dict[int, list[Item]]:
        """Clips by category, in the order of drawing; a category without a clip is left out.

        Args:
            items: the training split in its file's order, each item once.
            category: item -> index of its category.
            usable: those that can be drawn; `None` is all. The next one in the order of drawing takes the place of one
                that is not among them, so that a missing clip changes nothing about the others.
        """
        groups: dict[int, list[Item]] = {}
        for item in items:
            groups.setdefault(category(item), []).append(item)
        allowed, drawn = set(items if usable is None else usable), {}
        for index in sorted(groups):
            group = groups[index]
            if self.rule == "seeded":
                group = [group[place] for place in np.random.default_rng([self.seed, index]).permutation(len(group))]
            if chosen := [item for item in group if item in allowed][:self.number]:
                drawn[index] = chosen
        return drawn
