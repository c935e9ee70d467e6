"""Spectrograms: Kaldi's filter bank over many segments at once, and what `avprompt data stats` measures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import shorten
from torchaudio.compliance import kaldi

from avprompt.cli import run
from avprompt.datasets.fbank_statistics import fbank_statistics
from avprompt.encoders.fbank import Fbank
from avprompt.errors import ArgumentError, ClipDecodeError, ConfigError, DatasetError, ShapeError
from avprompt.media.readers import StoreReader

AVQA = Fbank(mel_bins=224, frames=224, shift_ms=4.4, mean=-5.2144, std=3.8699)


@pytest.fixture
def segments() -> torch.Tensor:
    """Six seconds of noise at different levels, one with an offset, one a tone, one silent."""
    sound = torch.randn(6, 16000, generator=torch.Generator().manual_seed(3)) * torch.logspace(-4, -1, 6)[:, None]
    sound[1] += 0.3
    sound[2] = 0.5 * torch.sin(torch.arange(16000) * 0.3)
    sound[3] = 0
    return sound


@pytest.mark.parametrize(
    ("fbank", "samples", "frames"),
    [
        (Fbank(), 16000, 98),
        (AVQA, 16000, 223),
        (AVQA, 15800, 221),
        (Fbank(window_ms=20, shift_ms=12.5), 16000, 79),
        (Fbank(sample_rate=22050), 16000, 71),
    ],
)
def test_every_segment_is_torchaudios(fbank: Fbank, samples: int, frames: int, segments: torch.Tensor) -> None:
    segments = segments[:, :samples]
    expected = torch.stack(
        [
            kaldi.fbank(
                row[None],
                htk_compat=True,
                sample_frequency=fbank.sample_rate,
                use_energy=False,
                dither=0.0,
                window_type="hanning",
                num_mel_bins=fbank.mel_bins,
                frame_shift=fbank.shift_ms,
                frame_length=fbank.window_ms,
            )
            for row in segments
        ]
    )
    raw = fbank.raw(segments)
    assert raw.shape == (6, frames, fbank.mel_bins) and raw.dtype == torch.float32
    assert torch.allclose(raw, expected, atol=1e-4)


def test_normalised_then_padded(segments: torch.Tensor) -> None:
    fbank = Fbank(mean=-7.0, std=2.5)
    spectrogram, raw = fbank(segments), fbank.raw(segments)
    assert spectrogram.shape == (6, 1, 128, 102) and spectrogram.dtype == torch.float32
    assert torch.equal(spectrogram[..., 98:], torch.zeros(6, 1, 128, 4))
    assert torch.allclose(spectrogram[:, 0, :, :98], (raw.transpose(1, 2) + 7.0) / 5.0)
    cut = Fbank(frames=60, mean=-7.0, std=2.5)(segments)
    assert torch.equal(cut, spectrogram[..., :60])


def test_a_tone_lies_in_its_band() -> None:
    """mel x time, low frequencies first."""
    tones = torch.stack([0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(16000) / 16000) for hertz in (300, 3000)])
    tones[0, 8000:] = 0
    spectrogram = Fbank()(tones)[:, 0]
    mel = [1127 * np.log(1 + hertz / 700) for hertz in (20, 300, 3000, 8000)]
    for row, band in zip(spectrogram, mel[1:3]):
        assert abs(int(row[:, :45].mean(1).argmax()) + 1 - 129 * (band - mel[0]) / (mel[3] - mel[0])) < 1.5
    assert spectrogram[0, :, :45].max() > 0 and spectrogram[0, :, 55:98].max() < -1


def test_clip_mean_does_not_matter(segments: torch.Tensor) -> None:
    """Published loaders subtract it first; Kaldi removes the mean of every window anyway."""
    loud = segments[[0, 2, 4, 5]].double()  # in float32 the offset costs digits
    moved = (loud + 0.25).float() - 0.25
    assert torch.allclose(Fbank()(moved), Fbank()(loud.float()), atol=5e-2)
    assert (Fbank()(2 * loud.float()) - Fbank()(loud.float())).abs().mean() > 0.15


def test_precision_is_float32_at_least(segments: torch.Tensor) -> None:
    plain = Fbank()(segments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Fbank()(segments), plain)
    exact = Fbank()(segments.double())
    assert exact.dtype == torch.float64 and torch.allclose(exact.float(), plain, atol=1e-2)  # log of near silence
    assert Fbank()(torch.empty(4, 16000, device="meta")).shape == (4, 1, 128, 102)
    assert Fbank()(torch.empty(0, 16000)).shape == (0, 1, 128, 102)


@pytest.mark.parametrize("waveform", [torch.zeros(2, 399), torch.zeros(2, 3, 16000), torch.zeros(2, 16000).short()])
def test_other_waveforms_are_refused(waveform: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="at least one window .400 samples"):
        Fbank()(waveform)


@pytest.mark.parametrize(
    "setting",
    [
        {"mel_bins": 3},
        {"frames": 0},
        {"shift_ms": 0.0},
        {"window_ms": 0.1},
        {"sample_rate": 0},
        {"std": 0.0},
        {"std": -1.0},
    ],
)
def test_impossible_settings(setting: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=f"fbank.{next(iter(setting))}"):
        Fbank(**setting)


def experiment(folder: Path, root: Path, audio: str = "shared") -> list[str]:
    """Flags of an experiment on the synthetic dataset whose audio side hears spectrograms of CLIP's size."""
    (folder / "x.yaml").write_text(f"""
data:
  class_path: avprompt.data_modules.AVEDataModule
  init_args: {{root: {root}, image_size: 64, sample_rate: 16000}}
model:
  class_path: avprompt.tasks.AVE
  init_args:
    backbone:
      class_path: avprompt.backbone.AVPromptBackbone
      init_args:
        visual:
          class_path: avprompt.encoders.TinyCLIP
          init_args: {{pretrained: none, fbank: {{mel_bins: 64, frames: 102, shift_ms: 10.0}}}}
        audio: {audio}
""")
    return ["--config", str(folder / "x.yaml")]


@pytest.fixture
def copy(ave_root: Path, tmp_path: Path) -> Path:
    """The synthetic dataset with a store of its own, in whose training split one clip lasts four seconds."""
    root = shutil.copytree(ave_root, tmp_path / "ave", ignore=shutil.ignore_patterns("videos"))
    shorten(root / "store", 4, train_ids(root)[5])
    return root


def train_ids(root: Path) -> list[str]:
    return [line.split("&")[1] for line in (root / "trainSet.txt").read_text().splitlines()]


def test_stats_measures_the_training_split(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "trainSet.txt").write_text(
        (copy / "trainSet.txt").read_text()
        + (copy / "trainSet.txt").read_text().splitlines()[0].replace("disc", "ring")
    )
    with (copy / "Annotations.txt").open("a") as file:  # a clip on two rows counts once
        file.write((copy / "trainSet.txt").read_text().splitlines()[-1] + "\n")
    run(["data", "stats", *experiment(tmp_path, copy)])
    pieces = []
    for clip in sorted(set(train_ids(copy))):
        folder = copy / "store" / "clips" / clip
        for second, valid in zip(np.load(folder / "audio.npy"), np.load(folder / "valid.npy")):
            if valid:
                pieces.append(
                    kaldi.fbank(
                        torch.from_numpy(second / np.float32(2**15))[None],
                        htk_compat=True,
                        sample_frequency=16000,
                        window_type="hanning",
                        num_mel_bins=64,
                    )
                    .numpy()
                    .astype(np.float64)
                )
    features = np.concatenate(pieces)
    record = json.loads((copy / "fbank_statistics.json").read_text())
    assert record["mean"] == pytest.approx(features.mean(), abs=1e-6)
    assert record["std"] == pytest.approx(features.std(), abs=1e-6)
    assert (record["split"], record["clips"], record["corrupt"], record["segments"], record["seconds"]) == (
        "train",
        24,
        0,
        234,
        234.0,
    )
    assert record["fbank"] == {
        "mel_bins": 64,
        "frames": 102,
        "shift_ms": 10.0,
        "window_ms": 25.0,
        "sample_rate": 16000,
        "seconds": 1.0,
        "fill": "after",
    }
    printed = capsys.readouterr().out.splitlines()
    prefix = "--model.backbone.visual.fbank"
    assert printed[-2:] == [f"{prefix}.mean {record['mean']:.4f}", f"{prefix}.std {record['std']:.4f}"]
    # the flags that were printed are flags that work
    from avprompt.cli import model_of

    model = model_of([*experiment(tmp_path, copy), *" ".join(printed[-2:]).split()], meta=True)
    assert model.backbone.audio.fbank.mean == round(record["mean"], 4)


def test_stats_of_an_audio_encoder_of_its_own(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = (
        "{class_path: avprompt.encoders.ViTSpectrogram, init_args: {fbank: {mel_bins: 80}, tower: "
        "{class_path: avprompt.encoders.TinyCLIP, init_args: {pretrained: none}}}}"
    )
    run(["data", "stats", *experiment(tmp_path, copy, own), "--data.num_workers=1"])
    assert "\n--model.backbone.audio.fbank.mean -" in capsys.readouterr().out
    assert json.loads((copy / "fbank_statistics.json").read_text())["fbank"]["mel_bins"] == 80


def test_stats_needs_spectrograms_of_that_sound(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="got TinyHTSAT; expected an encoder with an fbank"):
        run(["data", "stats", *experiment(tmp_path, copy, "{class_path: avprompt.encoders.TinyHTSAT}")])
    with pytest.raises(ConfigError, match="sample_rate: got 8000 Hz; expected 16000 Hz"):
        run(["data", "stats", *experiment(tmp_path, copy), "--data.sample_rate", "8000"])
    run(["data", "stats", "--help"])
    assert "avprompt data stats --config" in capsys.readouterr().out


def test_clips_that_do_not_decode(copy: Path) -> None:
    ids, reader, fbank = train_ids(copy), StoreReader(copy / "store", None), Fbank()
    whole = fbank_statistics(ids[:3], reader, fbank)
    (copy / "store" / "clips" / ids[3] / "audio.npy").write_bytes(b"gone")
    with pytest.raises(ClipDecodeError):
        fbank_statistics(ids[:4], reader, fbank)
    with pytest.warns(UserWarning, match=f"left out: .*{ids[3]}"):
        rest = fbank_statistics(ids[:4], reader, fbank, skip_corrupt=True)
    assert (rest.mean, rest.std, rest.clips, rest.segments, rest.corrupt) == (whole.mean, whole.std, 3, 30, 1)
    shorten(copy / "store", 0, ids[0])
    with pytest.raises(DatasetError, match="1 clips without a decoded segment"):
        fbank_statistics(ids[:1], StoreReader(copy / "store", None), fbank)
