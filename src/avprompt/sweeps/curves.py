"""Plots of sweeps: accuracy over shots or over arguments that are varied alone, beside published points."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from avprompt.configs import get_nested
from avprompt.reports import compare
from avprompt.reports.compare import Run
from avprompt.reports.published import Figure, read_published

if TYPE_CHECKING:
    from avprompt.sweeps.sweep import Cell

#: what the published plots call "CLIP ViT" is, in the authors' released scripts
ENCODERS = {"CLIP ViT": "CLIP ViT-B/32"}
CURVE = colormaps["tab10"](0)
WIDE = 100  # largest over smallest value from which on an argument has a logarithmic scale


def published_points(run: Run, method: str, figures: list[Figure]) -> dict[int | None, float]:
    """Shots (`None`: zero-shot) -> published accuracy of a method in percent, for a run on the same data and encoders.

    Empty for generated data, an incomplete test split, or other encoders. How the checkpoint was selected may differ:
    of most published points that is not known.

    Args:
        run: of the method.
        method: as published, which is also the row's name.
        figures: all that are published.
    """
    task, measured = compare.task_of(run).partition("_")[2], compare.setting_of(run).data.partition("|")[0]
    sizes, backbone = compare.sizes_of(figures), get_nested(run.config, "model.init_args.backbone.init_args") or {}
    names = {side: compare.encoder_name(backbone.get(side, "?")).removesuffix(compare.TRAIN_MODE)
             for side in ("visual", "audio")}
    return {int(figure.row.split()[0]) if "fewshot" in figure.task else None: figure.value for figure in figures
            if figure.task in (f"fewshot_{task}", f"zeroshot_{task}") and figure.method == method
            and compare.published_setting(figure, sizes).data == measured
            and all(ENCODERS.get(name := getattr(figure, side), name) in ("", names[side]) for side in names)}


def published_alike(run: Run, metric: str, figures: list[Figure]) -> list[float]:
    """Published figures of a run's row in percent, where data, encoders and protocol are the published ones.

    Args:
        run: that was tested.
        metric: of the run, with or without its stage.
        figures: all that are published.
    """
    setting = compare.setting_of(run)
    setting = replace(setting, data=setting.data.partition("|")[0],
                      encoders=setting.encoders.replace(compare.TRAIN_MODE, ""))
    line = compare.Line(compare.task_of(run), "", setting, [run])
    compare.match(line, figures)
    alike, sizes = replace(setting, protocol=f"published, {setting.protocol}"), compare.sizes_of(figures)
    return list(dict.fromkeys(figure.value for figure in line.published.get(metric.removeprefix("test_"), [])
                              if compare.published_setting(figure, sizes) == alike))


def horizontal(panel: Axes, line: dict[str, Any], label: str, color: Any) -> Artist:
    """A dashed line with a band for the spread; returns what stands for it in a legend."""
    mean, spread = line["mean"], line["std"] or 0.0
    panel.axhspan(mean - spread, mean + spread, color=color, alpha=0.12, lw=0)
    return panel.axhline(mean, color=color, ls="--", label=label)


def shots_figure(lines: list[dict[str, Any]], axis: str, metric: str,
                 published: dict[str, dict[int | None, float]]) -> Picture:
    """A line a row with its spread over seeds; rows without the argument are horizontal; published points are hollow.

    Args:
        lines: of `avprompt.sweeps.sweep.condense`.
        axis: name of the argument.
        metric: of the figures.
        published: row -> `published_points`.
    """
    values = [value for value in dict.fromkeys(line[axis] for line in lines) if value != ""]
    scaled = all(isinstance(value, (int, float)) and value > 0 for value in values)
    rows = {row: {line[axis]: line for line in lines if line["row"] == row and line["n"]}
            for row in dict.fromkeys(line["row"] for line in lines)}
    curves = [row for row, mine in rows.items() if set(mine) - {""}]

    def place(value: Any, row: str) -> float:
        beside = 0.05 * (curves.index(row) - (len(curves) - 1) / 2)  # so that spreads do not hide each other
        return value * 2 ** beside if scaled else values.index(value) + beside

    figure = Picture(figsize=(7.5, 4.6), layout="constrained")
    panel, handles = figure.add_subplot(), []
    for number, (row, mine) in enumerate(rows.items()):
        look, known = {"color": colormaps["tab10"](number % 10)}, published.get(row, {})
        hollow = {**look, "marker": "D", "mfc": "white", "ms": 6, "ls": "none", "zorder": 3}
        if "" in mine:
            handles.append(horizontal(panel, mine[""], f"{row}, zero-shot", look["color"]))
            if None in known:
                panel.plot([0.01], [known[None]], **hollow, transform=panel.get_yaxis_transform())
        if row in curves:
            drawn = [value for value in values if value in mine]
            handles.append(panel.errorbar(
                [place(value, row) for value in drawn], [mine[value]["mean"] for value in drawn],
                yerr=[mine[value]["std"] or 0.0 for value in drawn], **look, marker="o", ms=5, capsize=3, label=row))
            cited = [value for value in drawn if value in known]
            panel.plot([place(value, row) for value in cited], [known[value] for value in cited], **hollow)
    if any(published.values()):
        handles += panel.plot([], [], "D", color="black", mfc="white", ms=6, label="published (other selection)")
    if scaled:
        panel.set_xscale("log", base=2)
        panel.minorticks_off()
    panel.set_xticks(values if scaled else range(len(values)), [str(value) for value in values])
    panel.set_xlabel(axis)
    panel.set_ylabel(f"{metric}, %, mean ± standard deviation")
    panel.grid(color="#dddddd")
    panel.set_axisbelow(True)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def varied_figure(cells: list[Cell], lines: list[dict[str, Any]], metric: str, figures: list[Figure]) -> Picture:
    """A panel for each argument that is varied alone; the row that it is varied around stands in each, at its value.

    Other rows are horizontal; published points, of what was measured alike, are hollow.

    Args:
        cells: of a sweep with `vary`.
        lines: of `avprompt.sweeps.sweep.condense`.
        metric: of the figures.
        figures: all that are published.
    """
    runs = {cell.row: run_of(cell) for cell in cells if cell.outcome("test") is not None}
    measured = {line["row"]: line for line in lines if line["n"]}
    varied = [cell for cell in cells if cell.varied]
    paths = list(dict.fromkeys(cell.varied[0] for cell in varied))
    others = dict.fromkeys(cell.row for cell in cells if not cell.varied and cell.row in runs)
    centre = next((cell.row for cell in cells if cell.row in others and cell.recipe == varied[0].recipe[:-1]), None)
    own = {path: get_nested(runs[centre].config, path) for path in paths} if centre else {}
    figure, handles = Picture(figsize=(1 + 2.9 * len(paths), 3.9), layout="constrained"), {}
    for panel, path in zip(figure.subplots(1, len(paths), sharey=True, squeeze=False)[0], paths):
        planned = {cell.varied[1]: cell.row for cell in varied if cell.varied[0] == path}
        planned |= {own[path]: centre} if centre else {}
        numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in planned)
        values = sorted(planned) if numeric else list(planned)
        places = dict(zip(values, values if numeric else range(len(values))))
        for number, row in enumerate(others):
            if row != centre:
                handles[row] = horizontal(panel, measured[row], row, colormaps["tab10"](number + 1))
        drawn = [value for value in values if planned[value] in runs]
        found = [measured[planned[value]] for value in drawn]
        panel.errorbar([places[value] for value in drawn], [line["mean"] for line in found],
                       yerr=[line["std"] or 0.0 for line in found], color=CURVE, marker="o", ms=5, capsize=3)
        if centre:
            handles[centre], = panel.plot([places[own[path]]], [measured[centre]["mean"]], "*", color=CURVE, ms=13,
                                          ls="none", label=centre)
        cited = [(places[value], point) for value in drawn
                 for point in published_alike(runs[planned[value]], metric, figures)]
        if cited:
            handles["published"], = panel.plot(*zip(*cited), "D", color="black", mfc="white", ms=6, ls="none",
                                               zorder=3, label="published")
        if numeric and values[0] > 0 and values[-1] >= WIDE * values[0]:
            panel.set_xscale("log")
            panel.minorticks_off()
        panel.set_xticks(list(places.values()), [str(value) for value in values], fontsize=9)
        panel.set_xlabel(path.rpartition(".")[2])
        fixed = [f"{other.rpartition('.')[2]} = {own[other]}" for other in own if other != path]
        panel.set_title(", ".join(fixed), fontsize=9)
        panel.grid(color="#dddddd")
        panel.set_axisbelow(True)
    figure.axes[0].set_ylabel(f"{metric}, %, mean ± standard deviation", fontsize=9)
    figure.legend(handles=list(handles.values()), loc="outside upper center", ncols=len(handles) or 1, frameon=False,
                  fontsize=9)
    return figure


def write_plot(cells: list[Cell], lines: list[dict[str, Any]], metric: str, out: Path) -> Path:
    """Draw a sweep with `axis` or `vary` to a file in its folder named after the arguments; returns the file.

    Args:
        cells: of the sweep.
        lines: of `avprompt.sweeps.sweep.condense`.
        metric: of the figures.
        out: folder of the sweep.
    """
    figures, published = read_published(), {}
    names = dict.fromkeys(cell.axis[0] if cell.axis else cell.varied[0].rpartition(".")[2]
                          for cell in cells if cell.axis or cell.varied)
    path = out / f"{'-'.join(names)}.png"
    if any(cell.varied for cell in cells):
        varied_figure(cells, lines, metric, figures).savefig(path, dpi=130)
        return path
    axis, = names
    for cell in cells:
        if axis == "shots" and cell.row not in published and cell.outcome("test") is not None:
            published[cell.row] = published_points(run_of(cell), cell.row, figures)
    shots_figure(lines, axis, metric, published).savefig(path, dpi=130)
    return path


def run_of(cell: Cell) -> Run:
    """A finished cell's test, which knows the run that trained its checkpoint."""
    fit, folder = cell.outcome("fit"), cell.folder / "test"
    manifest = folder / "manifest.json"
    return Run(folder, cell.outcome("test") or {},
               json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {},
               Run(cell.folder / "fit", fit, {}) if fit else None)
