"""One table for each task: variants beside published figures, parameters, seconds and memory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from avprompt.reports.published import Figure
from avprompt.reports.rendering import Table
from avprompt.reports.runs import STEP, Run
from avprompt.reports.settings import Setting, published_setting, sizes_of
from avprompt.reports.variants import Variant
from avprompt.reports.verdicts import WORDS, PairedTests, group_of, verdict_of

#: headings of `STEP`
STEP_COLUMNS = {"wall_s": "step, s", "processor_s": "step, CPU s", "memory_bytes": "step, GB"}
STEP_REMARK = (
    "step: one batch, forward and backward pass and update, without loading it; s: median on the clock; CPU s: median "
    "of processor time, which other work on the machine does not add to; GB: most memory of tensors alive at once, "
    "weights included. fit: the whole training on the clock. peak: of the whole process, libraries and data included; "
    "on a GPU, of PyTorch's allocator"
)


def letter(number: int) -> str:
    """a, b, ... z, aa, ab ..."""
    return ("" if number < 26 else letter(number // 26 - 1)) + chr(ord("a") + number % 26)


def metrics_of(variants: list[Variant], figures: list[Figure]) -> list[str]:
    """The metrics of a task's table: those that publications report, or else all that the runs have."""
    measured = dict.fromkeys(metric for variant in variants for run in variant.runs for metric in run.metrics())
    reported = dict.fromkeys(figure.metric for figure in figures if figure.task == variants[0].task)
    return [metric for metric in reported if metric in measured] or list(measured)


def tables(variants: list[Variant], figures: list[Figure], tested: Sequence[PairedTests] = ()) -> list[Table]:
    """Build one table for each task: our figure beside the published one, parameters, seconds and memory.

    Args:
        variants: compared runs.
        figures: what is published.
        tested: what `paired_tests` found, for the verdicts beside the figures.
    """
    sizes = sizes_of(figures)
    built = []
    for task in dict.fromkeys(variant.task for variant in variants):
        mine = [variant for variant in variants if variant.task == task]
        metrics, rows = metrics_of(mine, figures), []
        seen: dict[str, str] = {}

        def mark(setting: Setting, seen: dict[str, str] = seen) -> str:
            return f"[{seen.setdefault(str(setting), letter(len(seen)))}]"

        parameters = any(
            figure.trainable for variant in mine for found in variant.published.values() for figure in found
        )
        for variant in mine:
            cells = [variant.label, str(len(variant.runs))]
            for metric in metrics:
                values = [100 * value for value in variant.values(metric)]
                spread = f" ± {standard_error(values):.1f}" if len(values) > 1 else ""
                said = verdict_of(tested, variant, metric)
                verdict = f" ({said})" if said else ""
                cells.append(
                    f"{statistics.mean(values):.1f}{spread}{verdict} {mark(variant.setting)}" if values else ""
                )
                cited: dict[str, None] = {}
                for figure in variant.published.get(metric, []):
                    cited[f"{number(figure)} {mark(published_setting(figure, sizes))}"] = None
                cells.append(" / ".join(cited))
            first = variant.runs[0].result["parameters"]
            cells += (
                [f"{first['trainable']:,}"]
                + (
                    [
                        " / ".join(
                            dict.fromkeys(
                                figure.trainable
                                for found in variant.published.values()
                                for figure in found
                                if figure.trainable
                            )
                        )
                    ]
                    if parameters
                    else []
                )
                + [f"{first['total']:,}"]
            )
            seconds, peak = (
                variant.mean(lambda run: run.result["wall_s"]),
                variant.mean(lambda run: run.result["peak_memory_bytes"]),
            )
            trained = all(run.trained or not run.tested for run in variant.runs)
            cells += [
                *(effort_text(variant.mean(_of_step(name)), name) for name in STEP),
                f"{seconds:,.0f}" if trained and seconds is not None else "",
                f"{peak / 1e9:.2f}" if trained and peak is not None else "",
            ]
            rows.append(cells)
        header = [
            "variant",
            "n",
            *(name for metric in metrics for name in (f"{metric}, %", "published")),
            "trainable",
            *(["published"] if parameters else []),
            "total",
            *STEP_COLUMNS.values(),
            "fit, s",
            "peak, GB",
        ]
        measured = any(cell for row in rows for cell in row[-2 - len(STEP) : -2])
        built.append(
            Table(
                task,
                header,
                rows,
                {mark: text for text, mark in seen.items()},
                [remark for variant in mine for remark in variant.remarks]
                + citations(mine, metrics)
                + [STEP_REMARK] * measured,
            )
        )
    return built


def _of_step(name: str) -> Callable[[Run], Any]:
    return lambda run: run.step.get(name)


def effort_text(value: float | str | None, name: str) -> str:
    """A figure of a training step for a table.

    Args:
        value: mean over seeds; `None` or empty where it was not measured.
        name: of `STEP`.

    Example:
        >>> effort_text(0.01234, "wall_s"), effort_text(14_500_000_000, "memory_bytes"), effort_text(1234.5, "wall_s")
        ('0.0123', '14.5', '1,234')
    """
    if value is None or value == "":
        return ""
    shown = float(value) / 1e9 if name == "memory_bytes" else float(value)
    return f"{shown:,.0f}" if shown >= 100 else f"{shown:.3g}"


def published_tables(source: str, variants: list[Variant], figures: list[Figure]) -> list[Table]:
    """A published table as printed, one for each of its tasks: every row in published order, with our runs of it beside.

    Args:
        source: document and table, as in `published.csv`.
        variants: compared runs.
        figures: what is published.
    """
    found = [figure for figure in figures if figure.source == source and figure.unit == "percent"]
    return [
        _published_table(source, [figure for figure in found if figure.task == task], variants, figures)
        for task in dict.fromkeys(figure.task for figure in found)
    ]


def _published_table(source: str, found: list[Figure], variants: list[Variant], figures: list[Figure]) -> Table:
    sizes, task, metrics = sizes_of(figures), found[0].task, list(dict.fromkeys(figure.metric for figure in found))
    seen: dict[str, str] = {}

    def mark(setting: Setting) -> str:
        return f"[{seen.setdefault(str(setting), letter(len(seen)))}]"

    rows: list[list[str]] = []
    alone: dict[str, None] = {}
    runnable: set[str] = set()
    for printed in _rows_of(found):
        first, values = printed[0], {figure.metric: figure for figure in printed}
        name, same = ", ".join(filter(None, (first.method, first.row))), _with_settings(first, figures)
        if same is None:
            alone[name] = None
        else:
            runnable.add(name)
        ours = [own for own in variants if own.task == task and same and same.describes(own.runs[0].config)]
        for place, own in enumerate(ours or [None]):
            cells = ["" if place else name]
            for metric in metrics:
                figure = None if place else values.get(metric)
                shown = figure is not None and figure.value is not None
                mine = [] if own is None else [100 * value for value in own.values(metric)]
                spread = f" ± {standard_error(mine):.1f}" if len(mine) > 1 else ""
                cells.append(f"{number(figure)} {mark(published_setting(figure, sizes))}" if shown else "")
                cells.append(f"{statistics.mean(mine):.1f}{spread} {mark(own.setting)}" if mine else "")
            cells += ["" if place else first.trainable]
            cells += (
                ["", ""] if own is None else [f"{own.runs[0].result['parameters']['trainable']:,}", str(len(own.runs))]
            )
            rows.append(cells)
    lacking = [name for name in alone if name not in runnable]
    notes = dict.fromkeys(f"{figure.method}: {figure.note}" for figure in found if figure.note)
    return Table(
        task,
        [
            "row",
            *(text for metric in metrics for text in (f"{metric}, % published", "ours")),
            "trainable published",
            "ours",
            "n",
        ],
        rows,
        {text: setting for setting, text in seen.items()},
        [
            f"{source}, in its order; a row without ours has no run among these folders",
            *([f"figures alone, without a network of ours: {', '.join(lacking)}"] if lacking else []),
            *notes,
        ],
    )


def _rows_of(found: list[Figure]) -> list[list[Figure]]:
    """Figures of one table by its rows, each with one figure of a metric."""
    printed: list[list[Figure]] = []
    for figure in found:
        own = (figure.method, figure.row, figure.visual, figure.audio, figure.settings)
        for row in printed:
            first = row[0]
            if own == (first.method, first.row, first.visual, first.audio, first.settings) and all(
                other.metric != figure.metric for other in row
            ):
                row.append(figure)
                break
        else:
            printed.append([figure])
    return printed


def _with_settings(figure: Figure, figures: list[Figure]) -> Figure | None:
    """The figure, or where it has no settings one of another table that has, of the same method and encoders."""
    if figure.settings:
        return figure
    return next(
        (
            other
            for other in figures
            if other.settings
            and other.source != figure.source
            and (other.task, other.method.lower(), other.row) == (figure.task, figure.method.lower(), figure.row)
            and (not figure.visual or (other.visual, other.audio) == (figure.visual, figure.audio))
        ),
        None,
    )


def standard_error(values: list[float]) -> float:
    """Of the mean over seeds; 0 for one seed.

    Example:
        >>> standard_error([1.0, 3.0])
        1.0
    """
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def citations(variants: list[Variant], metrics: list[str]) -> list[str]:
    """Where the published figures of a table come from, and their notes; one sentence for each source."""
    rows: dict[str, list[str]] = {}
    for variant in variants:
        cited: dict[tuple[str, str], dict[str, list[str]]] = {}
        for metric in metrics:
            for figure in variant.published.get(metric, []):
                notes = cited.setdefault((figure.source, figure.row), {})
                for note in filter(None, figure.note.split("; ")):
                    notes.setdefault(note, []).append(metric)
                notes.setdefault("", []).append(metric)
        for (source, row), notes in cited.items():
            everywhere = notes.pop("")
            told = "; ".join(
                note if about == everywhere else f"{', '.join(about)}: {note}" for note, about in notes.items()
            )
            rows.setdefault(f"{source}" + (f" ({told})" if told else ""), []).append(
                variant.label + (f" = {row}" if row and row != variant.label else "")
            )
    return [f"published: {', '.join(labels)}: {source}" for source, labels in rows.items()]


def number(figure: Figure) -> str:
    """A published percentage with the digits that it is printed with."""
    return f"{figure.value:.2f}".removesuffix("0")


def drop_empty(table: Table) -> Table:
    """The table without columns that are empty in every row."""
    kept = [i for i in range(len(table.header)) if any(row[i] for row in table.rows)]
    return replace(table, header=[table.header[i] for i in kept], rows=[[row[i] for i in kept] for row in table.rows])


def long_rows(
    variants: list[Variant], figures: list[Figure], tested: Sequence[PairedTests] = ()
) -> list[dict[str, Any]]:
    """One row for each variant and each of its metrics, for spreadsheets and plots."""
    sizes = sizes_of(figures)
    rows = []
    for variant in variants:
        for metric in dict.fromkeys(metric for run in variant.runs for metric in run.metrics()):
            values, cited = [100 * value for value in variant.values(metric)], variant.published.get(metric, [])
            tests = group_of(tested, variant, metric)
            pair = None if tests is None else tests.pair(variant.label)
            if pair is not None and pair.first != tests.best:
                pair = pair.turned()
            rows.append(
                {
                    "task": variant.task,
                    "variant": variant.label,
                    "metric": metric,
                    "mean": round(statistics.mean(values), 4),
                    "standard_error": round(standard_error(values), 4) if len(values) > 1 else "",
                    "std": round(statistics.stdev(values), 4) if len(values) > 1 else "",
                    "n": len(values),
                    "seeds": " ".join(str(run.seed) for run in variant.runs),
                    "values": " ".join(f"{value:.4f}" for value in values),
                    "data": variant.setting.data,
                    "encoders": variant.setting.encoders,
                    "protocol": variant.setting.protocol,
                    "verdict": "" if tests is None else WORDS[tests.verdict(variant.label)],
                    "best": "" if tests is None else tests.best,
                    **{
                        f"behind_best{end}": "" if pair is None else round(100 * getattr(pair, name), 4)
                        for end, name in (("", "difference"), ("_low", "low"), ("_high", "high"))
                    },
                    "p": "" if pair is None else pair.p,
                    "p_holm": "" if pair is None else pair.adjusted,
                    "published": " / ".join(dict.fromkeys(number(figure) for figure in cited)),
                    "published_setting": " / ".join(dict.fromkeys(str(published_setting(f, sizes)) for f in cited)),
                    "published_source": " / ".join(dict.fromkeys(figure.source for figure in cited)),
                    "trainable": variant.runs[0].result["parameters"]["trainable"],
                    "total": variant.runs[0].result["parameters"]["total"],
                    "fit_seconds": variant.mean(lambda run: run.result["wall_s"]),
                    "peak_memory_bytes": variant.mean(lambda run: run.result["peak_memory_bytes"]),
                    **{f"step_{name}": variant.mean(_of_step(name)) for name in STEP},
                }
            )
    return rows
