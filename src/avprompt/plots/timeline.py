"""A clip second by second: frames, waveform, annotated and predicted categories; and the parts of other pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from torch import Tensor
from torch.nn import functional as F

from avprompt.errors import ShapeError

LUMINANCE = (0.299, 0.587, 0.114)
BACKGROUND, WAVE, PADDING = "#e4e4e4", "#3b6ea5", "#b0b0b0"
#: Okabe and Ito's colours without black; tones towards white (positive) and black (negative)
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
TONES = (0.0, 0.45, -0.3, -0.55, 0.7, 0.25, -0.42, 0.58, -0.15)
#: curves of one kind that are drawn, and their dashes
CURVES = 5
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
CHARACTERS = 18  # of the smaller print that fit into one second


def category_colour(index: int) -> tuple[float, float, float]:
    """RGB colour of a category: the same in every picture, and distinct for dozens of categories.

    The first seven are those of Okabe and Ito (Color Universal Design, 2008), which people with any colour vision tell
    apart; further ones are lighter and darker tones of them. Where colour alone tells categories apart,
    `category_marker` goes with it.

    Example:
        >>> category_colour(3) == category_colour(3) != category_colour(4)
        True
    """
    tone = TONES[index // len(PALETTE) % len(TONES)]
    towards = 1.0 if tone > 0 else 0.0
    return tuple(value + abs(tone) * (towards - value) for value in to_rgb(PALETTE[index % len(PALETTE)]))


def category_marker(index: int) -> str:
    """Marker of a category in scatter plots; with `category_colour` it is its own for 63 categories.

    Example:
        >>> category_marker(0), category_marker(7)
        ('o', 's')
    """
    return MARKERS[index // len(PALETTE) % len(MARKERS)]


def runs(categories: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, end, category) of every maximal run of equal categories.

    Example:
        >>> runs([2, 2, 5])
        [(0, 2, 2), (2, 3, 5)]
    """
    starts = [t for t in range(len(categories)) if t == 0 or categories[t] != categories[t - 1]]
    return [(start, end, categories[start]) for start, end in zip(starts, [*starts[1:], len(categories)])]


def bare(axis: Axes, count: int, name: str) -> None:
    """Style shared by all rows: one unit a second, a name on the left, no frame around the axis."""
    axis.set_xlim(0, count)
    axis.set_yticks([sum(axis.get_ylim()) / 2], [name], fontsize=9)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def unit(frames: Tensor) -> Tensor:
    """Frames as floating-point numbers in [0, 1]: uint8 is divided by 255, floating-point frames stay.

    Example:
        >>> unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
        [0.0, 1.0]
    """
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()


def heat(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Maps (T, rows, columns) -> (T, H, W), scaled to [0, 1] by the minimum and maximum of the whole clip."""
    maps = maps.detach().float()
    low, high = maps.min(), maps.max()
    maps = (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).eps)
    return F.interpolate(maps[:, None], size, mode="bilinear")[:, 0].numpy()


def is_flat(maps: Tensor) -> bool:
    """Whether maps (T, rows, columns) are the same everywhere in the clip, as scores that saturate leave them.

    >>> is_flat(torch.full((2, 3, 3), 1 / 9)), is_flat(torch.eye(3)[None])
    (True, False)
    """
    return bool(maps.min() == maps.max())


def draw_frames(
    figure: Figure, grid: GridSpec, frames: Tensor, valid: Sequence[bool], maps: Tensor | None = None, row: int = 0
) -> None:
    """Draw frames (T, 3, H, W), uint8 or in [0, 1], in a row of a grid of T columns; padding is pale.

    With maps (T, rows, columns), a colour lies over the frame where the map is high, on one scale for the whole clip;
    where it is low the frame stays as it is. A scale stands at the right, and says so where the map is the same everywhere.

    Raises:
        ShapeError: another number of maps than of frames.
    """
    frames = unit(frames)
    if maps is not None:
        if maps.ndim != 3 or len(maps) != len(frames):
            raise ShapeError("maps", tuple(maps.shape), f"({len(frames)}, rows, columns)", "Give the sample's own map.")
        name = "map, the same\neverywhere" if is_flat(maps) else "map, lowest\nto highest"
        maps = heat(maps, tuple(frames.shape[-2:]))
    drawn = None
    for second, frame in enumerate(frames):
        axis = figure.add_subplot(grid[row, second])
        axis.imshow(frame.permute(1, 2, 0).numpy(), alpha=1.0 if valid[second] else 0.25, aspect="equal")
        if maps is not None and valid[second]:
            drawn = axis.imshow(maps[second], cmap="viridis", vmin=0, vmax=1, alpha=0.75 * maps[second], aspect="equal")
        axis.set_axis_off()
    if drawn is not None:
        scale(axis, ScalarMappable(Normalize(0, 1), "viridis"), name, (0, 1))


def scale(axis: Axes, colours: ScalarMappable, name: str, ticks: Sequence[float] | None = None) -> None:
    """A colour bar at the right of an axis that takes none of its width, so that time axes stay below each other."""
    bar = axis.figure.colorbar(
        colours,
        cax=axis.inset_axes((1.02, 0.08, max(0.012, 0.06 / 1.25), 0.84))
        if axis.get_aspect() != "auto"
        else axis.inset_axes((1.008, 0.08, 0.01, 0.84)),
    )
    bar.ax.tick_params(labelsize=7, length=2)
    if ticks is not None:
        bar.set_ticks(list(ticks))
    bar.set_label(name, fontsize=7)


def draw_curves(
    axis: Axes,
    edges: Sequence[float],
    values: np.ndarray,
    names: Sequence[str],
    name: str,
    categories: Sequence[int] = (),
) -> None:
    """Draw probabilities (T, C) of categories as steps, the likeliest five and the given ones, or (T, 1) of one thing.

    Args:
        axis: where.
        edges: T + 1 places on the time axis.
        values: in [0, 1]; NaN is left out.
        names: of the categories; a column after the last is background.
        name: of the curves.
        categories: that are drawn in any case.
    """
    single, peaks = values.shape[1] == 1, np.nan_to_num(values).max(0)
    order = [0] if single else dict.fromkeys([*categories, *np.argsort(-peaks)[:CURVES].tolist()])
    for place, index in enumerate(index for index in order if single or peaks[index] > 0):
        known = not single and index < len(names)
        axis.stairs(
            values[:, index],
            edges,
            baseline=None,
            lw=1.8,
            ls=DASHES[place % len(DASHES)],
            color=category_colour(index) if known else "#222222" if single else "#8a8a8a",
            label=textwrap.shorten(names[index] if known else name if single else "background", 24, placeholder=" …"),
        )
    axis.axhline(0.5, color="#bbbbbb", lw=0.8, zorder=0)
    axis.set_ylim(-0.03, 1.03)
    axis.set_yticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=7)
    axis.set_ylabel("\n".join(["probability", *([] if single else textwrap.wrap(name, 14))]), fontsize=8)
    if not axis.get_legend_handles_labels()[0]:  # nothing is likely at all
        return
    legend = axis.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.08), fontsize=7.5, frameon=False, handlelength=2.2, borderaxespad=0.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def draw_probabilities(
    figure: Figure,
    grid: GridSpec,
    row: int,
    probabilities: Mapping[str, Tensor],
    names: Sequence[str],
    valid: Sequence[bool],
) -> None:
    """Draw a row of curves for each kind of probabilities, (T, C) or (T,), from a row of a grid on."""
    for place, (name, values) in enumerate(probabilities.items()):
        shown = values.detach().float().reshape(len(values), -1).numpy().copy()
        shown[~np.asarray(valid)] = np.nan
        axis = figure.add_subplot(grid[row + place, :])
        draw_curves(axis, range(len(values) + 1), shown, names, name)
        axis.set_xlim(0, len(values))
        axis.set_xticks(range(len(values) + 1), [""] * (len(values) + 1))
        axis.grid(axis="x", color="#dddddd", lw=0.6)
        for side in axis.spines.values():
            side.set_visible(False)


def draw_sound(axis: Axes, audio: Tensor, valid: Sequence[bool], start: float) -> None:
    """Draw the waveform (T, S) over seconds that start at `start`; padding is hatched."""
    count, wave = len(audio), audio.flatten().float().numpy()
    step = max(1, len(wave) // 4000)
    envelope = wave[: len(wave) // step * step].reshape(-1, step)
    axis.fill_between(np.linspace(0, count, len(envelope)), envelope.min(1), envelope.max(1), color=WAVE, lw=0)
    axis.axhline(0, color=WAVE, lw=0.6)
    peak = max(float(np.abs(wave).max()), 1e-3)  # keeps silence a flat line
    axis.set_ylim(-1.05 * peak, 1.05 * peak)
    for begin, end, decoded in runs(valid):
        if not decoded:
            axis.axvspan(begin, end, facecolor="white", edgecolor=PADDING, hatch="////", lw=0, zorder=3)
            axis.text(
                (begin + end) / 2,
                0,
                "no media",
                ha="center",
                va="center",
                fontsize=8,
                zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )
    axis.set_xticks(range(count + 1), [f"{start + t:g} s" for t in range(count + 1)], fontsize=8)
    axis.grid(axis="x", color="#dddddd", lw=0.6)
    bare(axis, count, "sound")


def _categories(axis: Axes, name: str, categories: Sequence[int], class_names: Sequence[str]) -> None:
    axis.set_ylim(0, 1)
    for start, end, category in runs(categories):
        known = category < len(class_names)
        colour = category_colour(category) if known else to_rgb(BACKGROUND)
        axis.axvspan(start + 0.015, end - 0.015, color=colour, lw=0)
        label = class_names[category] if known else "background"
        lines = textwrap.wrap(label, CHARACTERS * (end - start), max_lines=2, placeholder=" …")
        axis.text(
            (start + end) / 2,
            0.5,
            "\n".join(lines),
            ha="center",
            va="center",
            parse_math=False,
            linespacing=1.05,
            fontsize=9 if len(lines) == 1 else 7.5,
            color="black" if np.dot(colour, LUMINANCE) > 0.5 else "white",
        )
    axis.set_xticks([])
    bare(axis, len(categories), name)


def clip_figure(
    frames: Tensor,
    audio: Tensor,
    class_names: Sequence[str],
    prediction: Tensor | None = None,
    truth: Tensor | None = None,
    title: str = "",
    start: float = 0.0,
    valid: Tensor | None = None,
    maps: Tensor | None = None,
    probabilities: Mapping[str, Tensor] | None = None,
) -> Figure:
    """Draw a clip with its annotated and predicted categories.

    Args:
        frames: (T, 3, H, W), uint8 or in [0, 1].
        audio: (T, S) in [-1, 1].
        class_names: names of the categories; an index after the last one is background.
        prediction: (T,) int64, the predicted category of each second.
        truth: (T,) int64, the annotated category of each second.
        title: title of the picture.
        start: second of the file at which the clip starts.
        valid: (T,) bool; segments that are padding have pale frames and hatched sound.
        maps: (T, rows, columns) attention maps, drawn over the frames in a row below them; see `draw_frames`.
        probabilities: name -> (T, C) of categories or (T,), drawn below the predicted categories.

    Returns:
        A figure without a window; save it or give it to a logger.

    Example:
        >>> frames = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        >>> figure = clip_figure(frames, torch.zeros(2, 100), ["dog"], truth=torch.tensor([0, 1]))
        >>> len(figure.axes)  # two frames, the sound, the annotation
        4
    """
    rows = [
        (name, values.tolist())
        for name, values in (("annotated", truth), ("predicted", prediction))
        if values is not None
    ]
    if truth is not None and prediction is not None:
        rows[1] = f"predicted,\n{int((truth == prediction).sum())} of {len(truth)} right", rows[1][1]
    count, decoded = len(frames), [True] * len(frames) if valid is None else valid.tolist()
    curves, pictures = dict(probabilities or {}), 1 if maps is None else 2
    heights = [1.15] * pictures + [0.7] + [0.36] * len(rows) + [0.8] * len(curves)
    figure = Figure(figsize=(1.25 * count + 1 + 1.2 * bool(curves), 0.6 + 1.06 * sum(heights)), layout="constrained")
    figure.get_layout_engine().set(hspace=0.02, wspace=0.02)
    grid = figure.add_gridspec(len(heights), count, height_ratios=heights)
    draw_frames(figure, grid, frames, decoded)
    if maps is not None:
        draw_frames(figure, grid, frames, decoded, maps, row=1)
    draw_sound(figure.add_subplot(grid[pictures, :]), audio, decoded, start)
    for row, (name, categories) in enumerate(rows, pictures + 1):
        _categories(figure.add_subplot(grid[row, :]), name, categories, class_names)
    draw_probabilities(figure, grid, pictures + 1 + len(rows), curves, class_names, decoded)
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure
