"""Results of a sweep as tables: run by run, and mean and standard deviation over seeds."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any

from avprompt.errors import ConfigError
from avprompt.files import write_whole
from avprompt.reports.runs import STEP
from avprompt.reports.tables import STEP_COLUMNS, STEP_REMARK, effort_text
from avprompt.sweeps.run import SweepRun, read_json

#: columns of what a run took -> digits of their means
EFFORT = {"fit_seconds": 1, "step_wall_s": 6, "step_processor_s": 6, "step_memory_bytes": 0}


def collect(runs: list[SweepRun], metric: str) -> list[dict[str, Any]]:
    """One line for each finished run.

    Raises:
        ConfigError: a result without the metric.
    """
    lines = []
    for run in runs:
        if (result := run.outcome("test")) is None:
            continue
        if metric not in result["metrics"]:
            raise ConfigError(
                f"{run.result}: {metric}",
                sorted(result["metrics"]),
                "the sweep's metric",
                "Correct `metric` in the sweep file and run it again: finished runs are kept.",
            )
        value, fit = result["metrics"][metric], run.outcome("fit")
        step = (fit or {}).get("step") or {}
        resumed = (read_json(run.record) or {}).get("resumed", 0)
        lines.append(
            {
                "variant": run.variant,
                **({run.axis[0]: run.axis[1]} if run.axis else {}),
                "seed": run.seed,
                metric: float("nan") if value is None else value,
                "trainable": result["parameters"]["trainable"],
                # only the last part of a resumed training was timed
                "fit_seconds": fit["wall_s"] if fit and not resumed else "",
                **{f"step_{name}": "" if step.get(name) is None else step[name] for name in STEP},
            }
        )
    return lines


def condense(runs: list[SweepRun], metric: str) -> list[dict[str, Any]]:
    """One line for each variant and value of the axis: mean and standard deviation in percent, number of seeds,
    values."""
    lines, axis = collect(runs, metric), axis_of(runs)
    table = []
    for variant, value in dict.fromkeys((run.variant, run.axis and run.axis[1]) for run in runs):
        mine = [line for line in lines if line["variant"] == variant and line.get(axis) == value]
        values = [100 * line[metric] for line in mine]
        table.append(
            {
                "variant": variant,
                **({axis: "" if value is None else value} if axis else {}),
                "metric": metric,
                "mean": round(statistics.mean(values), 4) if values else "",
                "std": round(statistics.stdev(values), 4) if len(values) > 1 else "",
                "n": len(values),
                "values": " ".join(f"{value:.4f}" for value in values),
                "trainable": mine[0]["trainable"] if mine else "",
                **{name: mean_of(mine, name, digits) for name, digits in EFFORT.items()},
            }
        )
    return table


def mean_of(lines: list[dict[str, Any]], name: str, digits: int) -> float | str:
    """Mean of a column, empty where a line lacks it."""
    values = [line[name] for line in lines]
    return round(statistics.mean(values), digits) if values and "" not in values else ""


def columns_of(runs: list[SweepRun]) -> list[str]:
    """Names of the columns that tell runs apart."""
    return ["variant", *filter(None, [axis_of(runs)]), "seed"]


def axis_of(runs: list[SweepRun]) -> str | None:
    """Name of the argument that every variant runs through, `None` where there is none."""
    return next((run.axis[0] for run in runs if run.axis), None)


def mean_text(line: dict[str, Any]) -> str:
    """Mean and standard deviation of a line of `condense`, as the table prints them."""
    if not line["n"]:
        return "not finished"
    return f"{line['mean']:.1f}" + (f" ± {line['std']:.1f}" if line["n"] > 1 else "")


def markdown(runs: list[SweepRun], metric: str) -> str:
    """The table in Markdown: a line for each variant and, with an axis, a column for each of its values."""
    table, axis = condense(runs, metric), axis_of(runs)
    if axis is None:
        shown = [name for name in STEP if any(line[f"step_{name}"] != "" for line in table)]
        heads = [STEP_COLUMNS[name] for name in shown]
        rows = [["variant", f"{metric} (mean ± std)", "n", "per seed", "trainable", *heads, "fit, s"]]
        rows.append(["---"] * len(rows[0]))
        for line in table:
            each = ", ".join(f"{float(value):.1f}" for value in line["values"].split())
            rows.append(
                [
                    line["variant"],
                    mean_text(line),
                    str(line["n"]),
                    each,
                    f"{line['trainable']:,}" if line["n"] else "",
                    *(effort_text(line[f"step_{name}"], name) for name in shown),
                    "" if line["fit_seconds"] == "" else f"{line['fit_seconds']:.0f}",
                ]
            )
        return "".join(f"| {' | '.join(row)} |\n" for row in rows) + (f"\n{STEP_REMARK}\n" if shown else "")
    values = list(dict.fromkeys(line[axis] for line in table))
    values.sort(key=lambda value: value != "")  # variants without the axis stand first
    names = [f"{axis} {value}" if value != "" else "zero-shot" for value in values]
    rows = [["variant", *names, "trainable"], ["---"] * (len(names) + 2)]
    for variant in dict.fromkeys(line["variant"] for line in table):
        mine = {line[axis]: line for line in table if line["variant"] == variant}
        counts = [line["trainable"] for line in mine.values() if line["n"]]
        rows.append(
            [
                variant,
                *(f"{mean_text(mine[value])} ({mine[value]['n']})" if value in mine else "" for value in values),
                f"{counts[0]:,}" if counts else "",
            ]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + (
        f"\n{metric}, %: mean ± standard deviation (number of seeds)\n"
    )


def summarise(runs: list[SweepRun], metric: str, out: Path) -> str:
    """Write results.csv (a line for each finished run), summary.csv and summary.md (for each variant).

    Returns:
        The table in Markdown.

    Raises:
        ConfigError: a result without the metric.
    """
    condensed = condense(runs, metric)
    write_csv(out / "results.csv", [*columns_of(runs), metric, "trainable", *EFFORT], collect(runs, metric))
    write_csv(out / "summary.csv", list(condensed[0]), condensed)
    text = markdown(runs, metric)
    write_whole(out / "summary.md", text.encode())
    return text


def write_failures(runs: list[SweepRun], problems: dict[str, str], out: Path) -> None:
    """Write failed.csv, a line for each run that failed or did not finish; no such run, no file."""
    lines = [
        {
            "variant": run.variant,
            **({run.axis[0]: run.axis[1]} if run.axis else {}),
            "seed": run.seed,
            **(read_json(run.failure) or {"reason": problems.get(run.name)}),
            "log": run.log,
        }
        for run in runs
        if run.failure.exists() or run.name in problems
    ]
    path = out / "failed.csv"
    if lines:
        write_csv(path, [*columns_of(runs), "stage", "code", "reason", "log"], lines)
    else:
        path.unlink(missing_ok=True)


def write_csv(path: Path, columns: list[str], lines: list[dict[str, Any]]) -> None:
    """Write lines, which may lack columns, below a header."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    writer.writerows(lines)
    write_whole(path, table.getvalue().encode())
