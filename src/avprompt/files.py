"""Writing that neither a crash nor a full disk can halve: a file is the old one or the new one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avprompt.errors import AVPromptError, WriteError

#: a disk, a quota, or a limit of a file's size is exhausted
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def full_disks() -> Iterator[None]:
    """Turn the error of a library that finds the disk full, such as TensorBoard at its events, into a typed one.

    Raises:
        WriteError: the disk is full.

    Example:
        >>> try:
        ...     with full_disks():
        ...         raise OSError(errno.ENOSPC, "No space left on device", "events")
        ... except WriteError as error:
        ...     print(error)
        events: got No space left on device; expected room on the disk. Make room; checkpoints are whole.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, AVPromptError) or error.errno not in FULL:
            raise
        raise WriteError(
            error.filename or "a file of the run",
            error.strerror,
            "room on the disk",
            "Make room; checkpoints are whole.",
        ) from error


def sync_folder(folder: Path) -> None:
    """Have the disk remember a folder's names, where the system lets folders be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Replace a file by new content in one step, with its folders made where they are missing.

    The content goes into a file beside it, which the disk has before it takes the name. After a crash or on a full disk
    the old file is still there.

    Args:
        path: of the file.
        content: all of it.

    Raises:
        WriteError: the disk is full, or the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "made" / "result.json"
        >>> write_whole(path, b"{}")
        >>> path.read_bytes(), len(list(path.parent.iterdir()))
        (b'{}', 1)
    """
    partial = path.with_name(f".{path.name[:200]}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(partial, content)
        os.replace(partial, path)
    except OSError as error:
        _remove(partial)
        kept = "the file that was there is kept" if path.exists() else "nothing was written"
        raise WriteError(
            path,
            f"{error.strerror or error}; {kept}",
            "room on the disk, in a folder that can be written to",
            "Make room, or choose another folder.",
        ) from error
    except BaseException:
        _remove(partial)
        raise
    sync_folder(path.parent)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # what kept it from being written keeps it from being removed


@contextlib.contextmanager
def locked(path: Path, shared: bool = False, patience: float = 0.0) -> Iterator[bool]:
    """Hold a lock on a file, which is made where it is missing; whether nobody else holds it.

    Where the folder cannot be written to, or the system or its file system knows no locks, there is none, and the answer
    is `True`.

    Args:
        path: of the lock; the file stays, empty.
        shared: let others have it too that ask for a shared one.
        patience: seconds to wait for it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / ".lock"
        >>> with locked(path, shared=True) as ours, locked(path, shared=True) as too, locked(path) as alone:
        ...     ours, too, alone
        (True, True, False)
    """
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except (ImportError, OSError):  # Windows; a read-only folder
        yield True
        return
    kind, until = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, time.monotonic() + patience
    with file:
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                yield False
                return
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                    raise
            break
        yield True


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step, see `write_whole`."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
