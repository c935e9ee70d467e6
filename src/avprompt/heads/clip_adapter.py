"""CLIP-Adapter: a bottleneck on embeddings, mixed with the embeddings themselves (Gao et al., IJCV 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avprompt.errors import ArgumentError
from avprompt.ranges import Count, Share


class CLIPAdapter(nn.Module):
    """`ratio * A(f) + (1 - ratio) * f`, A = ReLU(W2 ReLU(W1 f)) without bias; as released with CLIP-Adapter and DG-SCT.

    It starts from random weights: before training, the network is close to the frozen one, not equal to it.

    Args:
        dim: E; E^2 / 2 parameters, 131,072 for 512.
        ratio: share of the adapter in the output, 0 to 1.
        reduction: E divided by the width of the bottleneck.

    Raises:
        ArgumentError: a ratio outside of 0 to 1.

    Example:
        >>> CLIPAdapter(dim=16)(torch.rand(2, 10, 16)).shape
        torch.Size([2, 10, 16])
    """

    def __init__(self, dim: int, ratio: Share = 0.2, reduction: Count = 4) -> None:
        super().__init__()
        if not 0 <= ratio <= 1:
            raise ArgumentError("adapter_ratio", ratio, "0 to 1", "Choose another value.")
        self.ratio = ratio
        self.down, self.up = nn.Linear(dim, dim // reduction, bias=False), nn.Linear(dim // reduction, dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(..., E) -> (..., E)."""
        adapted = torch.relu(self.up(torch.relu(self.down(features))))
        return self.ratio * adapted + (1 - self.ratio) * features
