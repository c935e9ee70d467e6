"""The one folder of a run: configuration, manifest, checkpoints, results, predictions and pictures go there."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from weakref import WeakKeyDictionary

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

_FOUND: WeakKeyDictionary[Trainer, Path | None] = WeakKeyDictionary()


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of a trainer's run, the same in every process; `None` under `fast_dev_run`, which writes nothing.

    It is the first logger's: `log_dir` of TensorBoard and CSV, `save_dir/name/version` of others. Without a logger it is
    the first `version_<n>` in `default_root_dir` that is not there yet.

    The first process determines it at the first call, which hands it to the others and must therefore come from all of
    them: whoever needs the folder asks in `setup`, which every process runs. Later calls return what was found, and may
    come from one process alone.

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
    """Make the first `version_<n>` that is not there, whoever else makes one at this moment."""
    root.mkdir(parents=True, exist_ok=True)
    for folder in (root / f"version_{number}" for number in itertools.count()):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder
