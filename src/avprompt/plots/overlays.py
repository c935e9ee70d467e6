"""A clip with its sounding pixels marked: frames, annotated and predicted masks and waveform, second by second."""

from __future__ import annotations

import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from avprompt.errors import ShapeError
from avprompt.metrics.avs import jaccard
from avprompt.plots.timeline import draw_frames, draw_sound, unit

TRUTH, PREDICTION = "#56B4E9", "#E69F00"


def _marked(picture: Tensor, mask: Tensor, colour: str) -> Tensor:
    """(3, H, W) in [0, 1] -> the picture, its masked pixels under a colour and outlined."""
    mask = F.interpolate(mask[None, None].float(), picture.shape[1:], mode="nearest-exact")[0]
    paint = torch.tensor(to_rgb(colour)).view(3, 1, 1)
    inner = 1 - F.max_pool2d(1 - F.pad(mask, (1, 1, 1, 1)), 3, stride=1)
    body = torch.where(mask.bool(), 0.55 * picture + 0.45 * paint, picture)
    return torch.where((mask - inner).bool(), paint, body)


def overlay_figure(
    frames: Tensor,
    audio: Tensor,
    masks: Tensor | None = None,
    prediction: Tensor | None = None,
    annotated: Tensor | None = None,
    title: str = "",
    start: float = 0.0,
    valid: Tensor | None = None,
) -> Figure:
    """Draw a clip with the pixels that sound in it.

    Args:
        frames: (T, 3, H, W), uint8 or in [0, 1].
        audio: (T, S) in [-1, 1].
        masks: (T, M, M) in {0, 1}, the annotated pixels, in sky blue.
        prediction: (T, M, M) bool, the predicted pixels, in orange, with their intersection over union (IoU) with
            the annotated ones where a frame is annotated.
        annotated: (T,) bool, frames that have an annotated mask; `None` is all.
        title: title of the picture.
        start: second of the file at which the clip starts.
        valid: (T,) bool; segments that are padding have pale frames and hatched sound.

    Returns:
        A figure without a window; save it or give it to a logger.

    Raises:
        ShapeError: the masks are not one for each frame, or differ in size.

    Example:
        >>> frames, masks = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8)
        >>> figure = overlay_figure(frames, torch.zeros(2, 100), masks, prediction=masks.bool())
        >>> len(figure.axes)  # frames, masks and predictions, two each, and the sound
        7
    """
    count, shapes = len(frames), [tuple(values.shape) for values in (masks, prediction) if values is not None]
    if len(set(shapes)) > 1 or any(len(shape) != 3 or shape[0] != count for shape in shapes):
        raise ShapeError("masks, prediction", shapes, f"({count}, M, M), one a frame", "Check the task's mask_size.")
    decoded = [True] * count if valid is None else valid.tolist()
    known = [masks is not None] * count if masks is None or annotated is None else annotated.tolist()
    rows = [
        (name, values, colour)
        for name, values, colour in (("annotated", masks, TRUTH), ("predicted", prediction, PREDICTION))
        if values is not None
    ]
    figure = Figure(figsize=(1.9 * count + 0.6, 2.9 + 1.9 * len(rows)), layout="constrained")
    figure.get_layout_engine().set(hspace=0.02, wspace=0.02)
    grid = figure.add_gridspec(2 + len(rows), count, height_ratios=[1] * (1 + len(rows)) + [0.45])
    frames = unit(frames)
    draw_frames(figure, grid, frames, decoded)
    for row, (name, values, colour) in enumerate(rows, 1):
        for second in range(count):
            axis = figure.add_subplot(grid[row, second])
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
            if second == 0:
                axis.set_ylabel(name, fontsize=9)
            if name == "annotated" and not known[second]:
                axis.text(0.5, 0.5, "not annotated", ha="center", va="center", fontsize=9, transform=axis.transAxes)
                continue
            picture = _marked(frames[second], values[second], colour).permute(1, 2, 0).numpy()
            axis.imshow(picture, alpha=1.0 if decoded[second] else 0.25, aspect="equal")
            if name == "predicted" and known[second]:
                overlap = float(jaccard(prediction[second : second + 1], masks[second : second + 1]))
                axis.set_xlabel(f"IoU {overlap:.2f}" + ("" if masks[second].any() else ", nothing sounds"), fontsize=9)
    draw_sound(figure.add_subplot(grid[-1, :]), audio, decoded, start)
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure
