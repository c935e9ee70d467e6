"""What every dataset's LightningDataModule shares: clips from a store or folders, one policy for what is missing or
broken, exactly resumable loaders, and prediction on a user's own videos."""

from __future__ import annotations

import abc
import math
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from avprompt.errors import ArgumentError, AVPromptError, ClipDecodeError, DatasetError
from avprompt.media.augment import RandAugment
from avprompt.media.decode import Clip, Sampling, decode_clip, probe
from avprompt.media.prepare import find_media
from avprompt.media.readers import ClipReader, Published, Segments, open_reader
from avprompt.media.samplers import ClipLoader, ErrorsAsValues, ResumableLoader
from avprompt.media.untrusted import MAX_PIXELS

Sample = dict[str, Any]

#: entries of a sample that are frames, and augmented alike: what differs between them must not be the augmentation
FRAMES = ("frames", "negative_frames")


def collate(samples: list[Sample | AVPromptError]) -> Sample | AVPromptError:
    """Stack tensors, keep strings and paths as lists; hand an error on (see `ClipLoader`)."""
    for sample in samples:
        if isinstance(sample, AVPromptError):
            return sample
    return {key: [s[key] for s in samples] if isinstance(samples[0][key], str) else default_collate(
        [s[key] for s in samples]) for key in samples[0]}


class Normalise:
    """(x - mean) / std for each colour.

    Args:
        mean: of red, green, blue in [0, 1].
        std: likewise.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))

    def __call__(self, frames: Tensor) -> Tensor:
        """(..., 3, H, W) in [0, 1] -> normalised."""
        return (frames - self.mean) / self.std

    def undo(self, frames: Tensor) -> Tensor:
        """Normalised (..., 3, H, W) -> [0, 1]."""
        return (frames * self.std + self.mean).clamp(0, 1)


class ClipDataset(Dataset):
    """Items of one split, each a clip and whatever its annotation adds.

    Args:
        items: the split's annotations; each has an `id`.
        reader: gives clips by id.
        normalise: applied to frames.
        annotate: annotation, and a random generator set by (seed, epoch, place) -> further entries of the sample.
        seed: of what `annotate` draws.
        training: what `annotate` draws changes from epoch to epoch; elsewhere it stays.
        substitute: in training, replace a clip that does not decode by the next one that does, marked by an all-false
            `valid`, and count it; evaluation never substitutes.
        limit: share of the split above which substitution gives up.
        augment: frames in [0, 1] and a seed -> augmented and normalised frames; in training only.
        mix_audio: see `AVDataModule`; in training only.
        times: begin and end of each segment, (T, 2) in seconds; goes into every sample.
    """

    def __init__(self, items: list[Any], reader: ClipReader, normalise: Normalise, annotate: Any,
                 seed: int = 0, training: bool = False, substitute: bool = False, limit: float = 0.05,
                 augment: RandAugment | None = None, mix_audio: float = 0.0, times: np.ndarray | None = None) -> None:
        self.items, self.reader, self.normalise, self.annotate = items, reader, normalise, annotate
        self.seed, self.training, self.epoch = seed, training, 0
        self.substitute, self.limit = training and substitute, limit
        self.augment, self.mix_audio = augment, mix_audio
        self.times = None if times is None else torch.from_numpy(times)
        self.corrupt = torch.zeros(len(items), dtype=torch.bool).share_memory_()  # seen by all workers

    @property
    def ids(self) -> list[str]:
        """Clip ids in order."""
        return [item.id for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def set_epoch(self, epoch: int) -> None:
        """Called by the loader before each pass."""
        self.epoch = epoch if self.training else 0

    def __getitem__(self, index: int) -> Sample:
        """Sample of clip `index`: `id`, `frames` (T, 3, H, W), `audio` (T, S), `valid` (T,) and the annotation.

        Raises:
            ClipDecodeError: the clip is damaged and may not be, or too many are.
        """
        if not 0 <= index < len(self.items):
            raise IndexError(index)  # what ends a `for` loop over the dataset
        place, (frames, audio, valid) = self._read(index)
        item = self.items[place]
        valid = valid if place == index else torch.zeros_like(valid)
        rng = np.random.default_rng([self.seed, self.epoch, place])
        sample = {"id": item.id, "frames": self.normalise(frames), "audio": audio, "valid": valid,
                  **self.annotate(item, rng)}
        if self.training:
            self._vary(sample, place, rng)
        if self.times is not None:
            sample["times"] = self.times
        return sample

    def _read(self, index: int) -> tuple[int, Segments]:
        """Clip `index`, or the next one that decodes where that may take its place; and which one it is."""
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
                    raise ClipDecodeError(item.id,
                                          f"{count} of {len(self.items)} clips that do not decode, lastly: {error}",
                                          f"at most {allowed} that others may take the place of",
                                          "Something is wrong with the data: run `avprompt data verify`.") from error
        raise ClipDecodeError(self.items[index].id, "no clip of the split decodes", "readable clips",
                              "Run `avprompt data verify`.")

    def _vary(self, sample: Sample, place: int, rng: np.random.Generator) -> None:
        """Augment the frames of a training sample and mix its sound, as far as asked for."""
        if self.augment is not None:
            seed = int(rng.integers(2**32))
            for key in FRAMES:
                if key in sample:
                    sample[key] = self.augment(self.normalise.undo(sample[key]), seed)
        if rng.random() < self.mix_audio:
            other = (place + int(rng.integers(1, max(2, len(self))))) % len(self)
            _, (_, audio, _) = self._read(other)
            share = torch.from_numpy(rng.beta(10, 10, (len(audio), 1)).astype(np.float32))
            sample["audio"] = share * sample["audio"] + (1 - share) * audio


class VideoWindows(Dataset):
    """A folder of anybody's videos as consecutive windows of T segments.

    Videos that cannot be used are left out with a warning. Whatever of the others turns out not to decode is a window
    without valid segments, with a warning too: one bad minute does not cost the other predictions.

    Args:
        folder: searched through for video files; an audio file with a video's name replaces its sound.
        sampling: sizes and rates.
        normalise: applied to frames.

    Raises:
        DatasetError: no such folder, or nothing in it that can be used.
    """

    def __init__(self, folder: Path, sampling: Sampling, normalise: Normalise) -> None:
        self.sampling, self.normalise = sampling, normalise
        media = find_media([Path(folder)])
        self.problems: dict[str, str] = dict(media.unusable)
        self.windows: list[tuple[str, Path, Path | None, float]] = []
        for clip, (video, wave) in media.clips.items():
            try:
                if video is None:
                    raise ClipDecodeError(wave, "a sound without a video", "a video of the same name", "Leave it out.")
                length = probe(video, wave, sampling)
            except ClipDecodeError as error:
                self.problems[clip] = str(error)
                continue
            # a rest shorter than half a segment holds nothing to predict
            count = max(1, math.ceil((length - 0.5 * sampling.seconds) / sampling.period))
            self.windows += [(clip, video, wave, k * sampling.period) for k in range(count)]
        for problem in self.problems.values():
            warnings.warn(f"left out: {problem}", stacklevel=2)
        if not self.windows:
            raise DatasetError(folder, f"no usable video: {list(self.problems.values())[:3]}",
                               "videos with picture and sound", "Check the files.")

    @property
    def ids(self) -> list[str]:
        """Ids of the windows: the file's name without ending, and `@second` for those after the first."""
        return [clip if start == 0 else f"{clip}@{start:g}" for clip, _, _, start in self.windows]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Sample:
        """Sample of a window: also `path` and `start` in seconds."""
        _, video, wave, start = self.windows[index]
        try:
            clip = decode_clip(video, self.sampling, start, wave)
        except ClipDecodeError as error:
            warnings.warn(f"not decoded from second {start:g} on: {error}", stacklevel=2)
            count, size = self.sampling.segments, self.sampling.size
            clip = Clip(np.zeros((count, size, size, 3), np.uint8),
                        np.zeros((count, self.sampling.samples), np.float32), np.zeros(count, bool), 0.0)
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float().div_(255)
        return {"id": self.ids[index], "frames": self.normalise(frames), "audio": torch.from_numpy(clip.audio),
                "valid": torch.from_numpy(clip.valid), "path": str(video), "start": start,
                "times": torch.from_numpy(self.sampling.times(start))}


class AVDataModule(LightningDataModule, abc.ABC):
    """Shared arguments and loaders; a dataset adds its annotations (`read_annotations`, `annotate`).

    Batches are flat dicts: `id` list of B strings, `frames` float32 (B, T, 3, H, W) normalised, `audio` float32
    (B, T, S) in [-1, 1], `valid` bool (B, T), `times` float32 (B, T, 2), begin and end of each segment in seconds of the
    video, and the dataset's own labels.

    Args:
        root: folder of annotations and media.
        layout: `store` (root/store, from `avprompt data prepare`) or `folders` (the published code's).
        batch_size: clips a training batch.
        eval_batch_size: clips a validation, test or prediction batch; `None` is `batch_size`.
        num_workers: worker processes of each loader.
        seed: of the order of training clips.
        image_size: height and width of frames, the visual encoder's.
        mean: colour means of the visual encoder.
        std: colour deviations of the visual encoder.
        antialias: low-pass before resizing; `false` as published. A store is checked against it.
        stride: seconds from the beginning of a segment to that of the next; `None` is 1, one after the other.
        sample_rate: Hz, the audio encoder's.
        segments: number T of segments a clip.
        missing: what to do about annotated clips without media: `error`, or `skip` and report.
        corrupt: what to do about clips that do not decode in training: `error`, or `substitute` (evaluation: error).
        validation_split: what checkpoints are selected on; `test` repeats the released procedure.
        predict_root: folder of videos for `avprompt predict`; `None` is the test split.
        pin_memory: copy batches to page-locked memory (CUDA).
        max_pixels: a picture with more is refused before it is decoded; 8K video fits.
        max_hours: a video in `predict_root` that lasts longer is left out, with a warning.
        augment: what is done to the frames of training clips, the same to all of a clip: `none`, or `randaugment`, see
            `RandAugment`. Every epoch draws anew.
        mix_audio: probability with which the sound of a training clip is mixed with that of another one, in shares from
            Beta(10, 10) drawn for each segment; frames and labels stay.

    Raises:
        ArgumentError: a number is out of its range; from `setup`, also augmented frames where masks belong to them.
        DatasetError: from `setup`, when folders or clips are missing.
    """

    published: Published
    num_classes: int
    class_names: tuple[str, ...]

    def __init__(
        self,
        root: Path,
        layout: Literal["store", "folders"] = "store",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        image_size: int = 192,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        antialias: bool = True,
        stride: float | None = None,
        sample_rate: int = 32000,
        segments: int = 10,
        missing: Literal["error", "skip"] = "error",
        corrupt: Literal["error", "substitute"] = "error",
        validation_split: Literal["val", "test"] = "val",
        predict_root: Path | None = None,
        pin_memory: bool = False,
        max_pixels: int = MAX_PIXELS,
        max_hours: float = 24.0,
        augment: Literal["none", "randaugment"] = "none",
        mix_audio: float = 0.0,
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        for name, value, least in (("batch_size", batch_size, 1), ("eval_batch_size", eval_batch_size, 1),
                                   ("num_workers", num_workers, 0), ("seed", seed, 0)):
            if value < least:
                raise ArgumentError(name, value, f"at least {least}", "Choose another value.")
        if augment not in ("none", "randaugment"):
            raise ArgumentError("augment", augment, "none or randaugment", "Correct the argument.")
        if not 0 <= mix_audio <= 1:
            raise ArgumentError("mix_audio", mix_audio, "a probability, 0 to 1", "Choose another value.")
        self.root, self.layout = Path(root).expanduser(), layout
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.seed, self.pin_memory = num_workers, seed, pin_memory
        self.sampling = Sampling(segments=segments, size=image_size, sample_rate=sample_rate, antialias=antialias,
                                 stride=stride, max_pixels=max_pixels, max_hours=max_hours)
        self.normalise = Normalise(mean, std)
        self.missing, self.corrupt, self.validation_split = missing, corrupt, validation_split
        self.predict_root = None if predict_root is None else Path(predict_root).expanduser()
        self.augment, self.mix_audio = augment, mix_audio
        self.datasets: dict[str, Dataset] = {}
        self.absent: dict[str, dict[str, str]] = {}
        self.rows: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process that is spawned gets: no trainer, and none of the datasets that refer to this."""
        return {**self.__dict__, "trainer": None, "datasets": {}}

    @property
    def segments(self) -> int:
        """Number T of segments a clip."""
        return self.sampling.segments

    @abc.abstractmethod
    def read_annotations(self) -> dict[str, list[Any]]:
        """Items of every split, `train`, `val`, `test`."""

    @abc.abstractmethod
    def annotate(self, item: Any, rng: np.random.Generator) -> Sample:
        """What an item's annotation adds to its sample; all chance comes from `rng`, so that runs repeat."""

    @abc.abstractmethod
    def plot(self, sample: Sample) -> Figure:
        """A picture of a sample, with its label and, if it is there, its `prediction`."""

    def setup(self, stage: str) -> None:
        """Read annotations and look for every clip of the splits that the stage needs.

        Raises:
            ArgumentError: `augment` for a dataset of masks, which belong to the frames as they are.
            DatasetError: media are missing and `missing` is `error`, or a split is left without a clip.
            AnnotationError: an annotation file breaks its format.
        """
        if stage == "predict" and self.predict_root is not None:
            self.datasets["predict"] = VideoWindows(self.predict_root, self.sampling, self.normalise)
            return
        if self.augment != "none" and not self.published.stored:
            raise ArgumentError("augment", self.augment, "none: masks belong to the frames as they are",
                                "Leave it out.")
        augment = RandAugment(self.sampling.size, self.normalise) if self.augment == "randaugment" else None
        annotations = self.read_annotations()
        reader = open_reader(self.layout, self.root, self.sampling, self.published.folders)
        needed = {"fit": ["train", self.validation_split], "validate": [self.validation_split]}.get(stage, ["test"])
        for split in needed:
            if split not in self.datasets:
                items = self._available(split, annotations[split], reader)
                self.datasets[split] = ClipDataset(items, reader, self.normalise, self.annotate, self.seed,
                                                   split == "train", self.corrupt == "substitute", augment=augment,
                                                   mix_audio=self.mix_audio, times=self.sampling.times())

    def _available(self, split: str, items: list[Any], reader: ClipReader) -> list[Any]:
        problems = {item.id: problem for item in items if (problem := reader.problem(item.id)) is not None}
        self.absent[split], self.rows[split] = problems, len(items)
        examples = "; ".join(f"{clip}: {why}" for clip, why in list(problems.items())[:5])
        if problems and self.missing == "error":
            bad = sum(item.id in problems for item in items)
            raise DatasetError(self.root, f"{bad} of {len(items)} clips of split {split} unusable ({examples})",
                               "media for every clip",
                               "`avprompt data verify` shows the folders and what is missing; or set `missing: skip`.")
        kept = [item for item in items if item.id not in problems]
        if problems:
            warnings.warn(f"{split}: {len(items) - len(kept)} of {len(items)} left out ({examples})", stacklevel=3)
        if not kept:
            raise DatasetError(self.root, f"no clip of split {split}", "at least one", "Check root and layout.")
        return kept

    def _loader(self, split: str, batch_size: int, shuffle: bool = False) -> ResumableLoader:
        data, trainer = self.datasets[split], self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if split != "train" and len(data) % world:
            warnings.warn(f"{split}: {-len(data) % world} of {len(data)} clips are counted twice on {world} devices; "
                          "use `--trainer.devices 1` for the exact figure", stacklevel=3)
        return ResumableLoader(ErrorsAsValues(data), batch_size, self.seed, shuffle, rank, world, self.groups(split),
                               num_workers=self.num_workers, collate_fn=collate, pin_memory=self.pin_memory)

    def groups(self, split: str) -> list[str] | None:
        """What each clip of a split belongs to, where those of a group are to follow each other."""
        return None

    def train_dataloader(self) -> ResumableLoader:
        """Training batches in an order set by (seed, epoch); always the same ones under `overfit_batches`."""
        return self._loader("train", self.batch_size, shuffle=not (self.trainer and self.trainer.overfit_batches))

    def val_dataloader(self) -> ResumableLoader:
        """Batches of the split that checkpoints are selected on."""
        return self._loader(self.validation_split, self.eval_batch_size)

    def test_dataloader(self) -> ResumableLoader:
        """Batches of the test split."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> ClipLoader:
        """Batches of the user's videos, or of the test split.

        Not a resumable one, and with named arguments: Lightning builds it anew to keep track of indices.
        """
        data = self.datasets["predict" if "predict" in self.datasets else "test"]
        return ClipLoader(ErrorsAsValues(data), batch_size=self.eval_batch_size, num_workers=self.num_workers,
                          collate_fn=collate, pin_memory=self.pin_memory)

    def clips(self) -> dict[str, dict[str, int]]:
        """Numbers of clips used, missing and corrupt, by split; of one's own videos, windows used and files corrupt."""
        return {split: {"used": len(data), "missing": self.rows.get(split, len(data)) - len(data),
                        "corrupt": int(data.corrupt.sum()) if isinstance(data, ClipDataset) else len(data.problems)}
                for split, data in self.datasets.items()}

    def manifest(self) -> dict[str, Any]:
        """What this run reads: ids by split, why others are left out, and whether the world is a generated one."""
        ids = {split: data.ids for split, data in self.datasets.items()}
        left_out = {**self.absent, **{split: data.problems for split, data in self.datasets.items()
                                      if isinstance(data, VideoWindows)}}
        return {"root": str(self.root), "generated": (self.root / "scenes.jsonl").is_file(), "layout": self.layout,
                "clips": self.clips(), "ids": ids, "left_out": left_out}
