"""Base class of methods that change every block of each encoder by itself."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.errors import ArgumentError
from avprompt.methods.base import PromptMethod, PromptState


class PerBlock(PromptMethod):
    """One trained part for every block of each encoder, blocks without a partner included; no exchange.

    Args:
        visual: whether the visual encoder is changed.
        audio: whether the audio encoder is changed.

    Raises:
        ArgumentError: neither is.
    """

    def __init__(self, visual: bool = True, audio: bool = True) -> None:
        super().__init__()
        if not (visual or audio):
            raise ArgumentError(
                "visual, audio", "both false", "one encoder to change", "Use avprompt.methods.NoPrompts."
            )
        self.sides = tuple(name for name, on in (("visual", visual), ("audio", audio)) if on)

    @abc.abstractmethod
    def part(self, spec: BlockSpec) -> nn.Module:
        """The trained part of a block."""

    @abc.abstractmethod
    def run(self, block: FrozenBlock, part: nn.Module, x: Tensor) -> Tensor:
        """A block with its part: tokens (B*T, N, C) in and out."""

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        paired = dict(zip(("visual", "audio"), zip(*sites)))
        self.paired, self.unpaired = (
            nn.ModuleDict({side: nn.ModuleList(self.part(spec) for spec in specs[side]) for side in self.sides})
            for specs in (paired, lone)
        )

    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        visual, audio = (
            self.run(block, self.paired[side][site], x) if side in self.sides else block(x)
            for side, block, x in (("visual", visual_block, visual), ("audio", audio_block, audio))
        )
        return visual, audio

    def lone(
        self, modality: Literal["visual", "audio"], index: int, block: FrozenBlock, tokens: Tensor, state: PromptState
    ) -> Tensor:
        return self.run(block, self.unpaired[modality][index], tokens) if modality in self.sides else block(tokens)
