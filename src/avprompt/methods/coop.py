"""CoOp: learned context words in front of class names (Zhou et al., IJCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from avprompt.encoders.text import CLIPText
from avprompt.errors import ArgumentError
from avprompt.methods.base import PromptMethod
from avprompt.methods.class_embeddings import ContextEmbeddings, on_meta
from avprompt.ranges import Count

#: a token of every vocabulary, used as a placeholder for a learned vector
PLACEHOLDER = "a"


class CoOp(ContextEmbeddings):
    """`[v1] ... [vM] name.` with learned vectors v, M x W parameters; DG-SCT's image texts have four of them.

    Args:
        tower: CLIP's text tower.
        context: number M of vectors, drawn from N(0, 0.02), or the words that initialise them, such as `a photo of a`.
            DG-SCT's released code looks up these words and then overwrites them with random values: 4.
        class_specific: give each class vectors of its own; a checkpoint then fits one list of classes only.
        position: position of the name: at the `end`, in the `middle` or in `front`.

    Raises:
        ArgumentError: no vectors.

    Example:
        >>> from avprompt.encoders import TinyCLIPText
        >>> from avprompt.methods import NoPrompts
        >>> texts = CoOp(TinyCLIPText("none"), context=4)
        >>> texts.attach(["red disc", "star"], NoPrompts())
        >>> texts(torch.rand(1, 10, 64)).shape, [p.shape for p in texts.parameters() if p.requires_grad]
        (torch.Size([2, 64]), [torch.Size([4, 64])])
    """

    def __init__(
        self,
        tower: CLIPText,
        context: Count | str = 16,
        class_specific: bool = False,
        position: Literal["end", "middle", "front"] = "end",
    ) -> None:
        super().__init__(tower)
        self.start, self.class_specific, self.position = context, class_specific, position
        if (context if isinstance(context, int) else len(context.split())) < 1:
            raise ArgumentError("context", repr(context), "a number from 1 on, or words", "Choose some.")

    def attach(self, names: Sequence[str], prompts: PromptMethod) -> None:
        width = self.tower.positional_embedding.shape[1]
        if isinstance(self.start, int):
            context = nn.init.normal_(torch.empty(self.start, width), std=0.02)
        elif on_meta():
            context = torch.empty(len(self.start.split()), width)
        else:
            context = self.words(self.start).clone()
        count = len(context)
        if self.class_specific:
            context = context.repeat(len(names), 1, 1)
        self.context = nn.Parameter(context)
        before = {"end": count, "middle": count // 2, "front": 0}[self.position]
        names = [name.replace("_", " ") for name in names]
        gaps = [PLACEHOLDER] * before, [PLACEHOLDER] * (count - before)
        places = [
            [1 + place + (length if place >= before else 0) for place in range(count)] for length in self.lengths(names)
        ]
        self.place([" ".join((*gaps[0], name, *gaps[1])) + "." for name in names], places)

    def forward(self, features: Tensor) -> Tensor:
        return self.tower.encode(self.splice(self.context), self.end, span=self.span)
