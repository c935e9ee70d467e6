"""The page of predictions: each video beside its timeline, under a cursor that moves with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avprompt.errors import ClipDecodeError
from avprompt.files import write_whole
from avprompt.media.playable import plays, slides, transcode
from avprompt.media.readers import one_a_segment
from avprompt.pages.rendering import inline_svg, png, render
from avprompt.plots.recording import Recording, envelope, place_of, recording_figure, spectrogram

#: largest side of a mask in a page
MASK = 64
#: columns of the table that are no prediction
KEYS = ("id", "start", "end", "decoded", "path", "reason")
#: maps by the name that a page has for them; others keep their own, and one over a spectrogram is no overlay of a frame
NAMES = {"visual": "where it looks", "grounding": "where it looks for the sound"}
NO_OVERLAY = ("audio",)


@dataclass
class Window:
    """What the page shows of one example: T segments of a video.

    Args:
        clip: id of the example.
        path: of the user's video; empty where there is none.
        times: begin and end of each segment in seconds, (T, 2).
        valid: bool (T,).
        reasons: why a segment was not decoded, T texts.
        predicted: bool (T,), segments with a prediction.
        texts: what a reader is told of each segment.
        labels: see `Recording`.
        waves: see `Recording`.
        bands: see `Recording`.
        rate: of the sound in Hz.
        curves: see `Recording`.
        maps: name -> (T, rows, columns), over the frame.
        masks: name -> uint8 (T, rows, columns), 0 or 255.
        question: that was asked, where one was.
        video: of what the network read, below the run's folder; where the user has no video.
        length: seconds of the user's video.
    """

    clip: str
    path: str
    times: np.ndarray
    valid: np.ndarray
    reasons: list[str]
    predicted: np.ndarray
    texts: list[str]
    labels: dict[str, list[str]]
    waves: np.ndarray | None = None
    bands: np.ndarray | None = None
    rate: int = 16000
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    question: str = ""
    video: str = ""
    length: float | None = None


def window_of(
    sample: Mapping[str, Any], decided: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], reasons: list[str]
) -> Window:
    """What the page shows of an example.

    Args:
        sample: without a batch dimension, on the CPU: `id`, `times`, `valid`, and where known `audio`, `path` and
            `length`.
        decided: see `AVPromptTask.postprocess`, likewise.
        rows: of the table of predictions, one, or one for each segment.
        reasons: why each segment was not decoded.
    """
    times, valid = sample["times"].numpy().astype(np.float64), sample["valid"].numpy()
    spread = [rows[0] if len(rows) == 1 else row for row in (rows if len(rows) > 1 else list(rows) * len(times))]
    columns = [name for name in rows[0] if name not in KEYS]
    filled = [any(row[name] not in ("", None) for name in columns) for row in spread]
    # the one answer of a clip is not drawn where the video has ended
    filled = [known and (ok or not why or len(rows) > 1) for known, ok, why in zip(filled, valid, reasons)]
    labels = {}
    for name in columns:
        if name.startswith(("predicted", "annotated")) and any(row[name] not in ("", None) for row in spread):
            labels[name] = [str(row[name]) if known else "" for row, known in zip(spread, filled)]
    audio = sample.get("audio")
    found = Window(
        sample["id"],
        sample.get("path", ""),
        times,
        valid,
        reasons,
        np.array(filled),
        [_text(row, columns, known, why) for row, known, why in zip(spread, filled, reasons)],
        labels,
        question=str(rows[0].get("question", "")),
        length=float(sample["length"]) if "length" in sample else None,
    )
    if audio is not None:
        found.rate = max(1, round(audio.shape[1] / float(times[0, 1] - times[0, 0])))
        found.waves = envelope(audio)
        found.bands = spectrogram(audio, found.rate) if audio.shape[1] >= 256 else None
    for name, value in decided.items():
        kind, _, rest = name.partition("_")
        if kind == "probability":
            found.curves[rest] = _curves(value, len(times))
        elif kind == "map" and rest not in NO_OVERLAY and value.ndim == 3:
            found.maps[NAMES.get(rest, rest)] = value.float().numpy()
        elif name == "prediction" and value.ndim == 3:
            found.masks["predicted mask"] = _small(value)
    if "masks" in sample and "annotated" in sample:
        found.masks["annotated mask"] = _small(sample["masks"]) * sample["annotated"].numpy()[:, None, None]
    return found


def _text(row: Mapping[str, Any], columns: Sequence[str], known: bool, reason: str) -> str:
    if not known:
        return f"no prediction: {reason or 'nothing was decoded'}"
    told = [
        f"{name.replace('_', ' ')}: {row[name]}"
        for name in columns
        if row[name] not in ("", None) and name not in ("question", "question_id", "type")
    ]
    return "; ".join(told + [f"({reason})"] * bool(reason))


def _curves(value: Tensor, count: int) -> np.ndarray:
    value = value.float()
    if value.ndim == 2:  # (T, C)
        return value.numpy()
    one_each = len(value) == count and abs(float(value.sum()) - 1) > 1e-4  # else it is of the clip's categories
    return value[:, None].numpy() if one_each else value.expand(count, -1).numpy()


def _small(masks: Tensor) -> np.ndarray:
    size = min(MASK, masks.shape[-1])
    return (F.adaptive_avg_pool2d(masks.float()[:, None], size)[:, 0] >= 0.5).byte().numpy() * 255


def show_what_was_read(window: Window, sample: Mapping[str, Any], folder: Path, stem: str) -> None:
    """Write frames and sound of an example as a video, for the page of clips that are no videos of the user's."""
    frames, audio = sample.get("frames"), sample.get("audio")
    if frames is None or audio is None or frames.dtype != torch.uint8:
        return
    spacing = (
        float(window.times[1, 0] - window.times[0, 0])
        if len(window.times) > 1
        else float(window.times[0, 1] - window.times[0, 0])
    )
    (folder / "media").mkdir(parents=True, exist_ok=True)
    slides(
        one_a_segment(frames).permute(0, 2, 3, 1).numpy(),
        audio.float().numpy(),
        window.rate,
        spacing,
        folder / "media" / f"{stem}.mp4",
    )
    window.video = f"media/{stem}.mp4"
    window.times = window.times - window.times[0, 0]


def _address(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def playable(
    path: Path, wave: Path | None, folder: Path, stem: str, videos: Literal["link", "copy"]
) -> tuple[str, str]:
    """The address of a user's video for the page, and a remark about it.

    Args:
        path: of the video.
        wave: of a sound that replaces its own.
        folder: of the page.
        stem: of a copy's name.
        videos: `link` refers to the file where it lies; `copy` copies it.

    Raises:
        ClipDecodeError: a copy is needed and does not decode.
    """
    path, folder = path.resolve(), folder.resolve()
    as_it_is = wave is None and plays(path)
    if as_it_is and videos == "link":
        return _address(path, folder), ""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    target = folder / "media" / f"{stem}{path.suffix.lower() if as_it_is else '.mp4'}"
    if as_it_is:
        shutil.copyfile(path, target)
        return _address(target, folder), ""
    transcode(path, target, wave)
    return _address(target, folder), "A copy in H.264: " + (
        "the sound is a file of its own." if wave is not None else "not every browser plays the file itself."
    )


def _joined(windows: list[Window], name: str) -> dict[str, np.ndarray]:
    kinds = [getattr(window, name) for window in windows]
    return {
        key: np.concatenate([kind[key] for kind in kinds])
        for key in kinds[0]
        if all(key in kind and kind[key].shape[1:] == kinds[0][key].shape[1:] for kind in kinds)
    }


def recording_of(windows: list[Window], names: Sequence[str]) -> Recording:
    """Windows of one video, in order, as one recording."""
    labels = {
        key: [text for window in windows for text in window.labels.get(key, [""] * len(window.times))]
        for key in dict.fromkeys(key for window in windows for key in window.labels)
    }
    joined = {
        key: None
        if any(getattr(window, key) is None for window in windows)
        else np.concatenate([getattr(window, key) for window in windows])
        for key in ("waves", "bands")
    }
    return Recording(
        np.concatenate([window.times for window in windows]),
        np.concatenate([window.valid for window in windows]),
        [reason for window in windows for reason in window.reasons],
        joined["waves"],
        joined["bands"],
        windows[0].rate,
        labels,
        _joined(windows, "curves"),
        names,
        windows[0].length,
        np.concatenate([window.predicted for window in windows]),
    )


def _sheet(maps: np.ndarray) -> str:
    """Maps (N, rows, columns) below each other as one picture: uint8 as they are, others on one scale."""
    if maps.dtype == np.uint8:
        return png(maps.reshape(-1, maps.shape[2]))
    maps = maps.astype(np.float32)
    low, high = float(maps.min()), float(maps.max())
    return png(np.rint(255 * (maps - low) / max(high - low, 1e-12)).astype(np.uint8).reshape(-1, maps.shape[2]))


def section(windows: list[Window], names: Sequence[str], video: str, note: str) -> dict[str, Any]:
    """What the template shows of one video.

    Args:
        windows: of one video, in order.
        names: of the categories.
        video: address of the video; empty where there is none.
        note: remark below it.
    """
    recording = recording_of(windows, names)
    width, left, right = place_of(recording)
    maps = (
        {
            name: {"source": _sheet(values), "mask": kind == "masks"}
            for kind in ("maps", "masks")
            for name, values in _joined(windows, kind).items()
        }
        if video
        else {}
    )
    texts = [text for window in windows for text in window.texts]
    return {
        "title": Path(windows[0].path).name if windows[0].path else windows[0].clip,
        "subtitle": f"Question: {windows[0].question}" if windows[0].question else "",
        "video": video,
        "note": note,
        "maps": list(maps),
        "svg": inline_svg(recording_figure(recording)),
        "width": round(60 * width),
        "data": {
            "begin": recording.begin,
            "end": recording.end,
            "left": left,
            "right": right,
            "maps": maps,
            "segments": [
                [round(begin, 3), round(end, 3), text] for (begin, end), text in zip(recording.times.tolist(), texts)
            ],
        },
    }


def write_page(
    folder: Path,
    windows: list[Window],
    unusable: list[dict[str, str]],
    names: Sequence[str],
    summary: str,
    origin: str = "",
    sounds: Mapping[str, Path] | None = None,
    videos: Literal["link", "copy"] = "link",
    left_out: int = 0,
) -> Path:
    """Write `predictions.html`: one file, with the videos beside it or where the user has them.

    Args:
        folder: of the run.
        windows: in the order of the table.
        unusable: `id`, `path` and `reason` of videos that could not be predicted.
        names: of the categories.
        summary: how many videos were predicted.
        origin: which network made the predictions.
        sounds: video -> its sound, where that is a file of its own.
        videos: see `playable`.
        left_out: number of examples that stand in the table alone.

    Returns:
        The page's path.
    """
    groups: dict[str, list[Window]] = {}
    for place, window in enumerate(windows):
        groups.setdefault(window.path or f"{place}", []).append(window)
    sections, linked, unusable = [], False, list(unusable)
    for place, (path, own) in enumerate(groups.items()):
        own.sort(key=lambda window: window.times[0, 0])
        video, note = own[0].video, ""
        if video:
            video, note = quote(video), "What the network read: one frame and the sound of each segment."
        elif own[0].path:
            try:
                video, note = playable(Path(path), (sounds or {}).get(path), folder, f"{place:03d}", videos)
            except ClipDecodeError as error:
                video, note = "", f"The video is not shown: {error}"
            linked |= bool(video) and not video.startswith("media/")
        else:
            note = "The network read features: there is nothing to play."
        sections.append(section(own, names, video, note))
    if left_out:
        summary += f"; {left_out} further examples stand in predictions.csv alone"
    page = render(
        "predictions.html",
        title="Predictions",
        summary=summary,
        origin=origin,
        recordings=sections,
        unusable=unusable,
        linked=linked,
        copies=(folder / "media").is_dir(),
    )
    target = folder / "predictions.html"
    write_whole(target, page.encode())
    return target
