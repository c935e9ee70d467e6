"""AVSBench: audio-visual segmentation, which pixels sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from avprompt.data_modules.base import AVDataModule, Sample
from avprompt.datasets import avsbench
from avprompt.errors import ArgumentError
from avprompt.ranges import Count


class AVSBenchDataModule(AVDataModule):
    """AVSBench from its official folders, `Single-source` (S4) and `Multi-sources` (MS3) in `root`.

    Batches have `masks` (B, T, M, M) float32 in {0, 1}, the pixels that sound in each frame, and `annotated` (B, T)
    bool. In S4's training videos only the first frame is annotated, and the other masks are zeros; elsewhere all five
    frames are annotated. `avprompt.datasets.avsbench` describes the published files; `AVDataModule` describes the other
    arguments.

    Args:
        root: folder of annotations and media.
        setting: `s4` (one object sounds) or `ms3` (several objects sound).
        mask_size: height and width M of the masks, which the network predicts; `None` is `image_size`.
        layout: `folders`. A store holds no masks, and its frames are not the annotated ones.
        segments: seconds a video. Annotated videos have 5; a user's own videos may be cut otherwise.
        image_size: height and width of frames; the published files have 224.
        options: see `AVDataModule`.

    Raises:
        ArgumentError: an unknown setting, another layout, or a number out of its range.

    Example:
        >>> data = AVSBenchDataModule(Path("data/avsbench"), "ms3", mask_size=56)
        >>> tuple(data.example_batch(2)["masks"].shape)
        (2, 5, 56, 56)
    """

    def __init__(
        self,
        root: Path,
        setting: Literal["s4", "ms3"],
        mask_size: Count | None = None,
        layout: Literal["store", "folders"] = "folders",
        segments: Count = avsbench.SECONDS,
        image_size: Count = 224,
        **options: Any,
    ) -> None:
        if setting not in avsbench.INFO:
            raise ArgumentError("setting", setting, " or ".join(avsbench.INFO), "Correct the argument.")
        self.setting, self.info = setting, avsbench.INFO[setting]
        super().__init__(root, layout=layout, segments=segments, image_size=image_size, **options)
        if layout != "folders":
            raise ArgumentError(
                "layout", layout, "folders", "AVSBench's masks belong to its own extracted frames: leave `layout` out."
            )
        if mask_size is not None and mask_size < 1:
            raise ArgumentError("mask_size", mask_size, "at least 1", "Choose another value.")
        self.mask_size = image_size if mask_size is None else mask_size
        self.class_names = tuple(self.info.class_names(self.root))
        self.num_classes = len(self.class_names)

    @property
    def sizes(self) -> dict[str, Any]:
        return {**super().sizes, "mask_size": self.mask_size}

    def read_annotations(self) -> dict[str, list[avsbench.Video]]:
        return avsbench.read_splits(self.root, self.setting)

    def annotate(self, item: avsbench.Video, rng: np.random.Generator) -> Sample:
        masks, annotated = avsbench.read_masks(avsbench.files(self.root, self.setting, item).masks, self.mask_size)
        return {"masks": masks, "annotated": annotated}
