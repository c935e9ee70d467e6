"""`avprompt sweep`: rows of a table, times values of one argument, times seeds; a process a run, resumable."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from avprompt.configs import get_nested, read_yaml, sources
from avprompt.errors import ArgumentError, ConfigError

KEYS, TASK_KEYS = {"experiment", "metric"}, {"experiment", "quickstart", "metric"}
ROW_KEYS = {"flags", "tasks", "experiment", "quickstart", "zero_shot", "at"}
PREFIX = "--model.init_args.backbone.init_args.prompts"
HINT = "See experiments/sweeps/."
#: exit codes of a run that was stopped from outside: Lightning's and the shell's, and Python's for a signal
STOPPED = (143, 130, *(-number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)))
#: seconds that a run has for its checkpoint when it is told to stop; between two looks at the runs
GRACE, PAUSE = 60, 0.5


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Args:
        row: name of the row.
        seed: of the run, data order included.
        config: the experiment's file.
        overrides: flags that make the row; `--config=FILE` among them is laid over the experiment.
        folder: where the run goes; finished when test/result.json is there.
        axis: name and value of the argument that the sweep varies in every row, where it varies one.
        zero_shot: nothing is trained: the run is a test alone.
        varied: path in the configuration and value of the argument that makes the row, where the sweep varies it alone.
    """

    row: str
    seed: int
    config: Path
    overrides: list[str]
    folder: Path
    axis: tuple[str, Any] | None = None
    zero_shot: bool = False
    varied: tuple[str, Any] | None = None

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join([self.row, *(["{} {}".format(*self.axis)] if self.axis else []), f"seed {self.seed}"])

    @property
    def result(self) -> Path:
        """The file that a finished cell has."""
        return self.folder / "test" / "result.json"

    @property
    def log(self) -> Path:
        """What its processes print; locked as long as one of them lives."""
        return self.folder / "log.txt"

    @property
    def failure(self) -> Path:
        """The file that a failed cell has."""
        return self.folder / "failed.json"

    @property
    def record(self) -> Path:
        """The file that says what the cell was started with."""
        return self.folder / "cell.json"

    @cached_property
    def recipe(self) -> list[Any]:
        """All that makes the run but its seed: the content of files and flags, in the order in which they apply."""
        found = sources(["--config", str(self.config), *self.overrides])
        return json.loads(json.dumps([content for _, content in found], default=str))

    def outcome(self, stage: str) -> dict[str, Any] | None:
        """A stage's result.json; `None` where there is none, or half of one."""
        return read_json(self.folder / stage / "result.json")

    def start(self) -> Path | None:
        """The newest checkpoint of a training that was stopped."""
        folder = self.folder / "fit" / "checkpoints"
        found = [path for path in (folder / "last.ckpt", folder / "interrupted.ckpt") if path.is_file()]
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)

    def commands(self) -> dict[str, list[str]]:
        """Fit, and test the checkpoint that the validation split selected; or test alone."""
        best = None if self.zero_shot else self.folder / "fit" / "checkpoints" / "best.ckpt"
        logger = "--trainer.logger.init_args"
        common = ["--config", str(self.config), *self.overrides, "--seed_everything", str(self.seed),
                  "--data.init_args.seed", str(self.seed), f"{logger}.save_dir", str(self.folder.parent),
                  f"{logger}.name", self.folder.name, "--trainer.enable_progress_bar", "false", f"{logger}.version"]
        found = {} if self.zero_shot else {"fit": self.start()}
        return {stage: [stage, *common, stage, *(["--ckpt_path", str(checkpoint)] if checkpoint else [])]
                for stage, checkpoint in {**found, "test": best}.items()}


def read_json(path: Path) -> Any:
    """The content of a JSON file, `None` where there is none or it was cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def read_sweep(path: Path, seeds: list[int], out: Path, task: str | None = None,
               quickstart: bool = False) -> tuple[list[Cell], str]:
    """Cells and metric of a sweep file.

    It has `experiment` (a YAML file beside it, without ending), `metric`, and `rows` (name -> list of flags, as on a
    command line). Besides:

    - `tasks` (name -> `experiment`, `metric`, and `quickstart`, the experiment on the generated world) instead of the
      first two.
    - `axis`, one flag and the list of its values: every row is run with each of them.
    - `vary` (flag -> list of values) instead of `axis`: each value is one more row, named as alpha=0.1, with this flag
      alone.
    - A row may be a mapping: `flags`; `tasks`, where not all have it; an `experiment` and a `quickstart` of its own;
      `zero_shot: true`, where nothing is trained: it is tested once a seed, without the axis; `at`, for some values of
      the axis further flags of `experiment`.
    - An experiment may be a list: the file, then flags that belong to it.
    - In flags `prompts.X=1` is short for the prompt method's argument X, and YAML files may lie beside the sweep;
      `--config=FILE` lays one over the experiment.

    Args:
        path: of the file.
        seeds: of the runs.
        out: folder of the runs.
        task: one of the file's; `None` is the first.
        quickstart: take the experiments on the generated world.

    Raises:
        ConfigError: the file is missing, has other keys, or not this task.
    """
    content = read_yaml(path)
    keys = set(content) - {"rows", "axis", "vary"} if isinstance(content, dict) else set()
    if keys not in (KEYS, {"tasks"}) or not isinstance(content.get("rows"), dict) or {"axis", "vary"} <= set(content):
        raise ConfigError(path, content, "the keys experiment, metric, or tasks; rows; and axis, vary, or none", HINT)
    tasks = content.get("tasks", {})
    if "tasks" not in content:
        if task is not None or quickstart:
            raise ConfigError(f"{path}: --task, --quickstart", task or "quickstart",
                              "none: the file has one experiment", "Leave them out.")
        chosen = content
    else:
        for name, keys in tasks.items() if isinstance(tasks, dict) else [("tasks", tasks)]:
            if not isinstance(keys, dict) or set(keys) != TASK_KEYS:
                raise ConfigError(f"{path}: {name}", keys, f"the keys {sorted(TASK_KEYS)}", HINT)
        task = next(iter(tasks)) if task is None else task
        if task not in tasks:
            raise ConfigError(f"{path}: --task", task, f"one of {', '.join(tasks)}",
                              "The published table has no other.")
        chosen = tasks[task]
    flag, values = read_axis(path, content.get("axis"))
    varied = read_vary(path, content.get("vary", {}), content["rows"])
    rows = {**content["rows"], **{row: [f"{flag}={value}"] for row, (flag, value) in varied.items()}}
    which, made = "quickstart" if quickstart else "experiment", []
    for row, entry in rows.items():
        where, entry = f"{path}: {row}", entry if isinstance(entry, dict) else {"flags": entry or []}
        if not set(entry) <= ROW_KEYS or not set(entry.get("tasks", [])) <= set(tasks):
            raise ConfigError(where, entry, f"flags, or some of {sorted(ROW_KEYS)}, flags and tasks of this file", HINT)
        at, zero_shot = entry.get("at", {}), entry.get("zero_shot", False)
        if not isinstance(at, dict) or not set(at) <= set(values) or zero_shot not in (False, True) or at and zero_shot:
            raise ConfigError(where, f"at {at}, zero_shot {zero_shot}",
                              f"flags at some of {values or 'an axis'}, or zero_shot true", HINT)
        if task not in entry.get("tasks", [task]):
            continue
        config, own = read_experiment(where, entry.get(which, chosen[which]), path.parent)
        flags = own + read_flags(where, entry.get("flags", []), path.parent)
        for value in [None] if zero_shot or not values else values:
            more = [] if value is None else [f"{flag}={value}"]
            more += [] if quickstart else read_flags(where, at.get(value, []), path.parent)
            point = None if value is None else (flag.rpartition(".")[2], value)
            alone = (flags[-1].partition("=")[0].lstrip("-"), varied[row][1]) if row in varied else None
            made.append((str(row), point, config, flags + more, zero_shot, alone))
    return [Cell(row, seed, config, flags, out / "-".join(
        [row, *([f"{point[0]}{point[1]}"] if point else []), f"seed{seed}"]), point, zero_shot, alone)
        for seed in seeds for row, point, config, flags, zero_shot, alone in made], chosen["metric"]


def read_axis(path: Path, entry: Any) -> tuple[str, list[Any]]:
    """The varied flag and its values, none where nothing is varied.

    Raises:
        ConfigError: not one flag with a list of different values.
    """
    if entry is None:
        return "", []
    flag, values = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (None, None)
    if not str(flag).startswith("--") or not isinstance(values, list) or not values or None in values or len(
            set(map(str, values))) < len(values):
        raise ConfigError(f"{path}: axis", entry, "one flag and the list of its values", HINT)
    return flag, values


def read_vary(path: Path, entry: Any, rows: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Rows of arguments that are varied alone: name -> flag and value.

    Raises:
        ConfigError: no lists of values, or a name twice.
    """
    if not isinstance(entry, dict) or not all(
            isinstance(values, list) and values and all(isinstance(value, (bool, int, float, str)) for value in values)
            for values in entry.values()):
        raise ConfigError(f"{path}: vary", entry, "flags, such as prompts.alpha, with lists of values", HINT)
    made = [(f"{str(flag).rpartition('.')[2]}={value}", (flag, value)) for flag, values in entry.items()
            for value in values]
    names = [*rows, *(name for name, _ in made)]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: vary", sorted({str(name) for name in names if names.count(name) > 1}),
                          "names that are no other row's", "Give each value once, and other names in rows.")
    return dict(made)


def read_experiment(where: str, entry: Any, folder: Path) -> tuple[Path, list[str]]:
    """An experiment's file, and the flags that belong to it.

    Raises:
        ConfigError: there is no such file.
    """
    name, *flags = entry if isinstance(entry, list) and entry else [entry]
    config = (folder / f"{name}.yaml").resolve()
    if not config.is_file():
        raise ConfigError(f"{where}: experiment", config, "an existing experiment", "Give its path without ending.")
    return config, read_flags(where, flags, folder)


def read_flags(where: str, entry: Any, folder: Path) -> list[str]:
    """Flags as the command line takes them: `prompts` written out, YAML files beside the sweep with their whole path.

    Raises:
        ConfigError: no list of flags with values, or a `--config` that is not there.
    """
    if not isinstance(entry, list) or not all(
            isinstance(flag, str) and re.match(r"(--|prompts(?=[.=])).*=", flag) for flag in entry):
        raise ConfigError(where, entry, "a list of flags with values, such as --trainer.max_epochs=3", HINT)
    flags = []
    for flag in entry:
        name, _, value = flag.partition("=")
        if value.endswith((".yaml", ".yml")) and (folder / value).is_file():
            value = str((folder / value).resolve())
        elif name == "--config":
            raise ConfigError(where, folder / value, "an existing YAML file", "Give its path from the sweep file.")
        if name == "prompts":
            name, value = PREFIX, f"avprompt.methods.{value}"
        elif name.startswith("prompts."):
            name = f"{PREFIX}.init_args.{name.removeprefix('prompts.')}"
        flags.append(f"{name}={value}")
    return flags


def run_cell(cell: Cell, threads: int | None = None,
             begin: Callable[..., subprocess.Popen] = subprocess.Popen) -> str | None:
    """Run what is missing of a cell, in processes of its own; returns what went wrong, `None` if nothing.

    A training that was stopped goes on from its newest checkpoint, with the result that it would have had. After a
    failure, or with other settings than last time, the cell starts anew. A failure leaves failed.json.

    Args:
        cell: to run.
        threads: of each process; `None` leaves that to the environment.
        begin: starts a process as `subprocess.Popen` does.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
    with cell.log.open("a", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # of another sweep, perhaps of one that was killed: processes outlive that
            return "another process is running it"
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks goes without
                raise
        before = read_json(cell.record) or {}
        if cell.failure.exists() or before.get("recipe") != cell.recipe:
            before = {}
            for path in cell.folder.iterdir():
                if path != cell.log:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            log.truncate(0)
        resumed = before.get("resumed", 0) + (cell.outcome("fit") is None and cell.start() is not None)
        write_json(cell.record, {"row": cell.row, "axis": cell.axis, "seed": cell.seed, "resumed": resumed,
                                 "recipe": cell.recipe})
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {cell.name}\n")
        log.flush()
        for stage, command in cell.commands().items():
            if cell.outcome(stage) is not None:
                continue
            process = begin([sys.executable, "-m", "avprompt", *command], stdout=log, stderr=subprocess.STDOUT,
                            env=environment, start_new_session=True)
            try:
                code = process.wait()
            except BaseException:  # Ctrl-C, or the end of a cluster job's time
                end([process])
                raise
            if code in STOPPED:
                killed = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
                return f"{stage} was stopped from outside with code {code}{killed}"
            if code or cell.outcome(stage) is None:
                said = cell.log.read_text(encoding="utf-8", errors="replace").split("\n")
                reason = next((line.strip() for line in reversed(said) if line.strip()), "")[-500:]
                write_json(cell.failure, {"stage": stage, "code": code, "reason": reason})
                return f"{stage} ended with code {code}, see {cell.log}"
    return None


def end(processes: list[subprocess.Popen]) -> None:
    """Ask processes to stop, and kill those that do not within `GRACE`."""
    alive = [process for process in processes if process.poll() is None]
    try:
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + GRACE
        while any(process.poll() is None for process in alive) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:  # at the second Ctrl-C too
        for process in alive:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # with its data loader's
            except ProcessLookupError:
                pass


def write_json(path: Path, content: Any) -> None:
    """The whole file or none."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


class Processes:
    """Cells on this machine.

    Args:
        workers: cells at a time; they share the processor cores.
    """

    def __init__(self, workers: int) -> None:
        self.pool, self.lock, self.stopped = ThreadPoolExecutor(workers), threading.Lock(), False
        self.threads = max(1, (os.cpu_count() or 1) // workers)
        self.started: list[subprocess.Popen] = []

    def submit(self, cells: list[Cell]) -> list[Any]:
        """A job a cell, with `done` and `result`."""
        return [self.pool.submit(run_cell, cell, self.threads, self._begin) for cell in cells]

    def _begin(self, command: list[str], **options: Any) -> subprocess.Popen:
        with self.lock:
            if self.stopped:
                raise CancelledError
            process = subprocess.Popen(command, **options)
            self.started.append(process)
        return process

    def stop(self) -> None:
        """Begin no more, and end what runs."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        with self.lock:
            self.stopped = True
        end(self.started)
        self.pool.shutdown()


class SlurmCell:
    """A cell on a cluster: preempted or out of time, it is queued again and goes on."""

    def __call__(self, cell: Cell) -> str | None:
        """See `run_cell`."""
        return run_cell(cell)

    def checkpoint(self, cell: Cell) -> Any:
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, cell)


class Slurm:
    """Cells as an array of jobs, through submitit.

    Args:
        folder: shared by the cluster; job files and their logs go there.
        workers: jobs at a time.
        cells: that will be submitted: their processors and GPUs are asked for.
        options: of `sbatch`, as `submitit.SlurmExecutor` names them: partition, time (minutes), mem, account ...

    Raises:
        ConfigError: submitit is not installed, this is no cluster, or it does not know an option.
    """

    def __init__(self, folder: Path, workers: int, cells: list[Cell], options: dict[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("--slurm", "no submitit", "the extra `slurm`",
                              "Run pip install 'avprompt[slurm]'.") from error
        loaders = max((last(cell.recipe, "data.init_args.num_workers") or 0 for cell in cells), default=0)
        gpu = any(last(cell.recipe, "trainer.accelerator") in ("gpu", "cuda") for cell in cells)
        wanted = {"job_name": folder.name, "time": 24 * 60, "cpus_per_task": 1 + loaders,
                  **({"gpus_per_node": 1} if gpu else {}), "array_parallelism": workers, **options}
        try:
            self.executor = submitit.SlurmExecutor(folder / "slurm")
            self.executor.update_parameters(**wanted)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConfigError("--slurm", error, "a SLURM cluster and options of submitit.SlurmExecutor",
                              "Such as --slurm '{partition: gpu, time: 600}'.") from error
        self.jobs: list[Any] = []

    def submit(self, cells: list[Cell]) -> list[Any]:
        """A job a cell, with `done` and `result`."""
        self.jobs = self.executor.map_array(SlurmCell(), cells)
        return self.jobs

    def stop(self) -> None:
        """Cancel what is queued or runs."""
        for job in self.jobs:
            if not job.done():
                job.cancel(check=False)


def last(recipe: list[Any], path: str) -> Any:
    """The value at a dotted path that applies in the end, `None` where none is given."""
    return next((value for content in reversed(recipe) if (value := get_nested(content, path)) is not None), None)


def collect(cells: list[Cell], metric: str) -> list[dict[str, Any]]:
    """One line a finished cell.

    Raises:
        ConfigError: a result without the metric.
    """
    lines = []
    for cell in cells:
        if (result := cell.outcome("test")) is None:
            continue
        if metric not in result["metrics"]:
            raise ConfigError(f"{cell.result}: {metric}", sorted(result["metrics"]), "the sweep's metric",
                              "Correct `metric` in the sweep file and run it again: finished cells are kept.")
        value, fit = result["metrics"][metric], cell.outcome("fit")
        resumed = (read_json(cell.record) or {}).get("resumed", 0)
        lines.append({"row": cell.row, **({cell.axis[0]: cell.axis[1]} if cell.axis else {}), "seed": cell.seed,
                      metric: float("nan") if value is None else value,
                      "trainable": result["parameters"]["trainable"],
                      # of a training that was resumed, only the last part was timed
                      "fit_seconds": fit["wall_s"] if fit and not resumed else ""})
    return lines


def condense(cells: list[Cell], metric: str) -> list[dict[str, Any]]:
    """One line a row and value of the axis: mean and standard deviation in percent, number of seeds, and each."""
    lines, axis = collect(cells, metric), axis_of(cells)
    table = []
    for row, value in dict.fromkeys((cell.row, cell.axis and cell.axis[1]) for cell in cells):
        mine = [line for line in lines if line["row"] == row and line.get(axis) == value]
        values, seconds = [100 * line[metric] for line in mine], [line["fit_seconds"] for line in mine]
        table.append({
            "row": row, **({axis: "" if value is None else value} if axis else {}), "metric": metric,
            "mean": round(statistics.mean(values), 4) if values else "",
            "std": round(statistics.stdev(values), 4) if len(values) > 1 else "", "n": len(values),
            "values": " ".join(f"{value:.4f}" for value in values),
            "trainable": mine[0]["trainable"] if mine else "",
            "fit_seconds": round(statistics.mean(seconds), 1) if seconds and "" not in seconds else ""})
    return table


def columns_of(cells: list[Cell]) -> list[str]:
    """What tells cells apart."""
    return ["row", *filter(None, [axis_of(cells)]), "seed"]


def axis_of(cells: list[Cell]) -> str | None:
    """Name of the argument that the cells vary, `None` where they vary none."""
    return next((cell.axis[0] for cell in cells if cell.axis), None)


def mean_text(line: dict[str, Any]) -> str:
    """Mean and spread of a line of `condense`."""
    if not line["n"]:
        return "not finished"
    return f"{line['mean']:.1f}" + (f" ± {line['std']:.1f}" if line["n"] > 1 else "")


def markdown(cells: list[Cell], metric: str) -> str:
    """The table: a line a row; with an axis, a column a value of it."""
    table, axis = condense(cells, metric), axis_of(cells)
    if axis is None:
        rows = [["row", f"{metric} (mean ± std)", "n", "per seed", "trainable", "fit, s"], ["---"] * 6]
        for line in table:
            each = ", ".join(f"{float(value):.1f}" for value in line["values"].split())
            rows.append([line["row"], mean_text(line), str(line["n"]), each,
                         f"{line['trainable']:,}" if line["n"] else "",
                         "" if line["fit_seconds"] == "" else f"{line['fit_seconds']:.0f}"])
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)
    values = list(dict.fromkeys(line[axis] for line in table))
    values.sort(key=lambda value: value != "")  # what has none stands first
    names = [f"{axis} {value}" if value != "" else "zero-shot" for value in values]
    rows = [["row", *names, "trainable"], ["---"] * (len(names) + 2)]
    for row in dict.fromkeys(line["row"] for line in table):
        mine = {line[axis]: line for line in table if line["row"] == row}
        counts = [line["trainable"] for line in mine.values() if line["n"]]
        rows.append([row, *(f"{mean_text(mine[value])} ({mine[value]['n']})" if value in mine else ""
                            for value in values), f"{counts[0]:,}" if counts else ""])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + (
        f"\n{metric}, %: mean ± standard deviation (number of seeds)\n")


def summarise(cells: list[Cell], metric: str, out: Path) -> str:
    """Write results.csv (a line a finished cell), summary.csv and summary.md (a line a row); returns the table.

    Raises:
        ConfigError: a result without the metric.
    """
    condensed = condense(cells, metric)
    write_csv(out / "results.csv", [*columns_of(cells), metric, "trainable", "fit_seconds"], collect(cells, metric))
    write_csv(out / "summary.csv", list(condensed[0]), condensed)
    text = markdown(cells, metric)
    (out / "summary.md").write_text(text, encoding="utf-8")
    return text


def write_failures(cells: list[Cell], problems: dict[str, str], out: Path) -> None:
    """Write failed.csv: a line a cell that failed, or was not finished for another reason; no file where none."""
    lines = [{"row": cell.row, **({cell.axis[0]: cell.axis[1]} if cell.axis else {}), "seed": cell.seed,
              **(read_json(cell.failure) or {"reason": problems.get(cell.name)}), "log": cell.log}
             for cell in cells if cell.failure.exists() or cell.name in problems]
    path = out / "failed.csv"
    write_csv(path, [*columns_of(cells), "stage", "code", "reason", "log"], lines)
    if not lines:
        path.unlink()


def write_csv(path: Path, columns: list[str], lines: list[dict[str, Any]]) -> None:
    """Lines that may lack columns, below a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, a scheduler's SIGTERM and a closed terminal end the program in order, with exit code 128 + signal."""
    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
              if signal.getsignal(number) != signal.SIG_IGN}  # as nohup leaves it
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(jobs: dict[Any, Cell], cells: list[Cell], metric: str, out: Path) -> dict[str, str]:
    """Wait for all jobs, show which run, and keep the tables up to date; returns what went wrong, by cell."""
    problems, begun = {}, time.time()
    with tqdm(total=len(cells), initial=len(cells) - len(jobs), desc="sweep", unit="cell", smoothing=0) as bar:
        while jobs:
            for job in [job for job in jobs if job.done()]:
                cell, problem = jobs.pop(job), None
                try:
                    problem = job.result()
                except (RuntimeError, OSError, ConfigError) as error:  # of the job, not of the cell in it
                    problem = f"{type(error).__name__}: {error}"
                bar.update(problem is None)
                if problem:
                    problems[cell.name] = problem
                    bar.write(f"not finished: {cell.name}: {problem}")
                write_failures(cells, problems, out)
                summarise(cells, metric, out)
            now = [cell.name for cell in jobs.values() if cell.log.exists() and cell.log.stat().st_mtime >= begun - 1]
            text = "now " + "; ".join(now) if now else ""
            if text != bar.postfix or sys.stderr.isatty():
                bar.set_postfix_str(text)
            time.sleep(PAUSE if jobs else 0)
    return problems


def sweep(file: Path, out: Path | None = None, seeds: list[int] = [0, 1, 2], workers: int = 2,  # noqa: B006
          task: str | None = None, quickstart: bool = False, slurm: bool | dict[str, Any] = False) -> None:
    """Run every row of a sweep with every value of its axis and every seed: fit, then test the selected checkpoint.

    A finished cell is not run again, and one that was stopped goes on from its last checkpoint: Ctrl-C or SIGTERM end
    the sweep, the same command resumes it. A cell that fails is told and written to failed.csv with the reason, the
    others proceed; the next call tries it anew. Results are in results.csv, summary.csv, summary.md and, of a sweep
    that varies arguments, in a plot.

    Args:
        file: of the sweep, such as experiments/sweeps/quickstart_ablation.yaml.
        out: folder of the runs; `None` is runs/<name of the sweep>, with the task's name after it where one is given.
        seeds: of the runs.
        workers: cells at a time, which share the processor cores; on a cluster jobs at a time.
        task: of a sweep of several tasks, such as ave, avvp, avs_s4, avs_ms3, avqa; `None` is its first.
        quickstart: run the experiments on the generated world, which `avprompt quickstart --task X` makes.
        slurm: send the cells to a SLURM cluster through submitit. `true` asks for a day and, where the experiment needs
            one, a GPU; a mapping has further options: '{partition: gpu, time: 600, gpus_per_node: 1, mem: 32GB}'.

    Raises:
        ArgumentError: no worker, or the same seed twice.
        ConfigError: the file is missing or has other keys; finished cells were made with other settings; no cluster;
            at the end, when cells are not finished.
    """
    file = Path(file)
    if workers < 1:
        raise ArgumentError("workers", workers, "at least 1", "Each is a process of its own.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ArgumentError("seeds", seeds, "different numbers", "Name each once.")
    name = "_".join(filter(None, (file.stem, task, "quickstart" if quickstart else None)))
    out = Path(out) if out else Path("runs") / name
    cells, metric = read_sweep(file, seeds, out, task, quickstart)
    todo = [cell for cell in cells if cell.outcome("test") is None]
    other = [str(cell.folder) for cell in cells if cell not in todo
             and (read_json(cell.record) or {}).get("recipe", cell.recipe) != cell.recipe]
    if other:
        raise ConfigError(file, f"other settings than those of the finished {', '.join(other)}", "the same settings",
                          "Move these folders away, or give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    if slurm is not False:
        executor: Processes | Slurm = Slurm(out, workers, todo, {} if slurm is True else slurm)
    else:
        executor = Processes(workers)
    print(f"{len(cells)} cells, {len(cells) - len(todo)} of them finished; {workers} at a time", flush=True)
    with stoppable():
        try:
            problems = follow(dict(zip(executor.submit(todo), todo)), cells, metric, out) if todo else {}
        except BaseException:
            executor.stop()
            summarise(cells, metric, out)
            print(f"stopped: {sum(cell.outcome('test') is not None for cell in cells)} of {len(cells)} cells are "
                  f"finished in {out}; the same command goes on", flush=True)
            raise
    print(summarise(cells, metric, out))
    if any(cell.axis or cell.varied for cell in cells):
        from avprompt.sweeps.curves import write_plot

        print(f"plot: {write_plot(cells, condense(cells, metric), metric, out)}")
    if problems:
        raise ConfigError(file, f"{len(problems)} of {len(cells)} cells not finished: {problems}", "all cells finished",
                          f"Reasons of failures are in {out / 'failed.csv'}. Mend them and run the sweep again: "
                          "finished cells are kept.")
