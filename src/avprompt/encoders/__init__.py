"""Frozen networks behind one contract (`FrozenEncoder`)."""

from avprompt.encoders.ast import ASTransformer
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
from avprompt.encoders.convolutional import PVT, VGG, MapEncoder, R2Plus1D, ResNet
from avprompt.encoders.dasheng import Dasheng
from avprompt.encoders.fbank import Fbank
from avprompt.encoders.htsat import HTSAT
from avprompt.encoders.plain_vit import PlainViTBlock, ViTSpectrogram
from avprompt.encoders.swin import SwinSpectrogram, SwinV1, SwinV2
from avprompt.encoders.tags import encoder_of_tag
from avprompt.encoders.text import CLAPText, CLIPText, TextTower, class_embeddings, class_texts
from avprompt.encoders.timm_vit import TimmViT
from avprompt.encoders.tiny import TinyCLAP, TinyCLAPText, TinyCLIP, TinyCLIPText, TinyHTSAT, TinySwinV2
from avprompt.encoders.vggish import VGGish

__all__ = [
    "CLIP",
    "HTSAT",
    "PVT",
    "VGG",
    "ASTransformer",
    "AudioInput",
    "BlockSpec",
    "CLAPAudio",
    "CLAPText",
    "CLIPText",
    "Dasheng",
    "Edits",
    "Fbank",
    "FrozenBlock",
    "FrozenEncoder",
    "MapEncoder",
    "PlainViTBlock",
    "R2Plus1D",
    "ResNet",
    "Stage",
    "SwinSpectrogram",
    "SwinV1",
    "SwinV2",
    "TextTower",
    "TimmViT",
    "TinyCLAP",
    "TinyCLAPText",
    "TinyCLIP",
    "TinyCLIPText",
    "TinyHTSAT",
    "TinySwinV2",
    "VGGish",
    "ViTSpectrogram",
    "VisualInput",
    "class_embeddings",
    "class_texts",
    "encoder_of_tag",
]
