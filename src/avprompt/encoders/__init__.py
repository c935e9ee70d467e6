"""Frozen networks behind one contract (`FrozenEncoder`)."""

from avprompt.encoders.base import BlockSpec, FrozenBlock, FrozenEncoder, Stage
from avprompt.encoders.htsat import HTSAT
from avprompt.encoders.swin import SwinV2
from avprompt.encoders.tiny import TinyHTSAT, TinySwinV2

__all__ = ["HTSAT", "BlockSpec", "FrozenBlock", "FrozenEncoder", "Stage", "SwinV2", "TinyHTSAT", "TinySwinV2"]
