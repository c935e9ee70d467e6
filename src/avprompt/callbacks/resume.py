"""Exact resumption of runs that stop at any point."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor

from avprompt.checkpoints import epoch_is_whole, trainable_state_names
from avprompt.processes import gathered_objects, rank, together, world

#: key of our part of a checkpoint
RECORD = "avprompt_resume"
BATCHES, VALIDATION, EPOCHS = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress", "epoch_progress"


def random_states(device: torch.device) -> dict[str, Any]:
    """States of torch's, CUDA's, numpy's and Python's generators, as plain data and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }


def restore_random_states(state: dict[str, Any], device: torch.device) -> None:
    """Set all generators as `random_states` found them."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


@dataclass
class Boundary:
    """Position of training after an optimizer step: everything that changes between two steps and has to be saved.

    Args:
        step: optimizer steps taken.
        loops: Lightning's counters and the position in the data, as a callback's `on_train_batch_end` sees them.
        random: see `random_states`.
        means: sums behind the means over the epoch, see `EpochMeans`.
        buffers: trained buffers by name, such as batch norm statistics.
        logged: number of points that the loggers have on their axis of steps.
        validated: whether the validation that was due here has been done.
        over: whether this was the end of an epoch, and its hooks have run.
    """

    step: int
    loops: dict[str, Any]
    random: dict[str, Any]
    means: dict[str, Any]
    buffers: dict[str, Tensor]
    logged: int
    validated: bool = False
    over: bool = False

    def progress(self) -> dict[str, Any]:
        """Lightning's counters in the form from which it continues correctly: it runs the validation if that is due and
        not done, then the end of the epoch if it is due and not done, then the next batch.

        The counters that a trainer saves by itself are wrong in two cases: it takes an epoch that `max_steps` or a
        timer cut off for a whole one, and with `max_steps` it counts the end of an epoch twice.
        """
        loops = copy.deepcopy(self.loops)
        batches, validation, epochs = loops[BATCHES], loops[VALIDATION], loops[EPOCHS]
        for count in (batches["total"], batches["current"]):
            count["completed"] = count["ready"]
        for name, count in ((name, validation[name]) for name in ("total", "current")):
            begun = name == "total" and not self.validated and not self.over  # Lightning's sign of one to be done again
            count.update(ready=int(begun), started=int(begun), processed=0, completed=0)
        validation["is_last_batch"] = False
        if self.over:
            batches["current"].update(ready=0, started=0, processed=0, completed=0)
            batches["is_last_batch"] = False
            for count in (epochs["total"], epochs["current"]):
                count.update(processed=count["ready"], completed=count["ready"])
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = self.logged
        return loops


class ExactResume(Callback):
    """Saves the position of training with every checkpoint, so that a run resumes bit for bit.

    The position holds the order of clips, the states of all random generators, the means over the current epoch, and
    whether a validation or the end of an epoch is still due. Together with `ResumableLoader` and checkpoints of the
    trainable state, a resumed run equals an uninterrupted one, wherever it was stopped: between batches, inside a step
    or a validation (which is repeated), or inside an epoch by `max_steps` or a timer. Points that a killed run logged
    to TensorBoard after its checkpoint are purged.

    Random generators are restored right before the first batch or validation, because Lightning draws random numbers
    between the start of training and that point.

    Every process has its own generators, and a checkpoint holds the states of all. If a run resumes with another number
    of processes, or after one process failed alone and could save only its own state, the other processes continue with
    the first state. A warning says so, because random operations such as dropout then differ from an uninterrupted run.

    Attributes:
        boundary: position of training at the last optimizer step; `None` before the first one.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> resume = ExactResume()
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        ...                   enable_checkpointing=False, max_steps=3, callbacks=[resume])
        >>> trainer.fit(BoringModel())
        >>> resume.boundary.step, sorted(resume.boundary.random)  # what every checkpoint of this trainer would hold
        (3, ['cuda', 'numpy', 'python', 'torch'])
    """

    def __init__(self) -> None:
        self.boundary: Boundary | None = None
        self.resuming: Boundary | None = None
        self.buffers: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset the state of an earlier run."""
        self.boundary = self.resuming = None

    # --- into a checkpoint

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the position of training after each optimizer step."""
        if trainer.global_step > (self.boundary.step if self.boundary else 0):
            means = getattr(pl_module, "epoch_means", None)
            self.boundary = Boundary(
                step=trainer.global_step,
                loops=copy.deepcopy(trainer.fit_loop.state_dict()),
                random=random_states(pl_module.device),
                means={} if means is None else means.state_dict(),
                buffers={name: buffer.clone() for name, buffer in self.buffers.items()},
                logged=trainer.fit_loop.epoch_loop._batches_that_stepped + 1,
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the validation is done."""
        if self.boundary is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.boundary.validated, self.boundary.random = True, random_states(pl_module.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """If a run resumes right before the end of an epoch, make this an ordinary end."""
        self._go_on(trainer)
        trainer.fit_loop._restarting = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the epoch before is over."""
        self._close(trainer, pl_module)

    def _close(self, trainer: Trainer, pl_module: LightningModule) -> None:
        means = getattr(pl_module, "epoch_means", None)
        if self.boundary is not None and epoch_is_whole(trainer) and not (means and means.sums):
            self.boundary.over, self.boundary.random = True, random_states(pl_module.device)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the boundary, and flush the loggers, so that a later kill loses none of their points."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
        epochs = trainer.fit_loop.epoch_progress.current
        if epochs.processed == epochs.ready:
            self._close(trainer, pl_module)
        if self.boundary is None:
            return
        checkpoint["loops"]["fit_loop"] = self.boundary.progress()
        checkpoint["state_dict"] |= self.boundary.buffers
        own = {
            "random": self.boundary.random,
            "means": {name: [float(total), weight] for name, (total, weight) in self.boundary.means.items()},
        }
        kept = {name: getattr(self.boundary, name) for name in ("step", "logged", "validated", "over")}
        checkpoint[RECORD] = {**kept, "processes": [own] if together.failing else gathered_objects(own)}

    # --- out of one

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the boundary, which stays valid until the next optimizer step."""
        if trainer.state.fn == "fit" and RECORD in checkpoint:
            buffers = {name: checkpoint["state_dict"][name] for name in self._buffers(pl_module)}
            kept = dict(checkpoint[RECORD])
            processes = kept.pop("processes")
            if len(processes) != world():
                rank_zero_warn(
                    f"the checkpoint has the random states of {len(processes)} process(es), now there are "
                    f"{world()}: what is drawn at random, such as dropout, differs from a run without "
                    "interruption"
                )
            own = processes[rank()] if rank() < len(processes) else processes[0]
            self.boundary = self.resuming = Boundary(
                loops=copy.deepcopy(checkpoint["loops"]["fit_loop"]), buffers=buffers, **own, **kept
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Purge the points in the run's TensorBoard from the resumed step on."""
        if trainer.is_global_zero and not trainer.fast_dev_run:
            start = Event(
                step=self.boundary.step if self.boundary else 0, session_log=SessionLog(status=SessionLog.START)
            )
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.file_writer.add_event(start)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the means."""
        self.buffers = self._buffers(pl_module)
        if self.boundary is not None and hasattr(pl_module, "epoch_means"):
            pl_module.epoch_means.load_state_dict(self.boundary.means, pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore random generators before the first resumed batch."""
        self._go_on(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore random generators before a validation that is done again."""
        if not trainer.sanity_checking:
            self._go_on(trainer, behind=1)

    def _go_on(self, trainer: Trainer, behind: int = 0) -> None:
        if self.resuming is not None and trainer.state.fn == "fit":
            restore_random_states(self.resuming.random, trainer.lightning_module.device)
            # by itself Lightning adds 1 on resuming, or does not, depending on what it does first; it counts a step of
            # the axis after the validation that belongs to it
            trainer.fit_loop.epoch_loop._batches_that_stepped = self.resuming.logged - behind
            self.resuming = None

    @staticmethod
    def _buffers(pl_module: LightningModule) -> dict[str, Tensor]:
        names = trainable_state_names(pl_module)
        return {name: buffer for name, buffer in pl_module.named_buffers() if name in names}
