"""Learning-rate schedules that PyTorch does not have."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from avprompt.errors import ArgumentError


class WarmupCosine(LRScheduler):
    """Linear from 0 to each group's learning rate, then half a cosine down to `final`; stepped after every batch.

    The schedule of STG-CMA, AV-STFP's lineage: 2 of 20 epochs of warm-up, down to 2e-6.

    Args:
        optimizer: whose learning rates it sets.
        warmup: share of the run that the rise takes, in [0, 1).
        final: learning rate at the end, of every group.

    Raises:
        ArgumentError: a number is out of its range.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.1, final: float = 2e-6) -> None:
        if not 0 <= warmup < 1 or final < 0:
            raise ArgumentError("warmup, final", f"{warmup}, {final}", "a share below 1 and a rate of at least 0",
                                "Correct the schedule's arguments.")
        self.warmup, self.final, self.total_steps = warmup, final, 0
        super().__init__(optimizer)

    def plan(self, total_steps: int) -> None:
        """Spread the schedule over so many optimizer steps."""
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
