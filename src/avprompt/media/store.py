"""The prepared store: what a training run reads instead of media files.

    <store>/store.json            how the clips were made
    <store>/manifest.csv          one row a clip: id, status, reason, seconds, valid segments
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

import numpy as np

from avprompt.errors import ClipDecodeError, DatasetError
from avprompt.media.decode import Clip, Sampling

FORMAT = 1
#: statuses of clips that hold both modalities; a short one is padded and says so in `valid`
USABLE = ("ok", "short", "silent")


@dataclass(frozen=True)
class Entry:
    """One row of the manifest.

    Args:
        id: clip id.
        status: `ok`, `short`, `silent`, `no-audio`, `no-video`, `broken`, `missing`.
        reason: what is wrong, empty for `ok`.
        seconds: decoded length.
        valid: segments really decoded.
    """

    id: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    valid: int = 0

    @property
    def usable(self) -> bool:
        """Whether a run may read this clip."""
        return self.status in USABLE


def write_manifest(path: Path, entries: list[Entry]) -> None:
    """Write rows sorted by id, replacing the file in one step."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Entry.__dataclass_fields__)
        writer.writerows([e.id, e.status, e.reason, f"{e.seconds:.3f}", e.valid] for e in sorted(
            entries, key=lambda e: e.id))
    os.replace(partial, path)


def read_manifest(path: Path) -> dict[str, Entry]:
    """Rows by clip id.

    Raises:
        DatasetError: the file is missing or has other columns.
    """
    if not path.is_file():
        raise DatasetError(path, "no such file", "the manifest of a prepared store", "Run `avprompt data prepare`.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and set(rows[0]) != set(Entry.__dataclass_fields__):
        raise DatasetError(path, sorted(rows[0]), f"columns {list(Entry.__dataclass_fields__)}",
                           "Run `avprompt data prepare` again with --overwrite.")
    return {r["id"]: Entry(r["id"], r["status"], r["reason"], float(r["seconds"]), int(r["valid"])) for r in rows}


class ClipStore:
    """Read and write access to a prepared store.

    Args:
        root: the store's folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

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
                               f"Run `avprompt data prepare VIDEOS {self.root}`.")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise DatasetError(path, f"format {content.get('format')}", f"format {FORMAT}",
                               "Prepare the store again with this version.")
        return Sampling(**content["sampling"])

    def create(self, sampling: Sampling, overwrite: bool = False) -> None:
        """Start a store, or go on with one made in the same way.

        Raises:
            DatasetError: a store stands there that was made in another way.
        """
        if overwrite and self.root.exists():
            shutil.rmtree(self.root)
        if (self.root / "store.json").is_file():
            theirs = asdict(self.sampling())
            differ = {k: (theirs[k], v) for k, v in asdict(sampling).items() if theirs[k] != v}
            if differ:
                raise DatasetError(self.root, f"a store that differs in (theirs, asked): {differ}", "the same settings",
                                   "Ask for the store's own settings, another folder, or --overwrite true.")
            return
        (self.root / "clips").mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "sampling": asdict(sampling)}
        (self.root / "store.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def write(self, clip_id: str, clip: Clip) -> None:
        """Write a clip; it appears whole or not at all."""
        partial, final = self.root / "clips" / f".{clip_id}.partial", self.root / "clips" / clip_id
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in ("frames", "audio", "valid"):
            np.save(partial / f"{name}.npy", getattr(clip, name), allow_pickle=False)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)

    def __contains__(self, clip_id: str) -> bool:
        return (self.root / "clips" / clip_id / "valid.npy").is_file()

    def read(self, clip_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frames uint8 (T, H, W, 3), audio float32 (T, S), valid bool (T,).

        Raises:
            ClipDecodeError: the clip is not in the store, or its files are damaged.
        """
        folder = self.root / "clips" / clip_id
        try:
            frames, audio, valid = (np.load(folder / f"{name}.npy", allow_pickle=False)
                                    for name in ("frames", "audio", "valid"))
        except (OSError, ValueError, EOFError) as error:
            raise ClipDecodeError(folder, error, "frames.npy, audio.npy and valid.npy",
                                  "Run `avprompt data prepare` again.") from error
        return frames, audio, valid
