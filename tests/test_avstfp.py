"""AV-STFP: the published parameter counts, and what each kind of prompt does and does not do."""

from __future__ import annotations

import pytest
import torch
from small import SEGMENTS, SmallCLIP, SmallHTSAT, SmallSpectrogram, small_clips
from torch import Tensor, nn

from avprompt import AVPromptBackbone
from avprompt.encoders import CLIP, Fbank
from avprompt.encoders.base import sizes_alone
from avprompt.errors import ArgumentError
from avprompt.methods import AVSTFP
from avprompt.tasks import AVAR, AVQA, AVELinear

ROWS = {"none": "", "T": "t", "S": "s", "F": "f", "T+S": "ts", "S+F": "sf", "T+F": "tf", "T+S+F": "tsf"}
#: model, gate -> trained parameters of the rows above: 29 classes, ten segments
PUBLISHED = {
    ("ViT-L-14", "none"): (1086493, 1283101, 1578013, 1135645, 1774621, 1627165, 1332253, 1823773),
    ("ViT-L-14", "zero_scalar"): (1086493, 1283149, 1578013, 1135693, 1774669, 1627213, 1332349, 1823869),
    ("ViT-B-16", "none"): (818717, 892445, 1003037, 837149, 1076765, 1021469, 910877, 1095197),
    ("ViT-B-16", "zero_scalar"): (818717, 892469, 1003037, 837173, 1076789, 1021493, 910925, 1095245),
}


def count(model: nn.Module) -> tuple[int, int]:
    """Trained parameters and all."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def full_size(model: str, prompts: AVSTFP, segments: int = 10, **options: object) -> AVPromptBackbone:
    with sizes_alone():
        return AVPromptBackbone(CLIP(model, segments=segments, train_norm=True, **options), "shared", prompts)


def ave(model: str, prompts: AVSTFP, modality: str = "both", **options: object) -> tuple[int, int]:
    with sizes_alone():
        return count(AVELinear(full_size(model, prompts, **options), 28, modality))


@pytest.mark.parametrize(("model", "gate"), PUBLISHED)
def test_parameters_of_every_row(model: str, gate: str) -> None:
    with sizes_alone():
        got = tuple(ave(model, AVSTFP("t" in row, "s" in row, "f" in row, gate=gate))[0] for row in ROWS.values())
    assert got == PUBLISHED[model, gate]


@pytest.mark.parametrize(
    ("model", "frozen", "one_side", "branch", "prompted_branch"),
    [("ViT-L-14", 303_443_968, 1_430_557, 54_301, 398_365), ("ViT-B-16", 86_032_128, 947_741, 40_733, 169_757)],
)
def test_parameters_of_branches(model: str, frozen: int, one_side: int, branch: int, prompted_branch: int) -> None:
    with sizes_alone():
        trained, everything = ave(model, AVSTFP())
        assert everything - trained == frozen
        for side in ("visual", "audio"):
            only = {"visual": side == "visual", "audio": side == "audio", "fusion": False, "gate": "none"}
            assert ave(model, AVSTFP(**only))[0] == one_side
            assert ave(model, AVSTFP(**only), side)[0] == prompted_branch
            assert ave(model, AVSTFP(False, False, False), side)[0] == branch
        width = full_size(model, AVSTFP()).visual_dim
        assert ave(model, AVSTFP(), audio_class_token=True)[0] == trained + width


def test_parameters_of_full_fine_tuning() -> None:
    with sizes_alone():
        tower = CLIP("ViT-L-14", segments=10, frozen=False)
        assert count(AVELinear(AVPromptBackbone(tower, "separate"), 28)) == (606_844_957, 606_844_957)


@pytest.mark.parametrize(
    ("model", "trained", "small", "large"),
    [("ViT-L-14", 9_332_524, 312_776_492, 312_710_956), ("ViT-B-16", 8_702_252, 94_734_380, 94_696_748)],
)
def test_parameters_of_avqa(model: str, trained: int, small: int, large: int) -> None:
    """On spectrograms of 128 x 102, and of 224 x 224, which share the table of positions."""
    for fbank, everything in ((Fbank(), small), (Fbank(224, 224, 4.4), large)):
        backbone = full_size(model, AVSTFP(gate="none"), fbank=fbank)
        with sizes_alone():
            assert count(AVQA(backbone, 42, 93, width=512)) == (trained, everything)


@pytest.mark.parametrize(
    ("classes", "large", "base"), [(31, 1824799, 1096223), (32, 1825312, 1096736), (34, 1826338, 1097762)]
)
def test_parameters_of_avar(classes: int, large: int, base: int) -> None:
    for model, expected, width in (("ViT-L-14", large, 1024), ("ViT-B-16", base, 768)):
        for segments, fewer in ((10, 0), (8, 4 * width)):
            backbone = full_size(model, AVSTFP(gate="none"), segments)
            with sizes_alone():
                assert count(AVAR(backbone, classes))[0] == expected - fewer


def small(method: AVSTFP, shared: bool = True) -> AVPromptBackbone:
    torch.manual_seed(0)
    net = AVPromptBackbone(SmallCLIP(), "shared" if shared else SmallSpectrogram(), method).eval()
    for name, parameter in net.prompts.named_parameters():
        nn.init.constant_(parameter, 0.7) if name.endswith("gate") else nn.init.normal_(parameter)
    return net


def changed(net: AVPromptBackbone, what: str, segment: int) -> tuple[list[bool], list[bool]]:
    """Which segments' visual and audio features change with one segment of `what`."""
    batch = small_clips(clips=1)
    with torch.no_grad():
        before = net(batch)
        batch[what][:, segment] *= -1.3
        after = net(batch)
    # a whole clip's samples are shared by nothing in the front end: only attention carries news between segments
    return tuple(
        [not torch.allclose(a, b, atol=1e-6) for a, b in zip(x[0], y[0])]
        for x, y in ((before.visual, after.visual), (before.audio, after.audio))
    )


@pytest.mark.parametrize(
    ("row", "visual", "audio"),
    [
        ("s", [True, False, False], [False] * 3),
        ("sf", [True, False, False], [True, False, False]),
        ("ts", [True] * 3, [False] * 3),
        ("tsf", [True] * 3, [True] * 3),
    ],
)
def test_what_a_frame_reaches(row: str, visual: list[bool], audio: list[bool]) -> None:
    net = small(AVSTFP("t" in row, "s" in row, "f" in row))
    assert changed(net, "frames", 0) == (visual, audio)
    assert changed(net, "audio", 0) == (audio, visual)  # and the other way round


def library_attention(block: nn.Module, queries: Tensor, keys: Tensor) -> Tensor:
    """PyTorch's own multi-head attention with the block's weights."""
    attn, dim = block.attn, queries.shape[-1]
    library = nn.MultiheadAttention(dim, attn.num_heads, batch_first=True)
    library.load_state_dict(
        {
            "in_proj_weight": attn.qkv.weight,
            "in_proj_bias": attn.qkv.bias,
            "out_proj.weight": attn.proj.weight,
            "out_proj.bias": attn.proj.bias,
        }
    )
    return library(queries, keys, keys, need_weights=False)[0]


def test_a_site_equals_the_published_steps_written_out() -> None:
    """Spatial prompts are prepended and their outputs dropped; fusion is one attention over [v; prompts; a]."""
    method = AVSTFP()
    net = small(method)
    block, other = next(net.visual.blocks()), next(net.audio.blocks())
    torch.manual_seed(1)
    v, a = torch.randn(2 * SEGMENTS, 17, 24), torch.randn(2 * SEGMENTS, 16, 24)
    with torch.no_grad():
        got = net.prompts.step(0, block, other, v, a, type("State", (), {"segments": SEGMENTS, "maps": False})())
        streams = {}
        for name, x in (("visual", v), ("audio", a)):
            y = block.norm1(x).unflatten(0, (-1, SEGMENTS)).transpose(1, 2).flatten(0, 1)
            w, b, heads = block.attn.qkv.weight, block.attn.qkv.bias, block.attn.num_heads
            q, k, val = (y @ w.T + b).chunk(3, -1)
            k = torch.cat((getattr(method, f"temporal_keys_{name}")[0].expand(len(k), -1, -1), k), 1)
            val = torch.cat((getattr(method, f"temporal_values_{name}")[0].expand(len(k), -1, -1), val), 1)
            q, k, val = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, val))
            read = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ val).transpose(1, 2).flatten(2)
            read = block.attn.proj(read).unflatten(0, (2, -1)).transpose(1, 2).flatten(0, 1)
            x = x + getattr(method, f"temporal_{name}_gate")[0] * read
            prompts = getattr(method, f"spatial_{name}")[0]
            z = block.norm1(torch.cat((prompts.expand(len(x), -1, -1), x), dim=1))
            streams[name] = x + library_attention(block, z, z)[:, len(prompts) :]
        v, a = streams["visual"], streams["audio"]
        z = block.norm1(torch.cat((v, method.fusion_prompts[0].expand(len(v), -1, -1), a), dim=1))
        read = library_attention(block, z, z)
        v = v + method.fusion_visual_gate[0] * read[:, :17]
        a = a + method.fusion_audio_gate[0] * read[:, -16:]
        v, a = (x + block.feed_forward(block.norm2(x)) for x in (v, a))
    assert torch.allclose(got[0], v, atol=1e-5) and torch.allclose(got[1], a, atol=1e-5)


def test_merged_fusion_is_one_attention_over_everything() -> None:
    method = AVSTFP(temporal=False, fusion_layout="merged")
    net = small(method)
    assert not [name for name, _ in method.named_parameters() if "gate" in name]
    block, other = next(net.visual.blocks()), next(net.audio.blocks())
    v, a = torch.randn(2, 17, 24), torch.randn(2, 16, 24)
    with torch.no_grad():
        got = net.prompts.step(0, block, other, v, a, None)
        z = torch.cat(
            (
                v,
                a,
                *(p[0].expand(2, -1, -1) for p in (method.spatial_visual, method.fusion_prompts, method.spatial_audio)),
            ),
            dim=1,
        )
        x = z[:, :33] + library_attention(block, block.norm1(z), block.norm1(z))[:, :33]
        x = x + block.feed_forward(block.norm2(x))
    assert torch.allclose(torch.cat(got, dim=1), x, atol=1e-5)


@pytest.mark.parametrize("options", [{"spatial": False}, {"fusion_layout": "merged"}])
def test_with_two_towers_prompts_pass_each_ones_own_projections(options: dict) -> None:
    method = AVSTFP(temporal=False, gate="none", order=("spatial", "fusion", "mlp", "temporal"), **options)
    net = AVPromptBackbone(SmallCLIP(), SmallSpectrogram(), method)
    blocks = next(net.visual.blocks()), next(net.audio.blocks())
    tokens = torch.randn(2, 17, 24), torch.randn(2, 16, 24)
    prompts = [
        getattr(method, name)[0]
        for name in ("fusion_prompts", "spatial_visual", "spatial_audio")
        if hasattr(method, name)
    ]
    with torch.no_grad():
        got = method.step(0, *blocks, *tokens, None)
        if len(prompts) == 1:  # its spatial step is the frozen block's own
            tokens = tuple(x + block.attention(x) for x, block in zip(tokens, blocks))
        everything = torch.cat((*tokens, *(p.expand(2, -1, -1) for p in prompts)), dim=1)
        for block, x, out in zip(blocks, tokens, got):
            x = x + library_attention(block, block.norm1(x), block.norm1(everything))
            assert torch.allclose(out, x + block.feed_forward(block.norm2(x)), atol=1e-5)


def test_bottleneck_carries_all_exchange() -> None:
    """A modality reads the prompts alone, which have read both."""
    net = small(AVSTFP(temporal=False, spatial=False, fusion_kind="bottleneck"))
    assert changed(net, "audio", 0)[0] == [True, False, False]
    nn.init.zeros_(net.prompts.fusion_visual_gate)
    nn.init.zeros_(net.prompts.fusion_audio_gate)
    assert changed(net, "audio", 0)[0] == [False] * 3


def test_prompts_of_one_side_leave_the_other_frozen() -> None:
    net = small(AVSTFP(visual=False, fusion=False))
    batch = small_clips()
    with torch.no_grad():
        prompted, plain = net(batch), net(batch, prompted=False)
    assert torch.allclose(prompted.visual, plain.visual, atol=1e-6)
    assert not torch.allclose(prompted.audio, plain.audio, atol=1e-2)


def test_layers() -> None:
    net = small(AVSTFP(layers=[1]))
    assert net.prompts.spatial_visual.shape == (1, 10, 24)
    with pytest.raises(ArgumentError, match="layers"):
        small(AVSTFP(layers=[0, 2]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_spatial": 0}, "num_spatial"),
        ({"num_spatial": 5, "spatial_kind": "kv"}, "num_spatial"),
        ({"num_fusion": 1, "fusion_kind": "cross"}, "num_fusion"),
        ({"order": ("temporal", "spatial", "mlp")}, "order"),
        ({"fusion_kind": "cross", "fusion_layout": "merged"}, "fusion_layout"),
        ({"visual": False, "audio": False}, "visual, audio"),
    ],
)
def test_impossible_settings_are_named(options: dict, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        AVSTFP(**options)


def test_encoders_that_cannot_be_prompted_are_named() -> None:
    with pytest.raises(ArgumentError, match="plain transformer blocks"):
        AVPromptBackbone(SmallCLIP(), SmallHTSAT(), AVSTFP())
