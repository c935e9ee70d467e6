"""A clip, second by second: frames, waveform, and what was there and what was predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

BACKGROUND = "#e4e4e4"


def category_colour(index: int) -> tuple[float, ...]:
    """The same colour for the same category in every picture."""
    return colormaps["tab20"]((2 * index + index // 10) % 20)


def _row(axis: object, name: str, categories: Sequence[int], class_names: Sequence[str]) -> None:
    for second, category in enumerate(categories):
        known = category < len(class_names)
        axis.axvspan(second, second + 1, color=category_colour(category) if known else BACKGROUND, lw=0)
    starts = [0, *(t for t in range(1, len(categories)) if categories[t] != categories[t - 1]), len(categories)]
    for start, end in zip(starts, starts[1:]):
        category = categories[start]
        label = class_names[category] if category < len(class_names) else "background"
        short = label if len(label) <= 11 * (end - start) else label[: 11 * (end - start) - 1] + "…"
        axis.text((start + end) / 2, 0.5, short, ha="center", va="center", fontsize=9)
    axis.set_xlim(0, len(categories))
    axis.set_ylim(0, 1)
    axis.set_yticks([0.5], [name], fontsize=9)
    axis.set_xticks(range(len(categories) + 1), [])
    axis.grid(axis="x", color="white", lw=1)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def clip_figure(frames: Tensor, audio: Tensor, class_names: Sequence[str], prediction: Tensor | None = None,
                truth: Tensor | None = None, title: str = "", start: float = 0.0,
                valid: Tensor | None = None) -> Figure:
    """Draw a clip.

    Args:
        frames: (T, 3, H, W) in [0, 1].
        audio: (T, S) in [-1, 1].
        class_names: of the categories; an index past the last is background.
        prediction: (T,) long, predicted category a second.
        truth: (T,) long, annotated category a second.
        title: of the picture.
        start: second of the file at which the clip begins.
        valid: (T,) bool; segments that are padding are drawn pale.

    Returns:
        A figure that no window holds; save it or hand it to a logger.
    """
    rows = [(name, values.tolist()) for name, values in (("annotated", truth), ("predicted", prediction))
            if values is not None]
    count = len(frames)
    figure = Figure(figsize=(1.25 * count + 1, 2.4 + 0.42 * len(rows)), layout="constrained")
    grid = figure.add_gridspec(2 + len(rows), count, height_ratios=[1.15, 0.7, *([0.32] * len(rows))], hspace=0.02,
                               wspace=0.02)
    pale = np.ones(count) if valid is None else np.where(valid.numpy(), 1.0, 0.25)
    for second in range(count):
        axis = figure.add_subplot(grid[0, second])
        axis.imshow(frames[second].permute(1, 2, 0).numpy(), alpha=pale[second], aspect="auto")
        axis.set_axis_off()
    axis = figure.add_subplot(grid[1, :])
    wave = audio.flatten().numpy()
    step = max(1, len(wave) // 4000)
    envelope = wave[: len(wave) // step * step].reshape(-1, step)
    seconds = np.linspace(0, count, len(envelope))
    axis.fill_between(seconds, envelope.min(1), envelope.max(1), color="#3b6ea5", lw=0)
    axis.set_xlim(0, count)
    peak = max(float(np.abs(wave).max()), 1e-3)
    axis.set_ylim(-1.05 * peak, 1.05 * peak)
    axis.set_yticks([0], ["sound"], fontsize=9)
    axis.set_xticks(range(count + 1), [f"{start + t:g} s" for t in range(count + 1)], fontsize=8)
    axis.grid(axis="x", color="#dddddd", lw=0.6)
    axis.tick_params(length=0)
    for row, (name, categories) in enumerate(rows):
        _row(figure.add_subplot(grid[2 + row, :]), name, categories, class_names)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
