"""`avprompt sweep`: rows of an ablation times seeds, a process a cell, resumable."""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from avprompt.configs import read_yaml
from avprompt.errors import ConfigError

KEYS, TASK_KEYS = {"experiment", "rows", "metric"}, {"experiment", "quickstart", "metric"}
PREFIX = "--model.init_args.backbone.init_args.prompts"


@dataclass(frozen=True)
class Cell:
    """One training run of a sweep.

    Args:
        row: name of the row.
        seed: of the run, data order included.
        config: the experiment's file.
        overrides: flags that make the row.
        folder: where the run goes; finished when test/result.json is there.
    """

    row: str
    seed: int
    config: Path
    overrides: list[str]
    folder: Path

    @property
    def result(self) -> Path:
        """The file that a finished cell has."""
        return self.folder / "test" / "result.json"

    def commands(self) -> list[list[str]]:
        """Fit, then test the checkpoint that the validation split selected."""
        common = ["--config", str(self.config), *self.overrides, "--seed_everything", str(self.seed),
                  "--data.init_args.seed", str(self.seed), "--trainer.logger.init_args.save_dir",
                  str(self.folder.parent), "--trainer.logger.init_args.name", self.folder.name,
                  "--trainer.enable_progress_bar", "false"]
        version = "--trainer.logger.init_args.version"
        best = str(self.folder / "fit" / "checkpoints" / "best.ckpt")
        return [["fit", *common, version, "fit"], ["test", *common, version, "test", "--ckpt_path", best]]


def read_sweep(path: Path, seeds: list[int], out: Path, task: str | None = None,
               quickstart: bool = False) -> tuple[list[Cell], str]:
    """Cells and metric of a sweep file.

    The file has `experiment` (a YAML file beside it), `metric`, and `rows` (name -> list of flags, as on a command
    line). A sweep of several tasks has `tasks` (name -> `experiment`, `metric`, and `quickstart`, the experiment on
    the generated world) instead of the first two; a row that some of them do not have is a mapping of `flags` and
    `tasks`. In flags `prompts.X=1` is short for the prompt method's argument X.

    Args:
        path: of the file.
        seeds: of the runs.
        out: folder of the runs.
        task: one of the file's; `None` is the first.
        quickstart: take the task's experiment on the generated world.

    Raises:
        ConfigError: the file is missing, has other keys, or not this task.
    """
    content, hint = read_yaml(path), "See experiments/sweeps/."
    if not isinstance(content, dict) or set(content) not in (KEYS, {"tasks", "rows"}):
        raise ConfigError(path, content, "the keys experiment, rows, metric, or tasks, rows", hint)
    if "tasks" not in content:
        if task is not None or quickstart:
            raise ConfigError(f"{path}: --task, --quickstart", task or "quickstart",
                              "none: the file has one experiment", "Leave them out.")
        chosen = content
    else:
        tasks = content["tasks"]
        for name, keys in tasks.items() if isinstance(tasks, dict) else [("tasks", tasks)]:
            if not isinstance(keys, dict) or set(keys) != TASK_KEYS:
                raise ConfigError(f"{path}: {name}", keys, f"the keys {sorted(TASK_KEYS)}", hint)
        task = next(iter(tasks)) if task is None else task
        if task not in tasks:
            raise ConfigError(f"{path}: --task", task, f"one of {', '.join(tasks)}",
                              "The published table has no other.")
        chosen = tasks[task]
    experiment = chosen["quickstart" if quickstart else "experiment"]
    config = (path.parent / f"{experiment}.yaml").resolve()
    if not config.is_file():
        raise ConfigError(f"{path}: experiment", config, "an existing experiment", "Give its path without ending.")
    rows: dict[str, list[str]] = {}
    for row, entry in content["rows"].items():
        if isinstance(entry, dict):
            if set(entry) != {"flags", "tasks"} or not set(entry["tasks"]) <= set(content.get("tasks", {})):
                raise ConfigError(f"{path}: {row}", entry, "flags, or flags and tasks of this file", hint)
            if task not in entry["tasks"]:
                continue
            entry = entry["flags"]
        rows[str(row)] = [short(str(flag)) for flag in entry or []]
    cells = [Cell(row, seed, config, flags, out / f"{row}-seed{seed}") for seed in seeds for row, flags in rows.items()]
    return cells, chosen["metric"]


def short(flag: str) -> str:
    """`prompts=C` and `prompts.X=1` stand for the prompt method and its argument X; other flags are as they are."""
    name, equals, value = flag.partition("=")
    if name == "prompts":
        return f"{PREFIX}=avprompt.prompts.{value}"
    argument = name.removeprefix("prompts.")
    return flag if argument == name else f"{PREFIX}.init_args.{argument}{equals}{value}"


def run_cell(cell: Cell, threads: int) -> str | None:
    """Run a cell in processes of its own; returns what went wrong, `None` if nothing."""
    shutil.rmtree(cell.folder, ignore_errors=True)
    cell.folder.mkdir(parents=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (cell.folder / "log.txt").open("w", encoding="utf-8") as log:
        for command in cell.commands():
            done = subprocess.run([sys.executable, "-m", "avprompt", *command], stdout=log, stderr=subprocess.STDOUT,
                                  env=environment, check=False)
            if done.returncode:
                return f"{command[0]} ended with code {done.returncode}, see {cell.folder / 'log.txt'}"
    return None


def summarise(cells: list[Cell], metric: str, out: Path) -> str:
    """Write results.csv (a line a finished cell) and summary.md (mean and spread a row); returns the table."""
    lines: list[dict[str, Any]] = []
    for cell in cells:
        if cell.result.is_file():
            result = json.loads(cell.result.read_text(encoding="utf-8"))
            fit = json.loads((cell.folder / "fit" / "result.json").read_text(encoding="utf-8"))
            lines.append({"row": cell.row, "seed": cell.seed, metric: result["metrics"][metric],
                          "trainable": result["parameters"]["trainable"], "fit_seconds": fit["wall_s"]})
    with (out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["row", "seed", metric, "trainable", "fit_seconds"])
        writer.writeheader()
        writer.writerows(lines)
    table = [f"| row | {metric} (mean ± std) | per seed | trainable | fit, s |", "|---|---|---|---|---|"]
    for row in dict.fromkeys(cell.row for cell in cells):
        mine = [line for line in lines if line["row"] == row]
        if not mine:
            table.append(f"| {row} | not finished | | | |")
            continue
        values = [100 * line[metric] for line in mine]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        seconds = statistics.mean(line["fit_seconds"] for line in mine)
        each = ", ".join(f"{v:.1f}" for v in values)
        table.append(f"| {row} | {statistics.mean(values):.1f} ± {spread:.1f} | {each} | {mine[0]['trainable']:,} "
                     f"| {seconds:.0f} |")
    text = "\n".join(table) + "\n"
    (out / "summary.md").write_text(text, encoding="utf-8")
    return text


def sweep(file: Path, out: Path | None = None, seeds: list[int] = [0, 1, 2], jobs: int = 2,  # noqa: B006
          task: str | None = None, quickstart: bool = False) -> None:
    """Run every row of a sweep with every seed: fit, then test the checkpoint selected on the validation split.

    A cell whose test/result.json exists is not run again, so an interrupted sweep goes on where it stopped. A cell that
    fails is reported, the others proceed. Processor cores are shared among the jobs.

    Args:
        file: sweep file, such as experiments/sweeps/quickstart_ablation.yaml.
        out: folder of the runs; `None` is runs/<name of the sweep>, with the task's name after it where one is given.
        seeds: of the runs.
        jobs: cells at a time.
        task: of a sweep of several tasks, such as ave, avvp, avs_s4, avs_ms3, avqa; `None` is its first.
        quickstart: run the task's experiment on the generated world, which `avprompt quickstart --task X` makes.

    Raises:
        ConfigError: the file is missing or has other keys; at the end, when cells have failed.
    """
    name = "_".join(filter(None, (Path(file).stem, task, "quickstart" if quickstart else None)))
    out = Path(out) if out else Path("runs") / name
    cells, metric = read_sweep(Path(file), seeds, out, task, quickstart)
    out.mkdir(parents=True, exist_ok=True)
    todo = [cell for cell in cells if not cell.result.is_file()]
    threads, lock, failed = max(1, (os.cpu_count() or 1) // jobs), threading.Lock(), {}
    print(f"{len(cells)} cells, {len(cells) - len(todo)} finished before, {jobs} at a time with {threads} threads each")
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(todo), desc="sweep", unit="cell") as bar:

        def work(cell: Cell) -> None:
            problem = run_cell(cell, threads)
            with lock:
                bar.update()
                if problem:
                    failed[f"{cell.row}, seed {cell.seed}"] = problem
                    bar.write(f"failed: {cell.row}, seed {cell.seed}: {problem}")
                summarise(cells, metric, out)

        list(pool.map(work, todo))
    print(summarise(cells, metric, out))
    if failed:
        raise ConfigError(file, f"{len(failed)} failed cells: {failed}", "all cells finished",
                          "Mend the cause and run the sweep again: finished cells are kept.")
