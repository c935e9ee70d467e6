"""One line an epoch: loss, metric, seconds and time left."""

from __future__ import annotations

import os
import time

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from avprompt.durations import duration


class EpochLines(Callback):
    """Prints a line after each epoch of training, on the screen and in logs alike.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Task(BoringModel):
        ...     monitor = "val_accuracy"
        >>> trainer = Trainer(accelerator="cpu", default_root_dir=tempfile.mkdtemp(), logger=False, max_epochs=2,
        ...                   limit_train_batches=1, limit_val_batches=1, enable_progress_bar=False,
        ...                   enable_checkpointing=False, enable_model_summary=False, callbacks=[EpochLines()])
        >>> trainer.fit(Task())
        epoch 1/2: 0 s, 0 s left
        epoch 2/2: 0 s
    """

    def __init__(self) -> None:
        self.begun, self.first = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when training begins; a resumed run begins later."""
        self.begun, self.first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line; the metrics are those of the last validation."""
        if not trainer.is_global_zero or os.environ.get("AVPROMPT_QUIET"):
            return
        done, spent = trainer.current_epoch + 1, time.monotonic() - self.begun
        last = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        means = pl_module.epoch_means.compute() if hasattr(pl_module, "epoch_means") else {}  # logged after this
        values = {
            "loss": means.get("train_loss_epoch"),
            pl_module.monitor: trainer.callback_metrics.get(pl_module.monitor),
        }
        shown = [f"{name} {float(value):.4f}" for name, value in values.items() if value is not None]
        mean = spent / (done - self.first)
        left = [f"{duration(mean * (last - done))} left"] if last and done < last else []
        times = ", ".join([duration(mean), *left])
        print(f"epoch {done}/{last or '?'}: {', '.join([*shown, times])}", flush=True)
