"""The record of a run for people and for `avprompt compare`: parameter counts, hparams, manifest.json, result.json."""

from __future__ import annotations

import json
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
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from avprompt.callbacks.run_folder import run_folder
from avprompt.checkpoints import count_parameters
from avprompt.configs import flatten

PACKAGES = ("avprompt", "torch", "torchvision", "torchaudio", "lightning", "timm", "laion-clap",
            "open-clip-torch", "av", "numpy")


def git_revision() -> str | None:
    """Commit of the source tree, with `+` if it has changes; `None` outside of a checkout."""
    try:
        run = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=Path(__file__).parent, check=True,
                             capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Determine the run's folder, in every process."""
        run_folder(trainer)

    @rank_zero_only
    def _log_hparams(self, trainer: Trainer, pl_module: LightningModule, metrics: dict[str, float]) -> None:
        if run_folder(trainer) is None:
            return
        counts = {f"parameters/{name}": count for name, count in count_parameters(pl_module).items()}
        given = {"experiment": self.experiment, **flatten(self.config), **counts}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(given)
                # without the list of columns: TensorBoard takes it from one run for all runs
                for summary in hparams(given, metrics)[1:]:
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
            (folder / "manifest.json").write_text(json.dumps(data.manifest(), indent=1) + "\n", encoding="utf-8")
        cuda = torch.cuda.is_available() and pl_module.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
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
            "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads",
            "wall_s": round(time.monotonic() - self.begun, 2),
            "peak_memory_bytes": peak,
            "clips": data.clips() if data is not None else {},
            "epochs": trainer.current_epoch,
        }
        if pl_module.counts:
            result["counts"] = pl_module.counts
        (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the counts, and show the hparams in TensorBoard from the start."""
        counts = count_parameters(pl_module)
        share = 100 * counts["trainable"] / counts["total"]
        print(f"trainable params: {counts['trainable']:,} || all params: {counts['total']:,} || trainable%: {share:.4f}")
        self._log_hparams(trainer, pl_module, {})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results on the validation split: those of the last epoch, and the best by the monitor of the
        task."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        best = getattr(trainer.checkpoint_callback, "best_model_score", None)
        if best is not None:
            metrics[f"best_{pl_module.monitor}"] = float(best)
        self._write(trainer, pl_module, metrics)
        if pl_module.monitor in metrics:
            self._log_hparams(trainer, pl_module, {pl_module.monitor: metrics.get(
                f"best_{pl_module.monitor}", metrics[pl_module.monitor])})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results on the test split."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._write(trainer, pl_module, metrics)
        self._log_hparams(trainer, pl_module, metrics)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write which clips were predicted."""
        self._write(trainer, pl_module, {})
