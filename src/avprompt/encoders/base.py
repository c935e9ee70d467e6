"""The contract of a frozen encoder: a pretrained network in pieces that a backbone walks and a method works on."""

from __future__ import annotations

import abc
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from avprompt.errors import ArgumentError, ShapeError, WeightsError
from avprompt.precision import product_dtype


@dataclass(frozen=True)
class BlockSpec:
    """Sizes and properties of a block that a prompt method may use.

    Args:
        dim: channels C of a token.
        grid: rows and columns of the token grid (audio: frequency x time as the encoder lays them out).
        stage: index of the stage that holds the block.
        prefix: number of tokens before the grid, such as a class token and registers.
        class_token: whether the first of these is a class token, which registers alone are not.
        plain: whether others may attend through the block's frozen projections (`PlainViTBlock.attend`).
        hidden: width of the MLP's hidden layer, which is what `fc2` reads; 0 in a spec that no block of an encoder has.
        gated: whether the MLP is a gated linear unit, whose `fc1` gives the gate and the value, 2 x `hidden` in all.
        heads: of the attention; 0 in a spec that no block of an encoder has.
        window: tokens that a token of a `WindowBlock` attends to; 0 where that is the whole grid.

    >>> spec = BlockSpec(dim=768, grid=(14, 14), stage=0, prefix=1, plain=True, hidden=3072)
    >>> spec.tokens, spec.linear("fc1")
    (197, (768, 3072))
    """

    dim: int
    grid: tuple[int, int]
    stage: int
    prefix: int = 0
    plain: bool = False
    hidden: int = 0
    gated: bool = False
    class_token: bool = True
    heads: int = field(default=0, compare=False)
    window: int = field(default=0, compare=False)

    @property
    def tokens(self) -> int:
        """Number N of tokens a segment."""
        return self.prefix + self.grid[0] * self.grid[1]

    def linear(self, name: str) -> tuple[int, int]:
        """Input and output channels of the linear layer `name`, one of `LAYERS`: the sizes of an edit.

        Raises:
            ArgumentError: there is no such layer.
        """
        check_edits({name: None})
        wide = self.hidden * (2 if self.gated else 1)
        return {"fc1": (self.dim, wide), "fc2": (self.hidden, self.dim)}.get(name, (self.dim, self.dim))


@dataclass(frozen=True)
class VisualInput:
    """The frames that a visual encoder takes.

    Args:
        height: pixels.
        width: pixels.
        mean: of red, green and blue, in [0, 1], that the encoder was trained with.
        std: standard deviations, likewise.
        interpolation: how the library resizes pictures to that size.
        frames: number F of frames a segment. With 1, which all encoders but networks of video can do with, a batch has
            frames (B, T, 3, H, W), otherwise (B, T, F, 3, H, W).

    >>> from avprompt.encoders import TinySwinV2
    >>> TinySwinV2(pretrained="none").input.mean
    (0.5, 0.5, 0.5)
    >>> VisualInput(112, 112, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), frames=8).segment
    (8, 3, 112, 112)
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    frames: int = 1

    @property
    def segment(self) -> tuple[int, ...]:
        """Shape of the frames of a segment, (3, H, W) or (F, 3, H, W)."""
        return (*((self.frames,) if self.frames > 1 else ()), 3, self.height, self.width)


@dataclass(frozen=True)
class AudioInput:
    """The waveform segments that an audio encoder takes, mono, in [-1, 1].

    Args:
        sample_rate: in Hz.
        seconds: length of a segment.

    Raises:
        ArgumentError: a number is not positive.

    >>> AudioInput(sample_rate=16000, seconds=0.5).samples
    8000
    """

    sample_rate: int
    seconds: float = 1.0

    def __post_init__(self) -> None:
        for name in ("sample_rate", "seconds"):
            if getattr(self, name) <= 0:
                raise ArgumentError(name, getattr(self, name), "a positive number", "Correct the encoder's argument.")

    @property
    def samples(self) -> int:
        """Number S of samples a segment."""
        return round(self.sample_rate * self.seconds)


#: linear layers of a block, under the names that edits use for every architecture
LAYERS = ("q", "k", "v", "proj", "fc1", "fc2")
#: additive edits of a block's linear layers: name in `LAYERS` -> what receives the input of that layer, (B*T, ..., C),
#: and returns what is added to its output. Where an architecture fuses q, k and v, each is a third of that layer.
Edits = Mapping[str, Callable[[Tensor], Tensor]]


def check_edits(edits: Mapping[str, object] | None) -> None:
    """Refuse an edit of a layer that no block has.

    Raises:
        ArgumentError: a name is not in `LAYERS`.
    """
    if edits and not edits.keys() <= set(LAYERS):
        raise ArgumentError(
            "edits",
            sorted(edits.keys() - set(LAYERS)),
            f"names among {', '.join(LAYERS)}",
            "Name the linear layers of a block so.",
        )


def edited(output: Tensor, x: Tensor, edits: Edits | None, name: str) -> Tensor:
    """The output of the linear layer `name` with its edit added, where it has one; `x` is the layer's input."""
    return output + edits[name](x).to(output.dtype) if edits and name in edits else output


def edited_qkv(output: Tensor, x: Tensor, edits: Edits | None) -> Tensor:
    """Likewise for a fused layer, whose output (..., 3 C) holds queries, keys and values side by side."""
    if not edits or not edits.keys() & {"q", "k", "v"}:
        return output
    return torch.cat([edited(part, x, edits, name) for part, name in zip(output.chunk(3, -1), "qkv")], dim=-1)


class FrozenBlock(nn.Module, abc.ABC):
    """One transformer block as two residual branches; its norms are inside, wherever the architecture puts them.

    >>> from avprompt.encoders import TinyCLIP
    >>> block = TinyCLIP(pretrained="none").stages[0].blocks[0]
    >>> x = torch.rand(2, block.spec.tokens, block.spec.dim)
    >>> added = block.attention(x, edits={"v": nn.Linear(*block.spec.linear("v"))})  # as LoRA adds to the values
    >>> added.shape, bool(torch.equal(added, block.attention(x)))
    (torch.Size([2, 65, 96]), False)
    """

    spec: BlockSpec

    def attention(self, x: Tensor, edits: Edits | None = None, prompts: Tensor | None = None) -> Tensor:
        """The attention branch alone, without the residual connection: `mix_values`, then `project_out`.

        Args:
            x: (B*T, N, C) tokens.
            edits: additions to the linear layers `q`, `k`, `v` and `proj`; `None` or none of them is the library's
                function, bit for bit.
            prompts: (P, C) tokens that every token sees beside its own, in each window where there are windows, or
                (B*T, P, C), others for each segment; they go through the block's norm and projections without edits
                and have no positions.

        Returns:
            (B*T, N, C).

        Raises:
            ArgumentError: an edit of an unknown layer.
        """
        return self.project_out(self.mix_values(x, edits, prompts), edits)

    def mix_values(self, x: Tensor, edits: Edits | None = None, prompts: Tensor | None = None) -> Tensor:
        """The first half of `attention`: values mixed by attention, (B*T, N, C), or in windows (B*T, windows, n, C)."""
        check_edits(edits)
        return self._mix_values(x, edits, prompts)

    def mlp(self, x: Tensor, edits: Edits | None = None) -> Tensor:
        """The MLP branch alone, without the residual connection; `edits` of `fc1` and `fc2`, else as `attention`."""
        check_edits(edits)
        return self._mlp(x, edits)

    @abc.abstractmethod
    def _mix_values(self, x: Tensor, edits: Edits | None, prompts: Tensor | None) -> Tensor:
        """What an architecture computes in `mix_values`."""

    @abc.abstractmethod
    def project_out(self, mixed: Tensor, edits: Edits | None = None) -> Tensor:
        """The second half of `attention`, from what `mix_values` gives: output projection and all behind it."""

    @abc.abstractmethod
    def _mlp(self, x: Tensor, edits: Edits | None) -> Tensor:
        """What an architecture computes in `mlp`."""

    def attend_series(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The attention branch along series of any length, such as one token position over the segments of a clip.

        It has the frozen norm and projections, and neither windows nor the grid's own position biases.

        Args:
            x: (n, L, C).
            bias: (heads, L, L), added to the logits; `None` has none.

        Returns:
            (n, L, C).

        Raises:
            ArgumentError: the block attends over its own grid alone.
        """
        raise ArgumentError(
            "encoder",
            type(self).__name__,
            "blocks that can attend over time",
            "Use a plain vision transformer without rotary positions, Swin or HTS-AT.",
        )

    def prepare(self) -> None:
        """Compute once what is constant because the block is frozen."""

    def forget(self) -> None:
        """Drop what `prepare` has computed: weights may have changed. Loading, moving and casting the block, and
        switching its encoder between training and evaluation, do so by themselves; a weight that is changed by hand
        needs this call."""

    def compile_parts(self) -> None:
        """Compile both halves of the attention and the MLP, the pieces that methods call."""
        for name in ("_mix_values", "project_out", "_mlp"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B*T, N, C) -> (B*T, N, C), both branches added in turn."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class FeedForward(nn.Module):
    """The MLP of a block around a library's layers: `fc1`, activation, norm where there is one, `fc2`.

    Args:
        fc1: C -> hidden; of a gated MLP the gate, or gate and value in one layer of 2 x hidden.
        act: activation.
        fc2: hidden -> C.
        norm: of the hidden layer.
        gated: whether the hidden layer is act(gate) * value.
        value: of a gated MLP, the layer of the value where it is a layer of its own.
    """

    def __init__(
        self,
        fc1: nn.Linear,
        act: nn.Module,
        fc2: nn.Linear,
        norm: nn.Module | None = None,
        gated: bool = False,
        value: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2, self.norm = fc1, act, fc2, norm
        self.gated, self.value = gated, value

    @property
    def hidden(self) -> int:
        """Width of the hidden layer."""
        return self.fc2.in_features

    def forward(self, x: Tensor, edits: Edits | None = None) -> Tensor:
        """(..., C) -> (..., C)."""
        hidden = self.fc1(x)
        if self.value is not None:
            hidden = torch.cat((hidden, self.value(x)), dim=-1)
        hidden = edited(hidden, x, edits, "fc1")
        if self.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = self.act(gate) * value
        else:
            hidden = self.act(hidden)
        if self.norm is not None:
            hidden = self.norm(hidden)
        return edited(self.fc2(hidden), hidden, edits, "fc2")


class Stage(nn.Module):
    """Blocks of one resolution and the merge that leads to the next (`None` after the last).

    >>> from avprompt.encoders import TinySwinV2
    >>> [(len(stage.blocks), stage.merge is not None) for stage in TinySwinV2(pretrained="none").stages]
    [(2, True), (2, False)]
    """

    def __init__(self, blocks: list[FrozenBlock], merge: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.merge = merge


class FrozenEncoder(nn.Module, abc.ABC):
    """A pretrained network in pieces: `embed`, the blocks and merges of `stages`, `finalize`.

    Running the pieces one after the other equals the library's own forward. Frozen means that no parameter requires a
    gradient and that the encoder stays in eval mode when its parent module is in train mode: dropout, stochastic depth
    and augmentation are off, and running statistics do not move.

    Subclasses set `input` and `stages`, and define `stem` and `finalize`.

    Args:
        frozen: `False` trains every parameter (full fine-tuning).
        released_mode: let the frozen encoder follow its parent into train mode, as the DG-SCT authors' scripts do:
            stochastic depth and SpecAugment are active and running statistics of batch norms move. This is a known
            defect, kept for reproducing published procedures only.

    >>> import torch
    >>> from avprompt.encoders import TinySwinV2
    >>> encoder = TinySwinV2(pretrained="none")
    >>> encoder.input.height, encoder.input.mean
    (64, (0.5, 0.5, 0.5))
    >>> frames = torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)
    >>> tokens = encoder.embed(frames)
    >>> for stage in encoder.stages:
    ...     for block in stage.blocks:
    ...         tokens = tokens + block.attention(tokens)
    ...         tokens = tokens + block.mlp(tokens)
    ...     tokens = stage.merge(tokens) if stage.merge is not None else tokens
    >>> bool(torch.equal(encoder.finalize(tokens), encoder(frames)))
    True
    """

    stages: nn.ModuleList
    #: how the library names our state-dict entries where it names them otherwise: (regular expression, replacement),
    #: each applied to what the one before it gave
    library_names: tuple[tuple[str, str | Callable[[re.Match], str]], ...] = ()
    #: names in the library's files that this class deliberately does not build, as prefixes
    unused_weights: tuple[str, ...] = ()
    #: constants of a front end, as prefixes of our names: a file may leave them out, and may not contradict them
    constants: tuple[str, ...] = ()
    #: what is trained although the encoder is frozen, as prefixes of names
    trained: tuple[str, ...] = ()
    #: what `forward` does not run, such as a projection into the space of texts, as prefixes of names
    apart: tuple[str, ...] = ()

    def __init__(self, frozen: bool = True, released_mode: bool = False) -> None:
        super().__init__()
        self.frozen = frozen
        self.released_mode = released_mode
        #: names of the parameters that a method trains, see `unfreeze`
        self.unfrozen: frozenset[str] = frozenset()
        #: fingerprint of the weights before `store` rounded them
        self.known: str | None = None

    def store(self, kind: torch.dtype) -> None:
        """Hold the frozen linear layers of blocks and merges in the dtype in which autocast multiplies.

        Autocast otherwise casts them in every pass; what it computes stays the same, bit for bit. Norms, position
        biases, stem and front end keep their dtype. From then on the encoder runs under autocast only. The fingerprint
        stays that of the weights as they were.
        """
        self.known = self.fingerprint()
        for name, module in self.stages.named_modules():
            if isinstance(module, nn.Linear) and "cpb_mlp" not in name:
                for parameter in module.parameters():
                    if not parameter.requires_grad:
                        parameter.data = parameter.data.to(kind)

    @property
    def input(self) -> VisualInput | AudioInput:
        """What the encoder takes; the data module's sampling is compared with it before a run starts."""
        return self._input

    @input.setter
    def input(self, value: VisualInput | AudioInput) -> None:
        self._input = value
        if isinstance(value, VisualInput):  # not persistent: they are arguments, neither weights nor trainable state
            self.register_buffer("frame_mean", torch.tensor(value.mean).view(3, 1, 1), persistent=False)
            self.register_buffer("frame_std", torch.tensor(value.std).view(3, 1, 1), persistent=False)

    def normalise(self, frames: Tensor) -> Tensor:
        """uint8 frames -> (x / 255 - mean) / std, on their device; floating frames count as already normalised.

        Args:
            frames: (..., 3, H, W) of any size.

        Returns:
            The same shape, in the dtype of the encoder's buffers (float32 unless the module was cast); floating frames
            in their own where that is wider.

        Raises:
            ShapeError: another dtype, or other than three colours.
        """
        if frames.shape[-3:-2] != (3,) or not (frames.dtype == torch.uint8 or frames.is_floating_point()):
            raise ShapeError(
                "frames",
                f"{tuple(frames.shape)} {frames.dtype}",
                "(..., 3, H, W), uint8 in [0, 255] or floating and normalised",
                "Check the data module.",
            )
        dtype = self.frame_mean.dtype
        if frames.is_floating_point():
            return frames.to(torch.promote_types(frames.dtype, dtype))
        # in place: one copy in memory; a half-precision module rounds once, at the end
        frames = frames.to(torch.promote_types(dtype, torch.float32)).div_(255)
        return frames.sub_(self.frame_mean).div_(self.frame_std).to(dtype)

    def check_frames(self, frames: Tensor) -> None:
        """Whether frames are (B, T, 3, H, W) of the encoder's size, with several a segment (B, T, F, 3, H, W).

        Raises:
            ShapeError: they are not.
        """
        own = cast("VisualInput", self.input)
        if frames.ndim < 2 or tuple(frames.shape[2:]) != own.segment:
            raise ShapeError(
                "frames",
                tuple(frames.shape),
                f"(B, T, {', '.join(map(str, own.segment))})",
                "Set --data.image_size and --data.frames_per_segment to what the visual encoder takes.",
            )

    def embed(self, x: Tensor) -> Tensor:
        """Tokens of the first block.

        Args:
            x: frames (B, T, 3, H, W) of the encoder's size, uint8, or floating and already normalised, or (B, T, F, 3,
                H, W) for an encoder of several frames a segment; or waveform (B, T, S), floating, mono, in [-1, 1], with
                a segment of the encoder's length a row.

        Returns:
            (B*T, N, C).

        Raises:
            ShapeError: another number of dimensions, another size or dtype.
        """
        if isinstance(self.input, VisualInput):
            self.check_frames(x)
            return self.stem(self.normalise(x))
        rate, seconds, samples = self.input.sample_rate, self.input.seconds, self.input.samples
        if x.ndim != 3 or not x.is_floating_point():
            raise ShapeError(
                "audio",
                f"{tuple(x.shape)} {x.dtype}",
                "floating (B, T, S): one row of samples a segment",
                "Give mono audio cut into segments, not tiled.",
            )
        if x.shape[-1] != samples:
            raise ShapeError(
                "audio",
                tuple(x.shape),
                f"(B, T, {samples}): {seconds:g} s at {rate} Hz a segment",
                f"Set --data.sample_rate to {rate}, or the length of segments to the audio encoder's.",
            )
        return self.stem(x.to(torch.promote_types(x.dtype, next(self.parameters()).dtype)))

    @abc.abstractmethod
    def stem(self, x: Tensor) -> Tensor:
        """Normalised frames (B, T, 3, H, W) or waveform (B, T, S), checked by `embed` -> tokens (B*T, N, C)."""

    @abc.abstractmethod
    def finalize(self, tokens: Tensor) -> Tensor:
        """(B*T, N, C) tokens of the last block -> the same after the final norm, where there is one."""

    def library_key(self, name: str) -> str:
        """The name that the library's own class gives to our state-dict entry `name`, by `library_names`."""
        for pattern, replacement in self.library_names:
            name = re.sub(pattern, replacement, name)
        return name

    @property
    def last_spec(self) -> BlockSpec:
        """Size of the tokens that come out."""
        return self.stages[-1].blocks[-1].spec

    @property
    def dim(self) -> int:
        """Channels of the tokens that come out."""
        return self.last_spec.dim

    def blocks(self) -> Iterator[FrozenBlock]:
        """Every block, first to last."""
        for stage in self.stages:
            yield from stage.blocks

    def forward(self, x: Tensor) -> Tensor:
        """The plain network: frames (B, T, 3, H, W) or waveform (B, T, S) -> tokens (B*T, N, C)."""
        tokens = self.embed(x)
        for stage in self.stages:
            for block in stage.blocks:
                tokens = block(tokens)
            if stage.merge is not None:
                tokens = stage.merge(tokens)
        return self.finalize(tokens)

    def freeze(self) -> None:
        """Apply `frozen`; subclasses call it at the end of their construction."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not self.frozen or name.startswith(self.trained))
        self.train(self.training)

    def unfreeze(self, chosen: Callable[[str, int], bool]) -> None:
        """Train single parameters of the frozen encoder, which stays in eval mode, no longer those of the last call.

        Tables of a front end and what `forward` does not run (`apart`) are not asked for.

        Args:
            chosen: name of a parameter, and number of blocks that run behind it -> whether it is trained. All blocks
                run behind a stem, all but one behind the first block, none behind the last block and the final norm.
        """
        blocks, behind = sum(len(stage.blocks) for stage in self.stages), {}
        left = blocks
        for number, stage in enumerate(self.stages):
            for place in range(len(stage.blocks)):
                left -= 1
                behind[f"stages.{number}.blocks.{place}."] = left
            behind[f"stages.{number}.merge."] = left
        behind["norm."], names, before = 0, set(), self.unfrozen
        for name, _ in self.named_parameters():
            count = next((count for prefix, count in behind.items() if name.startswith(prefix)), blocks)
            if not name.startswith((*self.constants, *self.apart)) and chosen(name, count):
                names.add(name)
        self.trained = (*(name for name in self.trained if name not in before), *sorted(names))
        self.unfrozen = frozenset(names)
        for name, parameter in self.named_parameters():
            if name in names | before:
                parameter.requires_grad_(not self.frozen or name.startswith(self.trained))

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Enter train mode only where `frozen` and `released_mode` allow it."""
        for block in self.blocks() if hasattr(self, "stages") else ():
            block.forget()
        return super().train(mode and (not self.frozen or self.released_mode))

    def mutable_buffers(self) -> list[str]:
        """Names of buffers that training changes although the parameters are frozen (`released_mode` only)."""
        if not self.released_mode:
            return []
        return [
            f"{name}.{buffer}"
            for name, module in self.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for buffer, _ in module.named_buffers(recurse=False)
        ]

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and a strided sample of every frozen tensor: tells two sets of weights apart."""
        if self.known is not None:
            return self.known
        digest, mutable = hashlib.sha256(type(self).__name__.encode()), set(self.mutable_buffers())
        for name, tensor in sorted(self.state_dict().items()):
            if name in mutable or not self.frozen or name.startswith(self.trained):
                continue
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)].float().cpu()
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(sample.numpy().tobytes())
        return digest.hexdigest()

    def load_library_weights(self, weights: dict[str, Tensor], source: str | Path) -> None:
        """Load a state dict in the library's own naming; every key is used, known as unused, or an error.

        Args:
            weights: name -> tensor as the library's class names them.
            source: file or tag, for the error message.

        Raises:
            WeightsError: a key is missing, unknown, or has another shape, or the front end has other constants.
        """
        fixed = (
            {
                self.library_key(name): value
                for name, value in self.state_dict().items()
                if name.startswith(self.constants)
            }
            if self.constants
            else {}
        )
        for name, value in fixed.items():
            theirs = weights.get(name, value)
            if theirs.shape != value.shape or not torch.allclose(theirs.to(value), value, atol=1e-4):
                raise WeightsError(
                    source,
                    f"another {name}",
                    "the front end of the encoder's arguments",
                    "These weights were trained on other spectrograms; choose the matching encoder.",
                )
        weights = {**fixed, **weights}
        ours = {self.library_key(name): name for name in self.state_dict()}
        given = {key: value for key, value in weights.items() if not key.startswith(self.unused_weights)}
        shapes = {key: tuple(self.state_dict()[name].shape) for key, name in ours.items()}
        wrong = {key for key in given.keys() & ours.keys() if tuple(given[key].shape) != shapes[key]}
        missing, unknown = sorted(ours.keys() - given.keys()), sorted(given.keys() - ours.keys())
        if missing or unknown or wrong:
            raise WeightsError(
                source,
                f"missing {missing[:5]}, unknown {unknown[:5]}, other shapes {sorted(wrong)[:5]}",
                f"the {len(ours)} tensors of {type(self).__name__}",
                "Check that the file belongs to this architecture (the encoder's arguments in the YAML).",
            )
        self.load_state_dict({name: given[key] for key, name in ours.items()})

    def is_meta(self) -> bool:
        """Whether the module was built on the meta device, where weights neither exist nor are asked for."""
        return next(self.parameters()).is_meta


class Undrawn(TorchFunctionMode):
    """Weights of networks that are built within are not drawn, which takes most of the time: their sizes alone are asked
    for, or all of them are loaded afterwards."""

    DRAWS = frozenset({"uniform_", "normal_", "erfinv_"})
    #: of which drawing consists besides
    SCALES = frozenset({"mul_", "add_", "clamp_", "fill_", "zero_"})

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        if name in self.DRAWS or name in self.SCALES:
            drawn = args[0] if args else kwargs["tensor"]  # of a method, or of torch.nn.init
            if name in self.DRAWS or drawn.is_meta:
                return drawn
        return function(*args, **kwargs)


@contextmanager
def sizes_alone() -> Iterator[None]:
    """Networks built within have sizes, and neither memory nor values.

    >>> with sizes_alone():
    ...     torch.nn.Linear(3, 2).weight
    Parameter containing:
    tensor(..., device='meta', size=(2, 3), requires_grad=True)
    """
    with torch.device("meta"), Undrawn():
        yield


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Context in which operations keep float32 under mixed precision (the meta device knows no autocast)."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def is_path(pretrained: str) -> bool:
    """Whether `pretrained` names a file or folder, not a tag: it has a suffix or a slash."""
    return bool(Path(pretrained).suffix) or "/" in pretrained


def read_weights(path: str | Path, key: str) -> dict[str, Tensor]:
    """Read a local weights file (.safetensors, or a torch file of tensors) without unpickling code.

    Args:
        path: the file.
        key: YAML key that named it, for the error message.

    Raises:
        WeightsError: no such file, or it holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            key, path, "'none', a library tag, or an existing local file", "Download the weights and give their path."
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError ... for broken or unsafe files
        raise WeightsError(
            path,
            f"{type(error).__name__}: {error}",
            "a torch file that holds tensors only",
            f"Check the download, or re-save its state dict ({key}).",
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


class WindowBlock(FrozenBlock):
    """Shifted-window attention of Swin and HTS-AT: fused attention over a bias that is computed once.

    Subclasses say where the norms go (`norm_first`), how queries and keys look (`project`) and what the relative
    position bias is (`position_bias`). Edits see windows, (B*T, windows, n, C).

    Args:
        library: the library's block, whose layers are taken over.
        spec: size and place of the block, without its `hidden`.
        drop_path: stochastic depth rate, active in train mode only.

    Raises:
        ArgumentError: the grid cannot be cut into whole windows.
    """

    #: whether the norms come before attention and MLP or behind them
    norm_first = True
    #: what the products of queries and keys are multiplied by
    attention_scale = 1.0

    def __init__(self, library: nn.Module, spec: BlockSpec, drop_path: float) -> None:
        super().__init__()
        pair = lambda size: tuple(size) if isinstance(size, (tuple, list)) else (size, size)  # noqa: E731
        self.window, self.shift = pair(library.window_size), pair(library.shift_size)
        self.heads = library.attn.num_heads
        if any(size % window for size, window in zip(spec.grid, self.window)):
            raise ArgumentError(
                "model",
                f"windows of {self.window} on a grid of {spec.grid}",
                "whole windows",
                "Choose another size of frames.",
            )
        self.attn, self.norm1, self.norm2 = library.attn, library.norm1, library.norm2
        self.feed_forward = FeedForward(library.mlp.fc1, library.mlp.act, library.mlp.fc2)
        self.spec = replace(
            spec, hidden=self.feed_forward.hidden, heads=self.heads, window=self.window[0] * self.window[1]
        )
        self.drop_path = DropPath(drop_path)
        self.register_buffer("mask", library.attn_mask, persistent=False)
        self.register_buffer("bias", None, persistent=False)
        self.register_buffer("low_bias", None, persistent=False)
        self.register_load_state_dict_post_hook(lambda block, _: block.forget())

    @abc.abstractmethod
    def project(self, windows: Tensor, edits: Edits | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, W, n, C) -> queries, keys and values, each (B, W, heads, n, C / heads)."""

    @abc.abstractmethod
    def position_bias(self) -> Tensor:
        """Relative position bias (heads, n, n)."""

    @abc.abstractmethod
    def bias_sources(self) -> list[nn.Parameter]:
        """Parameters that `position_bias` depends on: where one of them is trained, nothing is kept."""

    def forget(self) -> None:
        self.bias = self.low_bias = None

    def _apply(self, fn: Callable, recurse: bool = True) -> WindowBlock:
        self.forget()
        return super()._apply(fn, recurse)

    def prepare(self) -> None:
        if self.bias is None and not any(p.requires_grad for p in self.bias_sources()):
            with torch.no_grad():
                self.bias = self._whole_bias()
        kind = None if self.bias is None else product_dtype(self.bias.device)
        if kind is not None and (self.low_bias is None or self.low_bias.dtype != kind):
            self.low_bias = self.bias.to(kind)

    def to_windows(self, x: Tensor) -> Tensor:
        """(B*T, N, C) -> the tokens of each shifted window, (B*T, windows, n, C)."""
        (rows, columns), (h, w), batch, dim = self.spec.grid, self.window, x.shape[0], x.shape[-1]
        x = x.reshape(batch, rows, columns, dim)
        if any(self.shift):
            x = torch.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
        return x.reshape(batch, rows // h, h, columns // w, w, dim).transpose(2, 3).reshape(batch, -1, h * w, dim)

    def from_windows(self, x: Tensor) -> Tensor:
        """(B*T, windows, n, C) -> (B*T, N, C), back from `to_windows`."""
        (rows, columns), (h, w), batch, dim = self.spec.grid, self.window, x.shape[0], x.shape[-1]
        x = x.reshape(batch, rows // h, columns // w, h, w, dim).transpose(2, 3).reshape(batch, rows, columns, dim)
        if any(self.shift):
            x = torch.roll(x, self.shift, (1, 2))
        return x.reshape(batch, rows * columns, dim)

    def mix_series(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(n, L, C) -> attention along each series through the frozen projections, without norms, same shape."""
        q, k, v = (t.squeeze(1) for t in self.project(x.unsqueeze(1), None))
        bias = None if bias is None else bias.to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, bias, scale=self.attention_scale)
        return self.attn.proj(mixed.transpose(1, 2).flatten(2))

    def attention_bias(self, kind: torch.dtype) -> Tensor:
        """Position bias plus shift mask, (1, W * heads, n, n); a buffer where the parameters behind it are frozen."""
        self.prepare()
        known = [bias for bias in (self.bias, self.low_bias) if bias is not None and bias.dtype == kind]
        return known[0] if known else (self._whole_bias() if self.bias is None else self.bias).to(kind)

    def _whole_bias(self) -> Tensor:
        bias = self.position_bias().unsqueeze(0)
        count = self.spec.grid[0] // self.window[0] * (self.spec.grid[1] // self.window[1])
        bias = bias.expand(count, -1, -1, -1) if self.mask is None else bias + self.mask.unsqueeze(1)
        return bias.flatten(0, 1).unsqueeze(0)

    def _mix_values(self, x: Tensor, edits: Edits | None, prompts: Tensor | None) -> Tensor:
        x = self.to_windows(self.norm1(x) if self.norm_first else x)
        shape, batch, dim = x.shape, x.shape[0], x.shape[-1]
        q, k, v = (t.flatten(1, 2) for t in self.project(x, edits))
        bias = self.attention_bias(q.dtype)
        if prompts is not None:
            prompts = (self.norm1(prompts) if self.norm_first else prompts).view(-1, 1, prompts.shape[-2], dim)
            k, v = (
                torch.cat((extra.to(own.dtype).expand(batch, x.shape[1], -1, -1, -1).flatten(1, 2), own), dim=2)
                for extra, own in zip(self.project(prompts, None)[1:], (k, v))
            )
            bias = F.pad(bias, (prompts.shape[2], 0))
        x = F.scaled_dot_product_attention(q, k, v, bias, scale=self.attention_scale)
        return x.unflatten(1, (-1, self.heads)).transpose(2, 3).reshape(shape)

    def project_out(self, mixed: Tensor, edits: Edits | None = None) -> Tensor:
        check_edits(edits)
        x = self.from_windows(edited(self.attn.proj(mixed), mixed, edits, "proj"))
        return self.drop_path(x if self.norm_first else self.norm1(x))

    def _mlp(self, x: Tensor, edits: Edits | None) -> Tensor:
        if self.norm_first:
            return self.drop_path(self.feed_forward(self.norm2(x), edits))
        return self.drop_path(self.norm2(self.feed_forward(x, edits)))


class SwinBlock(WindowBlock):
    """Pre-norm block with a table of relative position biases: Swin's first version and HTS-AT."""

    def __init__(self, library: nn.Module, spec: BlockSpec, drop_path: float) -> None:
        super().__init__(library, spec, drop_path)
        index = self.attn.relative_position_index
        del self.attn.relative_position_index  # a constant: not part of the weights
        self.attn.register_buffer("relative_position_index", index, persistent=False)
        self.attention_scale = self.attn.scale

    def project(self, windows: Tensor, edits: Edits | None) -> tuple[Tensor, Tensor, Tensor]:
        qkv = edited_qkv(self.attn.qkv(windows), windows, edits)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).contiguous().unbind(0)
        return q, k, v

    def position_bias(self) -> Tensor:
        attn, n = self.attn, self.window[0] * self.window[1]
        index = attn.relative_position_index.view(-1)
        return attn.relative_position_bias_table[index].view(n, n, self.heads).permute(2, 0, 1)

    def bias_sources(self) -> list[nn.Parameter]:
        return [self.attn.relative_position_bias_table]

    def attend_series(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.mix_series(self.norm1(x), bias)


class PatchMerge(nn.Module):
    """2 x 2 neighbours to one token of twice the channels, in the order (0,0) (1,0) (0,1) (1,1) of row, column.

    Args:
        library: the library's merge, whose `reduction` and `norm` are taken over.
        grid: rows and columns of the incoming tokens.
        norm_first: whether the norm comes before the reduction (Swin's first version, HTS-AT) or after it (Swin-V2).
    """

    def __init__(self, library: nn.Module, grid: tuple[int, int], norm_first: bool) -> None:
        super().__init__()
        self.grid, self.norm_first = grid, norm_first
        self.reduction, self.norm = library.reduction, library.norm

    def forward(self, x: Tensor) -> Tensor:
        """(B*T, N, C) -> (B*T, N / 4, 2 C)."""
        (rows, columns), (batch, _, dim) = self.grid, x.shape
        x = x.reshape(batch, rows // 2, 2, columns // 2, 2, dim).permute(0, 1, 3, 4, 2, 5).reshape(batch, -1, 4 * dim)
        return self.reduction(self.norm(x)) if self.norm_first else self.norm(self.reduction(x))
