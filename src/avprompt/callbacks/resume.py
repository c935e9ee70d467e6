"""Callbacks by which a run can stop anywhere and resume exactly there."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint


class ExactResume(Callback):
    """Saves the states of all random generators in checkpoints, and restores them before the first resumed batch.

    Restoring earlier would not suffice, because Lightning draws random numbers between the start of training and the
    first batch. Together with `ResumableLoader` and the checkpoints of the trainable state, a resumed run equals an
    uninterrupted one bit for bit, whether it stopped inside or at the end of an epoch.

    Example:
        >>> sorted(ExactResume().state_dict())
        ['cuda', 'numpy', 'python', 'torch']
    """

    def __init__(self) -> None:
        self.pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """States of the generators of torch, CUDA, numpy and Python, as plain data and tensors."""
        kind, keys, position, has_gauss, gauss = np.random.get_state()
        version, internal, gauss_next = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
            "python": [version, list(internal), gauss_next],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the states until the first batch."""
        self.pending = state

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the states before the first resumed batch."""
        if self.pending is None:
            return
        state, self.pending = self.pending, None
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
        kind, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        version, internal, gauss_next = state["python"]
        random.setstate((version, tuple(internal), gauss_next))


class TaskCheckpoint(ModelCheckpoint):
    """Saves `checkpoints/best.ckpt`, selected by the `monitor` and `mode` of the task.

    Example:
        >>> TaskCheckpoint().filename
        'best'
    """

    def __init__(self) -> None:
        super().__init__(filename="best", enable_version_counter=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the monitor from the task."""
        self.monitor, self.mode = pl_module.monitor, pl_module.mode
        self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(ModelCheckpoint):
    """Saves `checkpoints/last.ckpt` after every epoch (Lightning's `save_last` skips epochs that are not the best so
    far).

    Example:
        >>> LastCheckpoint().filename
        'last'
    """

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False)


class InterruptCheckpoint(Callback):
    """Saves `checkpoints/interrupted.ckpt` when training ends by an error, Ctrl-C or SIGTERM; `--ckpt_path` resumes it.

    Lightning's `OnExceptionCheckpoint` is not used, because with it a later `fit` resumes from the newest checkpoint
    that it finds without being told to.

    Example:
        >>> callback = InterruptCheckpoint()  # goes into `trainer.callbacks`
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, if training has begun."""
        if trainer.training and trainer.global_step and not trainer.fast_dev_run:
            path = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "interrupted.ckpt"
            trainer.save_checkpoint(path)
            print(f"stopped by {type(exception).__name__}; resume with --ckpt_path {path}")
