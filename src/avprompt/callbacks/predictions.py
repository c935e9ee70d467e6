"""Predictions for people: a CSV and a picture a clip."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from avprompt.errors import ConfigError


class PredictionWriter(Callback):
    """Write `predictions.csv` and `pictures/<id>.png` into the run's folder at `avprompt predict`.

    The task turns outputs into rows (`prediction_rows`) and a decision a segment (`decide`); the data module draws
    (`plot`).

    Args:
        max_pictures: clips drawn at most; the CSV holds all.
    """

    def __init__(self, max_pictures: int = 50) -> None:
        self.max_pictures = max_pictures
        self.rows: list[dict[str, Any]] = []
        self.drawn = self.seen = 0

    def _folder(self, trainer: Trainer) -> Path:
        if trainer.log_dir is None:
            raise ConfigError("trainer.logger", "none", "a logger, whose folder takes the predictions",
                              "Use lightning_configs/logger/tensorboard.yaml.")
        return Path(trainer.log_dir)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self.rows, self.drawn, self.seen = [], 0, 0
        (self._folder(trainer) / "pictures").mkdir(parents=True, exist_ok=True)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any],
                             batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect rows and draw."""
        data = trainer.datamodule
        self.rows += pl_module.prediction_rows(outputs, batch, data.class_names)
        decisions = pl_module.decide(outputs)
        for index, clip_id in enumerate(batch["id"]):
            self.seen += 1
            if self.drawn >= self.max_pictures:
                continue
            sample = {key: value[index].cpu() if hasattr(value[index], "cpu") else value[index]
                      for key, value in batch.items()}
            figure = data.plot({**sample, "prediction": decisions[index].cpu()})
            figure.savefig(self._folder(trainer) / "pictures" / f"{clip_id}.png", dpi=110)
            self.drawn += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the CSV and say where everything is."""
        path = self._folder(trainer) / "predictions.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        pictures = f"{self.drawn} of {self.seen} clips drawn in {path.parent / 'pictures'}"
        print(f"{len(self.rows)} predictions in {path}; {pictures}")
