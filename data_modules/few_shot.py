"""Datasets with one category a clip, and training on a few clips of each category."""

from __future__ import annotations

import abc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avprompt.data_modules.base import AVDataModule, Sample
from avprompt.datasets.events import Annotated
from avprompt.datasets.few_shot_sampling import Rule, Shots
from avprompt.media.readers import ClipReader
from avprompt.ranges import Count, Natural


class FewShotDataModule(AVDataModule):
    """A dataset whose clips have one category each. A run can train on a few clips of each category.

    Categories with fewer clips than asked for are reported, and `manifest` records the clips that were drawn. With
    `missing: error` only the drawn clips need media. With `missing: skip` the next clip replaces one without media.

    Args:
        root: see `AVDataModule`.
        shots: training clips of each category (published: 1, 2, 4, 8, 16); `None` trains on every clip. Validation and
            test always use their whole split.
        shot_sampling: `first` takes the first clips of the training split's file (the released procedure); `seeded`
            draws them at random.
        shot_seed: of `seeded`; `None` is `seed`.
        options: see `AVDataModule`.

    Raises:
        ArgumentError: a number is out of its range.
    """

    def __init__(
        self,
        root: Path,
        shots: Count | None = None,
        shot_sampling: Rule = "first",
        shot_seed: Natural | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.shots = (
            None if shots is None else Shots(shots, shot_sampling, self.seed if shot_seed is None else shot_seed)
        )
        self.drawn: dict[str, list[str]] = {}

    @abc.abstractmethod
    def category(self, item: Any) -> int:
        """Index of the category that an item counts as a shot of."""

    def teaches(self, item: Any) -> bool:
        """Whether the item's category really occurs in it. `seeded` draws no item from which nothing can be learned."""
        return True

    def _available(self, split: str, items: list[Any], reader: ClipReader) -> list[Any]:
        if self.shots is None or split != "train":
            return super()._available(split, items, reader)
        usable = None if self.missing == "error" else super()._available(split, items, reader)
        shots = items if self.shots.rule == "first" else [item for item in items if self.teaches(item)]
        drawn = self.shots.draw(shots, self.category, usable)
        self.drawn = {name: [item.id for item in drawn.get(index, ())] for index, name in enumerate(self.class_names)}
        if few := [f"{name} {len(ids)}" for name, ids in self.drawn.items() if len(ids) < self.shots.number]:
            warnings.warn(
                f"{len(few)} of {len(self.drawn)} categories have fewer than {self.shots.number} training "
                f"clips: {', '.join(few)}",
                stacklevel=3,
            )
        chosen = {item for group in drawn.values() for item in group}
        shots = [item for item in items if item in chosen]
        if usable is None:
            return super()._available(split, shots, reader)
        self.rows[split] -= len(usable) - len(shots)  # a clip that was not drawn is not missing
        return shots

    def manifest(self) -> dict[str, Any]:
        """See `AVDataModule.manifest`; also `shots`, the rule and the drawn ids by category."""
        if not self.drawn:
            return super().manifest()
        rule = self.shots.rule
        return {
            **super().manifest(),
            "shots": {
                "number": self.shots.number,
                "sampling": rule,
                "seed": self.shots.seed if rule == "seeded" else None,
                "clips": self.drawn,
            },
        }


class EventDataModule(FewShotDataModule):
    """A dataset of `Annotated` clips. Batches have `event` (B, T, C + 1) float32, one-hot with background last, and
    `category` (B,) int64, the label of the whole clip, which says nothing of its times."""

    def category(self, item: Annotated) -> int:
        return item.category

    def teaches(self, item: Annotated) -> bool:
        return bool(item.label(self.sampling.segments, self.num_classes)[:, :-1].any())

    def annotate(self, item: Annotated, rng: np.random.Generator) -> Sample:
        return {"event": item.label(self.sampling.segments, self.num_classes), "category": torch.tensor(item.category)}
