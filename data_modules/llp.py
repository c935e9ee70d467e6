"""LLP: audio-visual video parsing of ten-second videos, that is, what is heard and what is seen in each second."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from avprompt.data_modules.base import AVDataModule, Sample
from avprompt.data_modules.few_shot import FewShotDataModule
from avprompt.datasets import llp
from avprompt.errors import AnnotationError, ArgumentError, ConfigError, DatasetError, check_choice
from avprompt.feature_cache import RECORD, FeatureCache
from avprompt.media.decode import Sampling
from avprompt.media.feature_files import NpyFolder
from avprompt.media.readers import ClipReader, Segments
from avprompt.ranges import Natural

FEATURES = 512  # channels of r2plus1d_18


class CachedFeatures:
    """The visual half of a feature cache in the place of an `NpyFolder`.

    Args:
        folder: of the cache.
        sampling: of the clips whose features are asked for; the cache's may have frames of another size and number.

    Raises:
        DatasetError: no cache, other segments, or features of another shape than (T, 512).
    """

    def __init__(self, folder: Path, sampling: Sampling) -> None:
        self.cache = FeatureCache(folder)
        theirs, shape = self.cache.sampling, self.cache.record.shape("visual")
        found = shape, theirs.times().tolist()
        if found != ((sampling.segments, FEATURES), sampling.times().tolist()):
            raise DatasetError(
                folder,
                f"visual features {shape} of segments of {theirs.seconds:g} s every {theirs.spacing:g} s",
                f"{(sampling.segments, FEATURES)}, of {sampling.seconds:g} s every {sampling.spacing:g} s",
                "Compute them with `avprompt data features --config avvp_han_r2plus1d`.",
            )

    def ids(self) -> set[str]:
        """Clips whose features are computed."""
        return set(self.cache.places) - set(self.cache.missing)

    def read(self, clip_id: str) -> Tensor:
        """(T, 512) float32."""
        return self.cache.read(clip_id)["visual_features"].float()


class WithFeatures(ClipReader):
    """A reader that treats a clip without features as missing.

    Args:
        reader: reads the clips.
        found: ids of the clips that have features.
    """

    def __init__(self, reader: ClipReader, found: set[str]) -> None:
        self.reader, self.found = reader, found

    def problem(self, clip_id: str) -> str | None:
        return self.reader.problem(clip_id) or (None if clip_id in self.found else "missing: features")

    def inspect(self, clip_id: str) -> str | None:
        return self.reader.inspect(clip_id) or self.problem(clip_id)

    def identity(self, clip_id: str) -> str:
        return self.reader.identity(clip_id)

    def read(self, clip_id: str) -> Segments:
        return self.reader.read(clip_id)


class LLPDataModule(AVDataModule):
    """LLP from its published csv files in `root`.

    Batches have `labels` (B, C) float32, 1 for each category that occurs in the video. Validation and test batches also
    have `audio_target` and `visual_target` (B, T, C) float32, 1 where the category is heard or seen. With `features`,
    batches have `video_features` (B, T, 512) float32. A user's own videos have none of these. `avprompt.datasets.llp`
    describes the published files; `AVDataModule` describes the other arguments.

    Attributes:
        video_dim: channels of `video_features`, 512, or 0 without them.

    Args:
        root: folder of annotations and media.
        categories: names of the categories in the order of their indices. `None` reads root/categories.txt or, where
            there is no such file, takes LLP's own 25. If both are given, they must agree.
        features: folder of r2plus1d_18 features, a file `<id>.npy` of T x 512 floating-point numbers for each video, as
            published in LLP_dataset/feats/r2plus1d_18, or a feature cache that `avprompt data features` made with the
            experiment avvp_han_r2plus1d; `None` parses without them. A video without its file counts as missing; a
            damaged file ends the run.
        taught: folder of labels of segments that other networks gave the training videos, as VALOR publishes them: in
            `audio` and `visual` a file `<id>.npy` of T x C numbers, 0 or 1, each. Training batches then have
            `taught_audio` and `taught_visual` (B, T, C) float32, for `supervision: taught` of `AVVP`.
        published_by: whose features `published_features` has: `HAN`, those of ResNet-152 and VGGish; `VALOR`, those of
            CLIP and CLAP; both with those of R(2+1)D-18.
        options: see `AVDataModule`.

    Raises:
        AnnotationError: `categories` contradicts categories.txt.
        DatasetError: from `setup`, a folder is missing, or a training video has no file in `taught`.
        ConfigError: `features` is combined with `predict_root` or `published_features`.

    Example:
        >>> data = LLPDataModule(Path("data/llp"), features=Path("data/llp/LLP_dataset/feats/r2plus1d_18"))
        >>> {key: tuple(data.example_batch(2)[key].shape) for key in ("labels", "video_features")}
        {'labels': (2, 25), 'video_features': (2, 10, 512)}
    """

    info = llp.INFO

    def __init__(
        self,
        root: Path,
        categories: list[str] | None = None,
        features: Path | None = None,
        taught: Path | None = None,
        published_by: Literal["HAN", "VALOR"] = "HAN",
        **options: Any,
    ) -> None:
        check_choice("published_by", published_by, tuple(llp.PUBLISHERS))
        if self.info.features is not None:
            self.info = replace(self.info, features=llp.PUBLISHERS[published_by])
        super().__init__(root, **options)
        # read before `setup`: the model is built with these sizes before any data are read
        self.class_names = llp.read_categories(self.root, categories)
        self.num_classes = len(self.class_names)
        if features is not None and self.published_features is not None:
            raise ConfigError(
                "features, published_features",
                f"{features}, {self.published_features}",
                "one of them: the published features include r2plus1d_18",
                "Set `features: null`.",
            )
        self.features = None if features is None else Path(features).expanduser()
        shape = self.sampling.segments, self.num_classes
        self.taught = (
            {}
            if taught is None
            else {kind: NpyFolder(Path(taught).expanduser() / kind, shape, kinds="fiub") for kind in llp.EVENTS}
        )
        self.video_dim = 0 if features is None and self.published_features is None else FEATURES
        if self.features is not None and self.predict_root is not None:
            raise ConfigError(
                "features, predict_root",
                f"{features}, {self.predict_root}",
                "one of them: your own videos have no r2plus1d features",
                "Predict with a model that was trained with `features: null`.",
            )

    @property
    def sizes(self) -> dict[str, Any]:
        return {**super().sizes, "video_dim": self.video_dim, "taught": bool(self.taught)}

    def setup(self, stage: str) -> None:
        if self.video_dim == 0 and not self.datasets:
            warnings.warn("parsing runs without the r2plus1d stream: `features` names no folder", stacklevel=2)
        if self.features is not None and not self.features.is_dir():
            raise DatasetError(
                "features",
                self.features,
                "a folder of <id>.npy files or a feature cache, r2plus1d_18 features",
                "Correct the path, or set `features: null`.",
            )
        super().setup(stage)
        for files in self.taught.values() if "train" in self.datasets else ():
            if lacking := sorted(set(self.datasets["train"].ids) - files.ids()):
                raise DatasetError(
                    files.folder,
                    f"no labels of {len(lacking)} training videos, such as {lacking[0]}",
                    "a file <id>.npy for each",
                    "Correct `taught`, or leave it out.",
                )

    @functools.cached_property
    def video_files(self) -> NpyFolder | CachedFeatures:
        """What `features` names."""
        if (self.features / RECORD).is_file():
            return CachedFeatures(self.features, self.sampling)
        return NpyFolder(self.features, (self.segments, FEATURES))

    def _available(self, split: str, items: list[llp.Video], reader: ClipReader) -> list[llp.Video]:
        reader = WithFeatures(reader, self.video_files.ids()) if self.features else reader
        return super()._available(split, items, reader)

    def read_annotations(self) -> dict[str, list[llp.Video]]:
        splits = llp.read_splits(self.root, self.class_names, self.sampling.segments)
        if lines := llp.ignored(splits):
            warnings.warn(f"annotations that change no label: {'; '.join(lines)}", stacklevel=2)
        return splits

    def annotate(self, item: llp.Video, rng: np.random.Generator) -> Sample:
        sample = {"labels": item.weak_label(self.num_classes)}
        if item.audio is not None and item.visual is not None:
            sample["audio_target"], sample["visual_target"] = (
                llp.target(events, self.sampling.segments, self.num_classes) for events in (item.audio, item.visual)
            )
        if item.audio is None:  # a training video, of which the events of segments are not annotated
            for kind, files in self.taught.items():
                sample[f"taught_{kind}"] = labels = files.read(item.id)
                if not ((labels == 0) | (labels == 1)).all():
                    raise AnnotationError(
                        files.folder / f"{item.id}.npy",
                        "numbers besides 0 and 1",
                        "0 or 1",
                        "Give labels and not probabilities.",
                    )
        if self.features is not None:
            sample["video_features"] = self.video_files.read(item.id)
        return sample


class LLPClassificationDataModule(FewShotDataModule, LLPDataModule):
    """LLP with one category a video as the answer, from the same files as `LLPDataModule`.

    Batches have `label` (B,) int64, the answer, and `labels` (B, C) float32, 1 for each category that occurs in the
    video; with `label_policy: any` also `accepted`, equal to `labels`. A user's own videos have none of these.
    Categories that are answers in evaluation and occur in no training video are reported. With LLP's own files,
    `lowest` and `single_label`, that is Speech, the answer to 625 of 1200 test videos.

    Args:
        root: folder of annotations and media.
        categories: see `LLPDataModule`.
        label_policy: the answer to a video of several categories. `lowest`: the category with the lowest index
            (released). `seeded`: one drawn for each video, the same in every epoch and stage (paper: "we randomly
            select one"). `any`: training uses the lowest, and evaluation accepts every category of the video.
        label_seed: of `seeded`. It is separate from `seed`, so that runs that differ in `seed` are tested on the same
            answers.
        single_label: train only on videos with exactly one category (released). Validation and test always use their
            whole split.
        options: see `FewShotDataModule` and `AVDataModule`.

    Raises:
        ArgumentError: `label_seed` is negative, or there is no such policy.
        AnnotationError: `categories` contradicts categories.txt.

    Example:
        >>> data = LLPClassificationDataModule(Path("data/llp"), shots=4)
        >>> sorted(set(data.example_batch(2)) - {"id", "frames", "audio", "valid", "times"})
        ['label', 'labels']
    """

    info = llp.CLASSIFICATION

    def __init__(
        self,
        root: Path,
        categories: list[str] | None = None,
        label_policy: Literal["lowest", "seeded", "any"] = "lowest",
        label_seed: Natural = 0,
        single_label: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(root, categories=categories, features=None, taught=None, published_by="HAN", **options)
        if label_policy not in ("lowest", "seeded", "any"):
            raise ArgumentError("label_policy", label_policy, "lowest, seeded or any", "Correct the argument.")
        if label_seed < 0:
            raise ArgumentError("label_seed", label_seed, "at least 0", "Choose another value.")
        self.label_policy, self.label_seed, self.single_label = label_policy, label_seed, single_label

    def setup(self, stage: str) -> None:
        AVDataModule.setup(self, stage)  # LLPDataModule's setup checks features, which only parsing uses

    def category(self, item: llp.Video) -> int:
        labels = sorted(set(item.labels))
        if self.label_policy != "seeded":
            return labels[0]
        rng = np.random.default_rng([self.label_seed, *item.id.encode()])
        return labels[int(rng.integers(len(labels)))]

    def read_annotations(self) -> dict[str, list[llp.Video]]:
        splits = super().read_annotations()
        if self.single_label:
            splits["train"] = [video for video in splits["train"] if len(set(video.labels)) == 1]
        trained = {label for video in splits["train"] for label in video.labels}
        for split in ("val", "test"):
            lost = [
                video
                for video in splits[split]
                if trained.isdisjoint(video.labels if self.label_policy == "any" else {self.category(video)})
            ]
            if lost:
                counts = Counter(self.class_names[self.category(video)] for video in lost)
                share = 100 * len(lost) / len(splits[split])
                warnings.warn(
                    f"{split}: the answers to {len(lost)} of {len(splits[split])} videos ({share:.1f} %) are "
                    "categories without a training clip: "
                    f"{', '.join(f'{name} {count}' for name, count in counts.most_common())}; a model that never gives "
                    f"them reaches {100 - share:.1f} % at most",
                    stacklevel=2,
                )
        return splits

    def annotate(self, item: llp.Video, rng: np.random.Generator) -> Sample:
        labels = item.weak_label(self.num_classes)
        accepted = {"accepted": labels} if self.label_policy == "any" else {}
        return {"label": torch.tensor(self.category(item)), "labels": labels, **accepted}
