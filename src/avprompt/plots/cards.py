"""A card for a question about a clip: question, frames, waveform and answers."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure
from torch import Tensor

from avprompt.plots.timeline import draw_frames, draw_sound

RIGHT, WRONG, NEUTRAL, FAINT = "#0072B2", "#D55E00", "#222222", "#666666"


def question_figure(
    frames: Tensor,
    audio: Tensor,
    question: str,
    answer: str | None = None,
    prediction: str | None = None,
    grounding: Tensor | None = None,
    title: str = "",
    start: float = 0.0,
    valid: Tensor | None = None,
    stride: float = 1.0,
) -> Figure:
    """Draw the card of a question: the question, T frames, the waveform and the answers.

    Args:
        frames: (T, 3, H, W), uint8 or in [0, 1].
        audio: (T, S) in [-1, 1].
        question: the question in words.
        answer: the annotated answer.
        prediction: the predicted answer, blue if it is the annotated one and vermilion if it is not.
        grounding: (T, rows, columns) attention maps of the audio, drawn over the frames in a row below them, on one
            scale for the whole clip.
        title: small text below.
        start: second of the file at which the clip starts.
        valid: (T,) bool; segments that are padding have pale frames and hatched sound.
        stride: seconds from the start of a segment to the start of the next.

    Returns:
        A figure without a window; save it or give it to a logger.

    Raises:
        ShapeError: the number of grounding maps is not the number of frames.

    Example:
        >>> import torch
        >>> frames = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        >>> figure = question_figure(frames, torch.zeros(2, 100), "How many violins are there?", answer="two")
        >>> len(figure.axes)  # two frames, the sound, the answer
        4
    """
    count, decoded = len(frames), [True] * len(frames) if valid is None else valid.tolist()
    known, right = answer is not None and prediction is not None, answer == prediction
    colour = NEUTRAL if not known else RIGHT if right else WRONG
    told = [
        (text, shade, weight)
        for text, value, shade, weight in (
            (title, title or None, FAINT, "normal"),
            (f"annotated: {answer}", answer, NEUTRAL, "bold"),
            (
                f"predicted: {prediction}" + (f" ({'right' if right else 'wrong'})" if known else ""),
                prediction,
                colour,
                "bold",
            ),
        )
        if value is not None
    ]
    lines = textwrap.wrap(question, max(40, 10 * count))
    pictures = 1 if grounding is None else 2
    heights = [1.15] * pictures + [0.75] + [0.3] * bool(told)
    figure = Figure(figsize=(max(1.25 * count + 1, 5), 0.35 + sum(heights) + 0.3 * len(lines)), layout="constrained")
    figure.get_layout_engine().set(hspace=0.02, wspace=0.02)
    grid = figure.add_gridspec(len(heights), count, height_ratios=heights)
    figure.suptitle("\n".join(lines), fontsize=14, parse_math=False)
    draw_frames(figure, grid, frames, decoded)
    if grounding is not None:
        draw_frames(figure, grid, frames, decoded, grounding, row=1)
    sound = figure.add_subplot(grid[pictures, :])
    draw_sound(sound, audio, decoded, start)
    if stride != 1:  # there are gaps between segments: the tick below a segment says where it starts
        sound.set_xticks(range(count), [f"{start + stride * segment:g} s" for segment in range(count)])
    if told:
        row = figure.add_subplot(grid[pictures + 1, :])
        row.set_axis_off()
        for place, (text, shade, weight) in enumerate(told):
            row.text(
                (place + 0.5) / len(told),
                0.5,
                text,
                ha="center",
                va="center",
                fontsize=12,
                color=shade,
                fontweight=weight,
                parse_math=False,
            )
    return figure
