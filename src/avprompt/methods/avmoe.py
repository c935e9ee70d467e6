r"""AVMoE: a router mixes cross-modal and unimodal adapters at every block pair (Cheng et al., NeurIPS 2024).

The walk is DG-SCT's, with a mixture of experts in the place of each adapter:

      own x ────┬── mean ──┐
                │          { router } -- w (E,) for each segment --┐
      other u ──┼─{ map p }── mean                                 │
                │    └─ { cross-modal experts: latent tokens, bottleneck } * w ──(+)── added to x
                └────── { unimodal experts: bottleneck } ─────────── * w ──┘

The mixture is dense: every expert runs. A cross-modal expert is the adapter of LAVISH on DG-SCT's prompt map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.errors import ArgumentError, check_choice
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.methods.caste import CASTE
from avprompt.methods.dgsct import Bottleneck, PromptMap, read_latent
from avprompt.precision import wide
from avprompt.ranges import Count, Natural, NonNegative

#: what a unimodal expert reads before its bottleneck
UnimodalAttention = Literal["none", "tokens", "latents", "frames_released"]


class Expert(Bottleneck):
    """One adapter of a mixture.

    Args:
        dim: channels C of the tokens that it changes.
        kind: `cross`, or what a unimodal expert does first, see `AVMoE`.
        num_tokens: K latent tokens, of `cross` and `latents`.
        reduction: C over the width of the bottleneck.
        groups: channel groups of the bottleneck.
        gated: scalar gate of the output, zero at the start.
        batch_norm: batch norm in the bottleneck.
        relu: activation in the bottleneck.

    Raises:
        ArgumentError: sizes that do not divide.
    """

    heads, dropout = 4, 0.2  # of `frames_released`

    def __init__(
        self,
        dim: int,
        kind: UnimodalAttention | Literal["cross"],
        *,
        num_tokens: int,
        reduction: int,
        groups: int,
        gated: bool,
        batch_norm: bool,
        relu: bool,
    ) -> None:
        super().__init__()
        self.kind = kind
        if kind in ("cross", "latents"):
            self.tokens = nn.Parameter(torch.rand(num_tokens, dim))
        if kind in ("cross", "latents", "tokens"):
            self.token_gate = nn.Parameter(torch.zeros(1))
        if kind == "frames_released":
            if dim % self.heads:
                raise ArgumentError(
                    "unimodal_attention",
                    f"frames_released with {dim} channels",
                    f"a multiple of its {self.heads} heads",
                    "Use latents.",
                )
            self.attention = nn.MultiheadAttention(dim, self.heads, self.dropout)
        self.add_bottleneck(dim, reduction, groups, "after_norm" if gated else None, batch_norm, relu=relu)

    def forward(self, x: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """x (B*T, N, C), and what latent tokens (K, C) are with what they read from the prompt map -> (B*T, N, C)."""
        if self.kind in ("cross", "latents"):
            latent = read(self.tokens) if self.kind == "cross" else self.tokens + self._read(x)
            x = read_latent(x, latent, self.token_gate)
        elif self.kind == "tokens":
            attention = torch.softmax(x @ x.transpose(1, 2), dim=-1)
            x = torch.baddbmm(x, attention.transpose(1, 2).to(x.dtype), (self.token_gate * x).to(x.dtype))
        elif self.kind == "frames_released":
            x = self.attention(x, x, x, need_weights=False)[0]
        return self.bottleneck(x)

    def _read(self, x: Tensor) -> Tensor:
        """Latent tokens attend over the modality's own tokens (B*T, N, C): (B*T, K, C)."""
        return torch.softmax(self.tokens @ x.transpose(1, 2), dim=-1).to(x.dtype) @ x


class Mixture(nn.Module):
    """The experts that change one modality's tokens in one step of one block pair, and their router.

    Args:
        own: block whose tokens are changed.
        other: block of the other modality.
        cross_experts: number E_c of cross-modal experts.
        unimodal_experts: number E_u of unimodal ones.
        unimodal_attention: see `AVMoE`.
        unimodal_relu: see `AVMoE`.
        router_noise: see `AVMoE`.
        num_tokens: see `Expert`, as for what follows.
        reduction: see there.
        groups: see there.
        gated: see there.
        batch_norm: see there.
    """

    def __init__(
        self,
        own: BlockSpec,
        other: BlockSpec,
        *,
        cross_experts: int,
        unimodal_experts: int,
        unimodal_attention: UnimodalAttention,
        unimodal_relu: bool,
        router_noise: float,
        num_tokens: int,
        reduction: int,
        groups: int,
        gated: bool,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.noise, dim = router_noise, own.dim
        self.map = PromptMap(own, other, num_tokens)
        kinds: list[Any] = ["cross"] * cross_experts + [unimodal_attention] * unimodal_experts
        self.experts = nn.ModuleList(
            Expert(
                dim,
                kind,
                num_tokens=num_tokens,
                reduction=reduction,
                groups=groups,
                gated=gated,
                batch_norm=batch_norm,
                relu=kind == "cross" or unimodal_relu,
            )
            for kind in kinds
        )
        self.router = nn.Sequential(
            nn.Linear(2 * dim, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, len(kinds))
        )

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """x (B*T, N, C), other (B*T, M, D) -> what is added to x (B*T, N, C), and the experts' weights (B*T, E)."""
        logits = self.router(torch.cat((x.mean(1), self.map.mean(other)), dim=-1))
        if self.noise and self.training:
            logits = logits + self.noise * torch.randn_like(logits)
        weights = torch.softmax(logits, dim=-1)

        def read(latent: Tensor) -> Tensor:
            return self.map.read(latent, other)[0]

        added = sum(weights[:, place, None, None] * expert(x, read) for place, expert in enumerate(self.experts))
        return added, weights


class AVMoE(PromptMethod):
    """Mixtures of cross-modal and unimodal adapters; the defaults are the authors' AVE network at every block pair.

    The authors' networks differ from task to task, see the fragments `avmoe_*`. Their S4 network attends over the
    frames of all clips of a batch (`frames_released`), so that what it predicts for a clip depends on the other clips.

    Args:
        cross_experts: number E_c of cross-modal experts.
        unimodal_experts: number E_u of unimodal experts.
        num_tokens: K latent tokens of an expert.
        reduction: C over the width of the bottleneck.
        groups: channel groups of the bottleneck.
        batch_norm: batch norm in the bottleneck (released AVE: yes, the other tasks: no).
        audio_gate: whether audio experts have the gate of visual ones, zero at the start (released S4, MS3, AVQA: no).
        unimodal_attention: what a unimodal expert reads before its bottleneck: `none` (released AVE, AVQA); `tokens`,
            all tokens of its segment, N x N weights a segment, of which those that a token gives (not those that it
            reads with) sum to one (released AVVP); `latents`, its own tokens through latent ones (released MS3);
            `frames_released`, the tokens at its place in all frames of the batch (released S4), a defect that mixes
            clips.
        unimodal_relu: activation in the unimodal bottleneck, which the released code builds and never calls.
        stages: indices of the stages with experts (released AVE, MS3: 0 and 2); `None` is all.
        balance: add the loss `balance` of each mixture, KL(uniform || mean weights of the experts over the batch). The
            released one is E times as large, because it compares with a distribution that sums to E.
        router_noise: standard deviation of the noise on the router's logits in training (released S4, MS3: 0.01).
        caste: enrich tokens at the first block pair of each stage, see `CASTE`; where the stage has experts, they alone
            read the enriched tokens, as released.
        gamma: strength of the head's temporal gates, see `FeatureSource`; 0 is off.

    Raises:
        ArgumentError: fewer than two experts, nothing to route between; an unknown `unimodal_attention`; on `attach`,
            sizes that do not divide, or a stage that has no block pair.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> method = AVMoE(num_tokens=4, reduction=4)
        >>> backbone = AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none"), method)
        >>> batch = {"frames": torch.zeros(1, 2, 3, 64, 64), "audio": torch.zeros(1, 2, 16000)}
        >>> weights = backbone(batch, maps=True).tables["router@0_visual_p1"]
        >>> weights.shape, bool(torch.allclose(weights.sum(-1), torch.ones(1, 2)))
        (torch.Size([1, 2, 2]), True)
    """

    has_adapters = True

    def __init__(
        self,
        cross_experts: Natural = 1,
        unimodal_experts: Natural = 1,
        num_tokens: Count = 32,
        reduction: Count = 8,
        groups: Count = 2,
        batch_norm: bool = True,
        audio_gate: bool = True,
        unimodal_attention: UnimodalAttention = "none",
        unimodal_relu: bool = False,
        stages: list[Natural] | None = None,
        balance: bool = False,
        router_noise: NonNegative = 0.0,
        caste: bool = False,
        gamma: NonNegative = 0.1,
    ) -> None:
        super().__init__()
        if min(cross_experts, unimodal_experts) < 0 or cross_experts + unimodal_experts < 2:
            raise ArgumentError(
                "cross_experts, unimodal_experts",
                f"{cross_experts}, {unimodal_experts}",
                "two experts or more in all",
                "One alone is an adapter without a router: use DGSCT.",
            )
        check_choice("unimodal_attention", unimodal_attention, get_args(UnimodalAttention))
        self.experts: dict[str, Any] = {
            "cross_experts": cross_experts,
            "unimodal_experts": unimodal_experts,
            "num_tokens": num_tokens,
            "reduction": reduction,
            "groups": groups,
            "batch_norm": batch_norm,
            "unimodal_attention": unimodal_attention,
            "unimodal_relu": unimodal_relu,
            "router_noise": router_noise,
        }
        self.audio_gate, self.stages, self.balance, self.gamma = audio_gate, stages, balance, gamma
        self.caste = caste
        self.table_columns = {
            "router": tuple(
                f"{kind} expert {number + 1}"
                for kind, count in (("cross-modal", cross_experts), ("unimodal", unimodal_experts))
                for number in range(count)
            ),
            "agreement": ("over space", "over time"),
        }

    @property
    def identity_at_start(self) -> bool:
        return self.audio_gate

    @property
    def temporal_gates(self) -> tuple[float, float]:
        return self.gamma, self.gamma

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        found = [visual.stage for visual, _ in sites]
        if self.stages is not None and (not self.stages or set(self.stages) - set(found)):
            raise ArgumentError(
                "stages", self.stages, f"some of {sorted(set(found))}", "Name stages that have block pairs."
            )
        chosen = [site for site, stage in enumerate(found) if self.stages is None or stage in self.stages]
        self.places = {site: place for place, site in enumerate(chosen)}
        for step in ("p1", "p2"):
            for modality, side in (("visual", 0), ("audio", 1)):
                self.add_module(
                    f"{modality}_{step}",
                    nn.ModuleList(
                        Mixture(
                            sites[site][side], sites[site][1 - side], gated=side == 0 or self.audio_gate, **self.experts
                        )
                        for site in chosen
                    ),
                )
        firsts = [site for site, stage in enumerate(found) if self.caste and stage not in found[:site]]
        self.enriched = {site: place for place, site in enumerate(firsts)}
        for modality, side in (("visual", 0), ("audio", 1)):
            self.add_module(
                f"{modality}_caste", nn.ModuleList(CASTE(sites[site][side], sites[site][1 - side]) for site in firsts)
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
        added = self._enrich(site, visual, audio, state)
        if site not in self.places:
            visual = visual + visual_block.attention(visual) + added[0]
            return visual + visual_block.mlp(visual), audio_block(audio) + added[1]
        to_visual, to_audio = self._adapt("p1", site, visual + added[0], audio + added[1], state)
        visual = visual + visual_block.attention(visual) + to_visual
        audio = audio_block(audio) + to_audio
        to_visual, to_audio = self._adapt("p2", site, visual, audio, state)
        return visual + visual_block.mlp(visual) + to_visual, audio + to_audio

    def _adapt(
        self, step: Literal["p1", "p2"], site: int, visual: Tensor, audio: Tensor, state: PromptState
    ) -> tuple[Tensor, ...]:
        """What p1 or p2 adds to both modalities (B*T, N, C)."""
        added = []
        for modality, own, other in (("visual", visual, audio), ("audio", audio, visual)):
            change, weights = state.part(getattr(self, f"{modality}_{step}")[self.places[site]], own, other)
            added.append(change)
            name = f"@{site}_{modality}_{step}"
            if self.balance:
                mean = wide(weights).mean(0)
                mean = mean.clamp_min(torch.finfo(mean.dtype).tiny)  # an expert's softmax may be zero
                state.losses[f"balance{name}"] = -math.log(len(mean)) - mean.log().mean()
            if state.wants_maps:
                state.tables[f"router{name}"] = state.clips(weights)
        return tuple(added)

    def _enrich(self, site: int, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor | int, ...]:
        """What `CASTE` adds to both modalities (B*T, N, C); 0 where it is not."""
        if site not in self.enriched:
            return 0, 0
        added = []
        for modality, own, other in (("visual", visual, audio), ("audio", audio, visual)):
            change, weights = state.part(
                getattr(self, f"{modality}_caste")[self.enriched[site]], own, other, state.segments
            )
            added.append(change)
            if state.wants_maps:
                state.tables[f"agreement@{site}_{modality}"] = state.clips(weights)
        return tuple(added)
