"""Sweeps: variants x values x seeds in real processes: stopped and resumed, failed and tried again, here and on
SLURM."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from avprompt.cli import main, run
from avprompt.configs import read_yaml
from avprompt.cores import usable_cores
from avprompt.errors import ArgumentError, ConfigError
from avprompt.reports.published import read_published
from avprompt.reports.runs import Run
from avprompt.sweeps.curves import curve_figure, published_points, varied_figure
from avprompt.sweeps.local import Processes, execute, visible_gpus
from avprompt.sweeps.plan import read_sweep
from avprompt.sweeps.run import SweepRun, last
from avprompt.sweeps.screen import Board
from avprompt.sweeps.slurm import SlurmRun
from avprompt.sweeps.sweep import sweep
from avprompt.sweeps.table import condense, summarise
from avprompt.sweeps.warm import SERVER, Warm

SWEEPS = ROOT / "experiments" / "sweeps"
#: what a run's process does in these tests: four epochs that count, each written down once it is over, and a test
STAND_IN = """
import json, os, pathlib, signal, sys, time

def run(words):
    given, queue = {}, words[1:]
    while queue:
        name, equals, value = queue.pop(0).partition("=")
        given[name] = value if equals else queue.pop(0)
    logger = "--trainer.logger."
    folder = pathlib.Path(given[logger + "save_dir"], given[logger + "name"], given[logger + "version"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    def note(text):
        with open(os.environ["LEDGER"], "a") as file:
            file.write(f"{os.getpid()} {given[logger + 'name']} {text}\\n")
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    if given.get("--fail") == words[0]:
        print("avprompt: DatasetError: no such clips\\n", flush=True)
        os._exit(2)
    value = 0.5
    if words[0] == "fit":
        done = int(open(given["--ckpt_path"]).read()) if "--ckpt_path" in given else 0
        for epoch in range(done, 4):
            time.sleep(float(os.environ.get("EPOCH", 0.02)))
            note(epoch)
            (folder / "checkpoints" / "last.ckpt").write_text(str(epoch + 1))
            if stop and epoch < 3:
                (folder / "checkpoints" / "interrupted.ckpt").write_text(str(epoch + 1))
                os._exit(143)
        (folder / "checkpoints" / "best.ckpt").write_text("4")
    else:
        note("test")
        if given["--ckpt_path"] != "none":
            assert open(given["--ckpt_path"]).read() == "4"
        value += int(given["--seed_everything"]) / 10 + int(given.get("--data.init_args.shots", 0)) / 100
    (folder / "result.json").write_text(json.dumps({
        "metrics": {"test_accuracy" if words[0] == "test" else "val_accuracy": value},
        "parameters": {"trainable": 1234}, "wall_s": 10.0, "clips": {},
        "config": {"data": {"class_path": "X"}, "model": {"class_path": "X"}}}))
    sys.stdout.flush()
    if given.get("--fail") == "late":
        print("avprompt: WriteError: no room for the rest", flush=True)
        os._exit(2)

if sys.orig_argv[1:3] == ["-m", "avprompt.cli.stages"]:
    if sys.orig_argv[3] == "--serve":
        import socket
        from avprompt.cli import stages
        stages.preload, stages.rehearse, stages.touched_gpu = lambda: 99, lambda command: None, lambda: False
        todo = stages.serve(socket.socket(fileno=int(sys.orig_argv[4]))) or []
    else:
        todo = json.loads(sys.orig_argv[3])
    for words in todo:
        run(words)
    os._exit(0)
"""


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stand-ins did: lines of process, run and epoch."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(STAND_IN)
    path = tmp_path / "ledger.txt"
    path.write_text("")
    monkeypatch.setenv("LEDGER", str(path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    monkeypatch.setattr("avprompt.sweeps.sweep.PAUSE", 0.05)
    return path


def done(ledger: Path) -> Counter[str]:
    """Run and epoch -> how often it was run."""
    return Counter(line.partition(" ")[2] for line in ledger.read_text().splitlines())


def inside(ledger: Path) -> list[str]:
    """Cells in the middle of their training."""
    epochs = done(ledger)
    return [one for one in TRAINED if epochs[f"{one} 1"] and not epochs[f"{one} 3"]]


def write_sweep(folder: Path, rows: str, axis: str = "axis: {--data.init_args.shots: [1, 4]}") -> Path:
    file = folder / "grid.yaml"
    experiment = ROOT / "experiments" / "quickstart"
    file.write_text(f"experiment: {experiment}\nmetric: test_accuracy\n{axis}\nvariants:\n{rows}\n")
    return file


GRID = "  CLIP: {zero_shot: true}\n  CoOp: []\n  MaPLe: [--trainer.max_epochs=4]"
TRAINED = [f"{row}-shots{shots}-seed{seed}" for row in ("CoOp", "MaPLe") for shots in (1, 4) for seed in (0, 1)]
WHOLE = Counter(
    [f"{one} {epoch}" for one in TRAINED for epoch in (0, 1, 2, 3, "test")]
    + [f"CLIP-seed{seed} test" for seed in (0, 1)]
)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """`avprompt sweep` as a process of its own."""
    started = []

    def begin(file: Path, out: Path, *flags: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "avprompt", "sweep", "--config", str(file), "--out", str(out), *flags]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=90)


def wait_for(condition: Any) -> None:
    for _ in range(20_000):  # 400 s: a busy machine takes a minute to import the suite
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("never happened")


def alive(ledger: Path) -> list[int]:
    found = []
    for pid in {int(line.split()[0]) for line in ledger.read_text().splitlines()}:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        found.append(pid)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_and_resumed(
    number: int,
    ledger: Path,
    start: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every epoch of every run is computed once, though the sweep is stopped inside trainings; then nothing is left."""
    monkeypatch.setenv("EPOCH", "0.15")
    file, out = write_sweep(tmp_path, GRID), tmp_path / "runs"
    running = start(file, out, "--seeds", "[0, 1]", "--workers", "3")
    wait_for(lambda: done(ledger).total() > 5 and inside(ledger))
    running.send_signal(number)
    said, _ = running.communicate(timeout=30)
    assert running.returncode == 128 + number and "runs are finished" in said and "the same command resumes" in said
    first = done(ledger)
    assert not alive(ledger) and 0 < sum(first.values()) < sum(WHOLE.values())
    assert inside(ledger)
    assert not (out / "failed.csv").exists()
    monkeypatch.setenv("EPOCH", "0.01")
    sweep(file, out, [0, 1], workers=3)
    assert done(ledger) == WHOLE
    lines = list(csv.DictReader((out / "results.csv").open()))
    assert len(lines) == 10 and any(line["fit_seconds"] == "" for line in lines if line["variant"] == "CoOp")
    shown = capsys.readouterr().err
    assert "now " in shown and "10/10" in shown
    sweep(file, out, [0, 1], workers=3)
    assert done(ledger) == WHOLE


def test_killed_sweep_leaves_processes_that_no_other_disturbs(
    ledger: Path, start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL cannot be answered: runs go on without their sweep, and the next one does not begin them anew."""
    monkeypatch.setenv("EPOCH", "0.4")
    file, out = write_sweep(tmp_path, "  CoOp: []"), tmp_path / "runs"
    running = start(file, out, "--seeds", "[0, 1]", "--workers", "2")
    wait_for(lambda: len(done(ledger)) >= 2)
    running.kill()
    running.wait()
    left = alive(ledger)
    assert len(left) == 2
    monkeypatch.setenv("EPOCH", "0.01")
    sweep(file, out, [0, 1], workers=2)  # waits for those two
    wait_for(lambda: not alive(ledger))
    assert done(ledger) == Counter({name: 1 for name in WHOLE if name.startswith("CoOp")})


def test_interrupted_run_takes_its_process_along(ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C in `avprompt quickstart`, and the end of a cluster job's time."""
    monkeypatch.setenv("EPOCH", "0.2")
    one = read_sweep(write_sweep(tmp_path, "  CoOp: []", axis=""), [0], tmp_path / "runs")[0][0]

    def begin(*args: Any, **options: Any) -> subprocess.Popen:
        process = subprocess.Popen(*args, **options)
        wait_for(lambda: done(ledger))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return process

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            execute(one, begin=begin)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not alive(ledger) and one.start() is not None and not one.failure.exists()
    assert execute(one) is None and set(done(ledger).values()) == {1}


def test_killed_run_resumes(ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a system that is out of memory: it is told and written down, and no failure of the run itself."""
    monkeypatch.setenv("EPOCH", "0.2")
    file, out = write_sweep(tmp_path, "  CoOp: []", axis=""), tmp_path / "runs"
    with ThreadPoolExecutor() as pool:
        killer = pool.submit(lambda: (wait_for(lambda: done(ledger)), os.kill(alive(ledger)[0], signal.SIGKILL)))
        with pytest.raises(ConfigError, match="stopped from outside with code -9, perhaps out of memory"):
            sweep(file, out, [0])
        killer.result()
    (line,) = csv.DictReader((out / "failed.csv").open())
    assert line["variant"] == "CoOp" and "code -9" in line["reason"]
    sweep(file, out, [0])
    assert done(ledger) == Counter([f"CoOp-seed0 {epoch}" for epoch in (0, 1, 2, 3, "test")])
    assert not (out / "failed.csv").exists()


def test_failures_are_recorded_and_the_others_go_on(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "  good: []\n  bad: [--fail=fit]\n  worse: [--fail=test]\n  zero: {zero_shot: true, flags: [--fail=test]}"
    file, out = write_sweep(tmp_path, rows, axis=""), tmp_path / "runs"
    with pytest.raises(ConfigError, match="3 of 4 runs not finished.*bad, seed 5.*failed.csv"):
        run(["sweep", str(file), "--out", str(out), "--seeds", "[5]"])
    failed = list(csv.DictReader((out / "failed.csv").open()))
    assert [(line["variant"], line["seed"], line["stage"], line["code"]) for line in failed] == [
        ("bad", "5", "fit", "2"),
        ("worse", "5", "test", "2"),
        ("zero", "5", "test", "2"),
    ]
    assert all(line["reason"] == "avprompt: DatasetError: no such clips" for line in failed)
    table = (out / "summary.md").read_text()
    assert "| good | 100.0 | 1 | 100.0 | 1,234 | 10 |" in table and "| bad | not finished | 0 |" in table
    before = done(ledger)
    file.write_text(file.read_text().replace("--fail", "--mended"))
    sweep(file, out, [5])
    assert not (out / "failed.csv").exists()
    after = done(ledger) - before  # a training that a failed test had followed is done anew
    assert after == Counter(
        [f"{row}-seed5 {epoch}" for row in ("bad", "worse") for epoch in (0, 1, 2, 3, "test")] + ["zero-seed5 test"]
    )
    assert "4/4" in capsys.readouterr().err


def test_a_failure_behind_the_result_is_a_failure(ledger: Path, tmp_path: Path) -> None:
    """A run that ends with an error may lack files that are written beside its result."""
    file, out = write_sweep(tmp_path, "  CLIP: {zero_shot: true, flags: [--fail=late]}", axis=""), tmp_path / "runs"
    with pytest.raises(ConfigError, match="1 of 1 runs not finished.*test ended with code 2"):
        sweep(file, out, [0])


def test_half_written_results_do_not_count(ledger: Path, tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, "  CoOp: []"), tmp_path / "runs"
    sweep(file, out, [0])
    result = out / "CoOp-shots4-seed0" / "test" / "result.json"
    result.write_text(result.read_text()[:20])
    sweep(file, out, [0])
    again = Counter({name: 1 for name in WHOLE if name.startswith("CoOp") and "seed0" in name})
    again["CoOp-shots4-seed0 test"] = 2
    assert done(ledger) == again  # its training was whole


def test_other_settings_are_not_mixed_with_finished_ones(ledger: Path, tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, "  CoOp: []\n  MaPLe: [--fail=fit]"), tmp_path / "runs"
    with pytest.raises(ConfigError, match="2 of 4 runs"):
        sweep(file, out, [0])
    file.write_text(file.read_text().replace("CoOp: []", "CoOp: [--trainer.max_epochs=9]"))
    with pytest.raises(ConfigError, match="other settings than those of the finished .*CoOp-shots1-seed0"):
        sweep(file, out, [0])
    # one that is not finished begins anew: its checkpoint is of the old settings, and is kept
    one = read_sweep(file, [1], out)[0][0]
    for number, recipe in enumerate((["other"], ["another"]), 1):
        checkpoint = one.folder / "fit" / "checkpoints" / "last.ckpt"
        shutil.rmtree(one.folder / "test", ignore_errors=True)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(str(number))
        (one.folder / "notes.txt").write_text("mine")
        one.record.write_text(json.dumps({"recipe": recipe, "resumed": 0}))
        assert execute(one) is None and done(ledger)[f"{one.folder.name} 0"] == number
        kept = one.folder / "earlier" / str(number)
        assert (kept / "fit" / "checkpoints" / "last.ckpt").read_text() == str(number)
        assert json.loads((kept / "run.json").read_text())["recipe"] == recipe
    assert (one.folder / "notes.txt").read_text() == "mine"
    stale = read_sweep(file, [2], out)[0][0]
    stale.folder.mkdir()
    stale.record.write_text(json.dumps({"recipe": stale.recipe, "resumed": 1}))
    (stale.folder / "fit" / "checkpoints").mkdir(parents=True)
    (stale.folder / "fit" / "checkpoints" / "last.ckpt").write_text("3")
    assert execute(stale) is None and done(ledger)[f"{stale.folder.name} 0"] == 0


@pytest.mark.parametrize("name", ["../../home/thesis", "/absolute/thesis", "..", ".hidden", "a/b", "a\\\\b", "x" * 300])
def test_names_of_variants_stay_in_the_folder(name: str, ledger: Path, tmp_path: Path) -> None:
    """A sweep once deleted what such a name led to."""
    thesis = tmp_path / "home" / "thesis-seed0"
    thesis.mkdir(parents=True)
    (thesis / "chapter.tex").write_text("years")
    file = write_sweep(tmp_path, f'  "{name}": []', axis="")
    with pytest.raises(ConfigError, match="a name that a folder may have"):
        sweep(file, tmp_path / "runs" / "deep", [0])
    assert (thesis / "chapter.tex").read_text() == "years" and not done(ledger)


@pytest.mark.parametrize(
    "rows", ['  1: []\n  "1": []', "  Full: []\n  full: []", "  a-shots1: {zero_shot: true}\n  a: []"]
)
def test_variants_are_told_apart(rows: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which would share the folder"):
        read_sweep(write_sweep(tmp_path, rows), [0], tmp_path / "runs")


def test_files_of_others_are_left_alone(ledger: Path, tmp_path: Path) -> None:
    """A folder that no sweep has made, though it is called like a run's."""
    file, out = write_sweep(tmp_path, "  CoOp: []\n  MaPLe: []", axis=""), tmp_path / "runs"
    mine = out / "MaPLe-seed0"
    (mine / "fit").mkdir(parents=True)
    (mine / "fit" / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match="files that no sweep has made in .*MaPLe-seed0.*Nothing there was touched"):
        sweep(file, out, [0])
    assert (
        (mine / "fit" / "thesis.tex").read_text() == "years" and not done(ledger) and not (out / "CoOp-seed0").exists()
    )
    with pytest.raises(ConfigError, match="files that no sweep has made"):
        execute(read_sweep(file, [0], out)[0][1])
    assert [path.name for path in mine.iterdir()] == ["fit"]


def test_two_sweeps_at_once(ledger: Path, start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch of every run is computed once, and both end well, with whole tables."""
    monkeypatch.setenv("EPOCH", "0.1")
    file, out = write_sweep(tmp_path, "  CoOp: []\n  bad: [--fail=fit]"), tmp_path / "runs"
    with pytest.raises(ConfigError, match="2 of 4 runs not finished"):
        sweep(file, out, [0])
    assert (out / "failed.csv").exists()
    file.write_text(file.read_text().replace("bad: [--fail=fit]", "bad: [--mended=fit]"))
    before = done(ledger)
    both = [start(file, out, "--seeds", "[0, 1]", "--workers", "2") for _ in range(2)]
    said = [running.communicate(timeout=120)[0] for running in both]
    assert [running.returncode for running in both] == [0, 0], said
    expected = {
        f"{row}-shots{shots}-seed{seed} {epoch}"
        for row in ("CoOp", "bad")
        for shots in (1, 4)
        for seed in (0, 1)
        for epoch in (0, 1, 2, 3, "test")
    }
    assert done(ledger) - before == Counter(expected - before.keys())
    assert not (out / "failed.csv").exists()
    assert len(list(csv.DictReader((out / "results.csv").open()))) == 8


def test_list_of_failures_goes_when_another_has_finished_the_rest(ledger: Path, tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, "  CoOp: []", axis=""), tmp_path / "runs"
    sweep(file, out, [0])
    (out / "failed.csv").write_text("left by another sweep")
    sweep(file, out, [0])
    assert not (out / "failed.csv").exists()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("tasks: {ave: {experiment: x}}\nvariants: {all: []}", {}, "experiment.*metric.*quickstart"),
        ("tasks: 3\nvariants: {all: []}", {}, "tasks"),
        ("{ONE}\nvariants: [all]", {}, "the keys experiment and metric, or tasks; variants"),
        ("{ONE}\nvariants: {all: []}\nvariant: 3", {}, "the keys experiment and metric"),
        ("{ONE}\nvariants: {all: []}", {"task": "ave"}, "the file has one experiment"),
        ("{ONE}\nvariants: {all: {flags: [a]}}", {}, "all: got .*'a'.* a list of flags with values"),
        ("{ONE}\nvariants: {all: [--trainer.max_epochs]}", {}, "a list of flags with values"),
        (
            "{ONE}\nvariants: {all: [--config=nowhere.yaml]}",
            {},
            "all: got .*nowhere.yaml; expected an existing YAML file",
        ),
        (
            "{ONE}\nvariants: {all: {experiment: nowhere}}",
            {},
            "all: experiment: got nowhere; expected an existing YAML file",
        ),
        ("{ONE}\nvariants: {all: {flag: []}}", {}, "all: got .*'flag'.*zero_shot"),
        ("{ONE}\naxis: [1, 2]\nvariants: {all: []}", {}, "axis: got .*one flag and the list of its values"),
        ("{ONE}\naxis: {--a: [1, 1]}\nvariants: {all: []}", {}, "axis: got"),
        ("{ONE}\naxis: {--a: []}\nvariants: {all: []}", {}, "axis: got"),
        ("{ONE}\naxis: {shots: [1]}\nvariants: {all: []}", {}, "axis: got"),
        ("{ONE}\naxis: {--a: [1]}\nvariants: {all: {at: {2: [--b=1]}}}", {}, r"all: got at .*some of \[1\]"),
        ("{ONE}\nvariants: {all: {zero_shot: 3}}", {}, "zero_shot 3"),
        ("{ONE}\nvariants: {all: []}\nvary: {--a: 1}", {}, "vary: got .*with lists of values"),
        ("{ONE}\nvariants: {all: []}\nvary: {--a: [[1], 2]}", {}, "vary: got .*with lists of values"),
        ("{ONE}\nvariants: {all: []}\nvary: {alpha: [1]}", {}, "alpha=1: got .*a list of flags with values"),
        ("{ONE}\nvariants: {all: []}\nvary: {--a.x: [1, 2], --b.x: [2]}", {}, r"got \['x=2'\]; expected .*no other"),
        (
            "{ONE}\nvariants: {prompts.x=1: []}\nvary: {prompts.x: [1]}\naxis: {--a: [1]}",
            {},
            "one of axis, budget and vary",
        ),
        ("{ONE}\nvariants: {x=1: []}\nvary: {prompts.x: [1]}", {}, r"vary: got \['x=1'\]"),
        ("{TASKS}\nvariants: {all: {flags: [a], tasks: [avs]}}", {}, "flags and tasks of this file"),
        ("{TASKS}\nvariants: {all: []}", {"task": "avqa"}, "got avqa; expected one of ave"),
    ],
)
def test_sweep_files_are_checked(content: str, arguments: dict, message: str, tmp_path: Path) -> None:
    place = ROOT / "experiments" / "quickstart"
    known = f"tasks: {{ave: {{experiment: {place}, quickstart: {place}, metric: m}}}}"
    (tmp_path / "sweep.yaml").write_text(
        content.replace("{TASKS}", known).replace("{ONE}", f"experiment: {place}\nmetric: m")
    )
    with pytest.raises(ConfigError, match=f"sweep.yaml.*{message}"):
        read_sweep(tmp_path / "sweep.yaml", [0], tmp_path, **arguments)


def test_sweep_of_several_tasks(tmp_path: Path) -> None:
    path = SWEEPS / "dgsct_modules.yaml"
    runs, metric = read_sweep(path, [0, 1], tmp_path, "avqa", quickstart=True)
    assert metric == "test_average" and {one.variant for one in runs} == {"no prompts", "baseline", "C", "S", "all"}
    assert runs[0].config.name == "avqa_quickstart.yaml" and len(runs) == 10
    prefix = "--model.backbone.prompts"
    assert runs[0].overrides == [f"{prefix}=avprompt.methods.NoPrompts"]
    assert runs[2].overrides == [f"{prefix}.spatial=false", f"{prefix}.temporal=false"]
    runs, metric = read_sweep(path, [0], tmp_path)
    assert metric == "test_accuracy" and len(runs) == 7 and runs[0].config.name == "ave_dgsct.yaml"


@pytest.mark.parametrize("name", ["fewshot_ave", "fewshot_ave_class", "fewshot_llp_class"])
@pytest.mark.parametrize("quickstart", [False, True])
def test_few_shot_grids(name: str, quickstart: bool, tmp_path: Path) -> None:
    """Seven methods, two of them zero-shot, 1 to 16 shots, three seeds."""
    runs, metric = read_sweep(SWEEPS / f"{name}.yaml", [0, 1, 2], tmp_path, quickstart=quickstart)
    assert metric == "test_accuracy" and len(runs) == 3 * (2 + 5 * 5) == len({one.folder for one in runs})
    points = {
        row: [one.axis and one.axis[1] for one in runs if one.variant == row and one.seed == 1]
        for row in dict.fromkeys(one.variant for one in runs)
    }
    trained = ("CoOp", "CoCoOp", "CLIP-Adapter", "MaPLe", "DG-SCT")
    assert points == {"CLIP": [None], "CLAP": [None], **{row: [1, 2, 4, 8, 16] for row in trained}}
    methods = {figure.method for figure in read_published() if figure.task == name}
    assert methods == set(trained)  # the rows are named as published
    for one in runs:
        assert one.zero_shot is (one.variant in ("CLIP", "CLAP")) and list(one.commands()) == (
            ["test"] if one.zero_shot else ["fit", "test"]
        )
        wanted = "LLPClassificationDataModule" if "llp" in name else "AVEDataModule"
        level = "video" if "class" in name else "segment"
        assert last(one.recipe, "data.class_path").endswith(wanted), one
        assert last(one.recipe, "model.init_args.level") == level, one
        assert last(one.recipe, "data.init_args.shots") == (
            one.axis[1] if one.axis else last(one.recipe, "data.init_args.shots")
        ), one
        assert (level == "segment") >= bool(last(one.recipe, "model.init_args.background")), one
    epochs = {one.axis[1]: last(one.recipe, "trainer.max_epochs") for one in runs if one.variant == "CoOp"}
    assert epochs == dict.fromkeys((1, 2, 4, 8, 16), -1) if quickstart else {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}


STEP = {"wall_s": 0.25, "processor_s": 0.2, "memory_bytes": 123_000_000}


def finish(one: SweepRun, value: float, config: dict[str, Any] | None = None, used: int = 80) -> None:
    """Made-up results."""
    for stage in one.commands():
        (one.folder / stage).mkdir(parents=True)
        (one.folder / stage / "result.json").write_text(
            json.dumps(
                {
                    "metrics": {"test_accuracy": value},
                    "parameters": {"trainable": 5000},
                    "wall_s": 20.0,
                    **({"step": {"n": 30, **STEP}} if stage == "fit" else {}),
                    "config": config or {"model": {"class_path": "X"}, "data": {"class_path": "X"}},
                    "clips": {"test": {"used": used, "missing": 0, "corrupt": 0}},
                }
            )
        )


def test_tables_have_mean_spread_and_number(tmp_path: Path) -> None:
    runs, metric = read_sweep(write_sweep(tmp_path, GRID), [0, 1, 2], tmp_path)
    for one in runs:
        if one.variant == "CLIP" or (one.variant == "CoOp" and (one.axis[1] == 1 or one.seed == 0)):
            finish(one, 0.4 + 0.01 * one.seed)
    table = summarise(runs, metric, tmp_path)
    assert table == (tmp_path / "summary.md").read_text() and table.splitlines()[:5] == [
        "| variant | zero-shot | shots 1 | shots 4 | trainable |",
        "| --- | --- | --- | --- | --- |",
        "| CLIP | 41.0 ± 1.0 (3) |  |  | 5,000 |",
        "| CoOp |  | 41.0 ± 1.0 (3) | 40.0 (1) | 5,000 |",
        "| MaPLe |  | not finished (0) | not finished (0) |  |",
    ]
    lines = {(line["variant"], line["shots"]): line for line in csv.DictReader((tmp_path / "summary.csv").open())}
    assert lines["CoOp", "1"] == {
        "variant": "CoOp",
        "shots": "1",
        "metric": "test_accuracy",
        "mean": "41.0",
        "std": "1.0",
        "n": "3",
        "values": "40.0000 41.0000 42.0000",
        "trainable": "5000",
        "fit_seconds": "20.0",
        "step_wall_s": "0.25",
        "step_processor_s": "0.2",
        "step_memory_bytes": "123000000",
    }
    assert lines["CLIP", ""]["fit_seconds"] == "" and lines["CoOp", "4"]["std"] == ""
    assert lines["MaPLe", "4"]["n"] == "0" and lines["MaPLe", "4"]["mean"] == ""
    assert len(list(csv.DictReader((tmp_path / "results.csv").open()))) == 7


def test_what_a_step_takes_stands_beside_accuracy(tmp_path: Path) -> None:
    """Of the training; no column where no run measured it."""
    single = SweepRun("all", 0, tmp_path / "a.yaml", [], tmp_path / "all-seed0")
    other = SweepRun("frozen", 0, tmp_path / "a.yaml", [], tmp_path / "frozen-seed0", zero_shot=True)
    for one in (single, other):
        finish(one, 0.5)
    lines = summarise([single, other], "test_accuracy", tmp_path).splitlines()
    assert lines[0] == (
        "| variant | test_accuracy (mean ± std) | n | per seed | trainable | step, s | step, CPU s | step, GB | fit, s |"
    )
    assert lines[2] == "| all | 50.0 | 1 | 50.0 | 5,000 | 0.25 | 0.2 | 0.123 | 20 |"
    assert lines[3] == "| frozen | 50.0 | 1 | 50.0 | 5,000 |  |  |  |  |" and lines[-1].startswith("step: one batch")
    assert "step" not in summarise([other], "test_accuracy", tmp_path)


def few_shot_config(encoders: dict[str, Any], level: str = "segment") -> dict[str, Any]:
    return {
        "data": {"class_path": "avprompt.data_modules.AVEDataModule", "init_args": {"root": "x"}},
        "model": {
            "class_path": "avprompt.tasks.Contrastive",
            "init_args": {"level": level, "backbone": {"init_args": encoders}},
        },
    }


def published_encoders() -> dict[str, Any]:
    folder = ROOT / "lightning_configs" / "encoders"
    return {"visual": read_yaml(folder / "clip_b32.yaml"), "audio": read_yaml(folder / "clap_tiny.yaml")}


def test_published_points_stand_beside_what_was_measured_alike(tmp_path: Path) -> None:
    figures, own = read_published(), published_encoders()

    def points(
        row: str, encoders: dict[str, Any] = own, level: str = "segment", used: int = 402, **manifest: Any
    ) -> dict:
        result = {
            "config": few_shot_config(encoders, level),
            "metrics": {"test_accuracy": 0.5},
            "clips": {"test": {"used": used, "missing": 402 - used}},
        }
        return published_points(Run(tmp_path, result, {"generated": False, "dataset": "AVE", **manifest}), row, figures)

    assert points("DG-SCT") == {1: 63.0, 2: 65.0, 4: 66.3, 8: 67.9, 16: 72.4, None: 64.7}
    assert points("CoOp", level="video")[16] == 78.1 and points("CLIP") == {None: 57.6}
    assert points("DG-SCT", generated=True) == points("DG-SCT", used=390) == points("another method") == {}
    tiny = {"class_path": "avprompt.encoders.TinyCLIP", "init_args": {"pretrained": "synthetic"}}
    large = {"class_path": "avprompt.encoders.CLIP", "init_args": {"model": "ViT-L-14", "pretrained": "openai"}}
    assert points("CoOp", {**own, "visual": tiny}) == points("CoOp", {**own, "visual": large}) == {}
    base = {"class_path": "avprompt.encoders.CLAPAudio", "init_args": {"model": "base", "pretrained": "x/music.pt"}}
    assert points("DG-SCT", {**own, "audio": base}) == {} and points("CoOp", {**own, "audio": base}) != {}  # it is deaf
    released = read_yaml(ROOT / "lightning_configs" / "encoders" / "clap_tiny_released.yaml")
    assert points("DG-SCT", {**own, "audio": released}) != {}


def test_plot_over_shots(tmp_path: Path) -> None:
    rows = "  CLIP: {zero_shot: true}\n  CoOp: []\n  MaPLe: []"
    file = write_sweep(tmp_path, rows, axis="axis: {--data.init_args.shots: [1, 2, 16]}")
    runs, metric = read_sweep(file, [0, 1], tmp_path)
    for one in runs:
        if one.variant != "MaPLe":
            finish(one, 0.5 + (0.01 * one.axis[1] if one.axis else 0) + 0.02 * one.seed)
    known = {"CLIP": {None: 57.6}, "CoOp": {1: 59.6, 4: 60.0, None: 59.2}}  # its zero-shot is of another training
    figure = curve_figure(condense(runs, metric), "shots", metric, known)
    (panel,) = figure.axes
    assert panel.get_xscale() == "log" and [tick.get_text() for tick in panel.get_xticklabels()] == ["1", "2", "16"]
    (curve,) = [line for line in panel.lines if line.get_label() == "CoOp"]
    assert curve.get_xydata().tolist() == [[1, pytest.approx(52)], [2, pytest.approx(53)], [16, pytest.approx(67)]]
    (band,) = [part for part in panel.collections if part.get_alpha() == 0.15]  # nothing of MaPLe is finished
    low, high = (function(y for x, y in band.get_paths()[0].vertices if x == 1) for function in (min, max))
    assert high - low == pytest.approx(2 * 2**0.5, abs=1e-3)  # two standard deviations of two seeds 2 points apart
    (horizontal,) = [line for line in panel.lines if line.get_label() == "CLIP, zero-shot"]
    assert horizontal.get_ydata() == pytest.approx([51, 51])
    hollow = [line.get_xydata().tolist() for line in panel.lines if line.get_marker() == "D" and len(line.get_xdata())]
    assert hollow == [[[0.01, 57.6]], [[1, 59.6]]]  # 4 shots were not run
    assert [label.get_text() for label in figure.legends[0].get_texts()] == [
        "CLIP, zero-shot",
        "CoOp",
        "published (other selection)",
    ]
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    named = curve_figure(
        [
            {**line, "shots": {1: "few", 2: "some", 16: "many"}.get(line["shots"], "")}
            for line in condense(runs, metric)
        ],
        "shots",
        metric,
        {},
    )
    assert [tick.get_text() for tick in named.axes[0].get_xticklabels()] == ["few", "some", "many"]
    assert len(named.axes[0].containers) == 1  # bars


def test_budgets(tmp_path: Path) -> None:
    """A learning curve over clips or steps: what a run is given, what it is called, and the plot."""
    file = write_sweep(tmp_path, "  plain: []\n  wide: [--model.x=1]", axis="budget: {clips: [40, 10, 20]}")
    runs, metric = read_sweep(file, [0, 1], tmp_path)
    assert [one.folder.name for one in runs[:3]] == [
        "plain-clips40-seed0",
        "plain-clips10-seed0",
        "plain-clips20-seed0",
    ]
    assert runs[3].overrides == ["--model.x=1", "--data.train_clips=40"] and runs[3].axis == ("clips", 40)
    for one in runs:
        finish(one, 0.3 + 0.01 * one.axis[1] + 0.02 * one.seed)
    figure = curve_figure(condense(runs, metric), "clips", metric, {})
    (panel,) = figure.axes
    assert panel.get_xlabel() == "training clips"
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["10", "20", "40"]
    drawn = [line for line in panel.lines if len(line.get_xdata())]
    assert [line.get_xdata().tolist() for line in drawn] == [[10, 20, 40]] * 2 and len(panel.collections) == 2
    assert len({line.get_marker() for line in drawn}) == 2
    assert summarise(runs, metric, tmp_path).startswith("| variant | clips 40 | clips 10 | clips 20 |")
    file = write_sweep(tmp_path, "  plain: []", axis="budget: {steps: [100, 250]}")
    assert [one.overrides for one in read_sweep(file, [0], tmp_path)[0]] == [
        [
            f"--trainer.max_steps={steps}",
            "--trainer.max_epochs=-1",
            "--trainer.check_val_every_n_epoch=null",
            "--trainer.val_check_interval=50",
        ]
        for steps in (100, 250)
    ]
    for wrong in (
        "{clips: []}",
        "{clips: [1, 1]}",
        "{epochs: [1]}",
        "{steps: [0.5]}",
        "{clips: [1], steps: [2]}",
        "[1]",
    ):
        with pytest.raises(ConfigError, match="budget"):
            read_sweep(write_sweep(tmp_path, "  plain: []", axis=f"budget: {wrong}"), [0], tmp_path)
    with pytest.raises(ConfigError, match="one of axis, budget and vary"):
        read_sweep(
            write_sweep(tmp_path, "  plain: []", axis="budget: {clips: [1]}\nvary: {prompts.alpha: [1]}"), [0], tmp_path
        )


def hyperparameters(
    folder: Path, experiment: str = "ave_dgsct_released", found: dict[str, float] | None = None, clips: int = 402
) -> tuple[list[SweepRun], str]:
    """Made-up results of some rows of the shipped sweep, two seeds half a percent apart; all rows with `None`."""
    text = (SWEEPS / "dgsct_hyperparameters.yaml").read_text()
    for name in ("ave_dgsct", "quickstart"):
        own = experiment if name == "ave_dgsct" else name
        text = text.replace(f" {name},", f" {ROOT / 'experiments' / own},")
    (folder / "sweep.yaml").write_text(text)
    runs, metric = read_sweep(folder / "sweep.yaml", [0, 1], folder)
    for one in runs:
        if found is None or one.variant in found:
            settings = read_yaml(one.config)
            arguments = settings["model"]["init_args"]
            arguments.update(modality="both", protocol=arguments.get("protocol", "exact"))
            backbone = arguments["backbone"]["init_args"]
            if one.variant == "no prompts":
                backbone["prompts"] = {"class_path": "avprompt.methods.NoPrompts"}
            elif one.varied:
                backbone["prompts"]["init_args"][one.varied[0].rpartition(".")[2]] = one.varied[1]
            finish(one, (found or {}).get(one.variant, 0.7) + 0.005 * one.seed, settings, clips)
            (one.folder / "test" / "manifest.json").write_text(
                '{"generated": false, "dataset": "AVE", "ids": {"test": []}}'
            )
    return runs, metric


def test_arguments_varied_alone(tmp_path: Path) -> None:
    """Rows and folders are named after argument and value; the flag goes to the prompt method."""
    for quickstart in (False, True):
        runs, _ = read_sweep(SWEEPS / "dgsct_hyperparameters.yaml", [0], tmp_path, quickstart=quickstart)
        named = {one.variant: one for one in runs}
        assert list(named) == [
            "no prompts",
            "all",
            *(
                f"{name}={value}"
                for name, values in {
                    "alpha": (0.1, 0.2, 0.4, 0.5),
                    "beta": (0.01, 0.1, 0.15, 0.2),
                    "gamma": (0.01, 0.05, 0.2, 0.3),
                }.items()
                for value in values
            ),
        ]
        one, path = named["beta=0.15"], "model.init_args.backbone.init_args.prompts.init_args.beta"
        assert one.folder == tmp_path / "beta=0.15-seed0" and one.overrides == ["--model.backbone.prompts.beta=0.15"]
        assert one.varied == (path, 0.15) and named["all"].varied is None and last(one.recipe, path) == 0.15
        assert last(named["all"].recipe, path) == 0.05  # around which it is varied


def test_plot_of_hyperparameters(tmp_path: Path) -> None:
    """A panel an argument; the experiment stands in each at its own value; the published point is the paper's."""
    runs, metric = hyperparameters(
        tmp_path, found={"no prompts": 0.6, "all": 0.8, "alpha=0.1": 0.7, "alpha=0.5": 0.75, "gamma=0.3": 0.65}
    )
    figure = varied_figure(runs, condense(runs, metric), metric, read_published())
    alpha, beta, _gamma = figure.axes
    assert [panel.get_xlabel() for panel in figure.axes] == ["alpha", "beta", "gamma"]
    assert [panel.get_title() for panel in figure.axes] == [
        "beta = 0.05, gamma = 0.1",
        "alpha = 0.3, gamma = 0.1",
        "alpha = 0.3, beta = 0.05",
    ]
    curves = [panel.containers[0][0].get_xydata().tolist() for panel in figure.axes]
    assert [[[x, round(y, 2)] for x, y in curve] for curve in curves] == [
        [[0.1, 70.25], [0.3, 80.25], [0.5, 75.25]],
        [[0.05, 80.25]],
        [[0.1, 80.25], [0.3, 65.25]],
    ]
    low, high = alpha.containers[0][2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 0.5 / 2**0.5, abs=1e-3)
    assert [tick.get_text() for tick in beta.get_xticklabels()] == ["0.01", "0.05", "0.1", "0.15", "0.2"]
    for panel, own in zip(figure.axes, (0.3, 0.05, 0.1)):
        marked = {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
        assert marked["all"] == [[own, pytest.approx(80.25)]] and marked["published"] == [[own, 82.2]]
        (dashed,) = [line for line in panel.lines if line.get_label() == "no prompts"]
        assert dashed.get_linestyle() == "--" and dashed.get_ydata() == pytest.approx([60.25, 60.25])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no prompts", "all", "published"]
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("experiment", "clips"), [("ave_dgsct", 402), ("ave_dgsct_released", 390), ("quickstart", 402)]
)
def test_published_hyperparameters_need_their_protocol_data_and_encoders(
    experiment: str, clips: int, tmp_path: Path
) -> None:
    runs, metric = hyperparameters(tmp_path, experiment, {"all": 0.8}, clips)
    figure = varied_figure(runs, condense(runs, metric), metric, read_published())
    assert len(figure.axes) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["all"]


def test_sweep_that_varies_arguments_ends_in_a_plot(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drawn of what is finished, and drawn anew by the next call."""
    file = write_sweep(tmp_path, "  all: []", axis="vary: {--fail: ['no', fit], prompts.alpha: [0.1]}")
    out = tmp_path / "runs"
    plot = out / "fail-alpha.png"
    with pytest.raises(ConfigError, match="1 of 4 runs not finished"):
        sweep(file, out, [0])
    first = plot.read_bytes()
    assert f"plot: {plot}" in capsys.readouterr().out and first.startswith(b"\x89PNG")
    assert (out / "alpha=0.1-seed0" / "test" / "result.json").is_file()
    file.write_text(file.read_text().replace("fit]", "mended]"))
    sweep(file, out, [0], format="png,svg")
    assert plot.read_bytes() != first and "<svg" in plot.with_suffix(".svg").read_text(encoding="utf-8")


def test_wrong_metric_is_named(ledger: Path, tmp_path: Path) -> None:
    file = write_sweep(tmp_path, "  CoOp: []", axis="")
    file.write_text(file.read_text().replace("test_accuracy", "test_acuracy"))
    with pytest.raises(ConfigError, match=r"test_acuracy: got \['test_accuracy'\]"):
        sweep(file, tmp_path / "runs", [0])


def test_arguments_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(tmp_path, "  CoOp: []")
    for flags in ({"workers": 0}, {"seeds": [1, 1]}, {"seeds": []}):
        with pytest.raises(ArgumentError, match=next(iter(flags))):
            sweep(file, tmp_path / "runs", **flags)
    for args in (["--config", "nowhere.yaml"], ["--workers", "3", "--config=nowhere.yaml"], ["nowhere.yaml"]):
        with pytest.raises(SystemExit) as error:
            main(["sweep", *args])
        assert error.value.code == 2 and "nowhere.yaml; expected an existing YAML file" in capsys.readouterr().err


class OnGpu:
    """What stands in for a run's process: it only notes which GPU it sees."""

    def __init__(self, gpu: str | None, busy: list[str | None], seen: list[tuple[str | None, ...]]) -> None:
        self.gpu, self.busy = gpu, busy
        busy.append(gpu)
        seen.append(tuple(busy))

    def wait(self) -> int:
        time.sleep(0.05)
        self.busy.remove(self.gpu)
        return 0

    def poll(self) -> int:
        return 0


@pytest.mark.parametrize(("workers", "most"), [(2, 1), (4, 2)])
def test_a_gpu_a_run(workers: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs at the same time have GPUs of their own as long as there are any; one of several devices sees all."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    assert visible_gpus() == ["4", "7"]
    rows = "  one: []\n  pair: [--trainer.devices=2]"
    runs, _ = read_sweep(write_sweep(tmp_path, rows, axis=""), list(range(8)), tmp_path / "runs")
    busy: list[str | None] = []
    seen: list[tuple[str | None, ...]] = []
    executor = Processes(workers, visible_gpus())
    monkeypatch.setattr(
        executor.warm, "begin", lambda command, env, **_: OnGpu(env["CUDA_VISIBLE_DEVICES"], busy, seen)
    )
    for job in executor.submit(sorted(runs, key=lambda one: one.variant)):
        assert "fit ended with code 0" in job.result()  # no results
    executor.close()
    alone = [tuple(gpu for gpu in now if gpu in ("4", "7")) for now in seen]
    assert max(now.count(gpu) for now in alone for gpu in now) == most and {"4", "7"} == {
        gpu for now in alone for gpu in now
    }
    assert sum(now[-1] == "4, 7" for now in seen) == 8 and not busy
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus(tmp_path / "none") == []
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    assert visible_gpus(tmp_path / "gpus") == ["0"]


def test_what_is_seen_of_running_runs(tmp_path: Path) -> None:
    """Lines where the output is no terminal, a table where it is; times are reckoned from what was measured."""
    runs, _ = read_sweep(write_sweep(tmp_path, "  CoOp: []\n  MaPLe: []", axis=""), [0, 1], tmp_path)
    coop, maple = runs[:2]
    lines, screen = io.StringIO(), io.StringIO()
    with Board(runs, 2, lines) as board, Board(runs, 2, screen, live=True) as table:
        assert "reckoned from the first epoch" in board.expect(tmp_path) and board.left(runs, []) is None
        for epoch in (1, 2):
            for one in (coop, maple):
                one.folder.mkdir(exist_ok=True)
                with one.log.open("a") as log:
                    text = "15 s, 30 s left" if epoch == 1 else "15 s, 15 s left"
                    log.write(f"Seed set to 0\nepoch {epoch}/3: loss 1.5000, val_accuracy 0.{epoch}000, {text}\n")
            board.update([coop, maple], runs)
        assert board.left(runs, [coop, maple]) == (15 + 15 + 2 * 45) / 2
        table.update([coop, maple], runs)
        (row,) = [list(column.cells) for column in table.table([maple], runs).columns[1:2]]
        assert row == ["2/3"]
        for stage, seconds in (("fit", 50.0), ("test", 4.0)):
            (coop.folder / stage).mkdir()
            (coop.folder / stage / "result.json").write_text(json.dumps({"wall_s": seconds}))
        board.ended(coop, None)
        board.ended(maple, "fit ended with code 2, see log.txt")
    assert lines.getvalue().splitlines() == [
        f"now CoOp, seed 0 ({coop.log})",
        "CoOp, seed 0: epoch 1/3: loss 1.5000, val_accuracy 0.1000, 15 s, 30 s left",
        f"now MaPLe, seed 0 ({maple.log})",
        "MaPLe, seed 0: epoch 1/3: loss 1.5000, val_accuracy 0.1000, 15 s, 30 s left",
        "measured: about 1 min 15 s for 4 of 4 runs",
        "CoOp, seed 0: epoch 2/3: loss 1.5000, val_accuracy 0.2000, 15 s, 15 s left",
        "MaPLe, seed 0: epoch 2/3: loss 1.5000, val_accuracy 0.2000, 15 s, 15 s left",
        "finished: CoOp, seed 0; 1/4 runs",
        "not finished: MaPLe, seed 0: fit ended with code 2, see log.txt; 1/4 runs",
    ]
    for part in ("MaPLe, seed 0", "val_accuracy 0.2000", "0/4 runs finished, 1 min 0 s left"):
        assert part in screen.getvalue()
    again = Board(runs, 2, lines)
    assert again.expect(tmp_path).startswith("time: about 1 min 21 s, from 1 finished") and again.took == {
        coop.name: 54.0
    }


#: a run's process that says what it finds: whether it was forked, its parent and session, its GPU, folder and Ctrl-C
MIRROR = """
import json, os, signal, socket, sys

if sys.orig_argv[1:3] == ["-m", "avprompt.cli.stages"]:
    served = sys.orig_argv[3] == "--serve"
    if served:
        from avprompt.cli import stages
        if "BROKEN" in os.environ:
            os.write(1, b"no such library\\n")
            os._exit(1)
        stages.preload, stages.rehearse = lambda: int(os.environ.get("ALLOWED", 99)), lambda command: None
        stages.touched_gpu = lambda: "TOUCHED" in os.environ
        todo = stages.serve(socket.socket(fileno=int(sys.orig_argv[4])))
        if todo is None:
            os._exit(0)
    else:
        todo = json.loads(sys.orig_argv[3])
    print(json.dumps([served, os.getppid(), os.getsid(0) == os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"),
                      os.getcwd(), signal.getsignal(signal.SIGINT) is signal.default_int_handler, sys.argv[1:]]))
    print("to the log too", file=sys.stderr, flush=True)
    if todo[0] == ["die"]:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(7)
"""


@pytest.mark.parametrize("spoiled", ["", "ALLOWED", "TOUCHED", "BROKEN"])
def test_runs_are_forked_where_that_is_safe(
    spoiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a process that has a thread too many, or has touched a GPU, or fails, no run is forked: it begins anew."""
    (tmp_path / "sitecustomize.py").write_text(MIRROR)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, **({spoiled: "0"} if spoiled else {})}

    def said(commands: list[list[str]], **more: str) -> tuple[list[Any], int]:
        with (tmp_path / "log").open("w+") as log:
            command = [sys.executable, "-m", SERVER, json.dumps(commands)]
            process = warm.begin(
                command, stdout=log, stderr=subprocess.STDOUT, env={**environment, **more}, start_new_session=True
            )
            code = process.wait()
            assert process.poll() == code
            log.seek(0)
            first, second = log.read().splitlines()
            assert second == "to the log too"
            return json.loads(first), code

    with Warm() as warm:
        for gpu in ("0", "3"):
            (forked, parent, session, found, folder, interrupted, _words), code = said(
                [["x"]], CUDA_VISIBLE_DEVICES=gpu
            )
            assert forked is not bool(spoiled)
            assert parent == (os.getpid() if spoiled == "BROKEN" else warm.server.pid)
            assert (session, found, folder, interrupted, code) == (True, gpu, str(tmp_path), True, 7)
        other, _ = said([["x"]], OMP_NUM_THREADS="17")  # which libraries read when they are imported
        assert other[0] is False
        assert said([["die"]])[1] == -signal.SIGKILL
        shown = capsys.readouterr().out
        assert ("ended with code 1: no such library" in shown) == (spoiled == "BROKEN")
        if not spoiled:
            warm.server.kill()
            (forked, *_), code = said([["x"]])
            assert forked is False and code == 7 and "ended with code -9" in capsys.readouterr().out


def forked_runs() -> list[Path]:
    """Processes of runs that were forked, which have their parent's command line."""

    def served(process: Path) -> bool:
        try:
            return b"--serve" in (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            return False

    found = [path for path in Path("/proc").glob("[0-9]*") if served(path)]
    return [
        path for path in found if served(Path("/proc", path.joinpath("stat").read_text().rpartition(")")[2].split()[1]))
    ]


def test_trained_on_the_synthetic_dataset(ave_root: Path, start: Callable, tmp_path: Path) -> None:
    """A real run in forked processes, which SIGTERM stops inside its training, and which resumes, ends bit for bit as
    one that was left alone in a process that was not forked."""
    flags = (
        f"prompts=NoPrompts, --data.init_args.root={ave_root}, --trainer.max_epochs=3, --data.init_args.batch_size=4"
    )
    file, out = write_sweep(tmp_path, f"  CoOp: [{flags}]", axis=""), tmp_path / "runs"
    stopped, whole = (read_sweep(file, [0], folder)[0][0] for folder in (out, tmp_path / "whole"))
    workers = os.cpu_count() or 1  # a thread each
    running = start(file, out, "--seeds", "[0]", "--workers", str(workers))
    wait_for(lambda: (stopped.folder / "fit" / "checkpoints" / "last.ckpt").is_file() or running.poll() is not None)
    assert forked_runs(), "the process that has imported the suite has threads or has touched a GPU"
    running.terminate()
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 143 and stopped.outcome("fit") is None, said
    sweep(file, out, [0], workers=workers)
    assert json.loads(stopped.record.read_text())["resumed"] == 1
    assert "test_accuracy" in stopped.outcome("test")["metrics"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(whole.commands()["fit"])
    finally:
        torch.set_num_threads(threads)
    resumed, uninterrupted = (one.outcome("fit") for one in (stopped, whole))
    assert resumed["metrics"] == uninterrupted["metrics"] and resumed["epochs"] == uninterrupted["epochs"] == 3
    ours, theirs = (
        torch.load(one.folder / "fit" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for one in (stopped, whole)
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


SBATCH = r"""#!/bin/sh
cat "$1" >> "$SLURM_LEDGER.sbatch"
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\)%.*/\1/p' "$1")
[ -n "$SLURM_NEVER" ] || (for task in $(seq 0 "$last"); do
  SLURM_JOB_ID=7$task SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 sh "$1"
done) > "$SLURM_LEDGER.out" 2>&1 &
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do case "$1" in --output|--error) shift;; esac; shift; done
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's commands, as far as submitit calls them; tasks run one after another on this machine."""
    pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, content in {
        "sbatch": SBATCH,
        "srun": SRUN,
        "sacct": "#!/bin/sh\necho 'JobID|State|NodeList'\n",
        "scancel": '#!/bin/sh\necho "$@" >> "$SLURM_LEDGER.cancelled"\n',
    }.items():
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_LEDGER", str(folder / "ledger"))
    return folder


def test_the_same_cells_go_to_a_cluster(cluster: Path, ledger: Path, tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, "  CLIP: {zero_shot: true}\n  CoOp: []\n  bad: [--fail=fit]"), tmp_path / "runs"
    with pytest.raises(ConfigError, match="2 of 5 runs not finished.*bad, shots 4, seed 0"):
        run(
            [
                "sweep",
                str(file),
                "--out",
                str(out),
                "--seeds",
                "[0]",
                "--workers",
                "3",
                "--slurm",
                "{partition: gpu, time: 90, gpus_per_node: 1}",
            ]
        )
    script = (cluster / "ledger.sbatch").read_text()
    for line in ("array=0-4%3", "partition=gpu", "time=90", "gpus-per-node=1", "cpus-per-task=1", "job-name=runs"):
        assert f"#SBATCH --{line}\n" in script, script
    assert done(ledger) == Counter(
        [f"CoOp-shots{shots}-seed0 {epoch}" for shots in (1, 4) for epoch in (0, 1, 2, 3, "test")] + ["CLIP-seed0 test"]
    )
    assert [line["variant"] for line in csv.DictReader((out / "failed.csv").open())] == ["bad", "bad"]
    assert (out / "shots.png").is_file() and "| CoOp |" in (out / "summary.md").read_text()


def test_stopping_cancels_the_jobs(
    cluster: Path, ledger: Path, start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NEVER", "1")
    file = write_sweep(tmp_path, "  CoOp: []")
    running = start(file, tmp_path / "runs", "--seeds", "[0, 1]", "--slurm", "true")
    wait_for((cluster / "ledger.sbatch").exists)  # `sbatch` has not ended yet
    running.terminate()
    said, _ = running.communicate(timeout=30)
    assert running.returncode == 143, said
    assert (cluster / "ledger.cancelled").read_text().split() == [f"7_{task}" for task in range(4)]
    assert "#SBATCH --time=1440\n" in (cluster / "ledger.sbatch").read_text()
    one = SweepRun("CoOp", 0, ROOT / "experiments" / "quickstart.yaml", [], tmp_path)
    queued = SlurmRun().checkpoint(one)  # what submitit asks for at the end of a job's time
    assert isinstance(queued.function, SlurmRun) and queued.args == (one,)


def test_slurm_needs_submitit_and_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = write_sweep(tmp_path, "  CoOp: []"), tmp_path / "runs"
    monkeypatch.setenv("PATH", str(tmp_path))
    if "submitit" in sys.modules or pytest.importorskip("submitit"):
        with pytest.raises(ConfigError, match="--slurm: got Could not detect .srun."):
            sweep(file, out, [0], slurm=True)
        (tmp_path / "srun").write_text("#!/bin/sh\n")
        (tmp_path / "srun").chmod(0o755)
        with pytest.raises(ConfigError, match="(?s)--slurm: got .*partitoin.*array_parallelism"):
            sweep(file, out, [0], slurm={"partitoin": "gpu"})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"the extra `slurm`.*avprompt\[slurm\]"):
        sweep(file, out, [0], slurm=True)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not tie processes to cores")
def test_threads_are_those_of_the_cores_that_the_sweep_may_use() -> None:
    """`taskset`, containers and SLURM leave a process fewer cores than the machine has."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        executor = Processes(1)
        executor.close()
    finally:
        os.sched_setaffinity(0, before)
    assert executor.threads == 1
    assert usable_cores() == len(before)
