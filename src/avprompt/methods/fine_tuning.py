"""Training the encoders themselves: all of them, their last blocks, their biases (BitFit) or their norms."""

from __future__ import annotations

import re
from typing import Literal

from torch import Tensor

from avprompt.encoders.base import FrozenBlock
from avprompt.errors import ArgumentError, check_choice
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.ranges import Count

#: choice -> pattern of the names that it trains
CHOICES = {"all": r".", "biases": r"(^|[._])bias$", "norms": r"(^|\.)norm\w*\."}


class FineTuning(PromptMethod):
    """Adds nothing, and trains parameters that both encoders have; the reference rows of every comparison.

    `all` without `last` is full fine-tuning, with `last: 4` that of the last four blocks, `biases` is BitFit (Ben-Zaken
    et al., ACL 2022): the bias of every linear layer and norm. The encoders stay in eval mode: dropout and stochastic
    depth are off, running statistics stay. With `audio: shared` both modalities train one tower; `audio: separate`
    gives each its own.

    Args:
        parameters: which: `all`, `biases`, or `norms` (weights and biases of layer norms).
        last: of how many blocks at the end of each encoder, with the merges between them and the final norm; `None` is
            the whole encoder with its stem.

    Raises:
        ArgumentError: an unknown choice, or `last` below 1.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> backbone = AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none"), FineTuning("norms", last=1))
        >>> [name for name, p in backbone.audio.named_parameters() if p.requires_grad]  # doctest: +ELLIPSIS
        ['stages.1.blocks.1.norm1.weight', 'stages.1.blocks.1.norm1.bias', ...]
    """

    identity_at_start = True

    def __init__(self, parameters: Literal["all", "biases", "norms"] = "all", last: Count | None = None) -> None:
        super().__init__()
        check_choice("parameters", parameters, CHOICES)
        if last is not None and last < 1:
            raise ArgumentError("last", last, "at least 1, or null for all", "Use avprompt.methods.NoPrompts for none.")
        self.choice, self.blocks = re.compile(CHOICES[parameters]), last

    def trains(self, name: str, behind: int) -> bool:
        return (self.blocks is None or behind < self.blocks) and self.choice.search(name) is not None

    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        return visual_block(visual), audio_block(audio)
