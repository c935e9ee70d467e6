"""Small media files whose picture and sound say which second they belong to."""

from __future__ import annotations

import struct
import wave
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from avprompt.media.store import ClipStore, read_manifest, write_manifest

MILLISECOND = Fraction(1, 1000)
FPS, WIDTH, HEIGHT, RATE = 10, 64, 48, 8000


def loudness(seconds: float, tone: float, rate: int = RATE) -> np.ndarray:
    """float32 (samples,): second k has amplitude 0.05 (k % 16 + 1)."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.05 * (1 + np.floor(time) % 16) * np.sin(2 * np.pi * tone * time)).astype(np.float32)


def write_video(
    path: Path,
    seconds: float = 10,
    tone: float | None = 440.0,
    picture: bool = True,
    rate: int = RATE,
    times: list[float] | None = None,
    delay: float = 0.0,
    cover: bool = False,
    corner: bool = False,
    **options: str,
) -> Path:
    """A video whose second k has brightness 8 k and loudness 0.05 (k % 16 + 1).

    Args:
        path: its ending says which container.
        seconds: length.
        tone: Hz; `None` leaves the sound out, 0 is silence.
        picture: `False` leaves the picture out.
        rate: Hz, of the sound.
        times: seconds at which frames begin, frame i with brightness 8 i; `None` is 10 a second.
        delay: seconds by which the sound begins later.
        cover: the picture is a song's cover.
        corner: the upper left quarter is white.
        options: of the container.
    """
    with av.open(str(path), "w", options=options) as container:
        video = audio = None
        if picture:
            video = container.add_stream(
                "mjpeg" if cover else "libx264", rate=FPS, options={} if cover else {"crf": "10", "g": "30", "bf": "2"}
            )
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuvj420p" if cover else "yuv420p"
            video.codec_context.time_base = MILLISECOND
            if cover:
                video.disposition = Disposition.attached_pic
        if tone is not None:
            audio = container.add_stream("aac", rate=rate, layout="mono")
        if video:
            shades = [k // FPS for k in range(round(seconds * FPS))] if times is None else range(len(times))
            for k, shade in enumerate(shades[:1] if cover else shades):
                pixels = np.full((HEIGHT, WIDTH, 3), 8 * shade, np.uint8)
                if corner:
                    pixels[: HEIGHT // 2, : WIDTH // 2] = 255
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = round(1000 * (k / FPS if times is None else times[k])), MILLISECOND
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio:
            frame = av.AudioFrame.from_ndarray(loudness(seconds, tone, rate)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, round(delay * rate)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def turn(path: Path) -> None:
    """Mark the picture of an mp4 file as to be shown a quarter clockwise, as phones do."""
    content = bytearray(path.read_bytes())
    place = content.find(b"tkhd")  # the picture's track is the first
    matrix = place + 4 + 40
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, HEIGHT << 16, 0, 1 << 30)
    path.write_bytes(content)


def write_wave(path: Path, channels: np.ndarray, rate: int = RATE) -> Path:
    """A 16-bit wav file of float (channels, samples) in [-1, 1]."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((channels.T * 32767).round().astype("<i2").tobytes())
    return path


def shorten(store: Path, segments: int, *clips: str) -> None:
    """Let clips of a store have this many decoded segments, those of all clips where none is named."""
    path = ClipStore(store).manifest_path
    entries = read_manifest(path)
    for clip in clips or entries:
        valid = np.arange(len(np.load(store / "clips" / clip / "valid.npy"))) < segments
        np.save(store / "clips" / clip / "valid.npy", valid)
        entries[clip] = replace(entries[clip], valid=int(valid.sum()))
    write_manifest(path, list(entries.values()))
