"""The window and the mel bands of HTS-AT's spectrogram, bit for bit as librosa computes them, in NumPy.

torchlibrosa asks librosa for three functions, and librosa imports numba, scipy.signal and scikit-learn to give them:
about four seconds of processor time whenever a program builds an HTS-AT.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

#: Slaney's scale: 200/3 Hz a mel up to 1 kHz, then 27 mels for each factor of 6.4
LINEAR, KNEE, STEP = 200.0 / 3, 1000.0, np.log(6.4) / 27.0


def slaney_mel(hz: float) -> float:
    """Frequency in Hz -> mel on Slaney's scale (Auditory Toolbox, 1998).

    >>> round(float(slaney_mel(500.0)), 6), round(float(slaney_mel(6400.0)), 6)
    (7.5, 42.0)
    """
    return hz / LINEAR if hz < KNEE else KNEE / LINEAR + np.log(hz / KNEE) / STEP


def mel_bank(sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> np.ndarray:
    """Triangular mel bands of equal area: `librosa.filters.mel` with its defaults.

    Args:
        sr: sampling rate in Hz.
        n_fft: samples of a window.
        n_mels: number of bands.
        fmin: lowest frequency in Hz.
        fmax: highest frequency in Hz.

    Returns:
        Weights (n_mels, n_fft // 2 + 1), float32.

    >>> mel_bank(32000, 1024, 64, 50, 14000).shape
    (64, 513)
    """
    mels = np.linspace(slaney_mel(fmin), slaney_mel(fmax), n_mels + 2)
    edges = LINEAR * mels
    high = mels >= KNEE / LINEAR
    edges[high] = KNEE * np.exp(STEP * (mels[high] - KNEE / LINEAR))
    widths = np.diff(edges)
    distance = np.subtract.outer(edges, np.fft.rfftfreq(n_fft, 1.0 / sr))
    bank = np.zeros((n_mels, n_fft // 2 + 1), np.float32)
    for band in range(n_mels):
        rising, falling = -distance[band] / widths[band], distance[band + 2] / widths[band + 1]
        bank[band] = np.maximum(0, np.minimum(rising, falling))
    bank *= (2.0 / (edges[2:] - edges[:-2]))[:, np.newaxis]
    return bank


def hann(window: str, size: int, fftbins: bool = True) -> np.ndarray:
    """Periodic Hann window (size,), float64: `librosa.filters.get_window("hann", size)`.

    >>> hann("hann", 4).round(6).tolist()
    [0.0, 0.5, 1.0, 0.5]
    """
    phase = np.linspace(-np.pi, np.pi, size + 1)
    return (0.5 + 0.5 * np.cos(phase))[:-1]


def pad_center(window: np.ndarray, size: int) -> np.ndarray:
    """A window (n,) in the middle of zeros (size,): `librosa.util.pad_center`.

    >>> pad_center(np.ones(2), 5).tolist()
    [0.0, 1.0, 1.0, 0.0, 0.0]
    """
    left = (size - len(window)) // 2
    return np.pad(window, (left, size - len(window) - left))


@functools.lru_cache(maxsize=4)
def fourier(size: int) -> np.ndarray:
    """Matrix (size, size) of the discrete Fourier transform, complex128: torchlibrosa's, which it computes anew for every
    network, a third of a second for 1024 samples.

    >>> (fourier(4).round(6)[1] + 0).tolist()  # adding 0 turns -0 into 0
    [(1+0j), -1j, (-1+0j), 1j]
    """
    place = np.arange(size)
    found = np.power(np.exp(-2 * np.pi * 1j / size), np.multiply.outer(place, place))
    found.flags.writeable = False
    return found


@contextmanager
def without_librosa() -> Iterator[None]:
    """While it is open, torchlibrosa takes these functions for librosa's, and `fourier` for its own.

    >>> with without_librosa():
    ...     from torchlibrosa.stft import LogmelFilterBank
    ...     tuple(LogmelFilterBank(sr=32000, n_fft=1024, n_mels=64, fmin=50, fmax=14000).melW.shape)
    (513, 64)
    """
    from torchlibrosa import stft

    librosa, matrix = stft.librosa, stft.DFTBase.dft_matrix
    stft.librosa = SimpleNamespace(
        filters=SimpleNamespace(get_window=hann, mel=mel_bank), util=SimpleNamespace(pad_center=pad_center)
    )
    stft.DFTBase.dft_matrix = lambda self, n: fourier(n)
    try:
        yield
    finally:
        stft.librosa, stft.DFTBase.dft_matrix = librosa, matrix
