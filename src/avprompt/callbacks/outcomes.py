"""What each scored unit of an evaluation came to: `outcomes.csv`, from which the metrics follow."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from avprompt.callbacks.run_folder import run_folder
from avprompt.files import write_whole
from avprompt.processes import gathered_objects


class OutcomeWriter(Callback):
    """Writes `outcomes.csv` into the folder of the run: one row a scored unit, such as a segment or a question.

    `avprompt test` writes the test split, `avprompt fit` the validation split in the epoch of `best.ckpt`. Of a row,
    `id`, `start`, `end`, the task's columns of predictions and `decoded` say what was scored; then each metric has a
    column with the unit's score in [0, 1], empty where the unit does not count. The metric of `result.json` is the mean
    of its column, weighted by `weight:<metric>` where there is one. Several processes write one table, in the dataset's
    order. With `fast_dev_run` nothing is written.

    Example:
        >>> OutcomeWriter().rows
        []
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.best: float | None = None
        self.path: str = ""

    # --- what a run that goes on has to know of its first part

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, and where its outcomes are."""
        return {"best": self.best, "path": self.path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best, self.path = state_dict["best"], state_dict["path"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Determine the run's folder, in every process."""
        run_folder(trainer)
        self.rows, self.best, self.path = [], None, ""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the outcomes of the best epoch so far from the folder of the resumed run."""
        folder, before = run_folder(trainer), Path(self.path)
        if folder is None or not self.path or not trainer.is_global_zero:
            return
        if before.is_file() and before.absolute() != (folder / "outcomes.csv").absolute():
            write_whole(folder / "outcomes.csv", before.read_bytes())

    # --- evaluation

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an evaluation that was cut off counted."""
        self.rows = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for validation."""
        self.rows = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows of a batch."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._keep(trainer, pl_module, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows of a batch."""
        self._keep(trainer, pl_module, outputs, batch)

    def _keep(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any]) -> None:
        if run_folder(trainer) is not None:
            self.rows += pl_module.outcome_rows(outputs, batch, trainer.datamodule.class_names)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table if this epoch is the best so far, as `TaskCheckpoint` decides it."""
        value = trainer.callback_metrics.get(pl_module.monitor)
        if trainer.state.fn != "fit" or trainer.sanity_checking or value is None:
            return
        score = float(value) if pl_module.mode == "max" else -float(value)
        score = -math.inf if math.isnan(score) else score
        if self.best is None or score > self.best:
            self.best = score
            self._write(trainer, pl_module)
        self.rows = []

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is None:
            return
        self.path = str(folder / "outcomes.csv")
        parts = gathered_objects(self.rows)
        self.rows = []
        if trainer.is_global_zero and (rows := [row for part in parts for row in part]):
            pl_module.finish_outcomes(rows)
            write_whole(Path(self.path), table(rows).encode())


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of `AVPromptTask.outcome_rows` as CSV, without metrics in which no unit counts.

    Example:
        >>> table([{"id": "a", "decoded": True, "accuracy": 1.0, "AQ": math.nan, "miou": 0.25}]).splitlines()
        ['id,decoded,accuracy,miou', 'a,True,1,0.25']
    """
    columns, content = list(rows[0]), io.StringIO(newline="")
    known = columns.index("decoded") + 1
    used = [name for name in columns[known:] if not all(math.isnan(row[name]) for row in rows)]
    # with the line ends of predictions.csv
    writer = csv.writer(content)
    writer.writerow([*columns[:known], *used])
    for row in rows:
        writer.writerow(
            [
                *(row[name] for name in columns[:known]),
                *("" if math.isnan(row[name]) else repr(float(row[name])).removesuffix(".0") for name in used),
            ]
        )
    return content.getvalue()
