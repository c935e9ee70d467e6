"""`AVFeatures`: what every task reads, whoever extracted it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class AVFeatures:
    """Features of B clips of T segments.

    Args:
        visual: (B, T, C_v), one vector a segment.
        audio: (B, T, C_a).
        visual_tokens: (B, T, N_v, C_v), after the final norm.
        audio_tokens: (B, T, N_a, C_a).
        pyramid: visual tokens (B, T, N, C) at the end of each stage, before merging; the last after the final norm.
        maps: attention maps by name, (B, T, rows, columns), where asked for.
        tables: numbers by name, (B, T, K), such as the weights of a router, where asked for.
        losses: auxiliary losses of the prompt method, scalars; `balance@3` is the loss `balance` of block pair 3.
    """

    visual: Tensor
    audio: Tensor
    visual_tokens: Tensor
    audio_tokens: Tensor
    pyramid: list[Tensor]
    maps: dict[str, Tensor] = field(default_factory=dict)
    tables: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
