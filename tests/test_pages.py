"""Pages that play: the user's videos beside their timelines, in a browser and without a network."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from browser import opened
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from media_files import write_video
from test_predictions import Oracle
from torch import Tensor

from avprompt.callbacks import PredictionWriter
from avprompt.cli.main import pictures
from avprompt.data_modules import AVEDataModule
from avprompt.errors import ArgumentError, ClipDecodeError, ConfigError
from avprompt.media.decode import Sampling, decode_clip, duration
from avprompt.media.playable import plays, transcode
from avprompt.pages.rendering import render
from avprompt.plots.features import plane_figure
from avprompt.plots.recording import Recording, pieces, place_of, recording_figure
from avprompt.plots.saving import save_figure
from avprompt.plots.timeline import category_colour, category_marker, clip_figure
from avprompt.tasks.base import AFTER_END, LACKING

SEGMENTS = 4
ODD = "a <b>&\"'#1 äß"


class Finder(Oracle):
    """The oracle, with a map whose bright corner wanders."""

    def predict_step(self, batch: dict, batch_idx: int) -> dict[str, Tensor]:
        count = len(batch["id"])
        maps = torch.zeros(count, SEGMENTS, 2, 2)
        for segment in range(SEGMENTS):
            maps[:, segment, segment // 2, segment % 2] = 1
        return {**super().predict_step(batch, batch_idx), "map_visual": maps}


def videos(folder: Path) -> Path:
    folder.mkdir()
    write_video(folder / f"{ODD}.mp4", seconds=6)
    write_video(folder / "foreign.mkv", seconds=4)
    write_video(folder / "late.mp4", seconds=3, delay=2)
    write_video(folder / "mute.mp4", seconds=2, tone=None)
    (folder / "broken.mp4").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a prediction of five videos, two of which cannot be used."""
    base = tmp_path_factory.mktemp("pages")
    data = AVEDataModule(
        base,
        image_size=32,
        sample_rate=8000,
        segments=SEGMENTS,
        batch_size=2,
        predict_root=videos(base / "own videos"),
        categories=["bell", "speech"],
    )
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[PredictionWriter()],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=CSVLogger(base / "run", "", ""),
    )
    with pytest.warns(UserWarning, match="left out"):
        trainer.predict(Finder(), datamodule=data, return_predictions=False)
    return base / "run"


def rows_of(folder: Path, clip: str) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["id"].partition("@")[0] == clip]


def test_table_has_every_second_and_every_video(predicted: Path) -> None:
    rows = rows_of(predicted, ODD)
    assert [bool(row["predicted"]) for row in rows] == 6 * [True] + 2 * [False]
    assert [row["reason"] for row in rows] == 6 * [""] + 2 * [AFTER_END]
    late = rows_of(predicted, "late")  # predicted from what there is, and marked
    assert [row["reason"] for row in late[:2]] == 2 * [LACKING] and late[0]["predicted"]
    for clip, reason in (("mute", "no audio"), ("broken", "no media")):
        (row,) = rows_of(predicted, clip)
        assert reason in row["reason"] and row["path"].endswith(f"{clip}.mp4")
        assert row["decoded"] == "False" and row["predicted"] == row["start"] == ""


def test_page_needs_nothing_else(predicted: Path) -> None:
    page = (predicted / "predictions.html").read_text(encoding="utf-8")
    assert len(page) < 800_000 and not re.findall(r"(?:src|href)=\"https?:", page)
    assert "3 of 5 videos predicted" in page and '<b>&"' not in page and "no audio" in page
    assert {path.name for path in (predicted / "media").iterdir()} == {"001.mp4"}  # what browsers do not play


def test_cursor_moves_with_the_video(predicted: Path) -> None:
    with opened(predicted / "predictions.html") as page:
        state = """k => { const s = document.querySelectorAll('section.recorded')[k], v = s.querySelector('video'),
            line = s.querySelector('.timeline').getBoundingClientRect(), c = s.querySelector('.cursor').getBoundingClientRect(),
            d = JSON.parse(s.querySelector('script').textContent);
            return {now: v.currentTime, share: (c.left + c.width / 2 - line.left) / line.width, data: d, ready: v.readyState,
                    length: v.duration, text: s.querySelector('.now').textContent, paused: v.paused,
                    drawn: [...s.querySelector('canvas').getContext('2d').getImageData(0, 0, s.querySelector('canvas').width,
                        s.querySelector('canvas').height).data].filter((x, i) => i % 4 == 3 && x > 0).length}; }"""

        def wanted(found: dict) -> float:
            data = found["data"]
            return data["left"] + (data["right"] - data["left"]) * (found["now"] - data["begin"]) / (
                data["end"] - data["begin"]
            )

        page.wait_for_function("[...document.querySelectorAll('video')].every(v => v.readyState > 0)")
        for place, length in enumerate((6, 4, 5)):  # each can be played, the one that was copied too
            found = page.evaluate(state, place)
            assert found["length"] == pytest.approx(length, abs=0.4)
        first = page.evaluate(state, 0)
        assert first["share"] == pytest.approx(wanted(first), abs=0.003) and "0.0 to 1.0 s" in first["text"]
        page.evaluate("() => document.querySelector('video').play()")
        page.wait_for_function("document.querySelector('video').currentTime > 1.2")
        playing = page.evaluate(state, 0)
        assert not playing["paused"] and playing["share"] > first["share"] + 0.05
        assert playing["share"] == pytest.approx(wanted(playing), abs=0.02)
        page.evaluate("() => document.querySelector('video').pause()")
        assert playing["drawn"] == 0
        page.get_by_label("where it looks").first.check()
        page.wait_for_timeout(200)
        assert page.evaluate(state, 0)["drawn"] > 100
        page.get_by_label("no overlay").first.check()
        assert page.evaluate(state, 0)["drawn"] == 0
        box = page.locator(".timeline").first.bounding_box()
        data = first["data"]
        page.mouse.click(
            box["x"] + box["width"] * (data["left"] + 2.5 / 8 * (data["right"] - data["left"])), box["y"] + 30
        )
        page.wait_for_function("Math.abs(document.querySelector('video').currentTime - 2.5) < 0.1")
        assert "2.0 to 3.0 s" in page.evaluate(state, 0)["text"]
        page.evaluate("() => { document.querySelector('video').currentTime = 5.95 }")
        page.wait_for_timeout(200)
        assert "5.0 to 6.0 s" in page.evaluate(state, 0)["text"]


def test_clip_of_a_dataset_plays_as_the_network_read_it(ave_root: Path, tmp_path: Path) -> None:
    data = AVEDataModule(
        ave_root,
        image_size=64,
        sample_rate=16000,
        batch_size=2,
        categories=["disc", "square", "triangle", "plus", "ring", "star", "bar", "hourglass"],
    )
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[PredictionWriter(max_pictures=1)],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=CSVLogger(tmp_path, "", ""),
        limit_predict_batches=1,
    )

    class Ten(Oracle):
        def predict_step(self, batch: dict, batch_idx: int) -> dict[str, Tensor]:
            return {"is_event": torch.ones(2, 10), "event": torch.rand(2, 8)}

    trainer.predict(Ten(), datamodule=data, return_predictions=False)
    (clip,) = (tmp_path / "media").iterdir()
    assert plays(clip) and duration(clip) == pytest.approx(10, abs=0.2)
    frames, audio, _ = data.reader.read(data.to_predict.ids[0])
    again = decode_clip(clip, Sampling(size=64, sample_rate=16000))
    assert np.abs(again.frames.astype(float) - frames.permute(0, 2, 3, 1).numpy()).mean() < 12
    assert np.corrcoef(again.audio.flatten(), audio.numpy().flatten())[0, 1] > 0.9
    assert "1 further examples" in (tmp_path / "predictions.html").read_text()


def test_what_browsers_play(tmp_path: Path) -> None:
    assert plays(write_video(tmp_path / "a.mp4", seconds=2))
    assert not plays(write_video(tmp_path / "a.avi", seconds=2)) and not plays(
        write_video(tmp_path / "a.mkv", seconds=2)
    )
    with av.open(str(tmp_path / "deep.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    assert not plays(tmp_path / "deep.mp4")
    wave = write_video(tmp_path / "b.mp4", seconds=2, picture=False)
    transcode(tmp_path / "a.mkv", tmp_path / "copy.mp4", wave)
    clip = decode_clip(tmp_path / "copy.mp4", Sampling(segments=2, size=16, sample_rate=8000))
    assert plays(tmp_path / "copy.mp4") and clip.valid.all() and np.abs(clip.audio).max() > 0.04
    assert [round(frame.mean() / 8) for frame in clip.frames] == [0, 1]
    with pytest.raises(ClipDecodeError):
        transcode(tmp_path / "missing.mkv", tmp_path / "none.mp4")
    assert not (tmp_path / "none.mp4").exists()


def test_timeline_of_segments_with_gaps() -> None:
    times = np.array([[0.0, 1.0], [6.0, 7.0], [12.0, 13.0]])
    assert pieces(times) == [(0, 1), (1, 2), (2, 3)]
    recording = Recording(
        times,
        np.array([True, True, False]),
        ["", "", "after $the$ end"],
        labels={"predicted": ["cat", "", ""]},
        curves={"event": np.full((3, 2), 0.3)},
        names=["cat"],
    )
    figure = recording_figure(recording, title="$x$")
    width, left, right = place_of(recording)
    box = figure.axes[0].get_position()
    assert (box.x0, box.x1) == pytest.approx((left, right)) and figure.get_size_inches()[0] == pytest.approx(width)
    assert figure.axes[0].get_xlim() == (0, 13)


def test_wrong_arguments() -> None:
    for wrong in ({"formats": ["gif"]}, {"formats": []}, {"videos": "move"}, {"max_minutes": -1}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            PredictionWriter(**wrong)
    with pytest.raises(Exception, match="text"):  # a template does not pass over what it lacks
        render("message.html", title="a")


def test_figures_for_papers(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.5, "Grün 日")
    files = save_figure(figure, tmp_path / "one.two", ("png", "pdf", "svg"))
    assert [path.name for path in files] == ["one.two.png", "one.two.pdf", "one.two.svg"]
    pdf, svg = files[1].read_bytes(), files[2].read_text(encoding="utf-8")
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"CreationDate" not in pdf
    assert "<text" not in svg  # outlines, whatever fonts a reader has
    again = save_figure(figure, tmp_path / "again", ("pdf", "svg"))
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files[1:]]


def test_probabilities_stand_beside_decisions() -> None:
    curves = {"any event": torch.rand(4), "event": torch.rand(4, 3)}
    figure = clip_figure(
        torch.rand(4, 3, 8, 8),
        torch.rand(4, 50),
        ["a", "b"],
        torch.tensor([0, 1, 2, 0]),
        valid=torch.tensor([True, True, True, False]),
        probabilities=curves,
        maps=torch.rand(4, 2, 2),
    )
    drawn = [[patch.get_data().values for patch in axis.patches if hasattr(patch, "get_data")] for axis in figure.axes]
    single, several = [found for found in drawn if found]
    assert len(single) == 1 and len(several) == 3 and np.isnan(single[0]).tolist() == [False] * 3 + [True]
    assert single[0][:3] == pytest.approx(curves["any event"][:3].numpy())
    names = [text.get_text() for axis in figure.axes if axis.get_legend() for text in axis.get_legend().get_texts()]
    assert names[0] == "any event" and set(names[1:]) == {"a", "b", "background"}


def test_few_points_are_cautioned_against() -> None:
    points = {
        count: (np.random.default_rng(0).random((count, 2)), [k % 9 for k in range(count)], 0.1) for count in (12, 200)
    }
    few, many = (plane_figure({"sound": panel}, list("abcdefghi")) for panel in points.values())
    assert "Fewer than" in few.get_supxlabel() and "Fewer than" not in many.get_supxlabel()
    assert "n = 12, perplexity 3.67" in few.axes[0].get_title()
    few.draw_without_rendering()
    assert not few.legends[0].get_window_extent().overlaps(few._supxlabel.get_window_extent())
    assert few.axes[0].get_aspect() == 1
    other = plane_figure({"sound": points[12]}, list("abcdefghi"), "UMAP")
    assert other.get_supxlabel().startswith("UMAP has no units") and "11 neighbours" in other.axes[0].get_title()
    looks = {(category_colour(index), category_marker(index)) for index in range(63)}
    assert len(looks) == 63


def test_format_on_the_command_line() -> None:
    assert pictures(["--features", "--format=pdf"])[1:] == [
        "--trainer.callbacks+=avprompt.callbacks.feature_pictures.FeaturePictures",
        "--trainer.callbacks.formats=[pdf]",
        "--trainer.callbacks+=avprompt.callbacks.PredictionWriter",
        "--trainer.callbacks.formats=[pdf]",
    ]
    assert pictures(["--umap"])[1:] == [
        "--trainer.callbacks+=avprompt.callbacks.feature_pictures.FeaturePictures",
        "--trainer.callbacks.umap=true",
    ]
    with pytest.raises(ConfigError, match="--format"):
        pictures(["--format"])
