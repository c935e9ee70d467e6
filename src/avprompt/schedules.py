"""Learning-rate schedules that PyTorch does not have."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from avprompt.errors import ArgumentError


class WarmupCosine(LRScheduler):
    """Rises linearly from 0 to the learning rate of each group, then falls along half a cosine to `final`.

    It is stepped after every batch. Source: STG-CMA, which AV-STFP follows, with 2 of 20 epochs of warm-up, down to
    2e-6.

    Args:
        optimizer: its learning rates are set.
        warmup: share of the run for the rise, in [0, 1).
        final: learning rate of every group at the end.

    Raises:
        ArgumentError: a number is out of its range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = WarmupCosine(optimizer, warmup=0.5, final=0.0)
        >>> schedule.plan(total_steps=4)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(round(schedule.get_last_lr()[0], 2))
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [0.0, 0.5, 1.0, 0.5]
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.1, final: float = 2e-6) -> None:
        if not 0 <= warmup < 1 or final < 0:
            raise ArgumentError("warmup, final", f"{warmup}, {final}", "a share below 1 and a rate of at least 0",
                                "Correct the schedule's arguments.")
        self.warmup, self.final, self.total_steps = warmup, final, 0
        super().__init__(optimizer)

    def plan(self, total_steps: int) -> None:
        """Set the number of optimizer steps over which the schedule runs."""
        self.total_steps = total_steps
        for group, rate in zip(self.optimizer.param_groups, self.get_lr()):
            group["lr"] = rate

    def get_lr(self) -> list[float]:
        """Learning rate of each group."""
        passed = self.last_epoch / max(1, self.total_steps)
        if passed < self.warmup:
            return [base * passed / self.warmup for base in self.base_lrs]
        height = (1 + math.cos(math.pi * min(1.0, (passed - self.warmup) / (1 - self.warmup)))) / 2
        return [self.final + (base - self.final) * height for base in self.base_lrs]
