"""Executes runs on this machine, each in a separate process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from avprompt.cores import usable_cores
from avprompt.errors import ConfigError
from avprompt.files import write_json
from avprompt.sweeps.run import SweepRun, last, read_json
from avprompt.sweeps.warm import ForkedRun, Warm

#: exit codes of a run that was stopped from outside: Lightning's and the shell's, and Python's for a signal
STOPPED = (143, 130, *(-number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)))
#: what `execute` says where another sweep is at the run
RUNNING = "another process is running it"
#: seconds that a run has for its checkpoint when it is told to stop
GRACE = 60


def execute(
    run: SweepRun,
    threads: int | None = None,
    begin: Callable[..., subprocess.Popen | ForkedRun] = subprocess.Popen,
    gpu: str | None = None,
) -> str | None:
    """Run the missing stages of a run in a separate process.

    A training run that was interrupted resumes from its newest checkpoint, with the same result as without the
    interruption. After a failure the run starts again, and its earlier files are deleted. With changed settings it also
    starts again, and what was trained before is kept in earlier/. No other file in its folder is touched. A failure is
    recorded in failed.json.

    Args:
        run: what to execute.
        threads: of each process; `None` leaves that to the environment.
        begin: starts a process as `subprocess.Popen` does.
        gpu: the only one that the run sees, as `CUDA_VISIBLE_DEVICES` names it; `None` leaves that to the environment.

    Returns:
        The reason of a failure; `None` without one.

    Raises:
        ConfigError: the folder has files that no sweep has made.
    """
    check_folders([run])
    run.folder.mkdir(parents=True, exist_ok=True)
    given = {"OMP_NUM_THREADS": None if threads is None else str(threads), "CUDA_VISIBLE_DEVICES": gpu}
    environment = {**os.environ, **{name: value for name, value in given.items() if value is not None}}
    with run.log.open("a", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another sweep runs it, perhaps one that was killed: its processes live on
            return RUNNING
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # this file system has no locks
                raise
        before = read_json(run.record) or {}
        if run.failure.exists() or before.get("recipe") != run.recipe:
            begin_anew(run, keep=before.get("recipe") != run.recipe and run.start() is not None)
            before = {}
            log.truncate(0)
        resumed = before.get("resumed", 0) + (run.outcome("fit") is None and run.start() is not None)
        write_json(
            run.record,
            {"variant": run.variant, "axis": run.axis, "seed": run.seed, "resumed": resumed, "recipe": run.recipe},
        )
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {run.name}\n")
        log.flush()
        missing = {stage: command for stage, command in run.commands().items() if run.outcome(stage) is None}
        if missing:
            process = begin(
                [sys.executable, "-m", "avprompt.cli.stages", json.dumps([*missing.values()])],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            try:
                code = process.wait()
            except BaseException:  # Ctrl-C, or the end of a cluster job's time
                end([process])
                raise
            stage = next((stage for stage in missing if run.outcome(stage) is None), [*missing][-1] if code else None)
            if stage and code in STOPPED:
                killed = ", perhaps out of memory" if code == -signal.SIGKILL else ""
                return f"{stage} was stopped from outside with code {code}{killed}"
            if stage:
                said = run.log.read_text(encoding="utf-8", errors="replace").split("\n")
                reason = next((line.strip() for line in reversed(said) if line.strip()), "")[-500:]
                write_json(run.failure, {"stage": stage, "code": code, "reason": reason})
                return f"{stage} ended with code {code}, see {run.log}"
    return None


def check_folders(runs: list[SweepRun]) -> None:
    """See that runs have folders of their own.

    Raises:
        ConfigError: one has files that no sweep has made.
    """
    foreign = [str(run.folder) for run in runs if run.is_foreign()]
    if foreign:
        raise ConfigError(
            "--out",
            f"files that no sweep has made in {', '.join(foreign)}",
            "new folders, or those of a sweep",
            "Nothing there was touched. Move them away, or give another --out.",
        )


def begin_anew(run: SweepRun, keep: bool) -> None:
    """Clear what a sweep has made in a run's folder: put it into `earlier/1` and so on, or delete it."""
    if keep:
        place = next(
            path
            for path in (run.folder / "earlier" / str(number) for number in itertools.count(1))
            if not path.exists()
        )
        place.mkdir(parents=True)
        shutil.copyfile(run.log, place / run.log.name)
    for path in run.made:
        if keep:
            path.rename(place / path.name)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def end(processes: list[subprocess.Popen | ForkedRun]) -> None:
    """Ask processes to stop, and kill those that still run after `GRACE` seconds."""
    alive = [process for process in processes if process.poll() is None]
    try:
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + GRACE
        while any(process.poll() is None for process in alive) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:  # also at a second Ctrl-C
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # together with its data loader


def visible_gpus(driver: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The GPUs that this program may use, found without touching one: those that `CUDA_VISIBLE_DEVICES` names, or else
    all that the driver lists.

    Args:
        driver: a folder with an entry for each GPU of the machine.

    Example:
        >>> visible_gpus(Path("no such folder")) == [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
        True
    """
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [part.strip() for part in named.split(",") if part.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(driver.iterdir())) if driver.is_dir() else 0)]


class Processes:
    """Executes runs on this machine, in processes that are forked from one that has imported the suite.

    Args:
        workers: runs at a time; they share the processor cores.
        gpus: each run gets the one that fewest runs have, unless it asks for several devices; none: runs see what this
            program sees.
    """

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        self.pool, self.lock, self.stopped = ThreadPoolExecutor(workers), threading.Lock(), False
        self.threads = max(1, usable_cores() // workers)
        self.started: list[subprocess.Popen | ForkedRun] = []
        self.warm, self.taken = Warm(), dict.fromkeys(gpus, 0)

    def submit(self, runs: list[SweepRun]) -> list[Any]:
        """Start one job for each run; jobs have `done` and `result`."""
        return [self.pool.submit(self._execute, run) for run in runs]

    def _execute(self, run: SweepRun) -> str | None:
        if not self.taken or last(run.recipe, "trainer.devices") not in (None, 1, "1", "auto"):
            return execute(run, self.threads, self._begin)
        with self.lock:
            gpu = min(self.taken, key=self.taken.__getitem__)
            self.taken[gpu] += 1
        try:
            return execute(run, self.threads, self._begin, gpu)
        finally:
            with self.lock:
                self.taken[gpu] -= 1

    def _begin(self, command: list[str], **options: Any) -> subprocess.Popen | ForkedRun:
        with self.lock:
            if self.stopped:
                raise CancelledError
            process = self.warm.begin(command, **options)
            self.started.append(process)
        return process

    def close(self) -> None:
        """After the last job."""
        self.pool.shutdown()
        self.warm.close()

    def stop(self) -> None:
        """Start no more jobs, and end those that run."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.stopped = True
        self.warm.stop()
        with self.lock:  # what was about to begin has begun
            end(self.started)
        self.close()
