"""Deep visual prompt tuning, on both sides (Jia et al., ECCV 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.errors import ArgumentError
from avprompt.methods.per_block import PerBlock
from avprompt.ranges import Count


class Prompts(nn.Module):
    """Learned tokens.

    Args:
        count: number n of tokens.
        dim: channels C.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(nn.init.normal_(torch.empty(count, dim), std=0.02))


class VPT(PerBlock):
    """Adds n learned tokens to the input of every block of both encoders; the next block has others in their place.

    What a block makes of its prompts is thrown away, as in the paper's deep variant. The prompts are therefore keys and
    values only, which is the same function at less cost. In blocks with windows every window sees them, without a
    position bias, as in the paper. No modality reads the other.

    Args:
        num_tokens: number n of tokens a block.
        visual: whether the visual encoder has prompts.
        audio: whether the audio encoder has them.

    Raises:
        ArgumentError: no token, or both encoders without.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> backbone = AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none"), VPT(num_tokens=10))
        >>> sum(p.numel() for p in backbone.prompts.parameters())  # 10 tokens of width 40 or 80 in 8 blocks
        4800
    """

    def __init__(self, num_tokens: Count = 10, visual: bool = True, audio: bool = True) -> None:
        super().__init__(visual, audio)
        if num_tokens < 1:
            raise ArgumentError("num_tokens", num_tokens, "at least 1", "Use avprompt.methods.NoPrompts for none.")
        self.num_tokens = num_tokens

    def part(self, spec: BlockSpec) -> Prompts:
        return Prompts(self.num_tokens, spec.dim)

    def run(self, block: FrozenBlock, part: Prompts, x: Tensor) -> Tensor:
        x = x + block.attention(x, prompts=part.tokens)
        return x + block.mlp(x)
