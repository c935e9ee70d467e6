"""Arrays and pictures of others: sizes before memory, never a pickle, never a program."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from avprompt.datasets.avsbench import read_mask
from avprompt.errors import AnnotationError, ClipDecodeError
from avprompt.media.decode import Sampling
from avprompt.media.readers import FolderReader
from avprompt.media.untrusted import MAX_PIXELS, read_array, read_picture


def claim(path: Path, shape: tuple[int, ...], dtype: str = "<f4", content: bytes = b"") -> Path:
    """A .npy file whose header says a shape, whatever follows."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content)
    return path


@pytest.mark.parametrize("mapped", [False, True])
def test_arrays(tmp_path: Path, mapped: bool) -> None:
    for array in (
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.zeros((0, 3)),
        np.array(3.5),
        np.zeros(5, np.float16),
    ):
        np.save(tmp_path / "a.npy", array)
        read = read_array(tmp_path / "a.npy", mapped)
        assert np.array_equal(read, array) and read.dtype == array.dtype and read.shape == array.shape


@pytest.mark.parametrize("mapped", [False, True])
def test_a_header_that_claims_terabytes_takes_no_memory(tmp_path: Path, mapped: bool) -> None:
    for shape in ((10**12,), (2**62, 4), (-1, 4), (10**30,)):
        with pytest.raises(ValueError):
            read_array(claim(tmp_path / "a.npy", shape, content=b"1234"), mapped)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_array(claim(tmp_path / "a.npy", (1,), "|O", b"cposix\nsystem\n"), mapped)
    np.savez(tmp_path / "b.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="no .npy file"):
        read_array(tmp_path / "b.npz", mapped)


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 127), new=st.binary(min_size=1, max_size=20))
@pytest.mark.filterwarnings("ignore:Reading .*additional header parsing")
def test_damaged_headers(tmp_path: Path, place: int, new: bytes) -> None:
    path = claim(tmp_path / "a.npy", (3,), content=bytes(12))
    content = path.read_bytes()
    path.write_bytes(content[:place] + new + content[place + len(new) :])
    with contextlib.suppress(ValueError):
        read_array(path)


def huge(path: Path, width: int, height: int) -> Path:
    """A png file of some bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.filterwarnings("ignore:Image size .* exceeds limit")
def test_pictures_beyond_the_limit_are_not_decoded(tmp_path: Path) -> None:
    assert MAX_PIXELS >= 7680 * 4320
    for width, height in ((8192, 4097), (30000, 30000), (2**31 - 1, 1)):
        with pytest.raises((ValueError, OSError)):
            read_picture(huge(tmp_path / "a.png", width, height))
        with pytest.raises(AnnotationError, match="a.png"):
            read_mask(tmp_path / "a.png")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="40 x 30 pixels, more than max_pixels 1,000"):
        read_picture(tmp_path / "b.png", max_pixels=1000)
    assert read_picture(tmp_path / "b.png").shape == (30, 40, 3)


def test_no_program_is_started_for_a_picture(tmp_path: Path) -> None:
    """Pillow hands EPS to Ghostscript, which is a programming language."""
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.raises(OSError):
        read_picture(tmp_path / "a.jpg")


def test_folders_of_published_media(tmp_path: Path) -> None:
    """Frames numbered without zeros, files of a Mac beside them, and waves that lie about themselves."""
    (tmp_path / "wave").mkdir()
    (tmp_path / "frames" / "a").mkdir(parents=True)
    (tmp_path / "frames" / ".hidden").mkdir()
    np.save(tmp_path / "wave" / "a.npy", np.zeros(800, np.float32))
    (tmp_path / "wave" / "._a.npy").write_bytes(b"\0\5\x16\7")
    for number in range(1, 13):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(
            tmp_path / "frames" / "a" / f"frame_{number}.JPG", "JPEG", quality=100, subsampling=0
        )
        (tmp_path / "frames" / "a" / f"._frame_{number}.JPG").write_bytes(b"\0\5\x16\7")
    sampling = Sampling(segments=4, size=8, sample_rate=200)
    reader = FolderReader(tmp_path, sampling)
    assert reader.ids() == {"a"} and reader.inspect("a") is reader.digest_problem("a") is None
    red = reader.read("a")[0][:, 0].float().mean((1, 2))
    numbers = (red / red[0]).round().tolist()
    assert numbers == [1, 4, 8, 12]
    small = FolderReader(tmp_path, Sampling(segments=4, size=8, sample_rate=200, max_pixels=63))
    with pytest.raises(ClipDecodeError, match="8 x 8 pixels, more than max_pixels"):
        small.read("a")
    wave = np.zeros(800, np.float32)
    wave[7] = np.nan
    np.save(tmp_path / "wave" / "a.npy", wave)
    with pytest.raises(ClipDecodeError, match="NaN"):
        reader.read("a")
    assert reader.digest_problem("a").startswith("broken")
    claim(tmp_path / "wave" / "a.npy", (10**12,))
    with pytest.raises(ClipDecodeError, match="a.npy: got 128 bytes"):
        reader.read("a")
