"""Reading of text files: UTF-8, or an error that says what the file is instead."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from avprompt.errors import AnnotationError, AVPromptError, DatasetError

#: size in bytes of the largest text file that is read
LIMIT = 512 * 2**20
#: first bytes of other kinds of files -> what they are, what to do
SIGNATURES = (
    (b"\x1f\x8b", "a gzip archive", "Unpack it first: `gunzip`."),
    (b"BZh", "a bzip2 archive", "Unpack it first: `bunzip2`."),
    (b"\xfd7zXZ", "an xz archive", "Unpack it first: `unxz`."),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "Unpack it first: `unzstd`."),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "Unpack it, or save the table as text in UTF-8."),
    (b"\xff\xfe", "UTF-16", "Save it as UTF-8: `iconv -f UTF-16 -t UTF-8 OLD > NEW`."),
    (b"\xfe\xff", "UTF-16", "Save it as UTF-8: `iconv -f UTF-16 -t UTF-8 OLD > NEW`."),
    (b"version https://git-lfs", "a pointer of Git LFS", "Fetch the file itself: `git lfs pull`."),
)
HTML = re.compile(rb"\s*<(!doctype\s+html|html)", re.IGNORECASE)
_WHOLE = re.compile(r"[0-9]{1,9}")


def _guess(content: bytes, start: int) -> str:
    """Likely encoding of a file whose byte `start` is not UTF-8."""
    line = content[content.rfind(b"\n", 0, start) + 1 :].split(b"\n", 1)[0]
    try:
        line.decode("gb2312")
    except UnicodeDecodeError:
        return "LATIN1"
    return "GBK"


def read_text(
    path: Path, what: str = "a text file", hint: str = "Check the path.", error: type[AVPromptError] = AnnotationError
) -> str:
    """Content of a UTF-8 file, with or without byte-order mark; line ends become `\\n`.

    Args:
        path: the file.
        what: what the file should be, for messages.
        hint: what to do if it is missing.
        error: type of errors about its content.

    Raises:
        DatasetError: no such file, or one that cannot be opened.
        AVPromptError: of type `error`; the file is compressed, a web page, larger than `LIMIT`, or not UTF-8. The
            message names file, byte and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(path, "a folder" if path.is_dir() else "no such file", what, hint)
    try:
        if (size := path.stat().st_size) > LIMIT:
            raise error(path, f"{size:,} bytes", f"{what} of at most {LIMIT:,} bytes", "Check what this file is.")
        content = path.read_bytes()
    except OSError as problem:
        raise DatasetError(path, problem, f"{what} that can be read", "Check its permissions.") from problem
    for signature, kind, cure in SIGNATURES:
        if content.startswith(signature):
            raise error(f"{path}, byte 0", kind, f"{what} in UTF-8", cure)
    if HTML.match(content[:200]):
        raise error(f"{path}, byte 0", "a web page", what, "Download the file itself, not the page that shows it.")
    mark = 3 if content.startswith(b"\xef\xbb\xbf") else 0
    try:
        text = content[mark:].decode("utf-8")
    except UnicodeDecodeError as problem:
        start = problem.start + mark
        raise error(
            f"{path}, byte {start} (line {content[:start].count(10) + 1})",
            f"{content[start : start + 4]!r}, which is not UTF-8",
            f"{what} in UTF-8",
            f"Save it as UTF-8. If it is {_guess(content, start)}: "
            f"`iconv -f {_guess(content, start)} -t UTF-8 OLD > NEW`.",
        ) from problem
    if (start := content.find(b"\0")) >= 0:
        raise error(
            f"{path}, byte {start} (line {content[:start].count(10) + 1})",
            "a zero byte",
            f"{what} in UTF-8",
            "Save it as UTF-8 if an editor wrote it as UTF-16; else download it again.",
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path, what: str, hint: str) -> list[tuple[str, str]]:
    """(place, line) of every line that is not empty; the place is `file, line N`.

    Raises:
        DatasetError: see `read_text`.
        AnnotationError: see `read_text`, or the file holds nothing.
    """
    lines = [
        (f"{path}, line {number}", line)
        for number, line in enumerate(read_text(path, what, hint).split("\n"), 1)
        if line
    ]
    if not lines:
        raise AnnotationError(path, "an empty file", what, "Download it again.")
    return lines


def read_table(path: Path, what: str, hint: str, columns: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, fields by column) of every row of a comma-separated file with a header.

    Raises:
        DatasetError: see `read_text`.
        AnnotationError: see `read_text`; the file holds no row, lacks one of `columns`, or a row has other than the
            header's number of fields or breaks the rules of quoting.
    """
    reader, header, count = csv.reader(io.StringIO(read_text(path, what, hint)), strict=True), None, 0
    try:
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if header is None:
                header = fields
                if absent := [name for name in columns if name not in header]:
                    raise AnnotationError(
                        where,
                        f"columns {header}, without {', '.join(absent)}",
                        f"a header with {', '.join(columns)}",
                        "Correct the first line.",
                    )
                continue
            if not fields:
                continue
            if len(fields) != len(header):
                raise AnnotationError(
                    where, f"{len(fields)} fields", f"{len(header)} fields, {','.join(header)}", "Correct the line."
                )
            count += 1
            yield where, dict(zip(header, fields))
    except csv.Error as error:
        raise AnnotationError(
            f"{path}, line {reader.line_num}", error, "comma-separated values", "Correct the line."
        ) from error
    if not count:
        raise AnnotationError(
            path, "an empty file" if header is None else "a header and no row", what, "Download it again."
        )


def whole(text: str) -> int | None:
    """The text as a whole number of at most nine digits; `None` if it is not one."""
    return int(text) if _WHOLE.fullmatch(text) else None


def plain(text: str) -> str:
    r"""The text with escapes for control characters, and for bytes of names in other encodings.

    >>> plain("a" + chr(10) + "b")
    'a\\nb'
    """
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in ("Cc", "Cs") else letter
        for letter in text
    )


def is_name(text: str) -> bool:
    """Whether the text is a valid file name: no folder, not hidden, no control character, at most 255 bytes."""
    return (
        bool(text)
        and not text.startswith(".")
        and not {"/", "\\"} & set(text)
        and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)
        and len(text.encode()) <= 255
    )
