"""The one folder of a run: configuration, manifest, checkpoints, results, predictions and pictures go there."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import yaml
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from avprompt.errors import CheckpointError, ConfigError
from avprompt.files import write_whole

_FOUND: WeakKeyDictionary[Trainer, Path | None] = WeakKeyDictionary()


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of a trainer's run, the same in every process; `None` under `fast_dev_run`, which writes nothing.

    It is the first logger's: `log_dir` of TensorBoard and CSV, `save_dir/name/version` of others. Without a logger it
    is the first `version_<n>` in `default_root_dir` that does not exist yet.

    The first process determines it at the first call and sends it to the others, so that all processes must make this
    call: a callback that needs the folder calls this in `setup`, which every process runs. Later calls return the same
    folder and may come from one process alone.

    Example:
        >>> import tempfile
        >>> root = tempfile.mkdtemp()
        >>> trainer = Trainer(logger=False, default_root_dir=root, accelerator="cpu", enable_progress_bar=False)
        >>> run_folder(trainer).relative_to(root).name, run_folder(trainer).name
        ('version_0', 'version_0')
    """
    if trainer not in _FOUND:
        _FOUND[trainer] = trainer.strategy.broadcast(_determine(trainer) if trainer.is_global_zero else None)
    return _FOUND[trainer]


def _determine(trainer: Trainer) -> Path | None:
    if trainer.fast_dev_run:
        return None
    root = Path(trainer.default_root_dir)
    if not trainer.loggers:
        return _fresh(root)
    logger = trainer.loggers[0]
    if isinstance(logger, (TensorBoardLogger, CSVLogger)):
        return Path(logger.log_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version or 0}"
    return Path(logger.save_dir or root) / str(logger.name or "") / version


def _fresh(root: Path) -> Path:
    """Create the first `version_<n>` that does not exist, also if other processes do so at the same time."""
    root.mkdir(parents=True, exist_ok=True)
    for folder in (root / f"version_{number}" for number in itertools.count()):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def newest_checkpoint(trainer: Trainer, which: str) -> Path:
    """The checkpoint of `--ckpt_path last` or `best`: that of this run's folder if there is one, otherwise that of the
    experiment's run that wrote one last.

    Args:
        trainer: whose loggers say where the experiment's runs lie.
        which: `best`, or `last`, which may be the one of an interruption.

    Raises:
        CheckpointError: there is none.
    """
    own = _determine(trainer) if trainer.loggers else None
    runs = own.parent if own else Path(trainer.default_root_dir)
    found = own_checkpoint(trainer, which) or _newest(runs.glob("*") if runs.is_dir() else [], which)
    if found is not None:
        return found
    raise CheckpointError(
        "--ckpt_path",
        f"{which}, and no run in {runs} has a {' or '.join(_names(which))}",
        "an experiment that was trained before",
        "Give the path of a checkpoint, or leave it out to train from the beginning.",
    )


def own_checkpoint(trainer: Trainer, which: str = "last") -> Path | None:
    """The checkpoint of an earlier part of a run in the folder of this one, where it has a folder with a name.

    Args:
        trainer: whose logger names the folder.
        which: see `newest_checkpoint`.
    """
    own = _determine(trainer) if trainer.loggers else None
    return None if own is None else _newest([own], which)


def _names(which: str) -> tuple[str, ...]:
    return ("best.ckpt",) if which == "best" else ("last.ckpt", "interrupted.ckpt")


def _newest(folders: Iterable[Path], which: str) -> Path | None:
    found = [path for folder in folders for name in _names(which) if (path := folder / "checkpoints" / name).is_file()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def keep_csv(trainer: Trainer) -> None:
    """Rename `metrics.csv` of an earlier part of the run to `metrics.1.csv` and so on, as Lightning would delete it."""
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if isinstance(logger, CSVLogger) and (path := Path(logger.log_dir) / "metrics.csv").is_file():
            path.rename(
                next(
                    place
                    for number in itertools.count(1)
                    if not (place := path.with_name(f"metrics.{number}.csv")).exists()
                )
            )


#: what may differ between two commands in one folder: how a command goes about, not what comes out
FREE = ("ckpt_path", "verbose", "weights_only", "return_predictions")


def logged_folder(trainer: Trainer) -> Path | None:
    """The folder of a trainer's run where its first logger decides it, before anything is written; `None` elsewhere."""
    return _determine(trainer) if trainer.loggers else None


def remove_empty_run(trainer: Trainer, made: tuple[Path, ...]) -> None:
    """Remove the folder of a run that failed before it had anything to keep: no checkpoint, result, table or picture.

    Args:
        trainer: of the run.
        made: what was not there before the run, the innermost first: its folder, and those that it lies in.
    """
    own = next(iter(made), None) if trainer.loggers else _FOUND.get(trainer)
    if own is None or not own.is_dir() or trainer.fast_dev_run:
        return
    files = [path for path in own.rglob("*") if not path.is_dir()]
    if all(
        path.name in ("config.yaml", "hparams.yaml", "metrics.csv") or path.name.startswith("events.out.")
        for path in files
    ):
        shutil.rmtree(own)
        for folder in made[1:]:
            with contextlib.suppress(OSError):  # another run's
                folder.rmdir()


def check_config(folder: Path, text: str, resuming: bool) -> bool:
    """Whether a run's folder has no `config.yaml` of these settings yet.

    Raises:
        ConfigError: see `write_config`.
    """
    path, settings = folder / "config.yaml", yaml.safe_load(text)
    if not path.is_file():
        return True
    differ = sorted(_differences(yaml.safe_load(path.read_text(encoding="utf-8")), settings))
    if differ and not resuming:
        raise ConfigError(
            folder,
            f"the run of another configuration, which differs in {', '.join(differ[:5])}",
            "a new folder, or a run that resumes (--ckpt_path)",
            "Choose another trainer.logger.version, or leave it out to have the next one.",
        )
    return bool(differ)


def write_config(folder: Path, text: str, resuming: bool) -> None:
    """Write `config.yaml` into a run's folder, which belongs to one configuration.

    A run that resumes there may change it; the file of before is kept as `config.1.yaml` and so on.

    Args:
        folder: of the run.
        text: the configuration in YAML.
        resuming: whether the run goes on from a checkpoint.

    Raises:
        ConfigError: a run with other settings has been there, and this one does not resume.
    """
    path = folder / "config.yaml"
    if not check_config(folder, text, resuming):
        return
    if path.is_file():
        number = next(number for number in itertools.count(1) if not (folder / f"config.{number}.yaml").exists())
        path.rename(folder / f"config.{number}.yaml")
    write_whole(path, text.encode())


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if path or key not in FREE]
        return [found for key in keys for found in _differences(one.get(key), other.get(key), f"{path}{key}.")]
    return [] if one == other else [path.rstrip(".")]
