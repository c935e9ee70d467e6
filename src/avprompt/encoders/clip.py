"""CLIP's vision transformers (Radford et al., 2021; open_clip's class and weights) behind the frozen-encoder contract: over
frames, and over spectrograms."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.dense import adopt, linear
from avprompt.encoders.base import BlockSpec, FrozenBlock, FrozenEncoder, Stage, read_weights
from avprompt.encoders.fbank import Fbank
from avprompt.errors import ArgumentError, ShapeError, WeightsError

#: what OpenAI's files hold beside tensors of the network
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")


def architecture(model: str) -> dict[str, Any]:
    """open_clip's configuration of `model`, such as ViT-B-16: `embed_dim`, `vision_cfg`, `text_cfg`.

    Raises:
        ArgumentError: open_clip does not know it, or its vision tower is no plain vision transformer.
    """
    import open_clip  # takes seconds: only where a CLIP is asked for

    config = open_clip.get_model_config(model)
    sizes, plain = (config or {}).get("vision_cfg", {}), {"image_size", "layers", "width", "patch_size", "head_width"}
    if not plain - {"head_width"} <= sizes.keys() <= plain or not isinstance(sizes["layers"], int):
        raise ArgumentError("model", model, "a plain vision transformer of open_clip, such as ViT-B-16 or ViT-L-14",
                            "Write it as open_clip does, without `-quickgelu`.")
    return config


def read_clip_weights(model: str, pretrained: str, quick_gelu: bool, key: str) -> dict[str, Tensor]:
    """Both towers of a CLIP in open_clip's naming, float32; entries of the vision tower begin with `visual.`.

    Args:
        model: architecture, as open_clip names it.
        pretrained: a tag of open_clip's (fetched by it, such as `openai` or `laion2b_s34b_b88k`), or a local file: a
            state dict of open_clip's (.safetensors, .bin, .pt) or OpenAI's, which may be their TorchScript archive.
        quick_gelu: the activation in use; a tag says which one it was trained with.
        key: YAML key, for the error message.

    Raises:
        WeightsError: the tag is unknown or cannot be fetched, or the file is missing or broken.
        ArgumentError: the tag was trained with the other activation.
    """
    if Path(pretrained).suffix or "/" in pretrained:
        weights = _read_archive(pretrained) if _is_torchscript(Path(pretrained)) else read_weights(pretrained, key)
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
        return {name: value.float() if value.is_floating_point() else value
                for name, value in weights.items() if name not in OPENAI_SIZES}
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained not in tags:
        raise WeightsError(key, pretrained, f"none, a local file, or a tag of {model}: {', '.join(tags)}",
                           "Correct the tag, or give the path of a file.")
    trained_with = bool(open_clip.get_pretrained_cfg(model, pretrained).get("quick_gelu", False))
    if trained_with is not quick_gelu:
        raise ArgumentError("quick_gelu", quick_gelu, f"{trained_with}, the activation of {model} {pretrained}",
                            "Set it so; with the other one the weights give wrong features without a word.")
    try:
        return open_clip.create_model(model, pretrained, force_quick_gelu=quick_gelu).state_dict()
    except (RuntimeError, OSError) as error:
        raise WeightsError(key, f"{pretrained} ({error})", f"a tag of {model} that can be fetched",
                           "On a machine without network, download the file elsewhere and give its path.") from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _read_archive(path: str | Path) -> dict[str, Tensor]:
    """OpenAI publishes CLIP as TorchScript, which holds tensors and TorchScript's own code, no Python."""
    try:
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    except RuntimeError as error:
        raise WeightsError(path, error, "a TorchScript archive", "Check the download.") from error


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), as SiLU: keeps one tensor for the backward pass instead of two."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, elementwise."""
        return F.silu(1.702 * x) / 1.702


class PlainViTBlock(FrozenBlock):
    """Pre-norm block of a plain vision transformer; others may look through its frozen projections.

    Args:
        library: open_clip's block, whose layers are taken over (another encoder's block may share them).
        spec: size and place of the block.
    """

    def __init__(self, library: nn.Module, spec: BlockSpec) -> None:
        super().__init__()
        self.spec, self.library = spec, (library,)  # a tuple: its layers are registered once, below
        self.norm1, self.attn = library.ln_1, library.attn
        self.norm2, self.feed_forward = library.ln_2, library.mlp

    def shared(self, spec: BlockSpec) -> PlainViTBlock:
        """The same layers for tokens on another grid."""
        return PlainViTBlock(self.library[0], spec)

    def attention(self, x: Tensor) -> Tensor:
        """(B*T, N, C) -> self-attention(LN(x)), same shape."""
        return self.attend(self.norm1(x))

    def mlp(self, x: Tensor) -> Tensor:
        """(B*T, N, C) -> MLP(LN(x)), same shape."""
        return self.feed_forward(self.norm2(x))

    def attend(self, queries: Tensor, keys: Tensor | None = None, key_prompts: Tensor | None = None,
               value_prompts: Tensor | None = None) -> Tensor:
        """Multi-head attention with the frozen projections; prompts join after projection.

        Args:
            queries: (n, L, C), normed.
            keys: (n, M, C), normed, of keys and values; `None` is `queries`.
            key_prompts: (P, C), the same for all n, seen by every query beside the keys.
            value_prompts: (P, C).

        Returns:
            (n, L, C).
        """
        weight, bias, dim = self.attn.in_proj_weight, self.attn.in_proj_bias, queries.shape[-1]
        if keys is None:
            q, k, v = linear(queries, weight, bias).chunk(3, -1)
        else:
            q = linear(queries, weight[:dim], bias[:dim])
            k, v = linear(keys, weight[dim:], bias[dim:]).chunk(2, -1)
        if key_prompts is not None:
            k, v = (torch.cat((prompts.to(own.dtype).expand(len(own), -1, -1), own), dim=1)
                    for prompts, own in ((key_prompts, k), (value_prompts, v)))
        q, k, v = (t.unflatten(-1, (self.attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return linear(out, self.attn.out_proj.weight, self.attn.out_proj.bias)

    def project(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt tokens (P, C) -> keys and values (P, C) for `attend`, through the frozen projections."""
        dim = prompts.shape[-1]
        return linear(prompts, self.attn.in_proj_weight[dim:], self.attn.in_proj_bias[dim:]).chunk(2, -1)


class PlainViT(FrozenEncoder):
    """What both of CLIP's encoders below share: tokens with a class token before the grid, one stage, a final norm."""

    norm: nn.Module
    class_embedding: nn.Parameter
    positions: nn.Parameter

    def _add_trained(self, segments: int | None, train_norm: bool) -> None:
        names = ["norm."] if train_norm else []
        self.temporal_embedding = None
        if segments:
            self.temporal_embedding = nn.Parameter(torch.zeros(segments, self.dim))
            names.append("temporal_embedding")
        self.trained = (*self.trained, *names)

    def _begin(self, grid: Tensor, segments: int) -> Tensor:
        """Patches (B*T, C, rows, columns) -> class token and patches with positions and segments, normed (B*T, N, C)."""
        tokens = grid.flatten(2).transpose(1, 2)
        first = self.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        tokens = torch.cat((first, tokens), dim=1) + self.positions.to(tokens.dtype)
        if self.temporal_embedding is not None:
            if segments != len(self.temporal_embedding):
                raise ShapeError("frames, audio", f"{segments} segments", f"{len(self.temporal_embedding)}",
                                 "Make the encoder's `segments` the data module's.")
            moments = self.temporal_embedding.repeat(len(tokens) // segments, 1)
            tokens = tokens + moments.unsqueeze(1).to(tokens.dtype)
        return self.norm_pre(tokens)

    def finalize(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)


class CLIP(PlainViT):
    """CLIP's frozen vision transformer over frames.

    Args:
        model: architecture as open_clip names it: ViT-B-32, ViT-B-16, ViT-L-14.
        pretrained: `none` (random weights), a tag of open_clip's, or a local file; see `read_clip_weights`.
        quick_gelu: activation x sigmoid(1.702 x), that of OpenAI's weights; most others were trained with GELU.
        segments: length T of a trained temporal embedding, zero at the start, that is added to the tokens before the
            first norm (AV-STFP); `None` has none.
        train_norm: train the final norm (AV-STFP).
        projection: keep CLIP's projection into the space that it shares with text, see `project`. `logit_scale` is
            then the logarithm of the scale of its cosines, where the weights hold one.
        fbank: spectrogram of the audio side where the backbone has `audio: shared`, see `CLIPSpectrogram`.
        audio_axes: see `CLIPSpectrogram`.
        audio_class_token: see `CLIPSpectrogram`.
        frozen: see `FrozenEncoder`.

    Raises:
        ArgumentError: unknown architecture, or a tag of the other activation.
        WeightsError: the tag is unknown or cannot be fetched, or the file is missing or of another architecture.
    """

    def __init__(self, model: str = "ViT-B-16", pretrained: str = "none", quick_gelu: bool = True,
                 segments: int | None = None, train_norm: bool = False, projection: bool = False,
                 fbank: Fbank = Fbank(), audio_axes: Literal["mel_time", "time_mel"] = "mel_time",
                 audio_class_token: bool = False, frozen: bool = True) -> None:
        super().__init__(frozen)
        self.segments, self.train_norm = segments, train_norm
        self.listening = {"fbank": fbank, "axes": audio_axes, "class_token": audio_class_token}
        self._take_apart(self._build(model), quick_gelu, projection)
        if pretrained != "none" and not self.is_meta():
            self.load_clip_weights(read_clip_weights(model, pretrained, quick_gelu, "pretrained"), pretrained)
        self._add_trained(segments, train_norm)
        self.freeze()

    def _build(self, model: str) -> nn.Module:
        from open_clip.transformer import VisionTransformer

        config = architecture(model)
        sizes = config["vision_cfg"]
        return VisionTransformer(sizes["image_size"], sizes["patch_size"], sizes["width"], sizes["layers"],
                                 sizes["width"] // sizes.get("head_width", 64), 4.0, output_dim=config["embed_dim"])

    def _take_apart(self, net: nn.Module, quick_gelu: bool, projection: bool) -> None:
        self.conv, self.norm_pre, self.norm = net.conv1, net.ln_pre, net.ln_post
        self.class_embedding, self.positions = net.class_embedding, net.positional_embedding
        self.projection = net.proj if projection else None
        self.register_buffer("logit_scale", None, persistent=False)
        self.unused_weights = () if projection else ("proj",)
        spec = BlockSpec(self.conv.out_channels, tuple(net.grid_size), 0, prefix=1, plain=True)
        for block in net.transformer.resblocks if quick_gelu else ():
            block.mlp.gelu = QuickGELU()
        self.stages = nn.ModuleList([Stage([PlainViTBlock(block, spec) for block in net.transformer.resblocks])])
        adopt(self.stages)

    def load_clip_weights(self, weights: dict[str, Tensor], source: str | Path) -> None:
        """Load the vision tower of a CLIP in open_clip's naming; text entries are the text tower's and left alone.

        Raises:
            WeightsError: keys or shapes do not belong to this architecture.
        """
        ours = {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}
        extras = {name: value for name, value in self.state_dict().items() if name == "temporal_embedding"}
        self.load_library_weights({**ours, **extras}, source)
        if self.projection is not None and "logit_scale" in weights:
            self.logit_scale = weights["logit_scale"].detach().clone().reshape(())

    def library_key(self, name: str) -> str:
        name = re.sub(r"^stages\.0\.blocks\.(\d+)\.norm([12])\.", r"transformer.resblocks.\1.ln_\2.", name)
        name = re.sub(r"^stages\.0\.blocks\.", "transformer.resblocks.", name).replace(".feed_forward.", ".mlp.")
        name = re.sub(r"^conv\.", "conv1.", re.sub(r"^norm\.", "ln_post.", re.sub(r"^norm_pre\.", "ln_pre.", name)))
        return {"positions": "positional_embedding", "projection": "proj"}.get(name, name)

    @property
    def image_size(self) -> tuple[int, int]:
        (rows, columns), (height, width) = self.stages[0].blocks[0].spec.grid, self.conv.kernel_size
        return rows * height, columns * width

    def embed(self, x: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W), normalised -> (B*T, 1 + patches, C).

        Raises:
            ShapeError: other than five dimensions, frames of another size than the network's, or another number of
                segments than the temporal embedding's.
        """
        size = (3, *self.image_size)
        if x.ndim != 5 or tuple(x.shape[2:]) != size:
            raise ShapeError("frames", tuple(x.shape), f"(B, T, {', '.join(map(str, size))})",
                             "Set the data module's image_size to the visual encoder's.")
        return self._begin(self.conv(x.flatten(0, 1)), x.shape[1])

    def project(self, features: Tensor) -> Tensor:
        """Class tokens after the final norm (..., C) -> CLIP's joint space (..., E), not normalised.

        Raises:
            ArgumentError: built without `projection`.
        """
        if self.projection is None:
            raise ArgumentError("projection", False, "true, for a task that compares with text",
                                "Set it on the visual encoder.")
        return features @ self.projection

    def listener(self) -> CLIPSpectrogram:
        """The same frozen transformer over spectrograms: what `audio: shared` stands for."""
        return CLIPSpectrogram(self, **self.listening)


class CLIPSpectrogram(PlainViT):
    """CLIP's vision transformer over one-second spectrograms (AV-STFP; the stem is STG-CMA's).

    The patch embedding of the single channel is the sum of CLIP's over red, green and blue. Positions are CLIP's class
    row and the centre of its grid, of the spectrogram's own size; along an axis on which the spectrogram has more
    patches CLIP's grid is stretched bilinearly; of equal grids the table is shared. Nothing is resized.

    Args:
        tower: where blocks and norms come from; the backbone's visual encoder where they are shared.
        fbank: settings of the spectrogram.
        axes: rows and columns of the token grid. `time_mel` is the published lineage's: tokens lie time by mel,
            positions mel by time, so that neighbours in one are not neighbours in the other.
        class_token: train a class token of its own, which starts as CLIP's.

    Raises:
        ArgumentError: a spectrogram smaller than a patch.
    """

    def __init__(self, tower: CLIP, fbank: Fbank = Fbank(), axes: Literal["mel_time", "time_mel"] = "mel_time",
                 class_token: bool = False) -> None:
        super().__init__(tower.frozen)
        self.fbank, self.axes = fbank, axes
        (height, width), visual = tower.conv.kernel_size, tower.stages[0].blocks[0].spec
        grid = fbank.mel_bins // height, fbank.frames // width
        if not all(grid):
            raise ArgumentError("fbank", f"{fbank.mel_bins} x {fbank.frames}", f"at least {height} x {width}, a patch",
                                "Choose more mel_bins or frames.")
        weight = tower.conv.weight.detach().sum(1, keepdim=True)
        self.conv = nn.Conv2d(1, visual.dim, tower.conv.kernel_size, tower.conv.stride, bias=False,
                              device=weight.device)
        self.conv.weight = nn.Parameter(weight)
        self.positions = (tower.positions if grid == visual.grid
                          else nn.Parameter(self._positions(tower.positions.detach(), visual.grid, grid)))
        self.class_embedding = tower.class_embedding
        if class_token:
            self.class_embedding, self.trained = nn.Parameter(tower.class_embedding.detach().clone()), ("class_embedding",)
        self.norm_pre, self.norm = tower.norm_pre, tower.norm
        spec = BlockSpec(visual.dim, grid if axes == "mel_time" else grid[::-1], 0, prefix=1, plain=True)
        self.stages = nn.ModuleList([Stage([block.shared(spec) for block in tower.stages[0].blocks])])
        self._add_trained(tower.segments, tower.train_norm)
        self.freeze()

    @staticmethod
    def _positions(table: Tensor, visual: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """CLIP's table (1 + rows * columns, C) for another grid."""
        first, rest = table[:1], table[1:].unflatten(0, visual)
        for axis, (have, want) in enumerate(zip(visual, grid)):
            rest = rest.narrow(axis, max(0, have // 2 - want // 2), min(have, want))
        rest = rest.permute(2, 0, 1)[None]
        if rest.shape[2:] != grid:
            rest = F.interpolate(rest, grid, mode="bilinear")
        return torch.cat((first, rest[0].flatten(1).T))

    def library_key(self, name: str) -> str:
        return name  # built from CLIP's weights; no library has spectrogram weights of its own

    def embed(self, x: Tensor) -> Tensor:
        """Waveform (B, T, S) float in [-1, 1], one segment a row at the fbank's sample rate -> (B*T, 1 + patches, C).

        Raises:
            ShapeError: other than three dimensions, or another number of segments than the temporal embedding's.
        """
        if x.ndim != 3:
            raise ShapeError("audio", tuple(x.shape), "(B, T, S): one row of samples a segment",
                             "Give mono audio cut into segments, not tiled.")
        spectrogram = self.fbank(x.flatten(0, 1))
        if self.axes == "time_mel":
            spectrogram = spectrogram.transpose(2, 3)
        return self._begin(self.conv(spectrogram), x.shape[1])
