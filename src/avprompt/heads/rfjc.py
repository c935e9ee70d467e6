"""RFJC (Duan et al., WACV 2021): recursive fusion by joint co-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.heads.event_head import EventHead, bilstm, expect_segments, xavier
from avprompt.heads.spatial import AudioGuidedAttention, Variant
from avprompt.precision import recurrent
from avprompt.ranges import Count

WIDTH, DROPOUT = 512, 0.3  # of the released network


class RecurrentBlock(nn.Module):
    """Two-layer LSTM with learned initial states beside its own input, mapped to unit length.

    Args:
        inputs: channels of the input.
        dropout: between the layers, and before the map.
    """

    def __init__(self, inputs: int, dropout: float) -> None:
        super().__init__()
        self.rnn = bilstm(inputs, WIDTH // 2, num_layers=2, dropout=dropout)
        self.start = nn.Parameter(nn.init.xavier_uniform_(torch.empty(8, WIDTH // 2)))
        self.dropout, self.out = nn.Dropout(dropout), nn.Linear(inputs + WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, inputs) -> (B, T, 512) of length 1."""
        hidden, cell = (part.unsqueeze(1).repeat(1, len(x), 1) for part in self.start.chunk(2))
        found = torch.cat((x, recurrent(self.rnn, x, (hidden, cell))[0]), -1)
        return F.normalize(self.out(self.dropout(found)), dim=-1)


class CoAttention(nn.Module):
    """One step: each modality is updated by what the joint representation says about it.

    Args:
        segments: number T of segments.
    """

    def __init__(self, segments: int) -> None:
        super().__init__()
        self.joint = nn.Linear(2 * WIDTH, 2 * WIDTH)
        self.keys = nn.ModuleList(nn.Linear(segments, segments) for _ in range(2))
        self.values = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.out = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Dropout(DROPOUT)) for _ in range(2)
        )
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Visual and audio (B, T, 512) -> the same."""
        joint, found = self.joint(torch.cat((visual, audio), -1)), []
        for x, key, value, out in zip((visual, audio), self.keys, self.values, self.out):
            scores = self.dropout(torch.tanh(key(x.transpose(1, 2)) @ joint / (2 * WIDTH) ** 0.5))
            found.append(x + out(torch.relu(torch.tanh(value(x) @ scores))))
        return found[0], found[1]


class RFJC(EventHead):
    """RFJC's network as released: 22,776,510 parameters with VGG-19 and VGGish.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories, background not counted.
        weak: not known of this network.
        segments: number T of segments, to which layers over time are sized.
        steps: recursive steps.
        variant: see `AudioGuidedAttention`.

    Example:
        >>> RFJC(4, 8, num_classes=3, steps=1)(torch.rand(2, 10, 4), torch.rand(2, 10, 36, 8))["segments"].shape
        torch.Size([2, 10, 4])
    """

    weakly_supervised = False

    def __init__(
        self,
        audio_dim: Count,
        visual_dim: Count,
        num_classes: Count,
        weak: bool = False,
        segments: Count = 10,
        steps: Count = 4,
        variant: Variant = "paper",
    ) -> None:
        super().__init__(audio_dim, visual_dim, num_classes, weak)
        self.segments = segments
        self.audio = RecurrentBlock(audio_dim, 0.1)
        self.attention, self.narrow = AudioGuidedAttention(WIDTH, visual_dim, variant), nn.Linear(visual_dim, WIDTH)
        self.visual = RecurrentBlock(WIDTH, 0.1)
        self.steps = nn.ModuleList(CoAttention(segments) for _ in range(steps))
        self.joint = RecurrentBlock(2 * WIDTH, 0.0)
        self.out = nn.Sequential(
            nn.Linear(WIDTH, WIDTH // 4), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(WIDTH // 4, num_classes + 1)
        )
        xavier(self, biases=True)

    def forward(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, N, C_v) -> `segments`, see `EventHead`.

        Raises:
            ShapeError: other than `segments` segments.
        """
        expect_segments(audio, self.segments, "RFJC")
        audio, visual = F.normalize(audio, dim=-1), F.normalize(visual, dim=-1)
        audio = self.audio(audio)
        visual = self.visual(self.narrow(self.attention(audio, visual)))
        for step in self.steps:
            visual, audio = step(visual, audio)
        return self.scored(self.out(self.joint(torch.cat((visual, audio), -1))))
