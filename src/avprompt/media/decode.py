"""Media files -> frames and waveform, one decoder for everything: PyAV, single-threaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch.nn import functional as F

from avprompt.errors import ClipDecodeError

#: peak below which a clip counts as silent: one step of 16-bit audio is 3e-5
SILENCE = 1e-4


@dataclass(frozen=True)
class Sampling:
    """How a clip becomes segments.

    Args:
        segments: number T of segments a clip.
        seconds: length of a segment.
        size: height and width of a frame in pixels; the whole picture is squeezed, as the published code does.
        sample_rate: of the waveform, Hz.
        antialias: low-pass before the bicubic resize. The published numbers come from resizing without.
    """

    segments: int = 10
    seconds: float = 1.0
    size: int = 192
    sample_rate: int = 32000
    antialias: bool = True

    @property
    def samples(self) -> int:
        """Number S of samples a segment."""
        return round(self.seconds * self.sample_rate)

    @property
    def duration(self) -> float:
        """Seconds a clip."""
        return self.segments * self.seconds


@dataclass
class Clip:
    """A decoded clip.

    Args:
        frames: uint8 (T, H, W, 3), the frame nearest to the middle of each segment.
        audio: float32 (T, S) in [-1, 1], mono.
        valid: bool (T,), segments that picture and sound really reach; the rest is padding.
        duration: seconds that the file holds from the clip's start on, at most the clip's length.
    """

    frames: np.ndarray
    audio: np.ndarray
    valid: np.ndarray
    duration: float

    @property
    def silent(self) -> bool:
        """Whether the loudest sample is below `SILENCE`."""
        return float(np.abs(self.audio).max()) < SILENCE


def resize(frames: np.ndarray, size: int, antialias: bool) -> np.ndarray:
    """uint8 (T, H, W, 3) -> uint8 (T, size, size, 3), bicubic."""
    if frames.shape[1:3] == (size, size):
        return frames
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (size, size), mode="bicubic", antialias=antialias)
    return x.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def _open(path: Path, kind: str) -> av.container.InputContainer:
    if not path.is_file():
        raise ClipDecodeError(path, "no such file", f"a media file with {kind}", "Check the path.")
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except (av.FFmpegError, OSError) as error:
        raise ClipDecodeError(path, f"{path.stat().st_size} bytes that are no media ({error})",
                              "a file that FFmpeg reads", "Download it again, or leave the clip out.") from error
    streams = getattr(container.streams, kind)
    if not streams:
        container.close()
        raise ClipDecodeError(path, f"no {kind} stream", f"a file with {kind}",
                              "Leave the clip out, or add the missing stream.")
    streams[0].thread_type = "NONE"  # frame threads hang when a reader stops early
    streams[0].codec_context.thread_count = 1
    return container


def _decoded(container: av.container.InputContainer, stream: av.stream.Stream, path: Path) -> Iterator:
    """Frames of a stream in order; a break in the middle ends the stream where at least one frame came out."""
    count = 0
    try:
        for frame in container.decode(stream):
            count += 1
            yield frame
    except av.FFmpegError as error:
        if not count:
            raise ClipDecodeError(path, f"nothing that decodes ({error})", "a whole file",
                                  "Download it again, or leave the clip out.") from error


def duration(path: Path) -> float:
    """Seconds of a media file, as its container says.

    Raises:
        ClipDecodeError: the file is no media.
    """
    with _open(Path(path), "video") as container:
        stream = container.streams.video[0]
        if container.duration is not None:
            return container.duration / av.time_base
        return float((stream.duration or 0) * stream.time_base)


def decode_frames(path: Path, times: np.ndarray) -> tuple[np.ndarray, float]:
    """The frames shown nearest to the given times.

    Args:
        path: any file with a video stream.
        times: ascending seconds.

    Returns:
        uint8 (len(times), H, W, 3), times past the end repeating the last frame; and the second at which the picture
        ends, infinite where it goes on past the last of them.

    Raises:
        ClipDecodeError: no such file, no video stream, nothing that decodes.
    """
    path = Path(path)
    chosen: list[np.ndarray | None] = [None] * len(times)
    distance, index, last, end = np.full(len(times), np.inf), 0, None, 0.0
    with _open(path, "video") as container:
        stream = container.streams.video[0]
        start = float((stream.start_time or 0) * stream.time_base)
        step = 1 / float(stream.average_rate or 25)
        for frame in _decoded(container, stream, path):
            now = (frame.time or 0.0) - start
            end = max(end, now + step)
            # presentation order is ascending: a target is settled once a frame lies behind it by more than the best
            while index < len(times) and now - times[index] > distance[index]:
                index += 1
            picture = None
            for k in range(index, len(times)):
                if abs(now - times[k]) >= distance[k]:
                    break
                picture = frame.to_ndarray(format="rgb24") if picture is None else picture
                chosen[k], distance[k] = picture, abs(now - times[k])
            last = frame
            if index == len(times):
                end = np.inf  # the picture goes on
                break
        if last is None:
            raise ClipDecodeError(path, "a video stream without frames", "at least one frame", "Leave the clip out.")
    return np.stack(chosen), end


def decode_audio(path: Path, sample_rate: int, start: float, samples: int) -> tuple[np.ndarray, int]:
    """Mono waveform, resampled.

    Args:
        path: any file with an audio stream.
        sample_rate: Hz.
        start: seconds into the file.
        samples: how many.

    Returns:
        float32 (samples,) in [-1, 1], zeros past the end; and how many samples the file really had.

    Raises:
        ClipDecodeError: no such file, no audio stream, nothing that decodes.
    """
    path, parts, have = Path(path), [], 0
    first = round(start * sample_rate)
    with _open(path, "audio") as container:
        stream = container.streams.audio[0]
        # channels are averaged here: FFmpeg's own mix to mono is 3 dB louder in floating point and clips
        resampler = av.AudioResampler(format="fltp", rate=sample_rate)
        for frame in _decoded(container, stream, path):
            frame.pts = None  # gaps and jitter of time stamps must not shift the waveform
            for piece in resampler.resample(frame):
                parts.append(piece.to_ndarray().mean(0))
                have += len(parts[-1])
            if have >= first + samples:
                break
        else:
            parts += [piece.to_ndarray().mean(0) for piece in resampler.resample(None)]
    if not parts:
        raise ClipDecodeError(path, "an audio stream without samples", "at least one sample", "Leave the clip out.")
    wave = np.concatenate(parts)[first:first + samples].astype(np.float32).clip(-1, 1)
    return np.pad(wave, (0, samples - len(wave))), len(wave)


def decode_clip(video: Path, sampling: Sampling, start: float = 0.0, wave: Path | None = None) -> Clip:
    """Decode one clip.

    Args:
        video: file with the picture, and with the sound unless `wave` is given.
        sampling: segments, sizes, rates.
        start: seconds into the file.
        wave: separate audio file.

    Raises:
        ClipDecodeError: a stream is missing or does not decode, or the file ends before the clip begins.
    """
    middles = start + (np.arange(sampling.segments) + 0.5) * sampling.seconds
    frames, end = decode_frames(video, middles)
    audio, have = decode_audio(wave or video, sampling.sample_rate, start, sampling.segments * sampling.samples)
    starts = start + np.arange(sampling.segments) * sampling.seconds
    # a segment counts where the picture passes its middle and the sound covers at least half of it
    heard = (np.arange(sampling.segments) + 0.5) * sampling.samples <= have
    valid = (end >= starts + 0.5 * sampling.seconds) & heard
    length = min(end - start, have / sampling.sample_rate, sampling.duration)
    if not valid.any():
        raise ClipDecodeError(video, f"{length:.2f} s from second {start:g} on", "at least half a segment",
                              "Leave the clip out.")
    return Clip(resize(frames, sampling.size, sampling.antialias), audio.reshape(sampling.segments, -1), valid,
                max(0.0, length))
