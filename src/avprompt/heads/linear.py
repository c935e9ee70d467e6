"""Linear heads of LAVISH, STG-CMA and AV-STFP; AV-STFP's were identified by its published parameter counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class JointHead(nn.Module):
    """Head on both modalities, audio first: linear, dropout, linear, with no activation in between, as published.

    Args:
        audio_dim: channels C_a.
        visual_dim: channels C_v.
        num_outputs: outputs.
        hidden: channels between the two linear layers.
        dropout: rate.

    Example:
        >>> JointHead(8, 12, num_outputs=3)(torch.rand(2, 10, 8), torch.rand(2, 10, 12)).shape
        torch.Size([2, 10, 3])
    """

    def __init__(
        self, audio_dim: int, visual_dim: int, num_outputs: int, hidden: int = 512, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.hidden, self.dropout = nn.Linear(audio_dim + visual_dim, hidden), nn.Dropout(dropout)
        self.out = nn.Linear(hidden, num_outputs)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """(..., C_a), (..., C_v) -> logits (..., num_outputs)."""
        return self.out(self.dropout(self.hidden(torch.cat((audio, visual), dim=-1))))


class BranchHead(nn.Module):
    """Head on one modality: layer norm, linear.

    Args:
        dim: channels C.
        num_outputs: outputs.

    Example:
        >>> BranchHead(8, num_outputs=3)(torch.rand(2, 10, 8)).shape
        torch.Size([2, 10, 3])
    """

    def __init__(self, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(..., C) -> logits (..., num_outputs)."""
        return self.out(self.norm(features))


class LinearHead(nn.Module):
    """`JointHead` or `BranchHead`, depending on the modalities that a task reads.

    Args:
        audio_dim: channels C_a.
        visual_dim: channels C_v.
        num_outputs: outputs.
        modality: `both`, `audio` or `visual`.
        dropout: rate between the two layers of `JointHead`.

    Example:
        >>> LinearHead(8, 12, 3, modality="visual")(torch.rand(2, 8), torch.rand(2, 12)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, audio_dim: int, visual_dim: int, num_outputs: int, modality: str = "both", dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.modality = modality
        self.head = (
            JointHead(audio_dim, visual_dim, num_outputs, dropout=dropout)
            if modality == "both"
            else (BranchHead({"audio": audio_dim, "visual": visual_dim}[modality], num_outputs))
        )

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """(..., C_a), (..., C_v) -> logits (..., num_outputs)."""
        return self.head(*{"both": (audio, visual), "audio": (audio,), "visual": (visual,)}[self.modality])
