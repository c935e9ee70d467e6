"""The checkpoints of a run: `best.ckpt`, `last.ckpt` and `interrupted.ckpt`, and how they are written."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from avprompt.callbacks.resume import ExactResume
from avprompt.callbacks.run_folder import run_folder
from avprompt.checkpoints import epoch_is_whole, read_checkpoint, write_checkpoint
from avprompt.errors import CheckpointError, ConfigError, NonFiniteLossError, WriteError
from avprompt.files import write_whole
from avprompt.processes import Stopped, together
from avprompt.signals import requeue


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints as a whole and waits until they are on the disk; reading them runs no code.

    If there is no room, `save_checkpoint` raises `WriteError`, and an existing checkpoint of that name stays unchanged.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write in one step."""
        write_checkpoint(path, checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read, see `avprompt.checkpoints.read_checkpoint`."""
        return read_checkpoint(path)


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint in the run's folder after each validation inside an epoch and at the end of every epoch.

    Args:
        name: of the file, without ending.
    """

    def __init__(self, name: str) -> None:
        super().__init__(filename=name, enable_version_counter=False, save_on_train_epoch_end=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder, and have checkpoints written as `WholeFiles`."""
        folder = run_folder(trainer)
        self.dirpath = None if folder is None else str(folder / "checkpoints")
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFiles()
        with warnings.catch_warnings():  # a run that resumes in its own folder finds its checkpoints there
            warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless the epoch ends here: then its end does."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not epoch_is_whole(trainer):
            self._save_on_train_epoch_end = False
            try:
                super().on_validation_end(trainer, pl_module)
            finally:
                self._save_on_train_epoch_end = True


class TaskCheckpoint(RunCheckpoint):
    """`checkpoints/best.ckpt` by the task's own `monitor` and `mode`.

    A run that resumes in another folder copies the best checkpoint so far and its score.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Task(BoringModel):
        ...     monitor, mode = "val_accuracy", "max"  # as every task has them
        ...     def on_validation_epoch_end(self):
        ...         self.log("val_accuracy", 0.5)
        >>> best = TaskCheckpoint()
        >>> trainer = Trainer(accelerator="cpu", default_root_dir=tempfile.mkdtemp(), logger=False, max_epochs=1,
        ...                   limit_train_batches=1, limit_val_batches=1, enable_progress_bar=False,
        ...                   enable_model_summary=False, callbacks=[best])
        >>> trainer.fit(Task())
        >>> Path(best.best_model_path).name, float(best.best_model_score)
        ('best.ckpt', 0.5)
    """

    def __init__(self) -> None:
        super().__init__("best")
        self.carried: Path | None = None
        self.resumed_from: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the monitored metric from the task."""
        self.monitor, self.mode = pl_module.monitor, pl_module.mode
        self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        self.fitting = stage == "fit"
        super().setup(trainer, pl_module, stage)

    @property
    def state_key(self) -> str:
        """Key of the score in a checkpoint, the same for every task."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """The score and the path of the file."""
        return {"monitor": self.monitor, "score": self.best_model_score, "path": self.best_model_path}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the checkpoint from which the run resumes."""
        self.resumed_from = Path(trainer.ckpt_path) if trainer.ckpt_path else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best checkpoint over, from beside the checkpoint that the run resumes from if it has been moved."""
        score = state_dict["score"]
        if not self.fitting or score is None or self.dirpath is None or state_dict["monitor"] != self.monitor:
            return
        ours = Path(self.dirpath) / "best.ckpt"
        places = [Path(state_dict["path"]), *([self.resumed_from.with_name("best.ckpt")] if self.resumed_from else [])]
        found = next((path for path in places if self._is_best(path, score)), None)
        if found is None:
            warnings.warn(
                f"the best checkpoint so far, {self.monitor} {float(score):.4f}, is not at {places[0]} any "
                "more: the selection starts again",
                stacklevel=2,
            )
            return
        self.carried = None if found.absolute() == ours.absolute() else found
        self.best_model_path = self.kth_best_model_path = str(ours)
        self.best_model_score = self.kth_value = score
        self.best_k_models = {str(ours): score}

    def _is_best(self, path: Path, score: torch.Tensor) -> bool:
        try:
            saved = read_checkpoint(path)["callbacks"][self.state_key]["score"]
        except (CheckpointError, KeyError):
            return False
        return torch.equal(torch.as_tensor(saved).cpu(), score.cpu())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the best checkpoint so far from the folder of the resumed run."""
        if self.carried is not None and trainer.is_global_zero:
            write_whole(Path(self.best_model_path), self.carried.read_bytes())
        self.carried = None


class LastCheckpoint(RunCheckpoint):
    """`checkpoints/last.ckpt` (Lightning's `save_last` skips epochs that are not the best so far).

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> trainer = Trainer(accelerator="cpu", default_root_dir=tempfile.mkdtemp(), logger=False, max_steps=1,
        ...                   enable_progress_bar=False, enable_model_summary=False, callbacks=[LastCheckpoint()])
        >>> trainer.fit(BoringModel())
        >>> [path.name for path in (run_folder(trainer) / "checkpoints").iterdir()]
        ['last.ckpt']
    """

    def __init__(self) -> None:
        super().__init__("last")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing: the next checkpoint is written to this run's folder."""


def steps_are_done(trainer: Trainer) -> bool:
    """Whether `max_steps` is reached."""
    return 0 <= trainer.max_steps <= trainer.global_step


class InterruptCheckpoint(Callback):
    """Stops a run at Ctrl-C or SIGTERM after the current step, with the checkpoint `checkpoints/interrupted.ckpt`.

    The checkpoint is exact, because `ExactResume`, which must be among the callbacks, saves the position of training. A
    running validation is cut off and repeated on resuming. A second signal ends the run at once, without a checkpoint.
    After an error there is a checkpoint too: the step in which the error occurred is repeated on resuming.

    With several processes a signal to any of them stops all after the same step, and validations are not cut off.

    In a SLURM job the signal of `SLURMEnvironment(auto_requeue=True)`, SIGUSR1, stops in the same way, and the job is
    queued again. Lightning's own requeueing is switched off: it saves in the middle of a step, into a folder that all
    runs of an experiment share, and the next run of the experiment would go on from there.

    Lightning's `OnExceptionCheckpoint` is not used, because with it a later `fit` resumes from the newest checkpoint
    without being asked to.

    Example:
        >>> import contextlib
        >>> import tempfile
        >>> from lightning.pytorch.callbacks import LambdaCallback
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> kill = LambdaCallback(on_train_batch_end=lambda *_: signal.raise_signal(signal.SIGTERM))
        >>> trainer = Trainer(accelerator="cpu", default_root_dir=tempfile.mkdtemp(), logger=False, max_steps=9,
        ...                   enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        ...                   callbacks=[ExactResume(), InterruptCheckpoint(), kill])
        >>> with contextlib.suppress(SystemExit):
        ...     trainer.fit(BoringModel())
        SIGTERM after step 1, of which nothing is lost; go on with --ckpt_path .../checkpoints/interrupted.ckpt
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.requeue_signal: int | None = None
        self.agreed = self.at_once = False
        self.before: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset the state of an earlier run.

        Raises:
            ConfigError: there is no `ExactResume`.
        """
        self.signal, self.agreed, self.at_once = None, False, False
        if self._resume(trainer) is None:
            raise ConfigError(
                "trainer.callbacks", "InterruptCheckpoint alone", "avprompt.callbacks.ExactResume beside it", "Add it."
            )
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self.requeue_signal, environment.auto_requeue = environment.requeue_signal, False
        run_folder(trainer)

    @staticmethod
    def _resume(trainer: Trainer) -> ExactResume | None:
        return next((callback for callback in trainer.callbacks if isinstance(callback, ExactResume)), None)

    # --- signals

    def _listen(self, handler: Any) -> None:
        if not self.before and threading.current_thread() is threading.main_thread():
            numbers = [number for number in (signal.SIGINT, signal.SIGTERM, self.requeue_signal) if number is not None]
            self.before = {
                number: signal.signal(number, handler)
                for number in numbers
                if signal.getsignal(number) != signal.SIG_IGN
            }  # a shell's `&` ignores Ctrl-C

    def _after_the_step(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            self._now(number, frame)
        self.signal = number
        os.write(2, b"\nStopping after the current step. A second signal stops at once, without a checkpoint.\n")

    def _now(self, number: int, frame: FrameType | None) -> NoReturn:
        self.at_once = True
        raise Stopped(number)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers, unless the trainer, which restores what it found before ours, already has."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.before.items():
                if signal.getsignal(number) in (self._after_the_step, self._now):
                    signal.signal(number, handler)
        self.before = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers."""
        self._listen(self._after_the_step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers."""
        self._listen(self._after_the_step)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers: there is nothing to resume, so that a signal ends the run at once."""
        self._listen(self._now)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for tests."""
        self._listen(self._now)

    # --- where training may stop

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let processes agree to stop."""
        self._agree(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let processes agree to stop."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._agree(trainer)

    def _agree(self, trainer: Trainer) -> None:
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False):
            self.agreed = True

    def _stop_here(self, trainer: Trainer) -> None:
        wanted = self.agreed or (trainer.world_size == 1 and self.signal is not None)
        if wanted and not steps_are_done(trainer):  # a resumed run would not come to what is left, the last validation
            raise Stopped(self.signal or signal.SIGTERM, agreed=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before an epoch."""
        self._stop_here(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop before a step."""
        self._stop_here(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before a validation; outside of training, install the signal handlers."""
        if trainer.state.fn == "fit":
            self._stop_here(trainer)
        else:
            self._listen(self._now)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop inside a validation; the number of batches may differ between processes, so only where there is one."""
        if trainer.state.fn == "fit" and trainer.world_size == 1:
            self._stop_here(trainer)

    # --- the checkpoint

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save a checkpoint if training has begun, and print how to resume, or queue a SLURM job again."""
        self._save(trainer, pl_module, exception)
        if (
            trainer.state.fn == "fit"
            and isinstance(exception, Stopped)
            and trainer.is_global_zero
            and self.signal is not None
            and self.signal == self.requeue_signal
        ):
            print(requeue(), flush=True)

    def _save(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        resume, folder = self._resume(trainer), run_folder(trainer)
        if trainer.state.fn != "fit" or resume is None or resume.boundary is None or folder is None:
            return
        stopped = exception if isinstance(exception, Stopped) else None
        step: int | None = resume.boundary.step
        if isinstance(exception, NonFiniteLossError) and pl_module.guard.ahead(pl_module.device):
            step = None  # a step later, when batch norms may have counted what is not finite
        what = signal.Signals(stopped.number).name if stopped is not None else type(exception).__name__
        path = folder / "checkpoints" / "interrupted.ckpt"
        if not (stopped is not None and stopped.agreed) and not together.claim():
            return  # of several processes the first that fails saves, alone
        if self.at_once or step != trainer.global_step or (steps_are_done(trainer) and not resume.boundary.over):
            print(
                f"{what}: no interrupted.ckpt; resume from the previous checkpoint with "
                f"--ckpt_path {path.with_name('last.ckpt')}"
            )
            return
        try:
            if stopped:
                trainer.save_checkpoint(path)
            else:  # that would wait for processes that may never come
                content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
                trainer.strategy.checkpoint_io.save_checkpoint(content, path)
        except WriteError as error:
            print(f"{what}, and no interrupted.ckpt: {error}")
            return
        if not stopped or trainer.is_global_zero:
            print(f"{what} after step {step}, of which nothing is lost; go on with --ckpt_path {path}")
