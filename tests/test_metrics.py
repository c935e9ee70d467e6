"""Accuracy by hand, by brute force, and under every way of splitting the work."""

from __future__ import annotations

import pickle

import pytest
import torch

from avprompt.errors import ArgumentError, ShapeError
from avprompt.metrics import AVEAccuracy


def random_case(clips: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    is_event, event = torch.randn(clips, 10, generator=generator), torch.randn(clips, 5, generator=generator)
    index = torch.randint(0, 6, (clips, 10), generator=generator)
    return is_event, event, torch.nn.functional.one_hot(index, 6).float()


def brute_force(is_event: torch.Tensor, event: torch.Tensor, target: torch.Tensor) -> float:
    right = total = 0
    for clip in range(len(event)):
        best = max(range(event.shape[1]), key=lambda c: float(event[clip, c]))
        for second in range(is_event.shape[1]):
            probability = 1 / (1 + float(torch.exp(-is_event[clip, second].double())))
            predicted = best if probability > 0.5 else event.shape[1]
            right += float(target[clip, second, predicted]) == 1.0
            total += 1
    return right / total


def test_by_hand() -> None:
    """Clip of 4 seconds, event 1 predicted in seconds 0 and 1; annotated in 1 and 2; background is 2."""
    is_event, event = torch.tensor([[3.0, 0.1, -2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    target = torch.nn.functional.one_hot(torch.tensor([[2, 1, 1, 2]]), 3).float()
    metric = AVEAccuracy()
    metric.update(is_event, event, target)  # wrong, right, wrong, right (a probability of exactly 0.5 is background)
    assert metric.compute() == 0.5 and metric.segments == 4


@pytest.mark.parametrize("seed", range(5))
def test_exact_equals_brute_force_however_it_is_split(seed: int) -> None:
    case = random_case(13, seed)
    expected = brute_force(*case)
    for size in (1, 4, 13):
        metric = AVEAccuracy()
        for first in range(0, 13, size):
            metric.update(*(part[first : first + size] for part in case))
        assert float(metric.compute()) == pytest.approx(expected, abs=1e-12)


def test_released_weighs_the_last_small_batch_like_a_full_one() -> None:
    """402 clips in batches of 8: the two clips left over count four times; this is how 82.18 % came about."""
    is_event, event, target = random_case(10)
    metric = AVEAccuracy("released")
    metric.update(is_event[:8], event[:8], target[:8])
    metric.update(is_event[8:], event[8:], target[8:])
    first, last = brute_force(is_event[:8], event[:8], target[:8]), brute_force(is_event[8:], event[8:], target[8:])
    assert float(metric.compute()) == pytest.approx((first + last) / 2, abs=1e-12)
    assert first != last and metric.segments == 100


def test_extremes() -> None:
    event, background = torch.eye(3), torch.zeros(3, 4, 4)
    background[..., 3] = 1
    metric = AVEAccuracy()
    metric.update(torch.full((3, 4), -9.0), event, background)
    assert metric.compute() == 1
    metric.update(torch.full((3, 4), 9.0), event, background)
    assert metric.compute() == 0.5
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert torch.isnan(AVEAccuracy().compute())


def test_merged_pickled_half_precision() -> None:
    is_event, event, target = random_case(8)
    whole, first, second = AVEAccuracy(), AVEAccuracy(), AVEAccuracy()
    whole.update(is_event, event, target)
    first.update(is_event[:3], event[:3], target[:3])
    second.update(is_event[3:], event[3:], target[3:])
    first.merge_state(second)
    assert float(pickle.loads(pickle.dumps(first)).compute()) == pytest.approx(float(whole.compute()), abs=1e-12)
    half = AVEAccuracy()
    half.update(is_event.bfloat16(), (event * 100).bfloat16(), target)
    assert float(half.compute()) == pytest.approx(float(whole.compute()), abs=0.02)


def test_bad_input() -> None:
    with pytest.raises(ArgumentError, match="protocol"):
        AVEAccuracy("biased")
    is_event, event, target = random_case(2)
    with pytest.raises(ShapeError, match="num_classes"):
        AVEAccuracy().update(is_event, event, target[..., :5])
    with pytest.raises(ShapeError):
        AVEAccuracy().update(is_event, event[:1], target)  # would broadcast
    for number in (is_event, event):  # a diverged network would score as background
        broken = number.clone()
        broken[0, 0] = float("nan")
        metric = AVEAccuracy()
        with pytest.raises(ArgumentError, match="NaN"):
            metric.update(broken if number is is_event else is_event, broken if number is event else event, target)
        assert metric.segments == 0
    metric = AVEAccuracy()
    metric.update(is_event.clamp(min=1) * float("inf"), event, target)  # sure, not broken
    assert metric.segments == 20
