"""The audio-visual backbone of all tasks: two encoders run in lock-step, with prompts between and in their blocks."""

from __future__ import annotations

import abc
import copy
import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from avprompt.encoders.base import BlockSpec, FrozenBlock, FrozenEncoder, VisualInput
from avprompt.encoders.convolutional import MapEncoder
from avprompt.encoders.tags import encoder_of_tag
from avprompt.encoders.vggish import VGGish
from avprompt.errors import ArgumentError, ShapeError, check_choice
from avprompt.feature_cache import MODALITIES, FeatureCache
from avprompt.features import AVFeatures, FeatureSource, Modality
from avprompt.methods.base import Checkpointing, PromptMethod, PromptState, mean_or_class_token, recomputed
from avprompt.methods.none import NoPrompts

#: what is compiled, see `AVPromptBackbone`
Compile = Literal["none", "regions", "model"]


def spread(count: int, partners: int) -> list[int]:
    """Indices of `partners` of `count` blocks, evenly spaced up to the last: 6 of 18 are 2, 5, 8, 11, 14, 17."""
    return [(k + 1) * count // partners - 1 for k in range(partners)]


def pair_blocks(visual: list[int], audio: list[int]) -> list[tuple[int, int]]:
    """Pair the blocks of two encoders stage by stage, given the number of blocks in each stage.

    Encoders with different numbers of stages are paired over all their blocks at once.

    Returns:
        (visual index, audio index) of every pair, counted over all blocks of each encoder.
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
def seeded(name: str) -> Iterator[None]:
    """Draw the weights of a part from a random stream of its own, set by the run's seed and the part's name.

    Otherwise a part's initial weights would depend on how many numbers the parts built before it had drawn, and two
    variants of an ablation would differ in more than what they compare.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((torch.initial_seed() + zlib.crc32(name.encode())) % 2**63)
        yield


class _WithoutGraph:
    """A frozen block that computes without a graph, for passes in which no gradient flows through the encoders."""

    def __init__(self, block: FrozenBlock) -> None:
        self._block = block

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        with torch.no_grad():
            return self._block(*inputs, **options)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._block, name)
        return torch.no_grad()(value) if inspect.ismethod(value) else value


class _Walk:
    """One encoder on the walk: runs blocks without a partner up to the next pair, and merges between stages.

    Args:
        modality: `visual` or `audio`.
        encoder: its encoder.
        partnered: indices of the blocks that have a partner.
        method: runs the others.
        graph: whether gradients flow through frozen parts.
    """

    def __init__(
        self, modality: Modality, encoder: FrozenEncoder, partnered: list[int], method: PromptMethod, graph: bool
    ) -> None:
        self.modality, self.stages, self.method = modality, encoder.stages, method
        self.blocks = [
            (number, block if graph else cast(FrozenBlock, _WithoutGraph(block)))
            for number, stage in enumerate(encoder.stages)
            for block in stage.blocks
        ]
        self.lone = {index: place for place, index in enumerate(unpaired(len(self.blocks), partnered))}

    def enter(self, tokens: Tensor, index: int, state: PromptState) -> Tensor:
        """Bring tokens to block `index`: where it opens a stage, note the last stage's end and merge."""
        number = self.blocks[index][0]
        if index and self.blocks[index - 1][0] != number:
            state.ends[f"{self.modality}@{number - 1}"] = tokens
            with state.frozen():
                tokens = self.stages[number - 1].merge(tokens)
        return tokens

    def run(self, tokens: Tensor, start: int, stop: int, state: PromptState) -> Tensor:
        """Run the blocks without a partner from `start` to before `stop`."""
        for index in range(start, stop):
            tokens = self.enter(tokens, index, state)
            tokens = self.method.lone(self.modality, self.lone[index], self.blocks[index][1], tokens, state)
        return tokens


def fit_frames(encoder: FrozenEncoder, frames: Tensor) -> Tensor:
    """See `FeatureSource.fit_frames`."""
    own = cast(VisualInput, encoder.input)
    size = own.height, own.width
    if frames.shape[-2:] == size:
        return frames
    normalised = encoder.normalise(frames)
    resized = F.interpolate(normalised.flatten(0, -4), size, mode="bicubic")
    return resized.view(*frames.shape[:-2], *size)


def check_batch(batch: Mapping[str, Any], more: tuple[str, ...] = ()) -> None:
    """Whether a batch holds frames, audio and what else is needed, of as many clips and segments.

    Raises:
        ArgumentError: an entry is missing.
        ShapeError: frames and audio disagree in clips or segments.
    """
    if missing := [name for name in ("frames", "audio", *more) if name not in batch]:
        raise ArgumentError(
            "batch",
            f"the entries {', '.join(sorted(batch))}",
            f"{', '.join(missing)} too",
            "Check the data module, and the `extra_inputs` of the prompt method.",
        )
    frames, audio = batch["frames"], batch["audio"]
    if frames.shape[:2] != audio.shape[:2]:
        raise ShapeError(
            "frames, audio",
            f"{tuple(frames.shape)} and {tuple(audio.shape)}",
            "the same first two dimensions (clips B, segments T)",
            "Check the data module.",
        )


def unpaired(count: int, partnered: list[int]) -> list[int]:
    """Indices below `count` that are not among `partnered`."""
    return sorted(set(range(count)) - set(partnered))


class AVPromptBackbone(FeatureSource):
    """Two frozen encoders and one prompt method: the feature extractor of every task.

    Args:
        visual: encoder of the frames, or a tag such as `timm:vit_small_patch14_dinov2.lvd142m` (see
            `avprompt.encoders.encoder_of_tag`).
        audio: encoder of the waveform, or a tag; `shared` sends spectrograms through the visual encoder's own blocks,
            `separate` through a copy of them (two towers, as full fine-tuning needs).
        prompts: the method; it is attached to this pair's blocks here. `None` is `NoPrompts`.
        pairing: `auto` pairs stage by stage where both have the same number of stages, else over all blocks; `stages`
            insists on the former, `even` on the latter.
        checkpointing: what the backward pass computes again instead of reading it from memory: `none`; `adapters`, the
            method's parts beside the frozen blocks; `all`, each block pair with them.
        compile: what `torch.compile` makes kernels of: `none`; `regions`, the halves of the frozen blocks and the
            method's parts, each by itself; `model`, the whole walk behind the front ends. It needs a C++ compiler, and
            the first steps take minutes.

    Raises:
        ArgumentError: an argument is of another kind; `pairing: stages` with different numbers of stages; an
            encoder that cannot read spectrograms with `audio: shared` or `separate`; `checkpointing: adapters` for a
            method that has none.

    Example:
        >>> import torch
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> from avprompt.methods import DGSCT
        >>> backbone = AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none"), DGSCT(num_tokens=4, reduction=4))
        >>> frames = torch.randint(256, (1, 2, 3, 64, 64), dtype=torch.uint8)
        >>> features = backbone({"frames": frames, "audio": torch.zeros(1, 2, 16000)})
        >>> tuple(features.visual.shape), tuple(features.audio_tokens.shape)
        ((1, 2, 80), (1, 2, 16, 80))
    """

    def __init__(
        self,
        visual: FrozenEncoder | str,
        audio: FrozenEncoder | Literal["shared", "separate"] | str,
        prompts: PromptMethod | None = None,
        pairing: Literal["auto", "stages", "even"] = "auto",
        checkpointing: Checkpointing = "none",
        compile: Compile = "none",
    ) -> None:
        super().__init__()
        check_choice("checkpointing", checkpointing, get_args(Checkpointing))
        check_choice("compile", compile, get_args(Compile))
        visual = encoder_of_tag(visual) if isinstance(visual, str) else visual
        if audio in ("shared", "separate"):
            if not hasattr(visual, "listener"):
                raise ArgumentError(
                    "audio",
                    f"{audio}, with {type(visual).__name__}",
                    "a visual encoder that can read spectrograms",
                    "Use a vision transformer or Swin, or give an audio encoder.",
                )
            audio = (visual if audio == "shared" else copy.deepcopy(visual)).listener()
        audio = encoder_of_tag(audio) if isinstance(audio, str) else audio
        prompts = NoPrompts() if prompts is None else prompts
        for name, value, kind in (
            ("visual", visual, FrozenEncoder),
            ("audio", audio, FrozenEncoder),
            ("prompts", prompts, PromptMethod),
        ):
            if not isinstance(value, kind):
                raise ArgumentError(
                    name,
                    type(value).__name__,
                    f"a {kind.__name__}",
                    f"Give an object of a class of avprompt.{kind.__module__.split('.')[1]}.",
                )
        for name, value in (("visual", visual), ("audio", audio)):
            if not len(value.stages):
                raise ArgumentError(
                    name,
                    type(value).__name__,
                    "an encoder of blocks, which prompts work on",
                    "Use avprompt.backbone.MapBackbone for networks without.",
                )
        self.visual, self.audio, self.prompts = visual, audio, prompts
        if checkpointing == "adapters" and not prompts.has_adapters:
            raise ArgumentError(
                "checkpointing",
                f"adapters, with {type(prompts).__name__}",
                "a method with parts beside the frozen blocks",
                "Use none, or all for less memory.",
            )
        self.checkpointing = checkpointing
        depths = [[len(stage.blocks) for stage in encoder.stages] for encoder in (visual, audio)]
        if pairing == "stages" and len(depths[0]) != len(depths[1]):
            raise ArgumentError(
                "pairing",
                f"stages, with {len(depths[0])} visual and {len(depths[1])} audio stages",
                "as many stages on both sides",
                "Use pairing: even.",
            )
        if pairing == "even":
            depths = [[sum(depth)] for depth in depths]
        self.sites = pair_blocks(*depths)
        with seeded("prompts"):
            self.prompts.attach(*self._specs())
        for encoder in (self.visual, self.audio):
            encoder.unfreeze(self.prompts.trains)
        self._compile(compile)

    def _compile(self, what: Compile) -> None:
        if what != "none":
            import torch._dynamo

            # a region is one function for all shapes of its kind, of which the walk has a dozen
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            torch._dynamo.config.allow_rnn = True  # gates of DG-SCT's paper
        if what == "model":
            self._walk = torch.compile(self._walk, dynamic=False)  # type: ignore[method-assign]  # of this instance
        elif what == "regions":
            for block in dict.fromkeys((*self.visual.blocks(), *self.audio.blocks())):
                block.compile_parts()
            for part in self.prompts.parts():
                part.compile(dynamic=False)

    def store(self, kind: torch.dtype) -> None:
        """Hold the frozen linear layers of both encoders in a dtype, see `FrozenEncoder.store`."""
        frozen = [encoder for encoder in (self.visual, self.audio) if encoder.frozen]
        for encoder in frozen:  # which may share their blocks
            encoder.known = encoder.fingerprint()
        for encoder in frozen:
            encoder.store(kind)

    def _specs(self) -> tuple[list, dict[str, list]]:
        """Specs of the block pairs, and of each modality's blocks without a partner."""
        v, a = ([block.spec for block in encoder.blocks()] for encoder in (self.visual, self.audio))
        lone = {
            "visual": [v[i] for i in unpaired(len(v), [i for i, _ in self.sites])],
            "audio": [a[j] for j in unpaired(len(a), [j for _, j in self.sites])],
        }
        return [(v[i], a[j]) for i, j in self.sites], lone

    @property
    def visual_dim(self) -> int:  # type: ignore[override]  # read only here: the method has it
        """Channels C_v of the visual features."""
        return self.prompts.widths[0]

    @property
    def audio_dim(self) -> int:  # type: ignore[override]  # read only here: the method has it
        """Channels C_a of the audio features."""
        return self.prompts.widths[1]

    @property
    def batch_keys(self) -> tuple[str, ...]:  # type: ignore[override]  # read only here: the method has it
        """Entries of the batch that `forward` reads."""
        return "frames", "audio", *self.prompts.extra_inputs

    @property
    def temporal_gates(self) -> tuple[float, float]:  # type: ignore[override]  # read only here: the method has it
        """Strength gamma of a head's temporal gates, which belong to the prompt method."""
        return self.prompts.temporal_gates

    @property
    def stochastic(self) -> bool:
        """Whether an encoder is in train mode."""
        return self.visual.training or self.audio.training

    @property
    def visual_spec(self) -> BlockSpec:
        """Grid and prefix of the visual tokens."""
        return self.visual.last_spec

    @property
    def pyramid_specs(self) -> list[BlockSpec]:
        """The last block of each visual stage."""
        return [stage.blocks[-1].spec for stage in self.visual.stages]

    def fit_frames(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) of any size -> those that the visual encoder takes.

        Frames of its size stay as they are; others are normalised, then resized bicubically without low-pass.
        """
        return fit_frames(self.visual, frames)

    def plain_visual_tokens(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) -> tokens (B, T, N_v, C_v) of the plain visual encoder, without a graph."""
        with torch.no_grad():
            return self.visual(frames).unflatten(0, frames.shape[:2])

    def project(self, modality: Modality, features: Tensor) -> Tensor:
        """Vectors (..., C) of a modality -> embeddings (..., E) in the space of its texts."""
        return getattr(self, modality).project(features)

    def log_scale(self, modality: Modality) -> Tensor | None:
        """Logarithm of the scale of cosines that the encoder was trained with.

        Raises:
            ArgumentError: the encoder does not project.
        """
        encoder = getattr(self, modality)
        if not hasattr(encoder, "project"):
            raise ArgumentError(
                modality,
                type(encoder).__name__,
                "an encoder with a projection into the space of texts",
                "Use avprompt.encoders.CLIP with projection: true, avprompt.encoders.CLAPAudio.",
            )
        return getattr(encoder, "logit_scale", None)

    def forward(self, batch: Mapping[str, Any], prompted: bool = True, maps: bool = False) -> AVFeatures:
        """Walk both encoders.

        Args:
            batch: `frames`, uint8 (B, T, 3, H, W), or floating and then already normalised for the visual encoder;
                `audio`, float (B, T, S) in [-1, 1], mono, one segment a row; and what the method names in
                `extra_inputs`.
            prompted: `False` runs both networks without the method's own parts and without a graph. Parameters of the
                encoders that the method trained stay as they are.
            maps: return attention maps and tables too.

        Raises:
            ArgumentError: the batch lacks an entry.
            ShapeError: frames and audio disagree in clips or segments, or do not fit the encoders.
        """
        method = self.prompts if prompted else self._plain()
        check_batch(batch, method.extra_inputs)
        frames, audio = batch["frames"], batch["audio"]
        trained = prompted and any(not encoder.frozen or encoder.trained for encoder in (self.visual, self.audio))
        state = PromptState(
            frames.shape[1],
            maps,
            {name: batch[name] for name in method.extra_inputs},
            trained or method.gradient == "encoder",
            self.checkpointing == "adapters" and torch.is_grad_enabled(),
        )
        with nullcontext() if trained or method.gradient != "none" else torch.no_grad():
            for encoder in (self.visual, self.audio):
                for block in encoder.blocks():
                    block.prepare()
            return self._walk(self._embed(self.visual, frames), self._embed(self.audio, audio), method, state)

    def _plain(self) -> NoPrompts:
        plain = NoPrompts()
        plain.attach(*self._specs())
        return plain

    def _walk(self, visual: Tensor, audio: Tensor, method: PromptMethod, state: PromptState) -> AVFeatures:
        towers: tuple[tuple[Modality, FrozenEncoder], ...] = ("visual", self.visual), ("audio", self.audio)
        v_walk, a_walk = (
            _Walk(name, encoder, [pair[side] for pair in self.sites], method, state.encoder_graph)
            for side, (name, encoder) in enumerate(towers)
        )
        visual, audio = method.begin(visual, audio, state)
        v_next = a_next = 0
        for site, (i, j) in enumerate(self.sites):

            def run(visual: Tensor, audio: Tensor, own: PromptState, site=site, i=i, j=j, v_next=v_next, a_next=a_next):
                visual = v_walk.enter(v_walk.run(visual, v_next, i, own), i, own)
                audio = a_walk.enter(a_walk.run(audio, a_next, j, own), j, own)
                return method.step(site, v_walk.blocks[i][1], a_walk.blocks[j][1], visual, audio, own)

            visual, audio = self._run(run, visual, audio, state)
            v_next, a_next = i + 1, j + 1
        visual = v_walk.run(visual, v_next, len(v_walk.blocks), state)
        audio = a_walk.run(audio, a_next, len(a_walk.blocks), state)
        visual, audio = method.end(visual, audio, state)
        with state.frozen():
            visual, audio = self.visual.finalize(visual), self.audio.finalize(audio)
        pooled_visual, pooled_audio = (state.clips(x) for x in method.pool(visual, audio, state))
        ends = [state.ends[f"visual@{number}"] for number in range(len(self.visual.stages) - 1)]
        pyramid = [state.clips(end) for end in (*ends, visual)]
        features = AVFeatures(
            pooled_visual,
            pooled_audio,
            state.clips(visual),
            state.clips(audio),
            pyramid,
            state.maps,
            state.tables,
            state.losses,
        )
        return method.finish(features, state)

    def _run(self, run: Callable, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        """One block pair, recomputed in the backward pass where that is asked for."""
        if self.checkpointing != "all" or not torch.is_grad_enabled():
            return run(visual, audio, state)

        def again(visual: Tensor, audio: Tensor, memory: dict[str, Tensor]) -> tuple[Tensor | dict[str, Tensor], ...]:
            # a run starts from the memory as it was, and gives what it writes instead of writing it
            own = replace(state, losses={}, maps={}, tables={}, ends={}, memory=dict(memory))
            return *run(visual, audio, own), own.losses, own.maps, own.tables, own.ends, own.memory

        visual, audio, *written = recomputed(again, self, visual, audio, dict(state.memory))
        for name, values in zip(("losses", "maps", "tables", "ends", "memory"), written):
            getattr(state, name).update(values)
        return visual, audio

    @staticmethod
    def _embed(encoder: FrozenEncoder, x: Tensor) -> Tensor:
        with torch.no_grad() if encoder.frozen and not encoder.trained else nullcontext():
            return encoder.embed(x)


class MapBackbone(FeatureSource):
    """Two networks side by side that have no blocks to prompt: those behind the published features, and AVSBench's.

    Args:
        visual: maps of frames; with `frozen: false` it is trained, as in AVSBench's own network.
        audio: one vector a segment.

    Raises:
        ArgumentError: an encoder of another kind.

    Example:
        >>> from avprompt.encoders import PVT, VGGish
        >>> with torch.device("meta"):
        ...     backbone = MapBackbone(PVT(frozen=False), VGGish())
        >>> backbone.audio_dim, [spec.grid for spec in backbone.pyramid_specs]
        (128, [(56, 56), (28, 28), (14, 14), (7, 7)])
    """

    batch_keys = ("frames", "audio")

    def __init__(self, visual: MapEncoder, audio: VGGish) -> None:
        super().__init__()
        for name, value, kind in (("visual", visual, MapEncoder), ("audio", audio, VGGish)):
            if not isinstance(value, kind):
                raise ArgumentError(
                    name,
                    type(value).__name__,
                    f"a {kind.__name__}",
                    "Encoders with blocks belong into AVPromptBackbone.",
                )
        self.visual, self.audio = visual, audio
        self.visual_dim, self.audio_dim = visual.dim, audio.dim

    @property
    def stochastic(self) -> bool:
        """Whether an encoder is in train mode."""
        return self.visual.training or self.audio.training

    @property
    def visual_spec(self) -> BlockSpec:
        """Size of the last map."""
        return self.visual.specs[-1]

    @property
    def pyramid_specs(self) -> list[BlockSpec]:
        """Size of each map."""
        return self.visual.specs

    def fit_frames(self, frames: Tensor) -> Tensor:
        """See `AVPromptBackbone.fit_frames`."""
        return fit_frames(self.visual, frames)

    def plain_visual_tokens(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) -> tokens (B, T, N, C) of the last map, without a graph."""
        with torch.no_grad():
            return self.visual(frames).unflatten(0, frames.shape[:2])

    def forward(self, batch: Mapping[str, Any], prompted: bool = True, maps: bool = False) -> AVFeatures:
        """Both networks.

        Args:
            batch: `frames` and `audio` as for `AVPromptBackbone`.
            prompted: `False` builds no graph.
            maps: without meaning here.

        Raises:
            ArgumentError: the batch lacks an entry.
            ShapeError: frames and audio disagree in clips or segments, or do not fit the encoders.
        """
        check_batch(batch)
        count = batch["frames"].shape[:2]
        with nullcontext() if prompted and not self.visual.frozen else torch.no_grad():
            self.visual.check_frames(batch["frames"])
            pyramid = [tokens.unflatten(0, count) for tokens in self.visual.maps(batch["frames"])]
        with nullcontext() if prompted and not self.audio.frozen else torch.no_grad():
            heard = self.audio.embed(batch["audio"]).unflatten(0, count)
        return AVFeatures(pyramid[-1].mean(2), heard.mean(2), pyramid[-1], heard, pyramid)


class StoredFeatures(FeatureSource, abc.ABC):
    """Features that stand in the batch: a backbone without encoders and without parameters.

    Attributes:
        specs: size and place of the tokens of `visual` and `audio`.
    """

    batch_keys = ("visual_features", "audio_features")
    frozen = True
    specs: dict[str, BlockSpec]
    remedy: str

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kind", torch.empty(0), persistent=False)  # follows `.double()`

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """What the features were computed from; a checkpoint of a head records it."""

    def forward(self, batch: Mapping[str, Any], prompted: bool = True, maps: bool = False) -> AVFeatures:
        """Features as they stand in the batch, in float32, or in float64 where the module was cast so.

        Args:
            batch: `visual_features` and `audio_features`, (B, T, C), or (B, T, N, C) with all tokens.
            prompted: without meaning here.
            maps: likewise.

        Raises:
            ArgumentError: the batch lacks an entry.
        """
        if missing := [name for name in self.batch_keys if name not in batch]:
            raise ArgumentError(
                "batch", f"the entries {', '.join(sorted(batch))}", f"{', '.join(missing)} too", self.remedy
            )
        found = {}
        for modality, spec in self.specs.items():
            x = batch[f"{modality}_features"]
            x = x.to(torch.promote_types(self.kind.dtype, torch.float32))
            found[f"{modality}_tokens"] = x if x.ndim == 4 else x.unsqueeze(2)
            found[modality] = mean_or_class_token(x.flatten(0, 1), spec).unflatten(0, x.shape[:2]) if x.ndim == 4 else x
        return AVFeatures(**found, pyramid=[])


class PublishedFeatures(StoredFeatures):
    """Features that the authors of a dataset published: a backbone without encoders.

    The data module reads the files (`published_features`). The encoders are known by name only.

    Args:
        visual: encoder of the visual features: VGG-19 (7 x 7 positions of 512 channels), ResNet-152 (one vector of 2048
            channels), ResNet-18 (14 x 14 positions of 512 channels) or CLIP's ViT-L/14 (one vector of 768 channels).
        audio: encoder of the audio features: VGGish (one vector of 128 channels) or CLAP (of 768 channels).

    Example:
        >>> source = PublishedFeatures("ResNet-152", "VGGish")
        >>> batch = {"visual_features": torch.rand(1, 10, 2048), "audio_features": torch.rand(1, 10, 128)}
        >>> source(batch).visual_tokens.shape, source.audio_dim
        (torch.Size([1, 10, 1, 2048]), 128)
    """

    SPECS = {
        "VGG-19": (512, (7, 7)),
        "ResNet-152": (2048, (1, 1)),
        "ResNet-18": (512, (14, 14)),
        "CLIP-L/14": (768, (1, 1)),
        "VGGish": (128, (1, 1)),
        "CLAP": (768, (1, 1)),
    }
    remedy = "Give the data module the folder of the published features: --data.published_features."

    def __init__(
        self,
        visual: Literal["VGG-19", "ResNet-152", "ResNet-18", "CLIP-L/14"] = "VGG-19",
        audio: Literal["VGGish", "CLAP"] = "VGGish",
    ) -> None:
        super().__init__()
        self.published = {"visual": visual, "audio": audio}
        self.specs = {modality: BlockSpec(*self.SPECS[name], 0) for modality, name in self.published.items()}
        self.visual_dim, self.audio_dim = (self.specs[modality].dim for modality in MODALITIES)

    def fingerprint(self) -> str:
        """The names of the encoders; whose files they are is not known."""
        return f"published {self.published['visual']} and {self.published['audio']}"

    @property
    def visual_spec(self) -> BlockSpec:
        """Size and place of the visual features."""
        return self.specs["visual"]


class PrecomputedFeatures(StoredFeatures):
    """Features that `avprompt data features` computed before: a backbone without encoders.

    The data module reads the same cache (`feature_cache`), so that a batch holds features instead of frames and audio,
    and a head trains in minutes. Nothing inside the encoders can be trained or prompted here.

    Args:
        cache: folder of the features.

    Raises:
        DatasetError: there is no cache, or a damaged one.
    """

    remedy = "Give the data module the same folder: --data.feature_cache."

    def __init__(self, cache: Path) -> None:
        super().__init__()
        self.cache = FeatureCache(cache)
        self.specs = {modality: self.cache.record.spec(modality) for modality in MODALITIES}
        self.visual_dim, self.audio_dim = (self.specs[modality].dim for modality in MODALITIES)

    def fingerprint(self) -> str:
        """What the features were computed from; a checkpoint of a head records it."""
        return self.cache.record.fingerprint

    @property
    def visual_spec(self) -> BlockSpec:
        """Grid and prefix of the visual tokens.

        Raises:
            ArgumentError: the cache holds one vector a segment.
        """
        if self.cache.record.pool == "mean":
            raise ArgumentError(
                "cache",
                "features made with --pool mean",
                "all tokens of a segment, for this task's head",
                "Compute them with `avprompt data features --pool grid`.",
            )
        return self.specs["visual"]
