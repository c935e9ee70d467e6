"""Names in any script on a picture: another installed font, or the character's number, instead of empty boxes."""

from __future__ import annotations

import functools

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text


@functools.cache
def _letters(path: str) -> frozenset[int]:
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):  # a font file that is damaged
        return frozenset()


@functools.cache
def _family(letter: str) -> str | None:
    """An installed font that has a character, in the order of their names."""
    return next(
        (
            font.name
            for font in sorted(fontManager.ttflist, key=lambda font: (font.name, font.fname))
            if ord(letter) in _letters(font.fname) and not font.name.startswith("Last Resort")
        ),
        None,
    )


def legible(figure: Figure) -> Figure:
    """Give each text of a figure the fonts that its characters need; one that no font has is written as `\\uXXXX`.

    >>> legible(Figure()).texts
    []
    """
    for text in figure.findobj(Text):
        shown = text.get_text()
        if shown.isascii():
            continue
        known = _letters(findfont(FontProperties(family=text.get_fontfamily())))
        lacking = {letter for letter in shown if ord(letter) not in known and not letter.isspace()}
        families = {letter: _family(letter) for letter in sorted(lacking)}
        text.set_fontfamily([*text.get_fontfamily(), *dict.fromkeys(filter(None, families.values()))])
        text.set_text(
            "".join(
                letter.encode("unicode_escape").decode() if families.get(letter, "") is None else letter
                for letter in shown
            )
        )
    return figure
