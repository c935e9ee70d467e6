"""Every shipped YAML goes through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from avprompt.cli import run
from avprompt.configs import read_yaml
from avprompt.sweep import read_sweep, sweep

EXPERIMENTS = sorted(p for p in (ROOT / "experiments").rglob("*.yaml") if p.parent.name != "sweeps")
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
CATEGORIES = "categories: [disc, square, triangle, plus, ring, star, bar, hourglass]"
#: data module -> fixture of a small world, and what else the experiment needs to run on it
WORLDS = {
    "AVEDataModule": ("world", [CATEGORIES]),
    "LLPDataModule": ("llp_world", [CATEGORIES, "features: null"]),
    "AVSBenchDataModule": ("avs_worlds", []),
    "MUSICAVQADataModule": ("avqa_world", ["stride: null"]),
}


def test_there_are_experiments() -> None:
    assert len(EXPERIMENTS) >= 2 and len(SWEEPS) >= 1


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_says_how_to_run_it(path: Path) -> None:
    header = path.read_text().split("\nseed_everything")[0]
    assert "avprompt " in header and header.startswith("#")


def on_a_laptop(path: Path, request: pytest.FixtureRequest, folder: Path) -> list[str]:
    """Flags that run an experiment's own task, prompts, losses and optimizer on tiny encoders and a generated world."""
    content = read_yaml(path)
    data = content["data"]["class_path"].rpartition(".")[2]
    fixture, extra = WORLDS[data]
    root = request.getfixturevalue(fixture)
    lines = ["model:", "  init_args:"]
    if data == "AVSBenchDataModule":
        root = root[content["data"]["init_args"]["setting"]]
        lines.append("    decoder_width: 32")
    lines += ["    backbone:", "      init_args:"]
    lines += [f"        {side}: {{class_path: avprompt.encoders.{kind}, init_args: {{pretrained: world, frozen: true, "
              "released_mode: false}}" for side, kind in (("visual", "TinySwinV2"), ("audio", "TinyHTSAT"))]
    lines += ["data:", "  init_args:", *(f"    {line}" for line in (
        f"root: {root}", "image_size: 64", "sample_rate: 16000", "antialias: true", "num_workers: 0", "batch_size: 4",
        *extra))]
    (folder / "tiny.yaml").write_text("\n".join(lines) + "\n")
    flags = ["--config", str(path), "--config", str(folder / "tiny.yaml"), "--trainer",
             str(ROOT / "lightning_configs" / "trainer" / "debug.yaml"), "--trainer.callbacks=null"]
    if content["model"]["init_args"]["backbone"]["init_args"]["prompts"]["class_path"].endswith("DGSCT"):
        flags += ["--model.init_args.backbone.init_args.prompts.init_args.reduction", "5"]  # divides the tiny widths
    return flags


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore:parsing runs without")
def test_experiment_trains_validates_and_tests(path: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    flags = on_a_laptop(path, request, tmp_path)
    run(["fit", *flags])
    run(["test", *flags])


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
    assert len(sizes) == len(cells)
    everything = max(sizes.keys() & {"all", "DG-SCT"})
    assert sizes["no prompts"] < sizes.get("a2v only", sizes[everything]) <= sizes[everything]


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
