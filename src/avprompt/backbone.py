"""The one audio-visual backbone: two encoders walked in lock-step, prompts between and inside their blocks."""

from __future__ import annotations

import copy
import zlib
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avprompt.encoders.base import FrozenEncoder
from avprompt.errors import ArgumentError, ShapeError
from avprompt.features import AVFeatures
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.methods.none import NoPrompts


def spread(count: int, partners: int) -> list[int]:
    """Indices of `partners` blocks among `count`, evenly spread and ending together: 6 of 18 are 2, 5, 8, 11, 14, 17."""
    return [(k + 1) * count // partners - 1 for k in range(partners)]


def pair_blocks(visual: list[int], audio: list[int]) -> list[tuple[int, int]]:
    """Pair the blocks of two encoders stage by stage, given the number of blocks in each stage.

    Encoders with different numbers of stages are paired over all their blocks at once.

    Returns:
        (visual index, audio index) of every site, counted over all blocks of each encoder.
    """
    if len(visual) != len(audio):
        visual, audio = [sum(visual)], [sum(audio)]
    sites, v_start, a_start = [], 0, 0
    for v, a in zip(visual, audio):
        partners = min(v, a)
        sites += [(v_start + i, a_start + j) for i, j in zip(spread(v, partners), spread(a, partners))]
        v_start, a_start = v_start + v, a_start + a
    return sites


@contextmanager
def frozen_batch_norm_statistics(module: nn.Module):
    """Keep batch norms from counting a batch twice while a checkpointed site is computed again."""
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


@contextmanager
def seeded(name: str):
    """Draw the weights of a part from a stream of its own, set by the run's seed and the part's name.

    Otherwise a part's initial weights would depend on how many numbers the parts built before it had drawn, and two rows
    of an ablation would differ in more than what they compare.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((torch.initial_seed() + zlib.crc32(name.encode())) % 2**63)
        yield


class _Walk:
    """Where one encoder stands: runs plain blocks up to the next site, merging between stages."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        self.stages = encoder.stages
        self.blocks = [(number, block) for number, stage in enumerate(encoder.stages) for block in stage.blocks]

    def enter(self, tokens: Tensor, index: int, ends: dict[int, Tensor]) -> Tensor:
        """Bring tokens to block `index`: where it opens a stage, note the last stage's end and merge."""
        number = self.blocks[index][0]
        if index and self.blocks[index - 1][0] != number:
            ends[number - 1] = tokens
            tokens = self.stages[number - 1].merge(tokens)
        return tokens

    def run(self, tokens: Tensor, start: int, stop: int, ends: dict[int, Tensor]) -> Tensor:
        for index in range(start, stop):
            tokens = self.blocks[index][1](self.enter(tokens, index, ends))
        return tokens


class AVPromptBackbone(nn.Module):
    """Two frozen encoders and one prompt method, the feature extractor of every task.

    Args:
        visual: encoder of the frames.
        audio: encoder of the waveform; `shared` sends spectrograms through the visual encoder's own blocks, `separate`
            through a copy of them (for full fine-tuning, two towers).
        prompts: the method; it is attached to this pair's sites here.
        pairing: `auto` pairs stage by stage where both have the same number of stages, else over all blocks; `stages`
            insists on the former, `even` on the latter.
        checkpointing: recompute each site in the backward pass instead of keeping its activations.

    Raises:
        ArgumentError: `pairing: stages` with different numbers of stages; `audio: shared` or
            `separate` with an encoder that only sees.
    """

    def __init__(self, visual: FrozenEncoder, audio: FrozenEncoder | Literal["shared", "separate"],
                 prompts: PromptMethod | None = None, pairing: Literal["auto", "stages", "even"] = "auto",
                 checkpointing: bool = False) -> None:
        super().__init__()
        if isinstance(audio, str):
            if not hasattr(visual, "listener"):
                raise ArgumentError("audio", f"{audio}, with {type(visual).__name__}", "a visual encoder that can listen",
                                    "Use avprompt.encoders.CLIP, or give an audio encoder.")
            audio = (visual if audio == "shared" else copy.deepcopy(visual)).listener()
        self.visual, self.audio, self.prompts = visual, audio, prompts or NoPrompts()
        self.checkpointing = checkpointing
        depths = [[len(stage.blocks) for stage in encoder.stages] for encoder in (visual, audio)]
        if pairing == "stages" and len(depths[0]) != len(depths[1]):
            raise ArgumentError("pairing", f"stages, with {len(depths[0])} visual and {len(depths[1])} audio stages",
                                "as many stages on both sides", "Use pairing: even.")
        if pairing == "even":
            depths = [[sum(depth)] for depth in depths]
        self.sites = pair_blocks(*depths)
        v, a = list(visual.blocks()), list(audio.blocks())
        with seeded("prompts"):
            self.prompts.attach([(v[i].spec, a[j].spec) for i, j in self.sites])

    @property
    def visual_dim(self) -> int:
        """Channels C_v of the visual features."""
        return self.visual.dim

    @property
    def audio_dim(self) -> int:
        """Channels C_a of the audio features."""
        return self.audio.dim

    def forward(self, frames: Tensor, audio: Tensor, prompted: bool = True, maps: bool = False) -> AVFeatures:
        """Walk both encoders.

        Args:
            frames: (B, T, 3, H, W) float, normalised for the visual encoder.
            audio: (B, T, S) float in [-1, 1], mono, one segment a row.
            prompted: `False` runs the plain frozen networks without a graph.
            maps: return attention maps too.

        Raises:
            ShapeError: frames and audio disagree in clips or segments, or do not fit the encoders.
        """
        if frames.shape[:2] != audio.shape[:2]:
            raise ShapeError("frames, audio", f"{tuple(frames.shape)} and {tuple(audio.shape)}",
                             "the same first two dimensions (clips B, segments T)", "Check the data module.")
        method = self.prompts if prompted else self._plain()
        trained = prompted and any(not encoder.frozen or encoder.trained for encoder in (self.visual, self.audio))
        with nullcontext() if trained or method.needs_encoder_gradient else torch.no_grad():
            return self._walk(frames, audio, method, maps)

    def _plain(self) -> NoPrompts:
        plain = NoPrompts()
        v, a = list(self.visual.blocks()), list(self.audio.blocks())
        plain.attach([(v[-1].spec, a[-1].spec)])
        return plain

    def _walk(self, frames: Tensor, waveform: Tensor, method: PromptMethod, maps: bool) -> AVFeatures:
        state = PromptState(frames.shape[1], maps)
        v_walk, a_walk, v_ends, a_ends = _Walk(self.visual), _Walk(self.audio), {}, {}
        visual, audio = (self._embed(e, x) for e, x in ((self.visual, frames), (self.audio, waveform)))
        visual, audio = method.begin(visual, audio, state)
        v_next = a_next = 0
        for site, (i, j) in enumerate(self.sites):

            def run(visual: Tensor, audio: Tensor, site=site, i=i, j=j, v_next=v_next, a_next=a_next):
                visual = v_walk.enter(v_walk.run(visual, v_next, i, v_ends), i, v_ends)
                audio = a_walk.enter(a_walk.run(audio, a_next, j, a_ends), j, a_ends)
                return method.step(site, v_walk.blocks[i][1], a_walk.blocks[j][1], visual, audio, state)

            if self.checkpointing and torch.is_grad_enabled():
                contexts = lambda: (nullcontext(), frozen_batch_norm_statistics(self))  # noqa: E731
                visual, audio = checkpoint(run, visual, audio, use_reentrant=False, context_fn=contexts)
            else:
                visual, audio = run(visual, audio)
            v_next, a_next = i + 1, j + 1
        visual = self.visual.finalize(v_walk.run(visual, v_next, len(v_walk.blocks), v_ends))
        audio = self.audio.finalize(a_walk.run(audio, a_next, len(a_walk.blocks), a_ends))
        return self._features(visual, audio, v_ends, method, state)

    @staticmethod
    def _embed(encoder: FrozenEncoder, x: Tensor) -> Tensor:
        with torch.no_grad() if encoder.frozen and not encoder.trained else nullcontext():
            return encoder.embed(x)

    def _features(self, visual: Tensor, audio: Tensor, ends: dict[int, Tensor], method: PromptMethod,
                  state: PromptState) -> AVFeatures:
        def clips(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, state.segments))

        pooled_visual, pooled_audio = method.pool(visual, audio, state)
        maps = {}
        for name, encoder in (("visual", self.visual), ("audio", self.audio)) if state.maps else ():
            if name in state.memory:
                spec = encoder.stages[-1].blocks[-1].spec
                weights = torch.softmax(torch.tanh(state.memory[name].float()), dim=-1)[:, spec.prefix:]
                maps[name] = clips(weights.unflatten(1, spec.grid))
        pyramid = [clips(ends[number]) for number in sorted(ends)] + [clips(visual)]
        return AVFeatures(clips(pooled_visual), clips(pooled_audio), clips(visual), clips(audio), pyramid, maps)
