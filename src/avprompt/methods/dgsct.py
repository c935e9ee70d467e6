r"""DG-SCT: dual-guided spatial-channel-temporal attention (Duan et al., NeurIPS 2023).

At every block pair the adapters of each modality read the other modality twice, at step p1 (around attention) and at
step p2 (around the MLP):

      visual v ──┬─[ attention ]──(+)──┬─[ MLP ]──(+)──        [ ] frozen   { } trained
                 └─{ adapter v|a }─┘   └─{ adapter v|a }─┘
      audio  a ──┬─{ adapter a|v }─┐   ┌─{ adapter a|v }─┐     both adapters of a step read the
                 └─[ attention, MLP ]──(+)─────────────(+)──   tokens before either is written

The paper and the authors' two code bases are three networks: `DGSCT` is that of the code for the downstream tasks,
`DGSCTFewShot` that of the code for few-shot learning, pretraining and zero-shot transfer, `DGSCTPaper` that of
equations 1-7.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.errors import ArgumentError, check_choice
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.methods.lean import Adapt, ReadLatent, ReadMap, ReadMapAssociated, ReadTokens, lower, usable
from avprompt.precision import recurrent, wide
from avprompt.ranges import Count, NonNegative

#: where an adapter's scalar gate, zero at the start, stands
Gate = Literal["after_norm", "inside_norm"]
#: how an adapter sees the other modality: `PromptMap`, `BicubicMap`, or `PlainMap` with and without a layer
Map = Literal["conv", "bicubic", "linear", "none"]


class PromptMap(nn.Module):
    """The other modality's tokens in the shape of the adapted ones: p = (W_c u + b_c) F^T + b_F (paper, section 3.2).

    `W_c` is the paper's two-dimensional convolution, in the code a 1 x 1 convolution with tokens as channels; F is the
    linear projection. The map p (N, C) itself is large and used only through its mean, `R p^T` and `A p`. So F moves to
    the latent side of both, and W_c too where that needs less than half the multiplications (elsewhere it is slower in
    practice).

    Args:
        own: block whose tokens are adapted.
        other: block of the other modality.
        tokens: number K of latent tokens that attend over the map.
    """

    def __init__(self, own: BlockSpec, other: BlockSpec, tokens: int) -> None:
        super().__init__()
        n, m, c, d = own.tokens, other.tokens, own.dim, other.dim
        self.weight, self.bias = nn.Parameter(torch.empty(n, m)), nn.Parameter(torch.empty(n))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.uniform_(self.bias, -(m**-0.5), m**-0.5)
        self.project = nn.Linear(d, c)
        direct, associated = n * m * d + 2 * tokens * n * d, 2 * tokens * m * (n + d)
        self.associate = 2 * associated < direct

    def forward(self, other: Tensor) -> Tensor:
        """(B*T, M, D) -> the whole map (B*T, N, C)."""
        mapped = F.linear(other.transpose(1, 2), self.weight, self.bias)
        return self.project(mapped.transpose(1, 2))

    def mean(self, other: Tensor) -> Tensor:
        """(B*T, M, D) -> mean of the map over its N tokens, (B*T, C)."""
        return self.project(self.weight.mean(0) @ other + self.bias.mean())

    def read(self, latent: Tensor, other: Tensor, mean: bool = False) -> tuple[Tensor, Tensor | None]:
        """Latent tokens R (K, C) attend over the map.

        R b_F adds the same to all scores of a latent token, which the softmax does not see.

        Args:
            latent: (K, C).
            other: (B*T, M, D).
            mean: whether the mean of the map is asked for too.

        Returns:
            R + softmax_N(R p^T) p, (B*T, K, C), and what `mean` gives, (B*T, C), or `None`.
        """
        if usable() and len(other):
            function = ReadMapAssociated if self.associate else ReadMap
            project = self.project
            return function.apply(latent, lower(other), self.weight, self.bias, project.weight, project.bias, mean)
        projected = latent @ self.project.weight
        if self.associate:
            scores = (projected.to(other.dtype) @ other.transpose(1, 2)) @ self.weight.T
            attention = torch.softmax(scores + projected.sum(1, keepdim=True) * self.bias, dim=-1)
            seen = (attention.to(other.dtype) @ self.weight) @ other + (attention @ self.bias).unsqueeze(-1)
        else:
            mapped = F.linear(other.transpose(1, 2), self.weight, self.bias).transpose(1, 2)
            attention = torch.softmax(projected.to(mapped.dtype) @ mapped.transpose(1, 2), dim=-1)
            seen = attention.to(mapped.dtype) @ mapped
        return latent + self.project(seen), self.mean(other) if mean else None


class PlainMap(nn.Module):
    """No prompt map: the other modality's tokens as they are, or projected to the width of the adapted ones.

    Latent tokens attend over any number of tokens, so that the map of `PromptMap` to as many as the adapted ones is not
    needed.

    Args:
        own: block whose tokens are adapted.
        other: block of the other modality.
        project: whether there is a linear layer.

    Raises:
        ArgumentError: blocks of different width without a layer.
    """

    def __init__(self, own: BlockSpec, other: BlockSpec, project: bool = True) -> None:
        super().__init__()
        if own.dim != other.dim and not project:
            raise ArgumentError(
                "prompt_map",
                f"none, with blocks of {own.dim} and {other.dim} channels",
                "equal widths in every block pair",
                "Use prompt_map: linear, or one encoder for both modalities (`audio: shared`).",
            )
        self.project = nn.Linear(other.dim, own.dim) if project else nn.Identity()

    def forward(self, other: Tensor) -> Tensor:
        """(B*T, M, D) -> (B*T, M, C)."""
        return self.project(other)

    def mean(self, other: Tensor) -> Tensor:
        """(B*T, M, D) -> (B*T, C)."""
        return self(other).mean(1)

    def read(self, latent: Tensor, other: Tensor, mean: bool = False) -> tuple[Tensor, Tensor | None]:
        """See `PromptMap.read`."""
        p = self(other)
        if usable() and len(other):
            return ReadTokens.apply(latent, lower(p), mean)
        attention = torch.softmax(latent @ p.transpose(1, 2), dim=-1)
        return latent + attention @ p, p.mean(1) if mean else None


class BicubicMap(PlainMap):
    """The prompt map of the released S4 network: project, then resize the token grid (no convolution).

    Args:
        own: block whose tokens are adapted.
        other: block of the other modality.
    """

    def __init__(self, own: BlockSpec, other: BlockSpec) -> None:
        super().__init__(own, other)
        self.own, self.other = own.grid, other.grid

    def forward(self, other: Tensor) -> Tensor:
        """(B*T, M, D) -> (B*T, N, C)."""
        grid = self.project(other).transpose(1, 2).unflatten(2, self.other)
        return F.interpolate(wide(grid), self.own, mode="bicubic").flatten(2).transpose(1, 2)


class GroupedLinear(nn.Module):
    """Bias-free linear map over contiguous channel groups: the released 1 x 1 grouped convolution.

    Args:
        inputs: input channels.
        outputs: output channels.
        groups: number of groups.
    """

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, outputs // groups, inputs // groups))
        bound = (inputs // groups) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return F.linear(x, torch.block_diag(*self.weight))


def read_latent(x: Tensor, latent: Tensor, gate: Tensor) -> Tensor:
    """Tokens x (B*T, N, C) read latent ones (B*T, K, C): x + gate softmax(x R^T) R."""
    if usable() and len(x):
        return ReadLatent.apply(lower(x), latent, gate)
    attention = torch.softmax(x @ latent.transpose(1, 2), dim=-1)
    return torch.baddbmm(x, attention.to(x.dtype), (gate * latent).to(x.dtype))


class Bottleneck(nn.Module):
    """What every adapter of the LAVISH family ends with: x -> gate * LN(BN(up(relu(BN(down(LN(x))))))).

    A base class whose subclasses call `add_bottleneck` when they have built what comes before.
    """

    def add_bottleneck(
        self,
        dim: int,
        reduction: int,
        groups: int,
        gate: Gate | None,
        batch_norm: bool,
        norm_before: bool = True,
        relu: bool = True,
    ) -> None:
        """Build the parts.

        Args:
            dim: channels C.
            reduction: C over the width of the bottleneck.
            groups: channel groups of both linear maps.
            gate: scalar gate of the output, zero at the start, inside or outside of the last norm; `None` has none.
            batch_norm: batch norm after both linear maps.
            norm_before: layer norm before the first one.
            relu: activation between them.

        Raises:
            ArgumentError: sizes that do not divide.
        """
        if min(reduction, groups) < 1 or dim % reduction or dim // reduction % groups:
            raise ArgumentError(
                "reduction, groups",
                f"{reduction}, {groups}",
                f"divisors of {dim} channels and of the bottleneck",
                "Choose other values.",
            )
        width = dim // reduction
        self.gate_inside, self.relu = gate == "inside_norm", relu
        self.norm_before = nn.LayerNorm(dim) if norm_before else nn.Identity()
        self.down, self.up = GroupedLinear(dim, width, groups), GroupedLinear(width, dim, groups)
        self.bn_down = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        self.bn_up = nn.BatchNorm1d(dim) if batch_norm else nn.Identity()
        self.norm_after = nn.LayerNorm(dim)
        self.gate = None if gate is None else nn.Parameter(torch.zeros(1))

    #: the parts before the bottleneck, linear layers by the names that `lean.Adapt` knows
    guided: tuple[str, ...] = ()

    def lean(self, x: Tensor) -> bool:
        """Whether `adapt` may be called for tokens x."""
        return usable(self.bn_down, self.bn_up) and bool(x.numel())

    def adapt(
        self, x: Tensor, guide: Tensor | None = None, alpha: float = 0.0, beta: float = 0.0, gamma: float = 0.0
    ) -> tuple[Tensor, Tensor | None]:
        """All of an adapter but its latent tokens, see `lean.Adapt`: x (B*T, N, C), guide (B*T, C)."""
        before, norms = self.norm_before, (self.bn_down, self.bn_up)
        batch = isinstance(norms[0], nn.BatchNorm1d)
        x, p = lower(x), {}
        guided = () if guide is None else self.guided
        for name in (*guided, "norm_before", "down", "bn_down", "up", "bn_up", "norm_after"):
            for key, parameter in getattr(self, name).named_parameters():
                p[f"{name}.{key}"] = parameter
        if self.gate is not None:
            p["gate"] = self.gate
        settings = {
            "names": tuple(p),
            "alpha": alpha,
            "beta": beta,
            "gamma": gamma,
            "eps": getattr(before, "eps", 0.0),
            "after_eps": self.norm_after.eps,
            "relu": self.relu,
            "inside": self.gate_inside,
            "norms": norms,
            "training": batch and norms[0].training,
        }
        return Adapt.apply(x, None if guide is None else guide.to(x.dtype), settings, *p.values())

    def bottleneck(self, x: Tensor, channel: Tensor | None = None, spatial: Tensor | None = None) -> Tensor:
        """x (B*T, N, C) by channel (B*T or 1, 1, C) + spatial (B*T or 1, N or 1, 1) -> gated, normed (B*T, N, C)."""
        if channel is None and self.lean(x):
            return self.adapt(x)[0]
        before, norm = self.norm_before, self.norm_after
        x = before(x if channel is None else x * (channel + spatial))
        shape = x.shape
        x = self.bn_down(self.down(x.flatten(0, 1)))
        x = self.bn_up(self.up(F.relu(x) if self.relu else x)).view(shape)
        if self.gate is None:
            return norm(x)
        if self.gate_inside:
            return norm(self.gate * x)
        return F.layer_norm(x, norm.normalized_shape, self.gate * norm.weight, self.gate * norm.bias, norm.eps)


class ReleasedAdapter(Bottleneck):
    """One adapter of the authors' code: it changes a modality's tokens x (N, C) by the other's tokens u (M, D).

    Latent tokens, channel attention, spatial (frequency) attention, then a gated bottleneck. It keeps what the code has
    in deviation from the paper: ReLU on every projection, hidden width C/2, only the mean of the prompt map in the
    spatial attention, factor `alpha Mc + beta Ms + 1 - alpha`, and everything from the latent tokens to the bottleneck.
    Few-shot adapters add `gamma G` to that factor, a temporal gate G = sigmoid(linear(mean of the prompt map)) a
    segment. A component that is switched off has no parameters and leaves the rest of the factor as it is.

    Args:
        own: the block whose tokens are changed.
        other: the block of the other modality.
        channel: channel attention.
        spatial: spatial (frequency) attention.
        alpha: weight of channel attention.
        beta: weight of spatial attention.
        gamma: weight of the temporal gate; `None` has none.
        num_tokens: K latent tokens; 0 has none.
        reduction: C over the width of the bottleneck.
        groups: channel groups of the bottleneck.
        gate: scalar gate of the output, zero at the start, inside or outside of the last norm; `None` has none.
        batch_norm: batch norm in the bottleneck.
        norm_before: layer norm before the bottleneck.
        prompt_map: see `Map`.
        token_init: `uniform` in [0, 1), or `zeros`.

    Raises:
        ArgumentError: sizes that do not divide, an unknown map, a bicubic one between blocks with class tokens, or none
            between blocks of different width.
    """

    def __init__(
        self,
        own: BlockSpec,
        other: BlockSpec,
        *,
        channel: bool,
        spatial: bool,
        alpha: float,
        beta: float,
        gamma: float | None,
        num_tokens: int,
        reduction: int,
        groups: int,
        gate: Gate | None = "after_norm",
        batch_norm: bool = True,
        norm_before: bool = True,
        prompt_map: Map = "conv",
        token_init: Literal["uniform", "zeros"] = "uniform",
    ) -> None:
        super().__init__()
        c, half = own.dim, own.dim // 2
        check_choice("prompt_map", prompt_map, get_args(Map))
        if prompt_map == "bicubic" and (own.prefix or other.prefix):
            raise ArgumentError("prompt_map", "bicubic", "encoders without class tokens", "Use prompt_map: conv.")
        self.channel, self.spatial, self.alpha, self.beta = channel, spatial, alpha, beta
        self.temporal, self.gamma = gamma is not None, gamma
        self.guided = (
            *(("channel_guide", "channel_own", "squeeze", "excite") if channel else ()),
            *(("spatial_guide", "spatial_own", "score") if spatial else ()),
            *(("temporal_score",) if self.temporal else ()),
        )
        self.modulates = channel or spatial or self.temporal
        if num_tokens or self.modulates:
            self.map = (
                PromptMap(own, other, num_tokens)
                if prompt_map == "conv"
                else BicubicMap(own, other)
                if (prompt_map == "bicubic")
                else PlainMap(own, other, prompt_map == "linear")
            )
        self.tokens = None
        if num_tokens:
            init = torch.rand if token_init == "uniform" else torch.zeros
            self.tokens, self.token_gate = nn.Parameter(init(num_tokens, c)), nn.Parameter(torch.zeros(1))
        if channel:
            self.channel_guide, self.channel_own = nn.Linear(c, c), nn.Linear(c, c)
            self.squeeze, self.excite = nn.Linear(c, half), nn.Linear(half, c)
        if spatial:
            self.spatial_guide, self.spatial_own = nn.Linear(c, half), nn.Linear(c, half)
            self.score = nn.Linear(half, 1)
        if self.temporal:
            self.temporal_score = nn.Linear(c, 1)
        self.add_bottleneck(c, reduction, groups, gate, batch_norm, norm_before)

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (B*T, N, C), other (B*T, M, D) -> what is added to x (B*T, N, C), and spatial scores (B*T, N) or `None`."""
        mean = None
        if self.tokens is not None:
            latent, mean = self.map.read(self.tokens, other, self.modulates)
            x = read_latent(x, latent, self.token_gate)
        elif self.modulates:
            mean = self.map.mean(other)
        if self.lean(x):
            return self.adapt(x, mean, self.alpha, self.beta, self.gamma or 0.0)
        if not self.modulates:
            return self.bottleneck(x), None
        scale, scores = None, None
        channel, spatial = x.new_ones(1, 1, 1), x.new_zeros(1, 1, 1)
        if self.channel:
            # the map's mean is one vector a segment, so the mean over tokens moves inside the product
            joint = F.relu(self.channel_guide(mean)) * F.relu(self.channel_own(x)).mean(1)
            weights = torch.sigmoid(self.excite(F.relu(self.squeeze(joint)))).unsqueeze(1)
            scale, channel = weights + 1, self.alpha * weights + 1 - self.alpha
        if self.spatial:
            reader = (F.relu(self.spatial_guide(mean)) * self.score.weight).unsqueeze(-1)
            scores = F.relu(self.spatial_own(x if scale is None else x * scale)) @ reader + self.score.bias
            spatial = self.beta * torch.sigmoid(scores)
            scores = scores.squeeze(-1)
        if self.temporal:
            channel = channel + self.gamma * torch.sigmoid(self.temporal_score(mean)).unsqueeze(1)
        return self.bottleneck(x, channel, spatial), scores


class PaperAdapter(nn.Module):
    """Omega of the paper's equations 3, 4 and 6: x (N, C) weighed by the prompt map of the other modality.

    Args:
        own: the block whose tokens are weighed.
        other: the block of the other modality.
        channel: channel attention.
        spatial: spatial (frequency) attention.
        alpha: weight of channel attention.
        beta: weight of spatial attention.
        gated: whether the output has a scalar gate, zero at the start (a deviation: the equations have none).
    """

    hidden = 256  # d, section 3.3

    def __init__(
        self, own: BlockSpec, other: BlockSpec, channel: bool, spatial: bool, alpha: float, beta: float, gated: bool
    ) -> None:
        super().__init__()
        c = own.dim
        self.channel, self.spatial, self.alpha, self.beta = channel, spatial, alpha, beta
        if channel or spatial:
            self.map = PromptMap(own, other, 0)
        if channel:
            self.channel_guide, self.channel_own = nn.Linear(c, c), nn.Linear(c, c)
            self.squeeze, self.excite = nn.Linear(c, c // 2), nn.Linear(c // 2, c)
        if spatial:
            self.spatial_guide, self.spatial_own = nn.Linear(c, self.hidden), nn.Linear(c, self.hidden)
            self.score = nn.Linear(self.hidden, 1)
        self.gate = nn.Parameter(torch.zeros(1)) if gated else None

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (B*T, N, C), other (B*T, M, D) -> Omega (B*T, N, C), and spatial scores (B*T, N) or `None`."""
        factor, attended, scores = 1.0, x, None
        if self.channel:
            # linear projections: the mean over tokens may be taken first (equation 3)
            joint = self.channel_guide(self.map.mean(other)) * self.channel_own(x.mean(1))
            weights = torch.sigmoid(self.excite(F.relu(self.squeeze(joint)))).unsqueeze(1)
            attended, factor = (weights + 1) * x, factor + self.alpha * weights
        if self.spatial:
            scores = self.score(self.spatial_guide(self.map(other)) * self.spatial_own(attended))
            factor = factor + self.beta * torch.sigmoid(scores)
            scores = scores.squeeze(-1)
        x = factor * x
        return (x if self.gate is None else self.gate * x), scores


class PaperTemporalGate(nn.Module):
    """Equation 5: features of one modality -> RNN -> projection -> sigmoid, one gate a segment for the other.

    The paper leaves the RNN and its width open; here it is a GRU of width 256 over the means of the tokens.

    Args:
        dim: channels of the modality that the gate is computed from.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rnn, self.project = nn.GRU(dim, PaperAdapter.hidden, batch_first=True), nn.Linear(PaperAdapter.hidden, 1)

    def forward(self, features: Tensor, segments: int) -> Tensor:
        """(B*T, N, C) -> gate (B*T, 1, 1) in (0, 1)."""
        hidden, _ = recurrent(self.rnn, features.mean(1).unflatten(0, (-1, segments)))
        return torch.sigmoid(self.project(hidden)).flatten(0, 1).unsqueeze(-1)


class DualGuidance(PromptMethod):
    """Base class of the three networks of DG-SCT: two adapters for each block pair and modality, with switches.

    On the audio side `spatial` is frequency attention. In steps p1 and p2 each modality is changed by an adapter that
    reads the other modality's tokens.

    Args:
        spatial: spatial and frequency attention, the paper's M^vs and M^af.
        channel: channel attention, the paper's M^vc and M^ac.
        temporal: temporal gates, the paper's G^v and G^a.
        a2v: audio guides video; off, the visual encoder gets no adapter and no temporal gate.
        v2a: video guides audio, likewise.
        alpha: weight of channel attention.
        beta: weight of spatial attention.
        gamma: weight of the temporal gate.

    Raises:
        ArgumentError: both directions are off.
    """

    has_adapters = True
    #: whether adapters read tokens in the dtype of products under mixed precision
    lowers = True

    def __init__(
        self,
        spatial: bool = True,
        channel: bool = True,
        temporal: bool = True,
        a2v: bool = True,
        v2a: bool = True,
        alpha: NonNegative = 0.3,
        beta: NonNegative = 0.05,
        gamma: NonNegative = 0.1,
    ) -> None:
        super().__init__()
        if not (a2v or v2a):
            raise ArgumentError("a2v, v2a", "both false", "at least one direction", "Use avprompt.methods.NoPrompts.")
        self.spatial, self.channel, self.temporal = spatial, channel, temporal
        self.a2v, self.v2a, self.alpha, self.beta, self.gamma = a2v, v2a, alpha, beta, gamma

    @abc.abstractmethod
    def adapter(self, own: BlockSpec, other: BlockSpec, modality: Literal["visual", "audio"]) -> nn.Module:
        """The adapter of a modality's block `own`, which reads the tokens of `other`."""

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        for step in ("p1", "p2"):
            visual = [self.adapter(v, a, "visual") for v, a in sites] if self.a2v else []
            audio = [self.adapter(a, v, "audio") for v, a in sites] if self.v2a else []
            self.add_module(f"visual_{step}", nn.ModuleList(visual))
            self.add_module(f"audio_{step}", nn.ModuleList(audio))

    def adapt(self, step: Literal["p1", "p2"], site: int, visual: Tensor, audio: Tensor, state: PromptState) -> tuple:
        """What p1 or p2 adds to both modalities (B*T, N, C); 0 where a direction is off."""
        added: list = []
        if self.lowers:  # once for both adapters
            visual, audio = lower(visual), lower(audio)
        for name, own, other in (("visual", visual, audio), ("audio", audio, visual)):
            adapters = getattr(self, f"{name}_{step}")
            change, scores = state.part(adapters[site], own, other) if adapters else (0, None)
            added.append(change)
            if scores is not None and step == "p2" and site + 1 == len(adapters):
                state.memory[name] = torch.softmax(torch.tanh(wide(scores)), dim=-1)
        return tuple(added)

    def pool(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        """Class token or mean; `state.maps` gets softmax(tanh s) of the spatial scores s of the last block pair."""
        for name, spec in zip(("visual", "audio"), self.last) if state.wants_maps else ():
            if name in state.memory:
                state.maps[name] = state.clips(state.memory[name][:, spec.prefix :].unflatten(1, spec.grid))
        return super().pool(visual, audio, state)


class DGSCT(DualGuidance):
    """DG-SCT as the authors' code for the downstream tasks has it; the defaults are the AVE network's.

    The temporal module works on pooled features behind the encoders, so it lives in the task's head, which reads
    `temporal_gates`.

    Args:
        spatial: see `DualGuidance`.
        channel: see `DualGuidance`.
        temporal: see `DualGuidance`.
        a2v: see `DualGuidance`.
        v2a: see `DualGuidance`.
        alpha: see `DualGuidance`.
        beta: see `DualGuidance`.
        gamma: see `DualGuidance`.
        num_tokens: K latent tokens of an adapter; 0 leaves them out.
        reduction: C over the width of the bottleneck.
        groups: channel groups of the bottleneck.
        gate: zero-initialised scalar gate of an adapter: outside of the last norm, or inside (released S4, MS3).
        audio_gate: whether audio adapters have that gate too (released S4, MS3, AVQA: no).
        batch_norm: batch norm in the bottleneck (released AVE, AVVP: yes).
        norm_before: layer norm before the bottleneck (released S4, MS3: no).
        prompt_map: `conv`; `bicubic` as the released S4 network has it; `linear`, a projection alone; `none` between
            encoders of equal width.
        token_init: `uniform` in [0, 1), or `zeros` (released S4, MS3, AVQA: all tokens then stay identical).

    Raises:
        ArgumentError: both directions are off, or an unknown `prompt_map`; on `attach`, sizes that do not divide.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> backbone = AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none"), DGSCT(num_tokens=4, reduction=4))
        >>> len(backbone.prompts.visual_p1), backbone.prompts.identity_at_start
        (4, True)
    """

    def __init__(
        self,
        spatial: bool = True,
        channel: bool = True,
        temporal: bool = True,
        a2v: bool = True,
        v2a: bool = True,
        alpha: NonNegative = 0.3,
        beta: NonNegative = 0.05,
        gamma: NonNegative = 0.1,
        num_tokens: Count = 32,
        reduction: Count = 8,
        groups: Count = 2,
        gate: Gate = "after_norm",
        audio_gate: bool = True,
        batch_norm: bool = True,
        norm_before: bool = True,
        prompt_map: Map = "conv",
        token_init: Literal["uniform", "zeros"] = "uniform",
    ) -> None:
        super().__init__(spatial, channel, temporal, a2v, v2a, alpha, beta, gamma)
        self.num_tokens, self.reduction, self.groups = num_tokens, reduction, groups
        self.gate, self.audio_gate, self.batch_norm, self.norm_before = gate, audio_gate, batch_norm, norm_before
        check_choice("prompt_map", prompt_map, get_args(Map))
        self.prompt_map, self.token_init = prompt_map, token_init

    @property
    def identity_at_start(self) -> bool:
        return self.audio_gate or not self.v2a

    @property
    def temporal_gates(self) -> tuple[float, float]:
        return (self.gamma if self.temporal and self.a2v else 0.0), (self.gamma if self.temporal and self.v2a else 0.0)

    def adapter(self, own: BlockSpec, other: BlockSpec, modality: Literal["visual", "audio"]) -> ReleasedAdapter:
        gate = self.gate if modality == "visual" or self.audio_gate else None
        return ReleasedAdapter(
            own,
            other,
            channel=self.channel,
            spatial=self.spatial,
            alpha=self.alpha,
            beta=self.beta,
            gamma=None,
            num_tokens=self.num_tokens,
            reduction=self.reduction,
            groups=self.groups,
            gate=gate,
            batch_norm=self.batch_norm,
            norm_before=self.norm_before,
            prompt_map=self.prompt_map,
            token_init=self.token_init,
        )

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
        audio = audio_block(audio) + to_audio
        to_visual, to_audio = self.adapt("p2", site, visual, audio, state)
        return visual + visual_block.mlp(visual) + to_visual, audio + to_audio

    def pool(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        """The spatial maps of the last pair weigh the tokens; without spatial attention class token or mean."""
        plain = super().pool(visual, audio, state)
        pooled = [
            (state.memory[name].unsqueeze(1) @ wide(tokens)).squeeze(1) if name in state.memory else alone
            for name, tokens, alone in zip(("visual", "audio"), (visual, audio), plain)
        ]
        return pooled[0], pooled[1]


class DGSCTFewShot(DualGuidance):
    """DG-SCT as the authors' code for few-shot learning, pretraining and zero-shot transfer has it.

    The adapters are those of `DGSCT` with three differences: p1 reads the visual tokens after attention and the audio
    tokens after the whole block; every adapter has a temporal gate of its own (which the norm behind it cancels where
    channel and spatial attention are off); features are pooled as in plain CLIP and CLAP. The published settings are
    `alpha: 0.2, beta: 0.05` with `gamma: 0.01` (AVE's segments) or 0.05 (classification); the scripts for pretraining
    and zero-shot transfer ignore what they are given and use 0.3, 0.01 and 0.05.

    Args:
        spatial: see `DualGuidance`.
        channel: see `DualGuidance`.
        temporal: see `DualGuidance`.
        a2v: see `DualGuidance`.
        v2a: see `DualGuidance`.
        alpha: see `DualGuidance`.
        beta: see `DualGuidance`.
        gamma: see `DualGuidance`.
        num_tokens: see `DGSCT`.
        reduction: see `DGSCT`.
        groups: see `DGSCT`.

    Raises:
        ArgumentError: both directions are off; on `attach`, sizes that do not divide.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyCLAP, TinyCLIP
        >>> backbone = AVPromptBackbone(TinyCLIP("none"), TinyCLAP("none"), DGSCTFewShot(reduction=4))
        >>> len(backbone.prompts.audio_p2)
        4
    """

    identity_at_start = True

    def __init__(
        self,
        spatial: bool = True,
        channel: bool = True,
        temporal: bool = True,
        a2v: bool = True,
        v2a: bool = True,
        alpha: NonNegative = 0.2,
        beta: NonNegative = 0.05,
        gamma: NonNegative = 0.01,
        num_tokens: Count = 2,
        reduction: Count = 8,
        groups: Count = 2,
    ) -> None:
        super().__init__(spatial, channel, temporal, a2v, v2a, alpha, beta, gamma)
        self.num_tokens, self.reduction, self.groups = num_tokens, reduction, groups

    def adapter(self, own: BlockSpec, other: BlockSpec, modality: Literal["visual", "audio"]) -> ReleasedAdapter:
        return ReleasedAdapter(
            own,
            other,
            channel=self.channel,
            spatial=self.spatial,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma if self.temporal else None,
            num_tokens=self.num_tokens,
            reduction=self.reduction,
            groups=self.groups,
        )

    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        visual, audio = visual + visual_block.attention(visual), audio_block(audio)
        to_visual, to_audio = self.adapt("p1", site, visual, audio, state)
        visual, audio = visual + to_visual, audio + to_audio
        to_visual, to_audio = self.adapt("p2", site, visual, audio, state)
        return visual + visual_block.mlp(visual) + to_visual, audio + to_audio


class DGSCTPaper(DualGuidance):
    """DG-SCT as equations 1 to 7 of the paper have it.

    Args:
        spatial: see `DualGuidance`.
        channel: see `DualGuidance`.
        temporal: see `DualGuidance`; equations 5 and 7, in the last block pair.
        a2v: see `DualGuidance`.
        v2a: see `DualGuidance`.
        alpha: see `DualGuidance`.
        beta: see `DualGuidance`.
        gamma: see `DualGuidance`.
        gate: `none`, the equations, or `zero_scalar`, a scalar gate an adapter that lets the network start as the
            frozen one (a deviation; without it each of the equations' residuals doubles the features).

    Raises:
        ArgumentError: both directions are off.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none"), DGSCTPaper()).prompts.identity_at_start
        False
    """

    def __init__(
        self,
        spatial: bool = True,
        channel: bool = True,
        temporal: bool = True,
        a2v: bool = True,
        v2a: bool = True,
        alpha: NonNegative = 0.3,
        beta: NonNegative = 0.05,
        gamma: NonNegative = 0.1,
        gate: Literal["none", "zero_scalar"] = "none",
    ) -> None:
        super().__init__(spatial, channel, temporal, a2v, v2a, alpha, beta, gamma)
        self.gate = gate

    lowers = False  # its factor has no norm behind it

    @property
    def identity_at_start(self) -> bool:
        return self.gate != "none"

    def adapter(self, own: BlockSpec, other: BlockSpec, modality: Literal["visual", "audio"]) -> PaperAdapter:
        return PaperAdapter(own, other, self.channel, self.spatial, self.alpha, self.beta, self.gate != "none")

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        if self.temporal:
            self.visual_gate = PaperTemporalGate(sites[-1][1].dim) if self.a2v else None
            self.audio_gate_rnn = PaperTemporalGate(sites[-1][0].dim) if self.v2a else None

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
        if self.temporal and site + 1 == max(len(self.visual_p2), len(self.audio_p2)):
            # equations 5 and 7: the guided features of one modality gate those of the other
            from_audio, from_visual = (to_audio if self.v2a else audio), (to_visual if self.a2v else visual)
            if self.a2v:
                to_visual = to_visual * (1 + self.gamma * self.visual_gate(from_audio, state.segments))
            if self.v2a:
                to_audio = to_audio * (1 + self.gamma * self.audio_gate_rnn(from_visual, state.segments))
        return visual + visual_block.mlp(visual) + to_visual, audio + audio_block.mlp(audio) + to_audio
