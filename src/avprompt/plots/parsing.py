"""A clip second by second: frames, waveform, and a line for each category that is heard or seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from avprompt.plots.timeline import bare, category_colour, draw_frames, draw_probabilities, draw_sound, runs

STYLES: dict[str, dict[str, Any]] = {"annotated": {"lw": 0}, "predicted": {"lw": 0, "hatch": "/////"}}
GREY = "#8c8c8c"
BAR, INCH = 0.4, 0.34  # height of a bar as a share of a category's line, and inches of that line


def _bars(axis: Axes, name: str, rows: dict[str, Tensor], class_names: Sequence[str], categories: list[int]) -> None:
    count = len(next(iter(rows.values())))
    axis.set_ylim(max(len(categories), 1), 0)
    bare(axis, count, "")
    axis.set_yticks(
        [line + 0.5 for line in range(len(categories))],
        [class_names[c] for c in categories],
        fontsize=9,
        parse_math=False,
    )
    axis.set_xticks(range(count + 1), [""] * (count + 1))
    axis.grid(axis="x", color="#dddddd", lw=0.6)
    axis.set_axisbelow(True)
    axis.set_ylabel(name, fontsize=9)
    axis.axhline(0, color="#cccccc", lw=0.8)
    if not categories:
        axis.text(count / 2, 0.5, "nothing", ha="center", va="center", fontsize=9, color=GREY)
    for line, category in enumerate(categories):
        for place, (kind, active) in enumerate(rows.items()):
            top = line + 0.5 + BAR * (place - len(rows) / 2)
            for start, end, on in runs(active[:, category].tolist()):
                if on:
                    axis.broken_barh(
                        [(start + 0.015, end - start - 0.03)],
                        (top + 0.02, BAR - 0.04),
                        facecolor=category_colour(category),
                        edgecolor="white",
                        **STYLES[kind],
                    )


def parsing_figure(
    frames: Tensor,
    audio: Tensor,
    class_names: Sequence[str],
    truth: tuple[Tensor, Tensor] | None = None,
    prediction: tuple[Tensor, Tensor] | None = None,
    title: str = "",
    start: float = 0.0,
    valid: Tensor | None = None,
    probabilities: Mapping[str, Tensor] | None = None,
) -> Figure:
    """Draw a clip with the events that are heard and those that are seen, without the categories that never occur.

    Args:
        frames: (T, 3, H, W), uint8 or in [0, 1].
        audio: (T, S) in [-1, 1].
        class_names: names of the categories.
        truth: annotated categories that are heard and that are seen, (T, C) bool each.
        prediction: predicted categories, in the same form; drawn hatched below.
        title: title of the picture.
        start: second of the file at which the clip starts.
        valid: (T,) bool; segments that are padding have pale frames and hatched sound.
        probabilities: name -> (T, C) of categories, drawn below.

    Returns:
        A figure without a window; save it or give it to a logger.

    Example:
        >>> import torch
        >>> frames, heard = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([[True], [False]])
        >>> figure = parsing_figure(frames, torch.zeros(2, 100), ["dog"], truth=(heard, ~heard))
        >>> len(figure.axes)  # two frames, the sound, what is heard, what is seen
        5
    """
    count, decoded = len(frames), [True] * len(frames) if valid is None else valid.tolist()
    pairs = {kind: pair for kind, pair in (("annotated", truth), ("predicted", prediction)) if pair is not None}
    parts = []
    for index, name in enumerate(("heard", "seen") if pairs else ()):
        rows = {kind: pair[index] for kind, pair in pairs.items()}
        categories = sum(row.any(0) for row in rows.values()).nonzero().flatten().tolist()
        parts.append((name, rows, categories))
    curves = dict(probabilities or {})
    heights = [1.15, 0.7, *(0.12 + INCH * max(len(categories), 1) for _, _, categories in parts), *[0.8] * len(curves)]
    figure = Figure(figsize=(1.25 * count + 1.5 + 1.2 * bool(curves), 0.9 + sum(heights)), layout="constrained")
    figure.get_layout_engine().set(hspace=0.02, wspace=0.02)
    grid = figure.add_gridspec(len(heights), count, height_ratios=heights)
    draw_frames(figure, grid, frames, decoded)
    draw_sound(figure.add_subplot(grid[1, :]), audio, decoded, start)
    for row, (name, rows, categories) in enumerate(parts, 2):
        _bars(figure.add_subplot(grid[row, :]), name, rows, class_names, categories)
    if pairs:
        figure.align_ylabels(figure.axes[-2:])
        draw_probabilities(figure, grid, 2 + len(parts), curves, class_names, decoded)
        figure.legend(
            handles=[Patch(facecolor=GREY, edgecolor="white", label=kind, **STYLES[kind]) for kind in pairs],
            loc="outside lower right",
            ncols=len(pairs),
            fontsize=8,
            frameon=False,
        )
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure
