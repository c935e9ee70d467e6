"""Temporal attention as in DG-SCT's released code: a gate for each segment, computed from one modality, applied to the
other.

    features (B, T, C) -[BiLSTM]- hidden -[Linear, 2 transformer layers]- memory -[Linear, sigmoid]- gate (B, T, 1)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avprompt.precision import recurrent, wide

HEADS, HIDDEN, DROPOUT = 4, 1024, 0.1  # of the released networks


class TemporalEncoder(nn.Module):
    """Linear map and two post-norm transformer layers over time.

    Args:
        inputs: channels of the input.
        width: channels of the output.
        hidden: channels of the feed-forward blocks.
    """

    def __init__(self, inputs: int, width: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, HEADS, hidden, DROPOUT, batch_first=True) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, inputs) -> (B, T, width)."""
        x = self.project(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Interaction(nn.Module):
    """Audio-visual interaction (CMRAN; Xu et al., ACM MM 2020): the product of both modalities attends to both.

    Args:
        width: channels of both.
        heads: number of heads.
        dropout: of the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(DROPOUT)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """(B, T, C), (B, T, C) -> (B, T, C)."""
        product, both = one * other, torch.cat((one, other), dim=1)
        return self.norm(product + self.dropout(self.attention(product, both, both, need_weights=False)[0]))


class TemporalGate(nn.Module):
    """One modality over time: BiLSTM, temporal encoder, and a gate that opens on events.

    Args:
        inputs: channels of the input.
        rnn: channels of the BiLSTM, both directions together.
        width: channels of the encoder.

    Example:
        >>> hidden, memory, gate = TemporalGate(inputs=8, rnn=16, width=8)(torch.rand(2, 10, 8))
        >>> tuple(hidden.shape), tuple(memory.shape), tuple(gate.shape)
        ((2, 10, 16), (2, 10, 8), (2, 10, 1))
    """

    def __init__(self, inputs: int, rnn: int, width: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, rnn // 2, batch_first=True, bidirectional=True)
        self.encoder = TemporalEncoder(rnn, width)
        self.gate = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, inputs) -> BiLSTM output (B, T, rnn), memory (B, T, width), gate (B, T, 1) in (0, 1)."""
        hidden, _ = recurrent(self.rnn, x)
        memory = self.encoder(hidden)
        # float32, because bfloat16 has no number between 0.996 and 1, where a loss on the gate needs them
        return hidden, memory, torch.sigmoid(wide(self.gate(memory)))
