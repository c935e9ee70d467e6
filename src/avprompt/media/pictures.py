"""How a store holds frames: as they are, or each as a JPEG or WebP picture."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from avprompt.errors import ArgumentError

#: of encoded pictures, where none is asked for
QUALITY = 90
#: bytes of the length of one picture
_LENGTH = np.dtype("<u4")


@dataclass(frozen=True)
class Pictures:
    """The form of a store's frames.

    Encoded, the N frames of a clip are one array of bytes: N lengths (uint32, least byte first), then N pictures.

    Args:
        format: `raw`, `jpeg` or `webp`.
        quality: 1 to 100, of encoded pictures; `None` is `QUALITY`.

    Raises:
        ArgumentError: an unknown form, a quality out of its range, or one for raw frames.

    Example:
        >>> frames = np.full((2, 16, 16, 3), 100, np.uint8)
        >>> jpeg = Pictures("jpeg")
        >>> held = jpeg.encode(frames)
        >>> held.dtype, held.ndim, np.abs(jpeg.decode(held, (2, 3, 16, 16)).astype(int) - 100).max() < 3
        (dtype('uint8'), 1, True)
    """

    format: Literal["raw", "jpeg", "webp"] = "raw"
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.format not in ("raw", "jpeg", "webp"):
            raise ArgumentError("frames", self.format, "raw, jpeg or webp", "Choose one of them.")
        if self.format == "raw" and self.quality is not None:
            raise ArgumentError("quality", self.quality, "none, for raw frames", "Add --frames jpeg, or leave it out.")
        if self.format != "raw" and self.quality is None:
            object.__setattr__(self, "quality", QUALITY)
        if self.quality is not None and (type(self.quality) is not int or not 1 <= self.quality <= 100):
            raise ArgumentError("quality", self.quality, "a whole number, 1 to 100", "Choose another value.")

    @property
    def settings(self) -> dict[str, Any]:
        """What a store notes: nothing of raw frames."""
        return asdict(self) if self.format != "raw" else {}

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """What the store holds of a clip, see above; of raw frames uint8 (T, 3, H, W) or (T, F, 3, H, W).

        Args:
            frames: uint8 (T, H, W, 3), or (T, F, H, W, 3) with several a segment.
        """
        if self.format == "raw":
            return np.ascontiguousarray(np.moveaxis(frames, -1, -3))
        pictures = []
        for frame in frames.reshape(-1, *frames.shape[-3:]):
            file = io.BytesIO()
            Image.fromarray(frame).save(file, self.format, quality=self.quality)
            pictures.append(file.getvalue())
        lengths = np.array([len(picture) for picture in pictures], _LENGTH)
        return np.frombuffer(b"".join([lengths.tobytes(), *pictures]), np.uint8)

    def split(self, held: np.ndarray, count: int) -> list[np.ndarray]:
        """The bytes of each encoded picture, views of what the store holds.

        Raises:
            ValueError: it holds something else.
        """
        if held.dtype != np.uint8 or held.ndim != 1 or len(held) < count * _LENGTH.itemsize:
            raise ValueError(f"{held.dtype} {held.shape} where {count} pictures should be")
        first = count * _LENGTH.itemsize
        ends = first + np.cumsum(np.frombuffer(held[:first].tobytes(), _LENGTH), dtype=np.int64)
        if ends[-1] != len(held):
            raise ValueError(f"{len(held)} bytes where its {count} pictures take {ends[-1]}")
        return np.split(held[first:], ends[:-1] - first)

    def decode(self, held: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The encoded frames of a clip, uint8 of a shape (..., 3, size, size).

        Raises:
            ValueError: a picture is damaged or has another size.
        """
        frames = np.empty(shape, np.uint8)
        flat = frames.reshape(-1, *shape[-3:])
        for frame, picture in zip(flat, self.split(held, len(flat)), strict=True):
            frame[:] = self.decode_one(picture, shape[-1])
        return frames

    def decode_one(self, picture: np.ndarray, size: int) -> np.ndarray:
        """One encoded picture, uint8 (3, size, size).

        Its header is read before memory for the pixels is allocated. Pixels are decoded by torchvision, which gives the
        same ones as Pillow in three quarters of the time (`benchmarks/frame_storage.py`).

        Raises:
            ValueError: the picture is damaged or has another size.
        """
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg, decode_webp

        content = bytearray(picture)
        try:
            with Image.open(io.BytesIO(content), formats=[self.format.upper()]) as opened:
                if opened.size != (size, size):
                    raise ValueError(f"a picture of {opened.width} x {opened.height} pixels, not {size} x {size}")
            decode = decode_jpeg if self.format == "jpeg" else decode_webp
            pixels = decode(torch.frombuffer(content, dtype=torch.uint8), mode=ImageReadMode.RGB)
        except (OSError, SyntaxError, RuntimeError, EOFError, IndexError, TypeError, Image.DecompressionBombError) as e:
            raise ValueError(f"a damaged picture: {' '.join(str(e).split())}") from e
        return pixels.numpy()
