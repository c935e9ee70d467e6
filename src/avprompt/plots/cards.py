"""A question about a clip on one card: what was asked, what is seen and heard, what was answered."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure
from torch import Tensor

from avprompt.plots.timeline import draw_frames, draw_sound

RIGHT, WRONG, NEUTRAL, FAINT = "#1a7f37", "#c62828", "#222222", "#666666"


def question_figure(frames: Tensor, audio: Tensor, question: str, answer: str | None = None,
                    prediction: str | None = None, grounding: Tensor | None = None, title: str = "",
                    start: float = 0.0, valid: Tensor | None = None, stride: float = 1.0) -> Figure:
    """Draw a question's card: the question, T frames, the waveform, and the answers.

    Args:
        frames: (T, 3, H, W) in [0, 1].
        audio: (T, S) in [-1, 1].
        question: in words.
        answer: the annotated one.
        prediction: the predicted one, green where it is the annotated one and red where it is not.
        grounding: (T, rows, columns), where the sound is looked for, drawn over the frames, which become grey: bright
            where it is looked for most, on one scale for the whole clip.
        title: small, below.
        start: second of the file at which the clip begins.
        valid: (T,) bool; frames of segments that are padding are drawn pale, and their sound is hatched.
        stride: seconds from the beginning of a segment to that of the next.

    Returns:
        A figure that no window holds; save it or hand it to a logger.

    Raises:
        ShapeError: another number of grounding maps than of frames.
    """
    count, decoded = len(frames), [True] * len(frames) if valid is None else valid.tolist()
    known, right = answer is not None and prediction is not None, answer == prediction
    colour = NEUTRAL if not known else RIGHT if right else WRONG
    told = [(text, shade, weight) for text, value, shade, weight in (
        (title, title or None, FAINT, "normal"), (f"annotated: {answer}", answer, NEUTRAL, "bold"),
        (f"predicted: {prediction}" + (f" ({'right' if right else 'wrong'})" if known else ""), prediction, colour,
         "bold"),
    ) if value is not None]
    lines = textwrap.wrap(question, max(40, 10 * count))
    heights = [1.15, 0.75, *([0.3] if told else [])]
    figure = Figure(figsize=(max(1.25 * count + 1, 5), 0.35 + sum(heights) + 0.3 * len(lines)), layout="constrained")
    figure.get_layout_engine().set(hspace=0.02, wspace=0.02)
    grid = figure.add_gridspec(len(heights), count, height_ratios=heights)
    figure.suptitle("\n".join(lines), fontsize=14, parse_math=False)
    draw_frames(figure, grid, frames, decoded, grounding)
    sound = figure.add_subplot(grid[1, :])
    draw_sound(sound, audio, decoded, start)
    if stride != 1:  # segments do not follow one another: each begins where its tick says
        sound.set_xticks(range(count), [f"{start + stride * segment:g} s" for segment in range(count)])
    if told:
        row = figure.add_subplot(grid[2, :])
        row.set_axis_off()
        for place, (text, shade, weight) in enumerate(told):
            row.text((place + 0.5) / len(told), 0.5, text, ha="center", va="center", fontsize=12, color=shade,
                     fontweight=weight, parse_math=False)
    return figure
