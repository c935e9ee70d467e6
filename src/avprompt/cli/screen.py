"""What a user sees: warnings as plain lines, no advertisements, quiet where that is asked for, and an end by Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

#: messages of libraries that are left out, and why
FILTERS = {
    "LightningCLI's args parameter is intended": "intended: the words come from `main`",
    r"Found \d+ module\(s\) in eval mode": "intended: frozen encoders stay in eval mode",
    "It is recommended to use .self.log": "all processes log the same value",
    r"\s*By default only one JsonargparseDeprecationWarning": "Lightning 2.6 calls the former names of jsonargparse 4",
    r"\s*``instantiate_classes`` was deprecated": "likewise",
    r"\s*skip_none parameter was deprecated": "likewise",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated": "Lightning 2.6 calls the former name of torch's",
    "The '.*' does not have many workers": "advice on speed; docs/ have what was measured for our data",
    "The number of training batches .* is smaller than the logging interval": "our own lines come once an epoch",
    "The .LightningDataModule._*_dataloader. does not have many workers": "as above",
    "Checkpoint directory .* exists and is not empty": "a run that resumes in its own folder finds its checkpoints",
    "torch.meshgrid": "laion-clap's call leaves the order of indices open",
}
#: what Lightning's loggers say that is an advertisement, or of hardware that nobody asked for
TALK = ("💡", "TPU available", "HPU available", "IPU available")
#: name of the environment variable behind `--quiet`
QUIET = "AVPROMPT_QUIET"


def is_quiet() -> bool:
    """Whether `--quiet` was given, to this process or the one that started it."""
    return bool(os.environ.get(QUIET))


def without_talk(record: logging.LogRecord) -> bool:
    """Whether a line of Lightning's is worth reading.

    Example:
        >>> made = logging.LogRecord("lightning", logging.INFO, "", 0, "💡 Tip: try our platform", None, None)
        >>> without_talk(made)
        False
    """
    if is_quiet() and record.levelno < logging.WARNING:  # a level of the logger would not last: Lightning sets its own
        return False
    return not record.getMessage().lstrip().startswith(TALK)


@contextlib.contextmanager
def plain_screen() -> Iterator[None]:
    """Show warnings as `note: text` without file and line, and leave out what `FILTERS` and `TALK` name.

    With `--quiet` libraries' information is left out as well.
    """
    loggers = [
        logging.getLogger(name)
        for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
    ]

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        print(f"note: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        for pattern in FILTERS:
            warnings.filterwarnings("ignore", message=pattern)
        warnings.showwarning = show
        for logger in loggers:
            logger.addFilter(without_talk)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(without_talk)


class Interrupts:
    """Notes that Ctrl-C was pressed, whatever a library makes of the exception that follows."""

    def __init__(self) -> None:
        self.seen = False

    def _note(self, number: int, frame: Any) -> None:
        self.seen = True
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Listen, unless the program ignores Ctrl-C or someone else listens already."""
        ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if ours:
            signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            if ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)
