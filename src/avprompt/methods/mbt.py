r"""MBT: two transformers exchange through a few bottleneck tokens in their last layers (Nagrani et al., NeurIPS 2021).

      visual tokens ---[ blocks ]---[ visual tokens; z ]--[ block ]--> z_v --+
                                                                             (mean)--> z of the next block pair
      audio tokens ----[ blocks ]---[ audio tokens;  z ]--[ block ]--> z_a --+

Everything is trained, both encoders too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.errors import ArgumentError, check_choice
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.ranges import Count

SPANS = ("clip", "segment")


class MBT(PromptMethod):
    """Bottleneck tokens between two encoders that are trained end to end; the defaults are the publication's.

    In MBT a token attends to all tokens of its modality in the clip, over all frames and the whole spectrogram; the
    segments of a clip are therefore one sequence here (`span: clip`), and so a segment's vector depends on the others.
    Give the encoders `segments`, which adds trained positions in time. `audio: separate` gives the spectrograms a
    transformer of their own with the weights of the visual one, as published. The encoders stay in eval mode: no
    stochastic depth.

    Args:
        num_tokens: bottleneck tokens.
        layers: how many of the last block pairs hold bottleneck tokens; each reads what the one before it wrote.
        span: whether a token attends over its `clip` or its `segment`; bottleneck tokens belong to the same.

    Raises:
        ArgumentError: no token, fewer than two layers, or an unknown `span`; on `attach`, more layers than block pairs,
            blocks of different width, with windows or with rotary positions.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyCLIP
        >>> backbone = AVPromptBackbone(TinyCLIP("none"), "separate", MBT(layers=2))
        >>> all(parameter.requires_grad for parameter in backbone.parameters())
        True
    """

    def __init__(self, num_tokens: Count = 4, layers: Count = 4, span: Literal["clip", "segment"] = "clip") -> None:
        super().__init__()
        if num_tokens < 1:
            raise ArgumentError("num_tokens", num_tokens, "at least 1", "Choose another value.")
        if layers < 2:
            raise ArgumentError(
                "layers",
                layers,
                "at least 2: what one layer writes the next one reads",
                "Use avprompt.methods.FineTuning for two encoders without exchange.",
            )
        check_choice("span", span, SPANS)
        self.num_tokens, self.layers, self.span = num_tokens, layers, span

    def trains(self, name: str, behind: int) -> bool:
        return True

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        specs = [spec for site in sites for spec in site] + lone["visual"] + lone["audio"]
        if not all(spec.plain for spec in specs):
            raise ArgumentError(
                "encoders",
                "blocks with windows or rotary positions",
                "plain vision transformers with tables of positions",
                "Use TimmViT or CLIP, and AST.",
            )
        if len(dims := {spec.dim for spec in specs}) > 1:
            raise ArgumentError(
                "encoders",
                f"blocks of {sorted(dims)} channels",
                "encoders of one width",
                "The bottleneck tokens pass through both.",
            )
        if self.layers > len(sites):
            raise ArgumentError(
                "layers", self.layers, f"at most {len(sites)}, the block pairs", "Choose another value."
            )
        self.first = len(sites) - self.layers
        self.tokens = nn.Parameter(nn.init.normal_(torch.empty(self.num_tokens, dims.pop()), std=0.02))

    def _wide(self, x: Tensor, state: PromptState) -> Tensor:
        """(B*T, N, C) -> what attends to itself, (B, T*N, C) of a clip."""
        return state.clips(x).flatten(1, 2) if self.span == "clip" else x

    def lone(
        self, modality: Literal["visual", "audio"], index: int, block: FrozenBlock, tokens: Tensor, state: PromptState
    ) -> Tensor:
        return block(self._wide(tokens, state)).view(tokens.shape)

    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        wide = self._wide(visual, state), self._wide(audio, state)
        if site >= self.first:
            shared = state.memory.get("bottleneck", self.tokens.expand(len(wide[0]), -1, -1))
            wide = tuple(torch.cat((x, shared.to(x.dtype)), dim=1) for x in wide)
        wide = visual_block(wide[0]), audio_block(wide[1])
        if site >= self.first:
            state.memory["bottleneck"] = (wide[0][:, -self.num_tokens :] + wide[1][:, -self.num_tokens :]) / 2
            wide = tuple(x[:, : -self.num_tokens] for x in wide)
        return wide[0].reshape(visual.shape), wide[1].reshape(audio.shape)
