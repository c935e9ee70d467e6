"""Learning-rate schedules that PyTorch does not have."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from avprompt.errors import ArgumentError
from avprompt.ranges import Dropout, NonNegative


class WarmupCosine(LRScheduler):
    """Rises linearly from 0 to the learning rate of each group, then falls along half a cosine to `final`.

    It is stepped after every batch. Source: STG-CMA, which AV-STFP follows, with 2 of 20 epochs of warm-up, down to
    2e-6.

    A run that resumes with more epochs or more steps follows the schedule of the new length from there on, with a
    warning: the rate is then that of a run planned for the new length at this step. Otherwise a run could not be
    trained longer.

    Args:
        optimizer: its learning rates are set.
        warmup: share of the run in which the rate rises, in [0, 1).
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

    def __init__(self, optimizer: Optimizer, warmup: Dropout = 0.1, final: NonNegative = 2e-6) -> None:
        if not 0 <= warmup < 1 or final < 0:
            raise ArgumentError(
                "warmup, final",
                f"{warmup}, {final}",
                "a share below 1 and a rate of at least 0",
                "Correct the schedule's arguments.",
            )
        self.warmup, self.final, self.total_steps = warmup, final, 0
        super().__init__(optimizer)

    def plan(self, total_steps: float) -> None:
        """Set the number of optimizer steps over which the schedule runs.

        Raises:
            ArgumentError: the run has no end.
        """
        if not math.isfinite(total_steps):
            raise ArgumentError(
                "lr_scheduler",
                "WarmupCosine in a run without an end",
                "a number of epochs or steps",
                "Set trainer.max_epochs or trainer.max_steps; trainer.max_time may end it earlier.",
            )
        self.total_steps = int(total_steps)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr()):
            group["lr"] = rate

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the step of a checkpoint, with the schedule planned for this run."""
        planned = self.total_steps
        super().load_state_dict(state_dict)
        if planned and planned != self.total_steps:
            before = self.get_lr()[0]
            warnings.warn(
                f"the schedule was planned for {self.total_steps} steps and is now planned for {planned}: "
                f"at step {self.last_epoch} the rate of {before:.3g} becomes "
                f"{self._rates(planned)[0]:.3g}",
                stacklevel=2,
            )
            self.plan(planned)

    def get_lr(self) -> list[float]:
        """Learning rate of each group."""
        return self._rates(self.total_steps)

    def _rates(self, total_steps: int) -> list[float]:
        passed = self.last_epoch / max(1, total_steps)
        if passed < self.warmup:
            return [base * passed / self.warmup for base in self.base_lrs]
        height = (1 + math.cos(math.pi * min(1.0, (passed - self.warmup) / (1 - self.warmup)))) / 2
        return [self.final + (base - self.final) * height for base in self.base_lrs]
