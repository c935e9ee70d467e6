"""Predictions for people to read: a CSV file, and a picture of each clip."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from avprompt.callbacks.pictures import clip_of
from avprompt.callbacks.run_folder import run_folder
from avprompt.errors import ArgumentError
from avprompt.processes import gathered_objects


class PredictionWriter(Callback):
    """Writes `predictions.csv` and `pictures/<id>.png` into the folder of the run during `avprompt predict`.

    The task turns outputs into rows (`prediction_rows`), decisions (`postprocess`) and, where these are pictures
    themselves, files (`prediction_files`); the data module draws (`plot`). Rows are written after each batch, so that
    an interruption keeps them. A second example with the same id has its picture in `<id>.2.png`. With `fast_dev_run`
    nothing is written.

    Of several processes each writes the rows of its piece of the dataset to `predictions.<rank>.csv`; at the end the
    first one makes them one table, in the dataset's order. Their run's folder must be one they all see.

    Args:
        max_pictures: largest number of clips drawn, the first ones; the CSV file has all clips.

    Raises:
        ArgumentError: a negative number of pictures.

    Example:
        >>> PredictionWriter(max_pictures=0).max_pictures
        0
    """

    def __init__(self, max_pictures: int = 50) -> None:
        if max_pictures < 0:
            raise ArgumentError("max_pictures", max_pictures, "0 or more", "0 draws none.")
        self.max_pictures = max_pictures
        self.folder: Path | None = None
        self.csv_path: Path | None = None
        self.rows = 0
        self.clips: Counter[str] = Counter()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Determine the run's folder, in every process."""
        run_folder(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the folder, without the table of an earlier run."""
        self.folder, self.rows, self.clips = run_folder(trainer), 0, Counter()
        if self.folder is None:
            return
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        self.csv_path = self.folder / "predictions.csv"
        if trainer.world_size > 1:
            data = trainer.datamodule
            self.clips.update(data.to_predict.ids[:data.predict_share.start])  # those of the processes before this one
            self.csv_path = self._part(trainer.global_rank)
        for path in (self.folder / "predictions.csv", self.csv_path):
            path.unlink(missing_ok=True)

    def _part(self, rank: int) -> Path:
        return self.folder / f"predictions.{rank}.csv"

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
            if self.clips.total() <= self.max_pictures:
                figure = data.plot({**clip_of(batch, index), **clip_of(decisions, index)})
                figure.savefig(self._picture(clip_id), dpi=110)

    def _picture(self, clip_id: str) -> Path:
        # file names have at most 255 bytes, and the name of a video may use them all
        name = clip_id.encode()[:240].decode(errors="ignore")
        again = f".{self.clips[clip_id]}" if self.clips[clip_id] > 1 else ""
        return self.folder / "pictures" / f"{name}{again}.png"

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the tables of all processes, and print where the results are."""
        if self.folder is None:
            if trainer.is_global_zero:
                print("fast_dev_run: no predictions are written")
            return
        counts = gathered_objects((self.rows, self.clips.total()))
        if not trainer.is_global_zero:
            return
        if trainer.world_size > 1:
            self._join(trainer.world_size)
        rows, total = sum(count for count, _ in counts), counts[-1][1]
        drawn = min(total, self.max_pictures)
        more = "; `max_pictures` of avprompt.callbacks.PredictionWriter draws more" if drawn < total else ""
        print(f"{rows} predictions in {self.csv_path}; "
              f"{drawn} of {total} clips drawn in {self.folder / 'pictures'}{more}")

    def _join(self, world: int) -> None:
        self.csv_path = self.folder / "predictions.csv"
        with self.csv_path.open("wb") as table:
            for rank in range(world):
                with self._part(rank).open("rb") as part:
                    header = part.readline()
                    table.write(header if rank == 0 else b"")
                    shutil.copyfileobj(part, table)
        for rank in range(world):
            self._part(rank).unlink()
