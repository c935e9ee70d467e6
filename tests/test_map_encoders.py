"""Networks behind published features, and AVSBench's own network: they are the libraries', and VGGish is VGGish."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from avprompt.backbone import AVPromptBackbone, MapBackbone
from avprompt.encoders import PVT, VGG, R2Plus1D, ResNet, TinyHTSAT, TinySwinV2, VGGish
from avprompt.encoders.base import sizes_alone
from avprompt.encoders.vggish import log_mel
from avprompt.errors import ArgumentError, ShapeError, WeightsError
from avprompt.heads.avs_decoder import AVSDecoder


def mel(hertz: np.ndarray) -> np.ndarray:
    return 1127 * np.log(1 + hertz / 700)


def test_log_mel_is_vggishs() -> None:
    """Restated from the published description: triangles in mel over the bins of the magnitude spectrum."""
    wave = np.sin(2 * math.pi * 440 * np.arange(16000) / 16000) + 0.1 * np.random.default_rng(0).standard_normal(16000)
    window = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(400) / 400)
    spectrum = np.abs([np.fft.rfft(wave[160 * i : 160 * i + 400] * window, 512) for i in range(96)])
    edges, bins = np.linspace(mel(np.array(125.0)), mel(np.array(7500.0)), 66), mel(np.arange(257) * 16000 / 512)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    banks = np.maximum(0, np.minimum(rising, falling))
    banks[0] = 0
    expected = np.log(spectrum @ banks + 0.01)
    got = log_mel(torch.from_numpy(wave).float()[None])[0, 0].numpy()
    assert got.shape == (96, 64) and np.abs(got - expected).max() < 1e-3


@pytest.mark.usefixtures("narrow_vggish")
def test_vggish_reads_frames_by_bands_by_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder, wave = VGGish(), 0.1 * torch.randn(1, 2, 16000)
    weights = {f"features.{i}.weight": encoder.features[i].weight for i in (0, 3, 6, 8, 11, 13)}
    x = log_mel(wave[0])
    for place, pooled in ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True)):
        x = F.relu(F.conv2d(x, weights[f"features.{place}.weight"], encoder.features[place].bias, padding=1))
        x = F.max_pool2d(x, 2) if pooled else x
    assert x.shape[2:] == (6, 4)
    x = x.permute(0, 2, 3, 1).flatten(1)
    for place in (0, 2, 4):
        x = F.relu(F.linear(x, encoder.embeddings[place].weight, encoder.embeddings[place].bias))
    with torch.no_grad():
        assert torch.allclose(encoder(wave)[:, 0], x, atol=1e-6)
    keys = {
        f"{part}.{i}.{kind}"
        for part, places in (("features", (0, 3, 6, 8, 11, 13)), ("embeddings", (0, 2, 4)))
        for i in places
        for kind in ("weight", "bias")
    }
    assert encoder.state_dict().keys() == keys  # those of the published file
    torch.save({"features.0.weight": weights["features.0.weight"]}, tmp_path / "vggish.pth")
    with pytest.raises(WeightsError, match="missing"):
        VGGish(str(tmp_path / "vggish.pth"))


def test_resnet_is_torchvisions(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    net = resnet18().eval()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    frames = torch.randn(1, 2, 3, 64, 64)
    encoder = ResNet("resnet18", str(tmp_path / "resnet18.pth"), img_size=64, pooled=True)
    net.fc = torch.nn.Identity()
    with torch.no_grad():
        assert torch.allclose(encoder(frames)[:, 0], net(frames[0]), atol=1e-5)
        fine = ResNet("resnet18", str(tmp_path / "resnet18.pth"), img_size=64, last_stride=1)
        maps = fine.maps(frames)
    assert [x.shape[1:] for x in maps] == [(256, 64), (64, 128), (16, 256), (16, 512)] and fine.specs[-1].grid == (4, 4)


def test_r2plus1d_is_torchvisions(tmp_path: Path) -> None:
    from torchvision.models.video import r2plus1d_18

    torch.manual_seed(0)
    net = r2plus1d_18().eval()
    torch.save(net.state_dict(), tmp_path / "r2plus1d_18.pth")
    frames = torch.randint(256, (1, 2, 4, 3, 32, 32), dtype=torch.uint8)
    encoder = R2Plus1D(str(tmp_path / "r2plus1d_18.pth"), img_size=32, frames=4)
    net.fc = torch.nn.Identity()
    with torch.no_grad():
        found = encoder(frames)
        assert torch.allclose(found[:, 0], net(encoder.normalise(frames)[0].transpose(1, 2)), atol=1e-5)
        moved = encoder(frames.flip(2))
    assert not torch.allclose(found, moved, atol=1e-3)  # it sees in which order frames come
    with pytest.raises(ShapeError, match=r"expected \(B, T, 4, 3, 32, 32\).*frames_per_segment"):
        encoder(frames[:, :, 0])
    for wrong in ({"img_size": 40}, {"frames": 0}):
        with sizes_alone(), pytest.raises(ArgumentError, match=f"^{next(iter(wrong))}:"):
            R2Plus1D(**wrong)


def test_features_of_pictures_are_means_over_the_frames_of_a_segment() -> None:
    torch.manual_seed(0)
    one, several = ResNet("resnet18", img_size=32), ResNet("resnet18", img_size=32, frames=3)
    several.load_state_dict(one.state_dict())
    frames = torch.randint(256, (1, 2, 3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = torch.stack([one(frames[:, :, place]) for place in range(3)]).mean(0)
        assert torch.allclose(several(frames), expected, atol=1e-5)


def test_pvt_is_timms(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    net = timm.create_model("pvt_v2_b0", features_only=True).eval()
    whole = timm.create_model("pvt_v2_b0", num_classes=7)
    whole.load_state_dict(
        {
            **{name.replace("stages_", "stages."): value for name, value in net.state_dict().items()},
            "head.weight": whole.head.weight,
            "head.bias": whole.head.bias,
        }
    )
    torch.save(whole.state_dict(), tmp_path / "pvt.pth")
    encoder, frames = PVT("pvt_v2_b0", str(tmp_path / "pvt.pth"), img_size=64), torch.randn(1, 1, 3, 64, 64)
    with torch.no_grad():
        for own, theirs in zip(encoder.maps(frames), net(frames[0]), strict=True):
            assert torch.allclose(own, theirs.flatten(2).transpose(1, 2), atol=1e-5)


def test_sizes() -> None:
    with sizes_alone():
        found = {
            "vgg19": VGG(),
            "resnet152": ResNet("resnet152", pooled=True),
            "resnet50": ResNet("resnet50"),
            "resnet18": ResNet("resnet18", last_stride=1),
            "pvt": PVT(),
            "vggish": VGGish(),
            "r2plus1d": R2Plus1D(),
        }
    counts = {name: sum(p.numel() for p in encoder.parameters()) for name, encoder in found.items()}
    assert counts == {
        "vgg19": 20_024_384,
        "resnet152": 58_143_808,
        "resnet50": 23_508_032,
        "resnet18": 11_176_512,
        "pvt": 81_443_008,
        "vggish": 72_141_184,
        "r2plus1d": 31_300_125,
    }
    specs = {name: (encoder.last_spec.dim, encoder.last_spec.grid) for name, encoder in found.items()}
    assert specs == {
        "vgg19": (512, (7, 7)),
        "resnet152": (2048, (1, 1)),
        "resnet50": (2048, (7, 7)),
        "resnet18": (512, (14, 14)),
        "pvt": (512, (7, 7)),
        "vggish": (128, (1, 1)),
        "r2plus1d": (512, (1, 1)),
    }


def test_avsbench_reads_stages_and_sound_as_they_are() -> None:
    """Its decoder projects nothing: the dilated convolutions stand on the encoder's maps."""
    torch.manual_seed(0)
    encoder = PVT("pvt_v2_b0", img_size=64, frozen=False)
    head = AVSDecoder(128, encoder.specs, 64, (0.0, 0.0), width=16, dilated=True, project=False).eval()
    maps = encoder.eval().maps(torch.randn(1, 1, 3, 64, 64))
    level, spec = head.levels[1], encoder.specs[1]
    grid = maps[1].transpose(1, 2).unflatten(2, spec.grid)
    expected = sum(
        F.conv2d(grid, c.weight, c.bias, padding=wide, dilation=wide) for c, wide in zip(level.dilated, (3, 6, 12, 18))
    )
    assert torch.allclose(level.resize(maps[1][None])[0].permute(0, 3, 1, 2), expected, atol=1e-5)
    assert isinstance(head.audio_project, torch.nn.Identity)
    for wrong in ({"audio_dim": 64, "dilated": True}, {"audio_dim": 128, "dilated": False}):
        with pytest.raises(ArgumentError, match="^project:"):
            AVSDecoder(stages=encoder.specs, mask_size=64, gates=(0.0, 0.0), width=16, project=False, **wrong)


@pytest.mark.usefixtures("narrow_vggish")
def test_only_what_is_trained_has_a_graph() -> None:
    batch = {"frames": torch.randint(256, (1, 2, 3, 64, 64), dtype=torch.uint8), "audio": torch.zeros(1, 2, 16000)}
    audio = VGGish()
    for frozen in (True, False):
        backbone = MapBackbone(ResNet("resnet18", img_size=64, frozen=frozen), audio).train()
        features = backbone(batch)
        assert features.visual.requires_grad is not frozen and not features.audio.requires_grad
        assert backbone.visual.bn1.training is not frozen and not backbone(batch, prompted=False).visual.requires_grad
    assert [x.shape for x in features.pyramid] == [(1, 2, 256, 64), (1, 2, 64, 128), (1, 2, 16, 256), (1, 2, 4, 512)]
    with pytest.raises(ShapeError, match="frames, audio"):
        backbone({**batch, "audio": torch.zeros(1, 3, 16000)})
    with pytest.raises(ShapeError, match="image_size"):
        backbone({**batch, "frames": batch["frames"][..., :32]})


def test_refused() -> None:
    with sizes_alone():
        for build, name in (
            (lambda: ResNet("resnet34"), "model"),
            (lambda: ResNet(last_stride=4), "last_stride"),
            (lambda: VGG(img_size=200), "img_size"),
            (lambda: PVT("pvt_v2_b9"), "model"),
            (lambda: MapBackbone(TinySwinV2("none"), VGGish()), "visual"),
            (lambda: MapBackbone(VGG(), TinyHTSAT("none")), "audio"),
            (lambda: AVPromptBackbone(VGG(), TinyHTSAT("none")), "visual"),
        ):
            with pytest.raises(ArgumentError, match=f"^{name}:"):
                build()
    with pytest.raises(WeightsError, match="IMAGENET1K_V1"):
        ResNet("resnet18", "IMAGENET", img_size=64)
    with pytest.raises(ShapeError, match="waveform"):
        log_mel(torch.zeros(1, 8000))
