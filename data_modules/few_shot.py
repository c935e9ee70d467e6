"""Datasets of one category a clip, and training on a few clips of each category."""

from __future__ import annotations

import abc
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from avprompt.data_modules.base import AVDataModule, Sample
from avprompt.datasets.few_shot_sampling import Rule, Shots
from avprompt.media.readers import ClipReader
from avprompt.plots.timeline import clip_figure


class FewShotDataModule(AVDataModule):
    """A dataset whose clips have one category each, and which can be trained on a few clips of each category.

    Categories with fewer clips are reported, and `manifest` records what was drawn. With `missing: error` only the
    drawn clips need media; with `missing: skip` the next one takes the place of a clip without.

    Args:
        root: see `AVDataModule`.
        shots: clips of each category to train on, 1, 2, 4, 8 or 16 as published; `None` is every clip. Validation and
            test are whole.
        shot_sampling: `first` in the training split's file, the released procedure, or `seeded`.
        shot_seed: of `seeded`; `None` is `seed`.
        options: see `AVDataModule`.

    Raises:
        ArgumentError: a number is out of its range.
    """

    def __init__(self, root: Path, shots: int | None = None, shot_sampling: Rule = "first",
                 shot_seed: int | None = None, **options: Any) -> None:
        super().__init__(root, **options)
        self.shots = None if shots is None else Shots(shots, shot_sampling,
                                                      self.seed if shot_seed is None else shot_seed)
        self.drawn: dict[str, list[str]] = {}

    @abc.abstractmethod
    def category(self, item: Any) -> int:
        """Index of the category that an item is a shot of."""

    def teaches(self, item: Any) -> bool:
        """Whether its category occurs in an item; a seeded shot of which nothing is to be learned is not drawn."""
        return True

    def _available(self, split: str, items: list[Any], reader: ClipReader) -> list[Any]:
        if self.shots is None or split != "train":
            return super()._available(split, items, reader)
        usable = None if self.missing == "error" else super()._available(split, items, reader)
        shots = items if self.shots.rule == "first" else [item for item in items if self.teaches(item)]
        drawn = self.shots.draw(shots, self.category, usable)
        self.drawn = {name: [item.id for item in drawn.get(index, ())] for index, name in enumerate(self.class_names)}
        if few := [f"{name} {len(ids)}" for name, ids in self.drawn.items() if len(ids) < self.shots.number]:
            warnings.warn(f"{len(few)} of {len(self.drawn)} categories have fewer than {self.shots.number} training "
                          f"clips: {', '.join(few)}", stacklevel=3)
        chosen = {item for group in drawn.values() for item in group}
        shots = [item for item in items if item in chosen]
        if usable is None:
            return super()._available(split, shots, reader)
        self.rows[split] -= len(usable) - len(shots)  # what is not drawn is not missing
        return shots

    def manifest(self) -> dict[str, Any]:
        """Also `shots`: rule, and ids by category."""
        if not self.drawn:
            return super().manifest()
        rule = self.shots.rule
        return {**super().manifest(), "shots": {"number": self.shots.number, "sampling": rule,
                                                "seed": self.shots.seed if rule == "seeded" else None,
                                                "clips": self.drawn}}


class Annotated(Protocol):
    """A clip with one category, and background wherever that is not both seen and heard."""

    id: str
    category: int

    def label(self, segments: int, num_classes: int) -> Tensor:
        """One-hot (T, C + 1) float32, background last."""


class EventDataModule(FewShotDataModule):
    """A dataset of `Annotated` clips: adds `event` (B, T, C + 1) float32, one-hot with background last."""

    def category(self, item: Annotated) -> int:
        return item.category

    def teaches(self, item: Annotated) -> bool:
        return bool(item.label(self.sampling.segments, self.num_classes)[:, :-1].any())

    def annotate(self, item: Annotated, rng: np.random.Generator) -> Sample:
        return {"event": item.label(self.sampling.segments, self.num_classes)}

    def plot(self, sample: Sample) -> Figure:
        """Frames, waveform, label and, if present, `prediction` of a sample: (T,), or one for the whole clip."""
        truth = sample["event"].argmax(-1) if "event" in sample else None
        prediction = sample["prediction"].expand(len(sample["frames"])) if "prediction" in sample else None
        return clip_figure(self.normalise.undo(sample["frames"]), sample["audio"], self.class_names, prediction, truth,
                           sample["id"], float(sample.get("start", 0.0)), sample.get("valid"),
                           sample.get("map_visual"))
