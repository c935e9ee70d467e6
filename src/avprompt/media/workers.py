"""Worker processes that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

import torch


def begin_worker() -> None:
    """Initialise a worker of a pool: it computes with one thread, and ends when its parent is killed.

    With several threads, a process forked from one in which torch has used several would wait for the others for ever.
    """
    torch.set_num_threads(1)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
