"""Every shipped YAML goes through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from avprompt.cli import run
from avprompt.sweep import read_sweep, sweep

EXPERIMENTS = sorted(p for p in (ROOT / "experiments").rglob("*.yaml") if p.parent.name != "sweeps")
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
TINY = {
    "visual": "avprompt.encoders.TinySwinV2",
    "audio": "avprompt.encoders.TinyHTSAT",
}


def test_there_are_experiments() -> None:
    assert len(EXPERIMENTS) >= 2 and len(SWEEPS) >= 1


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_says_how_to_run_it(path: Path) -> None:
    header = path.read_text().split("\nseed_everything")[0]
    assert "avprompt " in header and header.startswith("#")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_trains_validates_and_tests(path: Path, world: Path, tmp_path: Path) -> None:
    """Its own task, prompts, losses and optimizer, on tiny encoders and the generated world."""
    small = tmp_path / "tiny.yaml"
    encoders = "".join(f"      {side}: {{class_path: {kind}, init_args: {{pretrained: world, frozen: true, "
                       f"released_mode: false}}}}\n" for side, kind in TINY.items())
    small.write_text(
        "model:\n  init_args:\n    backbone:\n     init_args:\n" + encoders
        + f"data:\n  init_args:\n    root: {world}\n    layout: store\n    image_size: 64\n    sample_rate: 16000\n"
          "    antialias: true\n    num_workers: 0\n    batch_size: 4\n"
          "    categories: [disc, square, triangle, plus, ring, star, bar, hourglass]\n")
    common = ["--config", str(path), "--config", str(small), "--trainer",
              str(ROOT / "lightning_configs" / "trainer" / "debug.yaml"), "--trainer.callbacks=null"]
    if "NoPrompts" not in path.read_text() and "prompts/none" not in path.read_text():
        common += ["--model.init_args.backbone.init_args.prompts.init_args.reduction", "4"]  # divides the tiny widths
    run(["fit", *common])
    run(["test", *common])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_has_parameters(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["params", "--config", str(path), "--json"])
    table = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert table["trainable"] > 0 and table["total"] == table["trainable"] + table["frozen"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_every_row_of_a_sweep_is_a_network(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells, _ = read_sweep(path, [0], tmp_path)
    sizes = {}
    for cell in cells:
        run(["params", "--config", str(cell.config), *cell.overrides, "--json"])
        sizes[cell.row] = json.loads(capsys.readouterr().out.splitlines()[-1])["trainable"]
    assert len(sizes) == len(cells) and sizes["no prompts"] < sizes["a2v only"] < sizes["all"]


def test_sweep_goes_on_where_it_stopped(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failing cell is reported, the others are finished; run again, only what is missing is run."""
    small = "--trainer.max_epochs=1"
    none = "--model.init_args.backbone.init_args.prompts=avprompt.prompts.NoPrompts"
    root = f"--data.init_args.root={world}"
    file = tmp_path / "sweep.yaml"
    rows = f"rows:\n  good: [{none}, {root}, {small}]\n  bad: [{none}, '--data.init_args.root=/nowhere', {small}]\n"
    file.write_text(f"experiment: {ROOT / 'experiments' / 'quickstart'}\nmetric: test_accuracy\n{rows}")
    from avprompt.errors import ConfigError

    with pytest.raises(ConfigError, match="1 failed cells: .*bad, seed 0"):
        sweep(file, tmp_path / "runs", [0], jobs=2)
    done = tmp_path / "runs" / "good-seed0" / "test" / "result.json"
    stamp = done.stat().st_mtime_ns
    file.write_text(file.read_text().replace("/nowhere", str(world)))
    sweep(file, tmp_path / "runs", [0], jobs=2)
    assert done.stat().st_mtime_ns == stamp
    lines = (tmp_path / "runs" / "results.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[0].startswith("row,seed,test_accuracy")
    assert lines[1].split(",")[2] == lines[2].split(",")[2]  # the same row twice gives the same number
    assert "| good |" in capsys.readouterr().out
