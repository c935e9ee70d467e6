"""LLP: audio-visual video parsing, what is heard and what is seen in ten-second videos."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from avprompt.analysis.parsing import parsing_figure
from avprompt.data_modules.base import AVDataModule, Sample
from avprompt.errors import ClipDecodeError, ConfigError, DatasetError
from avprompt.media import llp
from avprompt.media.readers import ClipReader, Segments

FEATURES = 512  # channels of r2plus1d_18


class WithFeatures(ClipReader):
    """A reader for which a clip without features is one that cannot be used.

    Args:
        reader: of the clips.
        folder: of the features.
    """

    def __init__(self, reader: ClipReader, folder: Path) -> None:
        self.reader = reader
        self.found = {path.stem for path in folder.glob("*.npy")}

    def problem(self, clip_id: str) -> str | None:
        return self.reader.problem(clip_id) or (None if clip_id in self.found else "missing: features")

    def inspect(self, clip_id: str) -> str | None:
        return self.reader.inspect(clip_id) or self.problem(clip_id)

    def read(self, clip_id: str) -> Segments:
        return self.reader.read(clip_id)


class LLPDataModule(AVDataModule):
    """LLP from its published csv files in `root`.

    Adds `labels` (B, C) float32, 1 for each category that occurs in the video; to validation and test batches
    `audio_target` and `visual_target` (B, T, C) float32, 1 where the category is heard or seen; with `features`
    `video_features` (B, T, 512) float32. One's own videos have none of them. See `avprompt.media.llp` for what the
    published files hold besides, and `AVDataModule` for every other argument.

    Attributes:
        video_dim: channels of `video_features`, 512, or 0 without them.

    Args:
        categories: names of the categories in the order of their indices; `None` reads root/categories.txt, and without
            that file they are LLP's own 25. Where both are given they must agree.
        features: folder of r2plus1d_18 features, `<id>.npy` of T x 512 floating-point numbers for each video, as
            published in LLP_dataset/feats/r2plus1d_18; `None` parses without them. A video without its file is a
            missing clip; a damaged file ends the run.
        options: see `AVDataModule`.

    Raises:
        AnnotationError: `categories` contradicts categories.txt.
        ConfigError: `features` together with `predict_root`.
    """

    published = llp.PUBLISHED

    def __init__(self, root: Path, categories: list[str] | None = None, features: Path | None = None,
                 **options: Any) -> None:
        super().__init__(root, **options)
        # read here, not in `setup`: the model is sized by it before any data is looked at
        self.class_names = llp.read_categories(self.root, categories)
        self.num_classes = len(self.class_names)
        self.features = None if features is None else Path(features)
        self.video_dim = 0 if features is None else FEATURES
        if self.features is not None and self.predict_root is not None:
            raise ConfigError("features, predict_root", f"{features}, {self.predict_root}",
                              "one of them: your own videos have no r2plus1d features",
                              "Predict with a model that was trained with `features: null`.")

    def setup(self, stage: str) -> None:
        if self.features is None and not self.datasets:
            warnings.warn("parsing runs without the r2plus1d stream: `features` names no folder", stacklevel=2)
        if self.features is not None and not self.features.is_dir():
            raise DatasetError("features", self.features, "a folder of <id>.npy files, r2plus1d_18 features",
                               "Correct the path, or set `features: null`.")
        super().setup(stage)

    def _available(self, split: str, items: list[llp.Video], reader: ClipReader) -> list[llp.Video]:
        return super()._available(split, items, WithFeatures(reader, self.features) if self.features else reader)

    def read_annotations(self) -> dict[str, list[llp.Video]]:
        splits = llp.read_splits(self.root, self.class_names, self.sampling.segments)
        if lines := llp.ignored(splits):
            warnings.warn(f"annotations that change no label: {'; '.join(lines)}", stacklevel=2)
        return splits

    def annotate(self, item: llp.Video, rng: np.random.Generator) -> Sample:
        sample = {"labels": item.weak_label(self.num_classes)}
        if item.audio is not None and item.visual is not None:
            sample["audio_target"], sample["visual_target"] = (
                llp.target(events, self.sampling.segments, self.num_classes) for events in (item.audio, item.visual))
        if self.features is not None:
            sample["video_features"] = self._video_features(item.id)
        return sample

    def _video_features(self, clip_id: str) -> Tensor:
        path, shape = self.features / f"{clip_id}.npy", (self.sampling.segments, FEATURES)
        expected, hint = f"finite floating-point numbers {shape}", "Extract the features again."
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ClipDecodeError(path, error, expected, hint) from error
        if values.shape != shape or values.dtype.kind != "f" or not np.isfinite(values).all():
            raise ClipDecodeError(path, f"{values.dtype} {values.shape}", expected, hint)
        return torch.from_numpy(values.astype(np.float32))

    def plot(self, sample: Sample) -> Figure:
        """Frames, waveform, and bars for what is heard and what is seen.

        Annotated are `audio_target` and `visual_target`, predicted `prediction_audio` and `prediction_visual`, (T, C)
        each, where the sample has them; without a target its `labels` stand in the title.
        """
        truth, prediction = (tuple(sample[key].bool() for key in keys) if keys[0] in sample else None
                             for keys in (("audio_target", "visual_target"), ("prediction_audio", "prediction_visual")))
        title = sample["id"]
        if truth is None and "labels" in sample:
            title += ": " + ", ".join(self.class_names[index] for index in sample["labels"].nonzero().flatten())
        return parsing_figure(self.normalise.undo(sample["frames"]), sample["audio"], self.class_names, truth,
                              prediction, title, float(sample.get("start", 0.0)), sample.get("valid"))
