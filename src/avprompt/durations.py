"""How long something takes, as people say it."""

from __future__ import annotations

#: in seconds
UNITS = {"s": 1, "min": 60, "h": 3600}


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(8), duration(95), duration(7300)
        ('8 s', '1 min 35 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def in_seconds(text: str) -> float:
    """What `duration` was given, rounded.

    Example:
        >>> in_seconds("2 h 1 min"), in_seconds("8 s")
        (7260.0, 8.0)
    """
    words = text.split()
    return float(sum(int(number) * UNITS[unit] for number, unit in zip(words[::2], words[1::2])))
