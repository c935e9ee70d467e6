"""Plots of a metric over the number of trained parameters, a point for each variant of `avprompt compare`."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from avprompt.reports.report import OKABE
from avprompt.reports.tables import standard_error
from avprompt.reports.variants import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: of the groups of variants that were measured alike: told apart without colours too
MARKERS = "os^Dv<>P"
#: where a label may stand: distances from its point in points, and directions, those that read best first
DISTANCES = (9, 14, 20, 28, 38, 50, 64, 80, 100, 125, 155, 190)
DIRECTIONS = tuple(math.radians(angle) for angle in (0, 35, -35, 180, 145, -145, 90, -90, 65, -65, 115, -115))
#: letters of the longest label
LONGEST = 44


def size_figure(variants: Sequence[Variant], metric: str) -> Figure:
    """A metric over trained parameters: means with standard errors over seeds, each with the name of its variant.

    Variants that were measured on the same data, with the same encoders, by the same protocol share colour and marker;
    only these compare. One that trains nothing is a dashed line across the plot. No two labels overlap.

    Args:
        variants: of one task.
        metric: of their runs.

    Returns:
        A figure without a window.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, NullFormatter

    shown = [variant for variant in variants if variant.values(metric)]
    settings = list(dict.fromkeys(str(variant.setting) for variant in shown))
    figure = Figure(figsize=(8.2, max(5.0, 3.4 + 0.17 * len(shown) + 0.3 * len(settings))), layout="constrained")
    axis = figure.add_subplot()
    points: list[tuple[float, float, float, str, str]] = []
    handles: dict[str, Any] = {}
    for variant in shown:
        values = [100 * value for value in variant.values(metric)]
        group = settings.index(str(variant.setting))
        colour, marker = OKABE[group % len(OKABE)], MARKERS[group % len(MARKERS)]
        mean, error = statistics.mean(values), standard_error(values)
        count = variant.runs[0].result["parameters"]["trainable"]
        name = textwrap.shorten(name_of(variant, shown), LONGEST, placeholder=" …")
        if count == 0:
            axis.axhline(mean, color=colour, ls="--", lw=1)
            axis.annotate(
                f"{name} (nothing is trained)",
                (0.01, mean),
                xytext=(0, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                fontsize=8,
                color=colour,
                parse_math=False,
            )
            continue
        handles[str(variant.setting)] = axis.errorbar(
            [count], [mean], yerr=[error], color=colour, marker=marker, ms=6, capsize=3, lw=1.2
        )
        points.append((count, mean, error, name, colour))
    if points:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
        counts = [count for count, *_ in points]
        within = max(counts) < 10 * min(counts)  # there may be no power of ten in view
        axis.xaxis.set_minor_formatter(EngFormatter(sep=" ") if within else NullFormatter())
    axis.margins(x=0.18, y=0.14)
    axis.set_xlabel("trainable parameters")
    seeds = sorted({len(variant.values(metric)) for variant in shown})
    several = f"mean ± standard error, n = {seeds[0]}" + (f" to {seeds[-1]}" if len(seeds) > 1 else "")
    axis.set_ylabel(f"{metric}, %" + (f"\n{several}" if seeds and seeds[-1] > 1 else "; one seed"))
    axis.grid(color="#e3e3e3", lw=0.6)
    axis.set_axisbelow(True)
    if len(handles) > 1:
        legend = figure.legend(
            list(handles.values()),
            [textwrap.fill(text, 120) for text in handles],
            loc="outside lower left",
            fontsize=7.5,
            frameon=False,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    place_labels(figure, axis, points)
    return figure


def name_of(variant: Variant, variants: Sequence[Variant]) -> str:
    """A variant's label, without the encoders where all have the same ones."""
    encoders = variant.setting.encoders
    alike = all(other.setting.encoders == encoders for other in variants)
    return variant.label.replace(f", {encoders}", "") if alike else variant.label


def place_labels(figure: Figure, axis: Any, points: Sequence[tuple[float, float, float, str, str]]) -> None:
    """Write names beside points, each at the nearest place where it covers no point, no error bar and no other name.

    Args:
        figure: of the plot, whose layout is settled by this.
        axis: of the points.
        points: x, y, half length of the error bar, name, colour.

    Example:
        >>> from matplotlib.figure import Figure
        >>> figure = Figure()
        >>> axis = figure.add_subplot()
        >>> place_labels(figure, axis, [(1, 1, 0, "LoRA", "black"), (1, 1, 0, "VPT", "black")])
        >>> [text.get_text() for text in axis.texts]
        ['LoRA', 'VPT']
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    from avprompt.plots.legible import legible

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # settles where things are
    unit, inside = figure.dpi / 72, axis.get_window_extent(renderer)
    taken = []
    for x, y, error, _, _ in points:
        (left, low), (right, high) = axis.transData.transform([(x, y - error), (x, y + error)])
        taken.append(Bbox([[left - 5 * unit, low - 5 * unit], [right + 5 * unit, high + 5 * unit]]))
    taken += [text.get_window_extent(renderer) for text in axis.texts]
    for line in axis.lines:
        if line.get_transform() == axis.get_yaxis_transform():  # across the plot
            height = axis.transData.transform((1, line.get_ydata()[0]))[1]
            taken.append(Bbox([[inside.x0, height - unit], [inside.x1, height + unit]]))
    ordered = sorted(points, key=lambda point: -point[1])
    texts = [
        axis.annotate(
            name,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            va="bottom",
            fontsize=8,
            color=colour,
            parse_math=False,
            in_layout=False,
        )
        for x, y, _, name, colour in ordered
    ]
    legible(figure)
    for (x, y, *_), text in zip(ordered, texts):
        size = text.get_window_extent(renderer)
        where = axis.transData.transform((x, y))
        box = None
        for distance in DISTANCES:
            for angle in DIRECTIONS:
                across, up = distance * math.cos(angle), distance * math.sin(angle)
                # the side of the label that faces the point stands at that distance
                left = where[0] + across * unit - size.width * (1 - math.cos(angle)) / 2
                low = where[1] + up * unit - size.height * (1 - math.sin(angle)) / 2
                tried = Bbox.from_bounds(left, low, size.width, size.height)
                within = inside.x0 <= left and tried.x1 <= inside.x1 and inside.y0 <= low and tried.y1 <= inside.y1
                if within and not any(tried.overlaps(other) for other in taken):
                    box = tried
                    break
            if box is not None:
                break
        else:  # the plot is full
            box = Bbox.from_bounds(where[0], where[1], size.width, size.height)
        taken.append(box)
        text.set_position(((box.x0 - where[0]) / unit, (box.y0 - where[1]) / unit))
        end = axis.transData.inverted().transform(
            (min(max(where[0], box.x0), box.x1), min(max(where[1], box.y0), box.y1))
        )
        axis.plot([x, end[0]], [y, end[1]], color="#999999", lw=0.6, zorder=1, scalex=False, scaley=False)
