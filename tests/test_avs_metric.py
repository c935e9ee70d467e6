"""Overlap and F-score of masks: by hand, against the definition taken literally, and under every split of the work."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from avprompt.errors import ArgumentError, ShapeError
from avprompt.metrics.avs import AVSFScore, AVSJaccard, f_curves, jaccard


def literal_jaccard(logits: Tensor, masks: Tensor) -> list[float]:
    """Pixel by pixel."""
    scores = []
    for frame, mask in zip(torch.sigmoid(logits.float()).tolist(), masks.tolist()):
        pairs = [(p > 0.5, g == 1) for row, truth in zip(frame, mask) for p, g in zip(row, truth)]
        if any(g for _, g in pairs):
            inter, union = sum(p and g for p, g in pairs), sum(p or g for p, g in pairs)
        else:
            inter, union = sum(not p for p, _ in pairs), len(pairs)
        scores.append(inter / (union + 1e-7))
    return scores


def literal_curves(logits: Tensor, masks: Tensor) -> list[list[float]]:
    """Threshold by threshold; `[]` for a frame without sound."""
    thresholds = torch.linspace(0, 1 - 1e-10, 255)
    curves = []
    for frame, mask in zip(torch.sigmoid(logits.float()), masks):
        curve = []
        for threshold in thresholds if mask.any() else []:
            predicted = frame >= threshold
            hits = float((predicted & (mask == 1)).sum())
            precision, recall = hits / (float(predicted.sum()) + 1e-20), hits / (float(mask.sum()) + 1e-20)
            below = 0.3 * precision + recall
            curve.append(1.3 * precision * recall / below if below else 0.0)
        curves.append(curve)
    return curves


def literal_score(curves: list[list[float]], size: int) -> float:
    """Mean over groups of the maximum of the mean curve."""
    best = []
    for first in range(0, len(curves), size):
        sounding = [curve for curve in curves[first : first + size] if curve]
        best.append(max(sum(values) / len(sounding) for values in zip(*sounding)) if sounding else 0.0)
    return sum(best) / len(best)


def random_case(seed: int, frames: int = 13, size: tuple[int, int] = (9, 7)) -> tuple[Tensor, Tensor]:
    """Every third mask empty; logits that follow the masks a little, many of them the same."""
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand(frames, *size, generator=generator) < torch.rand(frames, 1, 1, generator=generator)).float()
    masks[::3] = 0
    logits = 3 * torch.randn(frames, *size, generator=generator) + 2 * masks
    return logits.round() if seed % 2 else logits, masks


def adversarial() -> dict[str, tuple[Tensor, Tensor]]:
    square = torch.zeros(3, 8, 8)
    square[0, :4, :4], square[1, 2:5, 6:], square[2] = 1, 1, 0
    ones, big = torch.ones(3, 8, 8), 20 * (2 * square - 1)
    # probabilities that are thresholds exactly, and their nearest neighbours in float32
    levels = torch.linspace(0, 1 - 1e-10, 255)
    logits = torch.logit(levels.double()).float().nan_to_num(posinf=40.0, neginf=-200.0)
    ties = torch.stack([logits, torch.nextafter(logits, logits + 1), torch.nextafter(logits, logits - 1)])
    assert 100 < torch.isin(torch.sigmoid(ties), levels).sum() < 700
    return {
        "empty masks": (torch.linspace(-3, 3, 192).view(3, 8, 8), torch.zeros(3, 8, 8)),
        "all foreground": (torch.linspace(-3, 3, 192).view(3, 8, 8), ones),
        "perfect": (big, square),
        "inverted": (-big, square),
        "nothing predicted": (-200 * ones, square),
        "all predicted": (200 * ones, square),
        "undecided": (torch.zeros(3, 8, 8), square),
        "barely": (torch.full((3, 8, 8), 1e-9), square),
        "infinite": (big * math.inf, square),
        "ties": (ties.view(1, 15, 51), (torch.arange(765).view(1, 15, 51) % 3 == 0).float()),
    }


@pytest.mark.parametrize("name", [*adversarial(), *(f"random {seed}" for seed in range(6))])
def test_literally(name: str) -> None:
    logits, masks = adversarial()[name] if name in adversarial() else random_case(int(name.split()[1]))
    scores, curves = literal_jaccard(logits, masks), literal_curves(logits, masks)
    assert jaccard(torch.sigmoid(logits) > 0.5, masks).tolist() == pytest.approx(scores, abs=1e-12)
    ours = f_curves(torch.sigmoid(logits), masks)
    assert ours.shape == (len(masks), 255) and not ours.isnan().any()
    for mine, theirs in zip(ours.tolist(), curves):
        assert mine == pytest.approx(theirs or [0.0] * 255, abs=1e-12)
    overlap, whole, groups = AVSJaccard(), AVSFScore(), AVSFScore("released", frames_per_group=2)
    for metric in (overlap, whole, groups):
        metric.update(logits, masks)
    assert float(overlap.compute()) == pytest.approx(sum(scores) / len(scores), abs=1e-12)
    assert float(whole.compute()) == pytest.approx(literal_score(curves, len(curves)), abs=1e-12)
    assert float(groups.compute()) == pytest.approx(literal_score(curves, 2), abs=1e-12)


def test_by_hand() -> None:
    """Frame 1: 2 of 4 pixels sound, one of them is found, one other is taken for it. Frame 2: nothing sounds."""
    masks = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]]])
    logits = torch.tensor([[[9.0, -9.0], [1.0, -9.0]], [[9.0, -9.0], [-9.0, -9.0]]])
    overlap, score = AVSJaccard(), AVSFScore()
    overlap.update(logits, masks)  # 1 of 3 in the union; 3 of 4 rightly left out
    score.update(logits, masks)  # above sigmoid(1): precision 1, recall 0.5, F = 1.3 * 0.5 / 0.8; frame 2 is left out
    assert float(overlap.compute()) == pytest.approx((1 / 3 + 3 / 4) / 2, abs=1e-6)
    assert float(score.compute()) == pytest.approx(0.8125, abs=1e-12)
    assert overlap.compute().dtype == score.compute().dtype == torch.float64


def test_extremes() -> None:
    cases = adversarial()
    # of three frames the last is empty: a probability of exactly 0.5 predicts nothing, which is right there alone
    for name, expected in (("perfect", 1), ("inverted", 0), ("undecided", 1 / 3), ("all predicted", (16 + 6) / 64 / 3)):
        overlap = AVSJaccard()
        overlap.update(*cases[name])
        assert float(overlap.compute()) == pytest.approx(expected, abs=1e-6)
    score = AVSFScore()
    score.update(*cases["perfect"])
    assert float(score.compute()) == pytest.approx(1, abs=1e-12)
    empty = AVSFScore()
    empty.update(*cases["empty masks"])
    assert empty.compute() == 0
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert AVSFScore().compute().isnan() and AVSJaccard().compute().isnan()


@pytest.mark.parametrize("size", [1, 4, 5, 13])
def test_how_the_frames_are_batched_changes_nothing(size: int) -> None:
    logits, masks = random_case(0)
    curves = literal_curves(logits, masks)
    metrics = AVSJaccard(), AVSFScore(), AVSFScore("released", frames_per_group=5)
    for first in range(0, 13, size):
        for metric in metrics:
            metric.update(logits[first : first + size], masks[first : first + size])
    expected = [sum(literal_jaccard(logits, masks)) / 13, literal_score(curves, 13), literal_score(curves, 5)]
    assert [float(metric.compute()) for metric in metrics] == pytest.approx(expected, abs=1e-12)
    assert expected[1] < expected[2] - 0.01  # each group takes the threshold that suits it


def test_released_groups() -> None:
    """Perfect in the first group, silent in the second, wholly wrong in the third, which is of one frame."""
    mask = torch.zeros(4, 4)
    mask[:2] = 1
    masks = torch.stack([mask, mask, mask * 0, mask * 0, mask])
    logits = torch.stack([20 * (2 * m - 1) for m in (mask, mask, mask, mask, 1 - mask)])
    score = AVSFScore("released", frames_per_group=2)
    score.update(logits, masks)
    everywhere = 1.3 * 0.5 / (0.3 * 0.5 + 1)  # at threshold 0 all pixels are predicted: precision 0.5, recall 1
    assert float(score.compute()) == pytest.approx((1 + 0 + everywhere) / 3, abs=1e-12)
    whole = AVSFScore()
    whole.update(logits, masks)
    assert float(whole.compute()) == pytest.approx(2 / 3, abs=1e-12)


@pytest.mark.parametrize("make", [AVSJaccard, AVSFScore, partial(AVSFScore, "released", 4)])
def test_merged_pickled_reset_half_precision(make: Callable[[], Metric]) -> None:
    logits, masks = random_case(2)
    whole, first, second, called = make(), make(), make(), make()
    whole.update(logits, masks)
    first.update(logits[:8], masks[:8])
    second.update(logits[8:], masks[8:].bool())
    second.merge_state(first)  # torchmetrics puts what is merged in before what is there
    assert float(pickle.loads(pickle.dumps(second)).compute()) == pytest.approx(float(whole.compute()), abs=1e-12)
    called(logits[:6], masks[:6])
    called(logits[6:], masks[6:])
    assert float(called.compute()) == pytest.approx(float(whole.compute()), abs=1e-12)
    called.reset()
    called.update(logits.bfloat16(), masks)
    assert float(called.compute()) == pytest.approx(float(whole.compute()), abs=0.02)


def test_published_size() -> None:
    """224 x 224 at every threshold, against one threshold at a time."""
    logits, masks = random_case(4, 3, (224, 224))
    probability, masks = torch.sigmoid(logits), masks.bool()
    curve = f_curves(probability, masks)
    for index in (0, 1, 100, 253, 254):
        predicted = probability >= torch.linspace(0, 1 - 1e-10, 255)[index]
        precision = (predicted & masks).sum((1, 2)) / predicted.sum((1, 2)).clamp(min=1)
        recall = (predicted & masks).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1)
        expected = (1.3 * precision * recall / (0.3 * precision + recall)).nan_to_num()
        assert torch.allclose(curve[:, index].float(), expected, atol=1e-6)


@pytest.mark.parametrize("make", [AVSJaccard, AVSFScore])
def test_bad_input(make: type) -> None:
    logits, masks = random_case(0, 2)
    for wrong in ((logits[:1], masks), (logits[:, :5], masks), (logits[0], masks[0]), (logits.long(), masks)):
        with pytest.raises(ShapeError, match="logits, masks"):
            make().update(*wrong)
    metric, broken = make(), logits.clone()
    broken[1, 2, 3] = float("nan")
    with pytest.raises(ArgumentError, match="NaN"):
        metric.update(broken, masks)
    with pytest.raises(ArgumentError, match="Divide 8-bit masks"):
        metric.update(logits, masks * 255)
    metric.update(logits, masks)
    assert not metric.compute().isnan()


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="protocol"):
        AVSFScore("batch")
    with pytest.raises(ArgumentError, match="frames_per_group"):
        AVSFScore("released", 0)
