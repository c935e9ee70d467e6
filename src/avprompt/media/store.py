"""The prepared store, which a training run reads instead of media files.

<store>/store.json            how the clips were made
<store>/manifest.csv          one row a clip: id, status, reason, seconds, valid segments, source, and two digests:
                              of the clip's three files, and of the row
<store>/problems.csv          its rows that are not `ok`
<store>/parts/<k>-of-<n>.csv  rows of parts that were prepared apart, until they are merged
<store>/clips/<id>/frames.npy uint8 (T, 3, H, W), with several frames a segment (T, F, 3, H, W); encoded, uint8 (N,), see `avprompt.media.pictures`
<store>/clips/<id>/audio.npy  int16 (T, S), samples times 32768: those of a 16-bit file at the same rate are exact
<store>/clips/<id>/valid.npy  bool (T,)

The clips' files may also lie in shards, see `avprompt.media.shards`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np

from avprompt.errors import ClipDecodeError, DatasetError
from avprompt.files import sync_folder, write_file, write_whole
from avprompt.media.decode import Clip, Sampling
from avprompt.media.files import hidden
from avprompt.media.pictures import Pictures
from avprompt.media.shards import BLOCK, Place, ShardFiles, key_of, read_places, write_places, write_tar
from avprompt.media.text import plain, read_text
from avprompt.media.untrusted import array_of, header_of, read_array, read_known

FORMAT = 4
ARRAYS = ("frames", "audio", "valid")
#: what a sample of 1.0 is in the store
LOUDEST = 2**15
#: statuses of clips that hold both modalities; a short clip is padded, which `valid` records
USABLE = ("ok", "short", "silent")
STATUSES = (*USABLE, "no-audio", "no-video", "broken")
#: names in a store that another process is just making
OURS = (".store.json.", ".lock")
AGAIN = "Run `avprompt data prepare` again with --overwrite true."
REPAIR = "Run `avprompt data prepare` again with --deep true, which prepares damaged clips again."


@dataclass(frozen=True)
class Entry:
    """One row of the manifest.

    Args:
        id: clip id.
        status: `ok`, `short`, `silent`, `no-audio`, `no-video`, `broken`.
        reason: what is wrong, empty for `ok`.
        seconds: length of the whole video, of which a clip may hold the beginning; 0 where it is not known.
        valid: number of segments that were decoded, not padded.
        source: the files that it was made from, with their sizes in bytes.
        digest: digest of the clip's three files as they were written; empty if there are none.
    """

    id: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    valid: int = 0
    source: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "reason", "source"):  # they must fit into a table of lines in UTF-8
            object.__setattr__(self, name, plain(getattr(self, name)))

    @property
    def row(self) -> dict[str, str]:
        """Columns as they are written, the digest of the row itself last."""
        row = {name: f"{value:.3f}" if name == "seconds" else str(value) for name, value in asdict(self).items()}
        return {**row, "check": _check(row)}

    @property
    def usable(self) -> bool:
        """Whether a run may read this clip."""
        return self.status in USABLE


def digest_of(*contents: bytes) -> str:
    """BLAKE2b of 128 bits, in hexadecimal digits, of one text after another."""
    state = hashlib.blake2b(digest_size=16)
    for content in contents:
        state.update(len(content).to_bytes(8, "little"))
        state.update(content)
    return state.hexdigest()


def write_manifest(path: Path, entries: list[Entry]) -> None:
    """Write rows sorted by id, replacing the file in one step."""
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows(entry.row for entry in sorted(entries, key=lambda entry: entry.id))
    write_whole(path, table.getvalue().encode())


def write_problems(path: Path, entries: list[Entry]) -> None:
    """Write id, status and reason of the rows that are not `ok`, by status."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["id", "status", "reason"])
    writer.writerows(
        [e.id, e.status, e.reason] for e in sorted(entries, key=lambda e: (e.status, e.id)) if e.status != "ok"
    )
    write_whole(path, table.getvalue().encode())


def read_manifest(path: Path) -> dict[str, Entry]:
    """Rows by clip id.

    Raises:
        DatasetError: the file is missing or is no manifest, or a row is not as it was written.
    """
    entries, damaged = _rows(
        path, read_text(path, "the manifest of a prepared store", "Run `avprompt data prepare`.", DatasetError)
    )
    if damaged:
        raise damaged[0]
    return entries


def recover_manifest(path: Path) -> tuple[dict[str, Entry], list[DatasetError]]:
    """The undamaged rows of a manifest, and the errors of the others."""
    return _rows(path, path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n").replace("\0", "\ufffd"))


def _rows(path: Path, text: str) -> tuple[dict[str, Entry], list[DatasetError]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    entries: dict[str, Entry] = {}
    damaged: list[DatasetError] = []
    try:
        header: object = reader.fieldnames
    except csv.Error as error:
        header = error
    if header != COLUMNS:
        return {}, [DatasetError(path, f"columns {header}", f"columns {COLUMNS}", AGAIN)]
    while True:
        try:
            row = next(reader, None)
            if row is None:
                return entries, damaged
            check = row.pop("check")
            fields: dict[str, Any] = {**row, "seconds": float(row["seconds"]), "valid": int(row["valid"])}
            entry = Entry(**fields)
            if entry.status not in STATUSES or _check(row) != check or entry.id in entries:
                raise ValueError(f"a row of {entry.id!r} that is not as it was written")
            entries[entry.id] = entry
        except (ValueError, TypeError, AttributeError, csv.Error) as error:
            damaged.append(
                DatasetError(
                    f"{path}, line {reader.line_num}", error, f"columns {COLUMNS}, each row with its own check", REPAIR
                )
            )


COLUMNS = [*Entry.__dataclass_fields__, "check"]


class ClipStore:
    """Read and write access to a prepared store.

    Args:
        root: the store's folder.
        shards: where its tar files lie, if not in its folder: a path, or an address that fsspec knows.
    """

    def __init__(self, root: str | Path, shards: str | None = None) -> None:
        self.root = Path(root).expanduser()
        self.shards = ShardFiles(str(self.root / "shards") if shards is None else os.path.expanduser(shards))
        self._places: dict[str, Place] | None = None
        #: dtype, shape and header of each array but encoded frames, read from store.json once
        self._expected: dict[str, tuple[np.dtype, tuple[int, ...], bytes]] | None = None
        self._pictures = Pictures()

    @property
    def manifest_path(self) -> Path:
        """The manifest's file."""
        return self.root / "manifest.csv"

    @property
    def places(self) -> dict[str, Place]:
        """Where clips lie in shards, by id; read once. A clip with files of its own was prepared again since.

        Raises:
            DatasetError: shards.csv is damaged.
        """
        if self._places is None:
            loose = self._loose()
            self._places = {clip: place for clip, place in self._rows().items() if clip not in loose}
        return self._places

    def _rows(self) -> dict[str, Place]:
        return read_places(self.root / "shards.csv", _check)

    def _loose(self) -> set[str]:
        folder = self.root / "clips"
        return {path.name for path in folder.iterdir() if not hidden(path)} if folder.is_dir() else set()

    def pack(self, entries: dict[str, Entry], count: int) -> int:
        """Move clips from files into shards; continues where it was stopped.

        A tar file is whole before shards.csv names its clips, and only then their own files are removed. What older tar
        files hold of clips that were prepared again stays there, unused.

        Args:
            entries: of the manifest.
            count: clips a shard; the last one may have fewer.

        Returns:
            Number of clips that were moved.

        Raises:
            ClipDecodeError: the files of a clip are not those that were written.
            OSError: there is no room.
        """
        usable = {clip: entry for clip, entry in entries.items() if entry.usable}
        rows, loose = {clip: place for clip, place in self._rows().items() if clip in usable}, self._loose()
        for clip in loose & rows.keys():
            if digest_of(*self._unpacked(rows[clip])) == usable[clip].digest:  # stopped before it was removed
                self.remove(clip)
            else:
                del rows[clip]
        todo = sorted((loose & usable.keys()) - rows.keys())

        def members(clip: str) -> tuple[str, str, list[tuple[str, bytes]]]:
            contents = self._contents(clip)
            if digest_of(*contents) != usable[clip].digest:
                raise ClipDecodeError(self.root / "clips" / clip, "other files", "those that were written", REPAIR)
            return clip, key_of(clip, digest_of(clip.encode())), list(zip(ARRAYS, contents))

        number = 1 + max((int(Path(place.shard).stem) for place in self._rows().values()), default=-1)
        for first in range(0, len(todo), count):
            group, path = todo[first : first + count], self.root / "shards" / f"{number + first // count:06d}.tar"
            rows.update({place.id: place for place in write_tar(path, map(members, group))})
            write_places(self.root / "shards.csv", rows, _check)
            for clip in group:
                self.remove(clip)
        self._places = None
        return len(todo)

    @property
    def parts(self) -> Path:
        """Folder of manifests of parts that are not merged yet."""
        return self.root / "parts"

    def sampling(self) -> Sampling:
        """How the clips were made.

        Raises:
            DatasetError: not a store, or one of another format.
        """
        return self._settings()[0]

    def pictures(self) -> Pictures:
        """How the frames are held.

        Raises:
            DatasetError: not a store, or one of another format.
        """
        return self._settings()[1]

    def _settings(self) -> tuple[Sampling, Pictures]:
        path = self.root / "store.json"
        if not path.is_file():
            raise DatasetError(
                self.root,
                "no store.json",
                "a prepared store",
                f"Run `avprompt data prepare --videos VIDEOS --out {self.root}`.",
            )
        try:
            content = json.loads(read_text(path, "a prepared store", AGAIN, DatasetError))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            pictures = content.get("pictures", {})
            if content["check"] != _check({**content["sampling"], **pictures}):
                raise ValueError("settings that are not as they were written")
            return Sampling(**content["sampling"]), Pictures(**pictures)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DatasetError(path, error, f"a store of format {FORMAT}", AGAIN) from error

    def create(self, sampling: Sampling, overwrite: bool = False, pictures: Pictures | None = None) -> None:
        """Create a store, or continue one with the same settings; several processes may do so at once.

        Args:
            sampling: of the clips.
            overwrite: remove the clips of a store that is there.
            pictures: how the frames are held; `None` is raw.

        Raises:
            DatasetError: the folder holds a store with other settings or something else, or cannot be written to.
        """
        try:
            self._create(sampling, overwrite, pictures or Pictures())
        except OSError as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(self.root, error, "a folder that can be written to", "Choose another --out.") from error

    def _create(self, sampling: Sampling, overwrite: bool, pictures: Pictures) -> None:
        path, self._expected = self.root / "store.json", None
        if path.is_file() and overwrite:
            self._places = None
            for name in ("clips", "parts", "shards"):
                shutil.rmtree(self.root / name, ignore_errors=True)
            for name in ("shards.csv", "manifest.csv", "problems.csv", "store.json"):
                (self.root / name).unlink(missing_ok=True)
        if path.is_file():
            theirs, asked = ({**s.settings, **asdict(p)} for s, p in (self._settings(), (sampling, pictures)))
            differ = {key: (theirs[key], value) for key, value in asked.items() if theirs[key] != value}
            if differ:
                raise DatasetError(
                    self.root,
                    f"a store that differs in (theirs, asked): {differ}",
                    "the same settings",
                    "Ask for the store's own settings, another folder, or --overwrite true.",
                )
            return
        if self.root.exists() and any(not path.name.startswith(OURS) for path in self.root.iterdir()):
            raise DatasetError(
                self.root,
                "a folder with other files",
                "a new or empty folder, or a prepared store",
                "Choose another folder; nothing in this one was touched.",
            )
        self.root.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "sampling": sampling.settings,
            **({"pictures": pictures.settings} if pictures.settings else {}),
            "check": _check({**sampling.settings, **pictures.settings}),
            "decoder": f"PyAV {av.__version__}",
        }
        write_whole(path, (json.dumps(content, indent=2) + "\n").encode())

    def write(self, clip_id: str, clip: Clip) -> str:
        """Write a clip as a whole and wait until it is on the disk.

        Returns:
            Digest of its files.

        Raises:
            OSError: there is no room, or the clip's name is too long for the file system.
        """
        # an id may have the greatest length of a name, and only one process writes it at a time
        name, contents = digest_of(clip_id.encode())[:16], []
        partial, final = self.root / "clips" / f".{name}.partial", self.root / "clips" / clip_id
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for name, array in zip(
                ARRAYS,
                (
                    self.pictures().encode(clip.frames),
                    np.round(clip.audio * LOUDEST).clip(-LOUDEST, LOUDEST - 1).astype(np.int16),
                    clip.valid,
                ),
            ):
                file = io.BytesIO()
                np.save(file, array, allow_pickle=False)
                contents.append(file.getvalue())
                write_file(partial / f"{name}.npy", contents[-1])
            sync_folder(partial)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(final.parent)
        return digest_of(*contents)

    def digest(self, clip_id: str) -> str:
        """Digest of a clip's files in their present state.

        Raises:
            ClipDecodeError: one cannot be read.
        """
        return digest_of(*self._contents(clip_id))

    def _contents(self, clip_id: str) -> list[bytes]:
        """Content of a clip's three files.

        Raises:
            ClipDecodeError: one cannot be read.
        """
        if place := self.places.get(clip_id):
            return self._unpacked(place)
        folder = self.root / "clips" / clip_id
        try:
            return [(folder / f"{name}.npy").read_bytes() for name in ARRAYS]
        except OSError as error:
            raise ClipDecodeError(folder, error, "the files of a clip", REPAIR) from error

    def ids(self) -> set[str]:
        """Names of the clips' folders, and of clips in shards."""
        return {*self.places, *self._loose()}

    def rename(self, names: dict[str, str]) -> None:
        """Give clips other ids, in one step for the manifest; continues an interrupted call.

        Args:
            names: present id -> new id.

        Raises:
            DatasetError: a new id is that of another clip, or the store cannot be written to.
        """
        entries = read_manifest(self.manifest_path)
        taken = sorted(new for new, count in Counter(names.values()).items() if count > 1 or new in entries)
        if taken:
            raise DatasetError(
                self.root, f"new ids that are taken: {taken[:5]}", "new ids, each once", "Leave them out."
            )
        try:
            for old, new in names.items():
                folder = self.root / "clips" / old
                if folder.is_dir():
                    os.replace(folder, self.root / "clips" / new)
            if self.places.keys() & names.keys():
                moved = [replace(place, id=names.get(place.id, place.id)) for place in self._rows().values()]
                write_places(self.root / "shards.csv", {place.id: place for place in moved}, _check)
                self._places = None
            renamed = [replace(entry, id=names.get(entry.id, entry.id)) for entry in entries.values()]
            write_manifest(self.manifest_path, renamed)
            write_problems(self.root / "problems.csv", renamed)
        except OSError as error:
            raise DatasetError(self.root, error, "a store that can be written to", "Rename on a copy.") from error

    def remove(self, clip_id: str) -> None:
        """Remove a clip if it exists."""
        shutil.rmtree(self.root / "clips" / clip_id, ignore_errors=True)

    def clear(self) -> None:
        """Remove what processes that were killed have left unfinished; while no other writes."""
        for path in (path for place in ("", "clips", "shards") for path in (self.root / place).glob(".*.partial")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self.places or (self.root / "clips" / clip_id / "valid.npy").is_file()

    def read(self, clip_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frames uint8 (T, 3, H, W) or (T, F, 3, H, W), audio int16 (T, S), valid bool (T,).

        Sizes and flags are checked; `data verify --deep` compares digests.

        Raises:
            ClipDecodeError: the clip is not in the store, or its files are damaged.
            DatasetError: not a store, or one of another format.
        """
        if place := self.places.get(clip_id):
            return tuple(self._packed(place, name, members) for members in [self._members(place)] for name in ARRAYS)
        return tuple(self._array(clip_id, name) for name in ARRAYS)

    def check(self, clip_id: str) -> None:
        """See whether a clip is there: the sizes of its files, their headers and its flags.

        Raises:
            ClipDecodeError: the clip is not in the store, or its files are damaged.
            DatasetError: not a store, or one of another format.
        """
        if clip_id in self.places:
            self.valid(clip_id)  # its last bytes; `data verify --deep` reads the others
            return
        for name in ARRAYS:
            self._array(clip_id, name, mapped=True)

    def frame(self, clip_id: str, segment: int) -> np.ndarray:
        """One segment's frame, uint8 (3, H, W), or its frames (F, 3, H, W), without reading the others.

        Raises:
            ClipDecodeError: see `check`.
        """
        _, (_, *shape), header = self._form("frames")
        place = self.places.get(clip_id)
        if place and self._pictures.format == "raw":
            length = math.prod(shape)
            content = self.shards.read(place, BLOCK + len(header) + segment * length, length)
            return np.frombuffer(content, np.uint8).reshape(shape).copy()
        if place:
            return self._packed(place, "frames", self._members(place))[segment]
        array = self._array(clip_id, "frames", mapped=True)
        if self._pictures.format == "raw":
            return np.array(array[segment])
        return self._pixels(clip_id, array, segment)

    def valid(self, clip_id: str) -> np.ndarray:
        """The flags alone, bool (T,).

        Raises:
            ClipDecodeError: see `check`.
        """
        if place := self.places.get(clip_id):
            (_, (count,), header) = self._form("valid")
            tail = BLOCK + -(-(len(header) + count) // BLOCK) * BLOCK
            return self._packed(place, "valid", self._members(place, place.size - tail))
        return self._array(clip_id, "valid")

    def _unpacked(self, place: Place) -> list[bytes]:
        found = self._members(place)
        return [bytes(found.get(name, b"")) for name in ARRAYS]

    def _members(self, place: Place, first: int = 0) -> dict[str, memoryview]:
        return self.shards.members(place, self.shards.read(place, first))

    def _packed(self, place: Place, name: str, members: dict[str, memoryview]) -> np.ndarray:
        """An array of a clip in a shard, as `_array` of the files of another."""
        (dtype, shape, header), content = self._form(name), members.get(name, memoryview(b""))
        encoded, length = name == "frames" and self._pictures.format != "raw", len(header)
        try:
            if (
                not encoded
                and len(content) == length + math.prod(shape) * dtype.itemsize
                and content[:length] == header
            ):
                array = np.frombuffer(content, dtype, offset=length).reshape(shape).copy()
            else:
                array = array_of(content)
            if encoded:
                return self._pictures.decode(array, shape)
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{array.dtype} {array.shape}")
            if name == "valid" and array.view(np.uint8).max() > 1:
                raise ValueError("flags other than 0 and 1")
            return array
        except ValueError as error:
            where = f"{self.shards.address}/{place.shard}, {place.id}, {name}"
            raise ClipDecodeError(where, error, f"{dtype} {shape}", REPAIR) from error

    def _pixels(self, clip_id: str, array: np.ndarray, segment: int) -> np.ndarray:
        """The frame or frames of one segment, of an array of encoded ones."""
        shape = self._form("frames")[1]
        count = math.prod(shape[1:-3])
        try:
            pictures = self._pictures.split(array, count * shape[0])[count * segment : count * (segment + 1)]
            frames = [self._pictures.decode_one(picture, shape[-1]) for picture in pictures]
        except ValueError as error:
            path = self.root / "clips" / clip_id / "frames.npy"
            raise ClipDecodeError(path, error, f"{self._pictures.format} pictures", REPAIR) from error
        return np.stack(frames).reshape(shape[1:])

    def _form(self, name: str) -> tuple[np.dtype, tuple[int, ...], bytes]:
        """dtype, shape and header of an array that is not encoded."""
        if self._expected is None:
            sampling, self._pictures = self._settings()
            shapes = {
                "frames": (np.uint8, (*sampling.pictures, 3, sampling.size, sampling.size)),
                "audio": (np.int16, (sampling.segments, sampling.samples)),
                "valid": (np.bool_, (sampling.segments,)),
            }
            self._expected = {
                key: (np.dtype(dtype), shape, header_of(np.dtype(dtype), shape))
                for key, (dtype, shape) in shapes.items()
            }
        return self._expected[name]

    def _array(self, clip_id: str, name: str, mapped: bool = False) -> np.ndarray:
        """An array as its file holds it; of frames `mapped` the pictures, else the pixels."""
        (dtype, shape, header), path = self._form(name), self.root / "clips" / clip_id / f"{name}.npy"
        try:
            if name == "frames" and self._pictures.format != "raw":
                array = read_array(path, mapped)
                if mapped:
                    self._pictures.split(array, math.prod(shape[:-3]))
                    return array
                return self._pictures.decode(array, shape)
            if mapped and name != "valid":
                array = read_array(path, mapped=True)
                if array.dtype != dtype or array.shape != shape:
                    raise ValueError(f"{array.dtype} {array.shape}")
                return array
            array = read_known(path, dtype, shape, header)
            if name == "valid" and array.view(np.uint8).max() > 1:
                raise ValueError("flags other than 0 and 1")
            return array
        except (OSError, ValueError) as error:
            raise ClipDecodeError(path, error, f"{dtype} {shape}", REPAIR) from error


def _check(settings: dict[str, Any]) -> str:
    return digest_of(json.dumps(settings, sort_keys=True).encode())[:16]
