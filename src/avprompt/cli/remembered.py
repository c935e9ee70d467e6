"""Answers that depend on the installed code alone: help texts, the list of experiments, completion scripts.

To print the help of `avprompt fit` takes torch, Lightning and every class that a flag can name, about seven seconds of
processor time. The second time it is read from the user's cache folder, under a name that changes with every file of
the package and with every version of the packages that the text comes from.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from avprompt.configs import EXPERIMENTS, FRAGMENTS
from avprompt.errors import WriteError
from avprompt.files import write_whole

PACKAGE = Path(__file__).resolve().parents[1]
#: packages whose classes and parsers the texts describe
LIBRARIES = ("avprompt", "jsonargparse", "lightning", "torch", "shtab")
HELP = ("--help", "-h")


def folder() -> Path:
    """Where answers are kept: `avprompt` in `$XDG_CACHE_HOME`, else in `~/.cache`.

    >>> folder().name
    'avprompt'
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avprompt"


def depends_on_code_alone(args: list[str]) -> bool:
    """Whether a command line is a question about the program itself, not about a file or a run.

    >>> depends_on_code_alone(["data", "prepare", "--help"]), depends_on_code_alone(["fit", "--config", "x.yaml", "-h"])
    (True, False)
    """
    words = [arg for arg in args if arg not in HELP]
    asked = args[-1:] and args[-1] in HELP and len(args) == len(words) + 1
    return (
        all(re.fullmatch("[a-z0-9_]+", word) for word in words)
        and bool(words)
        and bool(asked or words == ["experiments"] or words[0] == "completion")
    )


def name_of(args: list[str]) -> str:
    """File name of an answer: the words, and a digest of the screen's width, the versions and the package's files.

    >>> name_of(["fit", "--help"]).startswith("fit-help.")
    True
    """
    digest = hashlib.sha256(f"{shutil.get_terminal_size().columns} {sys.version}".encode())
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # shtab is an extra
            digest.update(metadata.version(library).encode())
    for root in (PACKAGE, Path(EXPERIMENTS), Path(FRAGMENTS)):
        for place, folders, files in os.walk(root, followlinks=True):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(files):
                if name.endswith((".py", ".yaml", ".csv")):
                    found = Path(place, name).stat()
                    digest.update(f"{place}/{name} {found.st_mtime_ns} {found.st_size}".encode())
    words = ["help" if arg in HELP else arg for arg in args]
    return f"{'-'.join(words)}.{digest.hexdigest()[:32]}.txt"


def read(path: Path) -> str | None:
    """A kept answer; `None` where there is none, or where it cannot be read: it is then computed again.

    >>> read(Path("no such answer.txt")) is None
    True
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def remembered(args: list[str], answer: Callable[[list[str]], None]) -> None:
    """Print an answer from the cache, or give it and keep it there. A cache that cannot be written costs time alone.

    Args:
        args: words of the command line.
        answer: prints the answer; may end with `SystemExit`.

    >>> remembered(["fit", "--config", "x.yaml"], lambda args: print("computed"))
    computed
    """
    if not depends_on_code_alone(args):
        answer(args)
        return
    path = folder() / name_of(args)
    if (kept := read(path)) is not None:
        print(kept, end="")
        return
    printed, code = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(printed):
            answer(args)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    finally:
        print(printed.getvalue(), end="")
    if code:
        sys.exit(code)
    with contextlib.suppress(OSError, WriteError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for former in path.parent.glob(f"{path.name.partition('.')[0]}.*.txt"):
            former.unlink(missing_ok=True)
        write_whole(path, printed.getvalue().encode())
