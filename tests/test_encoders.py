"""The frozen encoders equal the libraries' own forward, load the published layouts, and stay frozen."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from small import SmallHTSAT, SmallSwin, enliven, small_batch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

from avprompt import AVPromptBackbone, encoders
from avprompt.encoders import CLIP, HTSAT, AudioInput, Fbank, SwinSpectrogram, SwinV1, SwinV2, VisualInput
from avprompt.encoders.base import sizes_alone
from avprompt.encoders.htsat import FrontEnd, htsat_module
from avprompt.errors import ArgumentError, ShapeError, WeightsError


def timm_net() -> SwinTransformerV2:
    net = SwinTransformerV2(
        img_size=32, patch_size=4, num_classes=5, embed_dim=16, depths=(4, 2), num_heads=(2, 4), window_size=4
    )
    enliven(net, seed=1)
    return net.eval()


def swin_v1_net() -> SwinTransformer:
    net = SwinTransformer(
        img_size=32, patch_size=4, num_classes=5, embed_dim=16, depths=(4, 2), num_heads=(2, 4), window_size=4
    )
    enliven(net, seed=1)
    return net.eval()


class SmallSwinV1(SwinV1):
    """Two stages of 4 and 2 blocks over 32 x 32 frames, two of the first shifted."""

    def _build(self, model: str) -> SwinTransformer:
        return swin_v1_net()


def htsat_net():
    small = FrontEnd(sample_rate=16000, window_size=512, hop_size=800, mel_bins=16, fmin=50, fmax=8000)
    net = htsat_module().HTSAT_Swin_Transformer(
        config=small, num_classes=5, spec_size=32, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    enliven(net, seed=2)
    torch.nn.init.uniform_(net.bn0.running_mean, -1, 1)
    return net.eval()


def test_swin_steps_equal_the_library() -> None:
    net, ours = timm_net(), SmallSwin()
    ours.load_timm_weights(net.state_dict(), "timm")
    frames, _ = small_batch()
    with torch.no_grad():
        expected = net.forward_features(frames.flatten(0, 1)).flatten(1, 2)
        assert (ours(frames) - expected).abs().max() <= 1e-6 * expected.abs().max().clamp(min=1)


def test_swin_v1_steps_equal_the_library() -> None:
    net, ours = swin_v1_net().double(), SmallSwinV1()
    ours.load_timm_weights(net.state_dict(), "timm")
    ours, frames = ours.double(), small_batch()[0].double()
    assert [any(block.shift) for block in ours.blocks()] == [False, True, False, True, False, False]
    with torch.no_grad():
        expected = net.forward_features(frames.flatten(0, 1)).flatten(1, 2)
        assert (ours(frames) - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("axes", ["mel_time", "time_mel"])
def test_swin_hears_a_picture_of_three_equal_colours(axes: str) -> None:
    """As LAVISH does it; blocks, merges and norm are those of the frames."""
    fbank = Fbank(mel_bins=32, frames=32, shift_ms=15.0, seconds=0.5)
    net = AVPromptBackbone(SmallSwin(fbank=fbank, audio_axes=axes), "shared")
    frames, audio = small_batch()
    picture = fbank(audio.flatten(0, 1)).expand(-1, 3, -1, -1).unflatten(0, audio.shape[:2])
    picture = picture.transpose(3, 4) if axes == "time_mel" else picture
    with torch.no_grad():
        assert torch.allclose(net.audio(audio), net.visual(picture), atol=1e-5)
        assert net({"frames": frames, "audio": audio}).audio_tokens.shape == (2, 3, 16, 32)
    counted = {id(p) for p in net.visual.parameters()}
    assert sum(p.numel() for p in net.audio.parameters() if id(p) not in counted) == 16 * 4 * 4 + 16
    with pytest.raises(ArgumentError, match="picture of 32 x 32"):
        SwinSpectrogram(SmallSwin(), Fbank(mel_bins=32, frames=40))


def test_inputs_are_the_libraries() -> None:
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    openai = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    with torch.device("meta"):
        assert SwinV2(pretrained="ms_in22k").input == VisualInput(192, 192, *imagenet)
        assert SwinV1("swin_tiny_patch4_window7_224").input == VisualInput(224, 224, *imagenet)
        assert CLIP("ViT-B-32", "openai").input == CLIP("ViT-B-32").input == VisualInput(224, 224, *openai)
        released = CLIP("ViT-B-32", "openai", mean=imagenet[0], std=imagenet[1])  # DG-SCT's few-shot code
        assert released.input == VisualInput(224, 224, *imagenet)
        assert HTSAT(seconds=1.95).input.samples == 62400  # 1.95 s at 32 kHz, as LAVISH's questions hear
        fbank = Fbank(sample_rate=22050, seconds=2.0)
        assert CLIP("ViT-B-32", fbank=fbank).listener().input == AudioInput(22050, 2.0)
    for name in ("TinySwinV2", "TinyCLIP"):
        assert getattr(encoders, name)("none").input == VisualInput(64, 64, (0.5,) * 3, (0.5,) * 3)
    for name in ("TinyHTSAT", "TinyCLAP"):
        assert getattr(encoders, name)("none").input == AudioInput(16000, 1.0)
    with pytest.raises(ArgumentError, match="seconds"):
        AudioInput(16000, 0)


@pytest.mark.parametrize("encoder", ["TinyHTSAT", "TinyCLAP", "listener"])
def test_every_audio_encoder_counts_its_samples(encoder: str) -> None:
    """8 kHz sound for a 16 kHz encoder used to train without a word."""
    net = encoders.TinyCLIP("none").listener() if encoder == "listener" else getattr(encoders, encoder)("none")
    found = r"audio: got \(1, 2, 8000\); expected \(B, T, 16000\).*--data.sample_rate to 16000"
    with pytest.raises(ShapeError, match=found):
        net.embed(torch.zeros(1, 2, 8000))


def test_uint8_frames_of_another_size_go_through_normalise() -> None:
    """As audio-visual segmentation resizes: normalised, then resized, then taken as they are."""
    ours, frames = SmallSwin(), torch.randint(0, 256, (1, 2, 3, 40, 40), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (ours.input.mean, ours.input.std))
    normalised = ours.normalise(frames)
    assert torch.equal(normalised, (frames / 255 - mean) / std) and ours.normalise(normalised) is normalised
    resized = torch.nn.functional.interpolate(normalised[0], (32, 32), mode="bicubic")[None]
    assert torch.equal(ours.embed(resized), ours.stem(resized))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.normalise(frames).dtype == torch.float32


def test_every_public_encoder_has_an_example() -> None:
    public = [getattr(encoders, name) for name in encoders.__all__]
    networks = [kind for kind in public if isinstance(kind, type) and issubclass(kind, encoders.FrozenEncoder)]
    assert [kind.__name__ for kind in networks if ">>>" not in (kind.__doc__ or "")] == []


@pytest.mark.parametrize("repeat", [1, 2, 3, 5])
def test_htsat_steps_equal_the_library(repeat: int) -> None:
    net, ours = htsat_net(), SmallHTSAT(final_norm=True, repeat=repeat)
    ours.load_htsat_weights(net.state_dict(), "laion-clap")
    _, audio = small_batch()
    seen = {}
    net.norm.register_forward_hook(lambda module, inputs, output: seen.update(norm=output))
    with torch.no_grad():
        net({"waveform": audio.flatten(0, 1).repeat(1, repeat)})
        assert (ours(audio) - seen["norm"]).abs().max() <= 1e-6 * seen["norm"].abs().max()


def test_periodic_spectrogram_is_exact() -> None:
    ours = SmallHTSAT()
    _, audio = small_batch()
    whole = ours.log_mel(audio.flatten(0, 1).repeat(1, 5), 1)
    assert torch.allclose(ours.log_mel(audio.flatten(0, 1), 5), whole, atol=1e-5)


def test_segment_that_is_no_whole_number_of_hops_is_transformed_whole() -> None:
    ours, audio = SmallHTSAT(), 0.1 * torch.randn(1, 7777)
    assert torch.allclose(ours.log_mel(audio, 4), ours.log_mel(audio.repeat(1, 4), 1), atol=1e-5)


@pytest.mark.parametrize("layout", ["timm", "timm_old", "microsoft", "safetensors"])
def test_swin_weight_layouts(layout: str, tmp_path) -> None:
    expected = weights = timm_net().state_dict()
    path = tmp_path / "swin.pth"
    if layout == "safetensors":
        path = tmp_path / "swin.safetensors"
        save_file(weights, path)
    else:
        if layout != "timm":  # merging at the end of a stage, masks in the file, a flat classifier
            weights = {
                key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): value
                for key, value in weights.items()
            } | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}
        torch.save({"model": weights} if layout == "microsoft" else weights, path)
    ours = SmallSwin()
    ours._load("small", str(path))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[ours.library_key(name)]), name


@pytest.mark.parametrize("prefix", ["sed_model.", "module.audio_branch.", ""])
def test_htsat_weight_layouts(prefix: str, tmp_path) -> None:
    net, path = htsat_net(), tmp_path / "htsat.ckpt"
    state = {prefix + key: value for key, value in net.state_dict().items()}
    other = {"module.text_branch.weight": torch.zeros(1)} if "audio_branch" in prefix else {}
    torch.save({"state_dict": state | other}, path)
    ours = SmallHTSAT()
    ours._load(str(path))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, net.state_dict()[ours.library_key(name)]), name


@pytest.mark.parametrize("layout", ["timm", "microsoft", "larger_window"])
def test_swin_v1_weight_layouts(layout: str, tmp_path) -> None:
    weights, path = swin_v1_net().state_dict(), tmp_path / "swin.pth"
    expected = dict(weights)
    if layout == "microsoft":
        theirs = {
            key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): value
            for key, value in weights.items()
        }
        weights = {"model": theirs | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}}
    elif layout == "larger_window":  # timm resizes the tables of relative positions
        table = "layers.0.blocks.0.attn.relative_position_bias_table"
        weights = {**weights, table: torch.full((13 * 13, 2), 0.25)}
        expected[table] = torch.full((7 * 7, 2), 0.25)
    torch.save(weights, path)
    ours = SmallSwinV1(pretrained=str(path))
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, expected[ours.library_key(name)], atol=1e-6), name


def test_weights_errors(tmp_path) -> None:
    with pytest.raises(WeightsError, match="visual.pretrained.*nowhere.pth"):
        SwinV2("swinv2_tiny_window8_256", pretrained=str(tmp_path / "nowhere.pth"))
    with pytest.raises(WeightsError, match="ms_in99k"):
        SwinV2("swinv2_tiny_window8_256", pretrained="ms_in99k")
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"PK not a checkpoint")
    with pytest.raises(WeightsError, match="broken.ckpt"):
        SmallHTSAT(pretrained=str(broken))
    ours, weights = SmallSwin(), timm_net().state_dict()
    weights.pop("norm.bias")
    weights["surprise"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"missing \['norm.bias'\], unknown \['surprise'\]"):
        ours.load_timm_weights(weights, "file")


def test_other_front_end_is_refused() -> None:
    weights = htsat_net().state_dict()
    weights["logmel_extractor.melW"] = weights["logmel_extractor.melW"] * 2
    with pytest.raises(WeightsError, match="logmel_extractor.melW"):
        SmallHTSAT().load_htsat_weights(weights, "file")


def test_wrong_input_sizes_are_named() -> None:
    with pytest.raises(ShapeError, match="--data.image_size"):
        SmallSwin().embed(torch.zeros(1, 3, 3, 64, 64))
    with pytest.raises(ShapeError, match="one row of samples a segment"):
        SmallHTSAT().embed(torch.zeros(3, 8000))
    with pytest.raises(ShapeError, match="spectrogram frames"):
        SmallHTSAT().embed(torch.zeros(1, 9, 8000))


@pytest.mark.parametrize("encoder", [SmallSwin, SmallHTSAT])
def test_frozen_stays_in_eval_mode(encoder) -> None:
    ours = encoder().train()
    assert not any(module.training for module in ours.modules())
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    trained = encoder(frozen=False).train()
    assert all(module.training for module in trained.modules())
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_released_mode_moves_statistics_and_says_which() -> None:
    ours = SmallHTSAT(released_mode=True).train()
    before, (_, audio) = ours.bn0.running_mean.clone(), small_batch()
    ours(audio)
    assert not torch.equal(before, ours.bn0.running_mean)
    assert set(ours.mutable_buffers()) == {"bn0.running_mean", "bn0.running_var", "bn0.num_batches_tracked"}
    assert SmallHTSAT().mutable_buffers() == []


def test_cached_bias_follows_the_weights() -> None:
    ours, (frames, _) = SmallSwin(), small_batch()
    with torch.no_grad():
        first = ours(frames)
        block = ours.stages[0].blocks[0]
        block.attn.cpb_mlp[2].weight.add_(1.0)
        block.forget()  # of a weight that is changed by hand; loading one does so
        changed = ours(frames)
        assert not torch.allclose(first, changed)
        state = ours.state_dict()
        state["stages.0.blocks.0.attn.cpb_mlp.2.weight"] = state["stages.0.blocks.0.attn.cpb_mlp.2.weight"] - 1.0
        ours.load_state_dict(state)
        assert torch.allclose(first, ours(frames), atol=1e-5)


def test_fingerprint_tells_weights_apart() -> None:
    torch.manual_seed(0)
    first = SmallSwin()
    torch.manual_seed(1)
    second = SmallSwin()
    assert first.fingerprint() != second.fingerprint()
    second.load_state_dict(first.state_dict())
    assert first.fingerprint() == second.fingerprint()


def test_full_size_networks_on_the_meta_device() -> None:
    with torch.device("meta"):
        visual, audio = SwinV2(), HTSAT()
    # facts of the published networks, less their classification heads (and HTS-AT's unused last norm)
    assert sum(p.numel() for p in visual.parameters()) == 195_202_932
    in22k_head = 1536 * 21841 + 21841
    assert sum(p.numel() for p in visual.parameters()) + in22k_head == 228_772_549
    specs = [block.spec for block in visual.blocks()]
    assert [spec.tokens for spec in (specs[0], specs[2], specs[4], specs[-1])] == [2304, 576, 144, 36]
    assert [block.spec.dim for block in audio.blocks()] == [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2


@pytest.mark.parametrize(
    "build", [encoders.TinySwinV2, encoders.TinyHTSAT, encoders.TinyCLIP], ids=lambda kind: kind.__name__
)
def test_sizes_alone_are_those_of_a_network_with_values(build: type[nn.Module]) -> None:
    with sizes_alone():
        sizes = build().state_dict()
    values = build(pretrained="none").state_dict()
    assert {name: value.shape for name, value in sizes.items()} == {name: value.shape for name, value in values.items()}
    assert all(value.is_meta for value in sizes.values()) and not any(value.is_meta for value in values.values())


def test_timm_knows_the_default_model() -> None:
    assert timm.is_model("swinv2_large_window12_192")
