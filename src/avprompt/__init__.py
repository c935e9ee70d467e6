"""avprompt: parameter-efficient prompting of frozen image and audio encoders for audio-visual learning.

The names below are imported when they are first asked for, so that `import avprompt` takes no torch.

Example:
    >>> import torch
    >>> from avprompt import AVPromptBackbone, DGSCT, TinyHTSAT, TinySwinV2
    >>> backbone = AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none"), DGSCT(num_tokens=4, reduction=4))
    >>> clips = {"frames": torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8), "audio": torch.zeros(1, 2, 16000)}
    >>> tuple(backbone(clips).audio.shape)
    (1, 2, 80)
"""

import importlib
from importlib import metadata

__version__ = metadata.version("avprompt")

#: module -> the public classes and functions that are found in it
_PUBLIC = {
    "avprompt.backbone": ("AVPromptBackbone",),
    "avprompt.features": ("AVFeatures",),
    "avprompt.encoders": ("CLIP", "HTSAT", "CLAPAudio", "SwinV2", "TinyCLAP", "TinyCLIP", "TinyHTSAT", "TinySwinV2"),
    "avprompt.methods": (
        "Adapters",
        "AVMoE",
        "AVSTFP",
        "DGSCT",
        "DGSCTFewShot",
        "DGSCTPaper",
        "CoCoOp",
        "CoOp",
        "CoPLLike",
        "FineTuning",
        "LAVISH",
        "LoRA",
        "MBT",
        "MaPLe",
        "MettleLike",
        "MoLTLike",
        "MoMALike",
        "NoPrompts",
        "PromptMethod",
        "PromptState",
        "STGCMA",
        "VPT",
    ),
    "avprompt.tasks": (
        "AVAR",
        "AVE",
        "AVEClassic",
        "AVELinear",
        "AVPromptTask",
        "AVQA",
        "AVQAGrounding",
        "AVS",
        "AVVP",
        "Contrastive",
    ),
    "avprompt.sharing": ("load",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604  its keys are strings


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
