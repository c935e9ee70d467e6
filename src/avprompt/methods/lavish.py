r"""LAVISH: latent tokens carry each modality into the other's blocks (Lin et al., CVPR 2023).

One frozen network sees frames and spectrograms. In each of its blocks there are four adapters:

      visual v ──┬─[ attention ]──(+)──┬─[ MLP ]──(+)──        [ ] frozen, the same for both   { } trained
                 └─{ adapter v|a }─┘   └─{ adapter v|a }─┘
      audio  a ──┬─[ attention ]──(+)──┬─[ MLP ]──(+)──        both adapters of a step read the
                 └─{ adapter a|v }─┘   └─{ adapter a|v }─┘     tokens before either is written

An adapter lets K latent tokens read the other modality, lets its own tokens read the latent ones, and sends them
through a gated bottleneck. It is DG-SCT's (`ReleasedAdapter`) without attention and without a prompt map.
"""

from __future__ import annotations

import re
from typing import Literal

from torch import Tensor

from avprompt.encoders.base import FrozenBlock
from avprompt.methods.base import PromptState
from avprompt.methods.dgsct import DGSCT, Gate, Map
from avprompt.methods.fine_tuning import CHOICES
from avprompt.ranges import Count


class LAVISH(DGSCT):
    """LAVISH as its authors' code has it; the defaults are those of the AVE network.

    The variant that DG-SCT's paper calls LAVISH*, between encoders of different width, is `DGSCT` with `spatial`,
    `channel` and `temporal` off (`methods/lavish_star.yaml`): its map and its order of audio blocks.

    Args:
        a2v: audio guides video; off, the visual side has no adapter.
        v2a: video guides audio, likewise.
        num_tokens: K latent tokens of an adapter.
        reduction: C over the width of the bottleneck.
        groups: channel groups of the bottleneck.
        gate: zero-initialised scalar gate of an adapter: outside of the last norm, or inside (AVS).
        audio_gate: whether audio adapters have that gate too (AVS: no).
        batch_norm: batch norm in the bottleneck (AVS, AVQA: no).
        norm_before: layer norm before the bottleneck (AVS: no; the authors build one there and do not use it).
        prompt_map: `none`, for encoders of equal width; `linear`, a projection of the other tokens, for others (ours).
        token_init: `uniform` in [0, 1), or `zeros` (AVS, AVQA: all tokens then stay identical).
        train_norms: train all norms of the encoder (AVQA).

    Raises:
        ArgumentError: both directions are off, or an unknown `prompt_map`; on `attach`, sizes that do not divide, or
            `prompt_map: none` between blocks of different width.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinySwinV2
        >>> backbone = AVPromptBackbone(TinySwinV2("none"), "shared", LAVISH(reduction=4))
        >>> sum(p.numel() for p in backbone.prompts.parameters()), backbone.prompts.identity_at_start
        (24192, True)
    """

    def __init__(
        self,
        a2v: bool = True,
        v2a: bool = True,
        num_tokens: Count = 2,
        reduction: Count = 8,
        groups: Count = 2,
        gate: Gate = "after_norm",
        audio_gate: bool = True,
        batch_norm: bool = True,
        norm_before: bool = True,
        prompt_map: Map = "none",
        token_init: Literal["uniform", "zeros"] = "uniform",
        train_norms: bool = False,
    ) -> None:
        super().__init__(
            False,
            False,
            False,
            a2v,
            v2a,
            num_tokens=num_tokens,
            reduction=reduction,
            groups=groups,
            gate=gate,
            audio_gate=audio_gate,
            batch_norm=batch_norm,
            norm_before=norm_before,
            prompt_map=prompt_map,
            token_init=token_init,
        )
        self.train_norms = train_norms

    def trains(self, name: str, behind: int) -> bool:
        return self.train_norms and re.search(CHOICES["norms"], name) is not None

    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        to_visual, to_audio = self.adapt("p1", site, visual, audio, state)
        visual = visual + visual_block.attention(visual) + to_visual
        audio = audio + audio_block.attention(audio) + to_audio
        to_visual, to_audio = self.adapt("p2", site, visual, audio, state)
        return visual + visual_block.mlp(visual) + to_visual, audio + audio_block.mlp(audio) + to_audio
