"""Swin Transformer, both versions (Liu et al., ICCV 2021 and CVPR 2022; timm's classes and weights), over frames and
over spectrograms."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, cast

import torch
from timm.models import swin_transformer, swin_transformer_v2
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from avprompt.encoders.base import (
    BlockSpec,
    Edits,
    FrozenEncoder,
    PatchMerge,
    Stage,
    SwinBlock,
    VisualInput,
    WindowBlock,
    edited_qkv,
    sizes_alone,
    without_autocast,
)
from avprompt.encoders.fbank import Fbank, one_channel
from avprompt.encoders.timm_library import build_timm, timm_input, timm_weights
from avprompt.errors import ArgumentError
from avprompt.ranges import Number, Positive


class CosineHeads(torch.autograd.Function):
    """Queries and keys of unit length, queries times a scale, as an autograd function of few operations.

    From qkv (B, W, n, 3, heads, d) and scales (3, heads, 1), the queries' s, the keys' 1, and 1 / s^2, it makes queries, keys and values,
    each (B, W, heads, n, d) and contiguous, in the dtype of qkv; lengths are in float32 at least. It keeps what it
    returns, which fused attention keeps too, and the lengths.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with without_autocast(qkv.device):
            both = qkv[..., :2, :, :]
            lengths = torch.linalg.vector_norm(both, dim=-1, keepdim=True, dtype=scales.dtype)
            inverse = scales[:2] / lengths.clamp_min_(1e-12)  # as F.normalize
            units = qkv.new_empty(2, *(qkv.shape[place] for place in (0, 1, 4, 2, 5)))
            torch.mul(both, inverse, out=units.permute(1, 2, 4, 0, 3, 5))
            q, k = units.unbind(0)
            v = qkv[..., 2, :, :].transpose(2, 3).contiguous()
            ctx.save_for_backward(q, k, inverse, scales)
            return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_q: Tensor, to_k: Tensor, to_v: Tensor) -> tuple[Tensor, None]:
        q, k, inverse, scales = ctx.saved_tensors
        with without_autocast(q.device):
            batch, windows, heads, count, size = q.shape
            to_qkv = q.new_empty(batch, windows, count, 3, heads, size)
            for place, (units, grad) in enumerate(((q, to_q), (k, to_k))):
                # what points along a unit changes its length alone
                along = (grad * units).sum(-1, keepdim=True, dtype=scales.dtype)
                along = along if place else along.mul_(scales[2].unsqueeze(1))
                across = torch.addcmul(grad, units, along, value=-1)
                own = inverse[..., place, :, :].transpose(2, 3)
                torch.mul(across, own, out=to_qkv[..., place, :, :].transpose(2, 3))
            to_qkv[..., 2, :, :].copy_(to_v.transpose(2, 3))
            return to_qkv, None


class SwinV2Block(WindowBlock):
    """Post-norm block with scaled cosine attention and a log-spaced continuous position bias."""

    norm_first = False

    def __init__(self, library: nn.Module, spec: BlockSpec, drop_path: float) -> None:
        super().__init__(library, spec, drop_path)
        self.register_buffer("qkv_bias", None, persistent=False)
        self.register_buffer("scales", None, persistent=False)

    def forget(self) -> None:
        super().forget()
        self.qkv_bias = self.scales = None

    def prepare(self) -> None:
        super().prepare()
        attn = self.attn
        if self.scales is None and not any(p.requires_grad for p in (attn.q_bias, attn.v_bias, attn.logit_scale)):
            with torch.no_grad():
                self.qkv_bias, self.scales = self._constants()

    def _constants(self) -> tuple[Tensor, Tensor]:
        """Bias of the fused layer (3 C,), and scales (3, heads, 1), see `CosineHeads`."""
        attn = self.attn
        scale = attn.logit_scale.clamp(max=math.log(100)).exp().view(1, -1, 1)
        return torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)), torch.cat((scale, torch.ones_like(scale), scale**-2))

    def project(self, windows: Tensor, edits: Edits | None) -> tuple[Tensor, Tensor, Tensor]:
        self.prepare()
        bias, scales = self._constants() if self.scales is None else (self.qkv_bias, self.scales)
        qkv = edited_qkv(F.linear(windows, self.attn.qkv.weight, bias), windows, edits)
        qkv = qkv.unflatten(-1, (3, self.heads, -1))
        if not scales.requires_grad and not torch.compiler.is_compiling():
            return CosineHeads.apply(qkv, scales)
        q, k, v = qkv.unbind(-3)
        q = F.normalize(q.transpose(-2, -3), dim=-1) * scales[0].unsqueeze(-1)
        # under autocast the norms come out in float32; fused attention wants one dtype
        return q.to(v.dtype), F.normalize(k.transpose(-2, -3), dim=-1).to(v.dtype), v.transpose(-2, -3)

    def position_bias(self) -> Tensor:
        attn, n = self.attn, self.window[0] * self.window[1]
        with without_autocast(attn.proj.weight.device):
            table = attn.cpb_mlp(attn.relative_coords_table).view(-1, self.heads)
            bias = table[attn.relative_position_index.view(-1)].view(n, n, self.heads).permute(2, 0, 1)
            return 16 * torch.sigmoid(bias)

    def bias_sources(self) -> list[nn.Parameter]:
        return list(self.attn.cpb_mlp.parameters())

    def attend_series(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.norm1(self.mix_series(x, bias))


class Swin(FrozenEncoder):
    """What both versions of Swin share; use `SwinV1` or `SwinV2`.

    Args:
        model: see `SwinV2`, as for what follows.
        pretrained: see there.
        frozen: see there.
        released_mode: see there.
        mean: see there.
        std: see there.
        fbank: see there.
        audio_axes: see there.
    """

    block: ClassVar[type[WindowBlock]]
    #: timm's class, and the module that brings state dicts of every version and author to its naming
    library: ClassVar[type[nn.Module]]
    module: ClassVar[ModuleType]
    norm_first: ClassVar[bool]
    unused_weights = ("head.",)
    library_names = (
        (r"^stages\.(\d+)\.merge\.", lambda match: f"layers.{int(match[1]) + 1}.downsample."),
        (r"^stages\.", "layers."),
        (r"\.feed_forward\.", ".mlp."),
    )
    #: stochastic depth of the authors' networks in train mode (`released_mode`), the last block's rate
    drop_path = 0.1

    def __init__(
        self,
        model: str,
        pretrained: str,
        frozen: bool,
        released_mode: bool,
        mean: tuple[Number, Number, Number] | None,
        std: tuple[Positive, Positive, Positive] | None,
        fbank: Fbank,
        audio_axes: Literal["mel_time", "time_mel"],
    ) -> None:
        super().__init__(frozen, released_mode)
        self.listening: dict[str, Any] = {"fbank": fbank, "axes": audio_axes}
        self.model, _, tag = model.partition(".")
        self._take_apart(self._build(self.model))
        self.input = timm_input(self.model, tag or pretrained, tuple(self.patch_embed.img_size), mean, std)
        self._load(self.model, pretrained)
        self.freeze()

    def _build(self, model: str) -> nn.Module:
        return build_timm(model, (self.library,))

    def _take_apart(self, net: nn.Module) -> None:
        self.patch_embed, self.norm = net.patch_embed, net.norm
        depth, stages, index = sum(len(layer.blocks) for layer in net.layers), [], 0
        for number, layer in enumerate(net.layers):
            blocks = []
            for block in layer.blocks:
                rate = self.drop_path * index / max(1, depth - 1)
                blocks.append(self.block(block, BlockSpec(block.dim, tuple(block.input_resolution), number), rate))
                index += 1
            last = number + 1 == len(net.layers)
            grid = blocks[-1].spec.grid
            merge = None if last else PatchMerge(net.layers[number + 1].downsample, grid, self.norm_first)
            stages.append(Stage(blocks, merge))
        self.stages = nn.ModuleList(stages)

    def _load(self, model: str, pretrained: str) -> None:
        if pretrained != "none" and not self.is_meta():
            self.load_timm_weights(timm_weights(model, pretrained), pretrained)

    def load_timm_weights(self, weights: dict[str, Tensor], source: str | Path) -> None:
        """Load timm's state dict, old (merging at the end of a stage) or new, or Microsoft's own.

        Raises:
            WeightsError: keys or shapes do not belong to this architecture.
        """
        with sizes_alone():  # timm looks the sizes up in a network of its own
            net = self._build(self.model)
        self.load_library_weights(self.module.checkpoint_filter_fn(weights, net), source)

    def stem(self, x: Tensor) -> Tensor:
        return self.patch_embed(x.flatten(0, 1)).flatten(1, 2)

    def finalize(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)

    def listener(self) -> SwinSpectrogram:
        """The same frozen stages over spectrograms: what `audio: shared` stands for (LAVISH)."""
        return SwinSpectrogram(self, **self.listening)


#: LAVISH's spectrogram for AVE, of the size of Swin-V2-L's frames
SPECTROGRAM_192 = Fbank(mel_bins=192, frames=192, shift_ms=5.2, mean=-4.9848, std=3.7080)
#: STG-CMA's for MUSIC-AVQA, of the size of Swin-V1's frames
SPECTROGRAM_224 = Fbank(mel_bins=224, frames=224, shift_ms=4.4, mean=-5.2144, std=3.8699)


class SwinV2(Swin):
    """Frozen Swin-V2 over video frames; the default is the DG-SCT papers' Swin-V2-L at 192 x 192.

    Args:
        model: timm architecture name, with or without the tag whose colour statistics hold for a file of weights.
        pretrained: `none` (random weights), a timm tag such as `ms_in22k` (fetched by timm), or a local file: a timm
            state dict of any version (.safetensors, .bin, .pth) or Microsoft's own checkpoint.
        frozen: see `FrozenEncoder`.
        released_mode: see `FrozenEncoder`.
        mean: of red, green and blue in [0, 1]; `None` is timm's for these weights.
        std: likewise.
        fbank: spectrogram of the audio side where the backbone has `audio: shared`, of the size of the frames; the
            default is LAVISH's for AVE.
        audio_axes: see `SwinSpectrogram`.

    Raises:
        ArgumentError: timm does not know the architecture, or it is of another class.
        WeightsError: the tag is unknown or cannot be fetched, or the file is missing or of another architecture.

    >>> import torch
    >>> with torch.device("meta"):  # sizes alone; drop this line for a network with weights
    ...     encoder = SwinV2(pretrained="ms_in22k")
    >>> encoder.input.height, encoder.input.mean, [stage.blocks[0].spec.grid for stage in encoder.stages]
    (192, (0.485, 0.456, 0.406), [(48, 48), (24, 24), (12, 12), (6, 6)])
    """

    block, library, module, norm_first = SwinV2Block, swin_transformer_v2.SwinTransformerV2, swin_transformer_v2, False

    def __init__(
        self,
        model: str = "swinv2_large_window12_192",
        pretrained: str = "none",
        frozen: bool = True,
        released_mode: bool = False,
        mean: tuple[Number, Number, Number] | None = None,
        std: tuple[Positive, Positive, Positive] | None = None,
        fbank: Fbank = SPECTROGRAM_192,
        audio_axes: Literal["mel_time", "time_mel"] = "time_mel",
    ) -> None:
        super().__init__(model, pretrained, frozen, released_mode, mean, std, fbank, audio_axes)


class SwinV1(Swin):
    """Frozen Swin of the first version over video frames; the default is Swin-L at 224 x 224, STG-CMA's.

    Args:
        model: see `SwinV2`.
        pretrained: see `SwinV2`.
        frozen: see `FrozenEncoder`.
        released_mode: see `FrozenEncoder`.
        mean: see `SwinV2`.
        std: see `SwinV2`.
        fbank: see `SwinV2`; the default is STG-CMA's for MUSIC-AVQA.
        audio_axes: see `SwinSpectrogram`.
        audio_stem: see there; the default is STG-CMA's.

    Raises:
        ArgumentError: timm does not know the architecture, or it is of another class.
        WeightsError: the tag is unknown or cannot be fetched, or the file is missing or of another architecture.

    >>> import torch
    >>> with torch.device("meta"):  # sizes alone; drop this line for a network with weights
    ...     encoder = SwinV1("swin_tiny_patch4_window7_224")
    >>> encoder.dim, [len(stage.blocks) for stage in encoder.stages]
    (768, [2, 2, 6, 2])
    """

    block, library, module, norm_first = SwinBlock, swin_transformer.SwinTransformer, swin_transformer, True

    def __init__(
        self,
        model: str = "swin_large_patch4_window7_224",
        pretrained: str = "none",
        frozen: bool = True,
        released_mode: bool = False,
        mean: tuple[Number, Number, Number] | None = None,
        std: tuple[Positive, Positive, Positive] | None = None,
        fbank: Fbank = SPECTROGRAM_224,
        audio_axes: Literal["mel_time", "time_mel"] = "time_mel",
        audio_stem: Literal["sum", "mean"] = "mean",
    ) -> None:
        super().__init__(model, pretrained, frozen, released_mode, mean, std, fbank, audio_axes)
        self.listening["stem"] = audio_stem


class SwinSpectrogram(FrozenEncoder):
    """Swin over spectrograms, through the frozen stages of one over frames, as LAVISH hears.

    LAVISH repeats the spectrogram to three channels; the sum of the patch embedding over red, green and blue is the
    same function. Windows and masks fit one grid, so the spectrogram has the size of the frames.

    Args:
        tower: where stages and norms come from; the backbone's visual encoder where they are shared.
        fbank: settings of the spectrogram; `mel_bins` x `frames` is the size of the frames.
        axes: rows and columns of the token grid; `time_mel` is LAVISH's.
        stem: `sum` or `mean`, see `one_channel`.

    Raises:
        ArgumentError: a spectrogram of another size.

    >>> import torch
    >>> from avprompt.encoders import TinySwinV2
    >>> audio = SwinSpectrogram(TinySwinV2(pretrained="none"), Fbank(mel_bins=64, frames=64))
    >>> audio(torch.zeros(1, 10, 16000)).shape
    torch.Size([10, 16, 80])
    """

    def __init__(
        self,
        tower: Swin,
        fbank: Fbank = SPECTROGRAM_192,
        axes: Literal["mel_time", "time_mel"] = "time_mel",
        stem: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__(tower.frozen, tower.released_mode)
        self.fbank, self.axes, self.input = fbank, axes, fbank.input
        shape = (fbank.mel_bins, fbank.frames) if axes == "mel_time" else (fbank.frames, fbank.mel_bins)
        picture = cast(VisualInput, tower.input)
        if shape != (picture.height, picture.width):
            raise ArgumentError(
                "fbank",
                f"{fbank.mel_bins} mel_bins x {fbank.frames} frames",
                f"a picture of {picture.height} x {picture.width}, the size of the frames",
                "Set mel_bins and frames, and shift_ms so that a segment fills them.",
            )
        self.conv, self.norm_patch = one_channel(tower.patch_embed.proj, stem), tower.patch_embed.norm
        self.stages, self.norm = tower.stages, tower.norm
        self.freeze()

    def stem(self, x: Tensor) -> Tensor:
        spectrogram = self.fbank(x.flatten(0, 1))
        if self.axes == "time_mel":
            spectrogram = spectrogram.transpose(2, 3)
        return self.norm_patch(self.conv(spectrogram).flatten(2).transpose(1, 2))

    def finalize(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)
