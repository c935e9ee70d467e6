"""AVEL (Tian et al., ECCV 2018): audio-guided visual attention, an LSTM a modality, and a classifier of segments."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from avprompt.errors import check_choice
from avprompt.heads.event_head import EventHead, ResidualFusion, bilstm, xavier
from avprompt.heads.spatial import AudioGuidedAttention, Variant
from avprompt.precision import recurrent
from avprompt.ranges import Count

HIDDEN = 128  # of each direction of the LSTMs


class AVEL(EventHead):
    """AVEL's network as released: 3,694,542 parameters with the published features of 2048 channels.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories, background not counted.
        weak: outputs for weak labels, see `EventHead`.
        attention: attend to positions; `false` averages them.
        fusion: `concat`, or `residual`: dual multimodal residual fusion (DMRN), which the authors fine-tuned from the
            former.
        variant: see `AudioGuidedAttention`.

    Raises:
        ArgumentError: an unknown fusion or variant.

    Example:
        >>> AVEL(4, 8, num_classes=3)(torch.rand(2, 10, 4), torch.rand(2, 10, 36, 8))["segments"].shape
        torch.Size([2, 10, 4])
    """

    def __init__(
        self,
        audio_dim: Count,
        visual_dim: Count,
        num_classes: Count,
        weak: bool = False,
        attention: bool = True,
        fusion: Literal["concat", "residual"] = "concat",
        variant: Variant = "paper",
    ) -> None:
        super().__init__(audio_dim, visual_dim, num_classes, weak)
        check_choice("fusion", fusion, ("concat", "residual"))
        self.attention = AudioGuidedAttention(audio_dim, visual_dim, variant) if attention else None
        self.audio, self.visual = bilstm(audio_dim, HIDDEN), bilstm(visual_dim, HIDDEN)
        self.fusion = ResidualFusion(2 * HIDDEN) if fusion == "residual" else None
        self.out = (
            nn.Linear(2 * HIDDEN, num_classes + 1)
            if self.fusion is not None
            else nn.Sequential(nn.ReLU(), nn.Linear(4 * HIDDEN, 64), nn.ReLU(), nn.Linear(64, num_classes + 1))
        )
        xavier(self.out)

    def forward(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, N, C_v) -> `segments`, see `EventHead`."""
        seen = visual.mean(2) if self.attention is None else self.attention(audio, visual)
        heard, seen = recurrent(self.audio, audio)[0], recurrent(self.visual, seen)[0]
        both = torch.cat((heard, seen), -1) if self.fusion is None else self.fusion(heard, seen)
        return self.scored(self.out(both))
