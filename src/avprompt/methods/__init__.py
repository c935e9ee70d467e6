"""Prompt methods, one file each: inside the encoders (`PromptMethod`), and in the texts that they are compared with
(`ClassEmbeddings`)."""

from avprompt.methods.adapters import Adapters
from avprompt.methods.avmoe import AVMoE
from avprompt.methods.avstfp import AVSTFP
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.methods.class_embeddings import ClassEmbeddings, FixedEmbeddings, RandomEmbeddings
from avprompt.methods.cocoop import CoCoOp
from avprompt.methods.coop import CoOp
from avprompt.methods.copl_like import CoPLLike
from avprompt.methods.dgsct import DGSCT, DGSCTFewShot, DGSCTPaper
from avprompt.methods.fine_tuning import FineTuning
from avprompt.methods.lavish import LAVISH
from avprompt.methods.lora import LoRA
from avprompt.methods.maple import MaPLe, MaPLeEmbeddings
from avprompt.methods.mbt import MBT
from avprompt.methods.mettle_like import MettleLike
from avprompt.methods.molt_like import MoLTLike
from avprompt.methods.moma_like import MoMALike
from avprompt.methods.none import NoPrompts
from avprompt.methods.stgcma import STGCMA
from avprompt.methods.vpt import VPT

__all__ = [
    "AVSTFP",
    "DGSCT",
    "LAVISH",
    "MBT",
    "STGCMA",
    "VPT",
    "AVMoE",
    "Adapters",
    "ClassEmbeddings",
    "CoCoOp",
    "CoOp",
    "CoPLLike",
    "DGSCTFewShot",
    "DGSCTPaper",
    "FineTuning",
    "FixedEmbeddings",
    "LoRA",
    "MaPLe",
    "MaPLeEmbeddings",
    "MettleLike",
    "MoLTLike",
    "MoMALike",
    "NoPrompts",
    "PromptMethod",
    "PromptState",
    "RandomEmbeddings",
]
