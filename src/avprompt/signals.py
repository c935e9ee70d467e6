"""What a program does when a user or a cluster stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Ctrl-C, the end of a job, a closed terminal
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def exit_code(stop: SystemExit) -> int | str | None:
    """Exit code of a program that ends: 128 + 15 where Lightning, before training begins, ends it at SIGTERM with 0.

    Example:
        >>> exit_code(SystemExit(3))
        3
    """
    return 128 + signal.SIGTERM if type(stop).__name__ == "SIGTERMException" else stop.code


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Have a function take the signals that stop a program, except those that it ignores, as nohup does SIGHUP.

    Other threads than the main one have no signal handlers: there, nothing changes.

    Args:
        handler: called with the number of the signal and the interrupted frame.

    Example:
        >>> received = []
        >>> with handled(lambda number, frame: received.append(signal.Signals(number).name)):
        ...     signal.raise_signal(signal.SIGTERM)
        >>> received
        ['SIGTERM']
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOPS if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def later_signals() -> Iterator[None]:
    """Let a signal that stops the program take effect only at the end of the block.

    Example:
        >>> with later_signals():
        ...     jobs = ["submitted", "and noted"]
    """
    received: list[int] = []
    try:
        with handled(lambda number, frame: received.append(number)):
            yield
    finally:
        for number in received:
            signal.raise_signal(number)


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal stop the program in an orderly way, with exit code 128 + signal."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    with handled(stop):
        yield


def slurm_job() -> str | None:
    """Id of the SLURM job that this process belongs to, `<array>_<task>` in an array; `None` outside of one."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID")


def requeue() -> str:
    """Ask SLURM to end this job and queue it again under the same id; what came of it, for people."""
    try:
        done = subprocess.run(["scontrol", "requeue", str(slurm_job())], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"SLURM job {slurm_job()} is not queued again: {error}"
    why = done.stderr.strip() or f"scontrol ended with {done.returncode}"
    return f"SLURM job {slurm_job()} is " + ("queued again" if done.returncode == 0 else f"not queued again: {why}")
