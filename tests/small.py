"""Encoders of the real classes at toy size with weights that leave no path dead, for tests."""

from __future__ import annotations

import torch
from open_clip.transformer import VisionTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn
from torchlibrosa.augmentation import SpecAugmentation

from avprompt.encoders import CLIP, HTSAT, Fbank, SwinV2, ViTSpectrogram
from avprompt.encoders.htsat import FrontEnd

SEGMENTS, SIZE, SAMPLES = 3, 32, 8000


def enliven(module: nn.Module, seed: int = 0) -> None:
    """Draw every vector near 1 (norms) or 0 (biases): timm starts its norms at 0, which would hide every branch."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.1 * torch.randn(parameter.shape, generator=generator))


class SmallSwin(SwinV2):
    """Two stages of 4 and 2 blocks over 32 x 32 frames: grids 8 x 8 and 4 x 4, one shifted block."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        enliven(self)

    def _build(self, model: str) -> SwinTransformerV2:
        return SwinTransformerV2(
            img_size=SIZE, patch_size=4, num_classes=0, embed_dim=16, depths=(4, 2), num_heads=(2, 4), window_size=4
        )


class SmallHTSAT(HTSAT):
    """Two stages of 2 blocks over half-second segments at 16 kHz: grids 8 x 8 and 4 x 4."""

    def __init__(self, **options: object) -> None:
        super().__init__(seconds=0.5, **options)
        enliven(self)

    def _build(self, front_end: FrontEnd, **sizes: object) -> nn.Module:
        small = FrontEnd(sample_rate=16000, window_size=512, hop_size=800, mel_bins=16, fmin=50, fmax=8000)
        net = super()._build(small, spec_size=32, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
        net.spec_augmenter = SpecAugmentation(
            time_drop_width=4, time_stripes_num=1, freq_drop_width=2, freq_stripes_num=1
        )
        return net


def small_clips(clips: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """`small_batch` as the backbone reads it."""
    return dict(zip(("frames", "audio"), small_batch(clips, seed)))


def small_batch(clips: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (B, 3, 3, 32, 32) and audio (B, 3, 8000)."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(clips, SEGMENTS, 3, SIZE, SIZE, generator=generator)
    return frames, 0.1 * torch.randn(clips, SEGMENTS, SAMPLES, generator=generator)


#: patches 3 x 5 against the frames' 4 x 4: positions are cropped along one axis and stretched along the other
FBANK = Fbank(mel_bins=24, frames=40, shift_ms=12.5, seconds=0.5)


class SmallCLIP(CLIP):
    """CLIP's transformer over 32 x 32 frames: grid 4 x 4, two blocks of width 24 and three heads."""

    def __init__(self, seed: int = 0, **options: object) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(fbank=FBANK, **options)

    def _build(self, model: str) -> nn.Module:
        net = VisionTransformer(SIZE, 8, 24, 2, 3, 4.0, output_dim=16)
        enliven(net)
        return net


class SmallSpectrogram(ViTSpectrogram):
    """Another such transformer, over spectrograms."""

    def __init__(self, **options: object) -> None:
        super().__init__(SmallCLIP(seed=1), FBANK, **options)
