"""AVSBench: audio-visual segmentation, which pixels sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from avprompt.data_modules.base import AVDataModule, Sample
from avprompt.datasets import avsbench
from avprompt.errors import ArgumentError
from avprompt.plots.overlays import overlay_figure


class AVSBenchDataModule(AVDataModule):
    """AVSBench from its official folders, `Single-source` (S4) and `Multi-sources` (MS3) in `root`.

    Adds `masks` (B, T, M, M) float32 in {0, 1}, what sounds in each frame, and `annotated` (B, T) bool: S4's training
    videos have a mask of their first frame only, the others are zeros; everywhere else all five are annotated. See
    `avprompt.datasets.avsbench` for the files, and `AVDataModule` for every other argument.

    Args:
        setting: `s4`, one object sounds, or `ms3`, several do.
        mask_size: height and width M of masks, that of what the network predicts; `None` is `image_size`.
        layout: `folders`. A store has no masks, and its frames are none of those that were annotated.
        segments: seconds a video; the annotated ones have 5, one's own videos may be cut otherwise.
        image_size: height and width of frames; 224 is that of the published files.
        options: see `AVDataModule`.

    Raises:
        ArgumentError: unknown setting, another layout, or a number that is out of its range.
    """

    def __init__(self, root: Path, setting: Literal["s4", "ms3"], mask_size: int | None = None,
                 layout: Literal["store", "folders"] = "folders", segments: int = avsbench.SECONDS,
                 image_size: int = 224, **options: Any) -> None:
        super().__init__(root, layout=layout, segments=segments, image_size=image_size, **options)
        if setting not in avsbench.PUBLISHED:
            raise ArgumentError("setting", setting, " or ".join(avsbench.PUBLISHED), "Correct the argument.")
        if layout != "folders":
            raise ArgumentError("layout", layout, "folders", "AVSBench's masks belong to its own extracted frames: "
                                "leave `layout` out.")
        if mask_size is not None and mask_size < 1:
            raise ArgumentError("mask_size", mask_size, "at least 1", "Choose another value.")
        self.setting, self.published = setting, avsbench.PUBLISHED[setting]
        self.mask_size = image_size if mask_size is None else mask_size
        self.class_names, self.num_classes = ("sounding",), 1

    def read_annotations(self) -> dict[str, list[avsbench.Video]]:
        return avsbench.read_splits(self.root, self.setting)

    def annotate(self, item: avsbench.Video, rng: np.random.Generator) -> Sample:
        masks, annotated = avsbench.read_masks(avsbench.files(self.root, self.setting, item).masks, self.mask_size)
        return {"masks": masks, "annotated": annotated}

    def plot(self, sample: dict[str, Any]) -> Figure:
        """Frames, what sounds in them, and if present `prediction` (T, M, M) bool, with the waveform."""
        return overlay_figure(self.normalise.undo(sample["frames"]), sample["audio"], sample.get("masks"),
                              sample.get("prediction"), sample.get("annotated"), sample["id"],
                              float(sample.get("start", 0.0)), sample.get("valid"))
