"""VGGish (Hershey et al., ICASSP 2017): the sound features of AVE, LLP, MUSIC-AVQA and AVSBench."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avprompt.encoders.base import AudioInput, BlockSpec, FrozenEncoder, read_weights, without_autocast
from avprompt.encoders.fbank import tables
from avprompt.errors import ShapeError
from avprompt.precision import wide

RATE, WINDOW, HOP, FFT, BANDS, FRAMES = 16000, 400, 160, 512, 64, 96
#: channels of the convolutions between max-pools, and of the layers behind them
CHANNELS, WIDTHS = ((64,), (128,), (256, 256), (512, 512)), (4096, 4096, 128)


def log_mel(waveform: Tensor) -> Tensor:
    """VGGish's spectrogram: windows of 25 ms every 10 ms, 64 bands between 125 and 7500 Hz, log(magnitude + 0.01).

    Args:
        waveform: (N, S) in [-1, 1] at 16 kHz, S of at least 15,600 samples.

    Returns:
        (N, 1, 96, 64), frames x bands, float32 or wider: the first 96 frames, which is 0.96 s.

    Raises:
        ShapeError: no such waveform, or too short a one.

    >>> log_mel(torch.zeros(2, 16000)).shape
    torch.Size([2, 1, 96, 64])
    """
    least = WINDOW + (FRAMES - 1) * HOP
    if waveform.ndim != 2 or not waveform.is_floating_point() or waveform.shape[1] < least:
        raise ShapeError(
            "waveform",
            f"{tuple(waveform.shape)} {waveform.dtype}",
            f"float (N, S), S of at least {least}",
            "Give segments of a second at 16 kHz.",
        )
    with without_autocast(waveform.device):
        windows = wide(waveform).unfold(1, WINDOW, HOP)[:, :FRAMES]
        # Kaldi's triangles are in mel, as VGGish's are
        window, banks = tables(WINDOW, FFT, BANDS, RATE, 125.0, 7500.0, True, windows.device, windows.dtype)
        magnitudes = torch.fft.rfft(windows * window, FFT).abs()[..., :-1]
        return (magnitudes @ banks + 0.01).log().unsqueeze(1)


class VGGish(FrozenEncoder):
    """VGGish on segments of one second: one vector of 128 channels each, behind its last ReLU, as datasets publish it.

    Neither PCA nor quantisation, which AudioSet's published features have. It has no blocks: nothing can be prompted.
    AVSBench's loaders let 0.96 s of sound follow 0.96 s, so that theirs drift from the frames; here each segment starts
    with its frame's second.

    Args:
        pretrained: `none` (random weights), or the local file `vggish-10086976.pth` of the PyTorch port.
        frozen: see `FrozenEncoder`.

    Raises:
        WeightsError: the file is missing or of another network.

    Example:
        >>> with torch.device("meta"):  # sizes alone; drop this line for a network with weights
        ...     encoder = VGGish()
        >>> sum(parameter.numel() for parameter in encoder.parameters())
        72141184
    """

    def __init__(self, pretrained: str = "none", frozen: bool = True) -> None:
        super().__init__(frozen)
        layers, channels = [], 1
        for group in CHANNELS:
            for width in group:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        dense, width = [], channels * (FRAMES // 16) * (BANDS // 16)
        for following in WIDTHS:
            dense += [nn.Linear(width, following), nn.ReLU()]
            width = following
        self.features, self.embeddings = nn.Sequential(*layers), nn.Sequential(*dense)
        self.input, self.stages = AudioInput(RATE), nn.ModuleList()
        if pretrained != "none" and not self.is_meta():
            self.load_library_weights(read_weights(pretrained, "audio.pretrained"), pretrained)
        self.freeze()

    @property
    def last_spec(self) -> BlockSpec:
        """Size of a vector."""
        return BlockSpec(WIDTHS[-1], (1, 1), 0)

    def stem(self, x: Tensor) -> Tensor:
        maps = self.features(log_mel(x.flatten(0, 1)).to(self.embeddings[0].weight.dtype))
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1)).unsqueeze(1)  # frames, bands, channels

    def finalize(self, tokens: Tensor) -> Tensor:
        return tokens
