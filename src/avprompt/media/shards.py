"""Shards of a store: tar files of many clips each, in the format of WebDataset, and where in them each clip lies.

<store>/shards/000000.tar  members <key>.frames.npy, <key>.audio.npy, <key>.valid.npy, a clip's three one after the other
<store>/shards.csv         one row a clip: id, key, file, its first byte in it, bytes, and a digest of the row

A clip is one range of bytes, so it is one read, in any order: shuffling, exact resuming and evaluation are those of a
store of files. Files may lie behind any address that fsspec knows, while shards.csv stays with the manifest.
"""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from avprompt.errors import ClipDecodeError, DatasetError
from avprompt.files import sync_folder, write_whole
from avprompt.media.text import read_text

BLOCK = tarfile.BLOCKSIZE
#: bytes of a member's name without its ending that need no further header
LONGEST = 80


@dataclass(frozen=True)
class Place:
    """Where a clip lies.

    Args:
        id: of the clip.
        key: beginning of its members' names.
        shard: name of the tar file.
        start: first byte of its first member's header.
        size: bytes to the end of its last member.
    """

    id: str
    key: str
    shard: str
    start: int
    size: int


COLUMNS = [*Place.__dataclass_fields__, "check"]


def key_of(clip_id: str, digest: str) -> str:
    """What a clip's members are called: its id, with what is no letter or digit in ASCII written out; if that is too
    long, a digest. A key has no dot, at which WebDataset divides names.

    >>> key_of("-a b.c", "1234"), key_of(100 * "long", "1234")
    ('-a%20b%2Ec', '1234')
    """
    key = quote(clip_id, safe="").replace(".", "%2E")
    return key if len(key) <= LONGEST else digest


def write_tar(path: Path, clips: Iterator[tuple[str, str, Sequence[tuple[str, bytes]]]]) -> list[Place]:
    """Write a tar file as a whole and wait until the disk has it.

    Args:
        path: of the file.
        clips: id, key, and name and content of each member.

    Raises:
        OSError: there is no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, places = path.with_name(f".{path.name}.partial"), []
    try:
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for clip_id, key, members in clips:
                    start = tar.offset
                    for name, content in members:
                        info = tarfile.TarInfo(f"{key}.{name}.npy")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
                    places.append(Place(clip_id, key, path.name, start, tar.offset - start))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return places


def write_places(path: Path, places: dict[str, Place], check: Any) -> None:
    """Write shards.csv, replacing the file in one step.

    Args:
        path: of the file.
        places: by id.
        check: a row -> its digest.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    for _, place in sorted(places.items()):
        row = {name: str(value) for name, value in asdict(place).items()}
        writer.writerow({**row, "check": check(row)})
    write_whole(path, table.getvalue().encode())


def read_places(path: Path, check: Any) -> dict[str, Place]:
    """Places by id; none where there is no such file.

    Raises:
        DatasetError: a row is not as it was written.
    """
    if not path.is_file():
        return {}
    cure = "Remove the file and the folder shards, and run `avprompt data prepare` again."
    reader = csv.DictReader(io.StringIO(read_text(path, "where clips lie in shards", cure, DatasetError)), strict=True)
    places: dict[str, Place] = {}
    try:
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"columns {reader.fieldnames}")
        for row in reader:
            digest = row.pop("check")
            fields: dict[str, Any] = {**row, "start": int(row["start"]), "size": int(row["size"])}
            place = Place(**fields)
            if check(row) != digest or place.id in places or Path(place.shard).name != place.shard:
                raise ValueError(f"a row of {place.id!r} that is not as it was written")
            places[place.id] = place
    except (ValueError, TypeError, csv.Error) as error:
        raise DatasetError(
            f"{path}, line {reader.line_num}", error, f"columns {COLUMNS}, each row with its own check", cure
        ) from error
    return places


class ShardFiles:
    """Ranges of bytes of the tar files in a folder.

    Args:
        address: the folder: a path, or an address that fsspec knows, such as `s3://bucket/folder`, or
            `simplecache::s3://bucket/folder`, which keeps files that were read on this machine.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def read(self, place: Place, first: int = 0, count: int | None = None) -> bytes:
        """Bytes of a clip, `count` from its byte `first` on.

        Raises:
            ClipDecodeError: the tar file is not there or ends before.
            DatasetError: it cannot be reached.
        """
        from fsspec.core import url_to_fs  # keeps connections of this process

        where, count = f"{self.address}/{place.shard}", place.size - first if count is None else count
        begin = place.start + first
        try:
            files, path = url_to_fs(where)
            content = files.cat_file(path, begin, begin + count)
        except FileNotFoundError as error:
            raise ClipDecodeError(f"{where}, {place.id}", error, "the tar file", "Copy it there again.") from error
        except Exception as error:  # each kind of address has errors of its own
            raise DatasetError(
                where,
                f"{type(error).__name__}: {error}",
                "a tar file that can be read",
                "Check the address, its package for fsspec (such as s3fs), and the permissions.",
            ) from error
        if len(content) != count:
            raise ClipDecodeError(
                f"{where}, {place.id}", "a file that ends before", f"{count} bytes", "Copy it there again."
            )
        return content

    def members(self, place: Place, content: bytes) -> dict[str, memoryview]:
        """Content of each member of a clip, or of its last ones, by name without key and ending.

        Raises:
            ClipDecodeError: they are no members of this clip.
        """
        found, position, view = {}, 0, memoryview(content)
        try:
            while position < len(view):
                info = tarfile.TarInfo.frombuf(bytes(view[position : position + BLOCK]), "utf-8", "strict")
                begin, key, name = position + BLOCK, *info.name.removesuffix(".npy").rpartition(".")[::2]
                if key != place.key or info.size > len(view) - begin or not info.isreg():
                    raise ValueError(f"a member {info.name!r}")
                found[name] = view[begin : begin + info.size]
                position = begin + -(-info.size // BLOCK) * BLOCK
        except (tarfile.TarError, ValueError) as error:
            raise ClipDecodeError(
                f"{self.address}/{place.shard}, {place.id}",
                error,
                f"members that are called {place.key}.*.npy",
                "Copy the tar file again; if it is damaged, run `avprompt data prepare` again with --deep true.",
            ) from error
        return found
