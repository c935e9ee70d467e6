"""Low-rank changes of linear layers: LoRA (Hu et al., ICLR 2022), and CoLA, whose second change depends on the other
modality (Suharitdamrong et al., ICML 2026)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import LAYERS, BlockSpec, Edits, FrozenBlock
from avprompt.errors import ArgumentError
from avprompt.methods.base import PromptMethod, PromptState, mean_or_class_token
from avprompt.ranges import Count, Number, Positive

ATTENTION, MLP = LAYERS[:3], LAYERS[4:]


class LowRank(nn.Module):
    """alpha / r B A x, with B zero at the start: one layer's change.

    Args:
        inputs: channels in.
        outputs: channels out.
        rank: r.
        scale: alpha / r.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.empty(rank, inputs)), nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return F.linear(F.linear(x, self.down), self.up) * self.scale


class CrossLowRank(nn.Module):
    """lambda B Phi(c) A x: the r x r matrix Phi is made from a vector c of the other modality.

    Phi(c) = LN(reshape(W_2 LN(GELU(W_1 c)))); B is zero at the start, lambda is trained.

    Args:
        inputs: channels in.
        outputs: channels out.
        other: channels of c.
        rank: r.
        reduction: channels of c over those of the hidden layer.
        scale: lambda at the start.
    """

    def __init__(self, inputs: int, outputs: int, other: int, rank: int, reduction: int, scale: float) -> None:
        super().__init__()
        self.low = LowRank(inputs, outputs, rank, 1.0)
        hidden = other // reduction
        self.core = nn.Sequential(
            nn.Linear(other, hidden),
            nn.GELU(),
            nn.LayerNorm(hidden, eps=1e-6),
            nn.Linear(hidden, rank * rank),
            nn.Unflatten(-1, (rank, rank)),
            nn.LayerNorm((rank, rank), eps=1e-6),
        )
        self.scale = nn.Parameter(torch.full((1,), scale))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """x (B*T, ..., inputs), c (B*T, other) -> (B*T, ..., outputs)."""
        low = F.linear(x, self.low.down)
        mixed = low.flatten(1, -2) @ self.core(other).transpose(1, 2).to(low.dtype)
        return F.linear(mixed.view(low.shape), self.low.up) * self.scale


class Layer(nn.Module):
    """The changes of one linear layer.

    Args:
        own: the change that reads the layer's input alone.
        cross: the change that reads the other modality too, or `None`.
    """

    def __init__(self, own: LowRank, cross: CrossLowRank | None) -> None:
        super().__init__()
        self.own, self.cross = own, cross


class LoRA(PromptMethod):
    """Adds low-rank changes to linear layers of every block of both encoders; with `cross`, it is CoLA.

    LoRA changes a layer's output by alpha / r B A x. CoLA adds lambda B' Phi(c) A' x, where Phi is made from a vector c
    of the other modality: its class token, or the mean of its tokens where there is none (our choice). It follows the
    other side through the block pair: queries, keys and values read the tokens before the block, the output projection
    the mixed values before the other side's own projection, the MLP the tokens after attention. Blocks without a
    partner are changed by LoRA alone, as in the published code.

    Args:
        rank: r.
        alpha: the scale of LoRA's change times r.
        cross: whether the other modality is read.
        reduction: of the hidden layer that makes Phi; the published code has 16 for AVE and 2 for AVS.
        scale: lambda at the start.
        layers: which linear layers are changed, of q, k, v, proj, fc1 and fc2.

    Raises:
        ArgumentError: no layer or an unknown one, a rank below 1; on `attach`, a hidden layer without channels.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyCLIP
        >>> for cross in (False, True):
        ...     backbone = AVPromptBackbone(TinyCLIP("none"), "shared", LoRA(rank=4, cross=cross))
        ...     print(sum(p.numel() for p in backbone.prompts.parameters()))
        55296
        146064
    """

    identity_at_start = True

    def __init__(
        self,
        rank: Count = 16,
        alpha: Positive = 8,
        cross: bool = False,
        reduction: Count = 16,
        scale: Number = 0.1,
        layers: tuple[str, ...] = LAYERS,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ArgumentError("rank", rank, "at least 1", "Use avprompt.methods.NoPrompts for none.")
        if not layers or not set(layers) <= set(LAYERS):
            raise ArgumentError("layers", list(layers), f"some of {', '.join(LAYERS)}", "Correct it.")
        self.rank, self.alpha, self.cross, self.reduction, self.scale = rank, alpha, cross, reduction, scale
        self.layers = tuple(layers)

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        self.sites = sites
        self.paired = nn.ModuleDict(
            {
                "visual": nn.ModuleList(self._block(v, a if self.cross else None) for v, a in sites),
                "audio": nn.ModuleList(self._block(a, v if self.cross else None) for v, a in sites),
            }
        )
        self.unpaired = nn.ModuleDict(
            {side: nn.ModuleList(self._block(spec, None) for spec in specs) for side, specs in lone.items()}
        )

    def _block(self, spec: BlockSpec, other: BlockSpec | None) -> nn.ModuleDict:
        if other is not None and not 1 <= self.reduction <= other.dim:
            raise ArgumentError(
                "reduction", self.reduction, f"1 to {other.dim}, the channels of the other modality", "Correct it."
            )
        made = {}
        for name in self.layers:
            sizes = spec.linear(name)
            cross = None if other is None else CrossLowRank(*sizes, other.dim, self.rank, self.reduction, self.scale)
            made[name] = Layer(LowRank(*sizes, self.rank, self.alpha / self.rank), cross)
        return nn.ModuleDict(made)

    @staticmethod
    def _edits(changes: nn.ModuleDict, names: tuple[str, ...], other: Tensor | None) -> Edits:
        def edit(layer: Layer) -> Callable[[Tensor], Tensor]:
            if layer.cross is None:
                return layer.own
            return lambda x: layer.own(x) + layer.cross(x, other)

        return {name: edit(changes[name]) for name in names if name in changes}

    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        blocks, changes = (visual_block, audio_block), [self.paired[side][site] for side in ("visual", "audio")]

        def edits(names: tuple[str, ...], tokens: list[Tensor]) -> list[Edits]:
            seen = [vector(x, spec) for x, spec in zip(tokens, self.sites[site])] if self.cross else [None, None]
            return [self._edits(own, names, other) for own, other in zip(changes, seen[::-1])]

        tokens = [visual, audio]
        mixed = [block.mix_values(x, edit) for block, x, edit in zip(blocks, tokens, edits(ATTENTION, tokens))]
        tokens = [
            x + block.project_out(y, edit) for block, x, y, edit in zip(blocks, tokens, mixed, edits(("proj",), mixed))
        ]
        visual, audio = (x + block.mlp(x, edit) for block, x, edit in zip(blocks, tokens, edits(MLP, tokens)))
        return visual, audio

    def lone(self, modality: str, index: int, block: FrozenBlock, tokens: Tensor, state: PromptState) -> Tensor:
        changes = self.unpaired[modality][index]
        tokens = tokens + block.attention(tokens, self._edits(changes, LAYERS[:4], None))
        return tokens + block.mlp(tokens, self._edits(changes, MLP, None))


def vector(tokens: Tensor, spec: BlockSpec) -> Tensor:
    """Tokens (B*T, N, C), or values in windows (B*T, windows, n, C) -> (B*T, C): class token or mean."""
    return mean_or_class_token(tokens, spec) if tokens.ndim == 3 else tokens.flatten(1, 2).mean(1)
