"""The contract of a frozen encoder: small plain pieces that a backbone walks and a prompt method may stand between."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.errors import WeightsError


@dataclass(frozen=True)
class BlockSpec:
    """What a prompt method may know of a block.

    Args:
        dim: channels C of a token.
        grid: rows and columns of the token grid (audio: frequency x time as the encoder lays them out).
        stage: index of the stage that holds the block.
        prefix: tokens before the grid, such as a class token.
        plain: whether others may look through the block's frozen projections (`PlainViTBlock.attend`).
    """

    dim: int
    grid: tuple[int, int]
    stage: int
    prefix: int = 0
    plain: bool = False

    @property
    def tokens(self) -> int:
        """Number N of tokens a segment."""
        return self.prefix + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class VisualInput:
    """The frames that a visual encoder takes.

    Args:
        height: pixels.
        width: pixels.
        mean: of red, green and blue, in [0, 1], that the encoder was trained with.
        std: standard deviations, likewise.
        interpolation: how the library resizes pictures to that size.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class AudioInput:
    """The waveform segments that an audio encoder takes, mono, in [-1, 1].

    Args:
        sample_rate: in Hz.
        seconds: length of a segment.
    """

    sample_rate: int
    seconds: float = 1.0

    @property
    def samples(self) -> int:
        """Number S of samples a segment."""
        return round(self.sample_rate * self.seconds)


#: additive edits of a block's linear layers, by name (`q`, `k`, `v`, `proj`, `fc1`, `fc2`): each receives the input of that
#: layer and returns what is added to its output
Edits = Mapping[str, Callable[[Tensor], Tensor]]


class FrozenBlock(nn.Module, abc.ABC):
    """One transformer block as two residual branches; its norms are inside, wherever the architecture puts them."""

    spec: BlockSpec

    @abc.abstractmethod
    def attention(self, x: Tensor) -> Tensor:
        """(B*T, N, C) tokens -> the attention branch alone, same shape."""

    @abc.abstractmethod
    def mlp(self, x: Tensor) -> Tensor:
        """(B*T, N, C) tokens -> the MLP branch alone, same shape."""

    def forward(self, x: Tensor) -> Tensor:
        """(B*T, N, C) -> (B*T, N, C), both branches added in turn."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class Stage(nn.Module):
    """Blocks of one resolution and the merge that leads to the next (`None` after the last)."""

    def __init__(self, blocks: list[FrozenBlock], merge: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.merge = merge


class FrozenEncoder(nn.Module, abc.ABC):
    """A pretrained network in pieces: `embed`, the blocks and merges of `stages`, `finalize`.

    Running the pieces in a row is the library's own forward. Frozen means that no parameter requires a gradient and that
    the encoder stays in eval mode whatever mode its owner is put in, so that dropout, stochastic depth, augmentation and
    running statistics stand still.

    Args:
        frozen: `False` trains every parameter (full fine-tuning).
        released_mode: let the frozen encoder follow its owner into train mode, as the DG-SCT authors' scripts do:
            stochastic depth and SpecAugment are active and running statistics of batch norms move. A known defect, for
            reproducing published procedures only.
    """

    #: what the encoder takes; the data module's sampling is compared with it before a run
    input: VisualInput | AudioInput
    stages: nn.ModuleList
    #: names in the library's files that this class deliberately does not build, as prefixes
    unused_weights: tuple[str, ...] = ()
    #: what is trained although the encoder is frozen, as prefixes of names
    trained: tuple[str, ...] = ()

    def __init__(self, frozen: bool = True, released_mode: bool = False) -> None:
        super().__init__()
        self.frozen = frozen
        self.released_mode = released_mode

    @abc.abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) or waveform (B, T, S) -> tokens (B*T, N, C) of the first block."""

    @abc.abstractmethod
    def finalize(self, tokens: Tensor) -> Tensor:
        """(B*T, N, C) tokens of the last block -> the same after the final norm, where there is one."""

    @abc.abstractmethod
    def library_key(self, name: str) -> str:
        """The name that the library's own class gives to our state-dict entry `name`."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the frames that a visual encoder takes.

        Raises:
            AttributeError: it is no visual encoder.
        """
        raise AttributeError(f"{type(self).__name__} takes no frames")

    @property
    def dim(self) -> int:
        """Channels of the last block's tokens."""
        return self.stages[-1].blocks[-1].spec.dim

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

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Enter train mode only where `frozen` and `released_mode` allow it."""
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
            weights: name -> tensor as the library's class names them (constants may be present or absent).
            source: file or tag, for the error message.

        Raises:
            WeightsError: a key is missing, unknown, or has another shape.
        """
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


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Context in which operations keep float32 under mixed precision (the meta device knows no autocast)."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


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
        raise WeightsError(path, f"{type(error).__name__}: {error}", "a torch file that holds tensors only",
                           f"Check the download, or re-save its state dict ({key}).") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


class WindowBlock(FrozenBlock):
    """Shifted-window attention shared by Swin-V2 and HTS-AT: fused attention over a bias that is computed once.

    Subclasses say where the norms go (`attention`, `mlp`), how queries and keys look (`project`) and how large the
    relative position bias is (`position_bias`).

    Args:
        spec: size and place of the block.
        window: rows and columns of a window.
        shift: rows and columns of the cyclic shift (0, 0 for none).
        heads: attention heads.
        mask: (windows, n, n) additive mask of a shifted block, n tokens a window; `None` without shift.
        drop_path: stochastic depth rate, active in train mode only.
    """

    def __init__(self, spec: BlockSpec, window: tuple[int, int], shift: tuple[int, int], heads: int,
                 mask: Tensor | None, drop_path: float) -> None:
        super().__init__()
        self.spec, self.window, self.shift, self.heads = spec, window, shift, heads
        self.drop_path = DropPath(drop_path)
        self.register_buffer("mask", mask, persistent=False)
        self._bias: tuple[tuple, Tensor] | None = None

    @abc.abstractmethod
    def project(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, W, n, C) -> queries (already scaled), keys and values, each (B, W, heads, n, C / heads)."""

    @abc.abstractmethod
    def position_bias(self) -> Tensor:
        """Relative position bias (heads, n, n)."""

    @abc.abstractmethod
    def bias_sources(self) -> list[nn.Parameter]:
        """Parameters that `position_bias` depends on: the cached bias is dropped when one of them changes."""

    def attention_bias(self) -> Tensor:
        """Position bias plus shift mask, (1, W * heads, n, n); cached while the parameters behind it stand still."""
        sources = self.bias_sources()
        key = tuple((p._version, p.data_ptr(), p.device, p.dtype) for p in sources)
        if self._bias is not None and self._bias[0] == key and not any(p.requires_grad for p in sources):
            return self._bias[1]
        bias = self.position_bias().unsqueeze(0)
        count = self.spec.grid[0] // self.window[0] * (self.spec.grid[1] // self.window[1])
        bias = bias.expand(count, -1, -1, -1) if self.mask is None else bias + self.mask.unsqueeze(1)
        bias = bias.flatten(0, 1).unsqueeze(0)
        if not any(p.requires_grad for p in sources):
            self._bias = (key, bias.detach())
        return bias

    def window_attention(self, x: Tensor, proj: nn.Module) -> Tensor:
        """(B*T, N, C) -> attention within shifted windows, projected by `proj`, same shape."""
        (rows, columns), (h, w), batch, dim = self.spec.grid, self.window, x.shape[0], x.shape[-1]
        shifted = any(self.shift)
        x = x.reshape(batch, rows, columns, dim)
        if shifted:
            x = torch.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
        x = x.reshape(batch, rows // h, h, columns // w, w, dim).transpose(2, 3).reshape(batch, -1, h * w, dim)
        q, k, v = (t.flatten(1, 2) for t in self.project(x))
        x = F.scaled_dot_product_attention(q, k, v, self.attention_bias().to(q.dtype), scale=1.0)
        x = x.unflatten(1, (-1, self.heads)).transpose(2, 3).reshape(batch, -1, h * w, dim)
        x = proj(x).reshape(batch, rows // h, columns // w, h, w, dim).transpose(2, 3).reshape(batch, rows, columns, dim)
        if shifted:
            x = torch.roll(x, self.shift, (1, 2))
        return x.reshape(batch, rows * columns, dim)


class PatchMerge(nn.Module):
    """2 x 2 neighbours to one token of twice the channels, in the order (0,0) (1,0) (0,1) (1,1) of row, column.

    Args:
        library: the library's merge, whose `reduction` and `norm` are taken over.
        grid: rows and columns of the incoming tokens.
        norm_first: HTS-AT norms before the reduction, Swin-V2 after it.
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
