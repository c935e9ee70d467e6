"""CLIP's vision transformers (Radford et al., 2021; open_clip's class and weights) as frozen encoders."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import BlockSpec, FeedForward, Stage, VisualInput, is_path, read_weights
from avprompt.encoders.fbank import Fbank
from avprompt.encoders.plain_vit import ImageViT, PlainAttention, PlainViTBlock, ViTSpectrogram, linear_of
from avprompt.errors import ArgumentError, WeightsError
from avprompt.ranges import Count, Number, Positive

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
        raise ArgumentError(
            "model",
            model,
            "a plain vision transformer of open_clip, such as ViT-B-16 or ViT-L-14",
            "Write it as open_clip does, without `-quickgelu`.",
        )
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
    if is_path(pretrained):
        weights = _read_archive(pretrained) if _is_torchscript(Path(pretrained)) else read_weights(pretrained, key)
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
        return {
            name: value.float() if value.is_floating_point() else value
            for name, value in weights.items()
            if name not in OPENAI_SIZES
        }
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained not in tags:
        raise WeightsError(
            key,
            pretrained,
            f"none, a local file, or a tag of {model}: {', '.join(tags)}",
            "Correct the tag, or give the path of a file.",
        )
    trained_with = bool(open_clip.get_pretrained_cfg(model, pretrained).get("quick_gelu", False))
    if trained_with is not quick_gelu:
        raise ArgumentError(
            "quick_gelu",
            quick_gelu,
            f"{trained_with}, the activation of {model} {pretrained}",
            "Set it so; with the other one the weights give wrong features without a word.",
        )
    try:
        return open_clip.create_model(model, pretrained, force_quick_gelu=quick_gelu).state_dict()
    except (RuntimeError, OSError) as error:
        raise WeightsError(
            key,
            f"{pretrained} ({error})",
            f"a tag of {model} that can be fetched",
            "On a machine without network, download the file elsewhere and give its path.",
        ) from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


#: functions of TorchScript's pickles that return the list or value that they are given
_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")


def _as_given(value: Any, *rest: Any) -> Any:
    return value


class _Scripted:
    """Stands in for a module of a TorchScript archive, whose own class would be compiled from the code in it."""


def _read_archive(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a TorchScript archive, as which OpenAI publishes CLIP, without running anything of it.

    It is a zip file of tensors, of code, and of a pickle that puts modules together. The code is left out, modules are
    empty stand-ins, and `torch.load` reads the rest with `weights_only`.

    Raises:
        WeightsError: the archive is damaged, or its pickle names anything but modules, tensors and plain data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: info for info in archive.infolist()}
            root = next(name for name in records if name.endswith("/data.pkl")).removesuffix("data.pkl")
            kept = [
                name
                for name in records
                if name.startswith((f"{root}data/", f"{root}data.pkl", f"{root}version", f"{root}byteorder"))
            ]
            if any(records[name].compress_type != zipfile.ZIP_STORED for name in kept):
                raise ValueError("compressed tensors, which no such archive has")
            codes = pickletools.genops(archive.read(f"{root}data.pkl"))
            names = {argument.replace(" ", ".") for code, argument, _ in codes if code.name == "GLOBAL"}
            plain = io.BytesIO()
            with zipfile.ZipFile(plain, "w") as copy:
                for name in kept:
                    copy.writestr(name, archive.read(name))
        stand_ins = {name: type("Scripted", (_Scripted,), {}) for name in names if name.startswith("__torch__.")}
        plain.seek(0)
        lists = [(_as_given, f"torch.jit._pickle.{name}") for name in _LISTS]
        with torch.serialization.safe_globals([*((kind, name) for name, kind in stand_ins.items()), *lists]):
            return _tensors(torch.load(plain, map_location="cpu", weights_only=True))
    except (
        OSError,
        ValueError,
        KeyError,
        StopIteration,
        RuntimeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        EOFError,
        RecursionError,
    ) as error:
        unknown = re.search(r"GLOBAL \S+", str(error))  # of a message of many lines
        raise WeightsError(
            path,
            unknown[0] if unknown else f"{type(error).__name__}: {error}",
            "a TorchScript archive of tensors and modules",
            "Check the download. Otherwise, where you trust the file, convert it: "
            "torch.save(torch.jit.load(FILE).state_dict(), OUT)",
        ) from error


def _tensors(module: Any, prefix: str = "") -> dict[str, Tensor]:
    found = {}
    for name, value in vars(module).items() if isinstance(module, _Scripted) else ():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        else:
            found |= _tensors(value, f"{prefix}{name}.")
    return found


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), as SiLU: keeps one tensor for the backward pass instead of two."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, elementwise."""
        return F.silu(1.702 * x) / 1.702


def clip_input(
    model: str,
    pretrained: str,
    size: tuple[int, int],
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> VisualInput:
    """The frames of a CLIP: open_clip's preprocessing of a tag, where `mean` and `std` do not say otherwise.

    Args:
        model: architecture, as open_clip names it.
        pretrained: tag of the weights; `none` and files are preprocessed as OpenAI's.
        size: height and width that the network was built for.
        mean: of red, green and blue, or `None`.
        std: likewise.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg

    tag = {} if pretrained == "none" or is_path(pretrained) else open_clip.get_pretrained_cfg(model, pretrained)
    known = PreprocessCfg(**{name: tag[name] for name in ("mean", "std", "interpolation") if name in tag})
    return VisualInput(
        *size,
        tuple(known.mean if mean is None else mean),
        tuple(known.std if std is None else std),
        known.interpolation,
    )


def _block(library: nn.Module, spec: BlockSpec, activation: nn.Module | None) -> PlainViTBlock:
    """open_clip's block under our names; `activation` replaces its own."""
    attn, mlp = library.attn, library.mlp
    attention = PlainAttention(
        attn.num_heads,
        linear_of(attn.out_proj.weight, attn.out_proj.bias),
        linear_of(attn.in_proj_weight, attn.in_proj_bias),
    )
    feed_forward = FeedForward(mlp.c_fc, activation or mlp.gelu, mlp.c_proj)
    return PlainViTBlock(spec, library.ln_1, attention, library.ln_2, feed_forward)


class CLIP(ImageViT):
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
        fbank: spectrogram of the audio side where the backbone has `audio: shared`, see `ViTSpectrogram`.
        audio_axes: see `ViTSpectrogram`.
        audio_class_token: see `ViTSpectrogram`.
        frozen: see `FrozenEncoder`.
        mean: of red, green and blue in [0, 1]; `None` is open_clip's for these weights. STG-CMA and DG-SCT's
            few-shot code feed OpenAI's weights with ImageNet's, which their `_released` configurations say here.
        std: likewise.

    Raises:
        ArgumentError: unknown architecture, or a tag of the other activation.
        WeightsError: the tag is unknown or cannot be fetched, or the file is missing or of another architecture.

    >>> import torch
    >>> with torch.device("meta"):  # sizes alone; drop this line for a network with weights
    ...     encoder = CLIP("ViT-B-32", pretrained="openai", projection=True)
    >>> encoder.input.height, encoder.input.mean[0], encoder.stages[0].blocks[0].spec.grid
    (224, 0.48145466, (7, 7))
    """

    apart = ("projection",)
    library_names = (
        (r"^conv\.", "conv1."),
        (r"^positions$", "positional_embedding"),
        (r"^projection$", "proj"),
        (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."),
        (r"^stages\.0\.blocks\.", "transformer.resblocks."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.feed_forward\.fc1\.", ".mlp.c_fc."),
        (r"\.feed_forward\.fc2\.", ".mlp.c_proj."),
    )

    def __init__(
        self,
        model: str = "ViT-B-16",
        pretrained: str = "none",
        quick_gelu: bool = True,
        segments: Count | None = None,
        train_norm: bool = False,
        projection: bool = False,
        fbank: Fbank = Fbank(),
        audio_axes: Literal["mel_time", "time_mel"] = "mel_time",
        audio_class_token: bool = False,
        frozen: bool = True,
        mean: tuple[Number, Number, Number] | None = None,
        std: tuple[Positive, Positive, Positive] | None = None,
    ) -> None:
        super().__init__(frozen)
        self.listening: dict[str, Any] = {"fbank": fbank, "axes": audio_axes, "class_token": audio_class_token}
        net = self._build(model)
        self._take_apart(net, quick_gelu, projection)
        self.input = clip_input(model, pretrained, tuple(net.image_size), mean, std)
        if pretrained != "none" and not self.is_meta():
            self.load_clip_weights(read_clip_weights(model, pretrained, quick_gelu, "pretrained"), pretrained)
        self._add_trained(segments, train_norm)
        self.freeze()

    def _build(self, model: str) -> nn.Module:
        from open_clip.transformer import VisionTransformer

        config = architecture(model)
        sizes = config["vision_cfg"]
        return VisionTransformer(
            sizes["image_size"],
            sizes["patch_size"],
            sizes["width"],
            sizes["layers"],
            sizes["width"] // sizes.get("head_width", 64),
            4.0,
            output_dim=config["embed_dim"],
        )

    def _take_apart(self, net: nn.Module, quick_gelu: bool, projection: bool) -> None:
        self.conv, self.norm_pre, self.norm = net.conv1, net.ln_pre, net.ln_post
        self.class_embedding, self.positions = net.class_embedding, net.positional_embedding
        self.projection = net.proj if projection else None
        self.register_buffer("logit_scale", None, persistent=False)
        self.unused_weights = () if projection else ("proj",)
        spec = BlockSpec(self.conv.out_channels, tuple(net.grid_size), 0, prefix=1)
        activation = QuickGELU() if quick_gelu else None
        self.stages = nn.ModuleList([Stage([_block(block, spec, activation) for block in net.transformer.resblocks])])

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

    def project(self, features: Tensor) -> Tensor:
        """Class tokens after the final norm (..., C) -> CLIP's joint space (..., E), not normalised.

        Raises:
            ArgumentError: built without `projection`.
        """
        if self.projection is None:
            raise ArgumentError(
                "projection", False, "true, for a task that compares with text", "Set it on the visual encoder."
            )
        return features @ self.projection

    def listener(self) -> ViTSpectrogram:
        """The same frozen transformer over spectrograms: what `audio: shared` stands for."""
        return ViTSpectrogram(self, **self.listening)
