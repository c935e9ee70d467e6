"""The real encoder classes at laptop size, with weights that ship: pretrained on the generated world, each on its own
modality alone, by `python -m avprompt.synth.pretrain`."""

from __future__ import annotations

from pathlib import Path

from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

from avprompt.encoders.htsat import HTSAT, FrontEnd
from avprompt.encoders.swin import SwinV2

WEIGHTS = Path(__file__).parent / "weights"
PATCH, DIM, DEPTHS, HEADS = 8, 40, (2, 2), (4, 8)


class TinySwinV2(SwinV2):
    """Swin-V2 over 64 x 64 frames (normalised with mean and deviation 0.5): grids 8 x 8 and 4 x 4, width 40 and 80.

    Args:
        pretrained: `world` (shipped), `none`, or a local file.
        frozen: see `FrozenEncoder`.
        released_mode: see `FrozenEncoder`.
    """

    def __init__(self, pretrained: str = "world", frozen: bool = True,
                 released_mode: bool = False) -> None:
        shipped = str(WEIGHTS / "tiny_swinv2.safetensors") if pretrained == "world" else pretrained
        super().__init__("tiny", shipped, frozen, released_mode)

    def _build(self, model: str) -> SwinTransformerV2:
        return SwinTransformerV2(img_size=64, patch_size=PATCH, num_classes=0, embed_dim=DIM, depths=DEPTHS,
                                 num_heads=HEADS, window_size=8)


class TinyHTSAT(HTSAT):
    """HTS-AT over one-second segments at 16 kHz, 32 mel bands: grids 8 x 8 and 4 x 4, width 40 and 80.

    Args:
        pretrained: `world` (shipped), `none`, or a local file.
        frozen: see `FrozenEncoder`.
        released_mode: see `FrozenEncoder`.
    """

    def __init__(self, pretrained: str = "world", frozen: bool = True,
                 released_mode: bool = False) -> None:
        shipped = str(WEIGHTS / "tiny_htsat.safetensors") if pretrained == "world" else pretrained
        super().__init__(shipped, repeat=1, frozen=frozen, released_mode=released_mode)

    def _build(self, front_end: FrontEnd, **sizes: object) -> nn.Module:
        small = FrontEnd(sample_rate=16000, window_size=512, hop_size=160, mel_bins=32, fmin=50, fmax=8000)
        return super()._build(small, spec_size=64, patch_size=PATCH, patch_stride=(PATCH, PATCH), embed_dim=DIM,
                               depths=list(DEPTHS), num_heads=list(HEADS))
