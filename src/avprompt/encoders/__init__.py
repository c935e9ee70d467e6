"""Frozen networks behind one contract (`FrozenEncoder`)."""

from avprompt.encoders.base import BlockSpec, FrozenBlock, FrozenEncoder, Stage
from avprompt.encoders.clap import CLAPAudio
from avprompt.encoders.clip import CLIP, CLIPSpectrogram
from avprompt.encoders.fbank import Fbank
from avprompt.encoders.htsat import HTSAT
from avprompt.encoders.swin import SwinV2
from avprompt.encoders.text import CLAPText, CLIPText, TextTower, class_embeddings, class_texts
from avprompt.encoders.tiny import TinyCLAP, TinyCLAPText, TinyCLIP, TinyCLIPText, TinyHTSAT, TinySwinV2

__all__ = ["CLIP", "HTSAT", "BlockSpec", "CLAPAudio", "CLAPText", "CLIPSpectrogram", "CLIPText", "Fbank",
           "FrozenBlock", "FrozenEncoder", "Stage", "SwinV2", "TextTower", "TinyCLAP", "TinyCLAPText", "TinyCLIP",
           "TinyCLIPText", "TinyHTSAT", "TinySwinV2", "class_embeddings", "class_texts"]
