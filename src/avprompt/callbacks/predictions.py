"""Predictions for people to read: a CSV file, and a picture of each clip."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from avprompt.callbacks.pictures import clip_of
from avprompt.errors import ArgumentError, ConfigError
from avprompt.plots.legible import legible


class PredictionWriter(Callback):
    """Writes `predictions.csv` and `pictures/<id>.png` into the folder of the run during `avprompt predict`.

    The task turns outputs into rows (`prediction_rows`), decisions (`postprocess`) and, where these are pictures
    themselves, files (`prediction_files`); the data module draws (`plot`). Rows are written after each batch, so that
    an interruption keeps them. A second example with the same id has its picture in `<id>.2.png`. With `fast_dev_run`
    nothing is written.

    Args:
        max_pictures: largest number of clips drawn, the first ones; the CSV file has all clips.

    Raises:
        ArgumentError: a negative number of pictures.
        ConfigError: during the run, where there is no logger (predictions go to its folder), or several devices.

    Example:
        >>> PredictionWriter(max_pictures=0).max_pictures
        0
    """

    def __init__(self, max_pictures: int = 50) -> None:
        if max_pictures < 0:
            raise ArgumentError("max_pictures", max_pictures, "0 or more", "0 draws none.")
        self.max_pictures = max_pictures
        self.folder: Path | None = None
        self.rows = self.drawn = 0
        self.clips: Counter[str] = Counter()

    @property
    def csv_path(self) -> Path:
        """The file of the table."""
        return self.folder / "predictions.csv"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the folder, without the table of an earlier run."""
        self.folder, self.rows, self.drawn, self.clips = None, 0, 0, Counter()
        if trainer.fast_dev_run:
            return
        if not trainer.loggers or trainer.log_dir is None:
            raise ConfigError("trainer.logger", "none", "a logger, whose folder takes the predictions",
                              "Use lightning_configs/logger/tensorboard.yaml.")
        if trainer.world_size > 1:
            raise ConfigError("trainer.devices", f"{trainer.world_size} processes", "one, which writes one table",
                              "Add `--trainer.devices 1`.")
        self.folder = Path(trainer.log_dir)
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        self.csv_path.unlink(missing_ok=True)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any],
                             batch_idx: int, dataloader_idx: int = 0) -> None:
        """Write the rows of a batch, and draw its clips."""
        if self.folder is None:
            return
        data = trainer.datamodule
        rows = pl_module.prediction_rows(outputs, batch, data.class_names)
        with self.csv_path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            if self.rows == 0:
                writer.writeheader()
            writer.writerows(rows)
        self.rows += len(rows)
        for name, picture in pl_module.prediction_files(outputs, batch).items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(self.folder / name)
        decisions = pl_module.postprocess(outputs)
        for index, clip_id in enumerate(batch["id"]):
            self.clips[clip_id] += 1
            if self.drawn < self.max_pictures:
                figure = legible(data.plot({**clip_of(batch, index), **clip_of(decisions, index)}))
                figure.savefig(self._picture(clip_id), dpi=110)
                self.drawn += 1

    def _picture(self, clip_id: str) -> Path:
        # file names have at most 255 bytes, and the name of a video may use them all
        name = clip_id.encode()[:240].decode(errors="ignore")
        again = f".{self.clips[clip_id]}" if self.clips[clip_id] > 1 else ""
        return self.folder / "pictures" / f"{name}{again}.png"

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print where the results are."""
        if self.folder is None:
            print("fast_dev_run: no predictions are written")
            return
        total = self.clips.total()
        more = "; `max_pictures` of avprompt.callbacks.PredictionWriter draws more" if self.drawn < total else ""
        print(f"{self.rows} predictions in {self.csv_path}; {self.drawn} of {total} clips drawn in "
              f"{self.folder / 'pictures'}{more}")
