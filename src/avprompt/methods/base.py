"""The contract of a prompt method: what happens at a site, a pair of frozen blocks met on the walk through two encoders."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field

from torch import Tensor, nn

from avprompt.encoders.base import BlockSpec, FrozenBlock


@dataclass
class PromptState:
    """What one forward pass carries from site to site.

    Args:
        segments: number T of segments a clip; tokens are (B*T, N, C).
        maps: whether attention maps are asked for.
        memory: whatever the method keeps for a later site or for `pool`.
    """

    segments: int
    maps: bool = False
    memory: dict[str, Tensor] = field(default_factory=dict)


class PromptMethod(nn.Module, abc.ABC):
    """A method that adds trainable pieces between and inside the blocks of two frozen encoders.

    A method knows neither the task nor the encoders: `attach` tells it the sizes of the sites, and `step` receives the
    two frozen blocks of a site and runs their pieces in the method's own order.
    """

    #: `False`: nothing inside the encoders is trained, so the backbone walks them without a graph
    needs_encoder_gradient = True

    @property
    def identity_at_start(self) -> bool:
        """Whether a new network's tokens are bit for bit those of the frozen pair, as behind zero-initialised gates.

        Known from the arguments alone, before `attach`; the conformance suite holds every method to its answer, yes or no.
        """
        return False

    @property
    def temporal_gates(self) -> tuple[float, float]:
        """Strength gamma of a head's temporal gates: audio guides video, video guides audio; 0 is off."""
        return 0.0, 0.0

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]]) -> None:
        """Build what the (visual, audio) sites need; called once, by the backbone."""

    def begin(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        """Tokens (B*T, N, C) of both modalities before the first block -> the same, changed or not."""
        return visual, audio

    @abc.abstractmethod
    def step(self, site: int, visual_block: FrozenBlock, audio_block: FrozenBlock, visual: Tensor, audio: Tensor,
             state: PromptState) -> tuple[Tensor, Tensor]:
        """Run the whole site `site`: tokens (B*T, N, C) of both modalities in, tokens after both blocks out."""

    @abc.abstractmethod
    def pool(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        """Final tokens (B*T, N, C) -> one vector a segment and modality, (B*T, C) each."""


def mean_or_class_token(tokens: Tensor, spec: BlockSpec) -> Tensor:
    """(B*T, N, C) -> (B*T, C): the class token where the encoder has one, else the mean over tokens."""
    return tokens[:, 0] if spec.prefix else tokens.mean(1)
