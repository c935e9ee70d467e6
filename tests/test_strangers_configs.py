"""A stranger's configuration builds classes where an argument declares one, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT

from avprompt.cli import run
from avprompt.cli.checks import declared_arguments, takes_a_class
from avprompt.errors import ConfigError

QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")


class Touch:
    """Leaves a file where it is built: a stand-in for what starts a process. The suite's own, so that no list forbids it."""

    def __init__(self, path: str) -> None:
        Path(path).touch()

    def __call__(self, *args: Any) -> None:
        """What `Callable` asks for."""


def touching(path: Path) -> dict[str, Any]:
    return {"class_path": "test_strangers_configs.Touch", "init_args": {"path": str(path)}}


def popen(path: Path) -> dict[str, Any]:
    return {"class_path": "subprocess.Popen", "init_args": {"args": f"touch {path}", "shell": True}}


BOARD = "avprompt.callbacks.GroupedTensorBoard"
#: place in a configuration -> what stands there, given what builds a file
PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "comment": lambda bad: {
        "trainer": {"logger": {"class_path": BOARD, "init_args": {"save_dir": "runs", "comment": bad}}}
    },
    "as text": lambda bad: {
        "trainer": {
            "logger": {
                "class_path": BOARD,
                "init_args": {
                    "save_dir": "runs",
                    "comment": yaml.safe_dump(bad, default_flow_style=True, width=10000).strip(),
                },
            }
        }
    },
    "in a list": lambda bad: {
        "trainer": {"logger": {"class_path": BOARD, "init_args": {"save_dir": "runs", "comment": [{"deep": bad}]}}}
    },
    "several loggers": lambda bad: {
        "trainer": {"logger": [{"class_path": BOARD, "init_args": {"save_dir": "runs", "comment": bad}}]}
    },
    "dict_kwargs": lambda bad: {
        "trainer": {"logger": {"class_path": BOARD, "init_args": {"save_dir": "runs"}, "dict_kwargs": {"comment": bad}}}
    },
    "dict_kwargs of others": lambda bad: {
        "trainer": {
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor", "dict_kwargs": {"more": bad}}
            ]
        }
    },
    "callable": lambda bad: {
        "trainer": {
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": bad}}
            ]
        }
    },
    "plain": lambda bad: {"trainer": {"max_time": bad}},
    "optimizer": lambda bad: {
        "model": {"init_args": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": bad}}}}
    },
    "method_losses": lambda bad: {"model": {"init_args": {"method_losses": {"balance": bad}}}},
    "data": lambda bad: {"data": {"init_args": {"root": bad}}},
    "seed": lambda bad: {"seed_everything": bad},
    "class of another type": lambda bad: {"trainer": {"logger": bad}},
    "model": lambda bad: {"model": bad},
}


@pytest.mark.parametrize("build", [touching, popen])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_built(place: str, build: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, proof = tmp_path / "stranger.yaml", tmp_path / "proof"
    file.write_text(yaml.safe_dump(PLACES[place](build(proof))))
    with pytest.raises((ConfigError, SystemExit)):
        run(
            [
                "fit",
                "--config",
                QUICKSTART,
                "--config",
                str(file),
                *([] if place == "data" else ["--data.root", str(tmp_path)]),
            ]
        )
    assert not proof.exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "visualize", "params", "stats"])
def test_no_command_builds_it(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, proof = tmp_path / "stranger.yaml", tmp_path / "proof"
    file.write_text(yaml.safe_dump(PLACES["comment"](touching(proof))))
    words = ["data", "stats"] if command == "stats" else [command]
    with pytest.raises(
        ConfigError,
        match="trainer.logger.init_args.comment: got class_path: test_strangers_configs.Touch; expected a plain value",
    ):
        run([*words, "--config", QUICKSTART, "--config", str(file)])
    assert not proof.exists()


def test_flags_are_configurations_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    proof = tmp_path / "proof"
    with pytest.raises((ConfigError, SystemExit)):
        run(["fit", "--config", QUICKSTART, "--trainer.logger.init_args.comment", yaml.safe_dump(touching(proof))])
    assert not proof.exists()


@pytest.mark.parametrize("slurm", ["{partition: %s}", "{partition: [%s]}", "%s"])
def test_sweeps_build_nothing_either(slurm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    proof, file = tmp_path / "proof", tmp_path / "grid.yaml"
    file.write_text(f"experiment: {QUICKSTART.removesuffix('.yaml')}\nmetric: test_accuracy\nvariants: {{all: []}}\n")
    spec = yaml.safe_dump(touching(proof), default_flow_style=True, width=10000).strip()
    with pytest.raises((ConfigError, SystemExit)):
        run(["sweep", str(file), "--slurm", slurm.replace("%s", spec)])
    assert not proof.exists()


def test_what_is_declared_is_built(tmp_path: Path) -> None:
    """Loggers with arguments of their own, callbacks, optimizers, encoders: every experiment is checked elsewhere."""
    file = tmp_path / "own.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "trainer": {
                    "logger": [
                        {
                            "class_path": BOARD,
                            "init_args": {"save_dir": "runs", "comment": "plain"},
                            "dict_kwargs": {"flush_secs": 7, "tags": ["a"]},
                        }
                    ],
                    "callbacks": [
                        {
                            "class_path": "lightning.pytorch.callbacks.EarlyStopping",
                            "init_args": {"monitor": "val_loss"},
                        }
                    ],
                }
            }
        )
    )
    run(["params", "--config", QUICKSTART, "--config", str(file)])


def test_types_that_declare_a_class() -> None:
    from lightning.pytorch import Trainer

    hints = declared_arguments(Trainer)
    assert {name for name, hint in hints.items() if takes_a_class(hint)} == {
        "accelerator",
        "strategy",
        "logger",
        "callbacks",
        "profiler",
        "plugins",
    }
    assert takes_a_class(Callable[..., torch.optim.Optimizer]) and not takes_a_class(Callable[..., Any])
    assert not any(
        takes_a_class(hint)
        for hint in (None, Any, object, str, Path, dict, dict[str, Any], list, Callable, int | None, tuple[float, ...])
    )
