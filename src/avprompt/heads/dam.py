"""DAM (Wu et al., ICCV 2019): dual attention matching. No code was released: the equations are the paper's, widths and
depths are guesses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avprompt.heads.event_head import EventHead
from avprompt.heads.spatial import AudioGuidedAttention
from avprompt.precision import wide
from avprompt.ranges import Count

WIDTH, HEADS, DROPOUT = 256, 4, 0.1


class DAM(EventHead):
    """A modality's summary of the whole clip is matched with the other one's segments.

    A segment's relevance is the mean of the two matches' probabilities, the category comes from both summaries. The
    paper trains the former with weight 0.5.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories, background not counted.
        weak: not known of this network.

    Example:
        >>> DAM(4, 8, num_classes=3)(torch.rand(2, 10, 4), torch.rand(2, 10, 36, 8))["is_event"].shape
        torch.Size([2, 10])
    """

    weakly_supervised = False

    def __init__(self, audio_dim: Count, visual_dim: Count, num_classes: Count, weak: bool = False) -> None:
        super().__init__(audio_dim, visual_dim, num_classes, weak)
        self.attention = AudioGuidedAttention(audio_dim, visual_dim)
        self.audio, self.visual = nn.Linear(audio_dim, WIDTH), nn.Linear(visual_dim, WIDTH)
        self.audio_self, self.visual_self = (
            nn.MultiheadAttention(WIDTH, HEADS, DROPOUT, batch_first=True) for _ in range(2)
        )
        self.audio_norm, self.visual_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.event = nn.Sequential(
            nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(WIDTH, num_classes)
        )

    def forward(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, N, C_v) -> `is_event` and `event`, see `EventHead`."""
        seen, heard = self.visual(self.attention(audio, visual)), self.audio(audio)
        all_seen, all_heard = (
            norm(x + attention(x, x, x, need_weights=False)[0]).mean(1)
            for x, attention, norm in (
                (seen, self.visual_self, self.visual_norm),
                (heard, self.audio_self, self.audio_norm),
            )
        )
        matches = [
            wide((segments @ summary.unsqueeze(-1)).squeeze(-1)) / WIDTH**0.5
            for segments, summary in ((seen, all_heard), (heard, all_seen))
        ]
        relevance = (matches[0].sigmoid() + matches[1].sigmoid()) / 2
        return self.relevant(relevance.logit(1e-6), self.event(torch.cat((all_heard, all_seen), -1)))
