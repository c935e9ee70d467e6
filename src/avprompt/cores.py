"""Processor cores that this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Number of processor cores on which this process may run, at least 1.

    Containers, `taskset` and schedulers such as SLURM leave a process fewer cores than the machine has. Where the system
    cannot say which they are (macOS, Windows), all count.

    Example:
        >>> usable_cores() >= 1
        True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
