"""Listing of folders with links, hidden files, and numbers without leading zeros."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_NUMBER = re.compile(r"(\d+)")


def natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts `frame_2` before `frame_10`: numbers within names compare as numbers.

    >>> sorted(map(Path, ["10.jpg", "9.jpg", "1.jpg"]), key=natural)[0].name
    '1.jpg'
    """
    parts = _NUMBER.split(path.name)
    return [(int(part[:400]), "") if place % 2 else (-1, part) for place, part in enumerate(parts)], path.name


def hidden(path: Path) -> bool:
    """Whether a name begins with a dot: `._clip.mp4` of a Mac's archives, `.DS_Store`, `.ipynb_checkpoints`."""
    return path.name.startswith(".")


def listed(folder: Path, *endings: str) -> list[Path]:
    """Files of a folder that are not hidden and have one of these endings, in either case, in natural order."""
    return sorted(
        (path for path in Path(folder).iterdir() if path.suffix.lower() in endings and not hidden(path)), key=natural
    )


def walk(
    folder: Path, problems: list[tuple[Path, str]] | None = None, unseen: list[Path] | None = None
) -> Iterator[Path]:
    """Files in a folder and its subfolders in order of names; follows links, ignores hidden files and folders.

    Each folder is visited once, even if several links lead to it or a link leads to a parent folder.

    Args:
        folder: folder to start in; it may itself be hidden.
        problems: receives the paths that cannot be opened or do not exist, with the reason.
        unseen: receives the hidden files and folders.
    """
    seen: set[tuple[int, int]] = set()

    def enter(place: Path) -> Iterator[Path]:
        try:
            found = place.stat()
            if (found.st_dev, found.st_ino) in seen:
                return
            seen.add((found.st_dev, found.st_ino))
            there = sorted(place.iterdir())
        except OSError as error:
            if problems is not None:
                problems.append((place, str(error)))
            return
        for path in there:
            if hidden(path):
                if unseen is not None:
                    unseen.append(path)
                continue
            try:
                if path.is_dir():
                    yield from enter(path)
                elif path.is_file():
                    yield path
                elif path.is_symlink() and problems is not None:
                    problems.append((path, f"a link to {os.readlink(path)}, which is not there"))
            except OSError as error:
                if problems is not None:
                    problems.append((path, str(error)))

    yield from enter(Path(folder))


def signature(paths: Iterable[Path]) -> str:
    """Text that changes if files are replaced, from names, sizes and times of the last change, without reading them."""
    known = [(path.name, (status := path.stat()).st_size, status.st_mtime_ns) for path in paths]
    return hashlib.blake2b(repr(known).encode(), digest_size=16).hexdigest()
