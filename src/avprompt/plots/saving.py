"""Figures as files: PNG for the screen, PDF and SVG for papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avprompt.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")
#: TrueType fonts in PDF, which publishers ask for; outlines in SVG, which look the same where a font is missing
EMBEDDED = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "avprompt"}
#: of a file without the hour at which it was made, so that equal figures are equal files
UNDATED = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def check_formats(formats: str | Sequence[str]) -> tuple[str, ...]:
    """The formats as a tuple; one text may name several.

    Raises:
        ArgumentError: an unknown one, or none.

    Example:
        >>> check_formats(["pdf", "png"]), check_formats("pdf, svg")
        (('pdf', 'png'), ('pdf', 'svg'))
    """
    formats = tuple(part.strip() for part in formats.split(",")) if isinstance(formats, str) else tuple(formats)
    if not formats or set(formats) - set(FORMATS):
        raise ArgumentError("formats", list(formats), f"some of {', '.join(FORMATS)}", "Correct it.")
    return formats


def save_figure(figure: Figure, path: Path, formats: Sequence[str] = ("png",), dpi: int = 110) -> list[Path]:
    """Write a figure, with fonts that have its characters, once for each format.

    Args:
        figure: to write.
        path: without an ending; folders are made.
        formats: of `FORMATS`.
        dpi: dots per inch of PNG, and of photographs within the others.

    Returns:
        The files.

    Example:
        >>> import tempfile
        >>> from matplotlib.figure import Figure
        >>> [path.name for path in save_figure(Figure(), Path(tempfile.mkdtemp()) / "empty", ("png", "svg"))]
        ['empty.png', 'empty.svg']
    """
    from matplotlib import rc_context

    from avprompt.plots.legible import legible

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, files = legible(figure), [path.with_name(f"{path.name}.{kind}") for kind in check_formats(formats)]
    with rc_context(EMBEDDED):
        for file in files:
            figure.savefig(file, dpi=dpi, metadata=UNDATED[file.suffix[1:]])
    return files
