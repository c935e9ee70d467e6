"""Prompt methods, one file each: inside the encoders (`PromptMethod`), and in the texts that they are compared with
(`ClassEmbeddings`)."""

from avprompt.methods.avmoe import AVMoE
from avprompt.methods.avstfp import AVSTFP
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.methods.class_embeddings import ClassEmbeddings, FixedEmbeddings, RandomEmbeddings
from avprompt.methods.cocoop import CoCoOp
from avprompt.methods.coop import CoOp
from avprompt.methods.dgsct import DGSCT, DGSCTFewShot, DGSCTPaper
from avprompt.methods.maple import MaPLe, MaPLeEmbeddings
from avprompt.methods.mettle_like import MettleLike
from avprompt.methods.none import NoPrompts
from avprompt.methods.stgcma import STGCMA

__all__ = ["AVMoE", "AVSTFP", "ClassEmbeddings", "CoCoOp", "CoOp", "DGSCT", "DGSCTFewShot", "DGSCTPaper",
           "FixedEmbeddings", "MaPLe", "MaPLeEmbeddings", "MettleLike", "NoPrompts", "PromptMethod", "PromptState", "RandomEmbeddings",
           "STGCMA"]
