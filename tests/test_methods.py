"""Methods that others publish, and plain rows: counts, outputs of the authors' own classes, formulas written out."""

from __future__ import annotations

import pytest
import torch
from small import SmallCLIP, SmallHTSAT, SmallSwin, small_clips
from torch import Tensor, nn
from torch.nn import functional as F

import avprompt
from avprompt import AVPromptBackbone, methods, tasks
from avprompt.backbone import pair_blocks
from avprompt.encoders import BlockSpec, TimmViT
from avprompt.errors import ArgumentError
from avprompt.methods import DGSCT, LAVISH, VPT, Adapters, FineTuning, LoRA, NoPrompts, PromptMethod
from avprompt.methods.base import PromptState
from avprompt.methods.dgsct import ReleasedAdapter
from avprompt.methods.lora import CrossLowRank, Layer, LowRank
from avprompt.tasks import AVPromptTask

#: blocks of a width a stage: Swin-V2-L and HTS-AT
SWIN, HTSAT = ([192] * 2 + [384] * 2 + [768] * 18 + [1536] * 2), ([96] * 2 + [192] * 2 + [384] * 6 + [768] * 2)
PAIRS = pair_blocks([2, 2, 18, 2], [2, 2, 6, 2])


def specs(widths: list[int]) -> list[BlockSpec]:
    """Blocks of these widths; the counts below do not depend on the grid."""
    return [BlockSpec(dim, (1, 1), 0, hidden=4 * dim) for dim in widths]


def parameters(method: PromptMethod, visual: list[int], audio: list[int] | None = None) -> int:
    """What a method adds to an encoder that both modalities share, or to the pair of Swin-V2-L and HTS-AT."""
    v, a = specs(visual), specs(audio or visual)
    pairs = [(i, i) for i in range(len(v))] if audio is None else PAIRS
    lone = {"visual": [v[i] for i in sorted(set(range(len(v))) - {i for i, _ in pairs})], "audio": []}
    with torch.device("meta"):
        method.attach([(v[i], a[j]) for i, j in pairs], lone)
    return sum(p.numel() for p in method.parameters())


@pytest.mark.parametrize(
    ("method", "encoders", "count"),
    [
        (LAVISH(), [SWIN], 8_447_808),
        (LAVISH(), [[768] * 12], 3_843_168),
        (LAVISH(), [[1024] * 24], 13_394_112),
        # of 17,148,048 in S4 144,384 belong to a norm that is built and not used
        (
            LAVISH(num_tokens=16, reduction=4, audio_gate=False, batch_norm=False, norm_before=False),
            [SWIN],
            17_148_048 - 144_384,
        ),
        (LAVISH(num_tokens=64, groups=4, batch_norm=False), [SWIN], 8_835_264),
        (LAVISH(prompt_map="linear"), [SWIN, HTSAT], 20_193_216),
        (LoRA(), [[768] * 12], 5_308_416),
        (LoRA(), [[1024] * 24], 14_155_776),
        (LoRA(cross=True), [[768] * 12], 17_826_192),
        (LoRA(cross=True), [[1024] * 24], 52_181_280),
        # on twelve pairs, and LoRA in the twelve blocks without a partner
        (LoRA(cross=True), [SWIN, HTSAT], 13_071_816 + 2_654_208),
        (VPT(num_tokens=10), [[768] * 12], 10 * 768 * 24),
        (Adapters(reduction=8), [[768] * 12], 48 * (2 * 768 * 96 + 96 + 768)),
    ],
)
def test_parameters_are_those_of_the_publications(method: PromptMethod, encoders: list[list[int]], count: int) -> None:
    """Counts of the authors' classes; tests/test_experiments.py has those of whole networks."""
    assert parameters(method, *encoders) == count


def draw(module: nn.Module) -> nn.Module:
    """Weights in float64 from seed 5, in the order of `parameters`."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.copy_(0.1 + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Float64 tensors from seed 11."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def sample(places: tuple[int, ...], output: Tensor, weight: Tensor, *given: Tensor) -> list[float]:
    """Some entries of the output, and of the gradients of its weighed sum."""
    (output * weight).sum().backward()
    return [tensor.flatten()[place].item() for tensor in (output, *(x.grad for x in given)) for place in places]


#: outputs and gradients of the authors' `VisualAdapter` (LAVISH, AVE and AVS) and `CMLinear` (CoLA) on the same weights
ADAPTERS = {
    "ave": (
        {"gate": "after_norm", "batch_norm": True, "norm_before": True},
        [
            -0.001773596797,
            0.007798549521,
            -0.014430243039,
            -0.001932700164,
            0.008076029347,
            -4.5736249e-05,
            -7.81005e-06,
            -0.000279315732,
            -7.8162833e-05,
        ],
    ),
    "avs": (
        {"gate": "inside_norm", "batch_norm": False, "norm_before": False},
        [
            0.798034360971,
            -0.525402121057,
            0.282351059678,
            0.134184609809,
            0.004744390158,
            0.031504640507,
            -0.000621058616,
            0.001417640625,
            -0.002493934809,
        ],
    ),
}
COLA = [
    -0.001555111909,
    1.205305329967,
    0.078799890955,
    -0.645865992823,
    -0.29835804953,
    0.371435369207,
    -0.001061988325,
    -0.006045313664,
    0.00813616453,
]


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_of_lavish_is_the_authors(name: str) -> None:
    options, recorded = ADAPTERS[name]
    own, other = BlockSpec(12, (2, 3), 0), BlockSpec(12, (3, 3), 0)
    adapter = draw(
        ReleasedAdapter(
            own,
            other,
            channel=False,
            spatial=False,
            alpha=0.3,
            beta=0.05,
            gamma=None,
            num_tokens=3,
            reduction=2,
            groups=2,
            prompt_map="none",
            **options,
        )
    )
    x, u, weight = inputs((4, 6, 12), (4, 9, 12), (4, 6, 12))
    found = sample((0, 101, 202), adapter(x.requires_grad_(), u.requires_grad_())[0], weight, x, u)
    assert found == pytest.approx(recorded, abs=1e-11)


def test_changed_layer_of_cola_is_the_authors() -> None:
    layer = draw(Layer(LowRank(8, 6, 4, 8 / 4), CrossLowRank(8, 6, 12, 4, 2, 0.1)))
    x, other, weight = inputs((3, 5, 8), (3, 12), (3, 5, 6))
    output = layer.own(x.requires_grad_()) + layer.cross(x, other.requires_grad_())
    assert sample((0, 17, 34), output, weight, x, other) == pytest.approx(COLA, abs=1e-11)


def shifted(net: AVPromptBackbone) -> AVPromptBackbone:
    """No parameter of the method where it starts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.prompts.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net.double().eval()


def test_order_of_a_block_pair_of_lavish() -> None:
    net = shifted(AVPromptBackbone(SmallCLIP(), "shared", LAVISH(reduction=4)))
    (v_block, a_block), prompts = (next(encoder.blocks()) for encoder in (net.visual, net.audio)), net.prompts
    v, a = inputs((4, 17, 24), (4, a_block.spec.tokens, 24))
    got = prompts.step(0, v_block, a_block, v, a, PromptState(segments=4))
    for step, branch in (("p1", "attention"), ("p2", "mlp")):
        to_v, to_a = getattr(prompts, f"visual_{step}")[0](v, a)[0], getattr(prompts, f"audio_{step}")[0](a, v)[0]
        v, a = v + getattr(v_block, branch)(v) + to_v, a + getattr(a_block, branch)(a) + to_a
    assert torch.allclose(got[0], v, atol=1e-12) and torch.allclose(got[1], a, atol=1e-12)


def test_cola_reads_the_other_side_step_by_step() -> None:
    """Queries, keys, values: tokens before the block. Output projection: mixed values. MLP: tokens after attention."""
    net = shifted(AVPromptBackbone(SmallCLIP(), "shared", LoRA(rank=2, cross=True, reduction=4)))
    blocks = [next(encoder.blocks()) for encoder in (net.visual, net.audio)]
    tokens = inputs((4, 17, 24), (4, blocks[1].spec.tokens, 24))
    got = net.prompts.step(0, *blocks, *tokens, None)

    def weight(side: int, name: str, other: Tensor) -> Tensor:
        layer = net.prompts.paired[("visual", "audio")[side]][0][name]
        low, phi = layer.cross.low, layer.cross.core(other)
        return layer.own.scale * layer.own.up @ layer.own.down + layer.cross.scale * low.up @ phi @ low.down

    def apply(side: int, name: str, frozen: Tensor, x: Tensor, other: Tensor) -> Tensor:
        return frozen + torch.einsum("boi,bni->bno", weight(side, name, other), x)

    firsts, mixed = [x[:, 0] for x in tokens], []
    for side, (block, x) in enumerate(zip(blocks, tokens)):
        z, other = block.norm1(x), firsts[1 - side]
        q, k, v = (
            apply(side, name, part, z, other).unflatten(-1, (3, 8)).transpose(1, 2)
            for name, part in zip("qkv", block.attn.read(z, "qkv"))
        )
        mixed.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    firsts = [x[:, 0] for x in mixed]
    after = [
        x + apply(side, "proj", block.attn.proj(m), m, firsts[1 - side])
        for side, (block, x, m) in enumerate(zip(blocks, tokens, mixed))
    ]
    firsts = [x[:, 0] for x in after]
    for side, (block, x) in enumerate(zip(blocks, after)):
        z, mlp, other = block.norm2(x), block.feed_forward, firsts[1 - side]
        hidden = mlp.act(apply(side, "fc1", mlp.fc1(z), z, other))
        assert torch.allclose(got[side], x + apply(side, "fc2", mlp.fc2(hidden), hidden, other), atol=1e-12)


def test_cola_without_the_other_modality_is_lora() -> None:
    net = shifted(AVPromptBackbone(SmallSwin(), SmallHTSAT(), LoRA(rank=2, cross=True, reduction=4))).float()
    plain = AVPromptBackbone(net.visual, net.audio, LoRA(rank=2)).eval()
    plain.prompts.load_state_dict(
        {name: value for name, value in net.prompts.state_dict().items() if "cross" not in name}
    )
    for name, parameter in net.prompts.named_parameters():
        if name.endswith("cross.scale"):
            nn.init.zeros_(parameter)
    with torch.no_grad():
        for a, b in zip(*((f.visual, f.audio) for f in (net(small_clips()), plain(small_clips())))):
            assert torch.equal(a, b)


def test_prompts_of_vpt_are_tokens_of_the_block() -> None:
    """A block over prompts and tokens, whose prompts are thrown away; windows see them all, without bias."""
    clip, swin = SmallCLIP(), SmallSwin()
    block, prompts = next(clip.blocks()), torch.randn(3, 24)
    x = torch.randn(2, 17, 24)
    whole = torch.cat((x, prompts.expand(2, -1, -1)), dim=1)
    assert torch.allclose(block.attention(x, prompts=prompts), block.attend(block.norm1(whole))[:, :17], atol=1e-5)
    assert torch.equal(block.attention(x, prompts=None), block.attention(x))
    block = next(swin.blocks())  # four windows of 4 x 4, two heads
    x, prompts = torch.randn(2, 64, 16), torch.randn(3, 16)
    windows = x.view(2, 2, 4, 2, 4, 16).transpose(2, 3).reshape(2, 4, 16, 16)
    (q, k, v), (_, keys, values) = block.project(windows, None), block.project(prompts.view(1, 1, 3, 16), None)
    k, v = (torch.cat((more.expand(2, 4, -1, -1, -1), own), dim=3) for more, own in ((keys, k), (values, v)))
    scores = q @ k.transpose(-1, -2) + F.pad(block.position_bias(), (3, 0))
    mixed = (scores.softmax(-1) @ v).transpose(2, 3).flatten(3)
    assert torch.allclose(block.attention(x, prompts=prompts), block.project_out(mixed), atol=1e-5)


def chosen(method: PromptMethod, *encoders: object) -> list[set[str]]:
    net = AVPromptBackbone(*encoders, method)
    return [{name for name, p in encoder.named_parameters() if p.requires_grad} for encoder in (net.visual, net.audio)]


def test_what_fine_tuning_trains() -> None:
    for side in chosen(FineTuning("biases"), SmallSwin(), SmallHTSAT()):
        assert side and all(name.endswith("bias") for name in side)
    visual, audio = chosen(FineTuning(), SmallSwin(), SmallHTSAT())
    assert visual == {name for name, _ in SmallSwin().named_parameters()}
    left = {name for name, _ in SmallHTSAT().named_parameters()} - audio
    assert left and all(name.startswith(("spectrogram_extractor.", "logmel_extractor.")) for name in left)
    visual, audio = chosen(FineTuning(last=3), SmallSwin(), SmallHTSAT())  # 4 and 2 blocks, 2 and 2
    assert {name[:17] for name in visual if "blocks" in name} == {
        "stages.0.blocks.3",
        "stages.1.blocks.0",
        "stages.1.blocks.1",
    }
    assert {name for name in visual if "blocks" not in name} == {
        "norm.weight",
        "norm.bias",
        "stages.0.merge.norm.weight",
        "stages.0.merge.norm.bias",
        "stages.0.merge.reduction.weight",
    }
    assert not any(name.startswith(("bn0", "patch_embed", "stages.0.blocks.0")) for name in audio)
    visual, audio = chosen(FineTuning(), SmallCLIP(projection=True), "shared")
    assert "projection" not in visual and "conv.weight" in visual & audio
    encoders = SmallSwin(), SmallHTSAT()
    for method in (FineTuning(), NoPrompts()):  # of encoders that are used twice
        left = chosen(method, *encoders)
    assert left == [set(), set()] == [set(encoder.trained) for encoder in encoders]


def adapter(**options: object) -> ReleasedAdapter:
    settings = {
        "channel": False,
        "spatial": False,
        "alpha": 0.3,
        "beta": 0.05,
        "gamma": None,
        "num_tokens": 2,
        "reduction": 2,
        "groups": 2,
        **options,
    }
    return ReleasedAdapter(*specs([8, 8]), **settings)


def test_methods_and_tasks_are_public() -> None:
    for part in (methods, tasks):
        kinds = {name for name in part.__all__ if issubclass(getattr(part, name), (PromptMethod, AVPromptTask))}
        assert kinds <= set(avprompt.__all__) and all(hasattr(avprompt, name) for name in kinds)


def test_impossible_settings_are_named() -> None:
    for build, name in (
        (lambda: FineTuning(last=0), "last"),
        (lambda: FineTuning("weights"), "parameters"),
        (lambda: VPT(num_tokens=0), "num_tokens"),
        (lambda: VPT(visual=False, audio=False), "visual, audio"),
        (lambda: Adapters(steps=()), "steps"),
        (lambda: LoRA(rank=0), "rank"),
        (lambda: LoRA(layers=("qkv",)), "layers"),
        (lambda: AVPromptBackbone(SmallCLIP(), "shared", LoRA(cross=True, reduction=25)), "reduction"),
        (lambda: AVPromptBackbone(SmallCLIP(), "shared", Adapters(reduction=25)), "reduction"),
        (lambda: AVPromptBackbone(SmallCLIP(), SmallHTSAT(), LAVISH(reduction=4)), "prompt_map"),
        (lambda: DGSCT(prompt_map="bilinear"), "prompt_map"),
        (lambda: adapter(prompt_map="bilinear"), "prompt_map"),
        (lambda: adapter(reduction=0), "reduction, groups"),
        (lambda: adapter(groups=0), "reduction, groups"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}:"):
            build()


def test_positions_along_the_sequence() -> None:
    """LAVISH stretches the table of all tokens, the class token's row among them."""
    tower = TimmViT("vit_tiny_patch16_224", audio_positions="sequence", audio_axes="time_mel")
    audio, table = tower.listener(), tower.positions[0]
    expected = F.interpolate(table.T[None], audio.stages[0].blocks[0].spec.tokens, mode="linear")[0].T
    assert torch.allclose(audio.positions, expected) and not torch.allclose(audio.positions[0], table[0])
