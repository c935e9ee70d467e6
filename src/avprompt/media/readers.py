"""Readers of clips: from the prepared store, or from the folders that the published code expects."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avprompt.errors import ClipDecodeError, DatasetError
from avprompt.media.decode import Sampling, resize
from avprompt.media.files import hidden, listed, signature
from avprompt.media.store import LOUDEST, REPAIR, ClipStore, read_manifest
from avprompt.media.untrusted import read_array, read_picture

#: a clip: frames uint8 (T, 3, size, size), with several a segment (T, F, 3, size, size); audio float32 (T, S); valid
#: bool (T,)
Segments = tuple[Tensor, Tensor, Tensor]


def as_frame(pixels: np.ndarray, sampling: Sampling) -> Tensor:
    """A picture, uint8 (H, W, 3) -> a frame, uint8 (3, size, size)."""
    return torch.from_numpy(resize(pixels, sampling.size, sampling.antialias)).permute(2, 0, 1).contiguous()


def one_a_segment(frames: Tensor) -> Tensor:
    """Frames of a clip as pictures show them: (T, 3, H, W) as they are, of (T, F, 3, H, W) those in the middle.

    Example:
        >>> one_a_segment(torch.zeros(10, 8, 3, 4, 4)).shape
        torch.Size([10, 3, 4, 4])
    """
    return frames[:, frames.shape[1] // 2] if frames.ndim == 5 else frames


class ClipReader(abc.ABC):
    """Reads clips by id."""

    @abc.abstractmethod
    def problem(self, clip_id: str) -> str | None:
        """Why a run cannot use this clip, `None` if it can; looks at names only, decodes nothing.

        Begins with `missing` where there are no files, else with a status such as `broken`.
        """

    @abc.abstractmethod
    def inspect(self, clip_id: str) -> str | None:
        """As `problem`, but also checks headers and sizes of the clip's files."""

    @abc.abstractmethod
    def read(self, clip_id: str) -> Segments:
        """Frames uint8 (T, 3, size, size), with several a segment (T, F, 3, size, size), audio float32 (T, S) in
        [-1, 1], valid bool (T,).

        Raises:
            ClipDecodeError: the clip's files are damaged.
        """

    @abc.abstractmethod
    def identity(self, clip_id: str) -> str:
        """Text that changes if the clip's media change; decodes nothing."""

    def digest_problem(self, clip_id: str) -> str | None:
        """As `inspect`, but reads everything and compares digests."""
        try:
            self.read(clip_id)
        except ClipDecodeError as error:
            return f"broken: {error}"
        return None

    def ids(self) -> set[str]:
        """Ids of the clips that exist, as far as names tell; for messages."""
        return set()

    def frame(self, clip_id: str, segment: int) -> Tensor:
        """One segment's frame alone, uint8 (3, size, size), or its frames (F, 3, size, size).

        Raises:
            ClipDecodeError: the clip's files are damaged.
        """
        return self.read(clip_id)[0][segment]

    def valid(self, clip_id: str) -> Tensor:
        """Segments that were decoded, not padded, bool (T,).

        Raises:
            ClipDecodeError: the clip's files are damaged.
        """
        return self.read(clip_id)[2]


class StoreReader(ClipReader):
    """Clips of a prepared store.

    Args:
        root: the store's folder.
        sampling: sampling of the experiment, which the store must have; `None` accepts that of the store.
        shards: see `ClipStore`.

    Raises:
        DatasetError: no store there, or one made with other settings.
    """

    def __init__(self, root: Path, sampling: Sampling | None, shards: str | None = None) -> None:
        self.store = ClipStore(root, shards)
        theirs = self.store.sampling().settings
        ours = theirs if sampling is None else sampling.settings
        differ = {key: (theirs[key], ours[key]) for key in ours if theirs[key] != ours[key]}
        if differ:
            raise DatasetError(
                root,
                f"a store with (theirs, asked) {differ}",
                "the data module's settings",
                "Change image_size, sample_rate, segments, frames_per_segment or antialias, or prepare another store.",
            )
        self.entries = read_manifest(self.store.manifest_path)

    def problem(self, clip_id: str) -> str | None:
        entry = self.entries.get(clip_id)
        if entry is None:
            return "missing: not in the store's manifest"
        if not entry.usable:
            return f"{entry.status}: {entry.reason}"
        return None if clip_id in self.store else "missing: listed in the manifest, its files are gone"

    def inspect(self, clip_id: str) -> str | None:
        problem = self.problem(clip_id)
        if problem is None:
            try:
                self.store.check(clip_id)
            except ClipDecodeError as error:
                return f"broken: {error}"
        return problem

    def read(self, clip_id: str) -> Segments:
        frames, audio, valid = self.store.read(clip_id)
        return torch.from_numpy(frames), torch.from_numpy(audio).float().div_(LOUDEST), torch.from_numpy(valid)

    def digest_problem(self, clip_id: str) -> str | None:
        try:
            if self.store.digest(clip_id) == self.entries[clip_id].digest:
                return super().digest_problem(clip_id)
        except ClipDecodeError as error:
            return f"broken: {error}"
        return f"broken: {self.store.root}, {clip_id}: its files are not those that were written (digest). {REPAIR}"

    def ids(self) -> set[str]:
        return {clip for clip, entry in self.entries.items() if entry.usable}

    def identity(self, clip_id: str) -> str:
        return self.entries[clip_id].digest

    def frame(self, clip_id: str, segment: int) -> Tensor:
        return torch.from_numpy(self.store.frame(clip_id, segment))

    def valid(self, clip_id: str) -> Tensor:
        return torch.from_numpy(self.store.valid(clip_id))


class FolderReader(ClipReader):
    """The layout of the DG-SCT repository: a folder of jpg frames and one waveform a clip.

    T frames are taken at `linspace(1, N, T)` of the folder's N pictures, with F frames a segment T x F. Pictures of another size are resized as
    published (bicubic), and the result is rounded to whole grey levels, 0 to 255; the published code keeps fractions.

    Args:
        root: folder that holds the two folders.
        sampling: sizes and rates; the waveform must have exactly T * S samples. `None` is the published one.
        frames: name of the folder with a folder of pictures for every clip.
        waves: name of the folder with a .npy file for every clip.

    Raises:
        DatasetError: one of the two folders is not there.
    """

    def __init__(self, root: Path, sampling: Sampling | None, frames: str = "frames", waves: str = "wave") -> None:
        self.sampling = sampling or Sampling()
        self.frames_folder, self.waves_folder = Path(root) / frames, Path(root) / waves
        for folder in (self.frames_folder, self.waves_folder):
            if not folder.is_dir():
                raise DatasetError(
                    folder,
                    "no such folder",
                    f"{frames}/<VideoID>/*.jpg and {waves}/<VideoID>.npy",
                    "Give another root, or use `layout: store`.",
                )
        # one listing of names instead of a look-up for every clip and epoch
        self.frames = {path.name for path in self.frames_folder.iterdir() if path.is_dir() and not hidden(path)}
        self.waves = {path.stem for path in listed(self.waves_folder, ".npy")}

    def ids(self) -> set[str]:
        return self.frames & self.waves

    def identity(self, clip_id: str) -> str:
        return signature((*self._pictures(clip_id), self.waves_folder / f"{clip_id}.npy"))

    def problem(self, clip_id: str) -> str | None:
        absent = [
            folder.name
            for folder, found in ((self.frames_folder, self.frames), (self.waves_folder, self.waves))
            if clip_id not in found
        ]
        return f"missing: {' and '.join(absent)}" if absent else None

    def inspect(self, clip_id: str) -> str | None:
        problem = self.problem(clip_id)
        if problem is None:
            try:
                self._pictures(clip_id)
                self._wave(clip_id, mapped=True)
            except ClipDecodeError as error:
                return f"broken: {error}"
        return problem

    def read(self, clip_id: str) -> Segments:
        count, pictures = self.sampling.segments, self._pictures(clip_id)
        frames = torch.stack([self._picture(path) for path in self._chosen(pictures)])
        frames = frames.view(*self.sampling.pictures, *frames.shape[1:])
        audio = torch.from_numpy(np.array(self._wave(clip_id), dtype=np.float32)).view(count, -1)
        return frames, audio, torch.ones(count, dtype=torch.bool)

    def frame(self, clip_id: str, segment: int) -> Tensor:
        count, chosen = self.sampling.frames, self._chosen(self._pictures(clip_id))
        frames = [self._picture(path) for path in chosen[count * segment : count * (segment + 1)]]
        return torch.stack(frames) if count > 1 else frames[0]

    def valid(self, clip_id: str) -> Tensor:
        return torch.ones(self.sampling.segments, dtype=torch.bool)

    def _chosen(self, pictures: list[Path]) -> list[Path]:
        count = self.sampling.segments * self.sampling.frames
        return [pictures[index - 1] for index in np.linspace(1, len(pictures), count, dtype=int)]

    def _pictures(self, clip_id: str) -> list[Path]:
        folder = self.frames_folder / clip_id
        try:
            pictures = listed(folder, ".jpg", ".jpeg")
        except OSError as error:
            raise ClipDecodeError(folder, error, "a folder of frames", "Extract the frames again.") from error
        if not pictures:
            raise ClipDecodeError(folder, "no jpg files", "frames named %08d.jpg", "Extract the frames again.")
        return pictures

    def _wave(self, clip_id: str, mapped: bool = False) -> np.ndarray:
        path, count = self.waves_folder / f"{clip_id}.npy", self.sampling.segments
        try:
            wave = read_array(path, mapped)
        except (OSError, ValueError) as error:
            raise ClipDecodeError(path, error, "a .npy file of samples", "Extract the waveform again.") from error
        if wave.size != count * self.sampling.samples:
            raise ClipDecodeError(
                path,
                f"{wave.size} samples",
                f"{count} x {self.sampling.samples} samples",
                f"Cut or pad the waveform at {self.sampling.sample_rate} Hz.",
            )
        if wave.dtype.kind != "f":
            raise ClipDecodeError(
                path,
                wave.dtype,
                "floating-point samples in [-1, 1]",
                "Divide whole-number samples by their largest possible value.",
            )
        if not mapped and not np.isfinite(wave).all():
            raise ClipDecodeError(
                path, "samples that are NaN or infinite", "finite samples", "Extract the waveform again."
            )
        return wave

    def _picture(self, path: Path) -> Tensor:
        try:
            return as_frame(read_picture(path, max_pixels=self.sampling.max_pixels), self.sampling)
        except (OSError, ValueError) as error:
            raise ClipDecodeError(path, error, "a jpg picture", "Extract the frames again.") from error


Folders = Callable[[Path, Sampling | None], ClipReader]


def unremarkable(splits: dict[str, list[Any]]) -> list[str]:
    """No remarks; a named function, because spawned workers pickle references to it."""
    return []


@dataclass(frozen=True)
class Published:
    """A dataset as its authors and those of DG-SCT publish it: annotation files, and folders of extracted media.

    Args:
        files: annotation files in the dataset's folder.
        tree: where the extracted media lie in it, one path a line, for messages.
        folders: dataset's folder and sampling -> their reader.
        read: dataset's folder -> items (each with an `id`) by split.
        remarks: the items -> sentences about further content of the files.
        stored: whether a prepared store can hold its media; `False` if masks belong to the extracted frames.
    """

    files: tuple[str, ...]
    tree: tuple[str, ...]
    folders: Folders
    read: Callable[[Path], dict[str, list[Any]]]
    remarks: Callable[[Any], list[str]] = unremarkable
    stored: bool = True


STORE_TREE = ("store/store.json", "store/manifest.csv", "store/clips/<id>/{frames,audio,valid}.npy")


def open_reader(
    layout: str, root: Path, sampling: Sampling | None, folders: Folders, shards: str | None = None
) -> ClipReader:
    """The reader of a layout, `store` (in root/store) or `folders`. Without a sampling, that of the media is accepted.

    Args:
        layout: of the media.
        root: the dataset's folder.
        sampling: of the experiment.
        folders: opens the other layout.
        shards: see `ClipStore`.

    Raises:
        DatasetError: the layout's folders are not there, or have another sampling.
    """
    return StoreReader(Path(root) / "store", sampling, shards) if layout == "store" else folders(Path(root), sampling)
