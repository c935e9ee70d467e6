"""Conversion of other checkpoints into ours."""

from avprompt.convert.released import convert, from_released

__all__ = ["convert", "from_released"]
