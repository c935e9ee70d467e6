"""Plots of sweeps: a metric over shots, clips or steps, or over arguments that are varied alone, beside published
points."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from avprompt.configs import get_nested
from avprompt.plots.saving import save_figure
from avprompt.reports.published import Figure, read_published
from avprompt.reports.report import DASHES, OKABE
from avprompt.reports.runs import Run, task_of
from avprompt.reports.settings import TRAIN_MODE, encoder_name, published_setting, setting_of, sizes_of
from avprompt.reports.variants import Variant, match
from avprompt.sweeps.run import SweepRun

#: what the published plots call "CLIP ViT" is, in the authors' released scripts
ENCODERS = {"CLIP ViT": "CLIP ViT-B/32"}
#: of the variants, in turn, for every colour vision, with markers and dashes that tell them apart without colours
CURVE = OKABE[0]
MARKERS = "os^vPX*d"
#: what stands below the plot, where the argument's name says too little
AXES = {"shots": "shots: training clips of each category", "clips": "training clips", "steps": "training steps"}
#: quotient of largest and smallest value from which on an argument has a logarithmic scale
WIDE = 100


def published_points(run: Run, method: str, figures: list[Figure]) -> dict[int | None, float]:
    """Shots (`None`: zero-shot) -> published accuracy of a method in percent, for a run on the same data and encoders.

    Empty for synthetic data, an incomplete test split, or other encoders. The checkpoint may have been selected in
    another way, which is unknown for most published points.

    Args:
        run: of the method.
        method: as published, which is also the name of the variant.
        figures: everything published.
    """
    task, measured = task_of(run).partition("_")[2], setting_of(run).data.partition("|")[0]
    sizes, backbone = sizes_of(figures), get_nested(run.config, "model.init_args.backbone.init_args") or {}
    names = {side: encoder_name(backbone.get(side, "?")).removesuffix(TRAIN_MODE) for side in ("visual", "audio")}
    return {
        int(figure.row.split()[0]) if "fewshot" in figure.task else None: figure.value
        for figure in figures
        if figure.task in (f"fewshot_{task}", f"zeroshot_{task}")
        and figure.method == method
        and published_setting(figure, sizes).data == measured
        and all(ENCODERS.get(name := getattr(figure, side), name) in ("", names[side]) for side in names)
    }


def published_alike(run: Run, metric: str, figures: list[Figure]) -> list[float]:
    """Published figures of a run's variant in percent, where data, encoders and protocol are the published ones.

    Args:
        run: that was tested.
        metric: of the run, with or without its stage.
        figures: everything published.
    """
    setting = setting_of(run)
    setting = replace(setting, data=setting.data.partition("|")[0], encoders=setting.encoders.replace(TRAIN_MODE, ""))
    variant = Variant(task_of(run), "", setting, [run])
    match(variant, figures)
    alike, sizes = replace(setting, protocol=f"published, {setting.protocol}"), sizes_of(figures)
    return list(
        dict.fromkeys(
            figure.value
            for figure in variant.published.get(metric.removeprefix("test_"), [])
            if published_setting(figure, sizes) == alike
        )
    )


def horizontal(panel: Axes, line: dict[str, Any], label: str, color: Any) -> Artist:
    """Draw a dashed line with a band for the spread; returns its legend entry."""
    mean, spread = line["mean"], line["std"] or 0.0
    panel.axhspan(mean - spread, mean + spread, color=color, alpha=0.12, lw=0)
    return panel.axhline(mean, color=color, ls="--", label=label)


def curve_figure(
    lines: list[dict[str, Any]], axis: str, metric: str, published: dict[str, dict[int | None, float]]
) -> Picture:
    """A curve for each variant with a band for its spread over seeds; variants without the argument are horizontal
    lines; published points are hollow. Between values that are no numbers there is no curve: their spreads are bars.

    Args:
        lines: of `avprompt.sweeps.table.condense`.
        axis: name of the argument, or what the budget counts.
        metric: of the figures.
        published: variant -> `published_points`.
    """
    values = [value for value in dict.fromkeys(line[axis] for line in lines) if value != ""]
    scaled = all(isinstance(value, (int, float)) and value > 0 for value in values)
    variants = {
        name: {line[axis]: line for line in lines if line["variant"] == name and line["n"]}
        for name in dict.fromkeys(line["variant"] for line in lines)
    }
    curves = [name for name, mine in variants.items() if set(mine) - {""}]
    values = sorted(values) if scaled else values

    def place(value: Any, name: str) -> float:
        beside = 0.05 * (curves.index(name) - (len(curves) - 1) / 2)  # keeps bars from hiding each other
        return value if scaled else values.index(value) + beside

    figure = Picture(figsize=(7.5, 4.6), layout="constrained")
    panel, handles = figure.add_subplot(), []
    for number, (name, mine) in enumerate(variants.items()):
        look, known = {"color": OKABE[number % len(OKABE)]}, published.get(name, {})
        hollow = {**look, "marker": "D", "mfc": "white", "ms": 6, "ls": "none", "zorder": 3}
        if "" in mine:
            handles.append(horizontal(panel, mine[""], f"{name}, zero-shot", look["color"]))
            if None in known:
                panel.plot([0.01], [known[None]], **hollow, transform=panel.get_yaxis_transform())
        if name in curves:
            drawn = [value for value in values if value in mine]
            places, means, spreads = (
                [place(value, name) for value in drawn],
                [mine[value]["mean"] for value in drawn],
                [mine[value]["std"] or 0.0 for value in drawn],
            )
            dashes = DASHES[number // len(OKABE) % len(DASHES)]
            mark = {**look, "marker": MARKERS[number % len(MARKERS)], "ms": 5, "ls": dashes, "label": name}
            if scaled:
                handles += panel.plot(places, means, **mark)
                panel.fill_between(
                    places,
                    [mean - spread for mean, spread in zip(means, spreads)],
                    [mean + spread for mean, spread in zip(means, spreads)],
                    **look,
                    alpha=0.15,
                    lw=0,
                )
            else:
                handles.append(panel.errorbar(places, means, yerr=spreads, **mark, capsize=3))
            cited = [value for value in drawn if value in known]
            panel.plot([place(value, name) for value in cited], [known[value] for value in cited], **hollow)
    if any(published.values()):
        handles += panel.plot([], [], "D", color="black", mfc="white", ms=6, label="published (other selection)")
    if scaled:
        panel.set_xscale("log", base=2)
        panel.minorticks_off()
    panel.set_xticks(values if scaled else range(len(values)), [str(value) for value in values])
    panel.set_xlabel(AXES.get(axis, axis))
    panel.set_ylabel(f"{metric}, %, mean ± standard deviation")
    panel.grid(color="#dddddd")
    panel.set_axisbelow(True)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def varied_figure(runs: list[SweepRun], lines: list[dict[str, Any]], metric: str, figures: list[Figure]) -> Picture:
    """A panel for each argument that is varied alone; the variant around which it varies appears in each, at its value.

    Other variants are horizontal lines; published points that were measured under the same conditions are hollow.

    Args:
        runs: of a sweep with `vary`.
        lines: of `avprompt.sweeps.table.condense`.
        metric: of the figures.
        figures: everything published.
    """
    tested = {run.variant: test_of(run) for run in runs if run.outcome("test") is not None}
    measured = {line["variant"]: line for line in lines if line["n"]}
    varied = [run for run in runs if run.varied]
    paths = list(dict.fromkeys(run.varied[0] for run in varied))
    others = dict.fromkeys(run.variant for run in runs if not run.varied and run.variant in tested)
    centre = next((run.variant for run in runs if run.variant in others and run.recipe == varied[0].recipe[:-1]), None)
    own = {path: get_nested(tested[centre].config, path) for path in paths} if centre else {}
    figure, handles = Picture(figsize=(1 + 2.9 * len(paths), 3.9), layout="constrained"), {}
    for panel, path in zip(figure.subplots(1, len(paths), sharey=True, squeeze=False)[0], paths):
        planned = {run.varied[1]: run.variant for run in varied if run.varied[0] == path}
        planned |= {own[path]: centre} if centre else {}
        numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in planned)
        values = sorted(planned) if numeric else list(planned)
        places = dict(zip(values, values if numeric else range(len(values))))
        for number, name in enumerate(others):
            if name != centre:
                handles[name] = horizontal(panel, measured[name], name, OKABE[(number + 1) % len(OKABE)])
        drawn = [value for value in values if planned[value] in tested]
        found = [measured[planned[value]] for value in drawn]
        panel.errorbar(
            [places[value] for value in drawn],
            [line["mean"] for line in found],
            yerr=[line["std"] or 0.0 for line in found],
            color=CURVE,
            marker="o",
            ms=5,
            capsize=3,
        )
        if centre:
            (handles[centre],) = panel.plot(
                [places[own[path]]], [measured[centre]["mean"]], "*", color=CURVE, ms=13, ls="none", label=centre
            )
        cited = [
            (places[value], point)
            for value in drawn
            for point in published_alike(tested[planned[value]], metric, figures)
        ]
        if cited:
            (handles["published"],) = panel.plot(
                *zip(*cited), "D", color="black", mfc="white", ms=6, ls="none", zorder=3, label="published"
            )
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
    figure.legend(
        handles=list(handles.values()), loc="outside upper center", ncols=len(handles) or 1, frameon=False, fontsize=9
    )
    return figure


def write_plot(
    runs: list[SweepRun], lines: list[dict[str, Any]], metric: str, out: Path, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Draw a sweep with `axis`, `budget` or `vary` into files of its folder, named after the arguments.

    Args:
        runs: of the sweep.
        lines: of `avprompt.sweeps.table.condense`.
        metric: of the figures.
        out: folder of the sweep.
        formats: see `avprompt.plots.saving.save_figure`.

    Returns:
        The files, one for each format.
    """
    figures, published = read_published(), {}
    names = dict.fromkeys(
        run.axis[0] if run.axis else run.varied[0].rpartition(".")[2] for run in runs if run.axis or run.varied
    )
    path = out / "-".join(names)
    if any(run.varied for run in runs):
        return save_figure(varied_figure(runs, lines, metric, figures), path, formats, dpi=130)
    (axis,) = names
    for run in runs:
        if axis == "shots" and run.variant not in published and run.outcome("test") is not None:
            published[run.variant] = published_points(test_of(run), run.variant, figures)
    return save_figure(curve_figure(lines, axis, metric, published), path, formats, dpi=130)


def test_of(run: SweepRun) -> Run:
    """The test of a finished run; it knows the run that trained its checkpoint."""
    fit, folder = run.outcome("fit"), run.folder / "test"
    manifest = folder / "manifest.json"
    return Run(
        folder,
        run.outcome("test") or {},
        json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {},
        Run(run.folder / "fit", fit, {}) if fit else None,
    )
