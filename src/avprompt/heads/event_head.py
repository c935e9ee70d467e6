"""The interface of event localisation heads that read visual features by position."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from avprompt.errors import ArgumentError, ShapeError
from avprompt.ranges import Count


class EventHead(nn.Module, abc.ABC):
    """Reads a clip's sound and the positions of its frames; names the event, and the segments in which it occurs.

    Two styles of output exist. `segments` (B, T, C + 1) are logits of every segment over the categories and background,
    which is last. `is_event` (B, T) are logits of relevance, beside which `event` (B, C) are logits of the clip's
    category. With `weak`, `event` has C + 1 categories, and both styles add `clip` (B, C + 1), logits of the clip that
    learn from its label alone; no output then needs the label of a segment.

    Args:
        audio_dim: channels C_a of the audio features.
        visual_dim: channels C_v of the visual features.
        num_classes: event categories C, background not counted.
        weak: outputs for weak labels.

    Raises:
        ArgumentError: `weak` for a head of which no such form is known.

    Example:
        >>> class Mean(EventHead):
        ...     def __init__(self, audio_dim, visual_dim, num_classes, weak=False):
        ...         super().__init__(audio_dim, visual_dim, num_classes, weak)
        ...         self.out = nn.Linear(audio_dim + visual_dim, num_classes + 1)
        ...     def forward(self, audio, visual):
        ...         return self.scored(self.out(torch.cat((audio, visual.mean(2)), -1)))
        >>> outputs = Mean(4, 8, 3, weak=True)(torch.rand(2, 10, 4), torch.rand(2, 10, 49, 8))
        >>> {name: tuple(value.shape) for name, value in outputs.items()}
        {'segments': (2, 10, 4), 'clip': (2, 4)}
    """

    #: whether there is a form for weak labels
    weakly_supervised = True

    def __init__(self, audio_dim: Count, visual_dim: Count, num_classes: Count, weak: bool = False) -> None:
        super().__init__()
        if weak and not self.weakly_supervised:
            raise ArgumentError(
                "supervision",
                f"weak, with {type(self).__name__}",
                "full: no publication says how this network learns from weak labels",
                "Use another head, such as AVEL, PSP, CMRAN or CMBSAlone.",
            )
        self.num_classes, self.weak = num_classes, weak

    @abc.abstractmethod
    def forward(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual features by position (B, T, N, C_v) -> outputs."""

    def scored(self, segments: Tensor) -> dict[str, Tensor]:
        """Logits of segments (B, T, C + 1) -> outputs; a clip's logit is the highest over time, as in AVEL."""
        return {"segments": segments, **({"clip": segments.amax(1)} if self.weak else {})}

    def relevant(self, is_event: Tensor, event: Tensor) -> dict[str, Tensor]:
        """Logits of relevance (B, T) and of the category, (B, C) or weakly (B, C + 1) -> outputs.

        A segment's logit is the category's by its relevance; a clip's is the highest over time, as in CMRAN.
        """
        clip = {"clip": (is_event.sigmoid().unsqueeze(-1) * event.unsqueeze(1)).amax(1)} if self.weak else {}
        return {"is_event": is_event, "event": event, **clip}


def expect_segments(x: Tensor, segments: int, head: str) -> None:
    """Refuse another number of segments than a head was built for.

    Raises:
        ShapeError: `x` (B, T, ...) has other than `segments`.
    """
    if x.shape[1] != segments:
        raise ShapeError(
            "segments",
            x.shape[1],
            f"{segments}, which {head} was built for",
            f"Build the head with `segments: {x.shape[1]}`.",
        )


def xavier(module: nn.Module, biases: bool = False) -> None:
    """Draw the weights of all linear layers Xavier-uniformly, and with `biases` set their biases to zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if biases and part.bias is not None:
                nn.init.zeros_(part.bias)


def bilstm(inputs: int, hidden: int, **options: object) -> nn.LSTM:
    """A bidirectional LSTM over (B, T, inputs) -> (B, T, 2 hidden)."""
    return nn.LSTM(inputs, hidden, batch_first=True, bidirectional=True, **options)


class ResidualFusion(nn.Module):
    """Dual multimodal residual fusion (DMRN; Tian et al., ECCV 2018, equation 7), one step.

    Args:
        dim: channels of both modalities.

    Example:
        >>> ResidualFusion(8)(torch.rand(2, 10, 8), torch.rand(2, 10, 8)).shape
        torch.Size([2, 10, 8])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.visual, self.audio = (nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim)) for _ in range(2))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Audio and visual (..., C) -> the mean of both after the step, (..., C)."""
        merged = (self.visual(visual) + self.audio(audio)) / 2
        return (torch.tanh(audio + merged) + torch.tanh(visual + merged)) / 2
