"""Features as the authors of datasets published them: HDF5 files with a row for each clip, folders of .npy files.

A reader of such files stands in the place of a reader of media. Every fault of a file is an error that names the file,
what it holds and what it should hold; nothing is unpickled.
"""

from __future__ import annotations

import abc
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avprompt.errors import ClipDecodeError, DatasetError, WriteError
from avprompt.files import write_json
from avprompt.media.files import listed
from avprompt.media.readers import ClipReader, Segments
from avprompt.media.untrusted import read_array

ROWS_AT_ONCE = 32  # of a file that is converted
AGAIN = "Download or extract it again."


class FeatureFiles(ClipReader):
    """Reader of published features: it looks for clips as a reader of media does, and reads features of an item.

    Attributes:
        visual: name of the visual encoder, as in published tables.
        audio: name of the audio encoder.
        shapes: entry of the batch -> shape of a clip's features.
    """

    visual: str
    audio: str
    shapes: Mapping[str, tuple[int, ...]]

    @abc.abstractmethod
    def read_item(self, item: Any) -> dict[str, Tensor]:
        """Features of an annotated item, float32 as in `shapes`, and `valid` bool (T,).

        Raises:
            ClipDecodeError: its files are damaged.
        """

    def inspect(self, clip_id: str) -> str | None:
        return self.problem(clip_id)

    def read(self, clip_id: str) -> Segments:
        """There are no media.

        Raises:
            ClipDecodeError: always.
        """
        raise ClipDecodeError(
            clip_id,
            f"features of {self.visual} and {self.audio} alone",
            "frames and sound",
            "Leave out `published_features` to read media.",
        )

    def identity(self, clip_id: str) -> str:
        return f"{self.visual}, {self.audio}: {clip_id}"


@dataclass(frozen=True)
class NpyFolder:
    """A folder with one file `<id>.npy` a clip.

    Args:
        folder: of the files.
        shape: of the array in each file.
        step: rows of a segment.
        reduce: rows of whole segments -> the features of these segments, such as each segment's first row.
        kinds: of numbers that the array may hold, as NumPy's `dtype.kind`: `f` is floating point, `i` and `u` are
            integers.
    """

    folder: Path
    shape: tuple[int, ...]
    step: int = 1
    reduce: Callable[[np.ndarray], np.ndarray] = np.asarray
    kinds: str = "f"

    def ids(self) -> set[str]:
        """Clips that have a file.

        Raises:
            DatasetError: there is no such folder.
        """
        if not self.folder.is_dir():
            raise DatasetError(
                self.folder,
                "no folder",
                f"a folder of <id>.npy files, {self.shape} each",
                "Correct `published_features`.",
            )
        return {path.stem for path in listed(self.folder, ".npy")}

    def read(self, clip_id: str, segment: int | None = None) -> Tensor:
        """Features of a clip, or of one of its segments, float32.

        Raises:
            ClipDecodeError: no file, no array of such numbers, another shape, NaN or infinity.
        """
        numbers = "floating-point numbers" if self.kinds == "f" else "numbers"
        path, expected = self.folder / f"{clip_id}.npy", f"finite {numbers} {self.shape}"
        try:
            values = read_array(path, mapped=True)
        except (OSError, ValueError) as error:
            raise ClipDecodeError(path, error, expected, AGAIN) from error
        if values.shape != self.shape or values.dtype.kind not in self.kinds:
            raise ClipDecodeError(path, f"{values.dtype} {values.shape}", expected, AGAIN)
        if segment is not None:
            values = values[self.step * segment : self.step * (segment + 1)]
        values = self.reduce(values).astype(np.float32)
        if not np.isfinite(values).all():
            raise ClipDecodeError(path, "NaN or infinity", expected, AGAIN)
        found = torch.from_numpy(values)
        return found if segment is None else found[0]


class NpyFeatureFiles(FeatureFiles):
    """Features in folders of .npy files, one folder for each entry of the batch.

    Args:
        folders: entry of the batch -> its files.
    """

    def __init__(self, folders: Mapping[str, NpyFolder]) -> None:
        self.folders = dict(folders)
        self.found = {name: files.ids() for name, files in self.folders.items()}

    def problem(self, clip_id: str) -> str | None:
        absent = [self.folders[name].folder.name for name, found in self.found.items() if clip_id not in found]
        return f"missing: {' and '.join(absent)}" if absent else None

    def ids(self) -> set[str]:
        return set.intersection(*self.found.values())

    def read_visual(self, clip_id: str, rng: np.random.Generator, segments: int) -> Tensor:
        """Visual features of a random one of a clip's T segments, such as (N, C).

        Raises:
            ClipDecodeError: the file is damaged.
        """
        return self.folders["visual_features"].read(clip_id, int(rng.integers(segments)))

    def read_item(self, item: Any) -> dict[str, Tensor]:
        found = {name: files.read(item.id) for name, files in self.folders.items()}
        return {**found, "valid": torch.ones(len(next(iter(found.values()))), dtype=torch.bool)}


def h5_rows(path: Path, key: str, rows: int, shape: Sequence[int], dtype: type[np.floating]) -> np.memmap:
    """The rows of an HDF5 file as a memory map, which is written beside it when the file is first opened.

    The map `<name>.<dtype>.npy` has a record beside it of the file that it was made from; another file is converted
    again. Without the HDF5 file, the map alone serves.

    Args:
        path: of the HDF5 file.
        key: of its dataset.
        rows: number of rows that the annotations have.
        shape: of a row.
        dtype: of the map, float16 or float32.

    Returns:
        An array (rows, *shape).

    Raises:
        DatasetError: no such file; no HDF5; no such key; another number of rows, shape or kind of numbers; NaN,
            infinity or a number that `dtype` cannot hold; says which.
        WriteError: the map cannot be written.
    """
    array = path.with_suffix(f".{np.dtype(dtype).name}.npy")
    record, expected = array.with_suffix(".json"), (rows, *shape)
    if not path.is_file() and not array.is_file():
        raise DatasetError(path, "no such file", f"HDF5 with {key} {expected}", "Correct `published_features`.")
    source = _signature(path) if path.is_file() else None
    if not _is_current(array, record, source):
        _convert(path, key, expected, array, record)
    try:
        values = read_array(array, mapped=True)
    except (OSError, ValueError) as error:
        raise DatasetError(array, error, f"an array {expected}", "Remove it, and it is made again.") from error
    if values.shape != expected or values.dtype != dtype:
        raise DatasetError(
            array,
            f"{values.dtype} {values.shape}",
            f"{np.dtype(dtype)} {expected}",
            "Use features and annotations of the same release.",
        )
    return values


def _signature(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _is_current(array: Path, record: Path, source: list[int] | None) -> bool:
    if not array.is_file():
        return False
    try:
        return source is None or json.loads(record.read_text(encoding="utf-8")) == source
    except (OSError, ValueError):
        return False


def _convert(path: Path, key: str, expected: tuple[int, ...], array: Path, record: Path) -> None:
    try:
        import h5py
    except ImportError as error:
        raise DatasetError(
            path, "no package h5py", "the package h5py, which reads HDF5", "`pip install avprompt[features]`."
        ) from error
    wanted, dtype = f"{key} {expected} of floating-point numbers", np.dtype(array.name.split(".")[-2])
    partial = array.with_name(f".{array.name}.{os.getpid()}.partial")
    try:
        with h5py.File(path, "r") as file:
            if key not in file or not isinstance(file.get(key, getlink=True), h5py.HardLink):
                raise DatasetError(path, f"the keys {sorted(file)}", wanted, AGAIN)
            values = file[key]
            if not isinstance(values, h5py.Dataset) or values.dtype.kind != "f" or values.shape[1:] != expected[1:]:
                kind = f"{values.dtype} {values.shape}" if isinstance(values, h5py.Dataset) else "a group"
                raise DatasetError(path, f"{key}: {kind}", wanted, AGAIN)
            if values.shape[0] != expected[0]:
                raise DatasetError(
                    path,
                    f"{values.shape[0]} rows",
                    f"{expected[0]}, one for each row of the annotations",
                    "Use features and annotations of the same release.",
                )
            made = np.lib.format.open_memmap(partial, "w+", dtype, expected)
            for start in range(0, expected[0], ROWS_AT_ONCE):
                with np.errstate(over="ignore"):
                    rows = values[start : start + ROWS_AT_ONCE].astype(dtype)
                wrong = ~np.isfinite(rows.reshape(len(rows), -1)).all(1)
                if wrong.any():
                    row = start + int(wrong.argmax())
                    raise DatasetError(
                        path,
                        f"NaN, infinity or too large a number in row {row}",
                        f"finite numbers that {dtype} can hold",
                        AGAIN,
                    )
                made[start : start + len(rows)] = rows
            made.flush()
        os.replace(partial, array)
        write_json(record, _signature(path))
    except (DatasetError, WriteError):  # which are kinds of OSError
        raise
    except OSError as error:
        if partial.exists() or not os.access(path.parent, os.W_OK):
            raise WriteError(
                array,
                error,
                "room for a memory map beside the features",
                "Make room, or copy the features to a folder that can be written to.",
            ) from error
        raise DatasetError(path, error, f"HDF5 with {wanted}", AGAIN) from error
    finally:
        partial.unlink(missing_ok=True)
