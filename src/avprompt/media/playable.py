"""Videos that every current browser plays: which ones do as they are, and H.264 copies of the others."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avprompt.errors import ClipDecodeError
from avprompt.media.decode import Reader, decode_audio, duration, upright
from avprompt.media.untrusted import MAX_PIXELS

#: what Chromium, Firefox and Safari all decode, by the names of FFmpeg
CONTAINERS = {".mp4", ".m4v", ".mov", ".webm"}
PICTURES, SOUNDS = {"h264", "vp8", "vp9", "av1"}, {"aac", "mp3", "opus", "vorbis", "flac"}
DEPTHS = {"yuv420p", "yuvj420p"}
#: of copies: height in pixels, samples a second, ticks of a second in which pictures are timed
HEIGHT, RATE, TICKS = 480, 32000, 12800
#: seconds of sound that are decoded at a time
PIECE = 60.0


def plays(path: Path) -> bool:
    """Whether browsers play a video as it is: container, codecs and pixel format are among those that all know.

    Raises:
        ClipDecodeError: it is no video.

    Example:
        >>> plays(Path("clip.avi"))
        False
    """
    if path.suffix.lower() not in CONTAINERS:
        return False
    with Reader(path, "video") as reader:
        codec = reader.stream.codec_context
        sounds = {stream.codec_context.name for stream in reader.container.streams.audio if stream.codec_context}
        known = {name.removeprefix("lib").split("_")[0].split("-")[0] for name in sounds}
        names = {"mp3float": "mp3", "dav1d": "av1"}
        video = names.get(codec.name.removeprefix("lib"), codec.name.removeprefix("lib"))
        return video in PICTURES and codec.pix_fmt in DEPTHS and {names.get(name, name) for name in known} <= SOUNDS


def _fit(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, HEIGHT / height)
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _write(
    target: Path,
    size: tuple[int, int],
    pictures: Iterator[tuple[float, np.ndarray]],
    pieces: Iterator[np.ndarray],
    rate: int,
) -> None:
    """Pictures (second, uint8 (H, W, 3)) and mono sound, as H.264 and AAC in one MP4 file that starts at once."""
    part = target.with_suffix(".part.mp4")
    with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as output:
        video = output.add_stream("libx264", rate=25, options={"crf": "26", "preset": "veryfast", "threads": "1"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, TICKS)
        sound = output.add_stream("aac", rate=rate, layout="mono")
        last, written, sounds = -1, 0, iter(pieces)

        def hear(until: float) -> None:
            """Sound up to a second, so that neither stream runs far ahead of the other."""
            nonlocal written
            while written < until * rate and (piece := next(sounds, None)) is not None:
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece, np.float32)[None], "fltp", "mono")
                frame.sample_rate, frame.pts, frame.time_base = rate, written, Fraction(1, rate)
                written += piece.size
                output.mux(sound.encode(frame))

        for second, picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(*size, format="yuv420p", threads=1)
            last = max(last + 1, round(second * TICKS))
            frame.pts, frame.time_base = last, Fraction(1, TICKS)
            output.mux(video.encode(frame))
            hear(second)
        hear(float("inf"))
        output.mux(video.encode())
        output.mux(sound.encode())
    part.replace(target)


def _sound(path: Path, start: float, count: int) -> np.ndarray:
    try:
        return decode_audio(path, RATE, start, count)[0]
    except ClipDecodeError:
        if start == 0:
            raise
        return np.zeros(count, np.float32)  # the picture goes on after the sound has ended


def transcode(video: Path, target: Path, wave: Path | None = None, max_pixels: int = MAX_PIXELS) -> None:
    """Write a copy that browsers play: upright, at most 480 pixels high, H.264, with mono AAC.

    Args:
        video: file with the picture, and with the sound unless `wave` is given.
        target: `.mp4` file to write.
        wave: separate audio file.
        max_pixels: of a picture.

    Raises:
        ClipDecodeError: a stream does not decode.
    """
    length = duration(video)

    def sound() -> Iterator[np.ndarray]:
        for start in np.arange(0.0, length, PIECE):
            count = round(min(PIECE, length - start) * RATE)
            if count:
                yield _sound(wave or video, float(start), count)

    with Reader(video, "video", max_pixels) as reader:
        frames = reader.frames()
        first = next(frames)
        picture = upright(first)
        size = _fit(picture.shape[1], picture.shape[0])

        def pictures() -> Iterator[tuple[float, np.ndarray]]:
            yield reader.time(first) or 0.0, picture
            for number, frame in enumerate(frames, 1):
                now = reader.time(frame)
                yield number / 25 if now is None else now, upright(frame)

        try:
            _write(target, size, pictures(), sound(), RATE)
        except (av.FFmpegError, ValueError) as error:
            raise ClipDecodeError(
                video, error, "streams that decode", "Convert it to MP4 with H.264 yourself."
            ) from error


def slides(frames: np.ndarray, audio: np.ndarray, rate: int, spacing: float, target: Path) -> None:
    """Write what a network read of a clip as a video: each frame from its segment's start to that of the next.

    Args:
        frames: uint8 (T, H, W, 3).
        audio: float (T, S) in [-1, 1].
        rate: of the audio in Hz.
        spacing: seconds from the start of a segment to the start of the next.
        target: `.mp4` file to write.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "clip.mp4"
        >>> slides(np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 16000), np.float32), 16000, 1.0, path)
        >>> plays(path), round(duration(path))
        (True, 2)
    """
    count, period = len(frames), max(round(spacing * rate), audio.shape[1])
    sound = np.zeros((count, period), np.float32)
    sound[:, : audio.shape[1]] = audio
    size = _fit(frames.shape[2], frames.shape[1])
    times: list[Any] = [second * spacing for second in range(count)] + [count * spacing - 0.04]
    _write(target, size, zip(times, [*frames, frames[-1]]), iter(sound), rate)
