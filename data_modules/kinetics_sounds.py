"""Kinetics-Sounds: audio-visual action recognition in ten-second clips."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avprompt.data_modules.base import AVDataModule, Sample
from avprompt.datasets import kinetics_sounds


class KineticsSoundsDataModule(AVDataModule):
    """Kinetics-Sounds from Kinetics' csv files: train.csv, val.csv or validate.csv, and test.csv in `root`.

    Batches have `label` (B,) int64. `avprompt.datasets.kinetics_sounds` describes the files, the names of media files
    and the rows of other classes; `AVDataModule` describes the other arguments.

    Args:
        root: folder of annotations and media.
        classes: a text file with one class a line in the order of their indices, or the names themselves. `None` reads
            root/classes.txt or, where there is no such file, takes the 32 classes that avprompt ships.
        options: see `AVDataModule`.

    Raises:
        DatasetError: there is no file `classes`.
        AnnotationError: the file names no class, or one class twice.

    Example:
        >>> data = KineticsSoundsDataModule(Path("data/kinetics_sounds"))
        >>> data.num_classes, tuple(data.example_batch(2)["label"].shape)
        (32, (2,))
    """

    info = kinetics_sounds.INFO

    def __init__(self, root: Path, classes: Path | list[str] | None = None, **options: Any) -> None:
        super().__init__(root, **options)
        # read before `setup`: the model is built with these sizes before any data are read
        self.classes, self.class_names = classes, kinetics_sounds.read_classes(self.root, classes)
        self.num_classes = len(self.class_names)
        self.others: dict[str, int] = {}

    def read_annotations(self) -> kinetics_sounds.Splits:
        splits = kinetics_sounds.read_splits(self.root, self.classes)
        self.others = splits.others
        for split, ids in kinetics_sounds.shared_videos(splits).items():
            if ids:
                warnings.warn(
                    f"{len(ids)} videos of training clips are also in split {split} ({', '.join(ids[:3])} ...)",
                    stacklevel=2,
                )
        return splits

    def annotate(self, item: kinetics_sounds.Action, rng: np.random.Generator) -> Sample:
        return {"label": torch.tensor(item.label)}

    def manifest(self) -> dict[str, Any]:
        """See `AVDataModule.manifest`; also the number of annotated rows of other classes, by split."""
        return {**super().manifest(), "other_classes": self.others}
