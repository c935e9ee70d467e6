"""Accuracy of answers by hand, by brute force, and under every way of splitting the work."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from torch import Tensor

from avprompt.datasets.music_avqa import TYPES
from avprompt.errors import ArgumentError, ShapeError
from avprompt.metrics.avqa import AVQAAccuracy

COUNTING, LOUDER, WHERE = ("Audio", "Counting"), ("Audio", "Comparative"), ("Visual", "Location")


def case(size: int, seed: int = 0, types: tuple = TYPES) -> tuple[Tensor, Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    logits, answer = torch.randn(size, 6, generator=generator), torch.randint(0, 6, (size,), generator=generator)
    asked = torch.randint(0, len(types), (size,), generator=generator).tolist()
    return logits, answer, [json.dumps(types[index]) for index in asked]


def brute_force(logits: Tensor, answer: Tensor, types: list[str]) -> dict[str, tuple[int, int]]:
    """Name -> (right, all), a question at a time."""
    found: dict[str, tuple[int, int]] = {}
    for row, truth, kind in zip(logits.tolist(), answer.tolist(), types):
        group, sub = json.loads(kind)
        for name in (f"{group} {sub}", {"Audio": "AQ", "Visual": "VQ", "Audio-Visual": "AVQ"}[group], "average"):
            right, total = found.get(name, (0, 0))
            found[name] = right + (row.index(max(row)) == truth), total + 1
    return found


def test_by_hand() -> None:
    """Three audio questions, two right; one visual, wrong: the average is over questions, not over groups."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 1.0], [5.0, 0.0, 0.0]])
    metric = AVQAAccuracy()
    metric.update(logits, torch.tensor([0, 2, 0, 1]), [COUNTING, '["Audio", "Counting"]', list(LOUDER), WHERE])
    assert metric.compute() == {
        "AQ": pytest.approx(200 / 3),
        "VQ": 0.0,
        "average": 50.0,
        "Audio Counting": 100.0,
        "Audio Comparative": 0.0,
        "Visual Location": 0.0,
    }
    assert metric.counts() == {
        "AQ": 3,
        "VQ": 1,
        "average": 4,
        "Audio Counting": 2,
        "Audio Comparative": 1,
        "Visual Location": 1,
    }


@pytest.mark.parametrize("seed", range(3))
def test_equals_brute_force_however_it_is_split(seed: int) -> None:
    logits, answer, types = case(97, seed)
    expected = brute_force(logits, answer, types)
    assert len(expected) == len(TYPES) + 4
    for size in (1, 8, 97):
        metric = AVQAAccuracy()
        for first in range(0, 97, size):
            metric.update(*(part[first : first + size] for part in (logits, answer, types)))
        scores = metric.compute()
        assert all(isinstance(score, float) for score in scores.values())
        assert scores == {name: pytest.approx(100 * right / total) for name, (right, total) in expected.items()}
        assert metric.counts() == {name: total for name, (_, total) in expected.items()}


def test_published_number_of_questions_is_pooled() -> None:
    """With the test split's counts a network that only counts sounds reaches 1022 of 9185, whatever the groups."""
    numbers = (1022, 601, 1199, 1228, 995, 1274, 927, 1115, 824)
    metric, logits = AVQAAccuracy(), torch.eye(2)
    for pair, number in zip(TYPES, numbers):
        right = int(pair != COUNTING)
        metric.update(logits[[0]].expand(number, 2), torch.full((number,), right), [pair] * number)
    scores = metric.compute()
    assert metric.counts()["average"] == 9185 and scores["average"] == pytest.approx(100 * 1022 / 9185)
    assert scores["AQ"] == pytest.approx(100 * 1022 / 1623) and scores["VQ"] == scores["AVQ"] == 0


def test_what_was_not_asked_is_left_out() -> None:
    metric = AVQAAccuracy()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert metric.compute() == {} == metric.counts()
    metric = AVQAAccuracy()
    metric.update(*case(40, types=TYPES[:2]))
    assert set(metric.compute()) == set(metric.counts()) == {"AQ", "average", "Audio Counting", "Audio Comparative"}
    metric.reset()
    metric.update(*case(40, types=TYPES[4:]))
    assert "AQ" not in metric.compute() and metric.counts()["AVQ"] == 40


def test_merged_pickled_half_precision() -> None:
    logits, answer, types = case(30)
    whole, first, second = AVQAAccuracy(), AVQAAccuracy(), AVQAAccuracy()
    whole.update(logits, answer, types)
    first.update(logits[:11], answer[:11], types[:11])
    second.update(logits[11:], answer[11:], types[11:])
    first.merge_state(second)
    assert pickle.loads(pickle.dumps(first)).compute() == whole.compute() and first.counts() == whole.counts()
    assert all(state.shape == (9,) for state in first.metric_state.values())  # summed over devices as they are
    half = AVQAAccuracy()
    half.update((logits * 100).bfloat16(), answer, types)
    assert half.compute()["average"] == pytest.approx(whole.compute()["average"], abs=4)


@pytest.mark.parametrize(
    "kind",
    ["Audio Counting", '["Audio"]', '["Audio", "Location"]', '{"Audio": 1}', "[[]]", 3, None, ("Visual", "Temporal")],
)
def test_unknown_type_of_question(kind: object) -> None:
    metric = AVQAAccuracy()
    with pytest.raises(ArgumentError, match="question_type"):
        metric.update(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), [COUNTING, kind])
    assert metric.total.sum() == 0


def test_bad_input() -> None:
    logits, answer, types = case(4)
    metric = AVQAAccuracy()
    for wrong in (
        (logits[0], answer, types),
        (logits, answer[:3], types),
        (logits, answer[:, None], types),
        (logits, answer, types[:3]),
    ):
        with pytest.raises(ShapeError, match="logits, answer"):
            metric.update(*wrong)
    with pytest.raises(ShapeError, match="indices"):
        metric.update(logits, answer.float(), types)
    for index in (-1, 6):
        with pytest.raises(ArgumentError, match="indices below 6"):
            metric.update(logits, torch.tensor([0, index, 0, 0]), types)
    broken = logits.clone()
    broken[2, 1] = float("nan")
    with pytest.raises(ArgumentError, match="NaN"):
        metric.update(broken, answer, types)
    assert metric.total.sum() == 0
    metric.update(torch.where(logits > 0, float("inf"), -float("inf")), answer, types)  # sure, not broken
    assert metric.counts()["average"] == 4
