"""The contract of a prompt method: what it may do at each pair of frozen blocks of two encoders."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.features import AVFeatures

Gradient = Literal["encoder", "method", "none"]
#: what is computed again in the backward pass, see `AVPromptBackbone`
Checkpointing = Literal["none", "adapters", "all"]


@contextmanager
def _uncounted(module: nn.Module) -> Iterator[None]:
    """Keep batch norms from counting a batch that they have counted."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # running = 1 * running + 0 * batch
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def recomputed(function: Callable, module: nn.Module, *inputs: Any) -> Any:
    """`function(*inputs)`, whose activations are computed again in the backward pass instead of kept.

    Batch norms of `module` count the batch once: in the first run, which a flag knows from later ones. Under
    `torch.compile` there is one run, because the compiler repeats values and not what changes a buffer.
    """
    if torch.compiler.is_compiling():
        return checkpoint(function, *inputs, use_reentrant=False)
    counted = False

    def run(*inputs: Any) -> Any:
        nonlocal counted
        with _uncounted(module) if counted else nullcontext():
            counted = True
            return function(*inputs)

    return checkpoint(run, *inputs, use_reentrant=False)


@dataclass
class PromptState:
    """State of one forward pass, passed from block pair to block pair.

    A method assigns values here during a step and never accumulates them: with activation checkpointing, a step runs
    again in the backward pass, and the values that it writes then are dropped.

    Args:
        segments: number T of segments a clip; tokens are (B*T, N, C).
        wants_maps: whether the caller asks for `maps` and `tables`.
        inputs: the entries of the batch that the method names in `extra_inputs`.
        encoder_graph: whether gradients flow through the frozen blocks in this pass.
        recompute: whether `part` computes again in the backward pass.
        losses: auxiliary losses, scalars; `balance@3` is the loss `balance` of block pair 3. Tasks weigh them by name.
        maps: attention maps by name, float (B, T, rows, columns).
        tables: numbers by name, float (B, T, K), such as the weights of a router.
        ends: tokens (B*T, N, C) at the end of every stage but the last, before merging, such as `visual@0`; the
            backbone writes them.
        memory: tensors that the method keeps for a later block pair or for `pool`; nothing else reads them.

    Example:
        >>> state = PromptState(segments=3)
        >>> state.losses["balance@0"] = torch.tensor(0.1)  # as a method's `step` does
        >>> state.clips(torch.zeros(6, 16, 40)).shape
        torch.Size([2, 3, 16, 40])
    """

    segments: int
    wants_maps: bool = False
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    encoder_graph: bool = True
    recompute: bool = False
    losses: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    tables: dict[str, Tensor] = field(default_factory=dict)
    ends: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)

    def frozen(self) -> AbstractContextManager:
        """The context in which frozen parts run: `torch.no_grad()` where no gradient flows through the encoders."""
        return nullcontext() if self.encoder_graph else torch.no_grad()

    def part(self, module: nn.Module, *inputs: Any) -> Any:
        """`module(*inputs)`, one of the method's own parts, which `checkpointing: adapters` computes twice.

        A method that sends its parts through here says so by `PromptMethod.has_adapters`. What is kept for the backward
        pass is then `inputs` alone, which may not depend on anything that a part writes.
        """
        return recomputed(module, module, *inputs) if self.recompute else module(*inputs)

    def clips(self, x: Tensor) -> Tensor:
        """(B*T, ...) -> (B, T, ...)."""
        return x.unflatten(0, (-1, self.segments))


class PromptMethod(nn.Module, abc.ABC):
    """A method that adds trainable parts between and inside the blocks of two frozen encoders.

    A method knows neither the task nor the encoders: `attach` tells it the sizes of the blocks, and `step` receives the
    two frozen blocks of a pair and runs their parts in the method's own order. Only `step` must be written.

    Example:
        >>> from torch import nn
        >>> from avprompt.methods import PromptMethod
        >>> class Shift(PromptMethod):
        ...     '''Adds a trained vector to the visual tokens of each block pair.'''
        ...     def attach(self, sites, lone):
        ...         super().attach(sites, lone)
        ...         self.shift = nn.ParameterList(nn.Parameter(torch.zeros(v.dim)) for v, _ in sites)
        ...     def step(self, site, visual_block, audio_block, visual, audio, state):
        ...         return visual_block(visual) + self.shift[site], audio_block(audio)
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> backbone = AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none"), Shift())
        >>> sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        240
    """

    #: where gradients flow. `encoder`: through the frozen blocks. `method`: frozen blocks, merges and final norms run
    #: without a graph, the method's own parts with one. `none`: nothing is trained here, and nothing has a graph.
    #: Encoders that train something themselves always have a graph.
    gradient: Gradient = "encoder"
    #: whether the method has parts beside the frozen blocks that `checkpointing: adapters` can compute again
    has_adapters: bool = False
    #: further entries of the batch that the method needs; they arrive as `state.inputs`
    extra_inputs: tuple[str, ...] = ()
    #: what the K columns of a family of tables mean, by the family's name, such as `router` of `router@3`
    table_columns: Mapping[str, tuple[str, ...]] = {}

    @property
    def identity_at_start(self) -> bool:
        """Whether an untrained method leaves the tokens of the frozen encoders unchanged, as zero-initialised gates do.

        It is known from the arguments alone, before `attach`. The conformance suite checks the answer of every method.
        """
        return False

    @property
    def temporal_gates(self) -> tuple[float, float]:
        """Strength gamma of a head's temporal gates, of audio on video and of video on audio; 0 is off."""
        return 0.0, 0.0

    @property
    def widths(self) -> tuple[int, int]:
        """Channels of the vectors that `pool` returns, visual and audio; known from `attach` on."""
        visual, audio = self.last
        return visual.dim, audio.dim

    def trains(self, name: str, behind: int) -> bool:
        """Whether a parameter of an encoder is trained too. The backbone asks for every parameter of both encoders.

        Args:
            name: of the parameter in its encoder, such as `stages.0.blocks.3.norm1.bias`.
            behind: number of blocks of its encoder that run behind it, see `FrozenEncoder.unfreeze`.
        """
        return False

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        """Build the parameters for the block pairs. The backbone calls this once; subclasses call it first.

        Args:
            sites: visual and audio block of each pair.
            lone: blocks without a partner, in order, of `visual` and `audio`.
        """
        self.last = sites[-1]

    def parts(self) -> list[nn.Module]:
        """The method's parts that `compile: regions` compiles: by default its children, and the entries of lists."""
        found = []
        for child in self.children():
            inner = list(child) if isinstance(child, nn.ModuleList) else [child]
            found += [part for part in inner if type(part).forward is not nn.Module.forward]
        return found

    def begin(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        """Tokens (B*T, N, C) of both modalities before the first block -> the same, changed or not."""
        return visual, audio

    @abc.abstractmethod
    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        """Run block pair `site`: tokens (B*T, N, C) of both modalities in, tokens after both blocks out."""

    def lone(
        self, modality: Literal["visual", "audio"], index: int, block: FrozenBlock, tokens: Tensor, state: PromptState
    ) -> Tensor:
        """Run the `index`-th block of a modality that has no partner: tokens (B*T, N, C) in and out."""
        return block(tokens)

    def end(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        """Tokens (B*T, N, C) after the last block, before the encoders' final norms -> the same, changed or not."""
        return visual, audio

    def pool(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        """Final tokens (B*T, N, C) -> one vector a segment and modality, (B*T, C) each: class token or mean."""
        return mean_or_class_token(visual, self.last[0]), mean_or_class_token(audio, self.last[1])

    def finish(self, features: AVFeatures, state: PromptState) -> AVFeatures:
        """The features that tasks read -> the same, or others; the pyramid may be replaced."""
        return features


def mean_or_class_token(tokens: Tensor, spec: BlockSpec) -> Tensor:
    """(B*T, N, C) -> (B*T, C): the class token where the encoder has one, else the mean over the tokens of the grid."""
    return tokens[:, 0] if spec.prefix and spec.class_token else tokens[:, spec.prefix :].mean(1)
