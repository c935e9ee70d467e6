"""The record of a run for people and for `avprompt compare`: parameter counts, hparams, manifest.json, result.json."""

from __future__ import annotations

import math
import platform
import resource
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from avprompt.board import tags
from avprompt.callbacks.checkpointing import TaskCheckpoint
from avprompt.callbacks.grouped_tensorboard import GroupedTensorBoard
from avprompt.callbacks.run_folder import run_folder
from avprompt.callbacks.steps import StepMeter
from avprompt.checkpoints import count_parameters
from avprompt.configs import flatten, get_nested
from avprompt.files import write_json

#: key of our part of a checkpoint
RECORD = "avprompt_report"

PACKAGES = (
    "avprompt",
    "torch",
    "torchvision",
    "torchaudio",
    "lightning",
    "timm",
    "laion-clap",
    "open-clip-torch",
    "av",
    "numpy",
)


def git_revision() -> str | None:
    """Commit of the source tree, with `+` if it has changes; `None` outside of a checkout."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


#: settings that say where and how a run goes, not what is trained
NOISE = (
    "ckpt_path",
    "verbose",
    "weights_only",
    "return_predictions",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.default_root_dir",
    "trainer.enable_",
    "trainer.log_every_n_steps",
    "trainer.use_distributed_sampler",
    "data.init_args.root",
    "data.init_args.predict_root",
    "data.init_args.num_workers",
    "data.init_args.pin_memory",
    "data.init_args.max_",
)


def short_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings for a table of hyper-parameters: without noise and what is not set, classes by their own names.

    Example:
        >>> short_settings({"ckpt_path": None, "model": {"class_path": "avprompt.tasks.AVE",
        ...                 "init_args": {"modality": "both", "prompt_lr": None}}})
        {'model': 'AVE', 'model.modality': 'both'}
    """
    found = {}
    for name, value in flatten(config).items():
        if get_nested(config, name) in (None, [], {}) or name.startswith(NOISE):
            continue
        if name.rpartition(".")[2] == "class_path":
            value = str(value).rpartition(".")[2]
        found[name.removesuffix(".class_path").replace(".init_args", "")] = value
    return found


class RunReport(Callback):
    """Prints parameter counts, writes manifest.json and result.json, and gives TensorBoard hparams and result.

    Args:
        experiment: name of the experiment.
        config: the parsed configuration as nested plain data.

    Example:
        >>> RunReport("ave_dgsct", {"seed_everything": 0}).experiment
        'ave_dgsct'
    """

    def __init__(self, experiment: str, config: dict[str, Any]) -> None:
        self.experiment, self.config = experiment, config
        self.begun = time.monotonic()
        self.trained = False
        self.before: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Determine the run's folder, in every process; checkpoints of any kind go there."""
        folder, self.trained, self.before = run_folder(trainer), False, {}
        for callback in trainer.checkpoint_callbacks:
            if folder is not None and isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder / "checkpoints")
        for logger in trainer.loggers:
            if isinstance(logger, GroupedTensorBoard):
                logger.monitor = pl_module.monitor

    # --- what a run that goes on has to know of its first part

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the metrics so far, and the seconds and memory that they took."""
        checkpoint[RECORD] = {"metrics": self._metrics(trainer), **self._effort(trainer, pl_module)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        if trainer.state.fn == "fit":
            self.before = checkpoint.get(RECORD, {})

    def _metrics(self, trainer: Trainer) -> dict[str, float]:
        now = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return {**self.before.get("metrics", {}), **now}

    def _effort(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        cuda = torch.cuda.is_available() and pl_module.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        meter = next((callback for callback in trainer.callbacks if isinstance(callback, StepMeter)), None)
        effort = {}
        if meter is not None and trainer.state.fn == "fit":
            peak, earlier = max(peak, meter.before), self.before.get("step", {})
            effort["step"] = {name: value or earlier.get(name, value) for name, value in meter.measured.items()}
        return {
            "wall_s": round(time.monotonic() - self.begun + self.before.get("wall_s", 0.0), 2),
            "peak_memory_bytes": max(peak, self.before.get("peak_memory_bytes", 0)),
            **effort,
        }

    @rank_zero_only
    def _log_hparams(self, trainer: Trainer, pl_module: LightningModule, metrics: dict[str, float]) -> None:
        if run_folder(trainer) is None:
            return
        counts = {f"parameters/{name}": count for name, count in count_parameters(pl_module).items()}
        given = {"experiment": self.experiment, **flatten(self.config), **counts}
        shown = {
            "experiment": self.experiment,
            **short_settings(self.config),
            "parameters/trainable": counts["parameters/trainable"],
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(given)
                if not metrics:  # a run that fails before it has a result has no line in the table
                    continue
                columns = {tags(name, pl_module.monitor)[-1]: value for name, value in metrics.items()}
                # without the list of columns: TensorBoard takes it from one run for all runs
                for summary in hparams(shown, columns)[1:]:
                    logger.experiment.file_writer.add_summary(summary)
                logger.log_metrics(metrics, pl_module.global_step)
            else:
                logger.log_hyperparams(given)
            logger.save()

    def _write(self, trainer: Trainer, pl_module: LightningModule, metrics: dict[str, float]) -> None:
        folder = run_folder(trainer)
        if folder is None:
            return
        if trainer.datamodule is not None:
            trainer.datamodule.find_corrupt()
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        data = trainer.datamodule
        if data is not None:
            write_json(folder / "manifest.json", data.manifest())
        cuda = torch.cuda.is_available() and pl_module.device.type == "cuda"
        result = {
            "experiment": self.experiment,
            "task": type(pl_module).__name__,
            "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
            "monitor": pl_module.monitor,
            "parameters": count_parameters(pl_module),
            "seed": self.config.get("seed_everything"),
            "config": self.config,
            "git": git_revision(),
            "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
            "device": (
                torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"
            ),
            **self._effort(trainer, pl_module),
            "clips": data.clips() if data is not None else {},
            "epochs": trainer.current_epoch,
        }
        if pl_module.counts:
            result["counts"] = pl_module.counts
        write_json(folder / "result.json", result)

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the counts, and give the hyper-parameters to the loggers."""
        counts = count_parameters(pl_module)
        share = 100 * counts["trainable"] / counts["total"]
        print(
            f"trainable params: {counts['trainable']:,} || all params: {counts['total']:,} || trainable%: {share:.4f}"
        )
        self._log_hparams(trainer, pl_module, {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is something to train."""
        self.trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results on the validation split: those of the last epoch, and the best by the monitor of the
        task."""
        if not self.trained:
            if trainer.is_global_zero:
                print(
                    "nothing is left to train: the run that this one goes on from is finished. A larger "
                    "trainer.max_epochs or trainer.max_steps goes on"
                )
            if not self.before or (run_folder(trainer) is not None and (run_folder(trainer) / "result.json").is_file()):
                return  # which says more
        metrics = self._metrics(trainer)
        best = next(
            (callback.best_model_score for callback in trainer.callbacks if isinstance(callback, TaskCheckpoint)), None
        )
        if best is not None:
            metrics[f"best_{pl_module.monitor}"] = float(best)
        self._write(trainer, pl_module, metrics)
        if pl_module.monitor in metrics:
            self._log_hparams(
                trainer,
                pl_module,
                {f"best_{pl_module.monitor}": metrics.get(f"best_{pl_module.monitor}", metrics[pl_module.monitor])},
            )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results on the test split."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._write(trainer, pl_module, metrics)
        self._log_hparams(trainer, pl_module, metrics)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write which clips were predicted."""
        self._write(trainer, pl_module, {})
