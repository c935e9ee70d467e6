"""CASTE: agreement of sight and sound decides whether tokens are enriched over space or over time (CAE-AV, 2026).

    w = softmax(MLP(p, q) + [c, -c])      p, q: projected means of both modalities' tokens, c: their cosine
    x -> gate * m * (w_0 S(x) + w_1 T(x))  m: 1 for the 30 % of a segment's tokens with the largest norm, else 0

`AVMoE(caste=True)` uses it. The rest of CAE-AV reads captions, which no dataset here has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import BlockSpec


class CASTE(nn.Module):
    """Enrichment of one modality's tokens x (N, C), by its agreement with the other's tokens u (M, D).

    S is x plus a separable attention within the segment, T is x plus a convolution over three segments at each token;
    both additions have a gate that is zero at the start, and so has the whole.

    Args:
        own: block whose tokens are enriched.
        other: block of the other modality.
        share: of a segment's tokens that are enriched.

    Example:
        >>> from avprompt.encoders import BlockSpec
        >>> enrich = CASTE(BlockSpec(8, (4, 4), 0), BlockSpec(6, (2, 2), 0))
        >>> added, weights = enrich(torch.rand(6, 16, 8), torch.rand(6, 4, 6), segments=3)
        >>> added.shape, float(added.abs().sum()), weights.shape
        (torch.Size([6, 16, 8]), 0.0, torch.Size([6, 2]))
    """

    width = 128  # of the projections that are compared

    def __init__(self, own: BlockSpec, other: BlockSpec, share: float = 0.3) -> None:
        super().__init__()
        dim, self.count = own.dim, max(1, int(own.tokens * share))
        self.project_own, self.project_other = nn.Linear(dim, self.width), nn.Linear(other.dim, self.width)
        self.decide = nn.Sequential(
            nn.Linear(4 * self.width, self.width // 2), nn.ReLU(), nn.Linear(self.width // 2, 2)
        )
        self.score, self.key, self.value, self.out = nn.Linear(dim, 1), *(nn.Linear(dim, dim) for _ in range(3))
        for layer in (self.score, self.key, self.value, self.out):
            nn.init.normal_(layer.weight, std=0.001)
            nn.init.zeros_(layer.bias)
        self.neighbours, self.mix = nn.Conv1d(dim, dim, 3, padding=1, groups=dim), nn.Linear(dim, dim)
        self.spatial_norm, self.temporal_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.spatial_gate, self.temporal_gate, self.gate = (nn.Parameter(torch.zeros(1)) for _ in range(3))

    def weights(self, x: Tensor, other: Tensor) -> Tensor:
        """(B*T, N, C), (B*T, M, D) -> weights of the spatial and the temporal branch (B*T, 2), which sum to 1."""
        p, q = self.project_own(x.mean(1)), self.project_other(other.mean(1))
        agreement = F.cosine_similarity(p, q, dim=-1, eps=1e-12).unsqueeze(-1)
        logits = self.decide(torch.cat((p, q, p - q, p * q), dim=-1))
        return torch.softmax(logits + torch.cat((agreement, -agreement), dim=-1), dim=-1)

    def forward(self, x: Tensor, other: Tensor, segments: int) -> tuple[Tensor, Tensor]:
        """x (B*T, N, C), other (B*T, M, D) -> what is added to x (B*T, N, C), and the weights (B*T, 2)."""
        weights = self.weights(x, other)
        chosen = x.square().sum(-1).topk(self.count, dim=1).indices.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        # the softmax sums to one, so that the keys' projection moves behind the sum over tokens
        context = self.key(torch.softmax(self.score(x), dim=1).transpose(1, 2).to(x.dtype) @ x)
        series = F.pad(x.unflatten(0, (-1, segments)), (0, 0, 0, 0, 1, 1))
        before, now, after = self.neighbours.weight.squeeze(1).unbind(-1)
        moved = series[:, :-2] * before + series[:, 1:-1] * now + series[:, 2:] * after + self.neighbours.bias
        own, moved = x.gather(1, chosen), moved.flatten(0, 1).gather(1, chosen)
        spatial = own + self.spatial_gate * self.spatial_norm(self.out(self.value(own) * context))
        temporal = own + self.temporal_gate * self.temporal_norm(self.mix(moved))
        enriched = self.gate * (weights[:, :1, None] * spatial + weights[:, 1:, None] * temporal)
        return torch.zeros_like(x).scatter(1, chosen, enriched.to(x.dtype)), weights
