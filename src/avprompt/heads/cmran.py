"""CMRAN (Xu et al., ACM MM 2020): spatial-channel attention, and a modality that attends to both over time."""

from __future__ import annotations

from torch import Tensor, nn

from avprompt.heads.cmbs import WIDTH, CrossModalDecoder
from avprompt.heads.event_head import EventHead
from avprompt.heads.spatial import HIDDEN, SpatialChannelAttention
from avprompt.heads.temporal import Interaction, TemporalEncoder
from avprompt.ranges import Count

FEED_FORWARD = 2048  # of the released network


class CMRAN(EventHead):
    """CMRAN's network as released, without the parts that never influence an output: 9,509,150 parameters with VGG-19
    and VGGish, 9,509,407 for weak labels.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories, background not counted.
        weak: outputs for weak labels, see `EventHead`.

    Example:
        >>> import torch
        >>> outputs = CMRAN(4, 8, num_classes=3)(torch.rand(2, 10, 4), torch.rand(2, 10, 36, 8))
        >>> {name: tuple(value.shape) for name, value in outputs.items()}
        {'is_event': (2, 10), 'event': (2, 3)}
    """

    def __init__(self, audio_dim: Count, visual_dim: Count, num_classes: Count, weak: bool = False) -> None:
        super().__init__(audio_dim, visual_dim, num_classes, weak)
        self.project = nn.Sequential(nn.Linear(visual_dim, HIDDEN), nn.ReLU(), nn.Dropout(0.2))
        self.attention = SpatialChannelAttention(audio_dim)
        self.audio, self.visual = (TemporalEncoder(dim, WIDTH, FEED_FORWARD) for dim in (audio_dim, HIDDEN))
        self.audio_decoder, self.visual_decoder = (CrossModalDecoder(dim, FEED_FORWARD) for dim in (audio_dim, HIDDEN))
        self.interaction = Interaction(WIDTH, heads=2 if weak else 4, dropout=0.1)
        self.is_event, self.event = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, num_classes + weak)

    def forward(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, N, C_v) -> `is_event` and `event`, see `EventHead`."""
        seen = self.attention(audio, self.project(visual))
        heard_too = self.audio_decoder(audio, self.visual(seen))
        seen_too = self.visual_decoder(seen, self.audio(audio))
        fused = self.interaction(seen_too, heard_too)
        return self.relevant(self.is_event(fused).squeeze(-1), self.event(fused.amax(1)))
