"""CLIP as an encoder: the library's function, every published kind of weights file, spectrograms through its blocks."""

from __future__ import annotations

import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from small import SAMPLES, SEGMENTS, SIZE, SmallCLIP, SmallHTSAT, SmallSpectrogram, small_batch, small_clips
from torch import Tensor, nn

from avprompt import AVPromptBackbone
from avprompt.encoders import CLIP, BlockSpec, Fbank, ViTSpectrogram, clip
from avprompt.encoders.clip import QuickGELU, architecture
from avprompt.encoders.plain_vit import resize_positions
from avprompt.errors import ArgumentError, ShapeError, WeightsError


@pytest.fixture(scope="module")
def library() -> open_clip.CLIP:
    """open_clip's own class with both towers, at the size of `SmallCLIP`."""
    torch.manual_seed(3)
    vision = CLIPVisionCfg(layers=2, width=24, head_width=8, patch_size=8, image_size=SIZE)
    text = CLIPTextCfg(context_length=8, vocab_size=30, width=16, heads=2, layers=1)
    return open_clip.CLIP(16, vision, text, quick_gelu=True).eval()


def frames() -> Tensor:
    return small_batch(clips=1)[0]


def write_openai(library: open_clip.CLIP, path: Path) -> None:
    """OpenAI's plain state dict: half precision, three sizes beside the network's tensors."""
    state = {name: value.half() for name, value in library.state_dict().items()}
    sizes = {
        name: torch.tensor(value)
        for name, value in (("input_resolution", SIZE), ("context_length", 8), ("vocab_size", 30))
    }
    torch.save({**state, **sizes}, path)


class Archived(nn.Module):
    """Something traceable with CLIP's parameter names, as in OpenAI's archives."""

    def __init__(self, library: open_clip.CLIP) -> None:
        super().__init__()
        self.visual, self.logit_scale = library.visual, library.logit_scale

    def forward(self, image: Tensor) -> Tensor:
        return self.visual.conv1(image)


FILES = {
    "open_clip.pt": lambda library, path: torch.save(library.state_dict(), path),
    "open_clip.safetensors": lambda library, path: save_file(library.state_dict(), path),
    "trained.pt": lambda library, path: torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in library.state_dict().items()}}, path
    ),
    "openai.pt": write_openai,
    "archive.pt": lambda library, path: torch.jit.trace(Archived(library), torch.zeros(1, 3, SIZE, SIZE)).save(path),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_gives_the_library_s_function(kind: str, library: open_clip.CLIP, tmp_path: Path) -> None:
    FILES[kind](library, tmp_path / kind)
    ours = SmallCLIP(pretrained=str(tmp_path / kind), projection=True)
    with torch.no_grad():
        expected = library.encode_image(frames()[0])
        got = ours.project(ours(frames())[:, 0])
    tolerance = 2e-3 if kind == "openai.pt" else 1e-6
    assert (got - expected).norm() < tolerance * expected.norm()
    assert ours.logit_scale.item() == pytest.approx(library.logit_scale.item(), rel=1e-3)
    assert SmallCLIP(pretrained=str(tmp_path / kind)).logit_scale is None  # nothing to compare with


def test_files_that_do_not_fit_are_named(library: open_clip.CLIP, tmp_path: Path) -> None:
    state = library.state_dict()
    for name, content in (
        ("narrow.pt", {**state, "visual.conv1.weight": torch.zeros(8, 3, 8, 8)}),
        ("more.pt", {**state, "visual.attn_pool.query": torch.zeros(1)}),
        ("text_only.pt", {k: v for k, v in state.items() if not k.startswith("visual.")}),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(WeightsError, match=name):
            SmallCLIP(pretrained=str(tmp_path / name))
    with pytest.raises(WeightsError, match="existing local file"):
        SmallCLIP(pretrained=str(tmp_path / "absent.pt"))


def test_tags() -> None:
    with pytest.raises(WeightsError, match="laion2b_s34b_b88k"):
        SmallCLIP(pretrained="opanai")
    with pytest.raises(ArgumentError, match="quick_gelu"):
        SmallCLIP(pretrained="laion2b_s34b_b88k")  # trained with GELU
    with pytest.raises(WeightsError, match="give its path"):
        SmallCLIP(pretrained="openai")  # no network in tests


def test_architectures() -> None:
    assert architecture("ViT-L-14")["vision_cfg"]["layers"] == 24
    for model in ("RN50", "ViT-B-99", "ViT-B-16-SigLIP"):
        with pytest.raises(ArgumentError, match="plain vision transformer"):
            architecture(model)
    with torch.device("meta"):
        assert CLIP("ViT-B-16").stages[0].blocks[0].attn.num_heads == 12
        assert CLIP("ViT-L-14").stages[0].blocks[0].attn.num_heads == 16
        assert sum(p.numel() for p in CLIP("ViT-B-32", projection=True).parameters()) == 87_849_216


def test_activations() -> None:
    x = torch.linspace(-6, 6, 101)
    assert torch.allclose(QuickGELU()(x), x * torch.sigmoid(1.702 * x), atol=1e-6)
    assert isinstance(SmallCLIP().stages[0].blocks[0].feed_forward.act, QuickGELU)
    assert isinstance(SmallCLIP(quick_gelu=False).stages[0].blocks[0].feed_forward.act, nn.GELU)


def test_attend_through_the_frozen_projections() -> None:
    """Prompts that join after projection are the library's attention with more keys and values."""
    library = SmallCLIP()._build("small").transformer.resblocks[0]
    block = clip._block(library, BlockSpec(24, (4, 4), 0, 1), None)
    x, y, prompts = torch.randn(2, 5, 24), torch.randn(2, 7, 24), torch.randn(3, 24)
    with torch.no_grad():
        tokens = torch.cat((prompts.expand(2, -1, -1), y), dim=1)
        expected = library.attn(x, tokens, tokens, need_weights=False)[0]
        assert torch.allclose(block.attend(x, y, *block.project(prompts)), expected, atol=1e-6)
        assert torch.allclose(block.attend(x), library.attn(x, x, x, need_weights=False)[0], atol=1e-6)


def test_temporal_embedding_and_final_norm_are_trained() -> None:
    ours = SmallCLIP(segments=SEGMENTS, train_norm=True)
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert trained == {"temporal_embedding", "norm.weight", "norm.bias"}
    before = ours.fingerprint()
    nn.init.ones_(ours.norm.bias)
    assert ours.fingerprint() == before  # what is trained is no part of the frozen weights
    nn.init.ones_(ours.norm_pre.bias)
    assert ours.fingerprint() != before
    with pytest.raises(ShapeError, match="segments"):
        ours(frames()[:, :2])


def test_shape_errors() -> None:
    with pytest.raises(ShapeError, match="--data.image_size"):
        SmallCLIP()(torch.zeros(1, 2, 3, 16, 16))
    with pytest.raises(ShapeError, match="mono"):
        SmallSpectrogram()(torch.zeros(2, SAMPLES))
    with pytest.raises(ShapeError, match=r"8000\): 0.5 s at 16000 Hz.*--data.sample_rate"):
        SmallSpectrogram()(torch.zeros(1, 2, SAMPLES // 2))
    with pytest.raises(ArgumentError, match="projection"):
        SmallCLIP().project(torch.zeros(1, 24))


def test_shared_blocks_hear() -> None:
    backbone = AVPromptBackbone(SmallCLIP(segments=SEGMENTS), "shared")
    visual, audio = backbone.visual, backbone.audio
    assert all(a.attn is v.attn and a.feed_forward is v.feed_forward for v, a in zip(visual.blocks(), audio.blocks()))
    assert audio.class_embedding is visual.class_embedding and audio.norm is visual.norm
    assert audio.temporal_embedding is not visual.temporal_embedding
    assert torch.equal(audio.conv.weight, visual.conv.weight.sum(1, keepdim=True))
    assert audio.stages[0].blocks[0].spec.grid == (3, 5)
    shared = sum(p.numel() for p in backbone.parameters())
    extra = 24 * 8 * 8 + (1 + 3 * 5) * 24 + SEGMENTS * 24
    assert shared == sum(p.numel() for p in visual.parameters()) + extra
    separate = AVPromptBackbone(SmallCLIP(segments=SEGMENTS), "separate")
    assert not any(a.attn is v.attn for v, a in zip(separate.visual.blocks(), separate.audio.blocks()))
    assert torch.equal(separate(small_clips()).audio, backbone(small_clips()).audio)
    with pytest.raises(ArgumentError, match="can read spectrograms"):
        AVPromptBackbone(SmallHTSAT(), "shared")


def test_positions_are_the_centre_crop_or_the_stretched_grid() -> None:
    table = torch.arange(1 + 16.0).unsqueeze(1)
    cropped = resize_positions(table, 1, (4, 4), (2, 2))
    assert cropped.flatten().tolist() == [0, 6, 7, 10, 11]
    odd = resize_positions(torch.arange(17.0).unsqueeze(1), 1, (4, 4), (3, 3))  # the lineage's: 4 // 2 - 3 // 2
    assert odd.flatten().tolist() == [0, 6, 7, 8, 10, 11, 12, 14, 15, 16]
    stretched = resize_positions(table, 1, (4, 4), (4, 8))[1:].view(4, 8)
    assert stretched[0].tolist() == pytest.approx([1, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4])
    same = resize_positions(table, 1, (4, 4), (4, 4))
    assert torch.equal(same, table)
    with torch.device("meta"):
        assert CLIP("ViT-L-14").listener().positions.shape == (64, 1024)
        assert CLIP("ViT-B-16").listener().positions.shape == (49, 768)


def test_axes() -> None:
    """Published order: the same tokens, laid time by mel, with positions that stay mel by time."""
    mel, time = SmallSpectrogram(), SmallSpectrogram(axes="time_mel")
    assert time.stages[0].blocks[0].spec.grid == (5, 3)
    with torch.no_grad():
        for encoder in (mel, time):
            encoder.positions.zero_()
            encoder.conv.weight.copy_(encoder.conv.weight.mean((2, 3), keepdim=True))  # blind to the patch's own axes
        audio = small_batch(clips=1)[1]
        a, b = mel.embed(audio)[:, 1:], time.embed(audio)[:, 1:]
    assert torch.allclose(a.unflatten(1, (3, 5)).transpose(1, 2), b.unflatten(1, (5, 3)), atol=1e-6)


def test_own_class_token() -> None:
    audio = SmallSpectrogram(class_token=True)
    assert [name for name, p in audio.named_parameters() if p.requires_grad] == ["class_embedding"]
    plain = SmallSpectrogram()
    assert torch.equal(audio(small_batch()[1]), plain(small_batch()[1]))


def test_a_spectrogram_smaller_than_a_patch() -> None:
    with pytest.raises(ArgumentError, match="fbank"):
        ViTSpectrogram(SmallCLIP(), Fbank(mel_bins=24, frames=4))


def test_an_archive_of_scripted_modules(tmp_path: Path) -> None:
    """The tensors that TorchScript itself finds, of modules within modules, in half precision, with lists beside."""
    from avprompt.encoders.clip import _read_archive

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.sizes = nn.Parameter(torch.randn(3, 4).half()), [1, 2]
            self.register_buffer("input_resolution", torch.tensor(224))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.float()

    net = nn.Sequential(Inner(), nn.Linear(4, 4), nn.LayerNorm(4))
    for name, module in (("scripted", torch.jit.script(net)), ("traced", torch.jit.trace(net, torch.zeros(1, 3)))):
        path = tmp_path / f"{name}.pt"
        module.save(path)
        ours, theirs = _read_archive(path), torch.jit.load(path).state_dict()
        assert ours.keys() == theirs.keys() and {value.dtype for value in ours.values()} >= {torch.half, torch.int64}
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_an_archive_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchScript compiles and may run an archive's code on loading, and a pickle may name any function."""
    from avprompt.encoders.clip import _read_archive

    class Saves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return x

    plain = tmp_path / "plain.pt"
    torch.jit.script(Saves()).save(plain)
    monkeypatch.setattr(torch.jit, "load", lambda *args, **options: pytest.fail("the archive was compiled"))
    assert _read_archive(plain).keys() == {"weight"}
    evil, proof = tmp_path / "evil.pt", tmp_path / "proof"
    bad = (
        b"\x80\x02cos\nsystem\nX"
        + len(command := f"touch {proof}".encode()).to_bytes(4, "little")
        + command
        + b"\x85R."
    )
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(evil, "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, bad if name.endswith("/data.pkl") else archive.read(name))
    with pytest.raises(WeightsError, match=r"evil.pt: got (GLOBAL )?.*system.*torch.jit.load"):
        SmallCLIP(pretrained=str(evil))
    assert not proof.exists()
    for damage in (b"", b"\x80\x02.", plain.read_bytes()[:300]):
        evil.write_bytes(damage or plain.read_bytes()[:-50])
        with pytest.raises(WeightsError):
            _read_archive(evil)
