"""MaPLe: prompts in the first blocks of CLIP's two towers, coupled to each other (Khattak et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.encoders.text import CLIPText
from avprompt.errors import ArgumentError
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.methods.class_embeddings import ContextEmbeddings, on_meta
from avprompt.ranges import Count


class MaPLe(PromptMethod):
    """Adds n image prompts after the patches, linear functions of n text prompts; the audio encoder has no prompts.

        text prompts  P_0   P_1  ...  P_{J-1}      learned (n, W)     -> `MaPLeEmbeddings`, which reads them here
                       |     |          |          learned linear maps F_j
        image prompts F_0   F_1  ...  F_{J-1}      new at each of the first J block pairs; from pair J on
                                                   they are passed on, and removed after the last pair

    Deviation: the published code inserts the first image prompts before CLIP's first norm. Here they are inserted after
    it, because a method receives the tokens before the first block; from block pair 1 on nothing differs.

    Args:
        num_tokens: number n of prompts.
        depth: number J of block pairs with prompts of their own. If the audio encoder has as many blocks as the visual
            one, a block pair is a visual block.
        text_width: width W of the text tower's tokens: 512 for ViT-B, 768 for ViT-L.

    Raises:
        ArgumentError: a number is below 1; on `attach`, no plain visual blocks, or fewer block pairs than J.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyCLAP, TinyCLIP
        >>> backbone = AVPromptBackbone(TinyCLIP("none"), TinyCLAP("none"), MaPLe(depth=2, text_width=64))
        >>> sum(p.numel() for p in backbone.prompts.parameters())  # 2 x 2 prompts of width 64, 2 maps from 64 to 96
        12736
    """

    def __init__(self, num_tokens: Count = 2, depth: Count = 9, text_width: Count = 512) -> None:
        super().__init__()
        for name, value in (("num_tokens", num_tokens), ("depth", depth), ("text_width", text_width)):
            if value < 1:
                raise ArgumentError(name, value, "at least 1", "Choose another value.")
        self.num_tokens, self.depth, self.text_width = num_tokens, depth, text_width

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        if not all(visual.plain for visual, _ in sites):
            raise ArgumentError(
                "prompts", "MaPLe", "a visual encoder of plain transformer blocks", "Use avprompt.encoders.CLIP."
            )
        if self.depth > len(sites):
            raise ArgumentError(
                "depth", self.depth, f"at most {len(sites)}, the number of block pairs", "Choose another."
            )
        self.sites, shape = len(sites), (self.num_tokens, self.text_width)
        self.context = nn.Parameter(nn.init.normal_(torch.empty(shape), std=0.02))
        self.deep = nn.Parameter(nn.init.normal_(torch.empty(self.depth - 1, *shape), std=0.02))
        self.project = nn.ModuleList(nn.Linear(self.text_width, sites[0][0].dim) for _ in range(self.depth))

    def begin(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        return torch.cat((visual, self._image_prompts(0, visual)), dim=1), audio

    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        if 0 < site < self.depth:
            visual = torch.cat((visual[:, : -self.num_tokens], self._image_prompts(site, visual)), dim=1)
        visual = visual_block(visual)
        if site + 1 == self.sites:  # tasks receive the image's own tokens only
            visual = visual[:, : -self.num_tokens]
        return visual, audio_block(audio)

    def _image_prompts(self, site: int, visual: Tensor) -> Tensor:
        source = self.context if site == 0 else self.deep[site - 1]
        return self.project[site](source).to(visual.dtype).expand(len(visual), -1, -1)


class MaPLeEmbeddings(ContextEmbeddings):
    """The text side of `MaPLe`, which holds the prompts: the first n words of each sentence, n tokens in deeper blocks.

    Args:
        tower: CLIP's text tower.
        words: words before each name; the first n initialise the learned vectors, the others stay.

    Raises:
        ArgumentError: on `attach`, another prompt method, tokens of another width, or too few words.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyCLAP, TinyCLIP, TinyCLIPText
        >>> backbone = AVPromptBackbone(TinyCLIP("none"), TinyCLAP("none"), MaPLe(depth=2, text_width=64))
        >>> texts = MaPLeEmbeddings(TinyCLIPText("none"))
        >>> texts.attach(["red disc", "star"], backbone.prompts)
        >>> texts(torch.rand(1, 10, 64)).shape, any(p.requires_grad for p in texts.parameters())
        (torch.Size([2, 64]), False)
    """

    def __init__(self, tower: CLIPText, words: str = "a photo of a") -> None:
        super().__init__(tower)
        self.start = words

    def attach(self, names: Sequence[str], prompts: PromptMethod) -> None:
        if not isinstance(prompts, MaPLe):
            raise ArgumentError(
                "prompts", type(prompts).__name__, "MaPLe, which MaPLeEmbeddings belongs to", "Change one of the two."
            )
        width, count = self.tower.positional_embedding.shape[1], prompts.num_tokens
        if prompts.text_width != width:
            raise ArgumentError("text_width", prompts.text_width, f"{width}, the text tower's", "Set it on MaPLe.")
        self.coupled = (prompts,)  # a tuple: its parameters are registered once, in the backbone
        if not on_meta():
            words = self.words(self.start)
            if len(words) < count:
                raise ArgumentError("words", repr(self.start), f"at least {count} tokens", "Add words.")
            with torch.no_grad():
                prompts.context.copy_(words[:count])
        names = [name.replace("_", " ") for name in names]
        self.place([f"{self.start} {name}." for name in names], [range(1, 1 + count)] * len(names))

    def forward(self, features: Tensor) -> Tensor:
        (prompts,) = self.coupled
        return self.tower.encode(self.splice(prompts.context), self.end, prompts.deep, self.span)
