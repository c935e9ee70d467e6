"""What `avprompt predict` leaves for people: a table and a picture a clip."""

from __future__ import annotations

import csv
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from avprompt.callbacks import PredictionWriter, run_folder
from avprompt.datasets.ave import CATEGORIES
from avprompt.errors import ArgumentError
from avprompt.media.decode import Sampling
from avprompt.plots.timeline import category_colour, clip_figure, runs
from avprompt.tasks import AVE

SEGMENTS, NAMES = 4, ("bell", "Male speech, man speaking")


class Oracle(AVE):
    """AVE's rows and decisions on fixed outputs: category 1 in segments 1 and 2."""

    def __init__(self) -> None:
        LightningModule.__init__(self)

    def predict_step(self, batch: dict, batch_idx: int) -> dict[str, Tensor]:
        if "broken" in batch["id"]:
            raise RuntimeError("the machine was switched off")
        count = len(batch["id"])
        return {
            "is_event": torch.tensor([[-2.0, 2.0, 2.0, -2.0]]).repeat(count, 1),
            "event": torch.tensor([[0.0, 3.0]]).repeat(count, 1),
        }


class Clips(LightningDataModule):
    """Batches of clips with the given ids."""

    class_names = NAMES

    def __init__(self, *ids: list[str], truth: bool = False) -> None:
        super().__init__()
        self.ids, self.truth = ids, truth

    def predict_dataloader(self) -> DataLoader:
        return DataLoader([self.batch(ids) for ids in self.ids], batch_size=None)

    def batch(self, ids: list[str]) -> dict:
        count = len(ids)
        batch = {
            "id": ids,
            "frames": torch.rand(count, SEGMENTS, 3, 8, 8),
            "audio": torch.zeros(count, SEGMENTS, 100),
            "valid": torch.tensor([[True, True, True, False]]).repeat(count, 1),
        }
        starts = torch.zeros(count) if self.truth else 10.0 + torch.arange(count)
        batch["times"] = torch.stack([torch.from_numpy(Sampling(SEGMENTS).times(float(start))) for start in starts])
        if self.truth:
            event = torch.zeros(count, SEGMENTS, 3)
            event[:, :2, 1], event[:, 2:, 2] = 1, 1
            return {**batch, "event": event}
        return {**batch, "path": [f"/videos/{clip}.mp4" for clip in ids], "start": starts.double()}

    def plot(self, sample: dict) -> Figure:
        truth = sample["event"].argmax(-1) if "event" in sample else None
        return clip_figure(sample["frames"], sample["audio"], NAMES, sample["prediction"], truth, sample["id"])


def predict(
    folder: Path, data: Clips, writer: PredictionWriter | None = None, **options: object
) -> list[dict[str, str]]:
    """Predict on the clips; the rows of the table."""
    given = {"logger": CSVLogger(folder, name="", version=""), **options}
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[writer or PredictionWriter()],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **given,
    )
    trainer.predict(Oracle(), data, return_predictions=False)
    return table(folder)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pictures(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "pictures").iterdir())


def test_own_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = predict(tmp_path, Clips(["-dash", "a, b"], ["third"]))
    assert len(rows) == 3 * SEGMENTS and pictures(tmp_path) == ["-dash.png", "a, b.png", "third.png"]
    assert [row["id"] for row in rows[::SEGMENTS]] == ["-dash", "a, b", "third"]
    assert [(row["start"], row["end"]) for row in rows[4:8]] == [(f"{11 + t}.0", f"{12 + t}.0") for t in range(4)]
    assert rows[1] == {
        "id": "-dash",
        "start": "11.0",
        "end": "12.0",
        "predicted": NAMES[1],
        "event_probability": "0.8808",
        "clip_category": NAMES[1],
        "clip_category_probability": "0.9526",
        "decoded": "True",
        "annotated": "",
        "path": "/videos/-dash.mp4",
        "reason": "",
    }
    assert rows[3]["predicted"] == "background" and rows[3]["decoded"] == "False"
    said = capsys.readouterr().out
    assert (
        f"12 predictions in {tmp_path / 'predictions.csv'}; 3 of 3 clips drawn" in said and "max_pictures" not in said
    )


def test_annotated_clips(tmp_path: Path) -> None:
    rows = predict(tmp_path, Clips(["a"], truth=True))
    assert [row["annotated"] for row in rows] == [NAMES[1], NAMES[1], "background", "background"]
    assert [row["predicted"] == row["annotated"] for row in rows] == [False, True, False, True]


def test_number_of_pictures_is_capped_and_the_cap_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = predict(tmp_path, Clips(["a", "b"], ["c", "d"]), PredictionWriter(max_pictures=3))
    assert len(rows) == 16 and pictures(tmp_path) == ["a.png", "b.png", "c.png"]
    assert "3 of 4 clips drawn" in (said := capsys.readouterr().out) and "`max_pictures`" in said
    assert len(predict(tmp_path / "none", Clips(["a"]), PredictionWriter(max_pictures=0))) == 4
    assert not pictures(tmp_path / "none")
    with pytest.raises(ArgumentError, match="max_pictures"):
        PredictionWriter(max_pictures=-1)


def test_one_clip_annotated_twice_has_two_pictures(tmp_path: Path) -> None:
    predict(tmp_path, Clips(["a", "b"], ["a"], truth=True))
    assert pictures(tmp_path) == ["a.2.png", "a.png", "b.png"]


def test_longest_possible_name_of_a_video(tmp_path: Path) -> None:
    """251 bytes and .mp4; the window's second and .png come on top."""
    name = "é" * 125 + "a"
    predict(tmp_path, Clips([name, f"{name}@10"]))
    assert len(pictures(tmp_path)) == 1  # cut to the same name
    assert [row["id"] for row in table(tmp_path)[::SEGMENTS]] == [name, f"{name}@10"]


def test_interruption_keeps_what_was_predicted_and_the_next_run_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="switched off"):
        predict(tmp_path, Clips(["a", "b"], ["broken"], ["c"]))
    assert [row["id"] for row in table(tmp_path)[::SEGMENTS]] == ["a", "b"]
    assert [row["id"] for row in predict(tmp_path, Clips(["c"]))[::SEGMENTS]] == ["c"]


def test_where_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for options in ({}, {"logger": False}):
        with pytest.raises(FileNotFoundError):  # of `table`: the run itself is fine
            predict(tmp_path, Clips(["a"]), fast_dev_run=True, **options)
        assert "no predictions are written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_without_a_logger_a_run_has_a_folder_too(tmp_path: Path) -> None:
    for run in ("version_0", "version_1"):
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            callbacks=[PredictionWriter()],
            enable_progress_bar=False,
        )
        trainer.predict(Oracle(), datamodule=Clips(["a"]), return_predictions=False)
        assert (tmp_path / run / "predictions.csv").is_file() and run_folder(trainer) == tmp_path / run


def test_runs() -> None:
    assert runs([2, 2, 0, 2]) == [(0, 2, 2), (2, 3, 0), (3, 4, 2)] and runs([1]) == [(0, 1, 1)]


def test_every_category_of_ave_has_a_colour_of_its_own() -> None:
    colours = [np.array(category_colour(index)) for index in range(len(CATEGORIES))]
    assert min(np.abs(a - b).max() for a, b in combinations(colours, 2)) > 0.08
    assert category_colour(3) == category_colour(3)


def drawn(figure: Figure) -> list[tuple[str, int, float, float]]:
    """Texts inside the rows: text, row, and where it begins and ends in seconds."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = []
    for row, axis in enumerate(figure.axes):
        for text in axis.texts:
            box = text.get_window_extent(canvas.get_renderer()).transformed(axis.transData.inverted())
            found.append((text.get_text(), row, box.x0, box.x1))
    return found


def clip(
    segments: int, prediction: list[int] | None = None, truth: list[int] | None = None, **options: object
) -> Figure:
    given = {
        name: None if values is None else torch.tensor(values)
        for name, values in (("prediction", prediction), ("truth", truth))
    }
    return clip_figure(torch.rand(segments, 3, 8, 8), torch.rand(segments, 50) - 0.5, CATEGORIES, **given, **options)


@pytest.mark.parametrize("first", [0, 9, 18])
def test_labels_are_whole_and_do_not_overlap(first: int) -> None:
    """The worst case: another category every second."""
    texts = drawn(clip(10, list(range(first, first + 10))))
    assert [text.replace("\n", " ") for text, *_ in texts] == list(CATEGORIES[first : first + 10])
    for second, (_, _, left, right) in enumerate(texts):
        assert second < left < right < second + 1
    assert all(a[3] < b[2] for a, b in pairwise(texts))


def test_rows_and_agreement() -> None:
    figure = clip(4, [28, 3, 3, 28], [3, 3, 3, 28], title="$clip_1$", start=20.0)
    texts = drawn(figure)
    assert [text for text, *_ in texts] == [
        CATEGORIES[3],
        "background",
        "background",
        "Fixed-wing aircraft, airplane",
        "background",
    ]
    assert [t.get_text() for axis in figure.axes[-2:] for t in axis.get_yticklabels()] == [
        "annotated",
        "predicted,\n3 of 4 right",
    ]
    assert [t.get_text() for t in figure.axes[4].get_xticklabels()] == ["20 s", "21 s", "22 s", "23 s", "24 s"]
    assert figure.get_suptitle() == "$clip_1$"  # as it is, no formula
    assert len(clip(4).axes) == 5 and len(clip(4, [1] * 4).axes) == 6


def test_padding_is_marked() -> None:
    figure = clip(4, valid=torch.tensor([True, True, False, False]))
    ((text, _, left, right),) = drawn(figure)
    assert text == "no media" and 2 < left < right < 4
    assert [axis.images[0].get_alpha() for axis in figure.axes[:4]] == [1.0, 1.0, 0.25, 0.25]
    assert not drawn(clip(4, valid=torch.ones(4, dtype=torch.bool)))


def test_silence_and_a_single_segment(tmp_path: Path) -> None:
    figure = clip_figure(torch.rand(1, 3, 8, 8), torch.zeros(1, 50), CATEGORIES, torch.tensor([28]))
    figure.savefig(tmp_path / "silent.png")
    low, high = figure.axes[1].get_ylim()
    assert low < 0 < high
