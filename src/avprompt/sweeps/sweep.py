"""`avprompt sweep`: variants of an experiment, times values of one argument, times seeds; resumable."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from avprompt.configs import EXPERIMENTS, find_file
from avprompt.errors import ArgumentError, ConfigError
from avprompt.plots.saving import check_formats
from avprompt.ranges import Count, Natural
from avprompt.signals import stoppable
from avprompt.sweeps.local import RUNNING, Processes, check_folders, visible_gpus
from avprompt.sweeps.plan import read_sweep
from avprompt.sweeps.run import SweepRun, read_json
from avprompt.sweeps.screen import Board
from avprompt.sweeps.slurm import Slurm
from avprompt.sweeps.table import condense, summarise, write_failures

#: seconds between two checks of the jobs
PAUSE = 0.5


def follow(
    executor: Processes | Slurm, todo: list[SweepRun], runs: list[SweepRun], metric: str, out: Path, board: Board
) -> dict[str, str]:
    """Execute runs, show where they are, and keep the tables up to date.

    A run at which another sweep works is looked at again when that one is done.

    Returns:
        Name of a run -> what went wrong.
    """
    problems, begun, jobs = {}, time.time(), dict(zip(executor.submit(todo), todo))
    while jobs:
        elsewhere: list[SweepRun] = []
        for job in [job for job in jobs if job.done()]:
            run, problem = jobs.pop(job), None
            try:
                problem = job.result()
            except (RuntimeError, OSError, ConfigError) as error:  # of the job, not of the run in it
                problem = f"{type(error).__name__}: {error}"
            if problem == RUNNING and isinstance(executor, Processes):
                elsewhere.append(run)
                continue
            if problem:
                problems[run.name] = problem
            board.update([run], [*jobs.values(), run])  # its last lines
            board.ended(run, problem)
            write_failures(runs, problems, out)
            summarise(runs, metric, out)
        waiting = [*jobs.values(), *elsewhere]
        board.update([run for run in waiting if run.log.exists() and run.log.stat().st_mtime >= begun - 1], waiting)
        time.sleep(PAUSE if waiting else 0)
        jobs |= zip(executor.submit(elsewhere), elsewhere)
    write_failures(runs, problems, out)  # also of runs that another sweep has finished since
    return problems


def sweep(
    file: Path,
    out: Path | None = None,
    seeds: list[Natural] = [0, 1, 2],  # noqa: B006  nothing changes it, and `--help` shows it
    workers: Count = 2,
    task: str | None = None,
    quickstart: bool = False,
    slurm: bool | dict[str, Any] = False,
    format: str = "png",
) -> None:
    """Run every variant of a sweep with every value of its axis and every seed: fit, then test the selected checkpoint.

    A finished run is not repeated. Several sweeps may work in one folder at once, on one machine or several: one of
    them executes each run. Ctrl-C or SIGTERM stop the sweep; the same command resumes it, and each run that was
    stopped from its last checkpoint. A run that fails is reported with its reason, there and in failed.csv, and the
    others proceed; the next call tries it again. Results are in results.csv, summary.csv, summary.md and, where the
    sweep varies an argument, in a plot.

    Args:
        file: the sweep file, or the name of one that ships: quickstart_ablation, dgsct_modules, dgsct_directions,
            dgsct_hyperparameters, avstfp_prompts, avstfp_branches, stgcma_s4, methods_ave, methods_fewshot,
            late_fusion_ave, fewshot_ave, fewshot_ave_class, fewshot_llp_class.
        out: folder of the runs; `None` is runs/<name of the sweep>, followed by the name of the task where one is
            given.
        seeds: of the runs.
        workers: runs at a time, which share the processor cores; on a cluster, jobs at a time. Where there are several
            GPUs, each run gets one of its own, so that as many workers as GPUs keep all of them busy.
        task: of a sweep with several tasks, such as ave, avvp, avs_s4, avs_ms3, avqa; `None` is its first.
        quickstart: run the experiments on the synthetic dataset that `avprompt quickstart --task X` makes.
        slurm: send the runs to a SLURM cluster through submitit. `true` asks for a day and, where the experiment needs
            one, a GPU; a mapping has further options: '{partition: gpu, time: 600, gpus_per_node: 1, mem: 32GB}'.
        format: of the plot: png, pdf, svg, or several: pdf,svg.

    Raises:
        ArgumentError: there is no worker, a seed occurs twice, or an unknown format.
        ConfigError: the file is missing or has other keys; finished runs have other settings; a run's folder has files
            that no sweep has made; there is no cluster; at the end, some runs are not finished.
    """
    file = find_file(file, subject="sweep", places=(EXPERIMENTS / "sweeps",))
    if workers < 1:
        raise ArgumentError("workers", workers, "at least 1", "Each worker executes one run at a time.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ArgumentError("seeds", seeds, "different numbers", "Give each seed once.")
    formats = check_formats(format)
    name = "_".join(filter(None, (file.stem, task, "quickstart" if quickstart else None)))
    out = Path(out) if out else Path("runs") / name
    runs, metric = read_sweep(file, seeds, out, task, quickstart)
    todo = [run for run in runs if run.outcome("test") is None]
    other = [
        str(run.folder)
        for run in runs
        if run not in todo and (read_json(run.record) or {}).get("recipe", run.recipe) != run.recipe
    ]
    if other:
        raise ConfigError(
            file,
            f"other settings than those of the finished {', '.join(other)}",
            "the same settings",
            "Move these folders away, or give another --out.",
        )
    check_folders(todo)
    out.mkdir(parents=True, exist_ok=True)
    if slurm is not False:
        executor: Processes | Slurm = Slurm(out, workers, todo, {} if slurm is True else slurm)
    else:
        executor = Processes(workers, visible_gpus())
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished; {workers} at a time", flush=True)
    with stoppable():
        try:
            board = Board(runs, workers)
            board.say(board.expect(out))
            with board:
                problems = follow(executor, todo, runs, metric, out, board)
        except BaseException:
            executor.stop()
            summarise(runs, metric, out)
            print(
                f"stopped: {sum(run.outcome('test') is not None for run in runs)} of {len(runs)} runs are "
                f"finished in {out}; the same command resumes",
                flush=True,
            )
            raise
        executor.close()
    print(summarise(runs, metric, out))
    if any(run.axis or run.varied for run in runs):
        from avprompt.sweeps.curves import write_plot

        files = write_plot(runs, condense(runs, metric), metric, out, formats)
        print(f"plot: {', '.join(map(str, files))}")
    if problems:
        raise ConfigError(
            file,
            f"{len(problems)} of {len(runs)} runs not finished: {problems}",
            "all runs finished",
            f"{out / 'failed.csv'} has the reasons. Correct them and run the sweep again: finished runs are kept.",
        )
