"""HAN (Tian et al., ECCV 2020): hybrid attention within and across modalities, and pooling over
segments and modalities; VALOR's and JoMoLD's forms of it."""

from __future__ import annotations

import abc
import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.errors import ArgumentError, ShapeError
from avprompt.precision import wide
from avprompt.ranges import Count, Dropout, Natural

WIDTH, DROPOUT = 512, 0.1  # of the released network


class ParsingInputs(nn.Module):
    """The three kinds of features that parsing networks read -> one vector a segment and modality.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features of frames.
        video_dim: channels of the r2plus1d features; 0 is a network without them.
        width: channels W that come out.
    """

    def __init__(self, audio_dim: int, visual_dim: int, video_dim: int, width: int = WIDTH) -> None:
        super().__init__()
        self.audio, self.visual = nn.Linear(audio_dim, width), nn.Linear(visual_dim, width)
        self.video = nn.Linear(video_dim, width) if video_dim else None
        self.fusion = nn.Linear(2 * width if video_dim else width, width)

    def forward(self, audio: Tensor, visual: Tensor, video: Tensor | None) -> tuple[Tensor, Tensor]:
        """Audio (B, T, C_a), visual (B, T, C_v), r2plus1d (B, T, C_s) -> sound and sight (B, T, W).

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
        width: channels W of sound and sight.

    Example:
        >>> outputs = AttentivePooling(3)(torch.rand(2, 10, 512), torch.rand(2, 10, 512))
        >>> {name: tuple(value.shape) for name, value in outputs.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'audio_prob': (2, 10, 3), 'visual_prob': (2, 10, 3), 'audio_video_prob': (2, 3), 'visual_video_prob': (2, 3),
         'video_prob': (2, 3)}
    """

    def __init__(self, num_classes: int, width: int = WIDTH) -> None:
        super().__init__()
        self.event, self.time, self.modality = (nn.Linear(width, num_classes) for _ in range(3))

    def forward(self, sound: Tensor, sight: Tensor) -> dict[str, Tensor]:
        """Sound and sight (B, T, W) -> probabilities of segments (B, T, C) and of the video (B, C)."""
        both = torch.stack((sound, sight), 2)  # (B, T, 2, W)
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
        width: channels W of both modalities.
        across: whether there is attention to the other modality.
    """

    def __init__(self, heads: int = 1, hidden: int = WIDTH, width: int = WIDTH, across: bool = True) -> None:
        super().__init__()
        attention = lambda: nn.MultiheadAttention(width, heads, DROPOUT, batch_first=True)  # noqa: E731
        self.across, self.own = attention() if across else None, attention()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, other: Tensor | None) -> Tensor:
        """A modality and the other one, (B, T, W) -> (B, T, W); `None` looks at the own modality alone."""
        attended = x if other is None else x + self.dropout(self.across(x, other, other, need_weights=False)[0])
        x = self.norm1(attended + self.dropout(self.own(x, x, x, need_weights=False)[0]))
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
    ResNet-152 and R(2+1)D-18. VALOR's has eight heads, 1024 hidden channels, and takes modalities in turn: 5,094,475;
    those of VALOR+ and VALOR++ have four layers of width 256: 5,051,211, and on features of CLAP and CLIP 4,887,371.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories.
        segments: not needed; any number of segments will do.
        video_dim: channels of the r2plus1d features; 0 is a network without them.
        heads: of each attention.
        hidden: channels of the feed-forward layer.
        in_turn: vision attends to what the layer has made of the sound, and not to the sound before it.
        width: channels of both modalities.
        layers: of attention, one after the other.

    Raises:
        ArgumentError: heads that do not divide the width, no hidden channel, or no layer.

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
        width: Count = WIDTH,
        layers: Count = 1,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads or hidden < 1 or layers < 1:
            raise ArgumentError(
                "heads, hidden, layers",
                f"{heads}, {hidden}, {layers}",
                f"a divisor of {width}, and at least 1",
                "Correct them.",
            )
        self.inputs, self.in_turn = ParsingInputs(audio_dim, visual_dim, video_dim, width), in_turn
        self.attention = nn.ModuleList(self._attention(heads, hidden, width) for _ in range(layers))
        self.pool = AttentivePooling(num_classes, width)

    def _attention(self, heads: int, hidden: int, width: int) -> HybridAttention:
        return HybridAttention(heads, hidden, width)

    def attended(
        self, audio: Tensor, visual: Tensor, video: Tensor | None, across: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Inputs of `forward` -> sound and sight (B, T, W); without `across`, neither attends to the other."""
        sound, sight = self.inputs(audio, visual, video)
        for layer in self.attention:
            heard = layer(sound, sight if across else None)
            other = heard if self.in_turn else sound
            sound, sight = heard, layer(sight, other if across else None)
        return sound, sight

    def forward(self, audio: Tensor, visual: Tensor, video: Tensor | None = None) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, C_v), r2plus1d features (B, T, C_s) where the network has them -> outputs of
        `AttentivePooling`."""
        return self.pool(*self.attended(audio, visual, video))


class JoMoLD(HAN):
    """HAN as JoMoLD (Cheng et al., ECCV 2022) trains it: dropout before the outputs of sight, and cosines of sound and
    sight for a contrastive term. It has HAN's parameters; without `across`, which estimates the noise of labels,
    3,519,051 of them.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories.
        segments: not needed; any number of segments will do.
        video_dim: channels of the r2plus1d features; 0 is a network without them.
        across: whether modalities attend to each other; the estimator's do not.
        class_dropout: share of the channels of sight that training leaves out before the outputs.

    Example:
        >>> JoMoLD(4, 8, 3, video_dim=0)(torch.rand(2, 10, 4), torch.rand(2, 10, 8))["similarity"].shape
        torch.Size([2, 10, 10])
    """

    def __init__(
        self,
        audio_dim: Count,
        visual_dim: Count,
        num_classes: Count,
        segments: Count = 10,
        video_dim: Natural = 512,
        across: bool = True,
        class_dropout: Dropout = 0.5,
    ) -> None:
        self.across = across
        super().__init__(audio_dim, visual_dim, num_classes, segments, video_dim)
        self.class_dropout = nn.Dropout(class_dropout)

    def _attention(self, heads: int, hidden: int, width: int) -> HybridAttention:
        return HybridAttention(heads, hidden, width, self.across)

    def estimator(self) -> JoMoLD:
        """A copy without attention across modalities: the network that estimates the noise of labels."""
        other = copy.deepcopy(self)
        other.across = False
        for layer in other.attention:
            layer.across = None
        return other

    def forward(
        self, audio: Tensor, visual: Tensor, video: Tensor | None = None, across: bool = True
    ) -> dict[str, Tensor]:
        """As `HAN`, with `similarity` (B, T, T), cosines of each sounding segment with each seen one.

        Args:
            audio: (B, T, C_a).
            visual: (B, T, C_v).
            video: (B, T, C_s) where the network has them.
            across: `False` leaves out the attention to the other modality for once.
        """
        sound, sight = self.attended(audio, visual, video, across and self.across)
        cosines = F.normalize(wide(sound), dim=-1) @ F.normalize(wide(sight), dim=-1).transpose(1, 2)
        return {**self.pool(sound, self.class_dropout(sight)), "similarity": cosines}
