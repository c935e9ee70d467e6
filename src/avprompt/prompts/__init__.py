"""Prompt methods, one file each: inside the encoders (`PromptMethod`), and in the texts that they are compared with
(`ClassTexts`)."""

from avprompt.prompts.avstfp import AVSTFP
from avprompt.prompts.base import PromptMethod, PromptState
from avprompt.prompts.cocoop import CoCoOp
from avprompt.prompts.coop import CoOp
from avprompt.prompts.dgsct import DGSCT
from avprompt.prompts.maple import MaPLe, MaPLeTexts
from avprompt.prompts.none import NoPrompts
from avprompt.prompts.texts import ClassTexts, FixedTexts, NoiseTexts

__all__ = ["AVSTFP", "ClassTexts", "CoCoOp", "CoOp", "DGSCT", "FixedTexts", "MaPLe", "MaPLeTexts", "NoPrompts",
           "NoiseTexts", "PromptMethod", "PromptState"]
