"""Few-shot training: the choice of the clips of each category that a run trains on."""

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
    """A rule that draws the clips of each category.

    Args:
        number: clips of each category; published are 1, 2, 4, 8 and 16.
        rule: `first` takes the first clips of the training split's file, the released procedure of DG-SCT (Duan et al.,
            NeurIPS 2023). `seeded` draws at random, as CoOp (Zhou et al., IJCV 2022) and its successors do.
        seed: of `seeded`. The clips of fewer shots are among the clips of more shots, and the clips of a category do
            not depend on the other categories.

    Raises:
        ArgumentError: a number is out of its range, or there is no such rule.

    Example:
        >>> items = ["dog 1", "cat 1", "dog 2", "dog 3"]
        >>> Shots(2).draw(items, category=lambda item: int(item.startswith("dog")))
        {0: ['cat 1'], 1: ['dog 1', 'dog 2']}
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

    def draw(
        self, items: Sequence[Item], category: Callable[[Item], int], usable: Collection[Item] | None = None
    ) -> dict[int, list[Item]]:
        """Draw clips of each category.

        Args:
            items: the training split in the order of its file, each item once.
            category: item -> index of its category.
            usable: items that may be drawn; `None` is all. The next item in the order of drawing replaces one that is
                not usable, so that a missing clip does not change the choice of the others.

        Returns:
            Items by category, in the order of drawing; a category without a clip is left out.
        """
        groups: dict[int, list[Item]] = {}
        for item in items:
            groups.setdefault(category(item), []).append(item)
        allowed, drawn = set(items if usable is None else usable), {}
        for index in sorted(groups):
            group = groups[index]
            if self.rule == "seeded":
                group = [group[place] for place in np.random.default_rng([self.seed, index]).permutation(len(group))]
            if chosen := [item for item in group if item in allowed][: self.number]:
                drawn[index] = chosen
        return drawn
