"""A clip second by second: frames, waveform, annotated and predicted categories; and the parts of other pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
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


def draw_frames(figure: Figure, grid: GridSpec, frames: Tensor, valid: Sequence[bool],
                maps: Tensor | None = None) -> None:
    """Draw frames (T, 3, H, W), uint8 or in [0, 1], in the first row of a grid of T columns; padding is pale.

    With maps (T, rows, columns), frames are grey and bright where the map is high, on one scale for the whole clip.

    Raises:
        ShapeError: another number of maps than of frames.
    """
    frames = unit(frames)
    if maps is not None:
        if maps.ndim != 3 or len(maps) != len(frames):
            raise ShapeError("maps", tuple(maps.shape), f"({len(frames)}, rows, columns)", "Give the sample's own map.")
        frames, maps = frames.mean(1, keepdim=True).expand_as(frames), heat(maps, tuple(frames.shape[-2:]))
    for second, frame in enumerate(frames):
        axis = figure.add_subplot(grid[0, second])
        axis.imshow(frame.permute(1, 2, 0).numpy(), alpha=1.0 if valid[second] else 0.25, aspect="auto")
        if maps is not None and valid[second]:
            axis.imshow(maps[second], cmap="inferno", vmin=0, vmax=1, alpha=0.6, aspect="auto")
        axis.set_axis_off()


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
            axis.text((begin + end) / 2, 0, "no media", ha="center", va="center", fontsize=8, zorder=4,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
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
        axis.text((start + end) / 2, 0.5, "\n".join(lines), ha="center", va="center", parse_math=False,
                  linespacing=1.05, fontsize=9 if len(lines) == 1 else 7.5,
                  color="black" if np.dot(colour, LUMINANCE) > 0.5 else "white")
    axis.set_xticks([])
    bare(axis, len(categories), name)


def clip_figure(frames: Tensor, audio: Tensor, class_names: Sequence[str], prediction: Tensor | None = None,
                truth: Tensor | None = None, title: str = "", start: float = 0.0,
                valid: Tensor | None = None, maps: Tensor | None = None) -> Figure:
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
        maps: (T, rows, columns) attention maps, drawn over the frames; see `draw_frames`.

    Returns:
        A figure without a window; save it or give it to a logger.

    Example:
        >>> frames = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        >>> figure = clip_figure(frames, torch.zeros(2, 100), ["dog"], truth=torch.tensor([0, 1]))
        >>> len(figure.axes)  # two frames, the sound, the annotation
        4
    """
    rows = [(name, values.tolist()) for name, values in (("annotated", truth), ("predicted", prediction))
            if values is not None]
    if truth is not None and prediction is not None:
        rows[1] = f"predicted,\n{int((truth == prediction).sum())} of {len(truth)} right", rows[1][1]
    count, decoded = len(frames), [True] * len(frames) if valid is None else valid.tolist()
    figure = Figure(figsize=(1.25 * count + 1, 2.5 + 0.45 * len(rows)), layout="constrained")
    figure.get_layout_engine().set(hspace=0.02, wspace=0.02)
    grid = figure.add_gridspec(2 + len(rows), count, height_ratios=[1.15, 0.7, *([0.36] * len(rows))])
    draw_frames(figure, grid, frames, decoded, maps)
    draw_sound(figure.add_subplot(grid[1, :]), audio, decoded, start)
    for row, (name, categories) in enumerate(rows):
        _categories(figure.add_subplot(grid[2 + row, :]), name, categories, class_names)
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure
