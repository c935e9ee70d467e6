"""No prompts: two frozen encoders side by side, the baseline of every method."""

from __future__ import annotations

from torch import Tensor

from avprompt.encoders.base import FrozenBlock
from avprompt.methods.base import PromptMethod, PromptState


class NoPrompts(PromptMethod):
    """Plain blocks, pooled by class token or mean; there are no parameters.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> backbone = AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none"), NoPrompts())
        >>> any(parameter.requires_grad for parameter in backbone.parameters())
        False
    """

    gradient = "none"
    identity_at_start = True

    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        return visual_block(visual), audio_block(audio)
