"""Kinetics-Sounds: audio-visual action recognition in ten-second clips."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from avprompt.data_modules.base import AVDataModule, Sample
from avprompt.datasets import kinetics_sounds
from avprompt.plots.cards import question_figure


class KineticsSoundsDataModule(AVDataModule):
    """Kinetics-Sounds from Kinetics' csv files (train.csv, val.csv or validate.csv, test.csv in `root`).

    Adds `label` (B,) int64. See `avprompt.datasets.kinetics_sounds` for the files, how media are named and what happens to
    rows of other classes, and `AVDataModule` for every other argument.

    Args:
        classes: text file of the classes, one a line in the order of their indices, or their names; `None` reads
            root/classes.txt, and without that file they are the 32 shipped.
        options: see `AVDataModule`.

    Raises:
        DatasetError: there is no file `classes`.
        AnnotationError: it names nothing, or a class twice.
    """

    published = kinetics_sounds.PUBLISHED

    def __init__(self, root: Path, classes: Path | list[str] | None = None, **options: Any) -> None:
        super().__init__(root, **options)
        # read here, not in `setup`: the model is sized by it before any data is looked at
        self.classes, self.class_names = classes, kinetics_sounds.read_classes(self.root, classes)
        self.num_classes = len(self.class_names)
        self.others: dict[str, int] = {}

    def read_annotations(self) -> kinetics_sounds.Splits:
        splits = kinetics_sounds.read_splits(self.root, self.classes)
        self.others = splits.others
        for split, ids in kinetics_sounds.shared_videos(splits).items():
            if ids:
                warnings.warn(f"{len(ids)} videos of training clips are also in split {split} "
                              f"({', '.join(ids[:3])} ...)", stacklevel=2)
        return splits

    def annotate(self, item: kinetics_sounds.Action, rng: np.random.Generator) -> Sample:
        return {"label": torch.tensor(item.label)}

    def plot(self, sample: Sample) -> Figure:
        """The clip's card: frames, waveform, its annotated action and, if present, the `prediction` ()."""
        actions = {name: self.class_names[int(sample[key])] for name, key in (("answer", "label"),
                                                                              ("prediction", "prediction"))
                   if key in sample}
        return question_figure(self.normalise.undo(sample["frames"]), sample["audio"], sample["id"], **actions,
                               start=float(sample.get("start", 0.0)), valid=sample.get("valid"),
                               stride=self.sampling.spacing)

    def manifest(self) -> dict[str, Any]:
        """As of every dataset, and how many annotated rows of each split are of other classes."""
        return {**super().manifest(), "other_classes": self.others}
