r"""Mettle-like: learned meta-tokens read every layer of two frozen encoders, without a graph through them.

Not a reproduction. Of Mettle (TPAMI 2025) the abstract and an overview were available, and neither code
nor a size: each layer's tokens X are distilled into K meta-tokens along two paths, no gradient passes the encoders, the
meta-tokens of all layers are averaged for classification, and for segmentation those of the last layer guide the
features of earlier ones. The sizes and the inside of both paths are this suite's:

    read    M + softmax(M W_q (LN(X) W_k)^T / sqrt(d)) LN(X) W_v W_o     cross attention, d = D / 8
    adapt     + up gelu down LN(mean X)                                  zero at the start, added to every meta-token
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.errors import ArgumentError, check_choice
from avprompt.features import AVFeatures
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.ranges import Count

SIDES = ("visual", "audio")
LAYERS = ("all", "last")


def reduced(dim: int, reduction: int) -> int:
    """Width of a path beside a layer of `dim` channels.

    Raises:
        ArgumentError: sizes that do not divide.
    """
    if reduction < 1 or dim % reduction:
        raise ArgumentError("reduction", reduction, f"a divisor of {dim} channels", "Choose another value.")
    return dim // reduction


def read_tokens(queries: Tensor, x: Tensor, norm: nn.LayerNorm, key: nn.Linear, value: nn.Linear) -> Tensor:
    """softmax(queries (LN(x) W_k)^T / sqrt(d)) LN(x) W_v: a few learned queries read the tokens of a layer.

    Keys and values are never built: W_k moves to the queries, W_v behind the sum over tokens. What the backward pass
    keeps is one normed copy of the layer's tokens.

    Args:
        queries: (K, d), projected.
        x: (B*T, N, D).
        norm: of D channels.
        key: D -> d, without bias.
        value: D -> d, likewise.

    Returns:
        (B*T, K, d).
    """
    normed = F.layer_norm(x, x.shape[-1:], eps=norm.eps)
    reading = (queries @ key.weight) * norm.weight * key.out_features**-0.5
    # the norm's bias adds the same to all scores of a query, and the weights of a sum over tokens sum to one
    attention = torch.softmax(reading.to(normed.dtype) @ normed.transpose(1, 2), dim=-1).to(normed.dtype)
    return value(attention @ normed * norm.weight + norm.bias)


class Reader(nn.Module):
    """Distils the tokens of one layer into meta-tokens, which are projected to the encoder's output width.

    Args:
        dim: channels D of the layer's tokens.
        tokens: number K of meta-tokens.
        reduction: D over the width d of both paths.

    Raises:
        ArgumentError: sizes that do not divide.
    """

    def __init__(self, dim: int, tokens: int, reduction: int) -> None:
        super().__init__()
        width = reduced(dim, reduction)
        self.tokens = nn.Parameter(0.02 * torch.randn(tokens, dim))
        self.norm, self.norm_mean = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, width, bias=False) for _ in range(3))
        self.out, self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B*T, N, D) -> meta-tokens (B*T, K, D)."""
        seen = self.out(read_tokens(self.query(self.tokens), x, self.norm, self.key, self.value))
        adapted = self.up(F.gelu(self.down(self.norm_mean(x.mean(1)))))
        return self.tokens + seen + adapted.unsqueeze(1)


class Injection(nn.Module):
    """Tokens of an earlier stage attend over meta-tokens of both modalities; zero at the start.

    Args:
        dim: channels of the stage.
        metas: channels of the visual and of the audio meta-tokens.
        reduction: channels of the stage over the width of the attention.

    Raises:
        ArgumentError: sizes that do not divide.
    """

    def __init__(self, dim: int, metas: tuple[int, int], reduction: int) -> None:
        super().__init__()
        width = reduced(dim, reduction)
        self.visual, self.audio, self.norm = nn.Linear(metas[0], dim), nn.Linear(metas[1], dim), nn.LayerNorm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, width, bias=False) for _ in range(3))
        self.out, self.gate = nn.Linear(width, dim), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, visual: Tensor, audio: Tensor) -> Tensor:
        """Tokens (B*T, N, C) and meta-tokens (B*T, K, D) of both modalities -> tokens (B*T, N, C)."""
        metas = torch.cat((self.visual(visual), self.audio(audio)), dim=1)
        read = F.scaled_dot_product_attention(self.query(self.norm(x)), self.key(metas), self.value(metas))
        return x + self.gate * self.out(read)


class MettleLike(PromptMethod):
    """Meta-tokens beside frozen encoders: a reading of Mettle, and not a reproduction (see the module).

    The encoders run without a graph, so that training keeps a copy of each layer's tokens and nothing from inside the
    blocks. Tokens stay what the frozen encoders give; the vectors of a segment are means of projected meta-tokens.

    Args:
        num_tokens: number K of meta-tokens of a layer.
        reduction: channels of a layer over the width of both paths.
        layers: read `all` layers, those without a partner too, or the `last` of each encoder (segmentation).
        inject: the meta-tokens of the last layers guide the visual stages before the last (segmentation).

    Raises:
        ArgumentError: no meta-token, or unknown `layers`; on `attach`, sizes that do not divide, or `inject` with a
            visual encoder of one stage.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> backbone = AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none"), MettleLike(num_tokens=2))
        >>> batch = {"frames": torch.zeros(1, 2, 3, 64, 64), "audio": torch.zeros(1, 2, 16000)}
        >>> features = backbone(batch)
        >>> features.visual.requires_grad, features.visual_tokens.requires_grad
        (True, False)
    """

    gradient = "method"
    has_adapters = True
    identity_at_start = True

    def __init__(
        self, num_tokens: Count = 4, reduction: Count = 8, layers: Literal["all", "last"] = "all", inject: bool = False
    ) -> None:
        super().__init__()
        if num_tokens < 1:
            raise ArgumentError("num_tokens", num_tokens, "at least 1", "Choose another value.")
        check_choice("layers", layers, LAYERS)
        self.num_tokens, self.reduction, self.layers, self.inject = num_tokens, reduction, layers, inject

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        for side, modality in enumerate(SIDES):
            paired, width = [site[side] for site in sites], sites[-1][side].dim
            single = lone[modality] if self.layers == "all" else []
            self.add_module(f"{modality}_lone", self._readers(single))
            self.add_module(modality, self._readers(paired if self.layers == "all" else paired[-1:]))
            # the last layer alone has the output's width, and segmentation reads no visual vector
            dims = [spec.dim for spec in (*paired, *single)] if self.layers == "all" else []
            self.add_module(
                f"{modality}_project", nn.ModuleDict({str(dim): nn.Linear(dim, width) for dim in dict.fromkeys(dims)})
            )
        stages = {spec.stage: spec.dim for spec in (*(visual for visual, _ in sites), *lone["visual"])}
        earlier = [stages[stage] for stage in sorted(stages)][:-1] if self.inject else []
        if self.inject and not earlier:
            raise ArgumentError("inject", True, "a visual encoder of several stages, such as Swin", "Set it to false.")
        metas = sites[-1][0].dim, sites[-1][1].dim
        self.injections = nn.ModuleList(Injection(dim, metas, self.reduction) for dim in earlier)

    def _readers(self, specs: list[BlockSpec]) -> nn.ModuleList:
        return nn.ModuleList(Reader(spec.dim, self.num_tokens, self.reduction) for spec in specs)

    def _read(self, modality: str, reader: Reader, tokens: Tensor, state: PromptState) -> None:
        """Add the projected meta-tokens of a layer to the mean of all, and keep them for `finish`."""
        metas, count = state.part(reader, tokens), len(getattr(self, modality)) + len(getattr(self, f"{modality}_lone"))
        project = getattr(self, f"{modality}_project")
        seen = (project[str(metas.shape[-1])](metas) if self.layers == "all" else metas).mean(1) / count
        before = state.memory.get(modality)
        state.memory[modality] = seen if before is None else before + seen
        state.memory[f"{modality}_metas"] = metas

    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        visual, audio = visual_block(visual), audio_block(audio)
        if self.layers == "all":
            for modality, tokens in zip(SIDES, (visual, audio)):
                self._read(modality, getattr(self, modality)[site], tokens, state)
        return visual, audio

    def lone(
        self, modality: Literal["visual", "audio"], index: int, block: FrozenBlock, tokens: Tensor, state: PromptState
    ) -> Tensor:
        tokens = block(tokens)
        if self.layers == "all":
            self._read(modality, getattr(self, f"{modality}_lone")[index], tokens, state)
        return tokens

    def pool(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        """The mean of all layers' meta-tokens, each projected to the encoder's output width, or of the last layer's."""
        if self.layers == "last":
            for modality, tokens in zip(SIDES, (visual, audio)):
                self._read(modality, getattr(self, modality)[0], tokens, state)
        return state.memory["visual"], state.memory["audio"]

    def finish(self, features: AVFeatures, state: PromptState) -> AVFeatures:
        """The pyramid with the stages before the last guided by the meta-tokens of the last layers."""
        if not self.injections:
            return features
        metas = state.memory["visual_metas"], state.memory["audio_metas"]
        guided = [
            state.clips(inject(stage.flatten(0, 1), *metas)) for inject, stage in zip(self.injections, features.pyramid)
        ]
        return replace(features, pyramid=[*guided, *features.pyramid[len(guided) :]])
