"""What a program does when a user or a cluster stops it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
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
def later_signals() -> Iterator[None]:
    """Let a signal that stops the program take effect only at the end of the block.

    Example:
        >>> with later_signals():
        ...     jobs = ["submitted", "and noted"]
    """
    if threading.current_thread() is not threading.main_thread():  # where Python has no signal handlers
        yield
        return
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in STOPS
              if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in received:
            signal.raise_signal(number)


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal stop the program in an orderly way, with exit code 128 + signal."""
    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in STOPS
              if signal.getsignal(number) != signal.SIG_IGN}  # nohup ignores SIGHUP
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
