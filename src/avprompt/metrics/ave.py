"""Accuracy of audio-visual event localisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from avprompt.errors import ArgumentError, ShapeError
from avprompt.metrics.states import joined


def predicted_categories(is_event: Tensor, event: Tensor) -> Tensor:
    """The category of each segment: the best event of the clip where the segment's probability exceeds 0.5, else
    background.

    Args:
        is_event: (B, T) logits.
        event: (B, C) logits.

    Returns:
        (B, T) long in [0, C]; C is background.

    Example:
        >>> predicted_categories(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 3.0]]))
        tensor([[1, 2]])
    """
    best = event.argmax(-1, keepdim=True).expand_as(is_event)
    return torch.where(is_event > 0, best, event.shape[-1])


class AVEAccuracy(Metric):
    """Share of segments whose category, background included, is right; in [0, 1], higher is better.

    As published, every segment counts, whether or not its media could be decoded; `segments` is their number. On
    several processes the result is that of one process with the same batches.

    Args:
        protocol: `exact` divides right segments by all segments. `released` is the mean over `update` calls of each
            batch's accuracy, as the DG-SCT training loop reports it: with batches of 8 the two clips left over of 402
            weigh four times as much, and the result depends on the batch size.

    Raises:
        ArgumentError: unknown protocol.

    Example:
        >>> metric = AVEAccuracy()
        >>> target = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]])
        >>> metric.update(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 3.0]]), target)
        >>> float(metric.compute())
        0.5
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, protocol: Literal["exact", "released"] = "exact", **options: object) -> None:
        super().__init__(**options)
        if protocol not in ("exact", "released"):
            raise ArgumentError("protocol", protocol, "exact or released", "Correct the argument.")
        self.protocol = protocol
        self.add_state("right", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("batches", [], dist_reduce_fx="cat")
        self.add_state("segments", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, is_event: Tensor, event: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            is_event: (B, T) logits.
            event: (B, C) logits.
            target: (B, T, C + 1) one-hot, background last.

        Raises:
            ShapeError: the three shapes do not match.
            ArgumentError: a logit is NaN, which would count as background.
        """
        if target.shape != (*is_event.shape, event.shape[-1] + 1) or len(event) != len(is_event):
            raise ShapeError(
                "is_event, event, target",
                f"{tuple(is_event.shape)}, {tuple(event.shape)}, {tuple(target.shape)}",
                "(B, T), (B, C), (B, T, C + 1)",
                "Check the task's num_classes.",
            )
        if is_event.isnan().any() or event.isnan().any():
            raise ArgumentError("is_event, event", "NaN", "logits", "Look at the loss: has training diverged?")
        right = predicted_categories(is_event, event) == target.argmax(-1)
        self.right += right.sum()
        self.segments += right.numel()
        if self.protocol == "released":
            self.batches.append(right.double().mean())

    def compute(self) -> Tensor:
        """The accuracy, float64 scalar; NaN before the first batch."""
        if self.protocol == "released":
            return joined(self.batches).mean()
        return self.right.double() / self.segments
