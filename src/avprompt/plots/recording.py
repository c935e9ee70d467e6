"""A whole recording over its seconds: waveform, spectrogram, events, and the probabilities behind them.

The axes lie at places that are known (`place_of`), so that a page can move a cursor over the picture.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from avprompt.plots.timeline import BACKGROUND, WAVE, category_colour, draw_curves, runs

#: columns of a segment's spectrogram, points of its waveform, and bands between 0 Hz and half the sample rate
COLUMNS, POINTS, BANDS = 24, 60, 64
#: inches: margins, a second, the narrowest and the widest time axis
LEFT, RIGHT, SECOND, NARROW, WIDE = 1.35, 2.1, 0.16, 7.0, 60.0
PADDING = "#8a8a8a"


def mel(hertz: np.ndarray | float) -> np.ndarray:
    """Hertz -> mel, O'Shaughnessy's scale.

    Example:
        >>> round(float(mel(1000.0)))
        1000
    """
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def spectrogram(audio: Tensor, rate: int) -> np.ndarray:
    """Sound of segments (T, S) in [-1, 1] -> log-mel power in decibels below full scale, float32 (T, 64, 24)."""
    from torchaudio.transforms import MelSpectrogram

    length = audio.shape[1]
    hop = max(1, length // COLUMNS)
    window = min(max(256, 1 << (rate // 30).bit_length()), length)
    power = MelSpectrogram(rate, window, hop_length=hop, n_mels=BANDS, norm=None, mel_scale="htk")(audio.float())
    decibels = 10 * power.clamp(min=1e-10).log10() - 20 * np.log10(window / 4)
    return decibels[..., :COLUMNS].numpy()


def envelope(audio: Tensor) -> np.ndarray:
    """Sound of segments (T, S) -> least and greatest sample of 60 pieces of each, float32 (T, 60, 2)."""
    step = max(1, audio.shape[1] // POINTS)
    pieces = audio.float()[:, : audio.shape[1] // step * step].unflatten(1, (-1, step))
    return np.stack((pieces.amin(2).numpy(), pieces.amax(2).numpy()), -1)[:, :POINTS]


@dataclass
class Recording:
    """What is drawn of a recording of N segments.

    Args:
        times: begin and end of each segment in seconds, float (N, 2), ascending.
        valid: bool (N,), segments with picture and sound.
        reasons: N texts, why a segment is not valid; empty where it is.
        waves: see `envelope`, (N, P, 2); `None` without sound.
        bands: see `spectrogram`, (N, 64, K).
        rate: of the sound in Hz.
        labels: row's name -> N texts: names of categories, several separated by `;`; an empty text is none.
        curves: name -> probabilities in [0, 1], (N, C) of categories, or (N, 1) of something else.
        names: of the categories; a column after the last is background.
        length: seconds of the recording, where the file says.
        predicted: bool (N,), segments with a prediction; `None` is all with neither gap nor end.
    """

    times: np.ndarray
    valid: np.ndarray
    reasons: Sequence[str]
    waves: np.ndarray | None = None
    bands: np.ndarray | None = None
    rate: int = 16000
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    names: Sequence[str] = ()
    length: float | None = None
    predicted: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.predicted is None:
            self.predicted = np.array([not reason for reason in self.reasons])

    @property
    def begin(self) -> float:
        """Second at which the time axis begins."""
        return float(self.times[0, 0])

    @property
    def end(self) -> float:
        """Second at which the time axis ends."""
        return float(self.times[-1, 1])


def place_of(recording: Recording) -> tuple[float, float, float]:
    """Width of the picture in inches, and the shares of it at which the time axis begins and ends.

    Example:
        >>> width, left, right = place_of(Recording(np.array([[0.0, 1.0]]), np.array([True]), [""]))
        >>> 0 < left < right < 1
        True
    """
    inner = min(max(NARROW, SECOND * (recording.end - recording.begin)), WIDE)
    width = LEFT + inner + RIGHT
    return width, LEFT / width, (LEFT + inner) / width


def _colour(name: str, names: Sequence[str]) -> object:
    return category_colour(list(names).index(name)) if name in names else BACKGROUND


def pieces(times: np.ndarray) -> list[tuple[int, int]]:
    """First segment and the one after the last of each piece without gaps, from begin and end of segments (N, 2).

    Example:
        >>> pieces(np.array([[0.0, 1.0], [1.0, 2.0], [6.0, 7.0]]))
        [(0, 2), (2, 3)]
    """
    starts = [0, *(np.flatnonzero(np.abs(times[1:, 0] - times[:-1, 1]) > 1e-3) + 1).tolist()]
    return list(zip(starts, [*starts[1:], len(times)]))


def _sound(axis: Axes, recording: Recording) -> None:
    peak = max(float(np.abs(recording.waves).max()), 1e-3)
    step = max(1, recording.waves.shape[1] * len(recording.times) // 3000)
    for first, last in pieces(recording.times):
        waves = recording.waves[first:last].reshape(-1, 2)
        waves = waves[: max(1, len(waves) // step) * step].reshape(-1, min(step, len(waves)), 2)
        axis.fill_between(
            np.linspace(recording.times[first, 0], recording.times[last - 1, 1], len(waves)),
            waves[..., 0].min(1),
            waves[..., 1].max(1),
            color=WAVE,
            lw=0,
        )
    axis.axhline(0, color=WAVE, lw=0.5)
    axis.set_ylim(-1.05 * peak, 1.05 * peak)
    axis.set_yticks([-peak, 0, peak], [f"{-peak:.2g}", "0", f"{peak:.2g}"], fontsize=7)
    axis.set_ylabel("sound\n(full scale 1)", fontsize=8)


def _spectrogram(axis: Axes, recording: Recording) -> object:
    top = float(mel(recording.rate / 2))
    high = float(recording.bands[recording.valid].max()) if recording.valid.any() else 0.0
    picture = None
    for first, last in pieces(recording.times):
        place = (recording.times[first, 0], recording.times[last - 1, 1], 0, top)
        whole = recording.bands[first:last].transpose(1, 0, 2).reshape(recording.bands.shape[1], -1)
        step = max(1, recording.bands.shape[2] * len(recording.times) // 2000)
        whole = whole[:, : max(1, whole.shape[1] // step) * step]
        whole = whole.reshape(len(whole), -1, min(step, whole.shape[1])).max(2)
        picture = axis.imshow(
            whole,
            origin="lower",
            aspect="auto",
            extent=place,
            cmap="magma",
            vmin=high - 70,
            vmax=high,
            interpolation="nearest",
        )
    ticks = [hertz for hertz in (500, 1000, 2000, 4000, 8000, 16000) if hertz <= recording.rate / 2]
    axis.set_yticks(mel(np.array(ticks)), [f"{hertz / 1000:g}" for hertz in ticks], fontsize=7)
    axis.set_ylim(0, top)
    axis.set_ylabel("frequency\n(kHz, mel)", fontsize=8)
    return picture


def lines_of(labels: Sequence[str]) -> list[str]:
    """The different labels of a row in the order in which they begin; background is none.

    Example:
        >>> lines_of(["dog;bell", "background", "", "dog"])
        ['dog', 'bell']
    """
    return list(dict.fromkeys(label for text in labels for label in text.split(";") if label not in ("", "background")))


def _events(axis: Axes, name: str, labels: Sequence[str], recording: Recording) -> None:
    lines = lines_of(labels)
    axis.set_ylim(max(1, len(lines)), 0)
    axis.set_yticks(
        [place + 0.5 for place in range(len(lines))],
        [textwrap.shorten(line, 24, placeholder=" …") for line in lines],
        fontsize=8,
        parse_math=False,
    )
    axis.yaxis.tick_right()
    axis.set_ylabel("\n".join(textwrap.wrap(name.replace("_", " "), 12)), fontsize=8)
    for place, line in enumerate(lines):
        active = [line in text.split(";") for text in labels]
        spans = [
            (recording.times[first + begin, 0], recording.times[first + end - 1, 1])
            for first, last in pieces(recording.times)
            for begin, end, on in runs(active[first:last])
            if on
        ]
        axis.broken_barh(
            [(begin, end - begin) for begin, end in spans],
            (place + 0.12, 0.76),
            facecolor=_colour(line, recording.names),
            edgecolor="white",
            lw=0.5,
        )
    if not lines:
        axis.text(1.005, 0.5, "none", transform=axis.transAxes, fontsize=8, va="center", color="#555555")


def _curves(axis: Axes, name: str, values: np.ndarray, recording: Recording) -> None:
    times, shown = recording.times, np.where(recording.predicted[:, None], values, np.nan)
    edges, rows = [], []
    for first, last in pieces(times):  # nothing is drawn over the time between two pieces
        edges += [*times[first:last, 0], times[last - 1, 1]]
        rows += [*shown[first:last], np.full(shown.shape[1], np.nan)]
    draw_curves(axis, np.array(edges), np.stack(rows[:-1]), recording.names, name)


def recording_figure(recording: Recording, title: str = "") -> Figure:
    """Draw a recording: waveform, spectrogram in decibels, a line for each event, curves of the likeliest categories.

    Segments that are not valid are hatched over all rows, and their reason stands in them.

    Args:
        recording: what is drawn.
        title: of the picture.

    Returns:
        A figure without a window; the time axis lies at `place_of(recording)`.

    Example:
        >>> import torch
        >>> times, sound = np.array([[0.0, 1.0], [1.0, 2.0]]), torch.rand(2, 16000) - 0.5
        >>> figure = recording_figure(Recording(times, np.array([True, True]), ["", ""], envelope(sound),
        ...     spectrogram(sound, 16000), labels={"predicted": ["dog", "background"]}, names=["dog"],
        ...     curves={"event": np.array([[0.9], [0.1]])}))
        >>> len([axis for axis in figure.axes if axis.get_label() != "<colorbar>"])
        4
    """
    rows: list[tuple[float, str, Any]] = []
    if recording.waves is not None:
        rows.append((0.62, "sound", None))
    if recording.bands is not None:
        rows.append((0.95, "bands", None))
    rows += [
        (0.14 + 0.24 * max(1, len(lines_of(labels))), "events", (name, labels))
        for name, labels in recording.labels.items()
    ]
    rows += [
        (0.95 if values.shape[1] > 1 else 0.6, "curves", (name, values)) for name, values in recording.curves.items()
    ]
    gap, top, bottom = 0.12, 0.32 if title else 0.08, 0.42
    height = top + bottom + sum(size for size, *_ in rows) + gap * max(0, len(rows) - 1)
    width, left, right = place_of(recording)
    figure, above, axes = Figure(figsize=(width, height)), height - top, []
    for size, kind, given in rows:
        axis = figure.add_axes((left, (above - size) / height, right - left, size / height))
        above -= size + gap
        if kind == "sound":
            _sound(axis, recording)
        elif kind == "bands":
            picture = _spectrogram(axis, recording)
            bar = figure.add_axes(
                (
                    right + 0.12 / width,
                    axis.get_position().y0 + 0.08 * axis.get_position().height,
                    0.1 / width,
                    0.84 * axis.get_position().height,
                ),
                label="<colorbar>",
            )
            figure.colorbar(picture, cax=bar)
            bar.tick_params(labelsize=7)
            bar.set_ylabel("dB", fontsize=7)
        elif kind == "events":
            _events(axis, given[0], given[1], recording)
        else:
            _curves(axis, given[0], given[1], recording)
        axes.append(axis)
    step = next(
        step
        for step in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)
        if (recording.end - recording.begin) / step <= 24 or step == 3600
    )
    ticks = np.arange(np.ceil(recording.begin / step) * step, recording.end + 1e-6, step)
    for place, axis in enumerate(axes):
        axis.set_xlim(recording.begin, recording.end)
        named = [f"{tick:g}" for tick in ticks] if place == len(axes) - 1 else [""] * len(ticks)
        axis.set_xticks(ticks, named, fontsize=8)
        axis.tick_params(length=2)
        if rows[place][1] != "bands":
            axis.grid(axis="x", color="#dddddd", lw=0.5)
        axis.set_axisbelow(True)
        axis.yaxis.label.set(rotation=0, ha="right", va="center")
        axis.yaxis.set_label_coords(-0.42 / (width * (right - left)), 0.5)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        for side in axis.spines.values():
            side.set_color("#999999")
        _mark(axis, recording, place == 0)
    axes[-1].set_xlabel("seconds of the video", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10, y=1 - 0.08 / height, va="top", parse_math=False)
    return figure


def _mark(axis: Axes, recording: Recording, named: bool) -> None:
    # a segment that lacks sound or picture may be predicted all the same: it is marked in the first row alone
    first = 0
    while first < len(recording.times):
        last = first
        while last + 1 < len(recording.times) and recording.reasons[last + 1] == recording.reasons[first]:
            last += 1
        if recording.reasons[first] and (named or not recording.predicted[first]):
            begin, end = recording.times[first, 0], recording.times[last, 1]
            axis.axvspan(begin, end, facecolor="#f4f4f4", edgecolor=PADDING, hatch="////", lw=0, zorder=5)
            if named:
                room = max(4, int((end - begin) / (recording.end - recording.begin) * 100))
                axis.text(
                    (begin + end) / 2,
                    sum(axis.get_ylim()) / 2,
                    "\n".join(textwrap.wrap(recording.reasons[first], room, max_lines=3, placeholder=" …")),
                    ha="center",
                    va="center",
                    fontsize=7,
                    zorder=6,
                    parse_math=False,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
                )
        first = last + 1
