"""A clip, second by second: frames, waveform, and what was there and what was predicted."""

from __future__ import annotations

import colorsys
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
GOLDEN_RATIO = 0.618033988749895
CHARACTERS = 18  # of the smaller print that fit into one second


def category_colour(index: int) -> tuple[float, float, float]:
    """RGB of a category: the same in every picture, another one for each of dozens."""
    return colorsys.hls_to_rgb(index * GOLDEN_RATIO % 1.0, (0.75, 0.55, 0.65)[index % 3], (0.85, 0.5)[index % 2])


def runs(categories: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, end, category) of every maximal run of equal categories."""
    starts = [t for t in range(len(categories)) if t == 0 or categories[t] != categories[t - 1]]
    return [(start, end, categories[start]) for start, end in zip(starts, [*starts[1:], len(categories)])]


def bare(axis: Axes, count: int, name: str) -> None:
    """Common to all rows: one unit a second, a name on the left, no frame."""
    axis.set_xlim(0, count)
    axis.set_yticks([sum(axis.get_ylim()) / 2], [name], fontsize=9)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def heat(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Maps (T, rows, columns) -> (T, H, W) in [0, 1], smallest and largest over the whole clip."""
    maps = maps.detach().float()
    low, high = maps.min(), maps.max()
    maps = (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).eps)
    return F.interpolate(maps[:, None], size, mode="bilinear")[:, 0].numpy()


def draw_frames(figure: Figure, grid: GridSpec, frames: Tensor, valid: Sequence[bool],
                maps: Tensor | None = None) -> None:
    """The first row of a grid of T columns: frames (T, 3, H, W) in [0, 1], pale where they are padding.

    With maps (T, rows, columns) the frames are grey, and bright where the map is highest, on one scale for the whole clip.

    Raises:
        ShapeError: another number of maps than of frames.
    """
    if maps is not None:
        if maps.ndim != 3 or len(maps) != len(frames):
            raise ShapeError("maps", tuple(maps.shape), f"({len(frames)}, rows, columns)", "Hand on the sample's own map.")
        frames, maps = frames.mean(1, keepdim=True).expand_as(frames), heat(maps, tuple(frames.shape[-2:]))
    for second, frame in enumerate(frames):
        axis = figure.add_subplot(grid[0, second])
        axis.imshow(frame.permute(1, 2, 0).float().numpy(), alpha=1.0 if valid[second] else 0.25, aspect="auto")
        if maps is not None and valid[second]:
            axis.imshow(maps[second], cmap="inferno", vmin=0, vmax=1, alpha=0.6, aspect="auto")
        axis.set_axis_off()


def draw_sound(axis: Axes, audio: Tensor, valid: Sequence[bool], start: float) -> None:
    """The waveform (T, S) over seconds from `start` on, hatched where it is padding."""
    count, wave = len(audio), audio.flatten().float().numpy()
    step = max(1, len(wave) // 4000)
    envelope = wave[: len(wave) // step * step].reshape(-1, step)
    axis.fill_between(np.linspace(0, count, len(envelope)), envelope.min(1), envelope.max(1), color=WAVE, lw=0)
    axis.axhline(0, color=WAVE, lw=0.6)
    peak = max(float(np.abs(wave).max()), 1e-3)  # silence stays a flat line
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
    """Draw a clip.

    Args:
        frames: (T, 3, H, W) in [0, 1].
        audio: (T, S) in [-1, 1].
        class_names: of the categories; an index past the last is background.
        prediction: (T,) long, predicted category a second.
        truth: (T,) long, annotated category a second.
        title: of the picture.
        start: second of the file at which the clip begins.
        valid: (T,) bool; frames of segments that are padding are drawn pale, and their sound is hatched.
        maps: (T, rows, columns), where the network looks, drawn over the frames; see `draw_frames`.

    Returns:
        A figure that no window holds; save it or hand it to a logger.
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
