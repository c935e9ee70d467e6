"""`AVFeatures`: what every task reads, whoever extracted it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class AVFeatures:
    """What a task reads from the backbone.

    Args:
        visual: (B, T, C_v), one vector a segment.
        audio: (B, T, C_a).
        visual_tokens: (B, T, N_v, C_v), after the final norm.
        audio_tokens: (B, T, N_a, C_a).
        pyramid: visual tokens (B, T, N, C) at the end of each stage, before merging; the last after the final norm.
        maps: attention maps by name, (B, T, rows, columns), where asked for.
    """

    visual: Tensor
    audio: Tensor
    visual_tokens: Tensor
    audio_tokens: Tensor
    pyramid: list[Tensor]
    maps: dict[str, Tensor] = field(default_factory=dict)
