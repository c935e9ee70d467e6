"""The guide, the tutorial and the README's "Using it", executed: every command, every file that they have a reader write,
every error message that they quote.

One folder stands for the reader's source tree, with small synthetic datasets in place of those of the guide. Commands
run in it in the order in which they are read, in this process; the tables below hold what differs from the text. A
command of another program than those of `PROGRAMS` fails.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from laptop import tiny

from avprompt import heads, methods, metrics, tasks
from avprompt.cli import efficiency, main, parts_of, quickstart, run
from avprompt.files import write_json
from avprompt.reports.efficiency import measure
from avprompt.sweeps import sweep
from avprompt.sweeps.run import SweepRun, read_json
from avprompt.synthetic import SYNTHETIC_DATASETS

GUIDE, README, TUTORIAL = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("docs/guide.md", "README.md", "docs/tutorial.md")
)
USING = README.partition("## Using it\n")[2].partition("\n## ")[0]
#: synthetic dataset, arguments besides ten videos -> its root, and the folder of its videos in the guide
DATASETS_OF_THE_GUIDE = [
    ("ave", {"classes": 2, "objects": 1, "offscreen_sounds": 0}, "data/AVE", "AVE_VIDEOS"),
    ("llp", {"classes": 2}, "data/LLP", "LLP_VIDEOS"),
    ("avsbench", {"classes": 2, "objects": 2}, "data/AVSBench", None),
    ("avsbench", {"classes": 3, "objects": 1, "videos": 15, "setting": "ms3"}, "data/AVSBench", None),
    ("music_avqa", {"classes": 4}, "data/MUSIC-AVQA", "MUSIC_AVQA_VIDEOS"),
    ("kinetics_sounds", {"classes": 2, "objects": 1, "offscreen_sounds": 0}, "data/Kinetics-Sounds", "KINETICS_VIDEOS"),
    (
        "vggsound",
        {"categories": ["star", "ring"], "objects": 1, "offscreen_sounds": 0},
        "data/vggsound",
        "VGGSOUND_VIDEOS",
    ),
]
#: beginning of a command -> what it gets besides: sizes of tiny encoders, less to do
MORE = {
    "data prepare --videos AVE_VIDEOS": ["--size", "64", "--sample_rate", "16000"],
    "data prepare": ["--workers", "1"],
    "data synth ave": ["--videos", "10", "--classes", "2", "--objects", "1", "--workers", "1"],
    "data stats": ["--data.num_workers", "0"],
    "efficiency": ["--steps", "1"],
    "quickstart": ["--videos", "10"],
    "sweep": ["--seeds", "[0]"],
}
#: what experiments get: one batch of everything in front of the command's own flags, and behind them no GPU
ONE_BATCH = [
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.val_check_interval=1.0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    *(f"--trainer.limit_{stage}_batches=1" for stage in ("train", "val", "test", "predict")),
]
NO_GPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]


def commands(text: str) -> list[str]:
    """Command lines of ```bash blocks, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [
        shlex.join(words)
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        if (words := shlex.split(line, comments=True))
    ]


#: the same command is run once
COMMANDS = list(dict.fromkeys(commands(GUIDE) + commands(USING) + commands(TUTORIAL)))


class Tree:
    """A copy of the source tree in which the guide is followed."""

    def __init__(self, root: Path) -> None:
        self.root, self.outcomes = root, {}
        source = root / "src" / "avprompt"
        for folder in (source / "methods", source / "tasks"):
            folder.mkdir(parents=True)
            for path in (ROOT / "src" / "avprompt" / folder.name).glob("*.py"):
                (folder / path.name).symlink_to(path)
        (source / "data_modules").symlink_to(ROOT / "data_modules")
        for path in (ROOT / "src" / "avprompt").iterdir():
            if not (source / path.name).exists() and path.name != "__pycache__":
                (source / path.name).symlink_to(path)
        for name in ("experiments", "lightning_configs"):
            shutil.copytree(ROOT / name, root / name)
        (root / "tests").mkdir()
        for name in ("conftest.py", "small.py", "toys.py", "test_conformance.py"):
            shutil.copy(ROOT / "tests" / name, root / "tests")
        for name, content in re.findall(
            r"`([\w/]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE
        ):
            assert not (root / name).exists(), f"{name} is no new file"
            (root / name).write_text(content, encoding="utf-8")
        for number, (dataset, options, place, videos) in enumerate(DATASETS_OF_THE_GUIDE):
            SYNTHETIC_DATASETS[dataset](root / "synthetic" / str(number), **{"videos": 10, "workers": 1, **options})
            made = root / "synthetic" / str(number) / "videos"
            if videos:
                made.rename(root / videos)
            shutil.copytree(root / "synthetic" / str(number), root / place, dirs_exist_ok=True)
        (root / "MY_VIDEOS").mkdir()
        shutil.copy(next((root / "AVE_VIDEOS").iterdir()), root / "MY_VIDEOS")

    def follow(self, command: str) -> None:
        """Run the guide as far as this command, each once; what happens to others is their own test's."""
        for one in COMMANDS[: COMMANDS.index(command) + 1]:
            if one not in self.outcomes:
                try:
                    self.outcomes[one] = execute(self, one)
                except (Exception, SystemExit) as error:
                    self.outcomes[one] = error
        if self.outcomes[command] is not None:
            raise self.outcomes[command]

    def small(self, args: list[str]) -> list[str]:
        """A command's arguments for this machine."""
        line = shlex.join(args)
        extra = next((more for beginning, more in MORE.items() if line.startswith(beginning)), [])
        if args[0] not in ("fit", "test", "predict", "visualize"):
            return args + extra
        place = args.index("--config") + 2
        config = Path(args[place - 1])
        if config.parts[0] == "runs":  # is small already
            overlay = []
        elif "quickstart" in config.name or config.stem.endswith("_tiny"):
            overlay = ["--data.categories", "null"]  # the synthetic datasets have two
        else:
            overlay = tiny(config, self.root / "tiny.yaml", ["categories: null"])
        return [*args[:place], *overlay, *ONE_BATCH, *args[place:], *NO_GPU]

    def train(self, one: SweepRun) -> None:
        """What a sweep does in processes of their own."""
        for command in one.commands().values():
            run(self.small(command))
        write_json(one.record, {"recipe": one.recipe})


class Here:
    """Runs of a sweep in this process: the first that trains is run, the others get its figures.

    tests/test_sweep.py has the processes, tests/test_experiments.py the network of every variant.
    """

    def __init__(self, tree: Tree, *given: Any) -> None:
        self.tree, self.given = tree, given

    def submit(self, runs: list[SweepRun]) -> list[Future]:
        if not runs:
            return []
        one, jobs = next(run for run in runs if not run.zero_shot), []
        self.tree.train(one)
        for other in runs:
            if other is not one:
                other.result.parent.mkdir(parents=True)
                write_json(other.result, one.outcome("test"))
            jobs.append(Future())
            jobs[-1].set_result(None)
        return jobs

    def stop(self) -> None:
        """Nothing runs on."""

    def close(self) -> None:
        """Nothing is left."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return Tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that have a tree are inside it, with its new modules, and with stand-ins for processes."""
    if "tree" not in request.fixturenames:
        return
    tree = request.getfixturevalue("tree")
    monkeypatch.chdir(tree.root)
    for package in (methods, tasks):
        place = tree.root / "src" / "avprompt" / package.__name__.rpartition(".")[2]
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(place)])
    smaller = {"ave": {"classes": 2, "objects": 1, "offscreen_sounds": 0}, "avvp": {"classes": 2}}
    monkeypatch.setattr(
        quickstart,
        "PLANS",
        {
            name: replace(plan, options={**plan.options, **smaller.get(name, {})})
            for name, plan in quickstart.PLANS.items()
        },
    )
    monkeypatch.setattr(quickstart, "ROWS", {"DG-SCT": []})  # sweeps run the other
    monkeypatch.setattr(quickstart, "execute", lambda one, threads, begin: tree.train(one))
    monkeypatch.setattr(quickstart, "Warm", lambda: contextlib.nullcontext(SimpleNamespace(begin=None)))
    monkeypatch.setattr(sweep, "Processes", lambda *given: Here(tree, *given))
    monkeypatch.setattr(sweep, "Slurm", lambda *given: Here(tree, *given))
    monkeypatch.setattr(sweep, "PAUSE", 0)
    # queued, tests/test_prepare.py has the jobs
    monkeypatch.setattr(importlib.import_module("avprompt.media.prepare"), "_submit", lambda *given: None)
    monkeypatch.setattr(efficiency, "measured", lambda config, *given: measure(parts_of, str(config), *given))


def execute(tree: Tree, command: str) -> None:
    """Run one command of a page.

    Raises:
        KeyError: nobody said how.
    """
    program, *args = shlex.split(command)
    PROGRAMS[program](tree, args)


def avprompt(tree: Tree, args: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if args[0] == "convert":  # a whole network of hundreds of megabytes: tests/test_parity.py
            called = []
            patch.setattr("avprompt.convert.convert", lambda *given: called.append(given))
        try:
            run(tree.small(args))
        except SystemExit as stop:
            assert not stop.code
        if args[0] == "convert":
            assert called == [("ave", Path("best_82.18.pt"), Path("ave.ckpt"))]


def install(tree: Tree, args: list[str]) -> None:
    """The README's line, whose first two commands made the environment that this is run in; the last is run."""
    line = next(line for line in commands(GUIDE) if line.startswith("python3"))
    assert line in commands(README)
    avprompt(tree, args[args.index(".venv/bin/avprompt") + 1 :])


def conformance(tree: Tree, args: list[str]) -> None:
    """In a process of its own: the suite finds methods when it is imported."""
    environment = {**os.environ, "PYTHONPATH": str(tree.root / "src")}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *args],
        cwd=tree.root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    passed = set(re.findall(r"::(test_\w+)\[(scale_shift-[\w-]+)\] PASSED", result.stdout))
    tests = {
        "test_gradients_flow_where_the_method_says",
        "test_checkpointing_changes_nothing",
        "test_step_zero_is_the_frozen_network_where_the_method_says_so",
        "test_save_and_load",
        "test_gradients_reach_exactly_the_trainable_parameters",
        "test_bfloat16_is_finite_and_near",
        "test_frozen_tensors_stay_bit_equal_and_trainable_ones_move",
        "test_clips_of_a_batch_do_not_mix_in_eval_mode",
    }
    assert passed == {(test, f"scale_shift-{pair}") for test in tests for pair in ("swin-htsat", "clip-htsat")}


def tensorboard(tree: Tree, args: list[str]) -> None:
    """Serve what the command names, and ask for it."""
    from tensorboard.program import TensorBoard

    board = TensorBoard()
    board.configure(
        argv=[
            "tensorboard",
            *args,
            "--port",
            "0",
            "--load_fast",
            "false",
            "--reload_task",
            "blocking",
            "--reload_interval",
            "0",
        ]
    )
    with urllib.request.urlopen(f"{board.launch()}data/runs") as answer:
        assert "ave_dgsct/version_0" in answer.read().decode()


PROGRAMS = {"avprompt": avprompt, "python3": install, "pytest": conformance, "tensorboard": tensorboard}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.filterwarnings("ignore")
def test_command(tree: Tree, command: str) -> None:
    tree.follow(command)


def test_what_the_commands_leave(tree: Tree) -> None:
    tree.follow(COMMANDS[-1])
    listings = re.findall(r"^```\n(\S+/)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    assert len(listings) == 7
    for root, lines in listings:
        for line in lines.splitlines():
            # two blanks stand between names, and before what is said of one
            names = line.split("  ")[1:] if root.startswith("data") else line.split()[:1]
            for name in names:
                assert "<" in name or "{" in name or Path(root, name).exists(), (root, name)
    made = {path.name for path in Path("tables").iterdir()}
    plots = {name for name in made if name.endswith("-size.png")}  # accuracy over parameters, one a task
    assert "ave-size.png" in plots
    assert made - plots == {
        "compare.csv",
        "pairs.csv",
        "compare.md",
        "compare.tex",
        "compare.html",
        "efficiency.csv",
    }
    for pattern, count in (("quickstart/version_*/pictures", 1), ("ave_dgsct/version_*/predictions.csv", 2)):
        assert len(list(Path("runs").glob(pattern))) == count, pattern
    assert read_json(Path("runs/dgsct_modules_ave_quickstart/all-seed0/test/result.json"))


QUICKSTART = ["fit", "--config", "quickstart"]
SMALL = [*QUICKSTART, "--data.categories", "null", *ONE_BATCH]
MODEL, BACKBONE = "--model", "--model.backbone"
TRAINED = [
    "test",
    "--config",
    "quickstart",
    "--data.categories",
    "null",
    "--ckpt_path",
    "runs/quickstart/DG-SCT/fit/checkpoints/best.ckpt",
]
DIVERGES = [
    *SMALL,
    "--trainer.limit_train_batches",
    "1.0",
    "--data.batch_size",
    "2",
    f"{MODEL}.optimizer.lr",
    "1e30",
    "--trainer.logger.version",
    "diverged",
]
#: quoted message -> commands, of which the last gives it
TROUBLES: dict[str, list[list[str]]] = {
    "got gpu, and no GPU that PyTorch can use": [["fit", "--config", "ave_dgsct"]],
    "expected 'none', a library tag, or an existing local file": [
        [*SMALL, f"{BACKBONE}.audio=avprompt.encoders.HTSAT", f"{BACKBONE}.audio.pretrained=nowhere.ckpt"]
    ],
    "An error happened while trying to locate the file on the Hub": [
        ["fit", "--config", "ave_avstfp_b16", "--trainer", "cpu"]
    ],
    "clips of split train unusable": [[*SMALL, "--data.root", "data/holes"]],
    "no such file; expected an annotation file of AVE": [[*SMALL, "--data.root", "data/empty"]],
    "a store with (theirs, asked)": [[*SMALL, "--data.antialias", "false"]],
    "expected those of data/quickstart/categories.txt": [[*QUICKSTART]],
    "--trainr: got no such flag": [["fit", "--config", "misspelt.yaml"]],
    "--trainer.max_epoch: got no such argument": [[*SMALL, "--trainer.max_epoch", "1"]],
    "alphaa: got no such argument": [[*SMALL, f"{BACKBONE}.prompts.alphaa", "1"]],
    "expected no value: the data module sets it": [[*SMALL, f"{MODEL}.num_classes", "5"]],
    "every argument that the two classes share to be repeated": [
        [*SMALL, f"{BACKBONE}.prompts", "avprompt.methods.MaPLe"]
    ],
    "expected encoders of plain transformer blocks on both sides": [[*SMALL, f"{BACKBONE}.prompts", "methods/avstfp"]],
    "tensors that this experiment trains": [[*TRAINED, f"{BACKBONE}.prompts.num_tokens", "2"]],
    "expected the encoder in use": [[*TRAINED, f"{BACKBONE}.visual.pretrained", "none"]],
    "expected finite loss terms": [DIVERGES],
    "which is not UTF-8": [[*SMALL, "--data.root", "data/latin"]],
    "ids of several files each": [["data", "prepare", "--videos", "TWICE", "--out", "data/twice"]],
    "position in the training data": [
        DIVERGES,
        [
            *SMALL,
            "--trainer.limit_train_batches",
            "1.0",
            "--data.batch_size",
            "3",
            "--ckpt_path",
            "runs/quickstart/diverged/checkpoints/interrupted.ckpt",
        ],
    ],
    "other settings than those of the finished": [["sweep", "changed.yaml", "--out", "runs/quickstart_ablation"]],
}


def test_every_quoted_message_is_one_of_these() -> None:
    symptoms = GUIDE.partition("## Troubleshooting")[2]
    assert re.findall(r"\*\*`(.+?)`\*\*", symptoms) == list(TROUBLES)


@pytest.mark.parametrize("message", TROUBLES)
@pytest.mark.filterwarnings("ignore")
def test_message(tree: Tree, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        if command.startswith(("avprompt quickstart", "avprompt sweep quickstart_ablation")):
            tree.follow(command)
    if not Path("data/holes").exists():
        shutil.copytree("data/quickstart", "data/holes")
        for clip in Path("data/holes/store/clips").iterdir():
            shutil.rmtree(clip)
        shutil.copytree("data/quickstart", "data/latin", ignore=shutil.ignore_patterns("store", "videos"))
        Path("data/latin/Annotations.txt").write_bytes("Glocke in K\u00f6ln&a&good&0&1\n".encode("latin-1") * 9)
        for folder in ("TWICE/one", "TWICE/two"):
            shutil.copytree("MY_VIDEOS", folder)
    Path("data/empty").mkdir(exist_ok=True)
    Path("misspelt.yaml").write_text("trainr: {max_epochs: 1}\n", encoding="utf-8")
    text = Path("experiments/sweeps/quickstart_ablation.yaml").read_text(encoding="utf-8")
    Path("changed.yaml").write_text(text.replace("modality=audio", "modality=late"), encoding="utf-8")
    for command in TROUBLES[message]:
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_site(tmp_path: Path) -> None:
    """Strict: no link or anchor without a target, no page without a place in the navigation."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    assert (tmp_path / "guide" / "index.html").is_file()
    for package in (heads, methods, metrics, tasks):
        page = tmp_path / "reference" / package.__name__.rpartition(".")[2] / "index.html"
        missing = [name for name in package.__all__ if f'id="{package.__name__}.{name}"' not in page.read_text("utf-8")]
        assert not missing, f"{page}: {missing}"
    assert "TinyHTSAT(" in re.sub("<[^>]+>", "", (tmp_path / "reference" / "methods" / "index.html").read_text("utf-8"))


def test_links_of_the_readme() -> None:
    for name, anchor in re.findall(r"\]\((\w[\w./]*)(?:#([\w-]+))?\)", README):
        assert (ROOT / name).is_file(), name
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings]


def test_experiments_of_the_readme() -> None:
    table = README.partition("## Methods and tasks")[2].partition("\n## ")[0]
    named = re.findall(r"`([a-z0-9_]+)`", table)
    assert len(named) > 40 and not {name for name in named if not (ROOT / "experiments" / f"{name}.yaml").is_file()}


def test_ten_lines_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    """The README's program runs as it stands, forward and backward."""
    (program,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert len(program.strip().splitlines()) <= 11
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("torch.Size([1, 2, 384]) torch.Size([1, 2, 768])")
