"""Reading of untrusted arrays and pictures: headers are checked before memory is allocated, and no code is run."""

from __future__ import annotations

import io
import math
import os
import tokenize
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from PIL import Image

#: picture formats that are read; others need code that is not safe for untrusted files (EPS starts Ghostscript)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
#: default for the largest number of pixels of a picture that is decoded: 8K video (7680 x 4320) fits
MAX_PIXELS = 2**25


def read_array(path: Path, mapped: bool = False) -> np.ndarray:
    """The array of a .npy file, whose size must be exactly what its header says.

    Args:
        path: the file.
        mapped: map the file instead of reading it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no .npy file, holds Python objects (a pickle, which is never read), or has another size.
    """
    with path.open("rb") as file:
        dtype, shape, order, offset = _header(file, size := path.stat().st_size)
        if mapped and size > offset:
            return np.memmap(path, dtype, "r", offset, shape, order)
        array = np.fromfile(file, dtype, math.prod(shape))
        if array.size != math.prod(shape):
            raise ValueError("a file that shrinks while it is read")
        return array.reshape(shape, order=order)


def array_of(content: memoryview) -> np.ndarray:
    """The array of a .npy file's content, which must be exactly as long as its header says.

    Raises:
        ValueError: as of `read_array`.
    """
    dtype, shape, order, offset = _header(io.BytesIO(content), len(content))
    return np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape, order=order).copy()


def _header(file: BinaryIO, size: int) -> tuple[np.dtype, tuple[int, ...], str, int]:
    """dtype, shape, order and first byte of an array; leaves the file there.

    Raises:
        ValueError: as of `read_array`.
    """
    if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
        raise ValueError("no .npy file")
    file.seek(0)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version}")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = read_header(file)
    except (
        SyntaxError,
        tokenize.TokenError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:  # parsing the text of a damaged header raises these
        raise ValueError(f"a header that is none: {error}") from error
    if dtype.hasobject:
        raise ValueError("Python objects, whose pickle may run code (allow_pickle=False)")
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {shape}")
    offset = file.tell()
    expected = offset + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise ValueError(f"{size} bytes where its header ({dtype}, {shape}) says {expected}")
    return dtype, shape, "F" if fortran else "C", offset


def header_of(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The header that numpy writes before an array.

    Example:
        >>> len(header_of(np.dtype(np.uint8), (10, 3, 192, 192)))
        128
    """
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return file.getvalue()


def read_known(path: Path, dtype: np.dtype, shape: tuple[int, ...], header: bytes) -> np.ndarray:
    """The array of a .npy file that should have this dtype and shape; much faster than `read_array` where it has.

    Args:
        path: the file.
        dtype: expected.
        shape: expected.
        header: `header_of` them. A file that begins with it is not parsed; any other is read by `read_array`.

    Raises:
        OSError: the file cannot be read.
        ValueError: as of `read_array`, or the array has another dtype or shape.
    """
    with path.open("rb", buffering=0) as file:
        array = np.empty(shape, dtype)
        if os.fstat(file.fileno()).st_size == len(header) + array.nbytes and file.read(len(header)) == header:
            rest = memoryview(array).cast("B")
            while rest:
                if not (count := file.readinto(rest)):
                    raise ValueError("a file that shrinks while it is read")
                rest = rest[count:]
            return array
    array = read_array(path)
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{array.dtype} {array.shape}")
    return array


def open_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture and check its format and size; its pixels are not decoded yet.

    Raises:
        OSError: no picture of `FORMATS`.
        ValueError: more than `max_pixels` pixels.
    """
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    if image.width * image.height > max_pixels:
        image.close()
        raise ValueError(f"{image.width} x {image.height} pixels, more than max_pixels {max_pixels:,}")
    return image


def read_picture(path: Path, *modes: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels as uint8 or bool (H, W) in the picture's own mode if it is one of `modes`, else RGB (H, W, 3).

    Raises:
        OSError: no picture of `FORMATS`, or a damaged one.
        ValueError: more than `max_pixels` pixels, or a damaged one.
    """
    try:
        with open_picture(path, max_pixels) as image:
            return np.array(image if image.mode in modes else image.convert("RGB"))
    except (SyntaxError, EOFError, IndexError, TypeError) as error:  # Pillow raises these for some damaged files
        raise ValueError(f"damaged: {error}") from error
