"""What datasets with one event category a clip share: AVE and VGG-Sound(40K)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from avprompt.datasets.base import Sample, curves_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Annotated(Protocol):
    """A clip with one category; a segment in which it is not both seen and heard is background."""

    id: str
    category: int

    def label(self, segments: int, num_classes: int) -> Tensor:
        """One-hot (T, C + 1) float32, background last."""


def one_hot(active: Tensor, category: int, num_classes: int) -> Tensor:
    """One-hot label of a clip.

    Args:
        active: bool (T,), segments in which the category is seen and heard.
        category: its index.
        num_classes: number C of categories.

    Returns:
        float32 (T, C + 1), background last.

    Example:
        >>> one_hot(torch.tensor([False, True]), category=0, num_classes=2).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    label = torch.zeros(len(active), num_classes + 1)
    label[active, category], label[~active, num_classes] = 1.0, 1.0
    return label


def example(clips: int, segments: int, num_classes: int) -> dict[str, Tensor]:
    """`event` (clips, segments, num_classes + 1) float32 and `category` (clips,) int64 of a batch in which the first
    category lasts all the time."""
    event = torch.zeros(clips, segments, num_classes + 1)
    event[..., 0] = 1
    return {"event": event, "category": torch.zeros(clips, dtype=torch.long)}


def plot(sample: Sample, class_names: Sequence[str], spacing: float = 1.0) -> Figure:
    """Frames, waveform, `event` and, if present, `prediction`: (T,), or () for one answer about the whole clip."""
    from avprompt.plots.timeline import clip_figure

    truth = sample["event"].argmax(-1) if "event" in sample else None
    prediction = sample["prediction"].expand(len(sample["frames"])) if "prediction" in sample else None
    return clip_figure(
        sample["frames"],
        sample["audio"],
        class_names,
        prediction,
        truth,
        sample["id"],
        float(sample.get("start", 0.0)),
        sample.get("valid"),
        sample.get("map_visual"),
        curves_of(sample),
    )
