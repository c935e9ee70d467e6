"""Spatial attention of event localisation heads: a sound and the positions of a frame -> one visual vector."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from avprompt.errors import ShapeError, check_choice

HIDDEN = 512  # of the published networks
UNITS = 49  # hidden units of audio-guided attention, as many as VGG-19 has positions
Variant = Literal["paper", "released"]


class AudioGuidedAttention(nn.Module):
    """Audio-guided visual attention (Tian et al., ECCV 2018, equations 2 and 3).

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        variant: `paper` adds the sound's 49 hidden units to those of each position. `released` repeats a slip of the
            authors' code, which four later networks share: the sound's unit n is added to all units of position n, so
            that a sound can only prefer fixed positions. It needs 49 positions.

    Raises:
        ArgumentError: an unknown variant.

    Example:
        >>> AudioGuidedAttention(4, 8)(torch.rand(2, 10, 4), torch.rand(2, 10, 36, 8)).shape
        torch.Size([2, 10, 8])
    """

    def __init__(self, audio_dim: int, visual_dim: int, variant: Variant = "paper") -> None:
        super().__init__()
        check_choice("variant", variant, get_args(Variant))
        self.variant = variant
        self.audio, self.visual = nn.Linear(audio_dim, HIDDEN), nn.Linear(visual_dim, HIDDEN)
        self.from_visual, self.from_audio = (nn.Linear(HIDDEN, UNITS, bias=False) for _ in range(2))
        self.score = nn.Linear(UNITS, 1, bias=False)
        for layer in (self.audio, self.visual, self.from_visual, self.from_audio, self.score):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Audio (B, T, C_a), visual (B, T, N, C_v) -> the weighted sum of positions, (B, T, C_v).

        Raises:
            ShapeError: `released` with other than 49 positions.
        """
        heard = self.from_audio(torch.relu(self.audio(audio)))
        seen = self.from_visual(torch.relu(self.visual(visual)))
        if self.variant == "released":
            if visual.shape[2] != UNITS:
                raise ShapeError(
                    "visual",
                    f"{visual.shape[2]} positions",
                    f"{UNITS}, with variant released",
                    "Use `variant: paper`, which takes any number.",
                )
            heard = heard.unsqueeze(-1)
        else:
            heard = heard.unsqueeze(2)
        weights = self.score(torch.tanh(seen + heard)).squeeze(-1).softmax(-1)
        return (weights.unsqueeze(2) @ visual).squeeze(2)


class SpatialChannelAttention(nn.Module):
    """Audio-guided attention to channels, then to positions (CMRAN; Xu et al., ACM MM 2020, section 3.2, as released).

    Args:
        audio_dim: channels of the audio features.

    Example:
        >>> SpatialChannelAttention(4)(torch.rand(2, 10, 4), torch.rand(2, 10, 36, 512)).shape
        torch.Size([2, 10, 512])
    """

    def __init__(self, audio_dim: int) -> None:
        super().__init__()
        self.visual_channel, self.audio_channel = nn.Linear(HIDDEN, HIDDEN), nn.Linear(audio_dim, HIDDEN)
        self.gate = nn.Sequential(nn.Linear(HIDDEN, HIDDEN // 2), nn.ReLU(), nn.Linear(HIDDEN // 2, HIDDEN))
        self.visual_position, self.audio_position = nn.Linear(HIDDEN, HIDDEN // 2), nn.Linear(audio_dim, HIDDEN // 2)
        self.score = nn.Linear(HIDDEN // 2, 1)

    def forward(self, audio: Tensor, visual: Tensor, context: Tensor | None = None) -> Tensor:
        """Audio (B, T, C_a), visual (B, T, N, 512) -> (B, T, 512).

        With a `context` like `visual`, the gates of channels are computed from it.
        """
        seen = torch.relu(self.visual_channel(visual if context is None else context))
        heard = torch.relu(self.audio_channel(audio)).unsqueeze(2)
        visual = visual * (1 + self.gate((seen * heard).mean(2)).sigmoid()).unsqueeze(2)
        both = torch.relu(self.visual_position(visual)) * torch.relu(self.audio_position(audio)).unsqueeze(2)
        return _weigh(self.score(both), visual)


class SelfAndAudioAttention(nn.Module):
    """Self-attention of positions beside `SpatialChannelAttention` (CMBS; Xia and Zhao, CVPR 2022, as released).

    Args:
        audio_dim: channels of the audio features.
        weight: of the attended positions' gate on the result (released: 0.4, weakly 0.5).

    Example:
        >>> SelfAndAudioAttention(4)(torch.rand(2, 10, 4), torch.rand(2, 10, 36, 512)).shape
        torch.Size([2, 10, 512])
    """

    def __init__(self, audio_dim: int, weight: float = 0.4) -> None:
        super().__init__()
        self.weight = weight
        self.query, self.key = (nn.Linear(HIDDEN, HIDDEN // 4) for _ in range(2))
        self.value, self.norm, self.dropout = nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN), nn.Dropout(0.2)
        self.position, self.mean = (nn.Linear(HIDDEN, HIDDEN // 2) for _ in range(2))
        self.score = nn.Linear(HIDDEN // 2, 1)
        self.audio = SpatialChannelAttention(audio_dim)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Audio (B, T, C_a), visual (B, T, N, 512) -> (B, T, 512)."""
        # as released, the products are not scaled
        weights = (self.query(visual) @ self.key(visual).transpose(-1, -2)).softmax(-1)
        mixed = self.norm(visual + self.dropout(weights @ self.value(visual)))
        both = torch.relu(self.position(mixed)) * torch.relu(self.mean(mixed.mean(2))).unsqueeze(2)
        alone = _weigh(self.score(both), mixed)
        guided = self.audio(audio, visual, mixed)
        return guided * (1 + self.weight * alone.sigmoid())


def _weigh(scores: Tensor, visual: Tensor) -> Tensor:
    """Scores (B, T, N, 1) of positions and visual (B, T, N, C) -> (B, T, C)."""
    weights = torch.tanh(scores).squeeze(-1).softmax(-1)
    return (weights.unsqueeze(2) @ visual).squeeze(2)
