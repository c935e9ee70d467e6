"""Bottleneck adapters within each encoder, without exchange between the modalities (Houlsby et al., ICML 2019)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.errors import ArgumentError
from avprompt.methods.per_block import PerBlock
from avprompt.ranges import Count

STEPS = ("attention", "mlp")


class Bottleneck(nn.Module):
    """x + W_up GELU(W_down x + b) + b', with W_up and b' zero at the start.

    Args:
        dim: channels C.
        hidden: width of the bottleneck.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down, self.act, self.up = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return x + self.up(self.act(self.down(x)))


class Adapters(PerBlock):
    """A bottleneck behind the attention and behind the MLP of every block of both encoders, before the residual sum.

    No modality reads the other: what a cross-modal adapter gains beyond this row is due to its exchange.

    Args:
        reduction: C over the width of the bottleneck, rounded down.
        steps: behind which branches, `attention` and `mlp`.
        visual: whether the visual encoder has adapters.
        audio: whether the audio encoder has them.

    Raises:
        ArgumentError: no step or an unknown one, or both encoders without; on `attach`, a bottleneck without channels.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> backbone = AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none"), Adapters())
        >>> sum(p.numel() for p in backbone.prompts.parameters())  # 2 C h + h + C of 16 bottlenecks, h = C / 8
        17080
    """

    identity_at_start = True

    def __init__(
        self,
        reduction: Count = 8,
        steps: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp"),
        visual: bool = True,
        audio: bool = True,
    ) -> None:
        super().__init__(visual, audio)
        if not steps or not set(steps) <= set(STEPS):
            raise ArgumentError("steps", list(steps), f"some of {', '.join(STEPS)}", "Correct it.")
        self.reduction, self.steps = reduction, tuple(steps)

    def part(self, spec: BlockSpec) -> nn.ModuleDict:
        if not 1 <= self.reduction <= spec.dim:
            raise ArgumentError("reduction", self.reduction, f"1 to {spec.dim}, the channels of a block", "Correct it.")
        return nn.ModuleDict({step: Bottleneck(spec.dim, spec.dim // self.reduction) for step in self.steps})

    def run(self, block: FrozenBlock, part: nn.ModuleDict, x: Tensor) -> Tensor:
        for step in STEPS:
            branch = getattr(block, step)(x)
            x = x + (part[step](branch) if step in part else branch)
        return x
