"""Prompt methods: one file each, behind one contract (`PromptMethod`)."""

from avprompt.prompts.base import PromptMethod, PromptState
from avprompt.prompts.dgsct import DGSCT
from avprompt.prompts.none import NoPrompts

__all__ = ["DGSCT", "NoPrompts", "PromptMethod", "PromptState"]
