"""The frozen encoders equal the libraries' own forward, load the published layouts, and stay frozen."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from small import SmallHTSAT, SmallSwin, enliven, small_batch
from timm.models.swin_transformer_v2 import SwinTransformerV2

from avprompt.encoders import HTSAT, SwinV2
from avprompt.encoders.htsat import FrontEnd, htsat_module
from avprompt.errors import ShapeError, WeightsError


def timm_net() -> SwinTransformerV2:
    net = SwinTransformerV2(img_size=32, patch_size=4, num_classes=5, embed_dim=16, depths=(4, 2), num_heads=(2, 4),
                            window_size=4)
    enliven(net, seed=1)
    return net.eval()


def htsat_net():
    small = FrontEnd(sample_rate=16000, window_size=512, hop_size=800, mel_bins=16, fmin=50, fmax=8000)
    net = htsat_module().HTSAT_Swin_Transformer(config=small, num_classes=5, spec_size=32, embed_dim=16, depths=[2, 2],
                                                num_heads=[2, 4], window_size=4)
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
            weights = {key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): value
                       for key, value in weights.items()} | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}
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


def test_weights_errors(tmp_path) -> None:
    with pytest.raises(WeightsError, match="visual.init_args.pretrained.*nowhere.pth"):
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
        ours.stages[0].blocks[0].attn.cpb_mlp[2].weight.add_(1.0)
        assert not torch.allclose(first, ours(frames))


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


def test_timm_knows_the_default_model() -> None:
    assert timm.is_model("swinv2_large_window12_192")
