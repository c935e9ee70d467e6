"""Encoders by name: `timm:vit_small_patch14_dinov2.lvd142m`, `open_clip:ViT-B-16/openai`, `ast:MIT/ast-...`."""

from __future__ import annotations

from typing import Any

from avprompt.encoders.base import FrozenEncoder
from avprompt.errors import ArgumentError

FORMS = (
    "timm:MODEL or timm:MODEL.TAG",
    "open_clip:MODEL or open_clip:MODEL/TAG",
    "ast or ast:OWNER/NAME",
    "dasheng:dasheng_base",
    "clap:tiny",
    "htsat",
    "a bare name of timm or open_clip",
)


def encoder_of_tag(tag: str, **options: object) -> FrozenEncoder:
    """The encoder that a short name stands for, with the weights that it names, or random ones where it names none.

    Args:
        tag: `LIBRARY:NAME`, where NAME is the library's own.

            `timm:MODEL.TAG` is a `TimmViT`, `SwinV1` or `SwinV2`; `open_clip:MODEL/TAG` a `CLIP`, with the tag's
            activation; a bare name is looked up in timm, then in open_clip. For sound, `ast:OWNER/NAME` is an
            `ASTransformer`, `dasheng:MODEL/zenodo` a `Dasheng`, `clap:MODEL` a `CLAPAudio` and `htsat` an `HTSAT`.
        options: further arguments of the class, such as `img_size` or `pretrained` for a local file of the weights.

    Raises:
        ArgumentError: unknown library or model; the message holds near matches.
        WeightsError: unknown tag of weights, or weights that cannot be fetched.

    >>> encoder = encoder_of_tag("timm:vit_tiny_patch16_224", img_size=32)
    >>> type(encoder).__name__, encoder.dim
    ('TimmViT', 192)
    >>> encoder_of_tag("timm:vit_tinny_patch16_224")
    Traceback (most recent call last):
    avprompt.errors.ArgumentError: model: got vit_tinny_patch16_224; expected an architecture of timm; near it: ...
    """
    if not isinstance(tag, str):
        raise ArgumentError(
            "encoder", type(tag).__name__, f"a FrozenEncoder, or a name: {'; '.join(FORMS)}", "Correct it."
        )
    library, colon, name = tag.partition(":")
    if not colon:
        library, name = (tag, "") if tag in ("ast", "htsat", "dasheng", "clap") else (_library_of(tag), tag)
    builders = {
        "timm": _timm,
        "open_clip": _open_clip,
        "ast": _ast,
        "dasheng": _dasheng,
        "clap": _clap,
        "htsat": _htsat,
    }
    if library not in builders:
        raise ArgumentError("encoder", tag, f"one of: {'; '.join(FORMS)}", "Correct the library before the colon.")
    return builders[library](name, options)


def _library_of(name: str) -> str:
    """Which library a bare name belongs to.

    Raises:
        ArgumentError: neither.
    """
    import timm

    if timm.is_model(name.partition(".")[0]):
        return "timm"
    import open_clip

    from avprompt.encoders.timm_library import near

    if name.partition("/")[0] in open_clip.list_models():
        return "open_clip"
    names = [*timm.list_models(), *open_clip.list_models()]
    raise ArgumentError(
        "encoder",
        name,
        f"a name of timm or open_clip; near it: {near(name.partition('.')[0], names)}",
        f"Correct it, or say which library: {'; '.join(FORMS)}.",
    )


def _timm(name: str, options: dict[str, Any]) -> FrozenEncoder:
    from timm.models import is_model_in_modules

    from avprompt.encoders.swin import SwinV1, SwinV2
    from avprompt.encoders.timm_vit import TimmViT

    model, _, weights = name.partition(".")
    families = {SwinV1: "swin_transformer", SwinV2: "swin_transformer_v2"}
    kind = next((kind for kind, module in families.items() if is_model_in_modules(model, [module])), TimmViT)
    if weights and "pretrained" in options:  # a file of them: the tag still says which colour statistics hold
        return kind(name, **options)
    return kind(model, **{"pretrained": weights or "none", **options})


def _open_clip(name: str, options: dict[str, Any]) -> FrozenEncoder:
    import open_clip

    from avprompt.encoders.clip import CLIP
    from avprompt.encoders.timm_library import near

    model, _, weights = name.partition("/")
    if model not in open_clip.list_models():
        raise ArgumentError(
            "model",
            model,
            f"a model of open_clip; near it: {near(model, open_clip.list_models())}",
            "`open_clip.list_models()` lists all.",
        )
    known = open_clip.get_pretrained_cfg(model, weights) if weights else {}
    activation = {"quick_gelu": bool(known.get("quick_gelu", False))} if known else {}
    return CLIP(model, **{"pretrained": weights or "none", **activation, **options})


def _ast(name: str, options: dict[str, Any]) -> FrozenEncoder:
    from avprompt.encoders.ast import ASTransformer

    return ASTransformer(**{"pretrained": name or "none", **options})


def _dasheng(name: str, options: dict[str, Any]) -> FrozenEncoder:
    from avprompt.encoders.dasheng import Dasheng

    model, _, weights = name.partition("/")
    return Dasheng(**{"model": model or "dasheng_base", "pretrained": weights or "none", **options})


def _clap(name: str, options: dict[str, Any]) -> FrozenEncoder:
    from avprompt.encoders.clap import CLAPAudio

    return CLAPAudio(**{"model": name or "tiny", **options})


def _htsat(name: str, options: dict[str, Any]) -> FrozenEncoder:
    from avprompt.encoders.htsat import HTSAT

    return HTSAT(**{"pretrained": name or "none", **options})
