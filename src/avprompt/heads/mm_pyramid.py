"""MM-Pyramid (Yu et al., ACM MM 2022): attention within growing windows of time, and a choice among the levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avprompt.heads.event_head import EventHead
from avprompt.heads.han import AttentivePooling, ParsingHead, ParsingInputs
from avprompt.ranges import Count

WIDTH, HEADS, LEVELS, DROPOUT = 512, 8, 4, 0.2  # of the released network


class Layer(nn.Module):
    """Attention and a feed-forward block, each behind a norm of the query alone."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, 0.1, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, memory: Tensor, far: Tensor | None = None) -> Tensor:
        """Query (B, T, 512), memory (B, S, 512), pairs that may not attend (T, S) bool -> (B, T, 512)."""
        x = x + self.dropout(self.attention(self.norm1(x), memory, memory, attn_mask=far, need_weights=False)[0])
        return x + self.dropout(self.linear2(self.dropout(torch.relu(self.linear1(self.norm2(x))))))


class Convolution(nn.Module):
    """Dilated convolution over time with a residual.

    Args:
        dilation: segments between its three taps.
    """

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation), nn.ReLU(), nn.Conv1d(WIDTH, WIDTH, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 512) -> (B, T, 512)."""
        return torch.relu(self.net(x.transpose(1, 2)).transpose(1, 2) + x)


class Level(nn.Module):
    """Attention within and across modalities, which two gates mix, then a convolution.

    Args:
        window: segments on each side that a segment attends to.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.own, self.across = nn.ModuleList(Layer() for _ in range(2)), Layer()
        self.gates = nn.ModuleList(nn.Linear(2 * WIDTH, 2 * WIDTH) for _ in range(2))
        self.convolution = nn.ModuleList(Convolution(window) for _ in range(2))

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Visual and audio (B, T, 512) -> the same."""
        time = torch.arange(visual.shape[1], device=visual.device)
        far = (time[:, None] - time).abs() > self.window
        found = []
        for x, other, own, gates, convolution in zip(
            (visual, audio), (audio, visual), self.own, self.gates, self.convolution
        ):
            alone, both = own(x, x, far), self.across(x, other, far)
            one, two = gates(torch.cat((alone, both), -1)).sigmoid().chunk(2, -1)
            found.append(convolution(one * alone + two * both))
        return found[0], found[1]


class Choice(nn.Module):
    """The levels of a segment attend to each other; their weighted sum is the segment's feature."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.weight = Layer(), nn.Linear(WIDTH, 1)

    def forward(self, levels: Tensor) -> Tensor:
        """(B, T, L, 512) -> (B, T, 512)."""
        mixed = self.layer(flat := levels.flatten(0, 1), flat)
        return (mixed * self.weight(mixed).sigmoid()).sum(1).unflatten(0, levels.shape[:2])


class Pyramid(nn.Module):
    """The trunk of MM-Pyramid: four levels with windows 1, 2, 4, 8, each on the level before."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Level(2**index) for index in range(LEVELS))
        self.visual, self.audio = Choice(), Choice()

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Visual and audio (B, T, 512) -> the same."""
        seen, heard = [], []
        for level in self.levels:
            visual, audio = level(visual, audio)
            seen.append(visual)
            heard.append(audio)
        return self.visual(torch.stack(seen, 2)), self.audio(torch.stack(heard, 2))


class MMPyramid(EventHead):
    """MM-Pyramid for event localisation. The trunk is the released one; how the authors read the event from it was not
    released: a linear map of both modalities is a guess.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features, whose positions are averaged.
        num_classes: event categories, background not counted.
        weak: outputs for weak labels, see `EventHead`.

    Example:
        >>> MMPyramid(4, 8, num_classes=3)(torch.rand(2, 10, 4), torch.rand(2, 10, 36, 8))["segments"].shape
        torch.Size([2, 10, 4])
    """

    def __init__(self, audio_dim: Count, visual_dim: Count, num_classes: Count, weak: bool = False) -> None:
        super().__init__(audio_dim, visual_dim, num_classes, weak)
        self.audio, self.visual = nn.Linear(audio_dim, WIDTH), nn.Linear(visual_dim, WIDTH)
        self.pyramid, self.out = Pyramid(), nn.Linear(2 * WIDTH, num_classes + 1)

    def forward(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, N, C_v) -> `segments`, see `EventHead`."""
        seen, heard = self.pyramid(self.visual(visual.mean(2)), self.audio(audio))
        return self.scored(self.out(torch.cat((seen, heard), -1)))


class MMPyramidParsing(ParsingHead):
    """MM-Pyramid for video parsing, as released without the parts that never influence an output: 40,827,469 parameters
    with VGGish, ResNet-152 and R(2+1)D-18.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories.
        segments: not needed; any number of segments will do.
        video_dim: channels of the r2plus1d features; 0 is a network without them.
        exchanged: take sight's output for sound's and the reverse, as the released code does.

    Example:
        >>> MMPyramidParsing(4, 8, 3, video_dim=0)(torch.rand(2, 10, 4), torch.rand(2, 10, 8))["video_prob"].shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        audio_dim: Count,
        visual_dim: Count,
        num_classes: Count,
        segments: Count = 10,
        video_dim: Count = 512,
        exchanged: bool = False,
    ) -> None:
        super().__init__()
        self.exchanged = exchanged
        self.inputs, self.pyramid = ParsingInputs(audio_dim, visual_dim, video_dim, WIDTH), Pyramid()
        self.pool = AttentivePooling(num_classes, WIDTH)

    def forward(self, audio: Tensor, visual: Tensor, video: Tensor | None = None) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, C_v), r2plus1d features (B, T, C_s) where the network has them -> outputs of
        `AttentivePooling`."""
        sound, sight = self.inputs(audio, visual, video)
        sight, sound = self.pyramid(sight, sound)
        return self.pool(*(sight, sound) if self.exchanged else (sound, sight))
