"""STG-CMA: the published sizes, the authors' numbers on the same weights, and what its switches do."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT
from open_clip.transformer import ResidualAttentionBlock
from small import SEGMENTS, SmallCLIP, SmallHTSAT, SmallSwin, small_clips
from test_avmoe import filled
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from avprompt import AVPromptBackbone
from avprompt.configs import read_yaml
from avprompt.encoders import CLIP, BlockSpec, FrozenBlock, SwinV1
from avprompt.encoders.base import SwinBlock, sizes_alone
from avprompt.encoders.clip import QuickGELU, _block
from avprompt.errors import ArgumentError, ShapeError
from avprompt.methods import STGCMA, PromptState
from avprompt.tasks import AVQA, AVS, AVELinear

RATIOS = {
    "large": ("swin_large_patch4_window7_224", [0.5, 0.25, 0.125, 0.0625]),
    "base": ("swin_base_patch4_window7_224", [0.25, 0.25, 0.125, 0.125]),
}
TINY = [0.125, 0.125, 0.0625, 0.0625]


def trained(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("model", "counts"),
    [
        ("ViT-B-16", {0.03125: 3_529_973, 0.125: 11_497_781}),
        ("ViT-L-14", {0.03125: 10_675_789, 0.0625: 20_117_581, 0.125: 39_001_165}),
    ],
)
def test_sizes_in_clip(model: str, counts: dict[float, int]) -> None:
    with sizes_alone():
        encoder = CLIP(model, segments=10, train_norm=True)
        for ratio, expected in counts.items():
            assert trained(AVELinear(AVPromptBackbone(encoder, "shared", STGCMA(ratio)), 28)) == expected


@pytest.mark.parametrize(
    ("size", "ave", "tiny", "s4"),
    [("large", 19_026_857, 11_740_697, 38_601_925), ("base", 10_068_597, 5_599_957, 29_739_753)],
)
def test_sizes_in_swin(size: str, ave: int, tiny: int, s4: int) -> None:
    """The authors' decoder for S4 has two convolutions of 256 channels more that nothing uses."""
    model, ratios = RATIOS[size]
    with sizes_alone():
        encoder = SwinV1(model)

        def backbone(*arguments: object, **options: object) -> AVPromptBackbone:
            return AVPromptBackbone(encoder, "shared", STGCMA(*arguments, **options))

        assert trained(AVELinear(backbone(ratios), 28)) == ave
        assert trained(AVELinear(backbone(TINY), 28)) == tiny
        assert trained(AVS(backbone(ratios, segments=5), dilated=True)) + 2 * (256 * 256 * 9 + 256) == s4
        if size == "large":
            assert trained(AVQA(backbone(ratios), 42, 93, project_audio=False)) == 83_127_864
            assert trained(AVQA(backbone(ratios), 42, 93, width=512)) == 26_339_000
            with pytest.raises(ArgumentError, match="project_audio"):
                AVQA(backbone(ratios), 42, 93, width=512, project_audio=False)


def test_sizes_of_the_ablation_on_s4() -> None:
    """24.7, 31.6, 31.6 and 38.6 M in the authors' scripts, with 21.2 M of the decoder."""
    millions = []
    with sizes_alone():
        encoder = SwinV1(RATIOS["large"][0])
        for off in (("spatial", "mlp"), ("mlp",), ("spatial",), ()):
            method = STGCMA(RATIOS["large"][1], segments=5, **dict.fromkeys(off, False))
            millions.append((trained(AVPromptBackbone(encoder, "shared", method).prompts) + 21_168_961) / 1e6)
    assert [round(count, 1) for count in millions] == [24.7, 31.6, 31.6, 38.6]


#: what the authors' blocks give on the weights of `filled` and the tokens of `tokens`: sums and an entry each of the
#: visual and the audio tokens, sums of |gradient| of the sum of tokens * weights
RELEASED = {
    "clip": [
        10549.21699378497,
        9165.081220084017,
        10.058154501625,
        20.882805301237,
        859.741052993237,
        838.212106224236,
    ],
    "swin": [
        29607.385804747726,
        27525.00068726909,
        10.666572581229,
        3.892966827815,
        6468.011408050884,
        6283.139330717403,
    ],
    "swin, shifted": [
        28009.975408817656,
        31957.714990213793,
        1.805085722684,
        6.325596377864,
        6385.940439234306,
        7070.935363064016,
    ],
}


def block_of(name: str) -> FrozenBlock:
    if name == "clip":
        return _block(ResidualAttentionBlock(24, 3), BlockSpec(24, (2, 2), 0, 1), QuickGELU())
    library = SwinTransformerBlock(16, (8, 8), 2, window_size=4, shift_size=2 if "shifted" in name else 0)
    return SwinBlock(library, BlockSpec(16, (8, 8), 0), 0.0)


@pytest.mark.parametrize("name", RELEASED)
def test_block_pair_gives_the_authors_numbers(name: str) -> None:
    """Temporal step, exchange over all tokens or within windows, MLP; the second of a stage has no temporal step."""
    block = filled(block_of(name).eval(), 1)
    method = STGCMA(0.25, segments=3, drop_path=0.0)
    method.attach([(block.spec, block.spec)] * (1 if name == "clip" else 2), {"visual": [], "audio": []})
    filled(method.eval(), 2)
    generator = torch.Generator().manual_seed(3)

    def tokens() -> Tensor:
        return torch.randn(6, block.spec.tokens, block.spec.dim, generator=generator, dtype=torch.float64)

    visual, audio = (tokens().requires_grad_() for _ in range(2))
    v, a = method.step(int("shifted" in name), block, block, visual, audio, PromptState(3))
    seen = (v * tokens() + a * tokens()).sum()
    entry = a[5, -1, -1] if name == "clip" else a[5, 60, 15]
    found = [
        v.sum(),
        a.sum(),
        v[0, 0, 0],
        entry,
        *(own.abs().sum() for own in torch.autograd.grad(seen, (visual, audio), retain_graph=True)),
    ]
    assert [float(value.detach()) for value in found] == pytest.approx(RELEASED[name], rel=1e-10)


def test_windows_there_and_back() -> None:
    block = SmallSwin().stages[0].blocks[1]
    x = torch.randn(2, block.spec.tokens, 3)
    windows = block.to_windows(x)
    assert windows.shape == (2, 4, block.spec.window, 3) and torch.equal(block.from_windows(windows), x)
    assert any(block.shift) and torch.equal(windows[0, 0, 0], x[0, block.shift[0] * 8 + block.shift[1]])


def test_attention_along_a_series_is_attention_without_a_grid() -> None:
    """On a segment whose window is the grid, it is the block's attention but for the position bias."""
    for encoder in (SmallSwin(), SmallCLIP(), SmallHTSAT()):
        block = encoder.stages[-1].blocks[0].eval()
        x, n = torch.randn(2, block.spec.tokens, block.spec.dim), block.spec.tokens
        bias = block.attention_bias(x.dtype)[0] if block.spec.window else torch.zeros(block.spec.heads, n, n)
        assert block.spec.window in (0, n)
        assert torch.allclose(block.attend_series(x, bias), block.attention(x), atol=1e-5)


def test_without_exchange_each_modality_is_alone() -> None:
    """And with it each sees the other, in the spatial and in the MLP adapter."""
    for options, mixes in (({"exchange": False}, False), ({"mlp": False}, True), ({"spatial": False}, True)):
        net = AVPromptBackbone(SmallCLIP(), SmallHTSAT(), STGCMA(0.25, segments=SEGMENTS, **options)).eval()
        for parameter in net.prompts.parameters():
            nn.init.normal_(parameter, std=0.3)
        batch = small_clips()
        with torch.no_grad():
            plain, other = net(batch), net({**batch, "audio": -batch["audio"].flip(-1)})
        assert torch.equal(plain.visual, other.visual) is not mixes


def test_errors() -> None:
    with pytest.raises(ArgumentError, match="all false"):
        STGCMA(temporal=False, spatial=False, mlp=False)
    for ratio, message in (([0.25], "one for each stage"), (0.01, "one channel wide")):
        with pytest.raises(ArgumentError, match=message):
            AVPromptBackbone(SmallSwin(), SmallHTSAT(), STGCMA(ratio))
    net = AVPromptBackbone(SmallSwin(), SmallHTSAT(), STGCMA(0.25, segments=SEGMENTS + 1))
    with pytest.raises(ShapeError, match=f"{SEGMENTS + 1}"):
        net(small_clips())


def test_experiments_have_the_authors_ratios() -> None:
    for name, ratio in (("stgcma", 0.03125), ("stgcma_swin", RATIOS["large"][1])):
        assert read_yaml(ROOT / "lightning_configs" / "methods" / f"{name}.yaml")["init_args"]["ratio"] == ratio
