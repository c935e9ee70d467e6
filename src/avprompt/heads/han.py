"""HAN (Tian et al., ECCV 2020): hybrid attention within and across modalities, and pooling over
segments and modalities."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from avprompt.errors import ArgumentError, ShapeError
from avprompt.precision import wide
from avprompt.ranges import Count, Natural

WIDTH, DROPOUT = 512, 0.1  # of the released network


class ParsingInputs(nn.Module):
    """The three kinds of features that parsing networks read -> one vector a segment and modality.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features of frames.
        video_dim: channels of the r2plus1d features; 0 is a network without them.
    """

    def __init__(self, audio_dim: int, visual_dim: int, video_dim: int) -> None:
        super().__init__()
        self.audio, self.visual = nn.Linear(audio_dim, WIDTH), nn.Linear(visual_dim, WIDTH)
        self.video = nn.Linear(video_dim, WIDTH) if video_dim else None
        self.fusion = nn.Linear(2 * WIDTH if video_dim else WIDTH, WIDTH)

    def forward(self, audio: Tensor, visual: Tensor, video: Tensor | None) -> tuple[Tensor, Tensor]:
        """Audio (B, T, C_a), visual (B, T, C_v), r2plus1d (B, T, C_s) -> sound and sight (B, T, 512).

        Raises:
            ShapeError: the network needs r2plus1d features, and `video_features` are missing or have another shape.
        """
        sight = self.visual(visual)
        if self.video is not None:
            expected = (*visual.shape[:2], self.video.in_features)
            if video is None or tuple(video.shape) != expected:
                raise ShapeError(
                    "video_features",
                    None if video is None else tuple(video.shape),
                    f"{expected}",
                    "Give the data module `features`, or build the head with video_dim 0.",
                )
            sight = torch.cat((sight, self.video(video)), -1)
        return self.audio(audio), self.fusion(sight)


class AttentivePooling(nn.Module):
    """Multimodal multiple instance pooling: probabilities of segments -> those of the video, by learned weights.

    Args:
        num_classes: event categories.

    Example:
        >>> outputs = AttentivePooling(3)(torch.rand(2, 10, 512), torch.rand(2, 10, 512))
        >>> {name: tuple(value.shape) for name, value in outputs.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'audio_prob': (2, 10, 3), 'visual_prob': (2, 10, 3), 'audio_video_prob': (2, 3), 'visual_video_prob': (2, 3),
         'video_prob': (2, 3)}
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.event, self.time, self.modality = (nn.Linear(WIDTH, num_classes) for _ in range(3))

    def forward(self, sound: Tensor, sight: Tensor) -> dict[str, Tensor]:
        """Sound and sight (B, T, 512) -> probabilities of segments (B, T, C) and of the video (B, C)."""
        both = torch.stack((sound, sight), 2)  # (B, T, 2, 512)
        # float32, because bfloat16 has no number between 0.996 and 1, where the loss needs them
        prob = wide(self.event(both)).sigmoid()
        timed = wide(self.time(both)).softmax(1) * prob
        joint = (timed * wide(self.modality(both)).softmax(2)).sum((1, 2))
        return {
            "audio_prob": prob[:, :, 0],
            "visual_prob": prob[:, :, 1],
            "audio_video_prob": timed[:, :, 0].sum(1),
            "visual_video_prob": timed[:, :, 1].sum(1),
            "video_prob": joint,
        }


class HybridAttention(nn.Module):
    """A modality attends to the other one and to itself; the same weights serve both.

    Args:
        heads: of each attention.
        hidden: channels between the two linear layers.
    """

    def __init__(self, heads: int = 1, hidden: int = WIDTH) -> None:
        super().__init__()
        self.across, self.own = (nn.MultiheadAttention(WIDTH, heads, DROPOUT, batch_first=True) for _ in range(2))
        self.linear1, self.linear2 = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """A modality and the other one, (B, T, 512) -> (B, T, 512)."""
        across = self.across(x, other, other, need_weights=False)[0]
        x = self.norm1(x + self.dropout(across) + self.dropout(self.own(x, x, x, need_weights=False)[0]))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(torch.relu(self.linear1(x))))))


class ParsingHead(nn.Module, abc.ABC):
    """The interface of video parsing heads that `AVVP` takes: probabilities of segments and of the video.

    Example:
        >>> class Mean(ParsingHead):
        ...     def __init__(self, audio_dim, visual_dim, num_classes, segments, video_dim):
        ...         super().__init__()
        ...         self.sound, self.sight = nn.Linear(audio_dim, num_classes), nn.Linear(visual_dim, num_classes)
        ...     def forward(self, audio, visual, video=None):
        ...         probs = {"audio_prob": self.sound(audio).sigmoid(), "visual_prob": self.sight(visual).sigmoid()}
        ...         return {**probs, "video_prob": sum(probs.values()).mean(1) / 2}
        >>> Mean(4, 8, 3, 10, 0)(torch.rand(2, 10, 4), torch.rand(2, 10, 8))["video_prob"].shape
        torch.Size([2, 3])
    """

    @abc.abstractmethod
    def forward(self, audio: Tensor, visual: Tensor, video: Tensor | None = None) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, C_v), r2plus1d features (B, T, C_s) where the network has them -> outputs of
        `AttentivePooling`."""


class HAN(ParsingHead):
    """HAN's network as released, without the parts that never influence an output: 4,569,675 parameters with VGGish,
    ResNet-152 and R(2+1)D-18. VALOR's has eight heads, 1024 hidden channels, and takes modalities in turn: 5,094,475.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories.
        segments: not needed; any number of segments will do.
        video_dim: channels of the r2plus1d features; 0 is a network without them.
        heads: of each attention.
        hidden: channels of the feed-forward layer.
        in_turn: vision attends to what the layer has made of the sound, and not to the sound before it.

    Raises:
        ArgumentError: heads that do not divide 512, or no hidden channel.

    Example:
        >>> HAN(4, 8, 3, video_dim=0)(torch.rand(2, 10, 4), torch.rand(2, 10, 8))["video_prob"].shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        audio_dim: Count,
        visual_dim: Count,
        num_classes: Count,
        segments: Count = 10,
        video_dim: Natural = 512,
        heads: Count = 1,
        hidden: Count = WIDTH,
        in_turn: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or WIDTH % heads or hidden < 1:
            raise ArgumentError(
                "heads, hidden", f"{heads}, {hidden}", f"a divisor of {WIDTH}, and at least 1", "Correct them."
            )
        self.inputs, self.attention = ParsingInputs(audio_dim, visual_dim, video_dim), HybridAttention(heads, hidden)
        self.pool, self.in_turn = AttentivePooling(num_classes), in_turn

    def forward(self, audio: Tensor, visual: Tensor, video: Tensor | None = None) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, C_v), r2plus1d features (B, T, C_s) where the network has them -> outputs of
        `AttentivePooling`."""
        sound, sight = self.inputs(audio, visual, video)
        heard = self.attention(sound, sight)
        return self.pool(heard, self.attention(sight, heard if self.in_turn else sound))
