"""No prompts: the two frozen networks side by side, the row that every method is compared with."""

from __future__ import annotations

from torch import Tensor

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.methods.base import PromptMethod, PromptState, mean_or_class_token


class NoPrompts(PromptMethod):
    """Plain blocks; pooling by class token or mean. Owns no parameter."""

    needs_encoder_gradient = False
    identity_at_start = True

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]]) -> None:
        self.last = sites[-1]

    def step(self, site: int, visual_block: FrozenBlock, audio_block: FrozenBlock, visual: Tensor, audio: Tensor,
             state: PromptState) -> tuple[Tensor, Tensor]:
        return visual_block(visual), audio_block(audio)

    def pool(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        return mean_or_class_token(visual, self.last[0]), mean_or_class_token(audio, self.last[1])
