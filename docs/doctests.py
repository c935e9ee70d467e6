"""For the reference: the doctests of a docstring, under `Example:` or under nothing, are its section of examples."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


def with_section(text: str) -> str:
    """A docstring whose doctests stand in a section `Examples:`.

    >>> print(with_section("Sum.\\n\\n>>> 1 + 1\\n2"))
    Sum.
    <BLANKLINE>
    Examples:
        >>> 1 + 1
        2
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    before, begins, after = text.partition("\n\n>>> ")
    return (
        text
        if not begins
        else "\n".join(
            [before, "", "Examples:", *(f"    {line}" if line else "" for line in f">>> {after}".split("\n"))]
        )
    )


class Doctests(Extension):
    """Griffe's hook."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the text before it is parsed."""
        if obj.docstring:
            obj.docstring.value = with_section(obj.docstring.value)
