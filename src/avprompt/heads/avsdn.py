"""AVSDN (Lin et al., ICASSP 2019): a sequence-to-sequence network whose decoder starts from the fused last states of
both modalities; sizes and attention are those of CPSP's re-implementation, as the original was not released."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avprompt.heads.event_head import EventHead, ResidualFusion, bilstm, xavier
from avprompt.heads.spatial import AudioGuidedAttention, Variant
from avprompt.precision import recurrent
from avprompt.ranges import Count

HIDDEN = 128  # of each direction of the LSTMs


class AVSDN(EventHead):
    """AVSDN as CPSP re-implemented it: 6,094,670 parameters with features of 2048 channels, 2,162,510 with VGG-19. The
    published 8.0 M are not reached with these sizes.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories, background not counted.
        weak: outputs for weak labels, see `EventHead`.
        variant: see `AudioGuidedAttention`.

    Example:
        >>> AVSDN(4, 8, num_classes=3)(torch.rand(2, 10, 4), torch.rand(2, 10, 36, 8))["event"].shape
        torch.Size([2, 3])
    """

    def __init__(
        self, audio_dim: Count, visual_dim: Count, num_classes: Count, weak: bool = False, variant: Variant = "paper"
    ) -> None:
        super().__init__(audio_dim, visual_dim, num_classes, weak)
        self.attention = AudioGuidedAttention(audio_dim, visual_dim, variant)
        self.audio, self.visual = bilstm(audio_dim, HIDDEN), bilstm(visual_dim, HIDDEN)
        self.fusion, self.decoder = ResidualFusion(HIDDEN), bilstm(audio_dim + visual_dim, HIDDEN)
        self.is_event, self.event = nn.Linear(2 * HIDDEN, 1), nn.Linear(2 * HIDDEN, num_classes + weak)
        for layer in (self.is_event, self.event):
            xavier(layer)

    def forward(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, N, C_v) -> `is_event` and `event`, see `EventHead`."""
        visual = self.attention(audio, visual)
        heard, seen = recurrent(self.audio, audio)[1], recurrent(self.visual, visual)[1]
        state = tuple(self.fusion(torch.relu(a), torch.relu(v)) for a, v in zip(heard, seen))
        fused = torch.relu(recurrent(self.decoder, torch.cat((audio, visual), -1), state)[0])
        return self.relevant(self.is_event(fused).squeeze(-1), self.event(fused.mean(1)))
