"""Segmentation metrics as AVSBench defines them: mean intersection over union and F-score.

Source: the evaluation code of AVSBench (Zhou et al., ECCV 2022), which DG-SCT uses unchanged. Every frame has the same
weight, independently of its size on disk; logits become probabilities in float32, as there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from avprompt.errors import ArgumentError, ShapeError
from avprompt.metrics.states import joined

EPSILON = 1e-7  # added to areas, as published
THRESHOLDS, BETA2 = 255, 0.3


def jaccard(prediction: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of every frame.

    In frames where nothing sounds, the share of pixels that are rightly not predicted counts instead.

    Args:
        prediction: bool (N, H, W).
        masks: (N, H, W) in {0, 1} or bool.

    Returns:
        float64 (N,) in [0, 1].

    Example:
        >>> float(jaccard(torch.tensor([[[True, True]]]), torch.tensor([[[True, False]]])).round(decimals=3))
        0.5
    """
    prediction, masks = prediction.bool(), masks.bool()
    both, either = (prediction & masks).sum((1, 2)).double(), (prediction | masks).sum((1, 2)).double()
    empty, area = ~masks.flatten(1).any(1), masks.shape[1] * masks.shape[2]
    return torch.where(empty, area - either, both) / (torch.where(empty, area, either) + EPSILON)


def _check(logits: Tensor, masks: Tensor) -> None:
    if logits.ndim != 3 or logits.shape != masks.shape or not logits.is_floating_point():
        raise ShapeError(
            "logits, masks",
            f"{tuple(logits.shape)} {logits.dtype}, {tuple(masks.shape)} {masks.dtype}",
            "(N, H, W) floating point, (N, H, W)",
            "Flatten clips and segments; check mask_size.",
        )
    if logits.isnan().any():
        raise ArgumentError("logits", "NaN", "logits", "Look at the loss: has training diverged?")
    if ((masks != 0) & (masks != 1)).any():
        raise ArgumentError(
            "masks", f"values from {masks.min()} to {masks.max()}", "0 and 1", "Divide 8-bit masks by 255."
        )


class AVSJaccard(Metric):
    """Mean over frames of the intersection over union (mIoU, J), in [0, 1], higher is better.

    A pixel is predicted where its probability exceeds 0.5; `jaccard` says how frames count in which nothing sounds. The
    published code averages over batches instead, which is the same where all batches are full. The value of every frame
    is kept until `compute`, so that the result does not depend on the number of processes.

    Example:
        >>> metric = AVSJaccard()
        >>> metric.update(torch.tensor([[[9.0, 9.0]]]), torch.tensor([[[1, 0]]]))
        >>> float(metric.compute().round(decimals=3))
        0.5
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.add_state("frames", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, masks: Tensor) -> None:
        """Count N frames.

        Args:
            logits: (N, H, W).
            masks: (N, H, W) in {0, 1} or bool.

        Raises:
            ShapeError: the two do not fit together.
            ArgumentError: a logit is NaN, or a mask has values other than 0 and 1.
        """
        _check(logits, masks)
        self.frames.append(jaccard(torch.sigmoid(logits.float()) > 0.5, masks))

    def compute(self) -> Tensor:
        """The mean, float64 scalar; NaN before the first batch."""
        return joined(self.frames).to(self.device).mean()


def f_curves(probability: Tensor, masks: Tensor) -> Tensor:
    """F-score of every frame at each of 255 thresholds evenly from 0 to 1.

    A pixel is predicted where its probability reaches the threshold. With beta^2 = 0.3, precision has more weight. A
    frame without a rightly predicted pixel scores 0.

    Args:
        probability: float32 (N, H, W) in [0, 1].
        masks: (N, H, W) in {0, 1} or bool.

    Returns:
        float64 (N, 255) in [0, 1]; zeros where a mask is empty.
    """
    count, device = len(masks), probability.device
    # published as linspace(0, 1 - 1e-10): in float32 that ends at 1
    thresholds = torch.linspace(0, 1, THRESHOLDS, device=device)
    # a pixel's level is how many thresholds it reaches; one histogram of levels a frame, within and outside the mask
    level = torch.bucketize(probability, thresholds, right=True)
    place = (torch.arange(count, device=device).view(-1, 1, 1) * 2 + masks.long()) * (THRESHOLDS + 1) + level
    pixels = torch.bincount(place.flatten(), minlength=count * 2 * (THRESHOLDS + 1)).view(count, 2, THRESHOLDS + 1)
    reached = pixels.flip(-1).cumsum(-1).flip(-1)[..., 1:].double()
    hits, predicted = reached[:, 1], reached.sum(1)
    precision, recall = hits / (predicted + 1e-20), hits / (masks.sum((1, 2)).double().unsqueeze(1) + 1e-20)
    return ((1 + BETA2) * precision * recall / (BETA2 * precision + recall)).nan_to_num(0.0)


class AVSFScore(Metric):
    """F-score with beta^2 = 0.3 at the best of 255 thresholds, in [0, 1], higher is better.

    The curves of F over the thresholds (`f_curves`) are averaged over the frames in which something sounds; the score
    is the maximum of that mean curve.

    The curve of every frame is kept until `compute`, 2 kB each. The curves of several processes are gathered in the
    order of the processes. If each process has a contiguous part of the dataset, as with
    `avprompt.media.samplers.share`, both protocols give the figure of one process.

    Args:
        protocol: `dataset` averages over all frames and takes one maximum. `released` takes the maximum of every group
            of `frames_per_group` consecutive frames and averages these, as the published code does with its batches:
            each group has its own threshold, a group in which nothing sounds scores 0, and a last, smaller group has
            the weight of a full one.
        frames_per_group: of `released`; the published test script has four clips of five frames.

    Raises:
        ArgumentError: unknown protocol, or groups without a frame.

    Example:
        >>> metric = AVSFScore()
        >>> metric.update(torch.tensor([[[9.0, -9.0]]]), torch.tensor([[[1, 0]]]))
        >>> float(metric.compute())
        1.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(
        self, protocol: Literal["dataset", "released"] = "dataset", frames_per_group: int = 20, **options: object
    ) -> None:
        super().__init__(**options)
        if protocol not in ("dataset", "released"):
            raise ArgumentError("protocol", protocol, "dataset or released", "Correct the argument.")
        if frames_per_group < 1:
            raise ArgumentError("frames_per_group", frames_per_group, "at least 1", "20 is published.")
        self.protocol, self.frames_per_group = protocol, frames_per_group
        self.add_state("curves", [], dist_reduce_fx="cat")
        self.add_state("sounds", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, masks: Tensor) -> None:
        """Count N frames, in order.

        Args:
            logits: (N, H, W).
            masks: (N, H, W) in {0, 1} or bool.

        Raises:
            ShapeError: the two do not fit together.
            ArgumentError: a logit is NaN, or a mask has other values.
        """
        _check(logits, masks)
        self.curves.append(f_curves(torch.sigmoid(logits.float()), masks))
        self.sounds.append(masks.flatten(1).any(1))

    def compute(self) -> Tensor:
        """The score, float64 scalar; 0 where nothing sounds in any frame, NaN before the first batch."""
        curves, sounds = joined(self.curves), joined(self.sounds)
        if not len(curves):
            return torch.tensor(torch.nan, dtype=torch.float64, device=self.device)
        size = len(curves) if self.protocol == "dataset" else self.frames_per_group
        # the curves of frames in which nothing sounds are zero
        best = [
            (group.sum(0) / counted.sum().clamp(min=1)).max()
            for group, counted in zip(curves.split(size), sounds.split(size))
        ]
        return torch.stack(best).mean()
