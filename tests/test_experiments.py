"""Every shipped YAML goes through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from avprompt.cli import run
from avprompt.configs import read_yaml
from avprompt.errors import ConfigError
from avprompt.sweep import read_sweep

EXPERIMENTS = sorted(p for p in (ROOT / "experiments").rglob("*.yaml") if p.parent.name != "sweeps")
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
CATEGORIES = "categories: [disc, square, triangle, plus, ring, star, bar, hourglass]"
#: data module -> fixture of a small world, and what else the experiment needs to run on it
WORLDS = {
    "AVEDataModule": ("world", [CATEGORIES]),
    "LLPDataModule": ("llp_world", [CATEGORIES, "features: null"]),
    "LLPClassificationDataModule": ("llp_world", [CATEGORIES]),
    "VGGSoundDataModule": ("vggsound_world", []),
    "AVSBenchDataModule": ("avs_worlds", []),
    "MUSICAVQADataModule": ("avqa_world", ["stride: null"]),
    "KineticsSoundsDataModule": ("ks_world", []),
}
#: experiments with nothing to train
ZERO_SHOT = ("fewshot_ave_clip", "fewshot_ave_clap")


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
    contrastive = content["model"]["class_path"].endswith("Contrastive")
    if contrastive:
        lines += contrastive_lines(content["model"]["init_args"])
        extra = [*extra, "shots: 2"] if "shots" in content["data"]["init_args"] else extra
    lines += ["    backbone:", "      init_args:"]
    if contrastive:
        lines += [f"        {side}: {{class_path: avprompt.encoders.{kind}, init_args: {{pretrained: none, {more}}}}}"
                  for side, kind, more in (("visual", "TinyCLIP", "projection: true"),
                                           ("audio", "TinyCLAP", "released_mode: false"))]
    elif content["model"]["init_args"]["backbone"]["init_args"]["audio"] == "shared":
        lines += ["        visual:", "          class_path: avprompt.encoders.TinyCLIP",
                  "          init_args: {pretrained: world, segments: 10, train_norm: true,",
                  "            fbank: {mel_bins: 64, frames: 64, shift_ms: 15, mean: -4.0, std: 3.0}}"]
    else:
        lines += [f"        {side}: {{class_path: avprompt.encoders.{kind}, init_args: {{pretrained: world, frozen: true, "
                  "released_mode: false}}" for side, kind in (("visual", "TinySwinV2"), ("audio", "TinyHTSAT"))]
    lines += ["data:", "  init_args:", *(f"    {line}" for line in (
        f"root: {root}", "image_size: 64", "sample_rate: 16000", "antialias: true", "num_workers: 0", "batch_size: 4",
        *extra))]
    (folder / "tiny.yaml").write_text("\n".join(lines) + "\n")
    flags = ["--config", str(path), "--config", str(folder / "tiny.yaml"), "--trainer",
             str(ROOT / "lightning_configs" / "trainer" / "debug.yaml"), "--trainer.callbacks=null"]
    prompts, name = "--model.init_args.backbone.init_args.prompts.init_args", content["model"]["init_args"]["backbone"][
        "init_args"]["prompts"]["class_path"].rpartition(".")[2]
    if name == "DGSCT":
        flags += [f"{prompts}.reduction", "4" if contrastive else "5"]  # divides the tiny widths
    elif name == "MaPLe":
        flags += [f"{prompts}.depth", "2", f"{prompts}.text_width", "64"]
    return flags


def contrastive_lines(arguments: dict[str, object]) -> list[str]:
    """Tiny text towers, computed anew, and no pretraining."""
    lines = ["    pretrained: null"]
    for side, kind, more in (("visual", "CLIP", ""), ("audio", "CLAP", ", cache: null")):
        if f"{side}_texts" in arguments:
            lines.append(f"    {side}_texts: {{init_args: {{tower: {{class_path: avprompt.encoders.Tiny{kind}Text, "
                         f"init_args: {{pretrained: none}}}}{more}}}}}")
    return lines


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore:parsing runs without")
def test_experiment_trains_validates_and_tests(path: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    flags = on_a_laptop(path, request, tmp_path)
    if path.stem in ZERO_SHOT:
        with pytest.raises(ConfigError, match="nothing to train.*avprompt test"):
            run(["fit", *flags])
    else:
        run(["fit", *flags])
    run(["test", *flags])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_has_parameters(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["params", "--config", str(path), "--json"])
    table = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (table["trainable"] > 0) is (path.stem not in ZERO_SHOT)
    assert table["total"] == table["trainable"] + table["frozen"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_every_row_of_a_sweep_is_a_network(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells, _ = read_sweep(path, [0], tmp_path, quickstart="tasks" in read_yaml(path))
    cells, sizes = list({cell.row: cell for cell in cells}.values()), {}
    for cell in cells:
        run(["params", "--config", str(cell.config), *cell.overrides, "--json"])
        sizes[cell.row] = json.loads(capsys.readouterr().out.splitlines()[-1])["trainable"]
    assert len(sizes) == len(cells)
    for everything in sizes.keys() & {"all", "DG-SCT"}:
        least = sizes["no prompts" if "no prompts" in sizes else "CLIP"]
        assert least < sizes.get("a2v only", sizes[everything]) <= sizes[everything]
