"""What timm knows of its models: architectures, colour statistics, tags of weights."""

from __future__ import annotations

from difflib import get_close_matches

import timm
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from avprompt.encoders.base import VisualInput, is_path, read_weights
from avprompt.errors import ArgumentError, WeightsError


def near(word: str, words: list[str]) -> str:
    """The likeliest of `words` for a misspelt one, for an error message."""
    return ", ".join(get_close_matches(word, words, 5, 0.5)) or f"none is near among {len(words)}"


def build_timm(model: str, kinds: tuple[type[nn.Module], ...], **options: object) -> nn.Module:
    """timm's network without a classifier, with random weights.

    Args:
        model: architecture as timm names it, without tag.
        kinds: classes that it may be of, not their subclasses.
        options: for timm's class, such as `img_size`.

    Raises:
        ArgumentError: timm does not know the architecture, or it is of another class.
    """
    if not timm.is_model(model):
        raise ArgumentError(
            "model",
            model,
            f"an architecture of timm; near it: {near(model, timm.list_models())}",
            "`timm.list_models()` lists all.",
        )
    net = timm.create_model(model, pretrained=False, num_classes=0, **options)
    if type(net) not in kinds:
        raise ArgumentError(
            "model",
            f"{model}, a {type(net).__name__}",
            f"a {' or '.join(kind.__name__ for kind in kinds)}",
            "Choose another architecture, or the encoder class that takes this one.",
        )
    return net


def timm_input(
    model: str,
    tag: str,
    size: tuple[int, int],
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> VisualInput:
    """The frames of a timm model: colour statistics of a tag of its weights, where `mean` and `std` do not say
    otherwise.

    Args:
        model: architecture, without tag.
        tag: of the weights; `none` or a file is the architecture's first tag.
        size: height and width that the network was built for.
        mean: of red, green and blue, or `None`.
        std: likewise.

    Raises:
        WeightsError: no such tag.
        ArgumentError: timm has no statistics of the architecture and none are given.
    """
    named = "" if tag == "none" or is_path(tag) else tag
    tags = [name.partition(".")[2] for name in timm.list_models(f"{model}.*", include_tags=True)]
    if named and named not in tags:
        raise WeightsError(
            "pretrained",
            tag,
            f"none, a local file, or a tag of {model}: {', '.join(sorted(tags))}",
            "Correct the tag, or give the path of a file.",
        )
    known = get_pretrained_cfg(f"{model}.{named}" if named else model, allow_unregistered=True)
    if known is None and (mean is None or std is None):
        raise ArgumentError("mean, std", None, f"three numbers each, as timm has none of {model}", "Give both.")
    mean, std = known.mean if mean is None else mean, known.std if std is None else std
    return VisualInput(*size, tuple(mean), tuple(std), known.interpolation if known else "bicubic")


def timm_weights(model: str, pretrained: str, **options: object) -> dict[str, Tensor]:
    """The state dict of a local file, as it is, or of a tag, which timm fetches, in timm's naming.

    Args:
        model: architecture, without tag.
        pretrained: the tag or the file.
        options: those that the network was built with.

    Raises:
        WeightsError: the tag cannot be fetched, or the file is missing or broken.
    """
    if is_path(pretrained):
        return read_weights(pretrained, "visual.pretrained")
    try:
        net = timm.create_model(f"{model}.{pretrained}", pretrained=True, num_classes=0, **options)
    except (RuntimeError, OSError) as error:
        raise WeightsError(
            "visual.pretrained",
            f"{pretrained} ({error})",
            f"a timm tag of {model} that can be fetched",
            f"On a machine without network, download timm/{model}.{pretrained} elsewhere and give the file's path.",
        ) from error
    return net.state_dict()
