"""Finished runs as files: result.json, the manifest beside it, and the training behind a test."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avprompt.configs import get_nested
from avprompt.errors import DatasetError
from avprompt.reports.outcomes import FILE, read_outcomes

if TYPE_CHECKING:
    import pandas as pd

#: tasks whose class has another name
TASKS = {"AVEClassic": "ave", "AVELinear": "ave", "AVQAGrounding": "avqa_grounding"}

#: what is shown of a training step, by its names in result.json
STEP = ("wall_s", "processor_s", "memory_bytes")


@dataclass
class Run:
    """One finished run.

    Args:
        folder: of its files.
        result: content of result.json.
        manifest: content of manifest.json, empty where there is none.
        trained: the run that trained the checkpoint of this one; `None` where it trained itself, or that is not known.

    Example:
        >>> run = Run(Path("runs/ave/version_0"), {"metrics": {"best_val_accuracy": 0.7, "val_loss": 1.0}}, {})
        >>> run.tested, run.metrics()
        (False, {'accuracy': 0.7})
    """

    folder: Path
    result: dict[str, Any]
    manifest: dict[str, Any]
    trained: Run | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that made the network: that of the run that trained it, where that is known."""
        return (self.trained or self).result["config"]

    @property
    def step(self) -> dict[str, float | None]:
        """What a training step took, see `avprompt.callbacks.StepMeter`; empty where that was not measured."""
        return self.result.get("step") or {}

    @property
    def dataset(self) -> str:
        """The dataset's published name, as the manifest has it, or else the class of its data module."""
        return self.manifest.get("dataset") or self.result["config"]["data"]["class_path"].rpartition(".")[2]

    @property
    def seed(self) -> Any:
        """That of the run that trained the network."""
        return (self.trained or self).result["seed"]

    @cached_property
    def outcomes(self) -> pd.DataFrame | None:
        """The table of its scored units; `None` where it has none.

        Raises:
            DatasetError: it is broken.
        """
        path = self.folder / FILE
        return read_outcomes(path) if path.is_file() else None

    @property
    def part(self) -> str:
        """The setting that made its evaluation a partial one, empty for a whole split."""
        given = self.result["config"].get("trainer") or {}
        names = ["limit_test_batches" if self.tested else "limit_val_batches", "fast_dev_run", "overfit_batches"]
        whole = (None, False, 0)
        # 1.0 is all batches, 1 is one batch
        return ", ".join(
            f"{name} {given[name]}"
            for name in names
            if not (given.get(name) in whole or (isinstance(given[name], float) and given[name] == 1))
        )

    @property
    def tested(self) -> bool:
        """Whether it holds figures of the test split."""
        return any(name.startswith("test_") for name in self.result["metrics"])

    def metrics(self) -> dict[str, float]:
        """Metrics without the name of their stage: of the test split, or else the best of the validation split."""
        prefix = "test_" if self.tested else "best_val_"
        return {
            name.removeprefix(prefix): value
            for name, value in self.result["metrics"].items()
            if name.startswith(prefix) and not name.endswith("_loss") and value is not None
        }


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Every finished run below the folders; a test knows the run that trained its checkpoint.

    Raises:
        DatasetError: there is none with metrics, or a result.json is not that of a run.
    """
    folders, runs = [Path(folder) for folder in folders], []
    for path in sorted({path.resolve(): path for folder in folders for path in folder.rglob("result.json")}.values()):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            result["metrics"], result["parameters"]["trainable"], result["config"]["model"]["class_path"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DatasetError(
                path,
                f"no result of a run ({error})",
                "a file that `avprompt fit` or `test` wrote",
                "Remove it or run again.",
            ) from error
        manifest = path.with_name("manifest.json")
        runs.append(
            Run(path.parent, result, json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {})
        )
    fits = [run for run in runs if any(name.startswith("train_") for name in run.result["metrics"])]
    for run in runs:
        checkpoint = run.result["config"].get("ckpt_path")
        if run.tested and checkpoint:
            origin = Path(checkpoint).parent.parent
            # folders may have been moved as a whole: then two names identify the run
            found = [fit for fit in fits if fit.folder.resolve() == origin.resolve()] or [
                fit
                for fit in fits
                if fit.folder.resolve().parts[-2:] == origin.parts[-2:]
                and fit.folder.resolve().parent.parent == run.folder.resolve().parent.parent
            ]
            run.trained = found[0] if len(found) == 1 else None
    if not any(run.metrics() for run in runs):
        raise DatasetError(
            ", ".join(map(str, folders)) or "folders",
            "no result.json with results",
            "folders of finished runs",
            "Run `avprompt fit` and `avprompt test` first.",
        )
    return runs


def read_results(folders: list[Path]) -> list[dict[str, Any]]:
    """One row for each metric of each run below the folders.

    Raises:
        DatasetError: there is none.
    """
    return [
        {
            "run": str(run.folder),
            "metric": name,
            "value": value,
            "trainable": run.result["parameters"]["trainable"],
            "total": run.result["parameters"]["total"],
            "seed": run.result["seed"],
            "epochs": run.result["epochs"],
            "seconds": run.result["wall_s"],
            **{f"step_{name}": (run.trained or run).step.get(name) for name in STEP},
        }
        for run in read_runs(folders)
        for name, value in run.result["metrics"].items()
        if name.startswith(("test_", "best_"))
    ]


def task_of(run: Run) -> str:
    """The task of a run, as names of our experiments begin: ave, avvp, avs_s4, fewshot_ave_class, zeroshot_ave ..."""
    name = run.config["model"]["class_path"].rpartition(".")[2]
    if name == "AVS":
        return f"avs_{get_nested(run.config, 'data.init_args.setting')}"
    if name != "Contrastive":
        return TASKS.get(name, name.lower())
    stage = "zeroshot" if untrained(run) else "fewshot" if shots_of(run) else "pretrain"
    level = "_class" if get_nested(run.config, "model.init_args.level") == "video" else ""
    return f"{stage}_{run.dataset.lower().replace('-', '')}{level}"


def shots_of(run: Run) -> int | None:
    """Number of training clips of each category; `None` for all of them, or for no training."""
    return None if untrained(run) else get_nested(run.config, "data.init_args.shots")


def untrained(run: Run) -> bool:
    """Whether the run tests a network without a checkpoint that was trained on these data."""
    return run.tested and run.trained is None and not run.result["config"].get("ckpt_path")
