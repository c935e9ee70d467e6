"""Warm-up and cosine."""

from __future__ import annotations

import math

import pytest
import torch

from avprompt.errors import ArgumentError
from avprompt.schedules import WarmupCosine


def rates(total: int, **options: float) -> list[list[float]]:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.Adam([{"params": parameters[:1], "lr": 1e-3}, {"params": parameters[1:], "lr": 1e-4}])
    schedule = WarmupCosine(optimizer, **options)
    schedule.plan(total)
    seen = []
    for _ in range(total):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return [*seen, [group["lr"] for group in optimizer.param_groups]]


def test_rises_and_falls() -> None:
    seen = rates(20, warmup=0.1, final=2e-6)
    assert seen[0] == [0, 0] and seen[1] == pytest.approx([5e-4, 5e-5]) and seen[2] == pytest.approx([1e-3, 1e-4])
    assert seen[11] == pytest.approx([(1e-3 + 2e-6) / 2, (1e-4 + 2e-6) / 2])
    assert seen[20] == pytest.approx([2e-6, 2e-6])
    third = 2e-6 + (1e-3 - 2e-6) * (1 + math.cos(math.pi / 3)) / 2
    assert seen[8][0] == pytest.approx(third)


def test_without_warmup() -> None:
    assert rates(4, warmup=0.0)[0] == pytest.approx([1e-3, 1e-4])


def test_it_resumes() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    first = WarmupCosine(optimizer)
    first.plan(10)
    for _ in range(4):
        optimizer.step(), first.step()
    again = WarmupCosine(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    again.load_state_dict(first.state_dict())
    assert again.get_lr() == first.get_lr() and again.total_steps == 10


def test_bad_numbers() -> None:
    with pytest.raises(ArgumentError, match="warmup"):
        rates(3, warmup=1.0)
