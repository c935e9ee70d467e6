"""Plain vision transformers of any library: their blocks, whose attention and MLP methods can use, and the same blocks
over spectrograms."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import BlockSpec, Edits, FeedForward, FrozenBlock, FrozenEncoder, Stage, check_edits, edited
from avprompt.encoders.fbank import Fbank, one_channel
from avprompt.errors import ArgumentError, ShapeError


def linear_of(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer around parameters that a library keeps on their own."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias
    return layer


class PlainAttention(nn.Module):
    """The frozen parts of a multi-head attention, under one set of names for every library.

    Args:
        num_heads: heads.
        proj: output projection.
        qkv: queries, keys and values in one layer, C -> 3 C; or
        q_proj: each in a layer of its own.
        k_proj: likewise.
        v_proj: likewise.
        q_bias: biases of a `qkv` without one, whose keys have none (EVA).
        v_bias: likewise.
        q_norm: norm of each head's queries, where there is one.
        k_norm: likewise of its keys.
        norm: norm before the output projection, where there is one.
    """

    def __init__(
        self,
        num_heads: int,
        proj: nn.Linear,
        qkv: nn.Linear | None = None,
        q_proj: nn.Linear | None = None,
        k_proj: nn.Linear | None = None,
        v_proj: nn.Linear | None = None,
        q_bias: nn.Parameter | None = None,
        v_bias: nn.Parameter | None = None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.proj, self.qkv = num_heads, proj, qkv
        self.q_proj, self.k_proj, self.v_proj, self.q_bias, self.v_bias = q_proj, k_proj, v_proj, q_bias, v_bias
        self.q_norm, self.k_norm, self.norm = q_norm, k_norm, norm

    def read(self, x: Tensor, names: str) -> tuple[Tensor, ...]:
        """(..., C) -> those of `qkv`, `q` and `kv` that `names` says, each (..., C)."""
        if self.qkv is None:
            return tuple(getattr(self, f"{name}_proj")(x) for name in names)
        weight, bias, dim = self.qkv.weight, self.qkv.bias, self.qkv.out_features // 3
        if self.q_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        if names != "qkv":
            part = slice("qkv".index(names[0]) * dim, ("qkv".index(names[-1]) + 1) * dim)
            weight, bias = weight[part], None if bias is None else bias[part]
        return F.linear(x, weight, bias).chunk(len(names), -1)


class PlainViTBlock(FrozenBlock):
    """Pre-norm block of a plain vision transformer; others may attend through its frozen projections.

    Args:
        spec: size and place of the block, without `plain` and the sizes of its MLP.
        norm1: before the attention.
        attn: the attention.
        norm2: before the MLP.
        feed_forward: the MLP.
        scale1: (C,) layer scale of the attention branch, where there is one.
        scale2: likewise of the MLP branch.
        rope: (rows * columns, 2 C / heads) sines and cosines that rotate queries and keys of the grid's tokens; tokens
            before the grid, and those that a method puts behind it, are not rotated.
        half: whether a head's first half is rotated against its second, or even against odd channels.

    >>> import torch
    >>> from avprompt.encoders import TinyCLIP
    >>> block = TinyCLIP(pretrained="none").stages[0].blocks[0]
    >>> x, prompts = torch.randn(2, 65, 96), torch.randn(4, 96)
    >>> tokens = block.norm1(x)
    >>> block.attend(tokens, None, *block.project(prompts)).shape  # four tokens more to attend to
    torch.Size([2, 65, 96])
    >>> mixed = block.mix(tokens)  # CoLA reads the values before they are projected
    >>> bool(torch.equal(block.project_out(mixed), block.attention(x)))
    True
    """

    def __init__(
        self,
        spec: BlockSpec,
        norm1: nn.Module,
        attn: PlainAttention,
        norm2: nn.Module,
        feed_forward: FeedForward,
        scale1: nn.Parameter | None = None,
        scale2: nn.Parameter | None = None,
        rope: Tensor | None = None,
        half: bool = False,
    ) -> None:
        super().__init__()
        self.spec = replace(
            spec, plain=rope is None, hidden=feed_forward.hidden, gated=feed_forward.gated, heads=attn.num_heads
        )
        self.norm1, self.attn, self.norm2, self.feed_forward = norm1, attn, norm2, feed_forward
        self.scale1, self.scale2, self.half = scale1, scale2, half
        self.register_buffer("rope", rope, persistent=False)

    def shared(self, spec: BlockSpec) -> PlainViTBlock:
        """The same layers for tokens on another grid.

        Raises:
            ArgumentError: rotary positions belong to the block's own grid.
        """
        if self.rope is not None:
            raise ArgumentError(
                "audio",
                "shared, with rotary positions",
                "a transformer with a table of positions",
                "Rotary positions belong to the grid of frames; give an audio encoder.",
            )
        return PlainViTBlock(spec, self.norm1, self.attn, self.norm2, self.feed_forward, self.scale1, self.scale2)

    def _mix_values(self, x: Tensor, edits: Edits | None, prompts: Tensor | None) -> Tensor:
        extra = (None, None) if prompts is None else self.project(self.norm1(prompts))
        return self.mix(self.norm1(x), None, *extra, edits)

    def _mlp(self, x: Tensor, edits: Edits | None) -> Tensor:
        out = self.feed_forward(self.norm2(x), edits)
        return out if self.scale2 is None else self.scale2 * out

    def attend_series(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.rope is not None:
            return super().attend_series(x, bias)
        return self.project_out(self.mix(self.norm1(x), bias=bias))

    def attend(
        self,
        queries: Tensor,
        keys: Tensor | None = None,
        key_prompts: Tensor | None = None,
        value_prompts: Tensor | None = None,
        edits: Edits | None = None,
    ) -> Tensor:
        """Multi-head attention with the frozen projections and layer scale; prompts join after projection.

        Args:
            queries: (n, L, C), normed.
            keys: (n, M, C), normed, of keys and values; `None` is `queries`.
            key_prompts: (P, C), the same for all n, or (n, P, C), seen by every query beside the keys.
            value_prompts: likewise.
            edits: of `q`, `k`, `v` and `proj`, as in `attention`; prompts are not edited.

        Returns:
            (n, L, C).
        """
        return self.project_out(self.mix(queries, keys, key_prompts, value_prompts, edits), edits)

    def mix(
        self,
        queries: Tensor,
        keys: Tensor | None = None,
        key_prompts: Tensor | None = None,
        value_prompts: Tensor | None = None,
        edits: Edits | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """The first half of `attend`: values mixed by attention, (n, L, C), which the output projection reads; `bias`
        (heads, L, M) is added to the logits."""
        check_edits(edits)
        attn = self.attn
        if keys is None:
            q, k, v = attn.read(queries, "qkv")
            keys = queries
        else:
            (q,), (k, v) = attn.read(queries, "q"), attn.read(keys, "kv")
        q, k, v = edited(q, queries, edits, "q"), edited(k, keys, edits, "k"), edited(v, keys, edits, "v")
        if key_prompts is not None:
            # behind the grid where it is rotated: rotary positions are counted from the first token
            k, v = (
                torch.cat((more, own) if self.rope is None else (own, more), dim=1)
                for more, own in (
                    (prompts.to(own.dtype).expand(len(own), -1, -1), own)
                    for prompts, own in ((key_prompts, k), (value_prompts, v))
                )
            )
        q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        if attn.q_norm is not None:
            q, k = attn.q_norm(q).to(v.dtype), attn.k_norm(k).to(v.dtype)
        if self.rope is not None:
            q, k = (self._rotate(t).to(v.dtype) for t in (q, k))
        bias = None if bias is None else bias.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2)
        return out if attn.norm is None else attn.norm(out)

    def project_out(self, mixed: Tensor, edits: Edits | None = None) -> Tensor:
        """The second half of `attend`: output projection and layer scale, (n, L, C) -> (n, L, C)."""
        check_edits(edits)
        proj = self.attn.proj
        out = edited(F.linear(mixed, proj.weight, proj.bias), mixed, edits, "proj")
        return out if self.scale1 is None else self.scale1 * out

    def _rotate(self, x: Tensor) -> Tensor:
        """(n, heads, L, C / heads): rotate the grid's tokens."""
        first, last = self.spec.prefix, self.spec.tokens
        if x.shape[2] < last:
            raise ShapeError(
                "tokens",
                x.shape[2],
                f"at least {last}, those of the block's grid",
                "This block has rotary positions (spec.plain is false): give it whole segments.",
            )
        grid = apply_rot_embed_cat(x[:, :, first:last], self.rope, half=self.half)
        return torch.cat((x[:, :, :first].to(grid.dtype), grid, x[:, :, last:].to(grid.dtype)), dim=2)

    def project(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt tokens (..., P, C) -> keys and values of that shape for `attend`, through the frozen projections."""
        return self.attn.read(prompts, "kv")


def resize_positions(table: Tensor, prefix: int, have: tuple[int, int], want: tuple[int, int]) -> Tensor:
    """A table of positions for another grid, as AST's authors and STG-CMA resize it.

    Along an axis on which the new grid is smaller, its centre is cut out; along one on which it is larger, the table is
    stretched bilinearly.

    Args:
        table: (prefix + rows * columns, C).
        prefix: rows of the table for tokens before the grid, which stay.
        have: rows and columns of the table's grid.
        want: those of the new grid.

    Returns:
        (prefix + new rows * columns, C).
    """
    first, rest = table[:prefix], table[prefix:].unflatten(0, have)
    for axis, (old, new) in enumerate(zip(have, want)):
        rest = rest.narrow(axis, max(0, old // 2 - new // 2), min(old, new))
    rest = rest.permute(2, 0, 1)[None]
    if rest.shape[2:] != want:
        rest = F.interpolate(rest, want, mode="bilinear")
    return torch.cat((first, rest[0].flatten(1).T))


class PlainViT(FrozenEncoder):
    """What plain vision transformers share: a patch embedding, tokens before the grid, positions, one stage, a final
    norm.

    Subclasses set the attributes below, then `stages`, and call `_add_trained` and `freeze`. Parameters keep the
    shapes of their library, (C,), (1, n, C) or (n, C).

    Attributes:
        conv: patch embedding.
        norm_patch: norm of the patches, or `None`.
        class_embedding: first token, or `None`.
        registers: tokens behind it, or `None`.
        positions: table of positions, or `None`.
        grid_positions: whether the table is of the grid alone, and other tokens have no positions.
        norm_pre: norm before the first block, or `None`.
        norm: final norm, or `None`.
        segments: length of the trained temporal embedding, or `None`.
        train_norm: whether the final norm is trained.
    """

    grid_positions = False
    segments: int | None = None
    train_norm = False

    def __init__(self, frozen: bool = True) -> None:
        super().__init__(frozen)
        self.norm_patch = self.class_embedding = self.registers = self.positions = self.norm_pre = self.norm = None

    def _add_trained(self, segments: int | None, train_norm: bool) -> None:
        self.segments, self.train_norm = segments, train_norm
        names = ["norm."] if train_norm else []
        self.temporal_embedding = None
        if segments:
            self.temporal_embedding = nn.Parameter(torch.zeros(segments, self.dim))
            names.append("temporal_embedding")
        self.trained = (*self.trained, *names)

    def first_tokens(self) -> list[Tensor]:
        """The tokens before the grid, (n, C) each."""
        tokens: tuple[Tensor | None, ...] = (self.class_embedding, self.registers)
        return [token.view(-1, self.dim) for token in tokens if token is not None]

    def position_table(self) -> Tensor | None:
        """(prefix + rows * columns, C), or without the prefix where `grid_positions`; `None` without."""
        return None if self.positions is None else self.positions.view(-1, self.positions.shape[-1])

    def _begin(self, grid: Tensor, segments: int) -> Tensor:
        """Patches (B*T, C, rows, columns) -> tokens before the grid and patches, with positions, normed (B*T, N, C)."""
        tokens = grid.flatten(2).transpose(1, 2)
        if self.norm_patch is not None:
            tokens = self.norm_patch(tokens)
        table = self.position_table()
        if table is not None and self.grid_positions:
            tokens = tokens + table.to(tokens.dtype)
        first = [token.to(tokens.dtype).expand(len(tokens), -1, -1) for token in self.first_tokens()]
        tokens = torch.cat((*first, tokens), dim=1) if first else tokens
        if table is not None and not self.grid_positions:
            tokens = tokens + table.to(tokens.dtype)
        if self.temporal_embedding is not None:
            if segments != len(self.temporal_embedding):
                raise ShapeError(
                    "frames, audio",
                    f"{segments} segments",
                    f"{len(self.temporal_embedding)}",
                    "Make the encoder's `segments` the data module's.",
                )
            moments = self.temporal_embedding.repeat(len(tokens) // segments, 1)
            tokens = tokens + moments.unsqueeze(1).to(tokens.dtype)
        return tokens if self.norm_pre is None else self.norm_pre(tokens)

    def stem(self, x: Tensor) -> Tensor:
        return self._begin(self.conv(x.flatten(0, 1)), x.shape[1])

    def finalize(self, tokens: Tensor) -> Tensor:
        return tokens if self.norm is None else self.norm(tokens)


class ImageViT(PlainViT):
    """A plain vision transformer over frames, whose blocks `ViTSpectrogram` can share."""


class ViTSpectrogram(PlainViT):
    """A plain vision transformer over spectrograms, through the frozen blocks of one over frames (AV-STFP, LAVISH).

    The patch embedding of the single channel is the sum or the mean of that over red, green and blue. Positions are
    those of the frames, resized where the spectrogram has another grid; of equal grids the table is shared. The
    spectrogram itself is not resized.

    Args:
        tower: where blocks and norms come from; the backbone's visual encoder where they are shared.
        fbank: settings of the spectrogram.
        axes: rows and columns of the token grid. `time_mel` is STG-CMA's: tokens lie time by mel,
            positions mel by time, so that neighbours in one are not neighbours in the other.
        class_token: train a class token of its own, which starts as the tower's.
        stem: `sum` or `mean`, see `one_channel`.
        resize: how positions are resized: on the `grid` by `resize_positions`, or along the `sequence` of all tokens,
            as LAVISH does, which blends the class token's position with those of its neighbours.

    Raises:
        ArgumentError: an unknown `resize`; a spectrogram smaller than a patch; a class token where the tower has none;
            rotary positions.

    >>> import torch
    >>> from avprompt.encoders import TinyCLIP
    >>> audio = ViTSpectrogram(TinyCLIP(pretrained="none"), Fbank(mel_bins=64, frames=96))
    >>> audio(torch.zeros(1, 10, 16000)).shape  # a class token and 8 x 12 patches
    torch.Size([10, 97, 96])
    """

    def __init__(
        self,
        tower: ImageViT,
        fbank: Fbank = Fbank(),
        axes: Literal["mel_time", "time_mel"] = "mel_time",
        class_token: bool = False,
        stem: Literal["sum", "mean"] = "sum",
        resize: Literal["grid", "sequence"] = "grid",
    ) -> None:
        super().__init__(tower.frozen)
        if resize not in ("grid", "sequence"):
            raise ArgumentError("audio_positions", resize, "grid or sequence", "Correct it.")
        self.fbank, self.axes, self.input = fbank, axes, fbank.input
        (height, width), (down, right) = tower.conv.kernel_size, tower.conv.stride
        visual = tower.stages[0].blocks[0].spec
        grid = (fbank.mel_bins - height) // down + 1, (fbank.frames - width) // right + 1
        if min(grid) < 1:
            raise ArgumentError(
                "fbank",
                f"{fbank.mel_bins} x {fbank.frames}",
                f"at least {height} x {width}, a patch",
                "Choose more mel_bins or frames.",
            )
        if class_token and tower.class_embedding is None:
            raise ArgumentError("audio_class_token", True, "false: this transformer has no class token", "Correct it.")
        self.conv, self.norm_patch = one_channel(tower.conv, stem), tower.norm_patch
        self.grid_positions = tower.grid_positions
        self.positions, table = tower.positions, tower.position_table()
        if table is not None and grid != visual.grid:
            prefix = 0 if self.grid_positions else visual.prefix
            if resize == "grid":
                table = resize_positions(table.detach(), prefix, visual.grid, grid)
            else:
                count = prefix + grid[0] * grid[1]
                table = F.interpolate(table.detach().T[None], count, mode="linear")[0].T.contiguous()
            self.positions = nn.Parameter(table)
        self.class_embedding, self.registers = tower.class_embedding, tower.registers
        if class_token:
            self.class_embedding = nn.Parameter(tower.class_embedding.detach().clone())
            self.trained = ("class_embedding",)
        self.norm_pre, self.norm = tower.norm_pre, tower.norm
        spec = replace(visual, grid=grid if axes == "mel_time" else grid[::-1])
        self.stages = nn.ModuleList([Stage([block.shared(spec) for block in tower.stages[0].blocks])])
        self._add_trained(tower.segments, tower.train_norm)
        self.freeze()

    def stem(self, x: Tensor) -> Tensor:
        spectrogram = self.fbank(x.flatten(0, 1))
        if self.axes == "time_mel":
            spectrogram = spectrogram.transpose(2, 3)
        return self._begin(self.conv(spectrogram), x.shape[1])
