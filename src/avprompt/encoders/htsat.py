"""HTS-AT (Chen et al., ICASSP 2022; laion-clap's class) as a frozen encoder, with its audio front end."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import (
    AudioInput,
    BlockSpec,
    FrozenEncoder,
    PatchMerge,
    Stage,
    SwinBlock,
    read_weights,
    without_autocast,
)
from avprompt.encoders.mel import without_librosa
from avprompt.errors import ArgumentError, ShapeError
from avprompt.precision import wide
from avprompt.ranges import Count, Positive


def htsat_module() -> ModuleType:
    """laion-clap's module that holds HTS-AT, imported without the package's own start-up.

    `import laion_clap` asks a model hub for tokenizers and stalls for minutes offline; the two package objects are
    therefore put in place unexecuted.
    """
    for name in ("laion_clap", "laion_clap.clap_module"):
        if name not in sys.modules:
            module = ModuleType(name)
            if name == "laion_clap":
                module.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
            else:
                module.__path__ = [str(Path(sys.modules["laion_clap"].__path__[0]) / "clap_module")]
            sys.modules[name] = module
    return importlib.import_module("laion_clap.clap_module.htsat")


@dataclass(frozen=True)
class FrontEnd:
    """Log-mel settings in the names that HTS-AT's class reads; the defaults are the AudioSet model's.

    Args:
        sample_rate: Hz.
        window_size: samples of an STFT window.
        hop_size: samples between two frames.
        mel_bins: mel bands.
        fmin: lowest frequency in Hz.
        fmax: highest frequency in Hz.
        mel_scale: `slaney` (his scale, bands of equal area) or `htk` (HTK's, bands of equal height).
        bank_rate: Hz that the mel bank is made for, where that is not the audio's own rate.
    """

    sample_rate: int = 32000
    window_size: int = 1024
    hop_size: int = 320
    mel_bins: int = 64
    fmin: int = 50
    fmax: int = 14000
    mel_scale: Literal["slaney", "htk"] = "slaney"
    bank_rate: int | None = None


class HTSAT(FrozenEncoder):
    """Frozen HTS-AT over waveform segments; the default is the AudioSet model that DG-SCT uses, at 32 kHz.

    Each segment is repeated to the clip's length, turned into a log-mel spectrogram in float32, normalised by `bn0`,
    stretched to the network's width and folded into a square image, as in the released code. The classification head,
    the token-semantic module and, unless `final_norm`, the last norm are not built: no audio-visual task uses them.

    Args:
        pretrained: `none` or a local file in one of the published layouts: HTS-AT's own Lightning checkpoint (names
            behind `sed_model.`, e.g. `HTSAT_AudioSet_Saved_1.ckpt`), LAION-CLAP's (`module.audio_branch.`), or bare
            names. No library serves these weights under a tag.
        repeat: copies of a segment that fill the spectrogram; `None` is the clip's number of segments, as released.
        final_norm: apply HTS-AT's last norm (the released downstream networks do not).
        frozen: see `FrozenEncoder`.
        released_mode: see `FrozenEncoder`; also turns SpecAugment on in train mode.
        mixup: with `released_mode`, mix each segment's spectrogram in training with that of the batch's mirrored
            place, by a weight from Beta(0.5, 0.5); labels are not mixed. The released AVVP, AVS and AVQA procedures do.
        seconds: length of a segment.

    Raises:
        ArgumentError: `mixup` without `released_mode`.
        WeightsError: the file is missing, or of another architecture.

    >>> import torch
    >>> with torch.device("meta"):  # sizes alone; drop this line for a network with weights
    ...     encoder = HTSAT()
    >>> encoder.input
    AudioInput(sample_rate=32000, seconds=1.0)
    >>> [stage.blocks[0].spec.grid for stage in encoder.stages]
    [(64, 64), (32, 32), (16, 16), (8, 8)]
    """

    library_names = (
        (r"^stages\.(\d+)\.merge\.", r"layers.\1.downsample."),
        (r"^stages\.", "layers."),
        (r"\.feed_forward\.", ".mlp."),
    )
    prefixes = ("sed_model.", "module.audio_branch.", "audio_branch.")
    constants = ("spectrogram_extractor.", "logmel_extractor.")
    drop_path = 0.1
    front_end = FrontEnd()
    #: arguments of laion-clap's class; empty is the AudioSet model's
    sizes: dict[str, object] = {}

    def __init__(
        self,
        pretrained: str = "none",
        repeat: Count | None = None,
        final_norm: bool = False,
        frozen: bool = True,
        released_mode: bool = False,
        mixup: bool = False,
        seconds: Positive = 1.0,
    ) -> None:
        super().__init__(frozen, released_mode)
        if mixup and not released_mode:
            raise ArgumentError("mixup", mixup, "released_mode: true beside it", "Set both, or neither.")
        self.repeat, self.mixup = repeat, mixup
        self._take_apart(self._build(self.front_end, **self.sizes), final_norm)
        self.input = AudioInput(self.front_end.sample_rate, seconds)
        self._load(pretrained)
        self.freeze()

    def _build(self, front_end: FrontEnd, **sizes: object) -> nn.Module:
        # torchlibrosa builds its filters with numpy, which the meta device cannot hold
        with torch.device("cpu"), without_librosa(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.meshgrid")  # laion-clap's call leaves the order open
            bank = replace(front_end, sample_rate=front_end.bank_rate or front_end.sample_rate)
            net = htsat_module().HTSAT_Swin_Transformer(config=bank, num_classes=1, **sizes)
            net.config = front_end
            if front_end.mel_scale == "htk":
                bins = bank.window_size // 2 + 1
                net.logmel_extractor.melW.data = torchaudio.functional.melscale_fbanks(
                    bins, float(bank.fmin), float(bank.fmax), bank.mel_bins, bank.sample_rate, mel_scale="htk"
                )
            return net

    def _take_apart(self, net: nn.Module, final_norm: bool) -> None:
        self.front_end, self.spec_size, self.freq_ratio = net.config, net.spec_size, net.freq_ratio
        self.spectrogram_extractor, self.logmel_extractor = net.spectrogram_extractor, net.logmel_extractor
        self.spec_augmenter, self.bn0, self.patch_embed = net.spec_augmenter, net.bn0, net.patch_embed
        self.norm = net.norm if final_norm else None
        self.unused_weights = ("tscam_conv.", "head.") + (() if final_norm else ("norm.",))
        depth, stages, index = sum(len(layer.blocks) for layer in net.layers), [], 0
        for number, layer in enumerate(net.layers):
            blocks = []
            for block in layer.blocks:
                rate = self.drop_path * index / max(1, depth - 1)
                blocks.append(SwinBlock(block, BlockSpec(block.dim, block.input_resolution, number), rate))
                index += 1
            merge = None if layer.downsample is None else PatchMerge(layer.downsample, blocks[-1].spec.grid, True)
            stages.append(Stage(blocks, merge))
        self.stages = nn.ModuleList(stages)
        self.to(torch.get_default_device())

    def _load(self, pretrained: str) -> None:
        if pretrained == "none" or self.is_meta():
            return
        weights = read_weights(pretrained, "audio.pretrained")
        for prefix in self.prefixes:
            if any(name.startswith(prefix) for name in weights):
                weights = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
                break
        self.load_htsat_weights(weights, pretrained)

    def load_htsat_weights(self, weights: dict[str, Tensor], source: str | Path) -> None:
        """Load a state dict in laion-clap's naming; the front end's constants may be present or absent.

        Raises:
            WeightsError: keys or shapes do not belong to this architecture.
        """
        weights = {
            name: value
            for name, value in weights.items()
            if not name.endswith(("attn_mask", "relative_position_index"))
        }
        self.load_library_weights(weights, source)

    def log_mel(self, waveform: Tensor, repeats: int) -> Tensor:
        """(B*T, S) waveform in [-1, 1], repeated -> log-mel (B*T, 1, frames, mel_bins) in dB, after `bn0`, float32 or wider.

        A repeated segment has a periodic spectrogram: where a segment holds a whole number of hops, three periods are
        transformed and the inner one is repeated, which is exact and saves most of the STFT.
        """
        hop, window, samples = self.front_end.hop_size, self.front_end.window_size, waveform.shape[-1]
        period, periodic = samples // hop, samples % hop == 0 and samples >= window
        with without_autocast(waveform.device):
            transformed = min(repeats, 3) if periodic else repeats
            mel = self.logmel_extractor(self.spectrogram_extractor(wide(waveform).repeat(1, transformed)))
            if transformed < repeats:
                inner = mel[:, :, period : 2 * period].repeat(1, 1, repeats - 2, 1)
                mel = torch.cat((mel[:, :, :period], inner, mel[:, :, 2 * period :]), dim=2)
            return self.bn0(mel.transpose(1, 3)).transpose(1, 3)

    def fold(self, mel: Tensor) -> Tensor:
        """(B*T, 1, frames, mel_bins) -> square image (B*T, 1, spec_size, spec_size): time cut in chunks, stacked.

        Raises:
            ShapeError: the segment is longer than the network's spectrogram.
        """
        width, height = self.spec_size * self.freq_ratio, self.spec_size // self.freq_ratio
        if mel.shape[2] > width:
            raise ShapeError(
                "audio",
                f"{mel.shape[2]} spectrogram frames",
                f"at most {width}",
                "Use shorter segments or a smaller `repeat` of the audio encoder.",
            )
        if mel.shape[2:] != (width, height):
            mel = F.interpolate(mel, (width, height), mode="bicubic", align_corners=True)
        chunks = mel.transpose(2, 3).reshape(len(mel), 1, height, self.freq_ratio, self.spec_size)
        return chunks.transpose(2, 3).reshape(len(mel), 1, self.spec_size, self.spec_size)

    def stem(self, x: Tensor) -> Tensor:
        mel = self.log_mel(x.flatten(0, 1), self.repeat or x.shape[1])
        if self.training:
            mel = self.spec_augmenter(mel)
            if self.mixup:
                half = mel.new_full((), 0.5)  # on the device, and unchecked, which would wait for it
                share = torch.distributions.Beta(half, half, validate_args=False).sample((len(mel), 1, 1, 1))
                mel = share * mel + (1 - share) * mel.flip(0)
        return self.patch_embed(self.fold(mel))

    def finalize(self, tokens: Tensor) -> Tensor:
        return tokens if self.norm is None else self.norm(tokens)


def is_constant(name: str) -> bool:
    """Whether a state-dict entry is a constant of the front end that a weights file may leave out."""
    return name.startswith(HTSAT.constants)
