"""Plain vision transformers of timm (ViT, DINOv2, MAE, SigLIP, EVA-02 ...) behind the frozen-encoder contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from timm.layers import Attention as TimmAttention
from timm.layers import AttentionRope, GluMlp, LayerScale, Mlp, PatchEmbed, SwiGLU
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from avprompt.encoders.base import BlockSpec, FeedForward, Stage, sizes_alone
from avprompt.encoders.fbank import Fbank
from avprompt.encoders.plain_vit import ImageViT, PlainAttention, PlainViTBlock, ViTSpectrogram
from avprompt.encoders.timm_library import build_timm, timm_input, timm_weights
from avprompt.errors import ArgumentError
from avprompt.ranges import Count, Number, Positive

KINDS = {vision_transformer.VisionTransformer: vision_transformer, eva.Eva: eva}
ATTENTIONS = (TimmAttention, AttentionRope, eva.EvaAttention)


def refuse(model: str, what: str) -> ArgumentError:
    """The error for a network with a part that no encoder here runs."""
    return ArgumentError(
        "model", f"{model}, with {what}", "a plain pre-norm vision transformer", "Choose another architecture of timm."
    )


def own(module: nn.Module | None) -> nn.Module | None:
    """The module, or `None` where the library has none or a placeholder."""
    return None if isinstance(module, nn.Identity) else module


def timm_attention(model: str, attn: nn.Module, dim: int) -> PlainAttention:
    """timm's attention under our names.

    Raises:
        ArgumentError: gates, keys of fewer heads, or heads of another total width.
    """
    if type(attn) not in ATTENTIONS:
        raise refuse(model, f"{type(attn).__name__}")
    if getattr(attn, "gate", None) is not None:
        raise refuse(model, "gated attention")
    if getattr(attn, "num_kv_heads", attn.num_heads) != attn.num_heads or attn.head_dim * attn.num_heads != dim:
        raise refuse(model, "heads of another total width than the tokens")
    q, k, v = (getattr(attn, f"{name}_proj", None) for name in "qkv")
    q_bias, v_bias = (getattr(attn, f"{name}_bias", None) for name in "qv")
    return PlainAttention(
        attn.num_heads, attn.proj, attn.qkv, q, k, v, q_bias, v_bias, own(attn.q_norm), own(attn.k_norm), own(attn.norm)
    )


def timm_mlp(model: str, mlp: nn.Module) -> FeedForward:
    """timm's MLP under our names: plain, or gated with one layer for gate and value or with two.

    Raises:
        ArgumentError: another kind.
    """
    norm = own(mlp.norm)
    if type(mlp) is Mlp:
        return FeedForward(mlp.fc1, mlp.act, mlp.fc2, norm)
    if type(mlp) is GluMlp and not mlp.gate_last:
        return FeedForward(mlp.fc1, mlp.act, mlp.fc2, norm, gated=True)
    if type(mlp) is SwiGLU:
        return FeedForward(mlp.fc1_g, mlp.act, mlp.fc2, norm, gated=True, value=mlp.fc1_x)
    raise refuse(model, f"an MLP of class {type(mlp).__name__}")


def timm_block(model: str, block: nn.Module, spec: BlockSpec, rope: Tensor | None = None) -> PlainViTBlock:
    """timm's pre-norm block under our names.

    Raises:
        ArgumentError: another kind of block.
    """
    if type(block) not in (vision_transformer.Block, eva.EvaBlock):
        raise refuse(model, f"blocks of class {type(block).__name__}")
    scales = [getattr(block, name) for name in (("ls1", "ls2") if hasattr(block, "ls1") else ("gamma_1", "gamma_2"))]
    first, second = (scale.gamma if isinstance(scale, LayerScale) else own(scale) for scale in scales)
    return PlainViTBlock(
        spec,
        block.norm1,
        timm_attention(model, block.attn, spec.dim),
        block.norm2,
        timm_mlp(model, block.mlp),
        first,
        second,
        rope,
        getattr(block.attn, "rotate_half", False),
    )


class TimmViT(ImageViT):
    """A frozen plain vision transformer of timm over frames.

    It takes every architecture of timm's classes `VisionTransformer` and `Eva` whose blocks are pre-norm: AugReg, DINO,
    DINOv2 (registers included), DINOv3, MAE, CLIP, SigLIP, EVA-02 and others. The class token, where there is one, is
    the first token and registers follow; classifiers and attention pools are left out. Networks that norm their pooled
    features instead of their tokens (MAE fine-tuned, EVA-02) have that norm applied to each token.

    Blocks with rotary positions (EVA-02, DINOv3) run and can be edited, but others cannot attend through them: their
    `spec.plain` is false, and methods that need plain blocks (AV-STFP, MaPLe) refuse them.

    Args:
        model: timm architecture name, with or without a tag. A tag here says whose colour statistics hold where
            `pretrained` is a file or `none`.
        pretrained: `none` (random weights), a timm tag such as `lvd142m` (fetched by timm), or a local file: timm's
            state dict (.safetensors, .bin, .pth), or that of the authors of DINOv2, EVA or CLIP, which timm converts.
        img_size: height and width of frames where they are not the architecture's; timm resamples the positions.
        segments: see `CLIP`.
        train_norm: see `CLIP`.
        fbank: spectrogram of the audio side where the backbone has `audio: shared`, see `ViTSpectrogram`.
        audio_axes: see `ViTSpectrogram`.
        audio_class_token: see `ViTSpectrogram`.
        audio_stem: see `ViTSpectrogram`.
        audio_positions: see `ViTSpectrogram`, `resize`.
        frozen: see `FrozenEncoder`.
        mean: of red, green and blue in [0, 1]; `None` is timm's for these weights.
        std: likewise.

    Raises:
        ArgumentError: timm does not know the architecture, or it is no plain vision transformer.
        WeightsError: the tag is unknown or cannot be fetched, or the file is missing or of another architecture.

    >>> import torch
    >>> encoder = TimmViT("vit_tiny_patch16_224", img_size=32)
    >>> encoder(torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)).shape  # a class token and 2 x 2 patches
    torch.Size([2, 5, 192])
    """

    #: arguments of timm's class beside `img_size`
    sizes: dict[str, object] = {}
    unused_weights = ("head.", "attn_pool.")

    def __init__(
        self,
        model: str = "vit_base_patch16_224",
        pretrained: str = "none",
        img_size: Count | tuple[Count, Count] | None = None,
        segments: Count | None = None,
        train_norm: bool = False,
        fbank: Fbank = Fbank(),
        audio_axes: Literal["mel_time", "time_mel"] = "mel_time",
        audio_class_token: bool = False,
        audio_stem: Literal["sum", "mean"] = "sum",
        audio_positions: Literal["grid", "sequence"] = "grid",
        frozen: bool = True,
        mean: tuple[Number, Number, Number] | None = None,
        std: tuple[Positive, Positive, Positive] | None = None,
    ) -> None:
        super().__init__(frozen)
        self.listening: dict[str, Any] = {
            "fbank": fbank,
            "axes": audio_axes,
            "class_token": audio_class_token,
            "stem": audio_stem,
            "resize": audio_positions,
        }
        self.model, _, tag = model.partition(".")
        self.options = {**self.sizes, **({} if img_size is None else {"img_size": img_size})}
        net = build_timm(self.model, tuple(KINDS), **self.options)
        self.input = timm_input(self.model, tag or pretrained, tuple(net.patch_embed.img_size), mean, std)
        self._take_apart(net)
        if pretrained != "none" and not self.is_meta():
            self.load_timm_weights(timm_weights(self.model, pretrained, **self.options), pretrained)
        self._add_trained(segments, train_norm)
        self.freeze()

    def _take_apart(self, net: nn.Module) -> None:
        if type(net.patch_embed) is not PatchEmbed:
            raise refuse(self.model, f"a patch embedding of class {type(net.patch_embed).__name__}")
        if getattr(net, "rope_mixed", False):
            raise refuse(self.model, "learned rotary positions of each block")
        self.conv, self.norm_patch = net.patch_embed.proj, own(net.patch_embed.norm)
        self.class_embedding, self.registers, self.positions = net.cls_token, net.reg_token, net.pos_embed
        self.grid_positions, self.norm_pre = net.no_embed_class, own(net.norm_pre)
        pooled = own(net.norm) is None
        self.norm = own(net.fc_norm if pooled else net.norm)
        grid, rope = tuple(net.patch_embed.grid_size), getattr(net, "rope", None)
        if rope is not None:
            rope = rope.get_embed() if getattr(rope, "feat_shape", None) else rope.get_embed(shape=grid)
        spec = BlockSpec(self.conv.out_channels, grid, 0, net.num_prefix_tokens, class_token=net.cls_token is not None)
        self.stages = nn.ModuleList([Stage([timm_block(self.model, block, spec, rope) for block in net.blocks])])
        scale = r".ls\1.gamma" if isinstance(net, vision_transformer.VisionTransformer) else r".gamma_\1"
        self.library_names = (
            (r"^conv\.", "patch_embed.proj."),
            (r"^norm_patch\.", "patch_embed.norm."),
            (r"^class_embedding$", "cls_token"),
            (r"^registers$", "reg_token"),
            (r"^positions$", "pos_embed"),
            (r"^norm\.", "fc_norm." if pooled else "norm."),
            (r"^stages\.0\.", ""),
            (r"\.scale([12])$", scale),
            (r"\.feed_forward\.value\.", ".mlp.fc1_x."),
            (r"\.feed_forward\.fc1\.", ".mlp.fc1_g." if self._split_gate() else ".mlp.fc1."),
            (r"\.feed_forward\.", ".mlp."),
        )

    def _split_gate(self) -> bool:
        return self.stages[0].blocks[0].feed_forward.value is not None

    def load_timm_weights(self, weights: dict[str, Tensor], source: str | Path) -> None:
        """Load timm's state dict, or one that timm converts; positions of another size are resampled as timm does.

        Raises:
            WeightsError: keys or shapes do not belong to this architecture.
        """
        with sizes_alone():  # timm looks the sizes up in a network of its own
            net = build_timm(self.model, tuple(KINDS), **self.options)
        weights = KINDS[type(net)].checkpoint_filter_fn(dict(weights), net)
        self.load_library_weights(weights, source)

    def listener(self) -> ViTSpectrogram:
        """The same frozen transformer over spectrograms: what `audio: shared` stands for."""
        return ViTSpectrogram(self, **self.listening)
