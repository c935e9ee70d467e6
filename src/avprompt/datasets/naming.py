"""Why a folder's names are not those of the annotations: what other downloaders do to names, undone."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

_TIME = r"[0-9]{1,9}(?:\.[0-9]{1,6})?"
_BOTH = re.compile(rf"(.+?)[_-]({_TIME})[_-]({_TIME})")
_ONE = re.compile(rf"(.+?)_({_TIME})")
#: characters of an id that may be found within another name; shorter ones are there by chance
SHORTEST = 6


@dataclass(frozen=True)
class Renaming:
    """A likely reason why names differ.

    Args:
        rule: in words.
        names: name that is there -> id that is meant; each id once.
    """

    rule: str
    names: dict[str, str]


def _timed(name: str) -> Iterator[str]:
    """The name with its times as milliseconds, if they may be seconds, and if they may be milliseconds."""
    if match := _BOTH.fullmatch(name):
        start, end = float(match[2]), float(match[3])
        yield f"{match[1]} {round(1000 * start)} {round(1000 * end)}"
        if start % 1000 == end % 1000 == 0:
            yield f"{match[1]} {round(start)} {round(end)}"


def _untimed(name: str) -> Iterator[str]:
    """The name without times at its end."""
    match = _BOTH.fullmatch(name) or _ONE.fullmatch(name)
    yield match[1] if match else name


def _composed(name: str) -> Iterator[str]:
    yield unicodedata.normalize("NFC", name)


KEYS: tuple[tuple[str, Callable[[str], Iterator[str]]], ...] = (
    ("accents are written in another form of Unicode (files from a Mac)", _composed),
    ("the times at the end are written in another way", _timed),
    ("times at the end of names", _untimed),
)


def _unique(pairs: Collection[tuple[str, str]]) -> dict[str, str]:
    """Pairs of which neither side stands in another pair."""
    pairs = set(pairs)
    names, ids = Counter(name for name, _ in pairs), Counter(clip for _, clip in pairs)
    return {name: clip for name, clip in sorted(pairs) if names[name] == ids[clip] == 1}


def _by_key(names: Collection[str], ids: Collection[str], key: Callable[[str], Iterator[str]]) -> dict[str, str]:
    meant = defaultdict(set)
    for clip in ids:
        for text in key(clip):
            meant[text].add(clip)
    return _unique([(name, clip) for name in names for text in key(name) for clip in meant.get(text, ())])


def _within(names: Collection[str], ids: Collection[str]) -> dict[str, str]:
    """Names that hold an id, or its part before times, with other text around it."""
    parts = defaultdict(set)
    for clip in ids:
        for part in {clip, *_untimed(clip)}:
            if len(part) >= SHORTEST:
                parts[part].add(clip)
    lengths, pairs = sorted({len(part) for part in parts}, reverse=True), []
    for name in names:
        for length in lengths:
            if found := {
                clip for place in range(len(name) - length + 1) for clip in parts.get(name[place : place + length], ())
            }:
                pairs += [(name, clip) for clip in found]
                break  # the longest part says most
    return _unique(pairs)


def _times(names: dict[str, str]) -> str:
    def timed(text: str) -> bool:
        return bool(_BOTH.fullmatch(text) or _ONE.fullmatch(text))

    sides = Counter((timed(before), timed(after)) for before, after in names.items())
    return {
        (True, False): "the names have times (`_start_end`) after the id",
        (False, True): "the names lack the times (`_start_end`) that ids end in",
    }.get(sides.most_common(1)[0][0] if sides else (False, False), "the times at the end are others")


def _affixes(names: dict[str, str]) -> str:
    around = Counter(tuple(name.split(clip, 1)) if clip in name else ("", "") for name, clip in names.items())
    (before, after), count = around.most_common(1)[0]
    said = " and ".join(filter(None, [f"{before!r} before" if before else "", f"{after!r} after" if after else ""]))
    return (
        f"the names have {said} the id"
        if said and count > len(names) / 2
        else "the names have other text around the id"
    )


def likely(names: Collection[str], ids: Collection[str]) -> Renaming | None:
    """The rule that gives most names an id of their own, `None` where no rule gives any.

    Args:
        names: that are there and that no annotation asks for.
        ids: that annotations ask for and that are not there.

    >>> likely(["trim_abcdefghijk", "trim_lmnopqrstuv"], ["abcdefghijk", "lmnopqrstuv"]).names["trim_abcdefghijk"]
    'abcdefghijk'
    """
    found = [Renaming(rule, _by_key(names, ids, key)) for rule, key in KEYS]
    found[-1] = Renaming(_times(found[-1].names), found[-1].names)
    if within := _within(names, ids):
        found.append(Renaming(_affixes(within), within))
    best = max(found, key=lambda renaming: len(renaming.names))
    return best if best.names else None
