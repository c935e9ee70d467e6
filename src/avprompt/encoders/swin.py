"""Swin Transformer V2 (Liu et al., CVPR 2022; timm's class and weights) behind the frozen-encoder contract."""

from __future__ import annotations

import math
import re
from pathlib import Path

import timm
import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.dense import adopt, linear
from avprompt.encoders.base import (
    BlockSpec,
    FrozenEncoder,
    PatchMerge,
    Stage,
    WindowBlock,
    read_weights,
    without_autocast,
)
from avprompt.errors import ShapeError, WeightsError


class SwinV2Block(WindowBlock):
    """Post-norm block with scaled cosine attention and a log-spaced continuous position bias.

    Args:
        library: timm's block, whose layers are taken over.
        spec: size and place of the block.
        drop_path: stochastic depth rate (train mode only).
    """

    def __init__(self, library: SwinTransformerV2Block, spec: BlockSpec, drop_path: float) -> None:
        super().__init__(spec, library.window_size, library.shift_size, library.num_heads, library.attn_mask, drop_path)
        self.attn, self.norm1, self.norm2 = library.attn, library.norm1, library.norm2
        self.feed_forward = library.mlp

    def attention(self, x: Tensor) -> Tensor:
        """(B*T, N, C) -> LN(window attention(x)), same shape."""
        return self.drop_path(self.norm1(self.window_attention(x, self.attn.proj)))

    def mlp(self, x: Tensor) -> Tensor:
        """(B*T, N, C) -> LN(MLP(x)), same shape."""
        return self.drop_path(self.norm2(self.feed_forward(x)))

    def project(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attn
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        q, k, v = linear(windows, attn.qkv.weight, bias).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        scale = attn.logit_scale.clamp(max=math.log(100)).exp()
        q = F.normalize(q.transpose(-2, -3), dim=-1) * scale
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


class SwinV2(FrozenEncoder):
    """Frozen Swin-V2 over video frames; the default is the DG-SCT papers' Swin-V2-L at 192 x 192.

    Args:
        model: timm architecture name, without tag.
        pretrained: `none` (random weights), a timm tag such as `ms_in22k` (fetched by timm), or a local file: a timm
            state dict of any version (.safetensors, .bin, .pth) or Microsoft's own checkpoint.
        frozen: see `FrozenEncoder`.
        released_mode: see `FrozenEncoder`.

    Raises:
        WeightsError: the tag is unknown or cannot be fetched, or the file is missing or of another architecture.
    """

    unused_weights = ("head.",)
    #: stochastic depth of the authors' Swin-V2-L in train mode (`released_mode`), the last block's rate
    drop_path = 0.1

    def __init__(self, model: str = "swinv2_large_window12_192", pretrained: str = "none", frozen: bool = True,
                 released_mode: bool = False) -> None:
        super().__init__(frozen, released_mode)
        self._take_apart(self._build(model))
        self._load(model, pretrained)
        self.freeze()

    def _build(self, model: str) -> SwinTransformerV2:
        return timm.create_model(model, pretrained=False, num_classes=0)

    def _take_apart(self, net: SwinTransformerV2) -> None:
        self.patch_embed, self.norm = net.patch_embed, net.norm
        depth, stages, index = sum(len(layer.blocks) for layer in net.layers), [], 0
        for number, layer in enumerate(net.layers):
            blocks = []
            for block in layer.blocks:
                rate = self.drop_path * index / max(1, depth - 1)
                blocks.append(SwinV2Block(block, BlockSpec(block.dim, block.input_resolution, number), rate))
                index += 1
            last = number + 1 == len(net.layers)
            merge = None if last else PatchMerge(net.layers[number + 1].downsample, blocks[-1].spec.grid, False)
            stages.append(Stage(blocks, merge))
        self.stages = nn.ModuleList(stages)
        adopt(self.stages)

    def _load(self, model: str, pretrained: str) -> None:
        if pretrained == "none" or self.is_meta():
            return
        if Path(pretrained).suffix or "/" in pretrained:
            self.load_timm_weights(read_weights(pretrained, "visual.init_args.pretrained"), pretrained)
            return
        try:
            net = timm.create_model(f"{model}.{pretrained}", pretrained=True, num_classes=0)
        except (RuntimeError, OSError) as error:
            raise WeightsError(
                "visual.init_args.pretrained", f"{pretrained} ({error})", f"a timm tag of {model} that can be fetched",
                f"On a machine without network, download timm/{model}.{pretrained} elsewhere and give the file's path."
            ) from error
        self.load_timm_weights(net.state_dict(), f"{model}.{pretrained}")

    def load_timm_weights(self, weights: dict[str, Tensor], source: str | Path) -> None:
        """Load timm's state dict, old (merging at the end of a stage) or new, or Microsoft's own.

        Raises:
            WeightsError: keys or shapes do not belong to this architecture.
        """
        self.load_library_weights(checkpoint_filter_fn(weights, self), source)

    def library_key(self, name: str) -> str:
        name = re.sub(r"^stages\.(\d+)\.merge\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
        return re.sub(r"^stages\.", "layers.", name).replace(".feed_forward.", ".mlp.")

    def embed(self, x: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W), normalised as timm's model expects -> (B*T, N, C).

        Raises:
            ShapeError: other than five dimensions, or frames of another size than the network's.
        """
        size = (3, *self.patch_embed.img_size)
        if x.ndim != 5 or tuple(x.shape[2:]) != size:
            raise ShapeError("frames", tuple(x.shape), f"(B, T, {', '.join(map(str, size))})",
                             "Set the data module's image_size to the visual encoder's.")
        return self.patch_embed(x.flatten(0, 1)).flatten(1, 2)

    @property
    def image_size(self) -> tuple[int, int]:
        return tuple(self.patch_embed.img_size)

    def finalize(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)
