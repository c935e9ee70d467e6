"""Encoders by tag."""

from avprompt.encoders.base import FrozenEncoder
from avprompt.errors import ArgumentError


def encoder_of_tag(tag: str, modality: str) -> FrozenEncoder:
    """Stub of the core branch."""
    raise ArgumentError(modality, tag, "an encoder", "Merge the encoders branch.")
