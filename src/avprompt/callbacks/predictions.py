"""Predictions for people to read: a CSV file, a page that plays the videos, and a picture of each clip."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from avprompt.callbacks.pictures import clip_of
from avprompt.callbacks.run_folder import run_folder
from avprompt.errors import ArgumentError, check_choice
from avprompt.plots.saving import check_formats, save_figure
from avprompt.processes import gathered_objects
from avprompt.ranges import Natural, NonNegative

if TYPE_CHECKING:
    from avprompt.pages.recordings import Window


class PredictionWriter(Callback):
    """Writes `predictions.csv`, `predictions.html` and `pictures/<id>.png` into the run's folder in `avprompt predict`.

    The task turns outputs into rows (`prediction_rows`), decisions (`postprocess`) and, where these are pictures
    themselves, files (`prediction_files`); the data module draws (`plot`). Rows are written after each batch, so that
    an interruption keeps them. A second example with the same id has its picture in `<id>.2.png`. With `fast_dev_run`
    nothing is written.

    In the page each of the user's videos plays beside its timeline; a clip of a dataset plays as the network read it.
    A video that cannot be used stands in table and page with the reason.

    Of several processes each writes the rows of its piece of the dataset to `predictions.<rank>.csv`; at the end the
    first one makes them one table, in the dataset's order. Their run's folder must be one they all see.

    Args:
        max_pictures: largest number of clips drawn, the first ones; the CSV file has all clips.
        formats: of the pictures: `png`, `pdf`, `svg`.
        videos: `link`: the page plays the user's videos where they lie, by a relative path, and copies those alone that
            not every browser plays. `copy`: it has copies of all, so that the folder can be moved.
        max_minutes: of the user's videos that the page shows, the first ones; the CSV file has all.
        origin: what the page says of the network; `None` names the checkpoint.

    Raises:
        ArgumentError: a negative number of pictures or minutes, or an unknown format.

    Example:
        >>> PredictionWriter(max_pictures=0).max_pictures
        0
    """

    def __init__(
        self,
        max_pictures: Natural = 50,
        formats: Sequence[str] = ("png",),
        videos: Literal["link", "copy"] = "link",
        max_minutes: NonNegative = 60.0,
        origin: str | None = None,
    ) -> None:
        for name, value in (("max_pictures", max_pictures), ("max_minutes", max_minutes)):
            if value < 0:
                raise ArgumentError(name, value, "0 or more", "0 draws none.")
        check_choice("videos", videos, ("link", "copy"))
        self.max_pictures, self.formats, self.videos = max_pictures, check_formats(formats), videos
        self.max_minutes, self.origin = max_minutes, origin
        self.found: dict[str, bool] = {}
        self.folder: Path | None = None
        self.csv_path: Path | None = None
        self.fields: list[str] = []
        self.rows = 0
        self.clips: Counter[str] = Counter()
        self.windows: list[Window] = []
        self.left_out, self.seconds = 0, 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Determine the run's folder, in every process."""
        run_folder(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the folder, without the table of an earlier run."""
        self.folder, self.rows, self.clips = run_folder(trainer), 0, Counter()
        self.windows, self.left_out, self.seconds, self.found = [], 0, 0.0, {}
        if self.folder is None:
            return
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        self.csv_path = self.folder / "predictions.csv"
        if trainer.world_size > 1:
            data = trainer.datamodule
            before = data.to_predict.ids[: data.predict_share.start]
            self.clips.update(before)  # those of the processes before this one
            self.seconds = len(before) * data.sampling.period
            self.csv_path = self._part(trainer.global_rank)
        for path in (self.folder / "predictions.csv", self.csv_path, self.folder / "predictions.html"):
            path.unlink(missing_ok=True)

    def _part(self, rank: int) -> Path:
        return self.folder / f"predictions.{rank}.csv"

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the rows of a batch, and draw its clips."""
        if self.folder is None:
            return
        data = trainer.datamodule
        rows = pl_module.prediction_rows(outputs, batch, data.class_names)
        with self.csv_path.open("a", newline="", encoding="utf-8") as file:
            self.fields = list(rows[0])
            writer = csv.DictWriter(file, self.fields)
            if self.rows == 0:
                writer.writeheader()
            writer.writerows(rows)
        self.rows += len(rows)
        for name, picture in pl_module.prediction_files(outputs, batch).items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(self.folder / name)
        decisions = pl_module.postprocess(outputs)
        each = len(rows) // len(batch["id"])
        for index, clip_id in enumerate(batch["id"]):
            self.clips[clip_id] += 1
            sample, decided = clip_of(batch, index), clip_of(decisions, index)
            drawn = self.clips.total() <= self.max_pictures
            if drawn:
                figure = data.plot({**sample, **decided})
                save_figure(figure, self.folder / "pictures" / self._stem(clip_id), self.formats)
            own = rows[index * each : (index + 1) * each]
            self._collect(sample, decided, own, pl_module.reasons(batch, index), drawn)

    def _collect(
        self,
        sample: dict[str, Any],
        decided: dict[str, Any],
        rows: list[dict[str, Any]],
        reasons: list[str],
        drawn: bool,
    ) -> None:
        from avprompt.pages.recordings import KEYS, show_what_was_read, window_of

        # pictures are few because each is a file; of the user's videos the page has a timeline of minutes
        shown = self.seconds < 60 * self.max_minutes if "path" in sample else drawn
        if "path" in sample:
            self.seconds += float(sample["times"][-1, 1] - sample["times"][0, 0])
            known = any(row[name] not in ("", None) for row in rows for name in row if name not in KEYS)
            self.found[sample["path"]] = self.found.get(sample["path"], False) or known
        if not shown:
            self.left_out += 1
            return
        window = window_of(sample, decided, rows, reasons)
        if "path" not in sample:
            show_what_was_read(window, sample, self.folder, self._stem(sample["id"]).replace("/", "_"))
        self.windows.append(window)

    def _stem(self, clip_id: str) -> str:
        # file names have at most 255 bytes, and the name of a video may use them all
        name = clip_id.encode()[:240].decode(errors="ignore")
        return name + (f".{self.clips[clip_id]}" if self.clips[clip_id] > 1 else "")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the tables of all processes, add the videos that cannot be used, write the page, say where all is."""
        if self.folder is None:
            if trainer.is_global_zero:
                print("fast_dev_run: no predictions are written")
            return
        from avprompt.pages.recordings import write_page

        parts = gathered_objects((self.rows, self.clips.total(), self.windows, self.left_out, self.found))
        if not trainer.is_global_zero:
            return
        if trainer.world_size > 1:
            self._join(trainer.world_size)
        data = trainer.datamodule
        # a data module of one's own may know nothing of videos
        unusable = data.unusable() if hasattr(data, "unusable") else []
        with self.csv_path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.fields, restval="").writerows({"decoded": False, **row} for row in unusable)
        rows, total = sum(part[0] for part in parts), parts[-1][1]
        windows = [window for part in parts for window in part[2]]
        videos = {path for part in parts for path in part[4]}
        predicted = {path for part in parts for path, known in part[4].items() if known}
        summary = (
            f"{len(predicted)} of {len(videos) + len(unusable)} videos predicted"
            if videos
            else f"{total} examples predicted"
        )
        origin = self.origin or (
            f"by {trainer.ckpt_path}" if trainer.ckpt_path else "by a network without a checkpoint: it is untrained"
        )
        page = write_page(
            self.folder,
            windows,
            unusable,
            data.class_names,
            summary,
            origin,
            data.sounds() if hasattr(data, "sounds") else {},
            self.videos,
            sum(part[3] for part in parts),
        )
        drawn = min(total, self.max_pictures)
        more = "; `max_pictures` of avprompt.callbacks.PredictionWriter draws more" if drawn < total else ""
        print(
            f"{rows} predictions in {self.csv_path}; "
            f"{drawn} of {total} clips drawn in {self.folder / 'pictures'}{more}\n"
            f"{summary}; open {page} in a browser"
        )

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
