"""Processes that end together, see `avprompt.processes.Together`."""

from __future__ import annotations

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from avprompt.processes import together


class FailTogether(Callback):
    """Ends all processes within seconds if one of them fails, with its message.

    It must come after all callbacks that save something after an exception, because the other processes end at once.

    Example:
        >>> import threading
        >>> callback = FailTogether()
        >>> trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, callbacks=[callback])
        >>> callback.setup(trainer, None, "fit")  # `trainer.fit` does this: a thread now watches the other process
        >>> [thread.name for thread in threading.enumerate() if "together" in thread.name]
        ['avprompt-together']
        >>> callback.teardown(trainer, None, "fit")
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start to watch the other processes."""
        if trainer.world_size > 1:
            together.watch()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching."""
        together.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others."""
        together.tell(exception)
