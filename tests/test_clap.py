"""CLAP's audio tower: equal to laion-clap's own forward on each front end, and what the published files load into."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import replace

import librosa
import numpy as np
import pytest
import torch
import torchaudio
from safetensors.torch import save_file
from small import enliven
from torch import nn
from torchlibrosa.stft import DFTBase

from avprompt.encoders import CLAPAudio
from avprompt.encoders.base import sizes_alone
from avprompt.encoders.clap import FRONT_ENDS
from avprompt.encoders.htsat import FrontEnd, htsat_module
from avprompt.encoders.mel import fourier, hann, mel_bank
from avprompt.errors import ArgumentError, ShapeError, WeightsError

SMALL = {"spec_size": 32, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}


def coarse(front_end: FrontEnd) -> FrontEnd:
    """Ten seconds in 51 frames of 16 bands, at the real rates and on the real kinds of bank."""
    return replace(front_end, mel_bins=16, hop_size=20 * front_end.hop_size)


class SmallCLAP(CLAPAudio):
    """Two stages of 2 blocks, width 16 and 32."""

    def _build(self, front_end: FrontEnd, **sizes: object) -> nn.Module:
        return super()._build(coarse(front_end), **SMALL)


class SlimCLAP(CLAPAudio):
    """The whole spectrogram, two narrow stages."""

    def _build(self, front_end: FrontEnd, **sizes: object) -> nn.Module:
        return super()._build(front_end, embed_dim=8, depths=[1, 1], num_heads=[1, 1])


def laion_clap(monkeypatch: pytest.MonkeyPatch, front_end: str) -> nn.Module:
    """laion-clap's CLAP over small towers, with its own names and its own fusion where there is any."""
    htsat = htsat_module()
    from transformers import RobertaConfig, RobertaModel

    model = importlib.import_module("laion_clap.clap_module.model")
    config = coarse(FRONT_ENDS[front_end])
    config = replace(config, sample_rate=48000)  # their constructor's bank, whatever the audio
    fusion = {"enable_fusion": True, "fusion_type": "aff_2d"} if front_end == "fused" else {}
    small = RobertaConfig(
        vocab_size=300,
        hidden_size=768,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=90,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    unused = {"context_length": 77, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}  # CLIP's text tower's
    monkeypatch.setattr(RobertaModel, "from_pretrained", lambda name: RobertaModel(small))
    monkeypatch.setattr(
        model,
        "create_htsat_model",
        lambda *ignored: htsat.HTSAT_Swin_Transformer(config=config, num_classes=5, **SMALL, **fusion),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid")
        net = model.CLAP(32, {"model_type": "HTSAT"}, {"model_type": "roberta", **unused}, **fusion)
    enliven(net, seed=3)
    nn.init.uniform_(net.audio_branch.bn0.running_mean, -30, 10)
    nn.init.uniform_(net.audio_branch.bn0.running_var, 50, 200)
    nn.init.constant_(net.logit_scale_a, 3.5)
    return net.eval()


def published(net: nn.Module) -> dict[str, object]:
    """A training checkpoint as laion-clap writes it, with what newer libraries no longer keep."""
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    state["module.text_branch.embeddings.position_ids"] = torch.arange(90)[None]
    optimizer = {
        "state": {0: {"step": 5, "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": np.float64(1e-4), "betas": (0.9, 0.999), "params": [0]}],
    }
    return {"epoch": 45, "name": "clap", "state_dict": state, "optimizer": optimizer, "scaler": {"scale": 65536.0}}


def segments(rate: int, clips: int = 1, count: int = 3) -> torch.Tensor:
    return 0.1 * torch.randn(clips, count, rate, generator=torch.Generator().manual_seed(0))


def fusion_mel(waveform: torch.Tensor, front_end: FrontEnd) -> torch.Tensor:
    """(B, S) -> (B, frames, bins): the data pipeline of the fusion models, through torchaudio."""
    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate=48000,
        n_fft=1024,
        win_length=1024,
        hop_length=front_end.hop_size,
        f_min=50,
        f_max=14000,
        n_mels=front_end.mel_bins,
        power=2.0,
        center=True,
        pad_mode="reflect",
        norm=None,
        mel_scale="htk",
    )(waveform)
    return torchaudio.transforms.AmplitudeToDB(top_db=None)(mel).transpose(1, 2)


@pytest.mark.parametrize("front_end", ["released", "fused", "unfused"])
def test_steps_equal_laion_clap(front_end: str, monkeypatch, tmp_path) -> None:
    net, path = laion_clap(monkeypatch, front_end), tmp_path / "630k-best.pt"
    torch.save(published(net), path)
    ours = SmallCLAP(pretrained=str(path), front_end=front_end)
    rate = {"released": 32000}.get(front_end, 48000)
    audio = segments(rate)
    clips = audio.flatten(0, 1).repeat(1, 10)
    given = {"waveform": clips, "longer": torch.zeros(len(clips), dtype=torch.bool)}
    if front_end == "fused":
        given["mel_fusion"] = fusion_mel(clips, ours.front_end)[:, None].expand(-1, 4, -1, -1)
    with torch.no_grad():
        pooled = ours(audio).mean(1)
        assert torch.allclose(pooled, net.audio_branch(given)["embedding"], rtol=0, atol=1e-5)
        assert torch.allclose(ours.project(pooled), net(given, None, device="cpu"), rtol=0, atol=1e-5)
        assert ours.project(pooled.view(1, 3, -1)).shape == (1, 3, 512)
    assert ours.logit_scale == 3.5 and not ours.logit_scale.requires_grad


def test_front_ends_differ(monkeypatch) -> None:
    """One set of weights, three spectrograms: the switch is not idle."""
    torch.manual_seed(1)
    first = SmallCLAP(front_end="unfused")
    outputs = []
    for front_end in ("unfused", "fused", "released"):
        torch.manual_seed(1)
        ours = SmallCLAP(front_end=front_end)
        assert all(torch.equal(a, b) for a, b in zip(first.stages.parameters(), ours.stages.parameters()))
        with torch.no_grad():
            outputs.append(ours.log_mel(torch.sin(torch.arange(ours.front_end.sample_rate) * 0.5)[None], 10))
    assert all(mel.shape == (1, 1, 51, 16) for mel in outputs)
    assert (outputs[0] - outputs[1]).abs().max() > 5 and (outputs[0] - outputs[2]).abs().max() > 5


@pytest.mark.parametrize("front_end, bins", [("fused", [8, 17, 39, 53]), ("released", [10, 24, 49, 61])])
def test_tones_peak_in_the_known_bands(front_end: str, bins: list[int]) -> None:
    ours, tones = SlimCLAP(front_end=front_end), torch.tensor([440.0, 1000.0, 4000.0, 8000.0])
    rate = ours.front_end.sample_rate
    mel = ours.log_mel(0.5 * torch.sin(2 * torch.pi * tones[:, None] * torch.arange(rate) / rate), 10)
    assert mel.shape == (4, 1, 1001, 64)
    assert mel[:, 0, 500].argmax(-1).tolist() == bins


def test_spectrograms_equal_the_references() -> None:
    """Of all 64 bands, in dB: torchaudio for the fusion models, librosa's Slaney bank at 48 kHz for the others."""
    clips = segments(48000, count=2).flatten(0, 1)
    fused = SlimCLAP(front_end="fused").log_mel(clips, 10)[:, 0] * (1 + 1e-5) ** 0.5  # less `bn0` at its start
    assert (fused - fusion_mel(clips.repeat(1, 10), FRONT_ENDS["fused"])).abs().max() < 1e-3
    bank = torch.from_numpy(librosa.filters.mel(sr=48000, n_fft=1024, n_mels=64, fmin=50, fmax=14000))
    for front_end, rate, hop in (("unfused", 48000, 480), ("released", 32000, 320)):
        wave = clips[:, :rate]
        spectrum = torch.stft(wave.repeat(1, 10), 1024, hop, window=torch.hann_window(1024), return_complex=True)
        expected = 10 * torch.log10((bank @ spectrum.abs() ** 2).clamp(min=1e-10)).transpose(1, 2)
        ours = SlimCLAP(front_end=front_end).log_mel(wave, 10)[:, 0] * (1 + 1e-5) ** 0.5
        assert (ours - expected).abs().max() < 1e-3


@pytest.mark.parametrize(
    "sr, n_fft, n_mels, fmin, fmax",
    [
        (32000, 1024, 64, 50, 14000),
        (48000, 1024, 64, 50, 14000),
        (16000, 512, 32, 50, 8000),
        (22050, 2048, 128, 0, 11025),
    ],
)
def test_mel_bands_are_librosas_bit_for_bit(sr: int, n_fft: int, n_mels: int, fmin: int, fmax: int) -> None:
    assert np.array_equal(
        mel_bank(sr, n_fft, n_mels, fmin, fmax),
        librosa.filters.mel(sr=sr, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax),
    )
    assert np.array_equal(hann("hann", n_fft), librosa.filters.get_window("hann", n_fft, fftbins=True))
    if n_fft <= 1024:
        assert np.array_equal(fourier(n_fft), DFTBase().dft_matrix(n_fft))


@pytest.mark.parametrize("layout", ["published", "laion_module", "bare", "safetensors"])
def test_weight_layouts(layout: str, monkeypatch, tmp_path) -> None:
    net, path = laion_clap(monkeypatch, "unfused"), tmp_path / "clap.pt"
    if layout == "published":
        torch.save(published(net), path)
    elif layout == "laion_module":
        torch.save({f"model.{name}": value for name, value in net.state_dict().items()}, path)
    elif layout == "bare":
        torch.save(net.state_dict(), path)
    else:
        path = tmp_path / "clap.safetensors"
        save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path)
    ours = SmallCLAP(pretrained=str(path), front_end="unfused")
    for name, value in ours.state_dict().items():
        assert torch.equal(value, net.state_dict()[ours.library_key(name)]), name
    assert SmallCLAP(front_end="unfused").fingerprint() != ours.fingerprint()


def test_fusion_tensors_are_known_and_the_tower_saves_and_loads(monkeypatch, tmp_path) -> None:
    net = laion_clap(monkeypatch, "fused")
    fusion = [name for name in net.state_dict() if ".fusion_model." in name or ".mel_conv2d." in name]
    assert len(fusion) == 30
    first = SmallCLAP(front_end="fused")
    first.load_htsat_weights(net.state_dict(), "file")
    own, path = first.state_dict().items(), tmp_path / "own.safetensors"
    save_file({first.library_key(name): value.contiguous() for name, value in own}, path)
    again = SmallCLAP(pretrained=str(path), front_end="fused")
    assert first.fingerprint() == again.fingerprint()


@pytest.mark.parametrize("weights, front_end", [("fused", "unfused"), ("unfused", "fused")])
def test_weights_of_another_front_end_are_refused(weights: str, front_end: str, monkeypatch) -> None:
    net = laion_clap(monkeypatch, weights)
    with pytest.raises(WeightsError, match=f"front_end to {weights}"):
        SmallCLAP(front_end=front_end).load_htsat_weights(net.state_dict(), "630k.pt")
    SmallCLAP(front_end="released").load_htsat_weights(net.state_dict(), "630k.pt")  # wrong by intent, for either


def test_wrong_files_are_refused(monkeypatch, tmp_path) -> None:
    state = dict(laion_clap(monkeypatch, "unfused").state_dict())
    with pytest.raises(WeightsError, match="unknown .'surprise'"):
        SmallCLAP(front_end="unfused").load_htsat_weights({**state, "surprise": torch.zeros(1)}, "file")
    with pytest.raises(WeightsError, match="melW"):
        SmallCLAP(front_end="unfused").load_htsat_weights(
            {**state, "audio_branch.logmel_extractor.melW": torch.zeros(513, 16)}, "file"
        )
    without = {name: value for name, value in state.items() if not name.startswith("audio_projection")}
    with pytest.raises(WeightsError, match="missing .'audio_projection.0.bias'"):
        SmallCLAP(front_end="unfused").load_htsat_weights(without, "file")
    torch.save({"state_dict": state, "args": Loud()}, tmp_path / "code.pt")
    with pytest.raises(WeightsError, match="(?s)code.pt.*tensors only"):
        SmallCLAP(pretrained=str(tmp_path / "code.pt"))
    with pytest.raises(WeightsError, match="nowhere.pt"):
        SmallCLAP(pretrained=str(tmp_path / "nowhere.pt"))
    with pytest.raises(ArgumentError, match="front_end"):
        SmallCLAP(front_end="paper")


class Loud:
    """Unpickling this would run code of the file's choice."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("unpickled",)


def test_audio_of_another_rate_is_refused() -> None:
    rates = {name: SmallCLAP(front_end=name).input.sample_rate for name in FRONT_ENDS}
    assert rates == {"fused": 48000, "unfused": 48000, "released": 32000}
    with pytest.raises(ShapeError, match="1 s at 48000 Hz"):
        SmallCLAP(front_end="fused").embed(segments(32000))
    with pytest.raises(ShapeError, match="1 s at 32000 Hz"):
        SmallCLAP(front_end="released").embed(segments(48000))
    with pytest.raises(ShapeError, match="one row of samples a segment"):
        SmallCLAP().embed(torch.zeros(3, 48000))


def test_frozen_for_good() -> None:
    ours = SmallCLAP().train()
    assert not any(module.training for module in ours.modules())
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert "logit_scale" in ours.state_dict()


def test_full_size_networks_on_the_meta_device() -> None:
    heads = 768 * 527 * 6 + 527 + 527 * 527 + 527  # the AudioSet classifier, which is not built
    with sizes_alone():
        tiny, base = CLAPAudio("tiny"), CLAPAudio("base", front_end="released")
    count = sum(p.numel() for p in tiny.parameters())
    assert count == 31_325_143 - heads + 656_384
    assert [block.spec.dim for block in tiny.blocks()] == [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
    assert [block.spec.tokens for block in tiny.blocks()][::2] == [4096, 1024, 256, 256, 256, 64]
    heads = 1024 * 527 * 6 + 527 + 527 * 527 + 527
    projection = 1024 * 512 + 512 + 512 * 512 + 512
    assert sum(p.numel() for p in base.parameters()) == 72_424_535 - heads + projection
    assert [block.spec.dim for block in base.blocks()] == [128] * 2 + [256] * 2 + [512] * 12 + [1024] * 2
