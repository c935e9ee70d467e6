"""One folder a run, whatever logs it; one configuration a folder; results that a resumed run does not lose."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyExperiment
from stops import Data, build

from avprompt.callbacks import (
    ExactResume,
    InterruptCheckpoint,
    LastCheckpoint,
    RunReport,
    TaskCheckpoint,
    run_folder,
)
from avprompt.callbacks.run_folder import write_config
from avprompt.cli import run
from avprompt.errors import CheckpointError, ConfigError

FILES = {"config.yaml", "manifest.json", "result.json", "checkpoints"}
TENSORBOARD = "{class_path: TensorBoardLogger, init_args: {save_dir: %s, default_hp_metric: false}}"
CSV = "{class_path: CSVLogger, init_args: {save_dir: %s}}"
LOGGERS = {
    "tensorboard": TENSORBOARD,
    "csv": CSV,
    "both": f"[{TENSORBOARD}, {CSV}]",
    "none": "false",
    "wandb": "{class_path: WandbLogger, init_args: {project: quickstart, save_dir: %s, offline: true}}",
    "mlflow": "{class_path: MLFlowLogger, init_args: {experiment_name: ave, save_dir: %s}}",
}


def flags(root: Path, *more: str) -> list[str]:
    return [
        "--config",
        str(ROOT / "experiments" / "quickstart.yaml"),
        "--data.init_args.root",
        str(root),
        "--model.init_args.backbone.init_args.prompts",
        "avprompt.methods.NoPrompts",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.enable_model_summary",
        "false",
        "--trainer.max_epochs",
        "1",
        "--trainer.limit_train_batches",
        "1",
        "--trainer.limit_val_batches",
        "1",
        "--trainer.limit_predict_batches",
        "1",
        "--trainer.limit_test_batches",
        "1",
        *more,
    ]


def runs(out: Path) -> list[Path]:
    """Folders with anything of ours."""
    return sorted({path.parent for name in FILES for path in out.rglob(name)})


@pytest.mark.parametrize("name", LOGGERS)
def test_everything_in_one_folder(name: str, ave_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run has a folder with all that it leaves; one of predictions too."""
    service = (
        pytest.importorskip(name, reason="an optional logger that is not installed")
        if name in ("wandb", "mlflow")
        else None
    )
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    logger = [
        "--trainer.logger",
        LOGGERS[name].replace("%s", str(tmp_path / "out")),
        *(["--trainer.default_root_dir", str(tmp_path / "out")] if name == "none" else []),
    ]
    rates = (0.001, 0.002) if name in ("tensorboard", "wandb") else (0.001,)
    for rate in map(str, rates):
        run(["fit", *flags(ave_root, *logger, "--model.init_args.optimizer.init_args.lr", rate)])
        if name == "wandb":
            service.finish()  # which the end of a process does
    found = runs(tmp_path)
    assert len(found) == len(rates), found
    for folder, rate in zip(sorted(found, key=lambda path: path.stat().st_mtime), rates):
        assert {path.name for path in folder.iterdir()} >= FILES
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        for config in (
            yaml.safe_load((folder / "config.yaml").read_text()),
            json.loads((folder / "result.json").read_text())["config"],
        ):
            assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == rate
    if name in ("wandb", "mlflow"):
        assert_logged(name, tmp_path / "out")
    run(["predict", *flags(ave_root, *logger, "--ckpt_path", "best")])
    (folder,) = set(runs(tmp_path)) - set(found)
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "predictions.csv", "pictures", "result.json"}


def assert_logged(name: str, out: Path) -> None:
    """Curves, hyper-parameters and pictures have reached a service's own files, with no network."""
    if name == "mlflow":
        kept = {path.parent.name: {own.name for own in path.parent.iterdir()} for path in out.rglob("*.png")}
        assert any(place.startswith("validation") for place in kept), list(out.rglob("*"))
        params, metrics = (
            {own.name for place in out.rglob(kind) for own in place.iterdir()} for kind in ("params", "metrics")
        )
        assert "experiment" in params and any("val_accuracy" in one for one in metrics)
        return
    pictures = [path for path in out.rglob("*.png") if "media" in path.parts]
    assert pictures and list(out.rglob("*.wandb"))
    record = b"".join(path.read_bytes() for path in out.rglob("*.wandb"))
    assert b"val_accuracy" in record and b"parameters/trainable" in record


@pytest.mark.parametrize("name", ["csv", "wandb", "mlflow", "comet", "tensorboard"])
def test_fragments_of_loggers(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.suppress(SystemExit):
        run(["fit", "--config", "quickstart", "--trainer.logger", f"logger/{name}", "--print_config"])
    logger = yaml.safe_load(capsys.readouterr().out)["trainer"]["logger"]
    assert logger["class_path"].lower().endswith("groupedtensorboard" if name == "tensorboard" else f"{name}logger")


def test_logger_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avprompt.cli.lightning.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install mlflow-skinny"):
        run(["fit", "--config", "quickstart", "--trainer.logger", "logger/mlflow"])


class Foreign(Logger):
    """A logger with folders of its own kind, as services have it."""

    def __init__(self, root: Path, version: str) -> None:
        super().__init__()
        self.root, self.number = root, version

    name, save_dir = "service", property(lambda self: str(self.root))
    version, experiment = property(lambda self: self.number), property(lambda self: DummyExperiment())

    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        """Nothing."""

    def log_hyperparams(self, params: Any, *args: Any) -> None:
        """Nothing."""


def fit(
    root: Path, *more: Any, version: str = "a1", ckpt_path: Path | None = None, epochs: int = 2, **options: Any
) -> tuple[Trainer, Path]:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=Foreign(root, version),
        callbacks=[
            *more,
            ExactResume(),
            RunReport("toy", {"seed_everything": 0}),
            TaskCheckpoint(),
            LastCheckpoint(),
            InterruptCheckpoint(),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    data = Data()
    data.manifest, data.clips, data.find_corrupt = dict, dict, lambda: None
    trainer.fit(build(), data, ckpt_path=ckpt_path)
    return trainer, run_folder(trainer)


def test_another_loggers_folder(tmp_path: Path) -> None:
    _, first = fit(tmp_path)
    _, second = fit(tmp_path, version="b2")
    assert (first, second) == (tmp_path / "service" / "a1", tmp_path / "service" / "b2")
    assert all({path.name for path in folder.iterdir()} == FILES - {"config.yaml"} for folder in (first, second))


def test_best_value_is_the_tasks_own(tmp_path: Path) -> None:
    """Whatever other checkpoints are kept beside; they go to the run's folder too."""
    other = ModelCheckpoint(monitor="val_loss", mode="max", filename="worst")
    trainer, folder = fit(tmp_path, other)
    result = json.loads((folder / "result.json").read_text())["metrics"]
    own = next(callback for callback in trainer.callbacks if isinstance(callback, TaskCheckpoint))
    assert result["best_val_accuracy"] == pytest.approx(float(own.best_model_score))
    assert float(other.best_model_score) > 1
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "worst.ckpt"}


def test_resuming_a_finished_run_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """In its own folder the result stays; in another one it is as complete."""
    _, first = fit(tmp_path)
    before = (first / "result.json").read_bytes()
    last = first / "checkpoints" / "last.ckpt"
    fit(tmp_path, ckpt_path=last)
    assert (first / "result.json").read_bytes() == before and "nothing is left to train" in capsys.readouterr().out
    (first / "result.json").unlink()  # killed between its last checkpoint and its result
    fit(tmp_path, ckpt_path=last)
    _, second = fit(tmp_path, version="b2", ckpt_path=last)
    for folder in (first, second):
        found, expected = json.loads((folder / "result.json").read_text()), json.loads(before)
        assert found["metrics"].keys() == expected["metrics"].keys() and found["epochs"] == expected["epochs"] == 2
        for name, value in expected["metrics"].items():
            assert found["metrics"][name] == pytest.approx(value), name
        assert found["wall_s"] >= 0.5 * expected["wall_s"]
        assert (folder / "checkpoints" / "best.ckpt").is_file()


def test_seconds_add_up(tmp_path: Path) -> None:
    _, folder = fit(tmp_path, epochs=1)
    first = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["avprompt_report"]
    _, folder = fit(tmp_path, ckpt_path=folder / "checkpoints" / "last.ckpt")
    result = json.loads((folder / "result.json").read_text())
    assert result["wall_s"] > first["wall_s"] > 0 and result["peak_memory_bytes"] >= first["peak_memory_bytes"]


def test_one_configuration_a_folder(tmp_path: Path) -> None:
    write_config(tmp_path / "run", "{model: {lr: 1}, ckpt_path: null}", resuming=False)
    write_config(tmp_path / "run", "{model: {lr: 1}, ckpt_path: x.ckpt}", resuming=False)  # the same again
    for text, what in (("{model: {lr: 2}}", "model.lr"), ("{model: {lr: 1, more: 3}}", "model.more"), ("{}", "model")):
        with pytest.raises(ConfigError, match=f"another configuration, which differs in {what}"):
            write_config(tmp_path / "run", text, resuming=False)
    write_config(tmp_path / "run", "{model: {lr: 2}}", resuming=True)
    write_config(tmp_path / "run", "{model: {lr: 3}}", resuming=True)
    assert [
        yaml.safe_load((tmp_path / "run" / name).read_text())["model"]["lr"]
        for name in ("config.1.yaml", "config.2.yaml", "config.yaml")
    ] == [1, 2, 3]


def test_same_version_again(ave_root: Path, tmp_path: Path) -> None:
    """A fixed version with other settings: neither checkpoint nor configuration is touched, unless the run resumes."""
    own = flags(
        ave_root, "--trainer.logger.init_args.save_dir", str(tmp_path), "--trainer.logger.init_args.version", "mine"
    )
    run(["fit", *own])
    folder = tmp_path / "quickstart" / "mine"
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "events" not in path.name}
    other = ["--model.init_args.optimizer.init_args.lr", "0.02"]
    for command, more in (("fit", []), ("test", ["--ckpt_path", "none"])):
        with pytest.raises(ConfigError, match="differs in model.init_args.optimizer.init_args.lr"):
            run([command, *own, *other, *more])
    assert {path: path.read_bytes() for path in kept} == kept
    run(["fit", *own, *other, "--trainer.max_epochs", "2", "--ckpt_path", "last"])
    assert (
        yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["optimizer"]["init_args"]["lr"]
        == 0.02
    )
    assert (folder / "config.1.yaml").is_file() and json.loads((folder / "result.json").read_text())["epochs"] == 2


def test_last_and_best_are_found(ave_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = flags(ave_root, "--trainer.logger.init_args.save_dir", str(tmp_path))
    for which in ("last", "best"):
        for command in ("fit", "test"):
            with pytest.raises(CheckpointError, match=f"--ckpt_path: got {which}, and no run in .*quickstart has a"):
                run([command, *own, "--ckpt_path", which])
    assert not list(tmp_path.rglob("*.ckpt"))
    run(["fit", *own])
    run(["fit", *own])
    run(["test", *own, "--ckpt_path", "best"])
    folder = tmp_path / "quickstart"
    result = json.loads((folder / "version_2" / "result.json").read_text())
    assert result["config"]["ckpt_path"] == str(folder / "version_1" / "checkpoints" / "best.ckpt")
    shutil.copy(
        folder / "version_0" / "checkpoints" / "last.ckpt", folder / "version_0" / "checkpoints" / "interrupted.ckpt"
    )
    run(["fit", *own, "--trainer.max_epochs", "2", "--ckpt_path", "last"])
    result = json.loads((folder / "version_3" / "result.json").read_text())
    assert result["config"]["ckpt_path"].endswith("version_0/checkpoints/interrupted.ckpt") and result["epochs"] == 2
    assert (folder / "version_3" / "checkpoints" / "best.ckpt").is_file()


def test_csv_of_the_first_part_is_kept(ave_root: Path, tmp_path: Path) -> None:
    own = flags(ave_root, "--trainer.logger", CSV.replace("%s}", f"{tmp_path}, name: x, version: y}}"))
    run(["fit", *own])
    run(["fit", *own, "--trainer.max_epochs", "2", "--ckpt_path", "last"])
    folder = tmp_path / "x" / "y"
    first, second = (list(csv.DictReader((folder / name).open())) for name in ("metrics.1.csv", "metrics.csv"))
    assert any(line["val_accuracy"] for line in first) and {line["epoch"] for line in second} == {"1"}
