"""MoLT-like, CoPL-like, MoMA-like and MBT: their equations written out once more, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from small import SEGMENTS, SmallCLIP, SmallHTSAT, SmallSpectrogram, SmallSwin, small_clips
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt import AVPromptBackbone
from avprompt.encoders import TinyCLIP
from avprompt.errors import ArgumentError
from avprompt.methods import MBT, CoPLLike, MoLTLike, MoMALike, PromptState
from avprompt.methods.copl_like import Bank
from avprompt.methods.molt_like import Distiller, Path


def stir(module: nn.Module) -> nn.Module:
    """Random float64 parameters, so that no path is zero."""
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    return module.eval()


def test_molt_reads_by_attention_and_mixes_by_its_router() -> None:
    torch.manual_seed(0)
    layer, own, other = stir(Distiller(16, 8, tokens=3, reduction=4)), torch.randn(2, 5, 16), torch.randn(2, 7, 8)
    own, other = own.double(), other.double()

    def read(path: Path, x: Tensor) -> Tensor:
        x = path.norm(x)
        logits = path.query(layer.tokens) @ path.key(x).transpose(1, 2) / 2  # sqrt(16 / 4)
        return path.out(torch.softmax(logits, dim=-1) @ path.value(x))

    latents, weights = layer(own, other)
    w = torch.softmax(layer.router(torch.cat((own.mean(1), other.mean(1)), 1)), 1)[..., None, None]
    expected = layer.tokens + w[:, 0] * read(layer.own, own) + w[:, 1] * read(layer.across, other)
    assert torch.allclose(latents, expected, atol=1e-12) and torch.allclose(weights.sum(1), torch.ones(2).double())


def test_molt_weighs_the_late_layers() -> None:
    net, batch = AVPromptBackbone(SmallSwin(), SmallHTSAT(), MoLTLike(num_tokens=2, reduction=4)).eval(), small_clips()
    seen: list[Tensor] = []
    for reader in net.prompts.visual:
        reader.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    with torch.no_grad():
        features = net(batch, maps=True)
    assert len(net.sites) == 4 and len(seen) == 2  # a third of four, rounded up
    vectors = torch.stack([net.prompts.visual_project["32"](latents).mean(1) for latents in seen], 1)
    weights = torch.softmax(net.prompts.visual_weigh(vectors), 1)
    assert torch.allclose(features.visual.flatten(0, 1), (weights * vectors).sum(1), atol=1e-6)
    assert torch.allclose(features.tables["layers@visual"].flatten(0, 1), weights[..., 0], atol=1e-6)
    rows = F.normalize(seen[0], dim=-1)
    assert torch.allclose(features.losses["orthogonality@2_visual"], (rows[:, 0] * rows[:, 1]).sum(-1).square().mean())
    assert net.prompts.table_columns["layers"] == ("block pair 2", "block pair 3")


@pytest.mark.parametrize("encoder", [SmallSwin, SmallCLIP])
def test_prompts_of_each_segment(encoder: type) -> None:
    """A block that gets other prompts for each segment computes what it computes for each by itself."""
    torch.manual_seed(0)
    for block in encoder().blocks():
        x, prompts = torch.randn(2, block.spec.tokens, block.spec.dim), torch.randn(2, 3, block.spec.dim)
        together = block.attention(x, prompts=prompts)
        alone = torch.cat([block.attention(x[i : i + 1], prompts=prompts[i]) for i in range(2)])
        assert torch.allclose(together, alone, atol=1e-5) and not torch.allclose(together[:1], block.attention(x[:1]))


def test_copl_chooses_from_its_bank() -> None:
    torch.manual_seed(0)
    own, other = (next(iter(encoder.blocks())).spec for encoder in (SmallSwin(), SmallCLIP()))
    for partner in (own, other):  # equal and different width
        bank, x = stir(Bank(own, partner, num_tokens=2, entries=3)), torch.randn(2, 9, partner.dim).double()
        prompts, weights = bank(x)
        asked = bank.map(x.mean(1))
        asked = (asked - asked.mean(-1, True)) / (asked.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        expected = torch.softmax(asked @ bank.bank.T, -1)
        assert torch.allclose(weights, expected, atol=1e-12)
        assert torch.equal(prompts[:, :2], bank.tokens.expand(2, -1, -1))
        assert torch.allclose(prompts[:, 2], expected @ bank.bank, atol=1e-12)


def test_moma_equals_its_equations() -> None:
    torch.manual_seed(0)
    net = AVPromptBackbone(SmallCLIP(), "shared", MoMALike(reduction=4)).double()
    method, blocks = stir(net.prompts), [next(iter(encoder.blocks())) for encoder in (net.visual, net.audio)]
    v, a = (torch.randn(2 * SEGMENTS, block.spec.tokens, 24).double() for block in blocks)

    def adapt(adapter: nn.Module, x: Tensor) -> Tensor:
        return adapter.up(F.gelu(adapter.down(x)))

    got = method.step(0, *blocks, v, a, PromptState(SEGMENTS))
    behind, beside = ({name: group[name][0] for name in group} for group in (method.behind, method.beside))
    series = v.view(2, SEGMENTS, -1, 24)
    over_time = [blocks[0].attend_series(series[:, :, place]) for place in range(v.shape[1])]
    over_time = torch.stack(over_time, 2).view(v.shape)
    v = v + adapt(behind["time"], over_time) + adapt(beside["time"], v)
    for name, branch in (("space", "attention"), ("mlp", "mlp")):
        y, z = getattr(blocks[0], branch)(v), getattr(blocks[1], branch)(a)
        v, a = v + y + adapt(behind[name], y) + adapt(beside[name], v), a + z + adapt(method.audio[name][0], z)
    shared = method.both[0]
    h, g = (F.gelu(shared.down(x)) for x in (v, a))
    logits = h @ g.transpose(1, 2) / 6**0.5
    expected = v + shared.up(logits.softmax(2) @ g), a + shared.up(logits.transpose(1, 2).softmax(2) @ h)
    assert all(torch.allclose(x, y, atol=1e-12) for x, y in zip(got, expected))


def test_mbt_exchanges_through_the_mean_of_the_bottleneck() -> None:
    torch.manual_seed(0)
    net = AVPromptBackbone(TinyCLIP("none", segments=2), "separate", MBT(num_tokens=3, layers=2)).eval()
    nn.init.normal_(net.prompts.tokens)
    frames, audio = torch.randn(1, 2, 3, 64, 64), torch.randn(1, 2, 16000)
    with torch.no_grad():
        got = net({"frames": frames, "audio": audio})
        x, y = (encoder.embed(x).flatten(0, 1)[None] for encoder, x in ((net.visual, frames), (net.audio, audio)))
        z, pairs = net.prompts.tokens[None], list(zip(net.visual.blocks(), net.audio.blocks()))
        for see, hear in pairs[:2]:
            x, y = see(x), hear(y)
        for see, hear in pairs[2:]:
            x, y = see(torch.cat((x, z), 1)), hear(torch.cat((y, z), 1))
            x, y, z = x[:, :-3], y[:, :-3], (x[:, -3:] + y[:, -3:]) / 2
    x, y = (encoder.finalize(own.unflatten(1, (2, -1))[0]) for encoder, own in ((net.visual, x), (net.audio, y)))
    assert torch.allclose(got.visual_tokens[0], x, atol=1e-4) and torch.allclose(got.audio_tokens[0], y, atol=1e-4)


@pytest.mark.parametrize("span", ["clip", "segment"])
def test_mbt_spans_a_clip_or_a_segment(span: str) -> None:
    net, batch = AVPromptBackbone(SmallCLIP(), SmallSpectrogram(), MBT(2, 2, span)).eval(), small_clips(1)
    with torch.no_grad():
        whole, alone = net(batch), net({name: value[:, :1] for name, value in batch.items()})
        deaf = net({**batch, "audio": 0 * batch["audio"]})
    assert torch.allclose(whole.visual[:, 0], alone.visual[:, 0], atol=1e-5) is (span == "segment")
    assert not torch.allclose(whole.visual, deaf.visual)


def test_refused() -> None:
    for build, name in (
        (lambda: MoLTLike(num_tokens=0), "num_tokens"),
        (lambda: MoLTLike(layers=0), "layers"),
        (lambda: CoPLLike(num_tokens=0), "num_tokens"),
        (lambda: CoPLLike(entries=0), "entries"),
        (lambda: MBT(num_tokens=0), "num_tokens"),
        (lambda: MBT(layers=1), "layers"),
        (lambda: MBT(span="video"), "span"),
        (lambda: AVPromptBackbone(SmallSwin(), SmallHTSAT(), MoLTLike(layers=5)), "layers"),
        (lambda: AVPromptBackbone(SmallSwin(), SmallHTSAT(), MoLTLike(reduction=5)), "reduction"),
        (lambda: AVPromptBackbone(SmallCLIP(), SmallHTSAT(), MoMALike()), "encoders"),
        (lambda: AVPromptBackbone(SmallCLIP(), "shared", MoMALike(reduction=48)), "reduction"),
        (lambda: AVPromptBackbone(SmallSwin(), SmallHTSAT(), MBT(layers=2)), "encoders"),
        (lambda: AVPromptBackbone(SmallCLIP(), TinyCLIP("none").listener(), MBT(layers=2)), "encoders"),
        (lambda: AVPromptBackbone(SmallCLIP(), SmallSpectrogram(), MBT(layers=3)), "layers"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}:"):
            build()
