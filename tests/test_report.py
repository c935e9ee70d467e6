"""`avprompt report RUN`: a page from the files of a run alone."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import opened
from PIL import Image

from avprompt.cli import run
from avprompt.configs import read_yaml
from avprompt.errors import DatasetError
from avprompt.reports.outcomes import ClipScores
from avprompt.reports.report import class_rows, differences, interval

TRUTH = ["disc", "disc", "background", "ring <&>"]
FOUND = ["disc", "ring <&>", "background", "ring <&>"]


def finished(folder: Path, metrics: dict[str, float], ckpt_path: Path | None = None, **changes: Any) -> Path:
    """A run's folder as `fit` or `test` leaves it."""
    folder.mkdir(parents=True)
    config = {
        "seed_everything": 3,
        "ckpt_path": None if ckpt_path is None else str(ckpt_path),
        **read_yaml("quickstart"),
        **changes,
    }
    result = {
        "experiment": "quickstart",
        "task": "AVE",
        "metrics": metrics,
        "monitor": "val_accuracy",
        "seed": 3,
        "parameters": {"trainable": 7, "frozen": 3, "total": 10, "checkpoint": 7},
        "config": config,
        "git": "abc",
        "versions": {"torch": "2"},
        "device": "toaster",
        "wall_s": 12.3,
        "peak_memory_bytes": 10**9,
        "epochs": 2,
        "clips": {"test": {"used": 2, "missing": 1, "corrupt": 0}},
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def with_outcomes(folder: Path) -> Path:
    with (folder / "outcomes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "start", "end", "predicted", "probability", "annotated", "decoded", "accuracy"])
        for clip in range(4):
            for place, (truth, found) in enumerate(zip(TRUTH, FOUND)):
                found = truth if clip == 3 else "background" if clip == 2 else found
                writer.writerow([f"clip{clip}", place, place + 1, found, 0.5, truth, True, int(truth == found)])
    return folder


def test_page_of_a_test(tmp_path: Path) -> None:
    fit = finished(
        tmp_path / "runs" / "fit", {"train_loss_epoch": 1.0, "best_val_accuracy": 0.5}, trainer={"max_epochs": 2}
    )
    with (fit / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["epoch", "step", "train_loss_epoch", "val_loss", "val_accuracy"],
                [0, 5, 2.0, "", ""],
                [0, 5, "", 2.5, 0.25],
                [1, 11, 1.0, 2.1, 0.5],
            ]
        )
    test = with_outcomes(
        finished(
            tmp_path / "runs" / "test",
            {"test_accuracy": 0.6875, "test_loss": 1.0},
            fit / "checkpoints" / "best.ckpt",
            trainer={"max_epochs": 2},
        )
    )
    (test / "pictures").mkdir()
    Image.new("RGB", (40, 20)).save(test / "pictures" / "clip0.png")
    run(["report", str(test)])
    text = (test / "report.html").read_text(encoding="utf-8")
    assert len(text) < 300_000 and "<&>" not in text and not re.findall(r"(?:src|href)=\"https?:", text)
    assert ">68.8<" in text and "<code>trainer.max_epochs</code>" in text and "No outcomes.csv" not in text
    assert "model.optimizer" not in text  # as the experiment says, or its class
    with opened(test / "report.html") as page:
        assert page.locator("svg").count() == 2 and page.locator("#metrics td").nth(2).inner_text() != ""
        rows = page.locator("#clips table").first.locator("tbody tr")
        assert (
            rows.first.locator("td").first.inner_text() == "clip2"
            and rows.first.locator("td").nth(1).inner_text() == "25.0"
        )
        assert page.locator("#clips a").first.get_attribute("href") == "pictures/clip0.png"
        assert page.locator("#pictures img").first.evaluate("image => image.naturalWidth") == 40
        cells = page.locator("#classes tbody tr").nth(1).locator("td").all_inner_texts()
        assert cells[:4] == ["ring <&>", "4", "5", "75.0"]


def test_what_a_run_lacks_is_named(tmp_path: Path) -> None:
    test = finished(tmp_path / "test", {"test_accuracy": 0.5})
    run(["report", str(test), "--out", str(tmp_path / "pages" / "one.html")])
    text = (tmp_path / "pages" / "one.html").read_text(encoding="utf-8")
    for lacking in ("No outcomes.csv", "was not found where its path says", "No pictures"):
        assert lacking in text
    with pytest.raises(DatasetError, match="no result.json"):
        run(["report", str(tmp_path)])
    (test / "result.json").write_text("{")
    with pytest.raises(DatasetError, match="no JSON"):
        run(["report", str(test)])


def test_interval_resamples_clips() -> None:
    clips = ClipScores(tuple("abcdefgh"), np.array([0.0, 10] * 4), np.full(8, 10.0))
    low, high = interval(clips)
    assert 0.1 < low < 0.3 and 0.7 < high < 0.9 and interval(clips) == (low, high)
    assert interval(ClipScores(("a",), np.ones(1), np.ones(1))) is None


def test_categories_of_tasks_with_several_at_once() -> None:
    import pandas as pd

    table = pd.DataFrame(
        {
            "predicted_audio": ["dog;cat", ""],
            "annotated_audio": ["dog", "cat"],
            "predicted_visual": ["", "cat"],
            "annotated_visual": ["", "cat"],
        }
    )
    rows, matrix = class_rows(table)
    assert matrix is None and [row["category"] for row in rows] == ["cat, heard", "dog, heard", "cat, seen"]
    assert rows[1]["F1, %"] == "100.0" and rows[0]["recall, %"] == "0.0"


def test_differences_from_an_experiment_and_from_defaults() -> None:
    shipped = {"model": {"class_path": "avprompt.tasks.AVE", "init_args": {"gate_loss": "none"}}}
    same = {"model": {"class_path": "avprompt.tasks.AVE", "init_args": {"gate_loss": "none", "modality": "both"}}}
    assert differences(same, shipped) == []
    same["model"]["init_args"] |= {"modality": "audio", "gate_loss": "released"}
    assert differences(same, shipped) == [("model.gate_loss", "none", "released"), ("model.modality", "both", "audio")]
    other = {"model": {"class_path": "avprompt.tasks.AVEClassic", "init_args": {"supervision": "full"}}}
    assert differences(other, shipped) == [("model", "avprompt.tasks.AVE", "avprompt.tasks.AVEClassic")]
