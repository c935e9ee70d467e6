"""Decoding of media files into frames and waveform, with PyAV in a single thread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.sidedata.sidedata import Type
from av.stream import Disposition
from PIL import Image
from torch.nn import functional as F

from avprompt.errors import ArgumentError, ClipDecodeError
from avprompt.media.untrusted import MAX_PIXELS

#: peak below which a clip counts as silent: one step of 16-bit audio is 3e-5
SILENCE = 1e-4
#: seconds by which a stream may jump, or end before the declared end, without counting as damaged
TOLERANCE = 1.0
GAP = 0.1
#: seconds around a wanted time in which every frame is decoded; elsewhere those that no other frame needs are skipped,
#: in files with at least so many frames a second
WINDOW, DENSE = 0.2, 12
#: channels of sound that FFmpeg can resample
CHANNELS = 64
#: parts of error messages that have a status of their own in a manifest
NO_AUDIO, NO_VIDEO = "no audio stream", "no video stream"


@dataclass(frozen=True)
class Sampling:
    """How a clip is cut into segments.

    Args:
        segments: number T of segments a clip.
        seconds: length of a segment.
        size: height and width of a frame in pixels; the whole picture is resized to it, as in the published code.
        sample_rate: of the waveform, Hz.
        antialias: low-pass filter before the bicubic resize. The published figures come from resizing without it.
        stride: seconds from the beginning of a segment to that of the next; `None` is `seconds`, one after the other.
        max_pixels: a picture with more is refused before it is decoded; 8K video fits.
        max_hours: a video in `predict_root` that lasts longer is refused.
        frames: number F of frames a segment, evenly spaced over it; 1 is the frame in its middle.

    Raises:
        ArgumentError: a number is not positive.
    """

    segments: int = 10
    seconds: float = 1.0
    size: int = 192
    sample_rate: int = 32000
    antialias: bool = True
    stride: float | None = None
    max_pixels: int = MAX_PIXELS
    max_hours: float = 24.0
    frames: int = 1

    def __post_init__(self) -> None:
        for name in ("segments", "seconds", "size", "sample_rate", "stride", "max_pixels", "max_hours", "frames"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ArgumentError(name, value, "a positive number", "Choose another value.")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that change a clip's content: all except the limits."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("max_")}

    @property
    def samples(self) -> int:
        """Number S of samples a segment."""
        return round(self.seconds * self.sample_rate)

    @property
    def pictures(self) -> tuple[int, ...]:
        """Numbers of segments and frames, in front of the shape of a frame: (T,), with several a segment (T, F)."""
        return (self.segments, self.frames) if self.frames > 1 else (self.segments,)

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
        frames: uint8 (T, H, W, 3), the frame nearest to the middle of each segment, or (T, F, H, W, 3), those nearest
            to the middles of its F equal parts.
        audio: float32 (T, S) in [-1, 1], mono: the mean of the channels.
        valid: bool (T,), segments that picture and sound reach; in the others the last frame is repeated, and missing
            sound is zero.
        duration: seconds that the file holds from the clip's start on, at most the clip's length.
        reason: what segments lack, in seconds of the file, and how many are valid; empty if all are.
    """

    frames: np.ndarray
    audio: np.ndarray
    valid: np.ndarray
    duration: float
    reason: str = ""

    @property
    def silent(self) -> bool:
        """Whether the loudest sample is below `SILENCE`."""
        return float(np.abs(self.audio).max()) < SILENCE


def resize(picture: np.ndarray, size: int, antialias: bool) -> np.ndarray:
    """uint8 (H, W, C) -> uint8 (size, size, C), bicubic."""
    if picture.shape[:2] == (size, size):
        return picture
    small = np.empty((size, size, picture.shape[2]), np.uint8)
    for channel in range(picture.shape[2]):  # channel by channel needs a third of the memory
        x = torch.from_numpy(np.ascontiguousarray(picture[..., channel]))[None, None].float()
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=antialias)
        small[..., channel] = x[0, 0].round_().clamp_(0, 255).byte().numpy()
    return small


class Reader:
    """One stream of one file, read once; times are seconds since the file's earliest stream began.

    Args:
        path: file to open.
        kind: `video` or `audio`: the stream that FFmpeg takes by default. The cover picture of a song is no video.
        max_pixels: largest number of pixels of a picture.

    Raises:
        ClipDecodeError: no such file, no media, no such stream, or one beyond the limits.
    """

    def __init__(self, path: str | Path, kind: str, max_pixels: int = MAX_PIXELS) -> None:
        self.path, self.kind, self.max_pixels = Path(path), kind, max_pixels
        if not self.path.is_file():
            raise ClipDecodeError(self.path, "no such file", f"a media file with {kind}", "Check the path.")
        try:
            self.container = av.open(str(self.path), metadata_errors="ignore")
        except (av.FFmpegError, OSError) as error:
            raise ClipDecodeError(
                self.path,
                f"{self.path.stat().st_size} bytes that are no media ({error})",
                "a file that FFmpeg reads",
                "Download it again, or leave the clip out.",
            ) from error
        streams = [
            s
            for s in getattr(self.container.streams, kind)
            if s.codec_context is not None and not s.disposition & Disposition.attached_pic
        ]
        if not streams:
            self.container.close()
            raise ClipDecodeError(
                self.path,
                NO_VIDEO if kind == "video" else NO_AUDIO,
                f"a file with {kind}",
                "Leave the clip out, or add the missing stream.",
            )
        best = self.container.streams.best(kind)
        self.stream = best if best in streams else streams[0]
        try:
            self._check_limits()
        except ClipDecodeError:
            self.container.close()
            raise
        self.stream.thread_type = "NONE"  # frame threads hang when a reader stops early
        self.stream.codec_context.thread_count = 1
        self.zero = (self.container.start_time or 0) / av.time_base

    def _check_limits(self) -> None:
        codec = self.stream.codec_context
        if self.kind == "audio":
            if codec.layout.nb_channels > CHANNELS:
                raise ClipDecodeError(
                    self.path,
                    f"{codec.layout.nb_channels} channels of sound",
                    f"at most {CHANNELS}",
                    "Mix them down, or leave the clip out.",
                )
            return
        # pictures may become larger in the middle of a stream, so the decoder has the limit too
        codec.options = {**codec.options, "max_pixels": str(self.max_pixels)}
        if codec.width * codec.height > self.max_pixels:
            raise ClipDecodeError(
                self.path,
                f"a picture of {codec.width} x {codec.height} pixels",
                f"at most {self.max_pixels:,} pixels",
                "Scale it down, or raise max_pixels.",
            )

    def __enter__(self) -> Reader:
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

    def begins(self) -> float:
        """Second at which the file says that this stream begins."""
        start = self.stream.start_time
        return 0.0 if start is None else float(start * self.stream.time_base) - self.zero

    def frames(self, begin: float = 0.0, wanted: np.ndarray | None = None) -> Iterator[av.frame.Frame]:
        """Decoded frames in order, starting at or before second `begin`.

        A packet that does not decode is skipped, as in a player. With `wanted` (seconds), frames that are further than
        `WINDOW` from all of them are left out where no other frame is predicted from them.

        Raises:
            ClipDecodeError: no frame decodes.
        """
        sought = False
        if begin > 2.0:
            try:
                # a second earlier, because sound that is decoded from the middle needs a few packets to settle
                self.container.seek(int((self.zero + begin - 1.0) * av.time_base))
                sought = True
            except av.FFmpegError:
                sought = False  # no index: read from the start
        decoded = self._decode(wanted)
        first = next(decoded, None)
        if sought and (first is None or self.time(first) is None or self.time(first) > begin):
            self.container.seek(0)
            decoded = self._decode(wanted)
            first = next(decoded, None)
        if first is None:
            raise ClipDecodeError(
                self.path,
                f"a {self.kind} stream of which nothing decodes",
                "a whole file",
                "Download it again, or leave the clip out.",
            )
        return itertools.chain([first], decoded)

    def _decode(self, wanted: np.ndarray | None = None) -> Iterator[av.frame.Frame]:
        packets, codec = self.container.demux(self.stream), self.stream.codec_context
        if wanted is not None:
            end = self.declared()
            if self.stream.average_rate is None or self.stream.average_rate < DENSE or end is None:
                wanted = None
            elif end < wanted.max():  # the last frame stands for all that follow it
                wanted = np.append(wanted, end)
        while True:
            try:
                packet = next(packets, None)
                if wanted is not None and packet is not None:
                    away = (
                        0.0
                        if packet.pts is None
                        else np.abs(wanted - (float(packet.pts * packet.time_base) - self.zero)).min()
                    )
                    codec.skip_frame = "NONREF" if away > WINDOW else "DEFAULT"
                frames = [] if packet is None else packet.decode()
            except av.FFmpegError:
                continue
            if packet is None:
                return
            yield from frames

    def last(self) -> float:
        """Second at which the last remaining packet of picture or sound ends; 0 if none is left."""
        end = 0.0
        for packet in self.container.demux():
            if packet.pts is not None and packet.stream.type in ("video", "audio"):
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base) - self.zero)
        return end

    def check_end(self, end: float, wanted: float) -> None:
        """Tell a short file from a truncated one.

        Raises:
            ClipDecodeError: the stream ends at `end`, far before both its declared end and the wanted one.
        """
        declared = self.declared()
        if declared is not None and end < min(declared, wanted) - TOLERANCE:
            raise ClipDecodeError(
                self.path,
                f"truncated: its {self.kind} says {declared:.1f} s and ends at {end:.1f} s",
                "a whole file",
                "Download it again, or leave the clip out.",
            )


def duration(path: Path, missing: float = 0.0) -> float:
    """Length of a video file in seconds, as its container declares it and its packets confirm it.

    Args:
        path: the file.
        missing: seconds after the last packet that are accepted if a container declares more than it holds. If it
            declares days, its last second is read.

    Raises:
        ClipDecodeError: the file is no media, or has no video.
    """
    with Reader(path, "video") as reader:
        claimed = reader.container.duration and reader.container.duration / av.time_base
        if claimed is None:
            return reader.last()
        try:
            reader.container.seek(int((reader.zero + claimed - TOLERANCE) * av.time_base))
            found = reader.last()
        except (av.FFmpegError, OverflowError):
            found = 0.0
        if found < claimed - TOLERANCE:  # the index may be wrong rather than the length
            reader.container.seek(0)
            found = reader.last()
        return min(claimed, found + missing) if found < claimed - TOLERANCE else claimed


def probe(video: Path, wave: Path | None, sampling: Sampling) -> float:
    """Length in seconds of a video whose picture and sound both decode, judged by their first frames.

    If a video ends before its declared end, up to a clip's length of the missing part counts, so that it is reported.

    Raises:
        ClipDecodeError: a stream is missing, does not decode, or goes beyond the limits.
    """
    for path, kind in ((video, "video"), (wave or video, "audio")):
        with Reader(path, kind, sampling.max_pixels) as reader:
            reader.frames()
    if (length := duration(video, sampling.period)) > 3600 * sampling.max_hours:
        raise ClipDecodeError(
            video, f"{length / 3600:.1f} hours", f"at most {sampling.max_hours:g} hours", "Cut it, or raise max_hours."
        )
    return length


def upright(frame: av.VideoFrame) -> np.ndarray:
    """Upright picture, uint8 (H, W, 3): phones store rotation, and some mirroring, beside the picture.

    A turn by other angles than quarters keeps the size and leaves black corners, as FFmpeg's own players have it.
    """
    # with threads of its own, a converted frame hangs a forked process that releases it
    picture, matrix = frame.reformat(format="rgb24", threads=1).to_ndarray(), frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return picture
    # directions in which the picture's right side (a, b) and bottom (c, d) are shown; (1, 0) is right, (0, 1) is down
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), "=i4").tolist()
    angle = math.degrees(math.atan2(b, a)) % 360  # clockwise
    if abs(angle - 90 * round(angle / 90)) > 1:
        return np.asarray(Image.fromarray(picture).rotate(-angle, Image.Resampling.BILINEAR))
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    if turned:
        picture, a, d = picture.swapaxes(0, 1), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def decode_frames(
    path: Path,
    times: np.ndarray,
    shrink: Callable[[np.ndarray], np.ndarray] = lambda picture: picture,
    max_pixels: int = MAX_PIXELS,
) -> tuple[list[np.ndarray], tuple[float, float]]:
    """The frames that begin nearest to the given times.

    Args:
        path: any file with a video stream.
        times: ascending seconds.
        shrink: applied to each uint8 (H, W, 3) as soon as it is decoded.
        max_pixels: of a picture.

    Returns:
        One picture for each time, where times outside the stream repeat its first or last frame; and the seconds at
        which the picture begins and ends. The end is infinite if the stream goes on after the last time, or if it is a
        single still picture, which players show as long as there is sound.

    Raises:
        ClipDecodeError: no such file, no video stream, nothing that decodes, a truncated file, a picture too large.
    """
    chosen: list[np.ndarray] = []
    before, then, taken, begin, end, count = None, 0.0, None, 0.0, 0.0, 0
    with Reader(path, "video", max_pixels) as reader:
        step = 1 / float(reader.stream.average_rate or 25)
        for frame in reader.frames(float(times[0]), times):
            now = reader.time(frame)
            now = end if now is None else now
            begin, count = now if count == 0 else begin, count + 1
            length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
            while len(chosen) < len(times) and now >= times[len(chosen)]:
                wanted = times[len(chosen)]
                nearest = before if before is not None and wanted - then <= now - wanted else frame
                chosen.append(chosen[-1] if nearest is taken else shrink(upright(nearest)))
                taken = nearest
            before, then, end = frame, now, now + length
            if len(chosen) == len(times):
                return chosen, (begin, np.inf)
        if count == 1 and reader.stream.frames in (0, 1) and begin <= reader.begins() + TOLERANCE:
            end = np.inf  # a still picture; the length in its container means nothing
        reader.check_end(end, float(times[-1]))
        last = chosen[-1] if before is taken else shrink(upright(before))
        return chosen + [last] * (len(times) - len(chosen)), (begin, end)


def decode_audio(path: Path, sample_rate: int, start: float, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode audio into a resampled mono waveform, the mean of the channels.

    Sound that begins later than the picture, and holes in the time stamps, become silence, so that picture and sound
    stay synchronous.

    Args:
        path: any file with an audio stream.
        sample_rate: Hz.
        start: seconds into the file.
        samples: number of samples.

    Returns:
        float32 (samples,) in [-1, 1], zero where there is no sound; and bool (samples,), where there is sound.

    Raises:
        ClipDecodeError: no such file, no audio stream, nothing that decodes, a truncated file.
    """
    wave, known = np.zeros(samples, np.float32), np.zeros(samples, bool)
    resampler, form, due, position = None, None, None, 0

    def place(pieces: list[av.AudioFrame]) -> None:
        nonlocal position
        for piece in pieces:
            # FFmpeg's downmix makes equal channels 3 dB louder; the mean does not
            # packed, because PyAV holds at most eight planes
            mono = piece.to_ndarray().reshape(-1, piece.layout.nb_channels).mean(1)
            first, last = max(position, 0), min(position + len(mono), samples)
            if first < last:
                wave[first:last], known[first:last] = mono[first - position : last - position], True
            position += len(mono)

    with Reader(path, "audio") as reader:
        for frame in reader.frames(start):
            now = reader.time(frame)
            if now is None:
                now = due or 0.0
            if due is None or now - due > GAP or (frame.format.name, frame.layout.name, frame.sample_rate) != form:
                if resampler is not None:
                    place(resampler.resample(None))
                form = (frame.format.name, frame.layout.name, frame.sample_rate)
                resampler = av.AudioResampler(format="flt", layout=None, rate=sample_rate)
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
    parts = (np.arange(sampling.frames) + 0.5) / sampling.frames
    times = ((start + begins)[:, None] + parts * sampling.seconds).ravel()
    order = np.argsort(times, kind="stable")  # segments may overlap
    places = np.round(begins * rate).astype(int)[:, None] + np.arange(sampling.samples)
    try:
        pictures, (begin, end) = decode_frames(
            video, times[order], lambda picture: resize(picture, sampling.size, sampling.antialias), sampling.max_pixels
        )
        audio, known = decode_audio(wave or video, rate, start, int(places[-1, -1]) + 1)
    except (av.FFmpegError, ValueError, ArithmeticError) as error:  # a frame that cannot be converted or resampled
        raise ClipDecodeError(
            video, error, "streams that decode", "Download it again, or leave the clip out."
        ) from error
    heard = (np.flatnonzero(known).max(initial=-1) + 1) / rate
    audio, known = audio[places], known[places]
    # a segment is valid if the picture covers its middle and the sound covers at least half of it
    seen = (begin - GAP <= middles) & (end >= middles)
    valid = seen & (known.mean(1) >= 0.5)
    length = max(0.0, min(end - start, heard, sampling.duration))
    reason = _reason(seen, known.mean(1) >= 0.5, sampling.times(start))
    if not valid.any():
        raise ClipDecodeError(
            video,
            f"no segment with picture and sound from second {start:g} on ({reason})",
            "at least half a segment",
            "Leave the clip out.",
        )
    frames = np.stack([pictures[place] for place in np.argsort(order)])
    return Clip(frames.reshape(*sampling.pictures, *frames.shape[1:]), audio, valid, length, reason)


def _reason(seen: np.ndarray, heard: np.ndarray, times: np.ndarray) -> str:
    """What segments lack, and how many lack nothing; empty where none lacks anything.

    >>> _reason(np.array([1, 1, 1, 0], bool), np.array([0, 0, 1, 0], bool), Sampling(segments=4).times())
    'no sound in seconds 0-2, no picture or sound in seconds 3-4, 1 of 4 valid'
    """
    lacks = {"picture": heard & ~seen, "sound": seen & ~heard, "picture or sound": ~seen & ~heard}
    parts = [f"no {what} in seconds {spans(where, times)}" for what, where in lacks.items() if where.any()]
    return ", ".join([*parts, f"{(seen & heard).sum()} of {len(seen)} valid"] if parts else [])


def spans(flags: np.ndarray, times: np.ndarray) -> str:
    """Seconds at which a bool (T,) is true, as text for messages; segments that follow each other are one piece.

    Args:
        flags: of the segments.
        times: their beginnings and ends, (T, 2).

    Example:
        >>> spans(np.array([1, 1, 0, 1], bool), Sampling(segments=4, stride=6.0).times())
        '0-7, 18-19'
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))).reshape(-1, 2)
    return ", ".join(f"{times[first, 0]:g}-{times[last - 1, 1]:g}" for first, last in edges.tolist())
