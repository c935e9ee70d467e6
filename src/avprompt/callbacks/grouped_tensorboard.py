"""Lightning's logger for TensorBoard with curves in groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from avprompt.board import tags


class GroupedTensorBoard(TensorBoardLogger):
    """Writes `train/loss`, `val/accuracy` and so on, and the metric that selects the checkpoint once more on top, in
    the group `metric`. Everything else knows the values by the names they were logged with.

    Attributes:
        monitor: name of that metric, such as `val_accuracy`; `RunReport` sets it.

    Example:
        >>> import tempfile
        >>> from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        >>> logger = GroupedTensorBoard(tempfile.mkdtemp())
        >>> logger.monitor = "val_accuracy"
        >>> logger.log_metrics({"train_gate": 0.3, "val_accuracy": 0.5}, step=1)
        >>> logger.save()
        >>> sorted(EventAccumulator(logger.log_dir).Reload().Tags()["scalars"])
        ['metric/val_accuracy', 'train/gate', 'val/accuracy']
    """

    monitor: str | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write values under their tags."""
        super().log_metrics({tag: value for name, value in metrics.items() for tag in tags(name, self.monitor)}, step)
