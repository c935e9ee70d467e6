"""Kaldi log-mel filter banks of waveform segments: the spectrograms that a vision transformer reads as pictures."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.compliance import kaldi

from avprompt.encoders.base import AudioInput, without_autocast
from avprompt.errors import ArgumentError, ShapeError
from avprompt.precision import wide
from avprompt.ranges import Count, Number, Positive


@functools.lru_cache(maxsize=32)
def tables(
    window: int,
    size: int,
    bands: int,
    rate: int,
    low: float,
    high: float,
    periodic: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """A Hann window and triangular bands in mel, made once for a device: copying them in every step would wait for a GPU.

    Args:
        window: samples of the window.
        size: samples of the Fourier transform.
        bands: number of bands.
        rate: Hz.
        low: lowest frequency in Hz.
        high: highest frequency in Hz; 0 is half of the rate.
        periodic: whether the window is one of a periodic series.
        device: where they are used.
        dtype: in which they are used.

    Returns:
        (window,), and (size / 2, bands), without the highest frequency, which no band reaches.

    >>> [tuple(part.shape) for part in tables(400, 512, 128, 16000, 20.0, 0.0, False, torch.device("cpu"), torch.float32)]
    [(400,), (256, 128)]
    """
    with torch.inference_mode(False), torch.device("meta" if device.type == "meta" else "cpu"):
        shape = torch.hann_window(window, periodic=periodic, dtype=dtype)
        banks = kaldi.get_mel_banks(bands, size, rate, low, high, 100.0, -500.0, 1.0)[0]
        return shape.to(device), banks.T.to(device, dtype)


@dataclass(frozen=True)
class Fbank:
    """Waveform -> normalised log-mel spectrogram (AST's front end, as STG-CMA and LAVISH use it).

    Kaldi's filter bank, as `torchaudio.compliance.kaldi.fbank` has it, with Hanning windows, without energy and dither,
    on samples in [-1, 1]. It removes the mean of every window, so that subtracting the clip's mean beforehand, as the
    published loaders do, changes nothing. The defaults are AVE's; for MUSIC-AVQA STG-CMA has `mel_bins=224,
    frames=224, shift_ms=4.4, mean=-5.2144, std=3.8699`. For other data `avprompt data stats` measures `mean` and `std`.

    Args:
        mel_bins: mel bands M.
        frames: columns F of a spectrogram; what a segment lacks is filled with zeros, what is beyond is cut.
        shift_ms: milliseconds between two windows.
        window_ms: milliseconds of a window.
        sample_rate: Hz.
        mean: mean of the un-normalised features over a training set.
        std: their standard deviation; features become (x - mean) / (2 std).
        seconds: length of a segment.
        fill: whether the zeros come after the normalisation, as in LAVISH's and STG-CMA's loaders, or before it, as in
            AST's.

    Raises:
        ArgumentError: a setting is impossible.

    >>> import torch
    >>> fbank = Fbank(mel_bins=128, frames=102)
    >>> fbank.input.samples
    16000
    >>> fbank(torch.zeros(10, 16000)).shape
    torch.Size([10, 1, 128, 102])
    """

    mel_bins: Count = 128
    frames: Count = 102
    shift_ms: Positive = 10.0
    window_ms: Positive = 25.0
    sample_rate: Count = 16000
    mean: Number = -4.1426
    std: Positive = 3.2001
    seconds: Positive = 1.0
    fill: Literal["after", "before"] = "after"

    def __post_init__(self) -> None:
        hint = "See the fbank settings of the experiment's YAML."
        for name, least in (("mel_bins", 4), ("frames", 1), ("sample_rate", 1000)):
            if getattr(self, name) < least:
                raise ArgumentError(f"fbank.{name}", getattr(self, name), f"at least {least}", hint)
        for name, least in (("shift_ms", 1), ("window_ms", 2)):
            if self._samples(getattr(self, name)) < least:
                expected = f"at least {least} samples at {self.sample_rate} Hz"
                raise ArgumentError(f"fbank.{name}", getattr(self, name), expected, hint)
        if self.std <= 0:
            raise ArgumentError("fbank.std", self.std, "a positive number", hint)
        if self.fill not in ("after", "before"):
            raise ArgumentError("fbank.fill", self.fill, "after or before", hint)
        self.input  # noqa: B018  checks the seconds

    @property
    def input(self) -> AudioInput:
        """The segments that these settings are for."""
        return AudioInput(self.sample_rate, self.seconds)

    def __call__(self, waveform: Tensor) -> Tensor:
        """Segments (N, S) float in [-1, 1], one a row -> spectrograms (N, 1, M, F) float32 or wider, mel x time.

        Raises:
            ShapeError: `waveform` is no (N, S) float tensor, or S is shorter than a window.
        """
        features = self.raw(waveform)
        lacking = (0, 0, 0, self.frames - features.shape[1])  # a negative number cuts
        if self.fill == "before":
            features = F.pad(features, lacking)
        features = (features - self.mean) / (2 * self.std)
        if self.fill == "after":
            features = F.pad(features, lacking)
        return features.transpose(1, 2).unsqueeze(1)

    def raw(self, waveform: Tensor) -> Tensor:
        """Segments (N, S) -> features (N, F', M) float32 or wider, neither normalised nor padded; F' follows from S.

        Raises:
            ShapeError: `waveform` is no (N, S) float tensor, or S is shorter than a window.
        """
        window, shift = self._samples(self.window_ms), self._samples(self.shift_ms)
        if waveform.ndim != 2 or not waveform.is_floating_point() or waveform.shape[1] < window:
            raise ShapeError(
                "waveform",
                f"{tuple(waveform.shape)} {waveform.dtype}",
                f"float (N, S) with S of at least one window ({window} samples at {self.sample_rate} Hz)",
                "Give one segment a row; see the data module's sample_rate and the encoder's fbank settings.",
            )
        with without_autocast(waveform.device):
            windows = wide(waveform).unfold(1, window, shift)  # (N, F', window)
            if not len(waveform):
                return windows.new_zeros(*windows.shape[:2], self.mel_bins)
            size = 1 << (window - 1).bit_length()
            shape, banks = tables(
                window, size, self.mel_bins, self.sample_rate, 20.0, 0.0, False, windows.device, windows.dtype
            )
            windows = windows - windows.mean(-1, keepdim=True)
            before = torch.cat((windows[..., :1], windows[..., :-1]), -1)  # pre-emphasis; a first sample is its own
            spectrum = torch.fft.rfft((windows - 0.97 * before) * shape, size).abs()[..., :-1].square()
            return (spectrum @ banks).clamp_min(torch.finfo(torch.float32).eps).log()

    def _samples(self, milliseconds: float) -> int:
        """Samples of a duration, rounded down as Kaldi does."""
        return int(self.sample_rate * milliseconds * 0.001)


def one_channel(conv: nn.Conv2d, stem: Literal["sum", "mean"]) -> nn.Conv2d:
    """A patch embedding of one channel from that of red, green and blue.

    Args:
        conv: (C, 3, rows, columns).
        stem: `sum` sees a spectrogram as a picture with three equal colours (LAVISH, STG-CMA); `mean` is a third of it.

    Raises:
        ArgumentError: another `stem`.
    """
    if stem not in ("sum", "mean"):
        raise ArgumentError("audio_stem", stem, "sum or mean", "Correct it.")
    weight = conv.weight.detach()
    weight = weight.sum(1, keepdim=True) if stem == "sum" else weight.mean(1, keepdim=True)
    own = nn.Conv2d(
        1,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        bias=conv.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    own.weight = nn.Parameter(weight)
    if conv.bias is not None:
        own.bias = nn.Parameter(conv.bias.detach().clone())
    return own
