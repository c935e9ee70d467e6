"""Two processes on one machine, by gloo: every command of every task, the same figures as one process, and failures."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torchmetrics import Metric
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from avprompt import metrics
from avprompt.cli import run
from avprompt.errors import ConfigError
from avprompt.metrics.avqa import TYPES
from avprompt.processes import check_strategy
from avprompt.reports.outcomes import clip_scores, metric_columns, read_outcomes

EXPERIMENTS = ROOT / "experiments"
#: experiment of each task -> fixture of its dataset
TASKS = {
    "quickstart": "ave_root",
    "ave_avstfp_quickstart": "ave_root",
    "avvp_quickstart": "llp_root",
    "avs_s4_quickstart": "avs_roots",
    "avs_ms3_quickstart": "avs_roots",
    "avqa_quickstart": "avqa_root",
    "avar_avstfp_quickstart": "ks_root",
    "fewshot_ave_quickstart": "ave_root",
}
#: whose commands run; S4 and MS3 are one task
RUN = [name for name in TASKS if name != "avs_s4_quickstart"]
pytestmark = pytest.mark.filterwarnings("ignore:parsing runs without")


def start(mode: str, folder: Path, world: int) -> list[subprocess.Popen]:
    """Start the processes, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("two_processes.py")), mode, str(folder)],
            env={**os.environ, **places, "LOCAL_RANK": str(rank), "RANK": str(rank)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def finish(processes: list[subprocess.Popen], seconds: float = 1800) -> list[tuple[int, str]]:
    """Exit code and output of each; all are dead afterwards."""
    end = time.monotonic() + seconds
    try:
        outputs = [process.communicate(timeout=max(end - time.monotonic(), 0.1))[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs)]


def together(mode: str, folder: Path, world: int = 2, content: dict | None = None) -> None:
    """Run a mode of two_processes.py, which must succeed everywhere."""
    if content is not None:
        (folder / "commands.json").write_text(json.dumps(content))
    for rank, (code, output) in enumerate(finish(start(mode, folder, world))):
        assert code == 0, f"process {rank}: {output[-6000:]}"


def flags(name: str, request: pytest.FixtureRequest) -> list[str]:
    root = request.getfixturevalue(TASKS[name])
    root = root["s4" if "s4" in name else "ms3"] if isinstance(root, dict) else root
    return [
        "--config",
        str(EXPERIMENTS / f"{name}.yaml"),
        "--data.init_args.root",
        str(root),
        "--data.init_args.eval_batch_size",
        "3",
        *(["--model.dropout", "0"] if name == "ave_avstfp_quickstart" else []),
    ]  # trains the same on 1 and 2


def command(name: str, args: list[str], folder: Path, version: str, processes: int) -> list[str]:
    """A command line on one or two processes, TensorBoard on."""
    few = ["--trainer.callbacks", "[{class_path: avprompt.callbacks.PredictionWriter, init_args: {max_pictures: 4}}]"]
    logger = "--trainer.logger.init_args"
    return [
        name,
        *args,
        f"{logger}.save_dir",
        str(folder),
        f"{logger}.version",
        version,
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.enable_model_summary",
        "false",
        "--trainer.devices",
        str(processes),
        "--trainer.strategy",
        "ddp" if processes > 1 else "auto",
        *(few if name == "visualize" else []),
    ]


def files(folder: Path) -> set[str]:
    """What a run left, but for events and hparams, whose names and contents tell the time."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(("events", "hparams"))
    }


def result(folder: Path) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every command of every task by two processes, one pair of which runs them all."""
    folder = tmp_path_factory.mktemp("two")
    lines = {}
    for name in RUN:
        ours, ckpt = flags(name, request), ["--ckpt_path", str(folder / name / "fit" / "checkpoints" / "last.ckpt")]
        lines[f"{name} fit"] = command(
            "fit",
            [
                *ours,
                "--data.init_args.batch_size",
                "2",
                "--trainer.limit_train_batches",
                "2",
                "--trainer.max_epochs",
                "1",
                "--trainer.num_sanity_val_steps",
                "0",
                "--trainer.callbacks",
                "[avprompt.callbacks.ValidationPictures]",
            ],
            folder,
            "fit",
            2,
        )
        for stage in ("test", "visualize", *(["validate"] if name == "quickstart" else [])):
            lines[f"{name} {stage}"] = command(stage, [*ours, *ckpt], folder, stage, 2)
    together("commands", folder, content=lines)
    print(json.loads((folder / "seconds.0.json").read_text()))
    return folder


@pytest.mark.parametrize("name", RUN)
def test_every_command_gives_the_figures_of_one_process(
    name: str, runs: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Sets do not divide: 8 or 5 clips in batches of 3 by two processes."""
    two, ckpt = runs / name, ["--ckpt_path", str(runs / name / "fit" / "checkpoints" / "last.ckpt")]
    assert {"checkpoints/last.ckpt", "checkpoints/best.ckpt", "result.json", "manifest.json", "config.yaml"} <= files(
        two / "fit"
    )
    for stage in ("test", "visualize"):
        run(command(stage, [*flags(name, request), *ckpt], tmp_path, stage, 1))
        one = tmp_path / name / stage
        assert files(one) == files(two / stage)
        metrics, others = (dict(result(folder / stage)) for folder in (one.parent, two))
        losses = [found.pop("test_loss", 0.0) for found in (metrics, others)]
        assert metrics == others and losses[0] == pytest.approx(losses[1], rel=1e-6)
        if stage == "test":  # written once, in the dataset's order; the metrics follow from it
            assert (one / "outcomes.csv").read_bytes() == (two / stage / "outcomes.csv").read_bytes()
            outcomes = read_outcomes(one / "outcomes.csv")
            assert {f"test_{metric}" for metric in metric_columns(outcomes)} == set(metrics)
            for metric in metric_columns(outcomes):
                assert clip_scores(outcomes, metric).value == pytest.approx(metrics[f"test_{metric}"], abs=1e-6)
    for table in ("predictions.csv",):
        assert (one / table).read_bytes() == (two / "visualize" / table).read_bytes()
    with (one / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) >= 5


def test_training_and_resuming_with_one_process(runs: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """One process trains like two with halves of its batch; it resumes their checkpoint, and says what changes."""
    name = "ave_avstfp_quickstart"
    ours = [
        *flags(name, request),
        "--data.init_args.batch_size",
        "4",
        "--trainer.limit_train_batches",
        "2",
        "--trainer.num_sanity_val_steps",
        "0",
        "--trainer.max_epochs",
    ]
    run(command("fit", [*ours, "1"], tmp_path, "fit", 1))
    one, two = (result(folder / name / "fit") for folder in (tmp_path, runs))
    assert one.keys() == two.keys() >= {"train_loss_epoch", "train_segment"}
    assert not {key: (value, two[key]) for key, value in one.items() if value != pytest.approx(two[key], rel=1e-4)}
    last = runs / name / "fit" / "checkpoints" / "last.ckpt"
    with pytest.warns(UserWarning, match=r"random states of 2 process\(es\), now there are 1"):
        run(command("fit", [*ours, "2", "--ckpt_path", str(last)], tmp_path, "on", 1))
    assert json.loads((tmp_path / name / "on" / "result.json").read_text())["epochs"] == 2


# --- the same loss and gradients

#: more of the objective, where a task has several
VARIANTS = {
    "fewshot_ave_quickstart": ["--model.init_args.objective", "paper"],
    "avs_s4_quickstart": ["--model.init_args.matching", "0.5"],
}


def test_losses_and_gradients_are_those_of_one_process(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A batch of four, and two of two: relative differences. Without gathering, contrastive losses and sums differ."""
    size = ["--data.init_args.batch_size", "4"]
    lines = {name: [*flags(name, request), *size] for name in TASKS}
    lines |= {f"{name}+": [*lines[name], *more] for name, more in VARIANTS.items()}
    together("gradients", tmp_path, content=lines)
    found = json.loads((tmp_path / "gradients.0.json").read_text())
    print(json.dumps(found, indent=1))
    for name, own in found.items():
        assert max(own["True"]) < 2e-6, (name, own)  # float32: a product of four rows is not that of two and two
    for name in ("fewshot_ave_quickstart", "fewshot_ave_quickstart+", "avs_ms3_quickstart"):
        assert found[name]["False"][1] > 1e-2, (name, found[name])
    for rank in range(2):
        finite, suspects, broken = json.loads((tmp_path / f"nan.{rank}.json").read_text())
        assert not finite and suspects == broken


# --- metrics


def cases() -> dict[str, tuple[Metric, tuple, int]]:
    """Every metric, its inputs for 23 clips, and a batch size that does not divide them."""
    draw = torch.Generator().manual_seed(3)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw)

    events = (uniform(23, 10) - 0.5, uniform(23, 6), torch.eye(7)[(7 * uniform(23, 10)).long()])
    probabilities = (uniform(23, 10, 5), uniform(23, 10, 5), uniform(23, 5))
    targets = ((uniform(23, 10, 5) < 0.4).float(), (uniform(23, 10, 5) < 0.4).float())
    masks = (uniform(23, 8, 8) < uniform(23, 1, 1)).float() * (uniform(23, 1, 1) < 0.8)
    scores = (uniform(23, 8, 8) - 0.5, masks)
    answers = (uniform(23, 9), (9 * uniform(23)).long(), [TYPES[place] for place in (9 * uniform(23)).long()])
    labels = (uniform(23, 6), (6 * uniform(23)).long())
    return {
        "ave": (metrics.AVEAccuracy(), events, 4),
        "ave released": (metrics.AVEAccuracy("released"), events, 4),
        "avvp": (metrics.AVVPFScore(), (*probabilities, *targets), 4),
        "miou": (metrics.AVSJaccard(), scores, 4),
        "fscore": (metrics.AVSFScore(), scores, 4),
        "fscore released": (metrics.AVSFScore("released", 5), scores, 4),
        "avqa": (metrics.AVQAAccuracy(), answers, 4),
        "mean": (MeanMetric(), ((uniform(23) < 0.3).float(),), 4),
        "top1": (MulticlassAccuracy(6, average="micro"), labels, 4),
        "top5": (MulticlassAccuracy(6, top_k=5, average="micro"), labels, 4),
    }


def test_metrics_are_those_of_one_process(tmp_path: Path) -> None:
    """Exactly, in every process, for two and for three of them."""
    assert {type(metric) for metric, _, _ in cases().values()} >= {getattr(metrics, name) for name in metrics.__all__}
    together("metrics", tmp_path, 3)
    for world in (2, 3):
        found = [json.loads((tmp_path / f"metrics.{world}.{rank}.json").read_text()) for rank in range(world)]
        for name, (metric, inputs, batch_size) in cases().items():
            for first in range(0, 23, batch_size):
                metric.update(*(part[first : first + batch_size] for part in inputs))
            value = metric.compute()
            assert all(own[name] == (value if isinstance(value, dict) else float(value)) for own in found), name


# --- failures


@pytest.mark.parametrize(
    ("broken", "code", "message"),
    [
        ("decode1", 2, "ClipDecodeError: twenty.mp4: got nothing"),
        ("decode0", 2, "ClipDecodeError: twenty.mp4: got nothing"),
        ("memory1", 1, ""),
    ],
)
def test_a_failure_of_one_process_ends_all(broken: str, code: int, message: str, tmp_path: Path) -> None:
    """Within seconds, with its message in the first process; where training has begun there is a checkpoint."""
    (tmp_path / "broken").write_text(broken)
    processes = start("failure", tmp_path, 2)
    first = int(broken[-1])
    processes[first].wait(120)
    begun = time.monotonic()
    found = finish(processes, 20)
    assert time.monotonic() - begun < 15
    codes = [own for own, _ in found]
    assert codes == ([code, code] if message else [1, -9]), found
    assert message in found[0][1]
    if message:
        assert list(tmp_path.rglob("interrupted.ckpt")), found
        assert "Connection closed" not in found[0][1]


def test_strategies_that_split_a_network_are_refused(tmp_path: Path) -> None:
    for strategy in ("fsdp", "deepspeed_stage_2", "lightning.pytorch.strategies.FSDPStrategy", "ddp_spawn"):
        with pytest.raises(ConfigError, match="trainer.strategy"):
            check_strategy(strategy)
    for strategy in ("auto", "ddp", "lightning.pytorch.strategies.DDPStrategy", None):
        check_strategy(strategy)
    with pytest.raises(ConfigError, match="trainer.strategy: got fsdp"):
        run(
            [
                "fit",
                "--config",
                str(EXPERIMENTS / "quickstart.yaml"),
                "--data.init_args.root",
                str(tmp_path / "none"),
                "--trainer.strategy",
                "fsdp",
            ]
        )
