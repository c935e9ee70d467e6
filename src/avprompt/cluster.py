"""Jobs on a SLURM cluster, through submitit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avprompt.errors import ConfigError


def slurm_executor(folder: Path, wanted: dict[str, Any], options: dict[str, Any]) -> Any:
    """A `submitit.SlurmExecutor`.

    Args:
        folder: of job files and their logs, visible from the whole cluster.
        wanted: what jobs ask for where the user says nothing else.
        options: of `sbatch`, as `submitit.SlurmExecutor` names them: partition, time (minutes), mem, account ...

    Raises:
        ConfigError: submitit is not installed, this is no cluster, or an option is unknown.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            "--slurm", "no submitit", "the extra `slurm`", "Run pip install 'avprompt[slurm]'."
        ) from error
    try:
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(**{**wanted, **options})
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            "--slurm",
            error,
            "a SLURM cluster and options of submitit.SlurmExecutor",
            "Such as --slurm '{partition: gpu, time: 600}'.",
        ) from error
    return executor
