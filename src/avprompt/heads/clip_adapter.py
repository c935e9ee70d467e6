"""CLIP-Adapter: a bottleneck on embeddings, blended with them (Gao et al., IJCV 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avprompt.errors import ArgumentError


class CLIPAdapter(nn.Module):
    """`ratio * A(f) + (1 - ratio) * f`, A = ReLU(W2 ReLU(W1 f)) without bias; as released with CLIP-Adapter and DG-SCT.

    It starts from random weights, so that step 0 is near the frozen network, not equal to it.

    Args:
        dim: E; E^2 / 2 parameters, 131,072 for 512.
        ratio: how much of it, 0 to 1.
        reduction: E over the bottleneck's width.

    Raises:
        ArgumentError: a ratio outside of 0 to 1.
    """

    def __init__(self, dim: int, ratio: float = 0.2, reduction: int = 4) -> None:
        super().__init__()
        if not 0 <= ratio <= 1:
            raise ArgumentError("adapter_ratio", ratio, "0 to 1", "Choose another value.")
        self.ratio = ratio
        self.down, self.up = nn.Linear(dim, dim // reduction, bias=False), nn.Linear(dim // reduction, dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(..., E) -> (..., E)."""
        adapted = torch.relu(self.up(torch.relu(self.down(features))))
        return self.ratio * adapted + (1 - self.ratio) * features
