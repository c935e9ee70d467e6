"""Plain transformers of timm, transformers and dasheng: the libraries' function, their files, spectrograms, edits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from small import SEGMENTS, SmallCLIP, SmallHTSAT, SmallSwin, small_batch
from torch import Tensor, nn

from avprompt import AVPromptBackbone
from avprompt.encoders import ASTransformer, Dasheng, Fbank, SwinV1, TimmViT, encoder_of_tag
from avprompt.encoders.ast import AST_FBANK
from avprompt.encoders.base import LAYERS, BlockSpec, FrozenBlock, FrozenEncoder, sizes_alone
from avprompt.encoders.plain_vit import PlainViTBlock, resize_positions
from avprompt.errors import ArgumentError, ShapeError, WeightsError
from avprompt.methods import AVSTFP, MaPLe

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2}
#: architecture -> further sizes; patches of 14 or 16
MODELS = {
    "vit_tiny_patch16_224": {},
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_giant_patch14_dinov2": {"mlp_ratio": 4.0},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch16_siglip_gap_224": {},
    "vit_base_patch16_clip_224": {},
    "vit_so150m_patch16_reg4_map_256": {},
    "eva_giant_patch14_224": {"mlp_ratio": 4.0},
    "eva02_tiny_patch14_224": {},
    "eva02_base_patch14_224": {},
    "eva02_large_patch14_224": {},
    "vit_small_patch16_dinov3": {},
    "vit_pe_core_tiny_patch16_384": {},
    "vit_base_patch16_rope_reg1_gap_256": {},
}
ROTARY = (
    "eva02_tiny_patch14_224",
    "eva02_base_patch14_224",
    "eva02_large_patch14_224",
    "vit_small_patch16_dinov3",
    "vit_pe_core_tiny_patch16_384",
    "vit_base_patch16_rope_reg1_gap_256",
)


def patch(model: str) -> int:
    return 14 if "patch14" in model else 16


def small(model: str, **options: object) -> TimmViT:
    """The architecture at width 32 and depth 2 over 2 x 3 patches."""
    kind = type("SmallTimmViT", (TimmViT,), {"sizes": SIZES | MODELS[model]})
    return kind(model, img_size=(2 * patch(model), 3 * patch(model)), **options)


def draw(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that leave no branch dead: layer scales, registers and biases far from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + ("norm" in name and name.endswith("weight")) + ("gamma" in name))
            else:
                parameter.copy_(noise * (0.5 if parameter.ndim == 3 else parameter[0].numel() ** -0.5))
    return net.eval()


def library(model: str) -> nn.Module:
    size = 2 * patch(model), 3 * patch(model)
    return draw(timm.create_model(model, num_classes=0, img_size=size, **SIZES | MODELS[model]))


def frames_for(encoder: FrozenEncoder, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(1, 2, 3, encoder.input.height, encoder.input.width, dtype=dtype)


@pytest.mark.parametrize("model", MODELS)
def test_steps_equal_timm(model: str) -> None:
    """Tokens are normed by `fc_norm` where timm norms what it pools.

    timm computes DINOv3's rotary table anew in the module's dtype; here it is computed once, in float32.
    """
    net, ours = library(model), small(model)
    ours.load_timm_weights(net.state_dict(), "timm")
    for name, value in ours.state_dict().items():
        assert torch.equal(value, net.state_dict()[ours.library_key(name)]), name
    net, ours = net.double(), ours.double()
    frames = frames_for(ours)
    with torch.no_grad():
        expected = net.fc_norm(net.forward_features(frames.flatten(0, 1)))
        limit = 1e-6 if "dinov3" in model else 1e-12
        assert (ours(frames) - expected).abs().max() < limit * expected.abs().max()
    spec = ours.stages[0].blocks[0].spec
    assert spec.tokens == expected.shape[1] and spec.plain is (model not in ROTARY)
    if spec.prefix:
        assert spec.class_token is (net.cls_token is not None)
    known = timm.models.get_pretrained_cfg(model)
    assert (ours.input.mean, ours.input.std, ours.input.interpolation) == (known.mean, known.std, known.interpolation)


@pytest.mark.parametrize(
    "model, what",
    [
        ("vit_srelpos_small_patch16_224", "VisionTransformerRelPos"),
        ("deit_tiny_distilled_patch16_224", "Distilled"),
        ("resnet18", "ResNet"),
        ("vit_small_r26_s32_224", "HybridEmbed"),
        ("eva02_enormous_patch14_clip_224", "PostNorm"),
        ("vit_base_patch16_xp_224", "ParallelScaling"),
        ("vit_small_patch16_rope_mixed_224", "rotary positions"),
        ("vit_tinny_patch16_224", "near it: .*vit_tiny_patch16_224"),
    ],
)
def test_other_networks_are_refused(model: str, what: str) -> None:
    with pytest.raises(ArgumentError, match=what), sizes_alone():
        TimmViT(model)


def test_colours_of_a_tag_of_arguments_and_of_nothing_known() -> None:
    with sizes_alone():
        half, imagenet = (0.5,) * 3, (0.485, 0.456, 0.406)
        assert TimmViT("vit_base_patch16_224").input.mean == half  # the architecture's first tag
        assert TimmViT("vit_base_patch16_224", "mae").input.mean == imagenet
        assert TimmViT("vit_base_patch16_224.mae", "weights/mae.pth").input.mean == imagenet
        assert TimmViT("vit_base_patch16_224.mae", mean=half).input.mean == half
        assert TimmViT("vit_small_patch14_dinov2", img_size=224).stages[0].blocks[0].spec.grid == (16, 16)
        with pytest.raises(WeightsError, match="a tag of vit_base_patch16_224: .*augreg_in21k.*mae"):
            TimmViT("vit_base_patch16_224", "augreg_in22k")


@pytest.mark.parametrize("kind", ["timm", "headed", "wrapped", "dinov2", "other_size"])
def test_files_of_weights(kind: str, tmp_path: Path) -> None:
    """What timm and the authors of DINOv2 publish, from files in their exact layout."""
    model, path = "vit_small_patch14_reg4_dinov2", tmp_path / "weights.pth"
    net = library(model)
    state = dict(net.state_dict())
    if kind == "timm":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    elif kind == "headed":
        torch.save({**state, "head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}, path)
    elif kind == "wrapped":
        torch.save({"model": state}, path)
    elif kind == "dinov2":  # registers have their own name, and the class token its own position
        theirs = {name.replace("reg_token", "register_tokens"): value for name, value in state.items()}
        cls = torch.randn(1, 1, 32)
        theirs["pos_embed"] = torch.cat((cls, state["pos_embed"]), dim=1)
        theirs["cls_token"] = state["cls_token"] - cls
        torch.save({**theirs, "mask_token": torch.zeros(1, 32)}, path)
    else:
        big = draw(timm.create_model(model, num_classes=0, img_size=(42, 42), **SIZES))
        torch.save(big.state_dict(), path)
        big.set_input_size((28, 42))
        state = big.state_dict()
    ours = small(model, pretrained=str(path))
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, state[ours.library_key(name)], atol=1e-6), name


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    model = "vit_tiny_patch16_224"
    state = library(model).state_dict()
    for name, content, what in (
        ("more.pth", {**state, "surprise": torch.zeros(1)}, "unknown .'surprise'"),
        ("less.pth", {key: value for key, value in state.items() if key != "norm.bias"}, "missing .'norm.bias'"),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(WeightsError, match=what):
            small(model, pretrained=str(tmp_path / name))
    with pytest.raises(WeightsError, match="nowhere.pth"):
        small(model, pretrained=str(tmp_path / "nowhere.pth"))
    with pytest.raises(WeightsError, match="give the file's path"):
        small(model, pretrained="augreg_in21k")  # no network in tests


@pytest.mark.parametrize("stem", ["sum", "mean"])
def test_any_plain_transformer_hears(stem: str) -> None:
    model = "vit_small_patch14_reg4_dinov2"
    tower = small(model, fbank=Fbank(mel_bins=42, frames=50), segments=SEGMENTS, audio_stem=stem)
    draw(tower)
    nn.init.zeros_(tower.temporal_embedding)
    net = AVPromptBackbone(tower, "shared")
    assert net.audio.stages[0].blocks[0].spec == BlockSpec(32, (3, 3), 0, 5, True, 128)
    assert all(a.attn is v.attn for v, a in zip(net.visual.blocks(), net.audio.blocks()))
    registers = small("vit_so150m_patch16_reg4_map_256", fbank=Fbank(mel_bins=42, frames=50)).listener()
    assert registers.stages[0].blocks[0].spec.class_token is False
    audio = 0.1 * torch.randn(1, SEGMENTS, 16000)
    # the same network of timm's over three equal colours, with the table that the spectrogram has
    same = timm.create_model(model, num_classes=0, img_size=42, **SIZES).eval()
    state = {
        net.visual.library_key(name): value
        for name, value in net.visual.state_dict().items()
        if name != "temporal_embedding"
    }
    table = resize_positions(state["pos_embed"][0], 0, (2, 3), (3, 3))  # DINOv2's registers have no positions
    same.load_state_dict({**state, "pos_embed": table[None]})
    picture = net.audio.fbank(audio[0])[..., :42].expand(-1, 3, -1, -1) / (3 if stem == "mean" else 1)
    with torch.no_grad():
        expected = same.forward_features(picture)
        assert (net.audio(audio) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_rotary_positions_do_not_hear_and_are_not_looked_through() -> None:
    rotary = small("eva02_tiny_patch14_224")
    with pytest.raises(ArgumentError, match="rotary"):
        rotary.listener()
    with pytest.raises(ShapeError, match="at least 7"):
        rotary.stages[0].blocks[0].attend(torch.zeros(1, 3, 32))
    for method in (AVSTFP(fusion=False), MaPLe(depth=1)):
        with pytest.raises(ArgumentError, match="plain"):
            AVPromptBackbone(rotary, SmallCLIP().listener(), method)
    block, x = draw(rotary).stages[0].blocks[0], torch.randn(2, 9, 32)  # two tokens behind the grid are not rotated
    with torch.no_grad():
        swapped = block.attention(x[:, [*range(7), 8, 7]])
        assert torch.allclose(block.attention(x)[:, -2:].flip(1), swapped[:, -2:], atol=1e-6)


@pytest.mark.parametrize("method", [AVSTFP, lambda: MaPLe(num_tokens=2, depth=2, text_width=16)])
@pytest.mark.parametrize("model", ["vit_small_patch14_reg4_dinov2", "eva_giant_patch14_224"])
def test_methods_for_plain_blocks_run_on_any(model: str, method) -> None:
    torch.manual_seed(0)
    tower = small(model, fbank=Fbank(mel_bins=42, frames=50))
    net = AVPromptBackbone(tower, "shared", method())
    frames = torch.randn(2, SEGMENTS, 3, tower.input.height, tower.input.width)
    features = net({"frames": frames, "audio": 0.1 * torch.randn(2, SEGMENTS, 16000)})
    (features.visual * torch.randn_like(features.visual)).sum().backward()  # a plain sum is blind behind a layer norm
    assert features.visual.shape == (2, SEGMENTS, 32)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.prompts.parameters())


# audio transformers

AST_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


class SmallAST(ASTransformer):
    sizes = AST_SIZES


@pytest.fixture(scope="module")
def ast_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """transformers' network with a classifier, and the folder that it writes, with the names of the hub's files."""
    from transformers import ASTConfig, ASTForAudioClassification

    net, folder = draw(ASTForAudioClassification(ASTConfig(**AST_SIZES))), tmp_path_factory.mktemp("ast")
    net.save_pretrained(folder)
    names = load_file(folder / "model.safetensors")
    assert any(".encoder.layer.0.attention.attention.query." in name for name in names)
    return net.audio_spectrogram_transformer, folder


def test_ten_seconds_equal_transformers_extractor_and_network(ast_files: tuple[nn.Module, Path]) -> None:
    from transformers import ASTFeatureExtractor

    net, folder = ast_files
    fbank = Fbank(frames=1024, mean=AST_FBANK.mean, std=AST_FBANK.std, fill="before", seconds=10)
    audio = 0.1 * torch.randn(1, 2, 160000)
    given = ASTFeatureExtractor()([np.asarray(row) for row in audio[0]], sampling_rate=16000, return_tensors="pt")
    for source in (folder, folder / "model.safetensors"):
        ours = SmallAST(str(source), fbank=fbank)
        for name, value in ours.state_dict().items():
            assert torch.equal(value, net.state_dict()[ours.library_key(name)]), name
        with torch.no_grad():
            expected = net(given["input_values"]).last_hidden_state
            assert (ours(audio) - expected).abs().max() < 1e-6 * expected.abs().max()


def test_one_second_has_the_centre_of_the_positions(ast_files: tuple[nn.Module, Path]) -> None:
    from transformers import ASTConfig, ASTModel

    net, folder = ast_files
    ours, audio = SmallAST(str(folder)), 0.1 * torch.randn(1, 3, 16000)
    short, state = ASTModel(ASTConfig(**AST_SIZES, max_length=98)).eval(), dict(net.state_dict())
    table = state["embeddings.position_embeddings"][0]
    centre = table[2:].unflatten(0, (12, 101))[:, 50 - 4 : 50 - 4 + 9].flatten(0, 1)  # as ast_models.py of its authors
    short.load_state_dict({**state, "embeddings.position_embeddings": torch.cat((table[:2], centre))[None]})
    with torch.no_grad():
        expected = short(ours.fbank(audio[0])[:, 0].transpose(1, 2)).last_hidden_state
        assert (ours(audio) - expected).abs().max() < 1e-6 * expected.abs().max()


def test_ast_files_that_do_not_fit(ast_files: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, folder = ast_files
    for arguments, what in (
        ({"pretrained": "MIT/ast-nowhere"}, "MIT/ast-nowhere.*give their path"),
        ({"pretrained": str(tmp_path / "no.safetensors")}, "no.safetensors"),
        ({"pretrained": str(tmp_path)}, "model.safetensors"),
        ({"pretrained": str(folder), "stride": 12}, "stride 12"),
    ):
        with pytest.raises(WeightsError, match=f"(?s){what}"):
            SmallAST(**arguments)
    state = load_file(folder / "model.safetensors")
    for name, content in (("more", {**state, "surprise": torch.zeros(1)}), ("less", dict(list(state.items())[6:]))):
        save_file(content, tmp_path / f"{name}.safetensors")
        with pytest.raises(WeightsError, match="missing .*unknown"):
            SmallAST(str(tmp_path / f"{name}.safetensors"))
    with pytest.raises(ArgumentError, match="a patch"):
        SmallAST(fbank=Fbank(frames=12))


class SmallDasheng(Dasheng):
    sizes = {**SIZES, "init_values": 0.1}


@pytest.mark.parametrize("seconds", [0.5, 1.0, 10.0])
def test_dasheng_equals_its_package(seconds: float, tmp_path: Path) -> None:
    """Alone, as its front end cuts off below the loudest of a batch; float32, where its attention is written out."""
    from dasheng.pretrained.pretrained import Dasheng as Library

    net, path = draw(Library(**SmallDasheng.sizes)), tmp_path / "dasheng.pt"
    nn.init.normal_(net.init_bn[1].running_mean)
    torch.save({"model": net.state_dict(), "config": {"embed_dim": 32}}, path)
    ours = SmallDasheng(pretrained=str(path), seconds=seconds)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, net.state_dict()[ours.library_key(name)]), name
    audio = 0.1 * torch.randn(1, 2, ours.input.samples)
    audio[0, 1] *= 1e-4
    with torch.no_grad():
        expected = torch.cat([net(row[None]) for row in audio[0]])
        assert (ours(audio) - expected).abs().max() < 1e-6 * expected.abs().max()


def test_dasheng_errors(tmp_path: Path) -> None:
    for arguments, what in (({"model": "dasheng_09B"}, "dasheng_06B"), ({"seconds": 12.0}, "at most 10")):
        with pytest.raises(ArgumentError, match=what):
            SmallDasheng(**arguments)
    with pytest.raises(WeightsError, match="none, zenodo"):
        SmallDasheng(pretrained="hub")
    state = SmallDasheng().state_dict()
    other = {SmallDasheng().library_key(name): value for name, value in state.items()}
    torch.save({**other, "front_end.0.mel_scale.fb": torch.zeros(257, 64)}, tmp_path / "bank.pt")
    with pytest.raises(WeightsError, match="other spectrograms"):
        SmallDasheng(pretrained=str(tmp_path / "bank.pt"))


def test_full_size_audio_networks_on_the_meta_device() -> None:
    with sizes_alone():
        assert sum(p.numel() for p in Dasheng().parameters()) == 85_447_808
        ten = Fbank(frames=1024, seconds=10)
        # published: 87 M with its classes
        assert sum(p.numel() for p in ASTransformer(fbank=ten).parameters()) == 86_187_264
        assert ASTransformer().stages[0].blocks[0].spec.tokens == 2 + 12 * 9


# names


def test_encoders_by_name() -> None:
    with sizes_alone():
        found = {
            tag: encoder_of_tag(tag)
            for tag in (
                "timm:vit_small_patch14_dinov2.lvd142m",
                "vit_small_patch14_dinov2.lvd142m",
                "timm:swinv2_tiny_window8_256",
                "swin_tiny_patch4_window7_224.ms_in1k",
                "open_clip:ViT-B-32/openai",
                "ViT-B-32",
                "open_clip:ViT-B-32/laion2b_s34b_b79k",
                "ast:MIT/ast-finetuned-audioset-10-10-0.4593",
                "ast",
                "dasheng:dasheng_base",
                "clap:tiny",
                "htsat",
            )
        }
    kinds = [type(encoder).__name__ for encoder in found.values()]
    assert kinds == [
        "TimmViT",
        "TimmViT",
        "SwinV2",
        "SwinV1",
        "CLIP",
        "CLIP",
        "CLIP",
        "ASTransformer",
        "ASTransformer",
        "Dasheng",
        "CLAPAudio",
        "HTSAT",
    ]
    activations = [
        type(found[tag].stages[0].blocks[0].feed_forward.act).__name__
        for tag in ("open_clip:ViT-B-32/openai", "open_clip:ViT-B-32/laion2b_s34b_b79k")
    ]
    assert activations == ["QuickGELU", "GELU"]
    assert encoder_of_tag("timm:vit_tiny_patch16_224", img_size=32).input.height == 32


def test_a_file_for_a_named_tag(tmp_path: Path) -> None:
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    ours = encoder_of_tag(
        "timm:vit_tiny_patch16_224.augreg_in21k", pretrained=str(tmp_path / "weights.safetensors"), img_size=32
    )
    assert torch.equal(ours.conv.weight, net.patch_embed.proj.weight) and ours.input.mean == (0.5,) * 3


@pytest.mark.parametrize(
    "tag, error, what",
    [
        ("timm:vit_smal_patch14_dinov2", ArgumentError, "near it: .*vit_small_patch14_dinov2"),
        ("vit_smal_patch14_dinov2", ArgumentError, "near it: .*vit_small_patch14_dinov2"),
        ("open_clip:ViT-B-61", ArgumentError, "near it: .*ViT-B-16"),
        ("torchvision:vit_b_16", ArgumentError, "timm:MODEL"),
        ("open_clip:RN50", ArgumentError, "plain vision transformer"),
        ("open_clip:ViT-B-16/opanai", WeightsError, "openai"),
        ("timm:vit_small_patch14_dinov2.lvd142", WeightsError, "lvd142m"),
        (None, ArgumentError, "NoneType"),
        ("timm:vit_small_patch14_dinov2.lvd142m", WeightsError, "give the file's path"),
    ],
)
def test_wrong_names(tag: str, error: type, what: str) -> None:
    options = {"img_size": 28} if tag and "lvd" in tag else {}
    with pytest.raises(error, match=what):
        encoder_of_tag(tag, **options)


# edits


class SmallSwinV1(SwinV1):
    def _build(self, model: str) -> nn.Module:
        from timm.models.swin_transformer import SwinTransformer

        return draw(
            SwinTransformer(
                img_size=32, patch_size=4, num_classes=0, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4
            )
        )


BLOCKS = {
    "swin_v2": lambda: SmallSwin().stages[0].blocks[1],
    "swin_v1": lambda: SmallSwinV1().stages[0].blocks[1],
    "htsat": lambda: SmallHTSAT().stages[0].blocks[1],
    "clip": lambda: SmallCLIP().stages[0].blocks[1],
    "vit": lambda: small("vit_small_patch14_dinov2").stages[0].blocks[1],
    "gated": lambda: small("vit_giant_patch14_dinov2").stages[0].blocks[1],
    "split": lambda: small("eva02_base_patch14_224").stages[0].blocks[1],
    "ast": lambda: SmallAST().stages[0].blocks[1],
    "dasheng": lambda: SmallDasheng().stages[0].blocks[1],
}


@pytest.fixture(params=BLOCKS)
def block(request: pytest.FixtureRequest) -> FrozenBlock:
    return draw(BLOCKS[request.param]().double())


def edit_weights(block: FrozenBlock, name: str) -> Tensor:
    into, out = block.spec.linear(name)
    return 0.3 * torch.randn(out, into, dtype=torch.float64)


def weights_of(block: FrozenBlock, name: str) -> list[tuple[nn.Parameter, slice]]:
    """The rows of parameters that hold the linear layer `name`."""
    attn, mlp, dim = block.attn, block.feed_forward, block.spec.dim
    if name in "qkv" and getattr(attn, "qkv", None) is not None:
        place = "qkv".index(name)
        return [(attn.qkv.weight, slice(place * dim, (place + 1) * dim))]
    if name in "qkv":
        return [(getattr(attn, f"{name}_proj").weight, slice(None))]
    if name == "fc1" and getattr(mlp, "value", None) is not None:
        return [(mlp.fc1.weight, slice(None)), (mlp.value.weight, slice(None))]
    return [({"proj": attn.proj, "fc1": mlp.fc1, "fc2": mlp.fc2}[name].weight, slice(None))]


@pytest.mark.parametrize("name", LAYERS)
def test_an_edit_is_a_change_of_the_layer_s_weights(name: str, block: FrozenBlock) -> None:
    """A linear edit equals its matrix added to the frozen one, as a merged LoRA does."""
    x, matrix = torch.randn(2, block.spec.tokens, block.spec.dim, dtype=torch.float64), edit_weights(block, name)
    branch = block.mlp if name.startswith("fc") else block.attention
    with torch.no_grad():
        plain, got = branch(x), branch(x, {name: lambda tokens: tokens @ matrix.T})
        assert (got - plain).abs().max() > 1e-3
        parts = weights_of(block, name)
        for (weight, rows), part in zip(parts, matrix.chunk(len(parts))):
            weight[rows] += part
        assert torch.allclose(branch(x), got, atol=1e-10)


def test_no_edit_and_zero_edits_are_the_library_bit_for_bit(block: FrozenBlock) -> None:
    x = torch.randn(2, block.spec.tokens, block.spec.dim, dtype=torch.float64)
    zero = {
        name: lambda tokens, name=name: tokens.new_zeros(*tokens.shape[:-1], block.spec.linear(name)[1])
        for name in LAYERS
    }
    with torch.no_grad():
        for branch in (block.attention, block.mlp):
            assert all(torch.equal(branch(x), branch(x, edits)) for edits in (None, {}, zero))
        assert torch.equal(block(x), x + block.attention(x) + block.mlp(x + block.attention(x)))


def test_an_edit_of_an_unknown_layer(block: FrozenBlock) -> None:
    x = torch.zeros(1, block.spec.tokens, block.spec.dim, dtype=torch.float64)
    for branch in (block.attention, block.mlp):
        with pytest.raises(ArgumentError, match="fc3.*names among q, k, v, proj, fc1, fc2"):
            branch(x, {"fc3": lambda tokens: tokens})
    with pytest.raises(ArgumentError, match="names among"):
        block.spec.linear("out")


def test_attention_in_two_halves() -> None:
    """CoLA reads the mixed values before they are projected; q and k norms see prompts as well."""
    block = draw(small("vit_so150m_patch16_reg4_map_256")).stages[0].blocks[0]
    assert isinstance(block, PlainViTBlock)
    x, prompts = block.norm1(torch.randn(2, block.spec.tokens, 32)), torch.randn(3, 32)
    halves = {"q": lambda tokens: tokens, "proj": lambda tokens: 2 * tokens}
    with torch.no_grad():
        assert torch.equal(block.project_out(block.mix(x, edits=halves), halves), block.attend(x, edits=halves))
        longer = torch.cat((prompts.expand(2, -1, -1), x), dim=1)
        expected = block.attend(x, longer)
        assert torch.allclose(block.attend(x, None, *block.project(prompts)), expected, atol=1e-6)


def test_uint8_frames_are_normalised_on_the_way_in() -> None:
    ours = small("vit_small_patch14_dinov2")
    frames = torch.randint(0, 256, (1, 2, 3, 28, 42), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (ours.input.mean, ours.input.std))
    assert torch.equal(ours.embed(frames), ours.embed((frames / 255 - mean) / std))
    assert "frame_mean" not in ours.state_dict() and ours.fingerprint() == ours.to(torch.float32).fingerprint()
    other = small("vit_small_patch14_dinov2", mean=(0.1, 0.2, 0.3))
    other.load_state_dict(ours.state_dict())
    assert other.fingerprint() == ours.fingerprint() and not torch.equal(other.embed(frames), ours.embed(frames))
    assert ours.double().normalise(frames).dtype == torch.float64
    assert ours.bfloat16().normalise(frames).dtype == torch.bfloat16
    for wrong in (frames.long(), frames.bool(), frames.flatten(0, 1)):
        with pytest.raises(ShapeError, match="frames"):
            ours.embed(wrong)
    with pytest.raises(ShapeError, match="uint8"):
        ours.normalise(frames[:, :, :2])


def test_small_batches_are_what_the_toys_take() -> None:
    frames, audio = small_batch()
    assert SmallSwin().embed(frames).shape[0] == SmallHTSAT().embed(audio).shape[0] == 6
    with pytest.raises(ShapeError, match=r"\(B, T, 8000\): 0.5 s at 16000 Hz.*--data.sample_rate to 16000"):
        SmallHTSAT().embed(audio[..., ::2])
    with pytest.raises(ShapeError, match="floating"):
        SmallHTSAT().embed(audio.int())
