"""Executes runs on a SLURM cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avprompt.cluster import slurm_executor
from avprompt.signals import later_signals
from avprompt.sweeps.local import execute
from avprompt.sweeps.run import SweepRun, last


class SlurmRun:
    """A run on a cluster: when it is preempted or out of time, it is queued again and resumes."""

    def __call__(self, run: SweepRun) -> str | None:
        """See `avprompt.sweeps.local.execute`."""
        return execute(run)

    def checkpoint(self, run: SweepRun) -> Any:
        """What submitit queues again when the time of the job ends."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, run)


class Slurm:
    """Executes runs as an array of jobs on a SLURM cluster, through submitit.

    Args:
        folder: of the sweep, visible from the whole cluster; job files and their logs go there.
        workers: jobs at a time.
        runs: that will be submitted; their data loaders and accelerators say how many processors and GPUs to ask for.
        options: of `sbatch`, as `submitit.SlurmExecutor` names them: partition, time (minutes), mem, account ...

    Raises:
        ConfigError: submitit is not installed, this is no cluster, or an option is unknown.
    """

    def __init__(self, folder: Path, workers: int, runs: list[SweepRun], options: dict[str, Any]) -> None:
        loaders = max((last(run.recipe, "data.init_args.num_workers") or 0 for run in runs), default=0)
        gpu = any(last(run.recipe, "trainer.accelerator") in ("gpu", "cuda") for run in runs)
        wanted = {
            "job_name": folder.name,
            "time": 24 * 60,
            "cpus_per_task": 1 + loaders,
            **({"gpus_per_node": 1} if gpu else {}),
            "array_parallelism": workers,
        }
        self.executor = slurm_executor(folder / "slurm", wanted, options)
        self.jobs: list[Any] = []

    def submit(self, runs: list[SweepRun]) -> list[Any]:
        """Queue one job for each run; jobs have `done` and `result`."""
        with later_signals():  # until it is known which jobs there are to cancel
            self.jobs = self.executor.map_array(SlurmRun(), runs)
        return self.jobs

    def close(self) -> None:
        """Nothing is left to end: jobs are the cluster's."""

    def stop(self) -> None:
        """Cancel what is queued or runs."""
        for job in self.jobs:
            if not job.done():
                job.cancel(check=False)
