"""Templates and inline pictures of pages.

Pictures are matplotlib's, as SVG within the page: it is the library of all our figures, its text stays text, and a page
needs no script of a plotting library (plotly's or vega's would be one to four megabytes a page). What moves, a cursor
and an overlay, is a hundred lines of our own.
"""

from __future__ import annotations

import base64
import functools
import io
import re
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

#: text stays text, and equal figures have equal bytes
STYLE = {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "avprompt", "svg.image_inline": True}


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("avprompt.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Fill a template of `avprompt/pages/templates`; text is escaped, and a name that it lacks is an error.

    Example:
        >>> "a &lt;b&gt;" in render("message.html", title="a <b>", text="")
        True
    """
    return _environment().get_template(template).render(**values)


def inline_svg(figure: Figure) -> str:
    """A figure as `<svg>` for a page: as wide as its place, text in the fonts of the reader's machine.

    Example:
        >>> inline_svg(Figure(figsize=(2, 1)))[:4]
        '<svg'
    """
    file = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    head, _, rest = text.partition(">")
    head = re.sub(r'\b(width|height)="[^"]*"\s*', "", head)
    # names of parts are shared by all pictures of a page
    mark = f"f{abs(hash_of(text)):x}"
    rest = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{mark}", rest)
    return f"{head}>{rest}"


def hash_of(text: str) -> int:
    """A number from a text, the same in every process.

    Example:
        >>> hash_of("a") == hash_of("a") != hash_of("b")
        True
    """
    import zlib

    return zlib.crc32(text.encode())


def png(pixels: Any) -> str:
    """uint8 (H, W) or (H, W, 3) -> a PNG as the address of an image within a page.

    Example:
        >>> import numpy as np
        >>> png(np.zeros((2, 2), np.uint8))[:22]
        'data:image/png;base64,'
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
