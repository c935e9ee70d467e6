"""JoMoLD's removal of labels (Cheng et al., ECCV 2022): of two modalities, one may not have what the video's label says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from avprompt.errors import ArgumentError, check_choice
from avprompt.precision import wide
from avprompt.ranges import Positive

#: JoMoLD's two kinds of noise: labels that a video's sound does not have, and that its sight does not have
KINDS = ("audio", "visual")


def cross_entropies(probability: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of each entry, as `avprompt.losses.cross_entropy_of_probability` means it.

    Example:
        >>> import torch
        >>> cross_entropies(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 1.0])).round(decimals=2)
        tensor([0.6900, 0.0000])
    """
    probability = wide(probability).clamp(1e-7, 1 - 1e-7)
    return -(target * probability.log() + (1 - target) * (-probability).log1p())


def noisy_labels(losses: dict[str, Tensor], labels: Tensor, shares: dict[str, Tensor]) -> dict[str, Tensor]:
    """Labels of a batch that one modality fits badly and the other one well, for each category by itself.

    Of n videos with a label, k are noise for a modality at most, k being its share of n, rounded down: those that are
    among the k with its largest losses and among the k with the smallest losses of the other modality.

    Args:
        losses: of `audio` and `visual`, (B, C), of each label.
        labels: (B, C) in {0, 1}.
        shares: of `audio` and `visual`, (C,) float64 in [0, 1].

    Returns:
        Of `audio` and `visual`, (B, C) bool.

    Example:
        >>> import torch
        >>> losses = {"audio": torch.tensor([[0.1], [0.2], [3.0]]), "visual": torch.tensor([[2.0], [4.0], [0.1]])}
        >>> shares = {"audio": torch.tensor([0.0]), "visual": torch.tensor([0.67])}
        >>> found = noisy_labels(losses, torch.tensor([[1.0], [1.0], [1.0]]), shares)
        >>> found["visual"].flatten().tolist(), found["audio"].any().item()
        ([True, True, False], False)
    """
    given, count = labels > 0.5, labels.sum(0)
    # place of each label among those of its category, the smallest loss first
    places = {
        kind: loss.masked_fill(~given, math.inf).argsort(dim=0, stable=True).argsort(dim=0)
        for kind, loss in losses.items()
    }
    found = {}
    for kind, other in zip(KINDS, reversed(KINDS)):
        most = (shares[kind] * count.double()).floor()
        found[kind] = given & (count - 1 - places[kind] < most) & (places[other] < most)
    return found


class LabelDenoising(nn.Module):
    """Labels of the video that are taken from one modality in training, as JoMoLD does it.

    Before training, a network without attention across modalities, trained before, says of each category which share of
    its labels is noise: a label of a video counts as noise for a modality whose probability of it, times its target, is
    below a multiple (`audio_threshold`, `visual_threshold`) of the mean probability over all training videos. In each
    step, `noisy_labels` finds as many labels of the batch, with the losses of the network in training, used without
    attention across modalities.

    Args:
        estimator: checkpoint of a run of the head `avprompt.heads.JoMoLD` with `across: false`.
        audio_threshold: see above.
        visual_threshold: likewise.
        warmup: epochs over which the shares rise from 0.
        ramp: `linear` over these epochs, as the paper has it. `released` multiplies the rising factors of all steps
            of an epoch, a slip of the released script: with 0.9 epochs nothing is removed in the first epoch, and the
            whole shares from the second on.

    Raises:
        ArgumentError: an unknown `ramp`.

    Example:
        >>> denoising = LabelDenoising(Path("best.ckpt"))
        >>> [round(denoising.rise(epoch, step, 10), 2) for epoch, step in ((0, 0), (0, 3), (1, 0))]
        [0.0, 0.33, 1.0]
    """

    def __init__(
        self,
        estimator: Path,
        audio_threshold: Positive = 0.6,
        visual_threshold: Positive = 1.8,
        warmup: Positive = 0.9,
        ramp: Literal["linear", "released"] = "linear",
    ) -> None:
        super().__init__()
        check_choice("ramp", ramp, ("linear", "released"))
        self.estimator, self.warmup, self.ramp = estimator, warmup, ramp
        self.thresholds = dict(zip(KINDS, (audio_threshold, visual_threshold)))
        for kind in KINDS:  # found anew before training, and no weight
            self.register_buffer(f"{kind}_share", None, persistent=False)

    def find_shares(self, probabilities: dict[str, Tensor], labels: Tensor, targets: dict[str, float]) -> None:
        """The share of each category's labels that is noise, from the estimator's outputs.

        The released script averages probabilities over batches, of which the last is smaller; here they are averaged
        over videos.

        Args:
            probabilities: of `audio` and `visual`, (V, C), of all V training videos.
            labels: (V, C) in {0, 1}.
            targets: of `audio` and `visual`: what a given label becomes as a target, below 1 with label smoothing.
        """
        given = labels > 0.5
        for kind, probability in probabilities.items():
            probability = probability.double()
            low = targets[kind] * probability / probability.mean(0) < self.thresholds[kind]
            share = (low & given).sum(0).double() / given.sum(0).clamp(min=1)
            setattr(self, f"{kind}_share", share)

    def rise(self, epoch: int, step: int, steps: int) -> float:
        """Factor of the shares at a step, counted from 0, of an epoch, counted from 0, of `steps` steps."""
        factors = [min(1.0, (epoch * steps + own) / (self.warmup * steps)) for own in range(step + 1)]
        return math.prod(factors) if self.ramp == "released" else factors[-1]

    def remove(self, losses: dict[str, Tensor], labels: Tensor, rise: float) -> dict[str, Tensor]:
        """The labels that each modality does without at this step, (B, C) bool, see `noisy_labels`.

        Raises:
            ArgumentError: before `find_shares`.
        """
        if self.audio_share is None:
            raise ArgumentError(
                "denoising", "no shares of noise", "training by a trainer", "Train the task with `avprompt fit`."
            )
        shares = {kind: rise * getattr(self, f"{kind}_share") for kind in KINDS}
        return noisy_labels(losses, labels, shares)
