"""The prepared store: what a training run reads instead of media files.

    <store>/store.json            how the clips were made
    <store>/manifest.csv          one row a clip: id, status, reason, seconds, valid segments, source
    <store>/problems.csv          the rows of it that are not `ok`
    <store>/clips/<id>/frames.npy uint8 (T, H, W, 3)
    <store>/clips/<id>/audio.npy  float32 (T, S)
    <store>/clips/<id>/valid.npy  bool (T,)
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

from avprompt.errors import ArgumentError, ClipDecodeError, DatasetError
from avprompt.media.decode import Clip, Sampling

FORMAT = 2
#: statuses of clips that hold both modalities; a short one is padded and says so in `valid`
USABLE = ("ok", "short", "silent")
AGAIN = "Run `avprompt data prepare` again with --overwrite true."


@dataclass(frozen=True)
class Entry:
    """One row of the manifest.

    Args:
        id: clip id.
        status: `ok`, `short`, `silent`, `no-audio`, `no-video`, `broken`.
        reason: what is wrong, empty for `ok`.
        seconds: decoded length.
        valid: segments really decoded.
        source: the files it was made from, with their sizes in bytes.
    """

    id: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    valid: int = 0
    source: str = ""

    @property
    def usable(self) -> bool:
        """Whether a run may read this clip."""
        return self.status in USABLE


def write_manifest(path: Path, entries: list[Entry]) -> None:
    """Write rows sorted by id, replacing the file in one step."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Entry.__dataclass_fields__))
        writer.writeheader()
        writer.writerows({**asdict(e), "seconds": f"{e.seconds:.3f}"} for e in sorted(entries, key=lambda e: e.id))
    os.replace(partial, path)


def read_manifest(path: Path) -> dict[str, Entry]:
    """Rows by clip id.

    Raises:
        DatasetError: the file is missing or is no manifest.
    """
    if not path.is_file():
        raise DatasetError(path, "no such file", "the manifest of a prepared store", "Run `avprompt data prepare`.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            if reader.fieldnames != list(Entry.__dataclass_fields__):
                raise ValueError(f"columns {reader.fieldnames}")
            return {row["id"]: Entry(**{**row, "seconds": float(row["seconds"]), "valid": int(row["valid"])})
                    for row in reader}
        except (ValueError, TypeError, csv.Error) as error:
            raise DatasetError(path, error, f"columns {list(Entry.__dataclass_fields__)}", AGAIN) from error


class ClipStore:
    """Read and write access to a prepared store.

    Args:
        root: the store's folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._sampling: Sampling | None = None

    @property
    def manifest_path(self) -> Path:
        """The manifest's file."""
        return self.root / "manifest.csv"

    def sampling(self) -> Sampling:
        """How the clips were made.

        Raises:
            DatasetError: not a store, or one of another format.
        """
        path = self.root / "store.json"
        if not path.is_file():
            raise DatasetError(self.root, "no store.json", "a prepared store",
                               f"Run `avprompt data prepare --videos VIDEOS --out {self.root}`.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            return Sampling(**content["sampling"])
        except (ValueError, KeyError, TypeError, ArgumentError) as error:
            raise DatasetError(path, error, f"a store of format {FORMAT}", AGAIN) from error

    def create(self, sampling: Sampling, overwrite: bool = False) -> None:
        """Start a store, or go on with one made in the same way.

        Raises:
            DatasetError: a store stands there that was made in another way, or a folder that is no store.
        """
        path, self._sampling = self.root / "store.json", None
        if path.is_file() and overwrite:
            shutil.rmtree(self.root / "clips", ignore_errors=True)
            for name in ("manifest.csv", "problems.csv", "store.json"):
                (self.root / name).unlink(missing_ok=True)
        if path.is_file():
            theirs = asdict(self.sampling())
            differ = {k: (theirs[k], v) for k, v in asdict(sampling).items() if theirs[k] != v}
            if differ:
                raise DatasetError(self.root, f"a store that differs in (theirs, asked): {differ}", "the same settings",
                                   "Ask for the store's own settings, another folder, or --overwrite true.")
            return
        if self.root.exists() and any(self.root.iterdir()):
            raise DatasetError(self.root, "a folder with other files", "a new or empty folder, or a prepared store",
                               "Choose another folder; nothing in this one was touched.")
        self.root.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "sampling": asdict(sampling), "decoder": f"PyAV {av.__version__}"}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)

    def write(self, clip_id: str, clip: Clip) -> None:
        """Write a clip; it appears whole or not at all."""
        partial, final = self.root / "clips" / f".{clip_id}.partial", self.root / "clips" / clip_id
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in ("frames", "audio", "valid"):
            np.save(partial / f"{name}.npy", getattr(clip, name), allow_pickle=False)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)

    def remove(self, clip_id: str) -> None:
        """Remove a clip, if it is there."""
        shutil.rmtree(self.root / "clips" / clip_id, ignore_errors=True)

    def __contains__(self, clip_id: str) -> bool:
        return (self.root / "clips" / clip_id / "valid.npy").is_file()

    def read(self, clip_id: str, mapped: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frames uint8 (T, H, W, 3), audio float32 (T, S), valid bool (T,).

        Args:
            clip_id: which.
            mapped: map the files instead of reading them, which looks at their headers and sizes only.

        Raises:
            ClipDecodeError: the clip is not in the store, or its files are damaged.
            DatasetError: not a store, or one of another format.
        """
        if self._sampling is None:
            self._sampling = self.sampling()
        sampling = self._sampling
        folder, count = self.root / "clips" / clip_id, sampling.segments
        expected = {"frames": (np.uint8, (count, sampling.size, sampling.size, 3)),
                    "audio": (np.float32, (count, sampling.samples)), "valid": (np.bool_, (count,))}
        arrays = []
        for name, (dtype, shape) in expected.items():
            path = folder / f"{name}.npy"
            try:
                array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
                if array.dtype != dtype or array.shape != shape:
                    raise ValueError(f"{array.dtype} {array.shape}")
            except (OSError, ValueError, EOFError) as error:
                raise ClipDecodeError(path, error, f"{np.dtype(dtype)} {shape}",
                                      "Remove the clip's folder and run `avprompt data prepare` again.") from error
            arrays.append(array)
        return tuple(arrays)
