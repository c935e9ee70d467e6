"""LAION-CLAP's audio tower (Wu et al., ICASSP 2023; laion-clap's weights) behind the frozen-encoder contract."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from avprompt.encoders.base import read_weights
from avprompt.encoders.htsat import HTSAT, FrontEnd
from avprompt.errors import ArgumentError, WeightsError
from avprompt.ranges import Count, Positive

#: what turns waveforms into what the weights were trained on (`released`: into what DG-SCT's few-shot code gives them)
FRONT_ENDS = {
    "released": FrontEnd(sample_rate=32000, hop_size=320, bank_rate=48000),
    "fused": FrontEnd(sample_rate=48000, hop_size=480, mel_scale="htk"),
    "unfused": FrontEnd(sample_rate=48000, hop_size=480),
}
SIZES = {"tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2]}, "base": {"embed_dim": 128, "depths": [2, 2, 12, 2]}}
#: width of the space that CLAP's audio and text share
JOINT = 512
#: tensors that only clips of more than ten seconds meet
FUSION = ("audio_branch.patch_embed.mel_conv2d.", "audio_branch.patch_embed.fusion_model.")
TEXT = ("text_branch.", "text_projection.", "text_transform.", "logit_scale_t")


def read_clap_weights(pretrained: str | Path, key: str) -> dict[str, Tensor]:
    """All tensors of a LAION-CLAP file (`630k-*.pt`, `music_*.pt`) in laion-clap's naming, without `module.`.

    Published files carry the optimizer's state, whose learning rates are numpy scalars: these are let through beside
    tensors and plain data, and nothing else is.

    Args:
        pretrained: local file: the training checkpoint as published, or a bare state dict (.pt, .safetensors).
        key: YAML key that named it, for the error message.

    Raises:
        WeightsError: no such file, broken, or holding more than that.
    """
    scalar = np.float64(0).__reduce__()[0]
    numpy_scalars = [
        (scalar, "numpy.core.multiarray.scalar"),
        scalar,
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "bool")),
    ]
    with torch.serialization.safe_globals(numpy_scalars):
        weights = read_weights(pretrained, key)
    return {name.removeprefix("module.").removeprefix("model."): value for name, value in weights.items()}


def projection(width: int) -> nn.Sequential:
    """CLAP's map (..., width) -> (..., 512) of either tower into their joint space."""
    return nn.Sequential(nn.Linear(width, JOINT), nn.ReLU(), nn.Linear(JOINT, JOINT))


class CLAPAudio(HTSAT):
    """Frozen audio tower of LAION-CLAP over waveform segments: HTS-AT with its last norm, and the audio projection.

    A segment of one second is repeated to ten. Weights of a fusion model serve as well: its second, local branch reads
    clips of more than ten seconds only, so a segment goes through the global branch, which is all that is built.

    Args:
        model: size of HTS-AT: `tiny` (12 blocks, width 96 to 768) or `base` (18 blocks, 128 to 1024).
        pretrained: `none` or a local file, see `read_clap_weights`. No library serves these weights under a tag.
        front_end: log-mel spectrogram. `fused` is what fusion models (`630k-*fusion-best.pt`) were trained on: 48 kHz,
            hop 480, HTK bands without norm; `unfused` what the others were: 48 kHz, hop 480, Slaney bands. `released`
            is that of the DG-SCT authors' few-shot code, a known defect: 32 kHz, hop 320, on the Slaney bank for
            48 kHz, with any weights.
        repeat: copies of a segment that fill the spectrogram.
        frozen: see `FrozenEncoder`.
        released_mode: see `FrozenEncoder`; also turns SpecAugment on in train mode.
        seconds: length of a segment.

    Raises:
        ArgumentError: unknown `model` or `front_end`.
        WeightsError: the file is missing, of another architecture, or was trained with another front end.

    >>> import torch
    >>> with torch.device("meta"):  # sizes alone; drop this line for a network with weights
    ...     encoder = CLAPAudio(front_end="fused")
    >>> encoder.input, encoder.dim
    (AudioInput(sample_rate=48000, seconds=1.0), 768)
    """

    apart = ("audio_projection.",)

    def __init__(
        self,
        model: Literal["tiny", "base"] = "tiny",
        pretrained: str = "none",
        front_end: Literal["released", "fused", "unfused"] = "fused",
        repeat: Count = 10,
        frozen: bool = True,
        released_mode: bool = False,
        seconds: Positive = 1.0,
    ) -> None:
        for name, value, table in (("model", model, SIZES), ("front_end", front_end, FRONT_ENDS)):
            if value not in table:
                raise ArgumentError(name, value, f"one of {', '.join(table)}", "Correct the audio encoder's arguments.")
        self.sizes, self.front_end = SIZES[model], FRONT_ENDS[front_end]  # what HTSAT builds itself from
        super().__init__(pretrained, repeat, True, frozen, released_mode, seconds=seconds)

    def _take_apart(self, net: nn.Module, final_norm: bool) -> None:
        super()._take_apart(net, final_norm)
        heads = (f"audio_branch.{name}" for name in self.unused_weights)
        self.unused_weights = (*heads, *FUSION, *TEXT, "audio_transform.")
        self.audio_projection = projection(net.num_features)
        self.register_buffer("logit_scale", torch.tensor(math.log(1 / 0.07)))

    def _load(self, pretrained: str) -> None:
        if pretrained != "none" and not self.is_meta():
            self.load_htsat_weights(read_clap_weights(pretrained, "audio.pretrained"), pretrained)

    def load_htsat_weights(self, weights: dict[str, Tensor], source: str | Path) -> None:
        """Load a CLAP's audio tower in laion-clap's naming; entries of its text tower are left alone.

        Raises:
            WeightsError: keys or shapes do not belong to this architecture, or a fusion model meets the front end of
                the others, or the reverse.
        """
        fusion, htk = any(name.startswith(FUSION) for name in weights), self.front_end.mel_scale == "htk"
        published = any(name.startswith(TEXT) for name in weights)  # a saved tower alone has lost its fusion tensors
        if published and self.front_end.bank_rate is None and fusion is not htk:
            kinds = {True: "fused", False: "unfused"}
            raise WeightsError(
                source,
                f"a CLAP trained with `front_end: {kinds[fusion]}`",
                f"one of `{kinds[htk]}`",
                f"Set the audio encoder's front_end to {kinds[fusion]}, or give another file.",
            )
        if htk:  # a fusion model holds the Slaney bank that it never uses: its spectrograms come from outside
            weights = {name: value for name, value in weights.items() if name != "audio_branch.logmel_extractor.melW"}
        super().load_htsat_weights(weights, source)

    def library_key(self, name: str) -> str:
        if name == "logit_scale":
            return "logit_scale_a"
        return name if name.startswith("audio_projection.") else f"audio_branch.{super().library_key(name)}"

    def project(self, features: Tensor) -> Tensor:
        """Mean over the tokens after the final norm (..., C) -> CLAP's joint space (..., 512), not normalised."""
        return self.audio_projection(features)
