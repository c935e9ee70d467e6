"""The base of every LightningDataModule: it reads clips from a store or from folders, handles missing and broken clips,
builds loaders that resume exactly, and reads a user's own videos for prediction."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import Dataset, default_collate

from avprompt.datasets.base import DatasetInfo
from avprompt.errors import ArgumentError, AVPromptError, ClipDecodeError, DatasetError
from avprompt.feature_cache import FeatureCache
from avprompt.media.augment import RandAugment
from avprompt.media.decode import Clip, Sampling, decode_clip, probe
from avprompt.media.feature_files import FeatureFiles
from avprompt.media.prepare import find_media
from avprompt.media.readers import ClipReader, Segments, one_a_segment, open_reader
from avprompt.media.samplers import ClipLoader, ErrorsAsValues, ResumableLoader, share
from avprompt.media.untrusted import MAX_PIXELS
from avprompt.processes import gathered_objects
from avprompt.ranges import Count, Natural, Positive, Share

Sample = dict[str, Any]

#: entries of a sample that are frames; all get the same augmentation, so that it cannot tell one from the other
FRAMES = ("frames", "negative_frames")


def collate(samples: list[Sample | AVPromptError]) -> Sample | AVPromptError:
    """Stack samples into a batch; strings become lists. The first error among the samples takes the batch's place, and
    `ClipLoader` raises it.

    Example:
        >>> collate([{"id": "one", "label": torch.tensor(3)}, {"id": "two", "label": torch.tensor(1)}])
        {'id': ['one', 'two'], 'label': tensor([3, 1])}
    """
    whole: list[Sample] = []
    for sample in samples:
        if isinstance(sample, AVPromptError):
            return sample
        whole.append(sample)
    columns = {key: [sample[key] for sample in whole] for key in whole[0]}
    return {key: own if isinstance(own[0], str) else default_collate(own) for key, own in columns.items()}


def no_labels(item: Any, rng: np.random.Generator) -> Sample:
    """What an annotation adds to a sample where media alone are asked for."""
    return {}


class ClipDataset(Dataset):
    """One split: a clip for each item, and the labels that the item's annotation adds.

    Args:
        items: annotations of the split; each has an `id`.
        reader: reads clips by id.
        annotate: (item, random generator) -> further entries of the sample. The generator depends on
            (seed, epoch, index) alone.
        seed: of that generator.
        training: `True` draws again in every epoch; `False` always draws the same.
        substitute: in training, let the next clip that decodes replace one that does not. The sample's `valid` is then
            all `False`, and the broken clip is counted. Evaluation never substitutes.
        limit: share of the split that may be substituted; more is an error.
        augment: augments the frames of training samples.
        mix_audio: see `AVDataModule`; in training only.
        times: start and end of each segment, (T, 2) in seconds; every sample has them.
        features: read these instead of frames and audio; it has `read_item(item)`.
    """

    def __init__(
        self,
        items: list[Any],
        reader: ClipReader,
        annotate: Any,
        seed: int = 0,
        training: bool = False,
        substitute: bool = False,
        limit: float = 0.05,
        augment: RandAugment | None = None,
        mix_audio: float = 0.0,
        times: np.ndarray | None = None,
        features: FeatureCache | FeatureFiles | None = None,
    ) -> None:
        self.items, self.reader, self.annotate = items, reader, annotate
        self.seed, self.training = seed, training
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that outlive an epoch read it
        self.substitute, self.limit = training and substitute, limit
        self.augment, self.mix_audio, self.features = augment, mix_audio, features
        self.times = None if times is None else torch.from_numpy(times)
        self.corrupt = torch.zeros(len(items), dtype=torch.bool).share_memory_()  # all workers write here

    @property
    def ids(self) -> list[str]:
        """Ids of the clips, in order."""
        return [item.id for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def epoch(self) -> int:
        """The epoch of what is drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of what is drawn; the loader calls this before each pass."""
        self._epoch.fill_(epoch if self.training else 0)

    def __getitem__(self, index: int) -> Sample:
        """One sample: `id`, `frames` uint8 (T, 3, H, W), `audio` float32 (T, S), `valid` bool (T,), and the labels.

        With `features`, `visual_features` and `audio_features` stand in the place of frames and audio.

        Raises:
            ClipDecodeError: the clip does not decode and may not be substituted, or too many clips do not decode.
        """
        if not 0 <= index < len(self.items):
            raise IndexError(index)  # what ends a `for` loop over the dataset
        place, media = self._media(index)
        item = self.items[place]
        rng = np.random.default_rng([self.seed, self.epoch, place])
        sample = {"id": item.id, **media, **self.annotate(item, rng)}
        if self.training:
            self._vary(sample, place, rng)
        if self.times is not None:
            sample["times"] = self.times
        return sample

    def _media(self, index: int) -> tuple[int, Sample]:
        """Index of the clip read (`index` or its substitute), and its frames, audio and `valid`, or its features."""
        if self.features is not None:
            return index, self.features.read_item(self.items[index])
        place, (frames, audio, valid) = self._read(index)
        return place, {"frames": frames, "audio": audio, "valid": valid if place == index else torch.zeros_like(valid)}

    def _read(self, index: int) -> tuple[int, Segments]:
        """Clip `index`, or the next one that decodes where clips may be substituted, and the index of the clip read."""
        for offset in range(len(self.items)):
            place = (index + offset) % len(self.items)
            item = self.items[place]
            try:
                return place, self.reader.read(item.id)
            except ClipDecodeError as error:
                if not self.substitute:
                    raise
                if not self.corrupt[place]:
                    warnings.warn(f"another clip takes the place of {item.id}: {error}", stacklevel=3)
                self.corrupt[place] = True
                count, allowed = int(self.corrupt.sum()), max(1, math.floor(self.limit * len(self.items)))
                if count > allowed:
                    raise ClipDecodeError(
                        item.id,
                        f"{count} of {len(self.items)} clips that do not decode, the last: {error}",
                        f"at most {allowed} that other clips may replace",
                        "Run `avprompt data verify` to see what is wrong with the data.",
                    ) from error
        raise ClipDecodeError(
            self.items[index].id, "no clip of the split decodes", "readable clips", "Run `avprompt data verify`."
        )

    def _vary(self, sample: Sample, place: int, rng: np.random.Generator) -> None:
        """Augment the frames of a training sample and mix its audio, where that is asked for."""
        if self.augment is not None:
            seed = int(rng.integers(2**32))
            for key in FRAMES:
                if key in sample:
                    sample[key] = self.augment(sample[key], seed)
        if rng.random() < self.mix_audio:
            other = (place + int(rng.integers(1, max(2, len(self))))) % len(self)
            _, (_, audio, _) = self._read(other)
            share = torch.from_numpy(rng.beta(10, 10, (len(audio), 1)).astype(np.float32))
            sample["audio"] = share * sample["audio"] + (1 - share) * audio


class VideoWindows(Dataset):
    """A folder of a user's own videos, cut into consecutive windows of T segments.

    Videos without picture or sound are left out with a warning. A window that does not decode becomes zeros without a
    valid segment, with a warning, so that one broken minute does not cost the other predictions.

    Args:
        folder: searched for video files, also in its subfolders, or one such file; an audio file with a video's name
            replaces its sound.
        sampling: segments, sizes and rates.

    Raises:
        DatasetError: there is no such folder, or no usable video in it.
    """

    def __init__(self, folder: Path, sampling: Sampling) -> None:
        self.sampling = sampling
        media = find_media([Path(folder)])
        self.problems: dict[str, str] = dict(media.unusable)
        self.files = media.clips
        self.windows: list[tuple[str, Path, Path | None, float]] = []
        self.lengths: dict[str, float] = {}
        for clip, (video, wave) in media.clips.items():
            try:
                if video is None:
                    raise ClipDecodeError(wave, "a sound without a video", "a video of the same name", "Leave it out.")
                length = probe(video, wave, sampling)
            except ClipDecodeError as error:
                self.problems[clip] = str(error)
                continue
            # a remainder shorter than half a segment has nothing to predict
            count = max(1, math.ceil((length - 0.5 * sampling.seconds) / sampling.period))
            self.lengths[clip] = length
            self.windows += [(clip, video, wave, k * sampling.period) for k in range(count)]
        for problem in self.problems.values():
            warnings.warn(f"left out: {problem}", stacklevel=2)
        if not self.windows:
            raise DatasetError(
                folder,
                f"no usable video: {list(self.problems.values())[:3]}",
                "videos with picture and sound",
                "Check the files.",
            )

    @property
    def ids(self) -> list[str]:
        """Ids of the windows: the file's name without its ending, and `@<start>` in seconds after the first window."""
        return [clip if start == 0 else f"{clip}@{start:g}" for clip, _, _, start in self.windows]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Sample:
        """One window: `id`, `frames`, `audio`, `valid` as in `ClipDataset`, `path`, `start` and the video's `length` in
        seconds, and `problem`, why nothing was decoded, or an empty text."""
        name, video, wave, start = self.windows[index]
        problem = ""
        try:
            clip = decode_clip(video, self.sampling, start, wave)
        except ClipDecodeError as error:
            warnings.warn(f"not decoded from second {start:g} on: {error}", stacklevel=2)
            problem = str(error)
            count, size = self.sampling.segments, self.sampling.size
            clip = Clip(
                np.zeros((*self.sampling.pictures, size, size, 3), np.uint8),
                np.zeros((count, self.sampling.samples), np.float32),
                np.zeros(count, bool),
                0.0,
            )
        return {
            "id": self.ids[index],
            "frames": torch.from_numpy(clip.frames).movedim(-1, -3).contiguous(),
            "audio": torch.from_numpy(clip.audio),
            "valid": torch.from_numpy(clip.valid),
            "path": str(video),
            "start": start,
            "times": torch.from_numpy(self.sampling.times(start)),
            "length": self.lengths[name],
            "problem": problem,
        }


class AVDataModule(LightningDataModule, abc.ABC):
    """Arguments and loaders that all datasets share; a subclass reads the annotations (`read_annotations`, `annotate`).

    A batch is a flat dict: `id` list of B strings, `frames` uint8 (B, T, 3, H, W), with several frames a segment
    (B, T, F, 3, H, W), `audio` float32 (B, T, S) in [-1, 1], `valid` bool (B, T), False where a segment could not be
    decoded, `times` float32 (B, T, 2), start and end of each segment in seconds of the video, and the dataset's labels.
    The visual encoder normalises the frames, on its device.

    Args:
        root: folder of annotations and media.
        layout: `store` (root/store, written by `avprompt data prepare`) or `folders` (those of the published code).
        batch_size: clips a training batch.
        eval_batch_size: clips a validation, test or prediction batch; `None` is `batch_size`.
        num_workers: worker processes of each loader.
        seed: of the order of training clips and of everything that is drawn for a sample.
        image_size: height and width of frames in pixels; the visual encoder must take the same.
        antialias: low-pass filter before pictures are resized. The published code resizes without. A store must have
            been prepared with the same value.
        stride: seconds from the start of a segment to the start of the next; `None` is 1, without gaps.
        sample_rate: of the audio in Hz; the audio encoder must take the same.
        segments: number T of segments a clip; a segment lasts one second.
        missing: what to do about annotated clips without media: `error`, or `skip` and report them.
        corrupt: what to do about clips that do not decode in training: `error`, or `substitute` another clip.
            Evaluation always stops with an error.
        validation_split: the split that checkpoints are selected on. `test` repeats the released procedure.
        predict_root: folder of videos for `avprompt predict`; `None` predicts on the test split.
        pin_memory: copy batches to page-locked memory (CUDA).
        persistent_workers: keep the workers of training and validation from epoch to epoch. Worth it where the system
            starts processes anew (spawn, as on macOS), and each imports the suite first.
        prefetch: batches that each worker reads ahead.
        max_pixels: a picture with more pixels is refused before it is decoded; 8K video fits.
        max_hours: a video in `predict_root` that lasts longer is left out, with a warning.
        augment: augmentation of training frames, `none` or `randaugment` (see `RandAugment`). All frames of a clip
            share one draw; every epoch draws again.
        feature_cache: folder of features that `avprompt data features` computed; the batch then holds `visual_features`
            and `audio_features` instead of frames and audio, for a task over `PrecomputedFeatures`.
        published_features: folder of the features that the dataset's authors published, for a task over
            `PublishedFeatures`; no media are read.
        train_clips: train on this many clips of the training split, drawn at random by `seed`; a smaller number draws
            some of those of a larger one. `None` is all of them. Validation and test stay whole.
        frames_per_segment: number F of frames a segment, evenly spaced over it; the visual encoder must take the same,
            and a store must have been prepared with it. 1 is the frame in its middle.
        shards: where the tar files of a store of shards lie, if not in root/store/shards: a path, or an address that fsspec
            knows, such as `s3://bucket/folder`.
        mix_audio: probability that a training clip's audio is mixed with the audio of another training clip. Each
            segment draws its own share from Beta(10, 10). Frames and labels stay.

    Raises:
        ArgumentError: a number is out of its range, features meet augmentation or your own videos, or the dataset has
            no published features, or they meet `corrupt: substitute`; from `setup`, also `augment` for a dataset with
            masks.
        DatasetError: from `setup`, when folders or clips are missing, there are fewer training clips than
            `train_clips`, or features are of other clips.

    Example:
        >>> from avprompt.data_modules import AVEDataModule
        >>> data = AVEDataModule(Path("data/ave"), image_size=64, sample_rate=16000)
        >>> batch = data.example_batch(2)  # noise in the form of a training batch
        >>> tuple(batch["frames"].shape), tuple(batch["audio"].shape), tuple(batch["event"].shape)
        ((2, 10, 3, 64, 64), (2, 10, 16000), (2, 10, 29))
    """

    #: description of the dataset
    info: DatasetInfo
    num_classes: int
    class_names: tuple[str, ...]

    def __init__(
        self,
        root: Path,
        layout: Literal["store", "folders"] = "store",
        batch_size: Count = 8,
        eval_batch_size: Count | None = None,
        num_workers: Natural = 0,
        seed: Natural = 0,
        image_size: Count = 192,
        antialias: bool = True,
        stride: Positive | None = None,
        sample_rate: Count = 32000,
        segments: Count = 10,
        missing: Literal["error", "skip"] = "error",
        corrupt: Literal["error", "substitute"] = "error",
        validation_split: Literal["val", "test"] = "val",
        predict_root: Path | None = None,
        pin_memory: bool = False,
        persistent_workers: bool = False,
        prefetch: Count = 2,
        max_pixels: Count = MAX_PIXELS,
        max_hours: Positive = 24.0,
        augment: Literal["none", "randaugment"] = "none",
        mix_audio: Share = 0.0,
        feature_cache: Path | None = None,
        published_features: Path | None = None,
        train_clips: Count | None = None,
        frames_per_segment: Count = 1,
        shards: str | None = None,
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
            ("prefetch", prefetch, 1),
            ("train_clips", 1 if train_clips is None else train_clips, 1),
            ("frames_per_segment", frames_per_segment, 1),
        ):
            if value < least:
                raise ArgumentError(name, value, f"at least {least}", "Choose another value.")
        if augment not in ("none", "randaugment"):
            raise ArgumentError("augment", augment, "none or randaugment", "Correct the argument.")
        if not 0 <= mix_audio <= 1:
            raise ArgumentError("mix_audio", mix_audio, "a probability, 0 to 1", "Choose another value.")
        for source, folder in (("feature_cache", feature_cache), ("published_features", published_features)):
            for argument, given, off in (
                ("augment", augment, "none"),
                ("mix_audio", mix_audio, 0.0),
                ("predict_root", predict_root, None),
            ):
                if folder is not None and given != off:
                    raise ArgumentError(
                        argument,
                        given,
                        f"{off}, with {source.replace('_', ' ')}",
                        f"Features are computed once for each annotated clip: leave out `{source}`, or this.",
                    )
        self.feature_cache, self.published_features = (
            None if folder is None else Path(folder).expanduser() for folder in (feature_cache, published_features)
        )
        if self.published_features is not None and (self.info.features is None or feature_cache is not None):
            raise ArgumentError(
                "published_features",
                published_features,
                "nothing, "
                + ("with a feature cache" if feature_cache is not None else f"as {self.info.name} has none"),
                "Leave it out.",
            )
        if self.published_features is not None:
            count = self.info.features.shapes["audio_features"][0]
            if segments != count:
                raise ArgumentError(
                    "segments",
                    segments,
                    f"{count}, as the published features of {self.info.name} have",
                    "Leave `segments` out.",
                )
            if corrupt != "error":
                raise ArgumentError(
                    "corrupt",
                    corrupt,
                    "error, with published features",
                    "Nothing is decoded, and no clip can take another's place: leave `corrupt` out.",
                )
        if frames_per_segment > 1 and not self.info.published.stored:
            raise ArgumentError(
                "frames_per_segment",
                frames_per_segment,
                f"1, as masks of {self.info.name} belong to single frames",
                "Leave it out.",
            )
        self.root, self.layout = Path(root).expanduser(), layout
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.seed, self.pin_memory = num_workers, seed, pin_memory
        self.sampling = Sampling(
            segments=segments,
            size=image_size,
            sample_rate=sample_rate,
            antialias=antialias,
            stride=stride,
            max_pixels=max_pixels,
            max_hours=max_hours,
            frames=frames_per_segment,
        )
        self.persistent_workers, self.prefetch = persistent_workers, prefetch
        self.missing, self.corrupt, self.validation_split = missing, corrupt, validation_split
        self.train_clips, self.shards = train_clips, shards
        self.predict_root = None if predict_root is None else Path(predict_root).expanduser()
        self.augment, self.mix_audio = augment, mix_audio
        self.datasets: dict[str, Dataset] = {}
        self.reader: ClipReader | None = None
        self.absent: dict[str, dict[str, str]] = {}
        self.rows: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process that is spawned gets: no trainer, and none of the datasets that refer to this."""
        return {**self.__dict__, "trainer": None, "datasets": {}, "reader": None}

    @property
    def segments(self) -> int:
        """Number T of segments a clip."""
        return self.sampling.segments

    @property
    def sizes(self) -> dict[str, Any]:
        """What `DatasetInfo.example` reads besides `clips` and `segments`."""
        return {"num_classes": self.num_classes}

    @abc.abstractmethod
    def read_annotations(self) -> dict[str, list[Any]]:
        """Items of the splits `train`, `val` and `test`."""

    @abc.abstractmethod
    def annotate(self, item: Any, rng: np.random.Generator) -> Sample:
        """Labels that an item adds to its sample. Random draws use `rng`, so that runs repeat."""

    def plot(self, sample: Sample) -> Any:
        """A matplotlib `Figure` of a sample (no batch dimension) with its labels and, if present, its predictions.

        A sample of features has no frames and no audio: they are read, or where only features exist, grey and silent.
        """
        from avprompt.plots.legible import legible

        if "frames" not in sample and self.published_features is not None:
            count = self.segments
            sample = {
                **sample,
                "frames": torch.full((count, 3, 16, 16), 128, dtype=torch.uint8),
                "audio": torch.zeros(count, self.sampling.samples),
            }
        if "frames" not in sample and self.feature_cache is not None:
            frames, audio, _ = self.reader.read(sample["id"])
            sample = {**sample, "frames": frames, "audio": audio}
        if "frames" in sample:
            sample = {**sample, "frames": one_a_segment(sample["frames"])}
        return legible(self.info.plot(sample, self.class_names, self.sampling.spacing))

    def example_batch(self, clips: int) -> Sample:
        """A batch of noise with the keys, shapes and dtypes of a training batch, on torch's default device.

        It reads no files: `avprompt efficiency` measures training steps on it.

        Args:
            clips: number B.
        """
        sampling, shape = self.sampling, (clips, self.segments)
        media = (
            {
                "frames": torch.randint(
                    256, (clips, *sampling.pictures, 3, sampling.size, sampling.size), dtype=torch.uint8
                ),
                "audio": 0.1 * torch.randn(*shape, sampling.samples),
            }
            if self.published_features is None
            else {name: torch.rand(clips, *own) for name, own in self.info.features.shapes.items()}
        )
        return {
            "id": ["example"] * clips,
            **media,
            "valid": torch.ones(shape, dtype=torch.bool),
            "times": torch.tensor(sampling.times()).repeat(clips, 1, 1),
            **self.info.example(clips=clips, segments=self.segments, **self.sizes),
        }

    def setup(self, stage: str) -> None:
        """Read the annotations and look for the media of the splits that the stage needs.

        Raises:
            ArgumentError: `augment` is set and the dataset has masks, which belong to the frames as they are.
            DatasetError: media are missing and `missing` is `error`, or a split has no clip left.
            AnnotationError: an annotation file breaks its format.
        """
        if stage == "predict" and self.predict_root is not None:
            self.datasets["predict"] = VideoWindows(self.predict_root, self.sampling)
            return
        if self.augment != "none" and not self.info.published.stored:
            raise ArgumentError(
                "augment", self.augment, "none: masks belong to the frames as they are", "Leave it out."
            )
        augment = RandAugment(self.sampling.size) if self.augment == "randaugment" else None
        annotations = self.read_annotations()
        reader = self.reader = self._open_reader()
        cache = None if self.feature_cache is None else FeatureCache(self.feature_cache)
        features: Any = reader if self.published_features is not None else cache
        needed: dict[str | None, list[str]] = {
            "fit": ["train", self.validation_split],
            "validate": [self.validation_split],
        }
        for split in needed.get(stage, ["test"]):
            if split not in self.datasets:
                items = self._available(split, annotations[split], reader)
                items = self._drawn(items) if split == "train" and self.train_clips is not None else items
                if cache is not None:
                    cache.check(self.sampling, {item.id: reader.identity(item.id) for item in items})
                self.datasets[split] = ClipDataset(
                    items,
                    reader,
                    self.annotate,
                    self.seed,
                    split == "train",
                    self.corrupt == "substitute",
                    augment=augment,
                    mix_audio=self.mix_audio,
                    times=self.sampling.times(),
                    features=features,
                )

    def _drawn(self, items: list[Any]) -> list[Any]:
        """The items of `train_clips` clips, in their order."""
        ids = list(dict.fromkeys(item.id for item in items))
        if self.train_clips > len(ids):
            raise DatasetError(
                f"{self.root}, train_clips",
                f"{len(ids)} training clips",
                f"at least {self.train_clips}",
                "Ask for fewer, or leave it out to train on all.",
            )
        chosen = {ids[place] for place in np.random.default_rng(self.seed).permutation(len(ids))[: self.train_clips]}
        self.rows["train"] -= sum(item.id not in chosen for item in items)  # a clip that was not drawn is not missing
        return [item for item in items if item.id in chosen]

    def _open_reader(self) -> ClipReader:
        """The reader of the layout's media, or of the published features."""
        if self.published_features is None:
            return open_reader(self.layout, self.root, self.sampling, self.info.published.folders, self.shards)
        if self.reader is not None:
            return self.reader
        if not self.published_features.is_dir():
            raise DatasetError(
                "published_features", self.published_features, "a folder of features", "Correct the path."
            )
        return self.info.features(self.published_features, self.root, self.class_names)

    def every_clip(self, splits: Sequence[str]) -> ClipDataset:
        """Media of each clip of some splits once, without labels, augmentation or substitutes, as features need them.

        Raises:
            DatasetError: see `setup`.
            AnnotationError: see `setup`.
        """
        annotations = self.read_annotations()
        self.reader = open_reader(self.layout, self.root, self.sampling, self.info.published.folders, self.shards)
        items = [item for split in splits for item in self._available(split, annotations[split], self.reader)]
        return ClipDataset(list({item.id: item for item in items}.values()), self.reader, no_labels)

    def _available(self, split: str, items: list[Any], reader: ClipReader) -> list[Any]:
        problems = {item.id: problem for item in items if (problem := reader.problem(item.id)) is not None}
        self.absent[split], self.rows[split] = problems, len(items)
        examples = "; ".join(f"{clip}: {why}" for clip, why in list(problems.items())[:5])
        if problems and self.missing == "error":
            bad = sum(item.id in problems for item in items)
            raise DatasetError(
                self.root,
                f"{bad} of {len(items)} clips of split {split} unusable ({examples})",
                "media for every clip",
                "`avprompt data verify` shows the folders and what is missing; or set `missing: skip`.",
            )
        kept = [item for item in items if item.id not in problems]
        if problems:
            warnings.warn(f"{split}: {len(items) - len(kept)} of {len(items)} left out ({examples})", stacklevel=3)
        if not kept:
            raise DatasetError(self.root, f"no clip of split {split}", "at least one", "Check root and layout.")
        return kept

    def _loader(self, split: str, batch_size: int, shuffle: bool = False) -> ResumableLoader:
        data, trainer = self.datasets[split], self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return ResumableLoader(
            ErrorsAsValues(data),
            batch_size,
            self.seed,
            shuffle,
            rank,
            world,
            self.groups(split),
            split == "train",
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=self.pin_memory,
            prefetch_factor=self.prefetch if self.num_workers else None,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
        )

    def groups(self, split: str) -> list[str] | None:
        """The name of each clip's group, where the clips of a group must follow each other; `None` without groups."""
        return None

    def in_order(self, split: str) -> ClipLoader:
        """Batches of every clip of a split once, in the split's order; each process reads them all."""
        return ClipLoader(
            ErrorsAsValues(self.datasets[split]),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=self.pin_memory,
        )

    def train_dataloader(self) -> ResumableLoader:
        """Training batches, in an order that depends on (seed, epoch); in the file's order under `overfit_batches`."""
        return self._loader("train", self.batch_size, shuffle=not (self.trainer and self.trainer.overfit_batches))

    def val_dataloader(self) -> ResumableLoader:
        """Batches of the split that checkpoints are selected on."""
        return self._loader(self.validation_split, self.eval_batch_size)

    def test_dataloader(self) -> ResumableLoader:
        """Batches of the test split."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> ClipLoader:
        """Batches of the user's videos, or of the test split.

        Lightning rebuilds a prediction loader to keep track of indices. That needs a plain loader with named arguments.
        """
        return ClipLoader(
            ErrorsAsValues(self.to_predict),
            batch_size=self.eval_batch_size,
            sampler=self.predict_share,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=self.pin_memory,
        )

    @property
    def to_predict(self) -> Dataset:
        """The user's videos, or the test split."""
        return self.datasets["predict" if "predict" in self.datasets else "test"]

    @property
    def predict_share(self) -> range:
        """Which of its clips this process predicts."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return share(len(self.to_predict), self.eval_batch_size, rank, world)

    def unusable(self) -> list[dict[str, str]]:
        """The user's own videos that cannot be predicted: `id`, `path` and `reason` of each."""
        data = self.datasets.get("predict")
        if not isinstance(data, VideoWindows):
            return []
        paths = {clip: next(filter(None, pair)) for clip, pair in data.files.items()}
        return [{"id": clip, "path": str(paths.get(clip, "")), "reason": why} for clip, why in data.problems.items()]

    def sounds(self) -> dict[str, Path]:
        """Of the user's own videos whose sound is a file of its own: path of the video -> path of the sound."""
        data = self.datasets.get("predict")
        return (
            {str(video): wave for _, video, wave, _ in data.windows if wave is not None}
            if isinstance(data, VideoWindows)
            else {}
        )

    def find_corrupt(self) -> None:
        """Note which training clips the other processes could not decode; a collective."""
        for data in self.datasets.values():
            if isinstance(data, ClipDataset):
                data.corrupt |= torch.stack(gathered_objects(data.corrupt)).any(0)

    def clips(self) -> dict[str, dict[str, int]]:
        """Numbers of clips used, missing and corrupt, by split; of own videos, windows used and files corrupt."""
        return {
            split: {
                "used": len(data),
                "missing": self.rows.get(split, len(data)) - len(data),
                "corrupt": int(data.corrupt.sum()) if isinstance(data, ClipDataset) else len(data.problems),
            }
            for split, data in self.datasets.items()
        }

    def manifest(self) -> dict[str, Any]:
        """What this run reads: the dataset's name, ids by split, why others are left out, and whether it is a synthetic
        dataset."""
        ids = {split: data.ids for split, data in self.datasets.items()}
        left_out = {
            **self.absent,
            **{split: data.problems for split, data in self.datasets.items() if isinstance(data, VideoWindows)},
        }
        return {
            "dataset": self.info.name,
            "unit": self.info.unit,
            "root": str(self.root),
            "generated": (self.root / "scenes.jsonl").is_file(),
            "layout": self.layout,
            "clips": self.clips(),
            "ids": ids,
            "left_out": left_out,
        }
