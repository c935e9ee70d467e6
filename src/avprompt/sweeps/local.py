"""Executes runs on this machine, each stage in a process of its own."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

from avprompt.sweeps.run import SweepRun, read_json, write_json

#: exit codes of a run that was stopped from outside: Lightning's and the shell's, and Python's for a signal
STOPPED = (143, 130, *(-number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)))
#: seconds that a run has for its checkpoint when it is told to stop
GRACE = 60


def execute(run: SweepRun, threads: int | None = None,
             begin: Callable[..., subprocess.Popen] = subprocess.Popen) -> str | None:
    """Run the stages of a run that are missing, each in a process of its own.

    A training that was stopped resumes from its newest checkpoint, with the result that it would have had. After a
    failure, or with other settings than last time, the run starts anew. A failure leaves failed.json.

    Args:
        run: what to execute.
        threads: of each process; `None` leaves that to the environment.
        begin: starts a process as `subprocess.Popen` does.

    Returns:
        What went wrong, `None` where nothing did.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
    with run.log.open("a", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another sweep runs it, perhaps one that was killed: its processes live on
            return "another process is running it"
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # this file system has no locks
                raise
        before = read_json(run.record) or {}
        if run.failure.exists() or before.get("recipe") != run.recipe:
            before = {}
            for path in run.folder.iterdir():
                if path != run.log:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            log.truncate(0)
        resumed = before.get("resumed", 0) + (run.outcome("fit") is None and run.start() is not None)
        write_json(run.record, {"variant": run.variant, "axis": run.axis, "seed": run.seed, "resumed": resumed,
                                 "recipe": run.recipe})
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {run.name}\n")
        log.flush()
        for stage, command in run.commands().items():
            if run.outcome(stage) is not None:
                continue
            process = begin([sys.executable, "-m", "avprompt", *command], stdout=log, stderr=subprocess.STDOUT,
                            env=environment, start_new_session=True)
            try:
                code = process.wait()
            except BaseException:  # Ctrl-C, or the end of a cluster job's time
                end([process])
                raise
            if code in STOPPED:
                killed = ", perhaps out of memory" if code == -signal.SIGKILL else ""
                return f"{stage} was stopped from outside with code {code}{killed}"
            if code or run.outcome(stage) is None:
                said = run.log.read_text(encoding="utf-8", errors="replace").split("\n")
                reason = next((line.strip() for line in reversed(said) if line.strip()), "")[-500:]
                write_json(run.failure, {"stage": stage, "code": code, "reason": reason})
                return f"{stage} ended with code {code}, see {run.log}"
    return None


def end(processes: list[subprocess.Popen]) -> None:
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
            try:
                os.killpg(process.pid, signal.SIGKILL)  # together with its data loader
            except ProcessLookupError:
                pass


class Processes:
    """Executes runs on this machine.

    Args:
        workers: runs at a time; they share the processor cores.
    """

    def __init__(self, workers: int) -> None:
        self.pool, self.lock, self.stopped = ThreadPoolExecutor(workers), threading.Lock(), False
        self.threads = max(1, (os.cpu_count() or 1) // workers)
        self.started: list[subprocess.Popen] = []

    def submit(self, runs: list[SweepRun]) -> list[Any]:
        """Start one job for each run; jobs have `done` and `result`."""
        return [self.pool.submit(execute, run, self.threads, self._begin) for run in runs]

    def _begin(self, command: list[str], **options: Any) -> subprocess.Popen:
        with self.lock:
            if self.stopped:
                raise CancelledError
            process = subprocess.Popen(command, **options)
            self.started.append(process)
        return process

    def stop(self) -> None:
        """Start no more jobs, and end those that run."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        with self.lock:
            self.stopped = True
        end(self.started)
        self.pool.shutdown()
