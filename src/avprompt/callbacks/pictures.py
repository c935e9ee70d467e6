"""Pictures of predictions in TensorBoard and other loggers after every validation."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from avprompt.callbacks.logged_pictures import drawing, log_picture
from avprompt.errors import ArgumentError
from avprompt.ranges import Count


def few(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """The first `count` clips of a batch.

    Example:
        >>> few({"id": ["a", "b", "c"], "label": torch.arange(3)}, 2)
        {'id': ['a', 'b'], 'label': tensor([0, 1])}
    """
    return {key: value[:count] for key, value in batch.items()}


def clip_of(batch: dict[str, Any], index: int) -> dict[str, Any]:
    """Clip `index` of a batch on the CPU, floating-point entries in float32."""
    found = {}
    for key, value in batch.items():
        entry = value[index]
        if torch.is_tensor(entry):
            entry = entry.detach().cpu()
            entry = entry.float() if entry.is_floating_point() else entry
        found[key] = entry
    return found


class ValidationPictures(Callback):
    """Draws the first clips of the validation split with labels, predictions and maps after each validation.

    The clips are the same every time, so that the slider of TensorBoard shows how predictions change. W&B, MLflow and
    Comet get the same pictures, and beside the table of a CSV logger they are files. Without a logger nothing is drawn.

    Args:
        count: number of clips, at most those of the first batch.

    Raises:
        ArgumentError: fewer than one clip.

    Example:
        >>> ValidationPictures(count=4).count
        4
    """

    def __init__(self, count: Count = 2) -> None:
        if count < 1:
            raise ArgumentError("count", count, "at least 1", "Leave the callback out to draw none.")
        self.count = count

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Run the first clips of the first batch once more, with maps, and draw them."""
        boards = drawing(trainer.loggers)
        if batch_idx or trainer.sanity_checking or trainer.fast_dev_run or not trainer.is_global_zero or not boards:
            return
        batch = few(batch, self.count)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            decided = pl_module.postprocess(pl_module(batch, maps=True))
        for index, clip_id in enumerate(batch["id"]):
            figure = trainer.datamodule.plot({**clip_of(batch, index), **clip_of(decided, index)})
            for board in boards:
                log_picture(board, f"validation/{index}_{clip_id.replace('/', '_')}", figure, trainer.global_step)
