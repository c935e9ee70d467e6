"""The real encoder classes at laptop size, with weights that ship: pretrained on synthetic scenes by
`python -m avprompt.synthetic.pretrain`, Swin-V2 and HTS-AT each on its own modality alone, CLIP and CLAP with
captions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from avprompt.encoders.clap import CLAPAudio, read_clap_weights
from avprompt.encoders.clip import CLIP
from avprompt.encoders.fbank import Fbank
from avprompt.encoders.htsat import HTSAT, FrontEnd
from avprompt.encoders.swin import SwinV2
from avprompt.encoders.text import CLAPText, CLIPText
from avprompt.errors import ArgumentError
from avprompt.ranges import Count

#: colour means and deviations of every tiny encoder: frames in [-1, 1]
HALF = (0.5, 0.5, 0.5)
WEIGHTS = Path(__file__).parent / "weights"
PATCH, DIM, DEPTHS, HEADS = 8, 40, (2, 2), (4, 8)
TINY_FRONT_END = FrontEnd(sample_rate=16000, window_size=512, hop_size=160, mel_bins=32, fmin=50, fmax=8000)
TINY_SIZES = {
    "spec_size": 64,
    "patch_size": PATCH,
    "patch_stride": (PATCH, PATCH),
    "embed_dim": DIM,
    "depths": list(DEPTHS),
    "num_heads": list(HEADS),
}
#: sizes of the tiny CLIP and the tiny text towers; JOINT is the width of the spaces that two towers share
CLIP_DIM, CLIP_DEPTH, TEXT_DIM, TEXT_DEPTH, CONTEXT, JOINT = 96, 4, 64, 2, 32, 64
#: 64 bands x 64 columns a second, CLIP's grid over frames; mean and deviation of 200 synthetic scenes
TINY_FBANK = Fbank(mel_bins=64, frames=64, shift_ms=15.0, mean=-3.6161, std=3.3997)
#: every word that the tiny text towers know; their weights depend on the order. `x` stands for a learned vector.
WORDS = [
    ".",
    ",",
    "x",
    "a",
    "an",
    "the",
    "of",
    "in",
    "and",
    "is",
    "there",
    "this",
    "photo",
    "picture",
    "image",
    "sound",
    "sounds",
    "background",
    "disc",
    "square",
    "triangle",
    "plus",
    "ring",
    "star",
    "bar",
    "hourglass",
    "red",
    "blue",
    "yellow",
    "green",
    "purple",
    "white",
]


class TinySwinV2(SwinV2):
    """Swin-V2 over 64 x 64 frames (normalised with mean and deviation 0.5): grids 8 x 8 and 4 x 4, width 40 and 80.

    Args:
        pretrained: `synthetic` (shipped), `none`, or a local file.
        frozen: see `FrozenEncoder`.
        released_mode: see `FrozenEncoder`.
        fbank: see `SwinV2`; by default the spectrogram has the frames' size.
        audio_axes: see `SwinSpectrogram`.

    >>> import torch
    >>> TinySwinV2()(torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)).shape
    torch.Size([2, 16, 80])
    """

    def __init__(
        self,
        pretrained: str = "synthetic",
        frozen: bool = True,
        released_mode: bool = False,
        fbank: Fbank = TINY_FBANK,
        audio_axes: Literal["mel_time", "time_mel"] = "time_mel",
    ) -> None:
        shipped = str(WEIGHTS / "tiny_swinv2.safetensors") if pretrained == "synthetic" else pretrained
        super().__init__("tiny", shipped, frozen, released_mode, HALF, HALF, fbank, audio_axes)

    def _build(self, model: str) -> SwinTransformerV2:
        return SwinTransformerV2(
            img_size=64, patch_size=PATCH, num_classes=0, embed_dim=DIM, depths=DEPTHS, num_heads=HEADS, window_size=8
        )


class TinyHTSAT(HTSAT):
    """HTS-AT over one-second segments at 16 kHz, 32 mel bands: grids 8 x 8 and 4 x 4, width 40 and 80.

    Args:
        pretrained: `synthetic` (shipped), `none`, or a local file.
        frozen: see `FrozenEncoder`.
        released_mode: see `FrozenEncoder`.

    >>> import torch
    >>> TinyHTSAT()(torch.zeros(1, 2, 16000)).shape
    torch.Size([2, 16, 80])
    """

    front_end, sizes = TINY_FRONT_END, TINY_SIZES

    def __init__(self, pretrained: str = "synthetic", frozen: bool = True, released_mode: bool = False) -> None:
        shipped = str(WEIGHTS / "tiny_htsat.safetensors") if pretrained == "synthetic" else pretrained
        super().__init__(shipped, repeat=1, frozen=frozen, released_mode=released_mode)


class TinyCLIP(CLIP):
    """CLIP's vision transformer over 64 x 64 frames (normalised with mean and deviation 0.5): grid 8 x 8, width 96.

    Args:
        pretrained: `synthetic` (shipped), `none`, or a local file.
        segments: see `CLIP`.
        train_norm: see `CLIP`.
        projection: see `CLIP`; the joint space has width 64.
        fbank: see `CLIP`; by default the spectrogram has the frames' grid.
        audio_axes: see `CLIP`.
        audio_class_token: see `CLIP`.
        frozen: see `FrozenEncoder`.

    >>> import torch
    >>> clip = TinyCLIP(projection=True)
    >>> clip.project(clip(torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8))[:, 0]).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        pretrained: str = "synthetic",
        segments: Count | None = None,
        train_norm: bool = False,
        projection: bool = False,
        fbank: Fbank = TINY_FBANK,
        audio_axes: Literal["mel_time", "time_mel"] = "mel_time",
        audio_class_token: bool = False,
        frozen: bool = True,
    ) -> None:
        shipped = str(WEIGHTS / "tiny_clip.safetensors") if pretrained == "synthetic" else pretrained
        super().__init__(
            "tiny",
            shipped,
            True,
            segments,
            train_norm,
            projection,
            fbank,
            audio_axes,
            audio_class_token,
            frozen,
            HALF,
            HALF,
        )

    def _build(self, model: str) -> nn.Module:
        from open_clip.transformer import VisionTransformer  # takes seconds: only where a CLIP is asked for

        return VisionTransformer(64, PATCH, CLIP_DIM, CLIP_DEPTH, CLIP_DIM // 32, 4.0, output_dim=JOINT)


def word_ids(texts: Sequence[str], first: int, begin: int, end: int, padding: int) -> Tensor:
    """Texts in a vocabulary of the words `WORDS`, in upper or lower case.

    Args:
        texts: K sentences.
        first: id of the first word.
        begin: id before the words.
        end: id after the words.
        padding: id that fills the rows.

    Returns:
        (K, CONTEXT) int64.

    Raises:
        ArgumentError: a text is longer, or has a word that is not among `WORDS`.
    """
    ids = torch.full((len(texts), CONTEXT), padding)
    for row, text in zip(ids, texts):
        words = re.findall(r"[^\W_]+|[^\w\s]", text.lower())
        unknown = [word for word in words if word not in WORDS]
        if unknown:
            raise ArgumentError(
                "texts",
                f"{text!r} with {', '.join(map(repr, unknown))}",
                f"words among {' '.join(WORDS)}",
                "Tiny text towers know the words of synthetic scenes only; use a full-size one.",
            )
        if len(words) + 2 > CONTEXT:
            raise ArgumentError("texts", repr(text), f"at most {CONTEXT - 2} words", "Shorten it.")
        row[: len(words) + 2] = torch.tensor([begin, *(first + WORDS.index(word) for word in words), end])
    return ids


class TinyCLIPText(CLIPText):
    """CLIP's text transformer of 2 layers and width 64 over a vocabulary of words, the tiny CLIP's other tower.

    Args:
        pretrained: `synthetic` (shipped), `none`, or a local file.
        frozen: see `FrozenEncoder`.

    >>> TinyCLIPText()(["a photo of a red disc.", "a photo of a star."]).shape
    torch.Size([2, 64])
    """

    def __init__(self, pretrained: str = "synthetic", frozen: bool = True) -> None:
        shipped = str(WEIGHTS / "tiny_clip_text.safetensors") if pretrained == "synthetic" else pretrained
        super().__init__("tiny", shipped, True, frozen)

    def _build(self, model: str, activation: type[nn.Module]) -> nn.Module:
        from open_clip.transformer import TextTransformer

        return TextTransformer(
            CONTEXT, len(WORDS) + 3, TEXT_DIM, TEXT_DIM // 32, TEXT_DEPTH, output_dim=JOINT, act_layer=activation
        )

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """K texts -> token ids (K, 32) int64 on the CPU: begin, words, end, zeros.

        Raises:
            ArgumentError: see `word_ids`.
        """
        return word_ids(texts, 1, len(WORDS) + 1, len(WORDS) + 2, 0)


def _projection(width: int) -> nn.Sequential:
    """CLAP's map of a tower into the joint space, at tiny size."""
    return nn.Sequential(nn.Linear(width, JOINT), nn.ReLU(), nn.Linear(JOINT, JOINT))


class TinyCLAP(CLAPAudio):
    """CLAP's audio tower over one-second segments at 16 kHz, 32 mel bands: grids 8 x 8 and 4 x 4; joint width 64.

    Args:
        pretrained: `synthetic` (shipped), `none`, or a local file.
        frozen: see `FrozenEncoder`.
        released_mode: see `FrozenEncoder`.

    >>> import torch
    >>> clap = TinyCLAP()
    >>> clap.project(clap(torch.zeros(1, 2, 16000)).mean(1)).shape
    torch.Size([2, 64])
    """

    def __init__(self, pretrained: str = "synthetic", frozen: bool = True, released_mode: bool = False) -> None:
        shipped = str(WEIGHTS / "tiny_clap.safetensors") if pretrained == "synthetic" else pretrained
        super().__init__("tiny", shipped, "unfused", 1, frozen, released_mode)

    def _build(self, front_end: FrontEnd, **sizes: object) -> nn.Module:
        return super()._build(TINY_FRONT_END, **TINY_SIZES)

    def _take_apart(self, net: nn.Module, final_norm: bool) -> None:
        super()._take_apart(net, final_norm)
        self.audio_projection = _projection(self.dim)


class TinyCLAPText(CLAPText):
    """RoBERTa of 2 layers and width 64 over a vocabulary of words, the tiny CLAP's other tower; it needs no tokenizer.

    Args:
        pretrained: `synthetic` (shipped), `none`, or a local file.
        frozen: see `FrozenEncoder`.

    >>> TinyCLAPText()(["the sounds of disc", "the sounds of star"]).shape
    torch.Size([2, 64])
    """

    context_length = CONTEXT

    def __init__(self, pretrained: str = "synthetic", frozen: bool = True) -> None:
        super().__init__("none", None, frozen)
        self.text_projection = _projection(TEXT_DIM)
        if pretrained != "none" and not self.is_meta():
            shipped = str(WEIGHTS / "tiny_clap.safetensors") if pretrained == "synthetic" else pretrained
            self.load_library_weights(read_clap_weights(shipped, "text.pretrained"), shipped)
        self.freeze()

    def _build(self, **sizes: int) -> nn.Module:
        return super()._build(
            vocab_size=len(WORDS) + 3,
            max_position_embeddings=CONTEXT + 2,
            hidden_size=TEXT_DIM,
            num_hidden_layers=TEXT_DEPTH,
            num_attention_heads=TEXT_DIM // 32,
            intermediate_size=4 * TEXT_DIM,
        )

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """K texts -> token ids (K, 32) int64 on the CPU: begin 0, words, end 2, padding 1.

        Raises:
            ArgumentError: see `word_ids`.
        """
        return word_ids(texts, 3, 0, 2, 1)
