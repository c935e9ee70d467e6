"""CMAN (Xuan et al., AAAI 2020): attention over positions, over time, and across modalities with a sentinel. No code
was released: the equations are the paper's, widths are guesses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.heads.event_head import EventHead
from avprompt.ranges import Count

WIDTH, HEADS = 256, 4


class PositionAttention(nn.Module):
    """Cosine attention of the sound to the positions of a frame.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
    """

    def __init__(self, audio_dim: int, visual_dim: int) -> None:
        super().__init__()
        self.audio, self.visual = (nn.Linear(dim, WIDTH, bias=False) for dim in (audio_dim, visual_dim))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Audio (B, T, C_a), visual (B, T, N, C_v) -> (B, T, C_v)."""
        heard, seen = F.normalize(self.audio(audio), dim=-1), F.normalize(self.visual(visual), dim=-1)
        weights = (seen @ heard.unsqueeze(-1)).squeeze(-1).softmax(-1)
        return (weights.unsqueeze(2) @ visual).squeeze(2)


class TimeAttention(nn.Module):
    """Self-attention of segments, with the clip's mean as a further key, and a residual.

    Args:
        inputs: channels of the input.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.project, self.attention = nn.Linear(inputs, WIDTH), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, inputs) -> (B, T, 256)."""
        x = self.project(x)
        memory = torch.cat((x, x.mean(1, keepdim=True)), 1)
        return x + self.attention(x, memory, memory, need_weights=False)[0]


class SentinelAttention(nn.Module):
    """An LSTM over one modality; each state attends to the other modality's segments, or to its own sentinel."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(WIDTH, WIDTH)
        self.sentinel = nn.Linear(2 * WIDTH, WIDTH)
        self.of_other, self.of_state, self.of_sentinel = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.score, self.out = nn.Linear(WIDTH, 1, bias=False), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Own and other modality (B, T, 256) -> states (B, T, 256)."""
        hidden = cell = own.new_zeros(len(own), WIDTH)
        keys, states = self.of_other(other), []
        for x in own.unbind(1):
            gate = self.sentinel(torch.cat((x, hidden), -1)).sigmoid()
            hidden, cell = self.cell(x, (hidden, cell))
            hidden, cell = hidden.to(own.dtype), cell.to(own.dtype)
            sentinel, asked = gate * torch.tanh(cell), self.of_state(hidden)
            scores = self.score(torch.tanh(keys + asked.unsqueeze(1))).squeeze(-1)
            stay = self.score(torch.tanh(self.of_sentinel(sentinel) + asked))
            share = torch.cat((scores, stay), -1).softmax(-1)[:, -1:]
            context = (scores.softmax(-1).unsqueeze(1) @ other).squeeze(1)
            states.append(torch.tanh(self.out(torch.cat((share * sentinel + (1 - share) * context, hidden), -1))))
        return torch.stack(states, 1)


class CMAN(EventHead):
    """Three attentions in a row, and a classifier of segments.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories, background not counted.
        weak: outputs for weak labels, see `EventHead`.

    Example:
        >>> CMAN(4, 8, num_classes=3)(torch.rand(2, 10, 4), torch.rand(2, 10, 36, 8))["segments"].shape
        torch.Size([2, 10, 4])
    """

    def __init__(self, audio_dim: Count, visual_dim: Count, num_classes: Count, weak: bool = False) -> None:
        super().__init__(audio_dim, visual_dim, num_classes, weak)
        self.positions = PositionAttention(audio_dim, visual_dim)
        self.audio, self.visual = TimeAttention(audio_dim), TimeAttention(visual_dim)
        self.audio_across, self.visual_across = SentinelAttention(), SentinelAttention()
        self.out = nn.Linear(2 * WIDTH, num_classes + 1)

    def forward(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, N, C_v) -> `segments`, see `EventHead`."""
        seen, heard = self.visual(self.positions(audio, visual)), self.audio(audio)
        both = torch.cat((self.audio_across(heard, seen), self.visual_across(seen, heard)), -1)
        return self.scored(self.out(both))
