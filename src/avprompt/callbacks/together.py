"""Processes that end together, see `avprompt.processes.Together`."""

from __future__ import annotations

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from avprompt.processes import together


class FailTogether(Callback):
    """A failure of one process ends all within seconds, with its message.

    It stands behind all callbacks that save something when an exception comes: others end at once when they are told.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to look after the others."""
        if trainer.world_size > 1:
            together.watch()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The run is over."""
        together.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others."""
        together.tell(exception)
