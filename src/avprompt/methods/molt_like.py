r"""MoLT-like: latent tokens read the late layers of two frozen encoders, from their own and from the other modality.

Not a reproduction. Of MoLT (arXiv 2512.00115) an outline was available, and neither code nor a size: adapters within
and across modalities distil latent tokens from late layers alone, a router mixes both, a fusion module weighs the
layers, and a penalty keeps latent tokens apart. The sizes and the inside of each part are this suite's:

    tokens of layer l of both modalities --+-- {read own} * w_1 --+
                                           |                      (+)-- latents L_l -- mean, projection --{weigh}-- sum
                                           +-- {read other} * w_2-+                                      over layers
                                           +-- {router} w
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.errors import ArgumentError
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.methods.mettle_like import SIDES, read_tokens, reduced
from avprompt.precision import wide
from avprompt.ranges import Count


class Path(nn.Module):
    """Latent tokens read the tokens of one layer: softmax(L W_q (LN(X) W_k)^T / sqrt(d)) LN(X) W_v W_o.

    Args:
        dim: channels D of the latent tokens.
        source: channels of the tokens that they read.
        width: d.
    """

    def __init__(self, dim: int, source: int, width: int) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(source), nn.Linear(width, dim)
        self.query, self.key, self.value = (nn.Linear(size, width, bias=False) for size in (dim, source, source))

    def forward(self, latents: Tensor, x: Tensor) -> Tensor:
        """(K, D), (B*T, N, source) -> (B*T, K, D)."""
        return self.out(read_tokens(self.query(latents), x, self.norm, self.key, self.value))


class Distiller(nn.Module):
    """The latent tokens of one layer of one modality, both paths and their router.

    Args:
        dim: channels D of the layer's tokens.
        other: channels of the other modality's.
        tokens: number K of latent tokens.
        reduction: D over the width of the paths and of the router.

    Raises:
        ArgumentError: sizes that do not divide.
    """

    def __init__(self, dim: int, other: int, tokens: int, reduction: int) -> None:
        super().__init__()
        width = reduced(dim, reduction)
        self.tokens = nn.Parameter(0.02 * torch.randn(tokens, dim))
        self.own, self.across = Path(dim, dim, width), Path(dim, other, width)
        self.router = nn.Sequential(
            nn.LayerNorm(dim + other), nn.Linear(dim + other, width), nn.GELU(), nn.Linear(width, 2)
        )

    def forward(self, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B*T, N, D), (B*T, M, D') -> latent tokens (B*T, K, D), and the router's weights (B*T, 2)."""
        weights = torch.softmax(self.router(torch.cat((own.mean(1), other.mean(1)), dim=-1)), dim=-1)
        mixed = weights[:, 0, None, None] * self.own(self.tokens, own) + weights[:, 1, None, None] * self.across(
            self.tokens, other
        )
        return self.tokens + mixed, weights


def overlap(latents: Tensor) -> Tensor:
    """Mean squared cosine between different latent tokens (B*T, K, D) of a segment: 0 where they are orthogonal.

    >>> overlap(torch.eye(3).expand(2, 3, 3)), overlap(torch.ones(2, 3, 4))
    (tensor(0.), tensor(1.))
    """
    count, rows = latents.shape[1], F.normalize(wide(latents), dim=-1)
    apart = (rows @ rows.transpose(1, 2)).square() * (1 - torch.eye(count, device=rows.device))
    return apart.sum((1, 2)).mean() / max(1, count * (count - 1))


class MoLTLike(PromptMethod):
    """Latent tokens beside the late layers of frozen encoders: a reading of MoLT, and not a reproduction (see the
    module).

    The encoders run without a graph, as in `MettleLike`; their tokens stay what they are. The vectors of a segment are
    means of latent tokens, weighed over the layers.

    Args:
        num_tokens: number K of latent tokens of a layer.
        reduction: channels of a layer over the width of its paths.
        layers: how many of the last block pairs are read; `None` is the last third, rounded up.

    Raises:
        ArgumentError: a number below 1; on `attach`, sizes that do not divide, or more layers than block pairs.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> backbone = AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none"), MoLTLike(num_tokens=2))
        >>> features = backbone({"frames": torch.zeros(1, 2, 3, 64, 64), "audio": torch.zeros(1, 2, 16000)}, maps=True)
        >>> sorted(name for name in features.losses if "visual" in name)  # two of four block pairs
        ['orthogonality@2_visual', 'orthogonality@3_visual']
        >>> features.tables["layers@visual"].shape
        torch.Size([1, 2, 2])
    """

    gradient = "method"
    identity_at_start = True

    def __init__(self, num_tokens: Count = 4, reduction: Count = 8, layers: Count | None = None) -> None:
        super().__init__()
        for name, value in (("num_tokens", num_tokens), ("layers", 1 if layers is None else layers)):
            if value < 1:
                raise ArgumentError(name, value, "at least 1", "Choose another value.")
        self.num_tokens, self.reduction, self.layers = num_tokens, reduction, layers

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        count = -(-len(sites) // 3) if self.layers is None else self.layers
        if count > len(sites):
            raise ArgumentError("layers", count, f"at most {len(sites)}, the block pairs", "Choose another value.")
        self.first = len(sites) - count
        for side, modality in enumerate(SIDES):
            read = [(site[side].dim, site[1 - side].dim) for site in sites[self.first :]]
            self.add_module(
                modality, nn.ModuleList(Distiller(own, other, self.num_tokens, self.reduction) for own, other in read)
            )
            width = self.widths[side]
            self.add_module(
                f"{modality}_project",
                nn.ModuleDict({str(dim): nn.Linear(dim, width) for dim in dict.fromkeys(own for own, _ in read)}),
            )
            self.add_module(f"{modality}_weigh", nn.Linear(width, 1, bias=False))
        self.table_columns = {
            "router": ("own modality", "other modality"),
            "layers": tuple(f"block pair {site}" for site in range(self.first, len(sites))),
        }

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
        if site >= self.first:
            for modality, own, other in (("visual", visual, audio), ("audio", audio, visual)):
                latents, weights = getattr(self, modality)[site - self.first](own, other)
                state.losses[f"orthogonality@{site}_{modality}"] = overlap(latents)
                project = getattr(self, f"{modality}_project")[str(latents.shape[-1])]
                state.memory[f"{modality}@{site}"] = project(latents).mean(1)
                if state.wants_maps:
                    state.tables[f"router@{site}_{modality}"] = state.clips(weights)
        return visual, audio

    def pool(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        """The vectors of all layers that are read, weighed by a softmax over their scores."""
        pooled = []
        for modality in SIDES:
            places = range(self.first, self.first + len(getattr(self, modality)))
            vectors = torch.stack([state.memory[f"{modality}@{site}"] for site in places], dim=1)
            weights = torch.softmax(getattr(self, f"{modality}_weigh")(vectors), dim=1)
            pooled.append((weights * vectors).sum(1))
            if state.wants_maps:
                state.tables[f"layers@{modality}"] = state.clips(weights.squeeze(-1))
        return tuple(pooled)
