"""Media files -> frames and waveform, one decoder for everything: PyAV, single-threaded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from av.stream import Disposition
from torch.nn import functional as F

from avprompt.errors import ArgumentError, ClipDecodeError

#: peak below which a clip counts as silent: one step of 16-bit audio is 3e-5
SILENCE = 1e-4
#: seconds by which a stream may end before the end that its file declares, or jump, before this counts as damage
TOLERANCE = 1.0
GAP = 0.1
#: what went wrong, for errors that a manifest lists under a status of their own
NO_AUDIO, NO_VIDEO = "no audio stream", "no video stream"


@dataclass(frozen=True)
class Sampling:
    """How a clip becomes segments.

    Args:
        segments: number T of segments a clip.
        seconds: length of a segment.
        size: height and width of a frame in pixels; the whole picture is squeezed, as the published code does.
        sample_rate: of the waveform, Hz.
        antialias: low-pass before the bicubic resize. The published numbers come from resizing without.
        stride: seconds from the beginning of a segment to that of the next; `None` is `seconds`, one after the other.

    Raises:
        ArgumentError: a number is not positive.
    """

    segments: int = 10
    seconds: float = 1.0
    size: int = 192
    sample_rate: int = 32000
    antialias: bool = True
    stride: float | None = None

    def __post_init__(self) -> None:
        for name in ("segments", "seconds", "size", "sample_rate", "stride"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ArgumentError(name, value, "a positive number", "Choose another value.")

    @property
    def samples(self) -> int:
        """Number S of samples a segment."""
        return round(self.seconds * self.sample_rate)

    @property
    def spacing(self) -> float:
        """Seconds from the beginning of a segment to that of the next."""
        return self.seconds if self.stride is None else self.stride

    @property
    def duration(self) -> float:
        """Seconds from the beginning of a clip's first segment to the end of its last."""
        return (self.segments - 1) * self.spacing + self.seconds

    @property
    def period(self) -> float:
        """Seconds from the beginning of a clip to that of the next one of the same video."""
        return self.segments * self.spacing

    def times(self, start: float = 0.0) -> np.ndarray:
        """Begin and end of each segment, float32 (T, 2), in seconds of a video whose clip begins at `start`.

        Example:
            >>> Sampling(segments=3, seconds=2.0, stride=20.0).times(60.0).tolist()
            [[60.0, 62.0], [80.0, 82.0], [100.0, 102.0]]
        """
        begins = start + self.spacing * np.arange(self.segments)
        return np.stack((begins, begins + self.seconds), axis=1).astype(np.float32)


@dataclass
class Clip:
    """A decoded clip.

    Args:
        frames: uint8 (T, H, W, 3), the frame nearest to the middle of each segment.
        audio: float32 (T, S) in [-1, 1], mono: the mean of the channels.
        valid: bool (T,), segments that picture and sound really reach; in the others the last frame is repeated and
            the sound is zero where there is none.
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


def resize(picture: np.ndarray, size: int, antialias: bool) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (size, size, 3), bicubic."""
    if picture.shape[:2] == (size, size):
        return picture
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    x = F.interpolate(x, (size, size), mode="bicubic", antialias=antialias)
    return x[0].round_().clamp_(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


class _Reader:
    """One stream of one file, read once; times are seconds since the file's earliest stream began.

    Args:
        path: file to open.
        kind: `video` or `audio`; the cover picture of a song is no video.

    Raises:
        ClipDecodeError: no such file, no media, no such stream.
    """

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path, self.kind = Path(path), kind
        if not self.path.is_file():
            raise ClipDecodeError(self.path, "no such file", f"a media file with {kind}", "Check the path.")
        try:
            self.container = av.open(str(self.path), metadata_errors="ignore")
        except (av.FFmpegError, OSError) as error:
            raise ClipDecodeError(self.path, f"{self.path.stat().st_size} bytes that are no media ({error})",
                                  "a file that FFmpeg reads", "Download it again, or leave the clip out.") from error
        streams = [s for s in getattr(self.container.streams, kind)
                   if s.codec_context is not None and not s.disposition & Disposition.attached_pic]
        if not streams:
            self.container.close()
            raise ClipDecodeError(self.path, NO_VIDEO if kind == "video" else NO_AUDIO, f"a file with {kind}",
                                  "Leave the clip out, or add the missing stream.")
        self.stream = streams[0]
        self.stream.thread_type = "NONE"  # frame threads hang when a reader stops early
        self.stream.codec_context.thread_count = 1
        self.zero = (self.container.start_time or 0) / av.time_base

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def time(self, frame: av.frame.Frame) -> float | None:
        """Second at which a frame begins, `None` where the file does not say."""
        return None if frame.time is None else frame.time - self.zero

    def declared(self) -> float | None:
        """Second at which the file says that this stream ends, `None` where it does not say."""
        if self.stream.duration is None:
            return None
        begin, unit = self.stream.start_time, self.stream.time_base
        return float(self.stream.duration * unit) + (0.0 if begin is None else float(begin * unit) - self.zero)

    def frames(self, begin: float = 0.0) -> Iterator[av.frame.Frame]:
        """Decoded frames in order, starting at or before second `begin`.

        A packet that does not decode is passed over, as a player does.

        Raises:
            ClipDecodeError: not one frame came out.
        """
        sought = False
        if begin > 2.0:
            try:
                # a second earlier: sound that is decoded from the middle needs a few packets to settle
                self.container.seek(int((self.zero + begin - 1.0) * av.time_base))
                sought = True
            except av.FFmpegError:
                sought = False  # no index: read from the start
        decoded = self._decode()
        first = next(decoded, None)
        if sought and (first is None or self.time(first) is None or self.time(first) > begin):
            self.container.seek(0)
            decoded = self._decode()
            first = next(decoded, None)
        if first is None:
            raise ClipDecodeError(self.path, f"a {self.kind} stream of which nothing decodes", "a whole file",
                                  "Download it again, or leave the clip out.")
        return itertools.chain([first], decoded)

    def _decode(self) -> Iterator[av.frame.Frame]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            except av.FFmpegError:
                continue
            if packet is None:
                return
            yield from frames

    def check_end(self, end: float, wanted: float) -> None:
        """Tell a short file from a truncated one.

        Raises:
            ClipDecodeError: the stream ends at `end`, far before both its declared end and the wanted one.
        """
        declared = self.declared()
        if declared is not None and end < min(declared, wanted) - TOLERANCE:
            raise ClipDecodeError(self.path,
                                  f"truncated: its {self.kind} says {declared:.1f} s and ends at {end:.1f} s",
                                  "a whole file", "Download it again, or leave the clip out.")


def duration(path: Path) -> float:
    """Seconds of a video file: what its container says, else where its last packet ends.

    Raises:
        ClipDecodeError: the file is no media, or has no video.
    """
    with _Reader(path, "video") as reader:
        if reader.container.duration is not None:
            return reader.container.duration / av.time_base
        ends = [float((packet.pts + (packet.duration or 0)) * packet.time_base) - reader.zero
                for packet in reader.container.demux(reader.stream) if packet.pts is not None]
        return max(ends, default=0.0)


def probe(video: Path, wave: Path | None = None) -> float:
    """Seconds of a video whose picture and sound both decode, as far as their first frames tell.

    Raises:
        ClipDecodeError: a stream is missing or does not decode.
    """
    for path, kind in ((video, "video"), (wave or video, "audio")):
        with _Reader(path, kind) as reader:
            reader.frames()
    return duration(video)


def _picture(frame: av.VideoFrame) -> np.ndarray:
    """uint8 (H, W, 3), upright: phones store how the camera was held beside the picture."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))


def decode_frames(path: Path, times: np.ndarray) -> tuple[list[np.ndarray], float]:
    """The frames that begin nearest to the given times.

    Args:
        path: any file with a video stream.
        times: ascending seconds.

    Returns:
        One uint8 (H, W, 3) a time, times past the end repeating the last frame; and the second at which the picture
        ends, infinite where it goes on past the last of them.

    Raises:
        ClipDecodeError: no such file, no video stream, nothing that decodes, a truncated file.
    """
    chosen: list[np.ndarray] = []
    before, then, taken, end = None, 0.0, None, 0.0
    with _Reader(path, "video") as reader:
        step = 1 / float(reader.stream.average_rate or 25)
        for frame in reader.frames(float(times[0])):
            now = reader.time(frame)
            now = end if now is None else now
            length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
            while len(chosen) < len(times) and now >= times[len(chosen)]:
                wanted = times[len(chosen)]
                nearest = before if before is not None and wanted - then <= now - wanted else frame
                chosen.append(chosen[-1] if nearest is taken else _picture(nearest))
                taken = nearest
            before, then, end = frame, now, now + length
            if len(chosen) == len(times):
                return chosen, np.inf
        reader.check_end(end, float(times[-1]))
        return chosen + [chosen[-1] if before is taken else _picture(before)] * (len(times) - len(chosen)), end


def decode_audio(path: Path, sample_rate: int, start: float, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Mono waveform, resampled; the mean of the channels.

    Sound that begins later than the picture, and holes in the time stamps, become silence, so that both stay in step.

    Args:
        path: any file with an audio stream.
        sample_rate: Hz.
        start: seconds into the file.
        samples: how many.

    Returns:
        float32 (samples,) in [-1, 1], zeros where there is none; and bool (samples,), where there is one.

    Raises:
        ClipDecodeError: no such file, no audio stream, nothing that decodes, a truncated file.
    """
    wave, known = np.zeros(samples, np.float32), np.zeros(samples, bool)
    resampler, form, due, position = None, None, None, 0

    def place(pieces: list[av.AudioFrame]) -> None:
        nonlocal position
        for piece in pieces:
            # FFmpeg's own downmix makes equal channels louder by 3 dB; the mean keeps them
            mono = piece.to_ndarray().mean(0)
            first, last = max(position, 0), min(position + len(mono), samples)
            if first < last:
                wave[first:last], known[first:last] = mono[first - position:last - position], True
            position += len(mono)

    with _Reader(path, "audio") as reader:
        for frame in reader.frames(start):
            now = reader.time(frame)
            if now is None:
                now = due or 0.0
            if due is None or now - due > GAP or (frame.format.name, frame.layout.name, frame.sample_rate) != form:
                if resampler is not None:
                    place(resampler.resample(None))
                form = (frame.format.name, frame.layout.name, frame.sample_rate)
                resampler = av.AudioResampler(format="fltp", layout=None, rate=sample_rate)
                position, due = round((now - start) * sample_rate), now
            due += frame.samples / frame.sample_rate
            frame.pts = None  # jitter of time stamps must not shift the waveform
            place(resampler.resample(frame))
            if position >= samples:
                break
        else:
            place(resampler.resample(None))
            reader.check_end(due, start + samples / sample_rate)
        if not np.isfinite(wave).all():
            raise ClipDecodeError(path, "samples that are NaN or infinite", "finite samples", "Leave the clip out.")
    return wave.clip(-1, 1), known


def decode_clip(video: Path, sampling: Sampling, start: float = 0.0, wave: Path | None = None) -> Clip:
    """Decode one clip.

    Args:
        video: file with the picture, and with the sound unless `wave` is given.
        sampling: segments, sizes, rates.
        start: seconds into the file.
        wave: separate audio file.

    Raises:
        ClipDecodeError: a stream is missing, truncated or does not decode, or the clip holds less than half a segment.
    """
    begins = np.arange(sampling.segments) * sampling.spacing
    middles, rate = start + begins + 0.5 * sampling.seconds, sampling.sample_rate
    places = np.round(begins * rate).astype(int)[:, None] + np.arange(sampling.samples)
    try:
        pictures, end = decode_frames(video, middles)
        audio, known = decode_audio(wave or video, rate, start, int(places[-1, -1]) + 1)
    except (av.FFmpegError, ValueError, ArithmeticError) as error:  # a frame that cannot be converted or resampled
        raise ClipDecodeError(video, error, "streams that decode",
                              "Download it again, or leave the clip out.") from error
    heard = (np.flatnonzero(known).max(initial=-1) + 1) / rate
    audio, known = audio[places], known[places]
    # a segment counts where the picture reaches its middle and the sound covers at least half of it
    valid = (end >= middles) & (known.mean(1) >= 0.5)
    length = max(0.0, min(end - start, heard, sampling.duration))
    if not valid.any():
        raise ClipDecodeError(video, f"{length:.2f} s with picture and sound from second {start:g} on",
                              "at least half a segment", "Leave the clip out.")
    frames = np.stack([resize(picture, sampling.size, sampling.antialias) for picture in pictures])
    return Clip(frames, audio, valid, length)
