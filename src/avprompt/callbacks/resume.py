"""Callbacks by which a run can stop anywhere and resume exactly there."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from avprompt.callbacks.run_folder import run_folder
from avprompt.processes import gathered_objects, rank, together, world


class ExactResume(Callback):
    """Saves the states of all random generators in checkpoints, and restores them before the first resumed batch.

    Restoring earlier would not suffice, because Lightning draws random numbers between the start of training and the
    first batch. Together with `ResumableLoader` and the checkpoints of the trainable state, a resumed run equals an
    uninterrupted one bit for bit, whether it stopped inside or at the end of an epoch.

    Each process has its own generators, and a checkpoint holds the states of all. If the run resumes with another number
    of processes, or one process failed alone and could save only its own state, the rest resume from the first state. A
    warning says so; what is drawn at random, such as dropout, then differs from the uninterrupted run.

    Example:
        >>> sorted(ExactResume().state_dict()["processes"][0])
        ['cuda', 'numpy', 'python', 'torch']
    """

    def __init__(self) -> None:
        self.pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """States of the generators of torch, CUDA, numpy and Python in each process, as plain data and tensors."""
        own = self._own()
        return {"processes": [own] if together.failing else gathered_objects(own)}

    @staticmethod
    def _own() -> dict[str, Any]:
        kind, keys, position, has_gauss, gauss = np.random.get_state()
        version, internal, gauss_next = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
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
        states, self.pending = self.pending["processes"], None
        if len(states) != world():
            rank_zero_warn(f"the checkpoint has the random states of {len(states)} process(es), now there are {world()}: "
                           "what is drawn at random, such as dropout, differs from a run without interruption")
        state = states[rank()] if rank() < len(states) else states[0]
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())
        kind, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        version, internal, gauss_next = state["python"]
        random.setstate((version, tuple(internal), gauss_next))


def checkpoint_folder(trainer: Trainer) -> str | None:
    """Where a run's checkpoints lie, see `run_folder`; `None` where nothing is written."""
    folder = run_folder(trainer)
    return None if folder is None else str(folder / "checkpoints")


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
        self.dirpath = checkpoint_folder(trainer)
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder."""
        self.dirpath = checkpoint_folder(trainer)
        super().setup(trainer, pl_module, stage)


class InterruptCheckpoint(Callback):
    """Saves `checkpoints/interrupted.ckpt` when training ends by an error, Ctrl-C or SIGTERM; `--ckpt_path` resumes it.

    Lightning's `OnExceptionCheckpoint` is not used, because with it a later `fit` resumes from the newest checkpoint
    that it finds without being told to.

    Example:
        >>> callback = InterruptCheckpoint()  # goes into `trainer.callbacks`
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Determine the run's folder, in every process."""
        run_folder(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, once training has begun; of several processes the first that fails, alone."""
        if trainer.training and trainer.global_step and not trainer.fast_dev_run and together.claim():
            path = run_folder(trainer) / "checkpoints" / "interrupted.ckpt"
            # not `trainer.save_checkpoint`, which waits for processes that may never come
            content = trainer._checkpoint_connector.dump_checkpoint()
            trainer.strategy.checkpoint_io.save_checkpoint(content, path)
            print(f"stopped by {type(exception).__name__}; resume with --ckpt_path {path}")
