"""Finished runs beside what is published: nothing that was measured otherwise stands unmarked in one column."""

from __future__ import annotations

import copy
import csv
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from avprompt import data_modules
from avprompt.cli import main, parts_of, run
from avprompt.configs import find_file, get_nested, read_yaml
from avprompt.datasets import avsbench
from avprompt.errors import ArgumentError, AVPromptError, ConfigError, DatasetError
from avprompt.plots.saving import save_figure
from avprompt.reports.compare import compare
from avprompt.reports.efficiency import measure
from avprompt.reports.published import read_published
from avprompt.reports.runs import Run, read_runs, task_of
from avprompt.reports.settings import ENCODERS, encoder_name
from avprompt.reports.size_plot import size_figure
from avprompt.reports.tables import tables
from avprompt.reports.variants import gather
from avprompt.reports.verdicts import paired_tests
from avprompt.sweeps.curves import ENCODERS as SHORT

DGSCT = {
    "variant": "released",
    "spatial": True,
    "channel": True,
    "temporal": True,
    "a2v": True,
    "v2a": True,
    "alpha": 0.3,
    "beta": 0.05,
    "gamma": 0.1,
}
TINY = {
    "visual": {"class_path": "avprompt.encoders.TinySwinV2", "init_args": {"pretrained": "synthetic"}},
    "audio": {"class_path": "avprompt.encoders.TinyHTSAT", "init_args": {"pretrained": "synthetic"}},
}
LARGE = {
    "visual": {
        "class_path": "avprompt.encoders.SwinV2",
        "init_args": {"model": "swinv2_large_window12_192", "pretrained": "ms_in22k"},
    },
    "audio": {"class_path": "avprompt.encoders.HTSAT", "init_args": {"pretrained": "checkpoints/HTSAT.ckpt"}},
}


def config(
    seed: int,
    prompts: dict[str, Any] | None,
    encoders: dict[str, Any],
    data: dict[str, Any] | None = None,
    task: str = "AVE",
    model: dict[str, Any] | None = None,
) -> dict[str, Any]:
    method = (
        {"class_path": "avprompt.methods.NoPrompts"}
        if prompts is None
        else {"class_path": "avprompt.methods.DGSCT", "init_args": {**DGSCT, **prompts}}
    )
    module = {"AVE": "AVEDataModule", "AVQA": "MUSICAVQADataModule"}[task]
    return {
        "seed_everything": seed,
        "ckpt_path": None,
        "trainer": {"max_epochs": 6, "precision": None},
        "model": {
            "class_path": f"avprompt.tasks.{task}",
            "init_args": {
                "backbone": {
                    "class_path": "avprompt.backbone.AVPromptBackbone",
                    "init_args": {**encoders, "prompts": method},
                },
                **({"modality": "both", "protocol": "exact"} if task == "AVE" else {}),
                **(model or {}),
            },
        },
        "data": {
            "class_path": f"avprompt.data_modules.{module}",
            "init_args": {"root": "data/x", "seed": seed, "validation_split": "val", **(data or {})},
        },
    }


def dataset(content: dict[str, Any]) -> dict[str, str]:
    """What a manifest says of the dataset of a configuration."""
    kind, arguments = content["data"]["class_path"].rpartition(".")[2], content["data"]["init_args"]
    info = avsbench.INFO[arguments["setting"]] if "setting" in arguments else getattr(data_modules, kind).info
    return {"dataset": info.name, "unit": info.unit}


def write(
    folder: Path, label: str, settings: dict[str, Any], metrics: dict[str, float], ids: list[str], missing: int = 0
) -> None:
    """A run as `avprompt sweep` leaves it: fit and test, the test's figures and the training's cost."""
    seed = settings["seed_everything"]
    place = folder / f"{label}-seed{seed}"
    fitted = {"train_loss": 1.0, "best_val_accuracy": 0.99}
    for stage, found, seconds in (("fit", fitted, 100 + seed), ("test", metrics, 2)):
        own = copy.deepcopy(settings)
        own["ckpt_path"] = None if stage == "fit" else f"runs/{folder.name}/{place.name}/fit/checkpoints/best.ckpt"
        own["trainer"]["logger"] = {"init_args": {"version": stage}}
        (place / stage).mkdir(parents=True)
        result = {
            "experiment": place.name,
            "task": "AVE",
            "metrics": found,
            "monitor": "val_accuracy",
            "parameters": {"trainable": 1000, "frozen": 500, "total": 1500, "checkpoint": 1000},
            "seed": seed,
            "config": own,
            "wall_s": seconds,
            "peak_memory_bytes": 2_000_000_000,
            **(
                {"step": {"n": 9, "wall_s": 0.5 + seed, "processor_s": 0.4, "memory_bytes": 10**9}}
                if seconds > 9
                else {}
            ),
            "epochs": 6,
            "clips": {"test": {"used": len(ids), "missing": missing, "corrupt": 0}},
        }
        (place / stage / "result.json").write_text(json.dumps(result))
        (place / stage / "manifest.json").write_text(
            json.dumps({**dataset(settings), "root": "data/x", "ids": {"test": ids}})
        )
        with SummaryWriter(str(place / stage)) as writer:
            if stage == "fit":
                for step in (10, 20):
                    writer.add_scalar("val_accuracy", 0.01 * step + 0.1 * seed, step)


WORLD = [f"world000{number:06d}" for number in range(80)]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Table 5's rows without T on the synthetic dataset, two seeds each, in a useless order of names."""
    folder = tmp_path / "ablation"
    rows = {
        "a everything": {},
        "b S": {"channel": False, "temporal": False},
        "c C": {"spatial": False, "temporal": False},
        "d none": None,
        "e bare": {"spatial": False, "channel": False, "temporal": False},
        "f alpha": {"alpha": 0.5},
    }
    for place, (label, prompts) in enumerate(rows.items()):
        for seed in (0, 1):
            write(
                folder,
                label,
                config(seed, prompts, TINY),
                {"test_accuracy": 0.5 + 0.01 * place + 0.02 * seed, "test_loss": 2.0},
                WORLD,
            )
    return folder


def lines_of(*folders: Path) -> list:
    return gather(read_runs(folders), read_published())


def test_seeds_are_grouped_and_rows_stand_in_published_order(runs: Path) -> None:
    lines = lines_of(runs)
    assert [line.label for line in lines] == ["e bare", "c C", "b S", "d none", "a everything", "f alpha"]
    everything = lines[4]
    assert everything.values("accuracy") == [0.5, 0.52]
    cited = [(figure.value, figure.source[-7:]) for figure in everything.published["accuracy"]]
    assert cited[:2] == [(82.2, "table 1"), (82.2, "table 5")]
    assert [line.published["accuracy"][0].value for line in lines[:4]] == [78.6, 81.8, 80.9, 78.6]
    assert not lines[5].published  # another alpha is not the published row
    assert everything.mean(lambda run: run.result["wall_s"]) == 100.5  # of the training, not of the test
    assert everything.mean(lambda run: run.step.get("wall_s")) == 1.0


def test_synthetic_data_never_stand_unmarked_beside_published_figures(runs: Path) -> None:
    (table,) = tables(lines_of(runs), read_published())
    ours, published = table.header.index("accuracy, %"), table.header.index("published")
    for row in table.rows:
        assert row[ours].endswith(" [a]") and (row[published] == "" or row[published].endswith(" [b]"))
    assert table.rows[4][ours] == "51.0 ± 1.0 [a]" and table.rows[4][published] == "82.2 [b]"
    assert table.marks["a"].startswith(
        "synthetic dataset in the layout of AVE, 80 test clips; TinySwinV2 (synthetic) + Tiny"
    )
    assert table.marks["b"] == (
        "AVE, 402 test clips; Swin-V2-L + HTS-AT; published, selected on test, metric as released"
    )


def test_a_published_table_is_shown_whole_with_ours_beside(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare([runs], table="DG-SCT (NeurIPS 2023), table 1", out=tmp_path / "out")
    shown = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert shown in capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("|")]
    header, rows = rows[0], rows[2:]
    assert header == ["row", "accuracy, % published", "ours", "ours", "n"]
    printed = [figure for figure in read_published() if figure.source == "DG-SCT (NeurIPS 2023), table 1"]
    assert [row[0] for row in rows] == [figure.method for figure in printed]
    assert [row[1][:4] for row in rows] == [f"{figure.value:.1f}" for figure in printed]
    ours = {row[0]: row[2:] for row in rows if row[2]}
    assert ours.keys() == {"LAVisH*", "DG-SCT"} and ours["DG-SCT"] == ["51.0 ± 1.0 [d]", "1,000", "2"]
    assert "[d] synthetic dataset" in shown and "figures alone" not in shown
    compare([runs], table="poster (BMVC 2025), table 1")
    shown = capsys.readouterr().out
    assert "figures alone, without a network of ours: AVT, CoPL\n" in shown
    assert re.search(r"\| DG-SCT +\| 82.2 \[\w\] +\| 51.0 ± 1.0 ", shown)  # by the settings of the paper's own row
    for part, told in (("table 99", "Correct it"), ("table 1", "Write more")):
        with pytest.raises(ArgumentError, match=f"table: got {part}.*AV-STFP poster.*{told}"):
            compare([runs], table=part)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"encoders": LARGE}, "Swin-V2-L + HTS-AT"),
        ({"data": {"validation_split": "test"}}, "selected on test"),
        ({"model": {"protocol": "released"}}, "metric as released"),
        ({"encoders": {"cache": "runs/features"}}, "; features in runs/features; "),
        (
            {
                "encoders": {
                    **TINY,
                    "audio": {"class_path": "avprompt.encoders.TinyHTSAT", "init_args": {"pretrained": "none"}},
                }
            },
            "TinyHTSAT (random weights)",
        ),
    ],
)
def test_other_encoders_data_or_protocol_get_another_mark(change: dict, told: str, runs: Path, tmp_path: Path) -> None:
    write(tmp_path / "more", "other", config(0, {}, **{"encoders": TINY, **change}), {"test_accuracy": 0.4}, WORLD)
    (table,) = tables(lines_of(runs, tmp_path / "more"), read_published())
    other = next(row for row in table.rows if row[0] == "other")
    mark = re.search(r"\[(\w)\]", other[table.header.index("accuracy, %")])[1]
    assert mark != "a" and told in table.marks[mark] and told not in table.marks["a"]


def test_other_clips_and_missing_clips_get_another_mark(runs: Path, tmp_path: Path) -> None:
    for name, ids, missing in (("other clips", [f"world001{n:06d}" for n in range(80)], 0), ("fewer", WORLD[:70], 10)):
        write(tmp_path / "more", name, config(0, {}, TINY), {"test_accuracy": 0.4}, ids, missing)
    (table,) = tables(lines_of(runs, tmp_path / "more"), read_published())
    column = table.header.index("accuracy, %")
    texts = {row[0]: table.marks[re.search(r"\[(\w)\]", row[column])[1]] for row in table.rows}
    assert len({texts["other clips"], texts["fewer"], texts["a everything"]}) == 3
    assert "70 of 80 test clips" in texts["fewer"]
    assert "(ids " in texts["other clips"] and "(ids " in texts["a everything"]


def test_real_data_are_told_from_synthetic_data_whose_ids_look_real(tmp_path: Path) -> None:
    ids = [f"{number:08d}" for number in range(320)]
    for name in ("real", "made"):
        scores = {f"test_{metric}": 0.5 for metric in ("AQ", "VQ", "AVQ", "average", "Audio_Counting")}
        settings = config(0, {"temporal": False}, TINY, {"root": f"data/{name}"}, task="AVQA")
        write(tmp_path / "runs" / name, name, settings, scores, ids)
        manifest = tmp_path / "runs" / name / f"{name}-seed0" / "test" / "manifest.json"
        manifest.write_text(json.dumps({**dataset(settings), "root": f"data/{name}", "ids": {"test": ids}}))
    (tmp_path / "data" / "made").mkdir(parents=True)
    (tmp_path / "data" / "made" / "scenes.jsonl").write_text("")
    data = {line.label: line.setting.data for line in lines_of(tmp_path / "runs")}
    assert data == {
        "real": "MUSIC-AVQA, 320 test questions",
        "made": "synthetic dataset in the layout of MUSIC-AVQA, 320 test questions",
    }
    (table,) = tables(lines_of(tmp_path / "runs"), read_published())
    assert [name for name in table.header if name.endswith("%")] == ["AQ, %", "VQ, %", "AVQ, %", "average, %"]
    assert "74.8 [b]" in table.rows[0]  # the released network has no temporal gate here: it is the headline's row


def test_size_plot_names_every_point_and_no_names_overlap(runs: Path, tmp_path: Path) -> None:
    """Variants that are equally large and equally good included; one that trains nothing is a line."""
    for place, label in enumerate(("twin one", "twin two", "frozen")):
        write(tmp_path / "more", label, config(0, {"alpha": 0.5 + place}, TINY), {"test_accuracy": 0.51}, WORLD)
    for path in (tmp_path / "more").glob("frozen*/*/result.json"):
        path.write_text(path.read_text().replace('"trainable": 1000', '"trainable": 0'))
    variants = lines_of(runs, tmp_path / "more")
    figure = size_figure(variants, "accuracy")
    files = save_figure(figure, tmp_path / "plot", ("png", "pdf"))
    (axis,) = figure.axes
    assert axis.get_xscale() == "log" and axis.get_xlabel() == "trainable parameters"
    assert axis.get_ylabel() == "accuracy, %\nmean ± standard error, n = 1 to 2"
    names = [text.get_text() for text in axis.texts]
    assert sorted(names) == sorted(
        [variant.label for variant in variants if variant.label != "frozen"] + ["frozen (nothing is trained)"]
    )
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    bars = [segment[:, 1].mean() for bars in axis.collections for segment in bars.get_segments()]
    means = [100 * np.mean(variant.values("accuracy")) for variant in variants if variant.label != "frozen"]
    assert sorted(bars) == pytest.approx(sorted(means)) and all(path.stat().st_size > 5000 for path in files)
    with pytest.raises(ArgumentError, match="formats"):
        run(["compare", str(runs), "--out", str(tmp_path / "out"), "--format", "gif"])


def test_a_repeated_seed_counts_once_and_is_told(runs: Path, tmp_path: Path) -> None:
    write(tmp_path / "again", "a everything", config(1, {}, TINY), {"test_accuracy": 0.7}, WORLD)
    newest = tmp_path / "again" / "a everything-seed1" / "test" / "result.json"
    os.utime(newest, (4e9, 4e9))
    line = next(line for line in lines_of(runs, tmp_path / "again") if line.label == "a everything")
    assert line.values("accuracy") == [0.5, 0.7] and "left out" in line.remarks[0]


def test_one_name_for_two_settings_is_numbered(runs: Path, tmp_path: Path) -> None:
    write(tmp_path / "again", "a everything", config(0, {"beta": 0.3}, TINY), {"test_accuracy": 0.7}, WORLD)
    labels = [line.label for line in lines_of(runs, tmp_path / "again")]
    assert "a everything #1" in labels and "a everything #2" in labels


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_experiment_has_its_names(path: Path) -> None:
    """Task, dataset and encoders are named as published: a new one has to be entered."""
    content, published = read_yaml(path), read_published()
    otherwise = {
        "quickstart": "ave",
        "quickstart_bound": "ave",
        "zeroshot_quickstart": "zeroshot_ave_class",
        "fewshot_ave_clip": "zeroshot_ave",
        "fewshot_ave_clap": "zeroshot_ave",
        "fewshot_ave_clip_clap": "zeroshot_ave",
    }
    untrained = "zeroshot" in otherwise.get(path.stem, path.stem)
    task = task_of(
        Run(path.parent, {"config": content, "metrics": {"test_accuracy": 0.5} if untrained else {}}, dataset(content))
    )
    assert task == otherwise.get(path.stem) or path.stem.startswith(task)
    assert task in {figure.task for figure in published} | {"avqa_grounding", "pretrain_vggsound"}
    assert any(figure.dataset.startswith(dataset(content)["dataset"]) for figure in published)
    names = {SHORT.get(name, name).removesuffix(" (shared)") for f in published for name in (f.visual, f.audio)}
    # of networks whose tables name no encoder, or whose figures are not quoted
    names |= {"PVT-v2", "ResNet-18", "R(2+1)D-18", "CLIP-L/14", "CLAP"}
    names |= {part.removeprefix("visual=") for f in published for part in f.settings.split() if "visual=" in part}
    for side in ("visual", "audio"):
        given = get_nested(content, f"model.init_args.backbone.init_args.{side}")
        if isinstance(given, str) and given not in (
            "shared",
            "separate",
        ):  # published features, by the name of their network
            assert given in names
            continue
        name = encoder_name(given).partition(",")[0]
        assert name in {*ENCODERS.values()} & names or name in ("shared", "separate") or name.startswith("Tiny"), name


FEW_SHOT = {
    "backbone": {**LARGE, "prompts": {"class_path": "avprompt.methods.NoPrompts"}},
    "audio_texts": None,
    "visual_texts": {"class_path": "avprompt.methods.CoOp"},
    "adapters": [],
    "level": "video",
    "background": False,
}


def test_few_shot_runs_stand_beside_their_published_rows(tmp_path: Path) -> None:
    """Named after task and shots; what is tested without training is zero-shot, whatever shots its file has."""
    encoders = ROOT / "lightning_configs" / "encoders"
    sides = {"visual": read_yaml(encoders / "clip_b32.yaml"), "audio": read_yaml(encoders / "clap_tiny.yaml")}

    def settings(seed: int, shots: int, **model: Any) -> dict[str, Any]:
        own = config(seed, None, sides, {"shots": shots})
        arguments = {**FEW_SHOT, **model}
        arguments["backbone"] = {"init_args": {**sides, "prompts": FEW_SHOT["backbone"]["prompts"]}}
        return {**own, "model": {"class_path": "avprompt.tasks.Contrastive", "init_args": arguments}}

    ids = [f"clip{number:04d}" for number in range(402)]
    for shots in (1, 16):
        for seed in (0, 1):
            write(tmp_path / "grid", f"CoOp-shots{shots}", settings(seed, shots), {"test_accuracy": 0.7}, ids)
    write(tmp_path / "grid", "segments", settings(0, 16, level="segment"), {"test_accuracy": 0.6}, ids)
    zero = settings(0, 16, visual_texts={"class_path": "avprompt.methods.FixedEmbeddings"})
    write(tmp_path / "zero", "CLIP", zero, {"test_accuracy": 0.68}, ids)
    result = tmp_path / "zero" / "CLIP-seed0" / "test" / "result.json"
    alone = json.loads(result.read_text())
    alone["config"]["ckpt_path"] = None
    result.write_text(json.dumps(alone))
    (tmp_path / "zero" / "CLIP-seed0" / "fit" / "result.json").unlink()
    built = {table.task: table for table in tables(lines_of(tmp_path), read_published())}
    assert list(built) == ["fewshot_ave", "fewshot_ave_class", "zeroshot_ave_class"]
    rows = [row[:4] for row in built["fewshot_ave_class"].rows]
    assert rows == [
        ["CoOp, 1 shot", "2", "70.0 ± 0.0 [a]", "70.4 [b]"],
        ["CoOp, 16 shots", "2", "70.0 ± 0.0 [a]", "78.1 [b]"],
    ]
    assert built["fewshot_ave_class"].marks == {
        "a": "AVE, 402 test clips; CLIP ViT-B/32 + CLAP HTS-AT; selected on val",
        "b": "AVE, 402 test clips; CLIP ViT; published, selection not stated",
    }
    assert built["zeroshot_ave_class"].rows[0][:4] == ["CLIP", "1", "68.0 [a]", "69.7 [b]"]
    assert built["zeroshot_ave_class"].marks["a"].endswith("; not trained on these data")
    (segments,) = built["fewshot_ave"].rows
    assert segments[:1] == ["segments, 16 shots"] and segments[3] == "64.4 [b]"
    assert built["fewshot_ave"].marks["a"].endswith("selected on val, background counts as wrong")


def test_linear_heads_are_of_the_same_task(tmp_path: Path) -> None:
    """AV-STFP's head is a class of its own; its figures are of AVE."""
    own = config(0, None, {**TINY, "audio": "shared"})
    own["model"]["class_path"] = "avprompt.tasks.AVELinear"
    off = {"temporal": False, "spatial": True, "fusion": False, "visual": True, "audio": True}
    own["model"]["init_args"]["backbone"]["init_args"]["prompts"] = {
        "class_path": "avprompt.methods.AVSTFP",
        "init_args": off,
    }
    write(tmp_path, "S", own, {"test_accuracy": 0.7}, WORLD)
    (table,) = tables(lines_of(tmp_path), read_published())
    assert table.task == "ave" and table.rows[0][3] == "81.4 [b]"


def test_files(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every format holds every figure; the command takes folders side by side, and the list that it took before."""
    run(
        [
            "compare",
            str(runs / "a everything-seed0"),
            str(runs / "d none-seed0"),
            "--out",
            str(tmp_path / "out"),
            "--csv_file",
            str(tmp_path / "runs.csv"),
        ]
    )
    printed = capsys.readouterr().out
    assert "| 50.0 (untested) [a]" in printed and "| 53.0 (best) [a]" in printed and "| 82.2 [b]" in printed
    assert "± " not in printed.split("Mean")[0] and "one seed in common, and no outcomes.csv: a everything" in printed
    run(["compare", f"[{runs / 'a everything-seed0'}, {runs / 'd none-seed0'}]"])
    assert capsys.readouterr().out == printed == (tmp_path / "out" / "compare.md").read_text() + "\n"
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [f"step_{name}" for name in ("wall_s", "processor_s", "memory_bytes")]
    assert list(rows[0]) == ["run", "metric", "value", "trainable", "total", "seed", "epochs", "seconds", *steps]
    assert {row["step_memory_bytes"] for row in rows} == {str(10**9)}
    assert len(rows) == 6
    with (tmp_path / "out" / "compare.csv").open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert rows["a everything"]["published"] == "82.2" and float(rows["a everything"]["mean"]) == 50
    assert rows["a everything"]["data"].startswith("synthetic dataset")
    assert (tmp_path / "out" / "ave-size.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "compare.html").read_text()
    cells: list[str] = []

    class Cells(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            assert tag not in ("link", "img", "iframe") and not dict(attrs).get("src")  # nothing from elsewhere
            cells.extend([""] if tag == "td" else [])

        def handle_data(self, data: str) -> None:
            if cells:
                cells[-1] += data

    Cells().feed(page)
    assert "50.0 (untested)a" in cells and "82.2b" in cells and "a everything" in cells
    tex = (tmp_path / "out" / "compare.tex").read_text()
    assert r"50.0 (untested)\textsuperscript{a}" in tex and r"82.2\textsuperscript{b}" in tex and "accuracy, \\%" in tex
    assert tex.count("{") == tex.count("}") and not re.search(r"(?<!\\)[%#_]", tex)


@pytest.fixture
def tested(tmp_path: Path) -> Path:
    """Three rows on four seeds and 60 clips with their outcomes: two alike, one far behind."""
    folder = tmp_path / "tested"
    difficulty = np.random.default_rng(0).standard_normal(60)
    made = (("first", {}, 1.0), ("second", {"alpha": 0.5}, 0.95), ("plain", None, -1.0))
    for place, (label, prompts, shift) in enumerate(made):
        for seed in range(4):
            rng = np.random.default_rng([place, seed])
            right = shift + difficulty + 0.7 * rng.standard_normal(60) > 0
            write(folder, label, config(seed, prompts, TINY), {"test_accuracy": float(right.mean())}, WORLD[:60])
            lines = [f"{clip},0.0,1.0,True,{int(own)}" for clip, own in zip(WORLD, right)]
            (folder / f"{label}-seed{seed}" / "test" / "outcomes.csv").write_text(
                "\n".join(["id,start,end,decoded,accuracy", *lines]) + "\n"
            )
    return folder


def test_rows_that_are_not_told_apart_say_so(tested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In every format; the tests of all pairs are in a file of their own."""
    run(["compare", str(tested), "--out", str(tmp_path / "out"), "--power", "true"])
    printed, out = capsys.readouterr().out, tmp_path / "out"
    with (out / "compare.csv").open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    best = max(rows, key=lambda label: float(rows[label]["mean"]))
    (other,) = {"first", "second"} - {best}
    verdicts = {label: row["verdict"] for label, row in rows.items()}
    assert verdicts == {best: "best", other: "not told apart from the best", "plain": "told apart from the best"}
    assert float(rows["plain"]["behind_best_low"]) > 0 > float(rows[other]["behind_best_low"])
    assert rows[best]["p_holm"] == "" and float(rows[other]["standard_error"]) == pytest.approx(
        float(rows[other]["std"]) / 2, abs=1e-3
    )
    assert re.search(rf"^\| {other} .*\(≈ best\) \[a\]", printed, re.MULTILINE)
    assert re.search(rf"^\| {best} .*\(best\) \[a\]", printed, re.MULTILINE)
    assert not re.search(r"^\| plain .* 4 \| [\d.]+ ± [\d.]+ \(", printed, re.MULTILINE)
    assert re.search(rf"^\| {best} +\| {other} .*\| seeds and clips \| not told apart \|$", printed, re.MULTILINE)
    assert "counts all 3 pairs of the 3 rows" in printed and "seeds needed, with these clips" in printed
    tex, page = ((out / f"compare.{kind}").read_text() for kind in ("tex", "html"))
    assert r"($\approx$ best)\textsuperscript{a}" in tex and "not told apart" in tex and "seeds needed" in tex
    assert "(≈ best)<sup>a</sup>" in page and "<td>not told apart</td>" in page
    assert page.count("Mean ± standard error") == printed.count("Mean ± standard error") == 1  # told once
    with (out / "pairs.csv").open() as file:
        pairs = [(row["row"], row["against"], row["verdict"]) for row in csv.DictReader(file)]
    assert pairs == [(best, other, "not told apart"), (best, "plain", "told apart"), (other, "plain", "told apart")]
    run(["compare", str(tested), "--pairs", "true"])
    assert re.search(rf"^\| {other} +\| plain .* told apart", capsys.readouterr().out, re.MULTILINE)


def test_partial_evaluations_are_marked_and_not_tested(tested: Path, tmp_path: Path) -> None:
    """One batch of the split is no result; 1.0 is the whole split."""
    for limit in (1, 1.0, 0.25):
        settings = config(0, {"beta": 0.3}, TINY)
        settings["trainer"]["limit_test_batches"] = limit
        write(tmp_path / f"more{limit}", "tried", settings, {"test_accuracy": 0.999}, WORLD[:60])
    variants = lines_of(tested, *tmp_path.glob("more*"))
    labels = {variant.label: variant.setting.part for variant in variants}
    assert labels == {
        "first": "",
        "second": "",
        "plain": "",
        "tried": "",
        "tried (limit_test_batches 1)": "limit_test_batches 1",
        "tried (limit_test_batches 0.25)": "limit_test_batches 0.25",
    }
    found = paired_tests(variants, ["accuracy"])
    assert len(found) == 1 and {row.label for row in found[0].rows} == {"first", "second", "plain", "tried"}
    (table,) = tables(variants, read_published(), found)
    cell = next(row for row in table.rows if "limit_test_batches 1)" in row[0])[table.header.index("accuracy, %")]
    assert "(" not in cell
    assert "a part of the split only (limit_test_batches 1): no result" in table.marks[cell[-2]]


def test_rows_of_shipped_experiments_are_named_after_method_and_encoders(tmp_path: Path) -> None:
    for name, prompts, model in (("quickstart", {}, {}), ("ave_none", None, {"modality": "late"})):
        folder = tmp_path / name / "version_0"
        write(tmp_path / "made", name, config(0, prompts, TINY, model=model), {"test_accuracy": 0.5}, WORLD)
        made = tmp_path / "made" / f"{name}-seed0" / "test"
        folder.mkdir(parents=True)
        result = {**json.loads((made / "result.json").read_text()), "experiment": name}
        result["config"]["ckpt_path"] = None
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "manifest.json").write_text((made / "manifest.json").read_text())
    encoders = "TinySwinV2 (synthetic) + TinyHTSAT (synthetic)"
    assert {line.label for line in lines_of(tmp_path / "quickstart", tmp_path / "ave_none")} == {
        f"DG-SCT, {encoders}",
        f"no prompts, late fusion, {encoders}",
    }


def test_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DatasetError, match="no result.json"):
        run(["compare", str(tmp_path)])
    (tmp_path / "result.json").write_text('{"metrics": {}}')
    with pytest.raises(DatasetError, match="no result of a run"):
        run(["compare", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main(["compare"])
    assert stop.value.code == 2 and "folders" in capsys.readouterr().err


def test_dashboard(runs: Path, tmp_path: Path) -> None:
    """One line for each variant in the hyper-parameter table, its mean, and its mean validation curve."""
    log = tmp_path / "log"
    (log / "compare" / "stale").mkdir(parents=True)
    run(["compare", str(runs), "--tensorboard", str(log)])
    assert not (log / "compare" / "stale").exists()

    def events(folder: Path) -> EventAccumulator:
        accumulator = EventAccumulator(str(folder))
        accumulator.Reload()
        return accumulator

    def hparams(folder: Path, tag: str) -> HParamsPluginData:
        return HParamsPluginData.FromString(events(folder).SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)

    top = hparams(log / "compare", "experiment").experiment
    assert [info.name.tag for info in top.metric_infos] == ["ave/accuracy"]
    names = {info.name for info in top.hparam_infos}
    assert names == {
        "prompts",
        "prompts.spatial",
        "prompts.channel",
        "prompts.temporal",
        "prompts.alpha",
        "data",
        "encoders",
        "protocol",
        "n",
    }
    row = log / "compare" / "ave" / "c C"
    start = hparams(row, "session_start_info").session_start_info
    assert start.group_name == "ave: c C" and start.hparams["prompts.spatial"].string_value == "False"
    found = events(row)
    assert found.Scalars("ave/accuracy")[0].value == pytest.approx(53)
    curve = [(event.step, round(event.value, 3)) for event in found.Scalars("ave_validation/accuracy")]
    assert curve == [(10, 15), (20, 25)]
    tags = events(log / "compare").Tags()
    assert "ave/accuracy" in tags["images"] and "custom_scalars__config__" in tags["tensors"]
    assert [round(event.value) for event in events(log / "compare").Scalars("ave_variants/accuracy/mean")] == [
        55,
        53,
        52,
        54,
        51,
        56,
    ]


def test_efficiency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table holds what `params` and the FLOP counter say, nothing is measured twice, failures are told."""
    (tmp_path / "good.yaml").write_text("base: quickstart")
    (tmp_path / "bad.yaml").write_text("{base: quickstart, model.backbone.prompts.groups: 7}")
    command = [
        "efficiency",
        str(tmp_path / "good.yaml"),
        str(tmp_path / "bad.yaml"),
        "--steps",
        "1",
        "--out",
        str(tmp_path / "table.csv"),
    ]
    with pytest.raises(ConfigError, match=r"1 failed experiments: \['bad'\]"):
        run(command)
    with (tmp_path / "table.csv").open() as file:
        (row,) = csv.DictReader(file)
    run(["params", "--config", str(tmp_path / "good.yaml"), "--json"])
    counted = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: int(row[name]) for name in ("trainable", "frozen", "total", "checkpoint")} == {
        name: counted[name] for name in ("trainable", "frozen", "total", "checkpoint")
    }
    assert 0.5 < float(row["forward_gflops_a_clip"]) < 2 and float(row["peak_gb"]) > 0.2
    stamp = (tmp_path / "table.csv").stat().st_mtime_ns
    run(["efficiency", str(tmp_path / "good.yaml"), "--steps", "1", "--out", str(tmp_path / "table.csv")])
    assert (tmp_path / "table.csv").stat().st_mtime_ns == stamp and "| good " in capsys.readouterr().out
    with pytest.raises(AVPromptError, match="measured with other settings"):
        run(["efficiency", str(tmp_path / "good.yaml"), "--steps", "2", "--out", str(tmp_path / "table.csv")])


def test_benchmark_uses_the_same_measurement() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "train_step.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "avprompt.reports.efficiency" in done.stdout


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/train_step.py as a module that measures nothing."""
    spec = importlib.util.spec_from_file_location("train_step", ROOT / "benchmarks" / "train_step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls = []
    monkeypatch.setattr(
        module,
        "measured",
        lambda config, overrides, *rest, **options: (
            module.calls.append((config, overrides))
            or dict.fromkeys(("step_s", "peak_gb", "peak_with_optimizer_gb"), 2.0)
        ),
    )
    return module


def test_benchmark_commands_are_understood(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that its docstring shows; overrides begin with dashes and may hold blanks."""
    commands = re.findall(
        r"^    python (benchmarks/train_step.py .*)$", benchmark.__doc__.replace("\\\n", " "), re.MULTILINE
    )
    assert len(commands) == 4
    quoted = """train_step.py --config quickstart --set --d=1 --against ave_none
        --set-against '--a.b="[1, 2]" --c null'"""
    for command in [*commands, quoted]:
        monkeypatch.setattr("sys.argv", shlex.split(command))
        benchmark.main()
        assert ("ratio 1.000" in capsys.readouterr().out) == ("--against" in command)
    assert all(find_file(config).is_file() for config, _ in benchmark.calls)
    assert benchmark.calls[-4:] == [("quickstart", ["--d=1"])] * 2 + [("ave_none", ["--a.b=[1, 2]", "--c", "null"])] * 2
    given = [overrides for _, overrides in benchmark.calls[:-4] if overrides]
    assert len(given) == 4 and all(flag.startswith("--model.") and "=" in flag for (flag,) in given)


SEGMENTS = "--model.backbone.visual.segments"


@pytest.mark.parametrize("flags", [[f"{SEGMENTS}=null"], [SEGMENTS, "null"]])
def test_null_reaches_a_class_within_a_class(flags: list[str]) -> None:
    """As in a file."""
    model, _ = parts_of(["--config", str(ROOT / "experiments" / "ave_avstfp_quickstart.yaml"), *flags], meta=True)
    assert model.backbone.visual.segments is None
    model, _ = parts_of(["--config", str(ROOT / "experiments" / "ave_avstfp_quickstart.yaml")], meta=True)
    assert model.backbone.visual.segments == 10


def test_encoders_are_measured_without_their_weights(tmp_path: Path) -> None:
    """Whichever way overrides make them: one encoder for both has no second set of weights to leave out."""
    base = read_yaml(ROOT / "experiments" / "ave_avstfp_quickstart.yaml")
    encoder = base["model"]["init_args"]["backbone"]["init_args"]["visual"]
    encoder.setdefault("init_args", {})["pretrained"] = "nowhere.safetensors"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(base))
    shared = measure(parts_of, str(tmp_path / "own.yaml"), [f"{SEGMENTS}=null"], "cpu", 1, 1, "fp32")
    apart = measure(parts_of, str(tmp_path / "own.yaml"), ["--model.backbone.audio=separate"], "cpu", 1, 1, "fp32")
    assert apart["frozen"] > shared["frozen"] > 0
