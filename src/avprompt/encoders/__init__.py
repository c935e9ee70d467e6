"""Frozen networks behind one contract (`FrozenEncoder`)."""

from avprompt.encoders.base import (
    AudioInput,
    BlockSpec,
    Edits,
    FrozenBlock,
    FrozenEncoder,
    Stage,
    VisualInput,
)
from avprompt.encoders.clap import CLAPAudio
from avprompt.encoders.clip import CLIP
from avprompt.encoders.fbank import Fbank
from avprompt.encoders.htsat import HTSAT
from avprompt.encoders.plain_vit import PlainViTBlock, ViTSpectrogram
from avprompt.encoders.swin import SwinSpectrogram, SwinV1, SwinV2
from avprompt.encoders.text import CLAPText, CLIPText, TextTower, class_embeddings, class_texts
from avprompt.encoders.tiny import TinyCLAP, TinyCLAPText, TinyCLIP, TinyCLIPText, TinyHTSAT, TinySwinV2

__all__ = ["CLIP", "HTSAT", "AudioInput", "BlockSpec", "CLAPAudio", "CLAPText", "CLIPText", "Edits", "Fbank",
           "FrozenBlock", "FrozenEncoder", "PlainViTBlock", "Stage", "SwinSpectrogram", "SwinV1", "SwinV2", "TextTower",
           "TinyCLAP", "TinyCLAPText", "TinyCLIP", "TinyCLIPText", "TinyHTSAT", "TinySwinV2", "ViTSpectrogram",
           "VisualInput", "class_embeddings", "class_texts"]
