"""Every prompt method on every encoder pair: one suite.

A new method, one file in `avprompt.methods`, gets a row from its own fragments in lightning_configs/methods; variants
of those that ship, and encoders, have theirs here.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import partial

import pytest
import torch
import toys
from conftest import ROOT
from small import SEGMENTS, SmallCLIP, SmallHTSAT, SmallSpectrogram, SmallSwin, small_clips
from torch import nn

from avprompt import AVPromptBackbone, methods
from avprompt.configs import read_yaml
from avprompt.encoders import Fbank
from avprompt.errors import ArgumentError
from avprompt.features import AVFeatures
from avprompt.methods import (
    AVSTFP,
    DGSCT,
    LAVISH,
    MBT,
    STGCMA,
    VPT,
    Adapters,
    AVMoE,
    CoPLLike,
    DGSCTFewShot,
    DGSCTPaper,
    FineTuning,
    LoRA,
    MaPLe,
    MettleLike,
    MoLTLike,
    MoMALike,
    NoPrompts,
    PromptMethod,
)

SMALL = {"num_tokens": 4, "reduction": 4}
METHODS: dict[str, Callable[[], PromptMethod]] = {
    "none": NoPrompts,
    "dgsct": lambda: DGSCT(**SMALL),
    "dgsct_s4": lambda: DGSCT(
        **SMALL,
        gate="inside_norm",
        audio_gate=False,
        batch_norm=False,
        norm_before=False,
        prompt_map="bicubic",
        token_init="zeros",
    ),
    "dgsct_ms3": lambda: DGSCT(
        num_tokens=4,
        alpha=0.2,
        beta=0.1,
        reduction=2,
        gate="inside_norm",
        audio_gate=False,
        batch_norm=False,
        norm_before=False,
        token_init="zeros",
    ),
    "dgsct_avqa": lambda: DGSCT(
        num_tokens=2, reduction=4, groups=4, temporal=False, audio_gate=False, batch_norm=False, token_init="zeros"
    ),
    "dgsct_no_tokens": lambda: DGSCT(num_tokens=0, reduction=4),
    "dgsct_channel": lambda: DGSCT(**SMALL, spatial=False, temporal=False),
    "dgsct_spatial": lambda: DGSCT(**SMALL, channel=False, temporal=False),
    "dgsct_temporal": lambda: DGSCT(**SMALL, spatial=False, channel=False),
    "dgsct_a2v": lambda: DGSCT(**SMALL, v2a=False),
    "dgsct_v2a": lambda: DGSCT(**SMALL, a2v=False),
    "dgsct_fewshot": lambda: DGSCTFewShot(num_tokens=2, reduction=4),
    "dgsct_fewshot_channel": lambda: DGSCTFewShot(num_tokens=0, reduction=4, spatial=False),
    "dgsct_paper": DGSCTPaper,
    "dgsct_paper_gated": lambda: DGSCTPaper(gate="zero_scalar"),
    "dgsct_paper_a2v": lambda: DGSCTPaper(v2a=False),
    "dgsct_paper_channel": lambda: DGSCTPaper(spatial=False, temporal=False),
    "avstfp": AVSTFP,
    "avstfp_none": lambda: AVSTFP(temporal=False, spatial=False, fusion=False),
    "avstfp_temporal": lambda: AVSTFP(spatial=False, fusion=False),
    "avstfp_spatial": lambda: AVSTFP(temporal=False, fusion=False),
    "avstfp_fusion": lambda: AVSTFP(temporal=False, spatial=False),
    "avstfp_temporal_fusion": lambda: AVSTFP(spatial=False),
    "avstfp_audio": lambda: AVSTFP(visual=False, fusion=False),
    "avstfp_ungated": lambda: AVSTFP(gate="none"),
    "avstfp_input": lambda: AVSTFP(temporal_space="input", init="xavier"),
    "avstfp_class": lambda: AVSTFP(temporal_positions="class", init="zero_values", pooling="mean"),
    "avstfp_kv_cross": lambda: AVSTFP(spatial_kind="kv", fusion_kind="cross"),
    "avstfp_bottleneck": lambda: AVSTFP(fusion_kind="bottleneck", prompt_norm=False),
    "avstfp_merged": lambda: AVSTFP(fusion_layout="merged"),
    "avstfp_order": lambda: AVSTFP(order=("fusion", "spatial", "mlp", "temporal"), layers=[1]),
    "avstfp_mlp_first": lambda: AVSTFP(spatial=False, order=("temporal", "mlp", "spatial", "fusion")),
    "maple": lambda: MaPLe(num_tokens=2, depth=2, text_width=16),
    "lavish": lambda: LAVISH(reduction=4),
    "finetune": FineTuning,
    "adapter": lambda: Adapters(reduction=4),
    "vpt": lambda: VPT(num_tokens=3),
    "cola": lambda: LoRA(rank=2, cross=True, reduction=4),
    "avmoe_ms3": lambda: AVMoE(
        2,
        2,
        num_tokens=4,
        reduction=2,
        unimodal_attention="latents",
        batch_norm=False,
        audio_gate=False,
        balance=True,
        router_noise=0.01,
    ),
    "avmoe_caste": lambda: AVMoE(**SMALL, unimodal_attention="tokens", stages=[0], caste=True),
    "stgcma": lambda: STGCMA(ratio=0.25, segments=SEGMENTS),
    "mettle": lambda: MettleLike(num_tokens=2, reduction=4),
    "mettle_avs": lambda: MettleLike(num_tokens=2, reduction=4, layers="last", inject=True),
    "molt": lambda: MoLTLike(num_tokens=2, reduction=4),
    "copl": CoPLLike,
    "moma": lambda: MoMALike(reduction=4),
    "mbt": lambda: MBT(num_tokens=2, layers=2),
    "mbt_segment": lambda: MBT(num_tokens=2, layers=2, span="segment"),
    "toy_side": toys.SideNetwork,
    "toy_loss": toys.AuxiliaryLoss,
    "toy_edits": toys.EditedLayers,
    "toy_lone": toys.LoneShift,
    "toy_outputs": toys.OwnOutputs,
}


def without_a_row() -> list[type[PromptMethod]]:
    """Every `PromptMethod` that a module of `avprompt.methods` defines and `METHODS` lacks."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}.")
    ]
    defined = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, PromptMethod)
        and kind.__module__ == module.__name__
        and not inspect.isabstract(kind)
    }
    return sorted(defined - {*(type(make()) for make in METHODS.values())}, key=lambda kind: kind.__name__)


def fragments(kind: type[PromptMethod]) -> dict[str, dict[str, object]]:
    """Name and arguments of the fragments in lightning_configs/methods whose class_path is this method."""
    paths = {f"{kind.__module__}.{kind.__name__}", f"{methods.__name__}.{kind.__name__}"}
    contents = {path.stem: read_yaml(path) for path in sorted((ROOT / "lightning_configs" / "methods").glob("*.yaml"))}
    return {name: content.get("init_args", {}) for name, content in contents.items() if content["class_path"] in paths}


#: rows that nobody wrote here: name of the fragment -> the method with its arguments
FOUND = {name: partial(kind, **arguments) for kind in without_a_row() for name, arguments in fragments(kind).items()}
METHODS |= FOUND
TRAINED = [name for name in METHODS if name != "none"]
#: `dual-clip` are two separate towers
PAIRS: dict[str, Callable[[], tuple[nn.Module, nn.Module | str]]] = {
    "swin-htsat": lambda: (SmallSwin(), SmallHTSAT()),
    "clip-htsat": lambda: (SmallCLIP(), SmallHTSAT()),
    "clip": lambda: (SmallCLIP(segments=SEGMENTS, train_norm=True), "shared"),
    "dual-clip": lambda: (SmallCLIP(), SmallSpectrogram()),
    "swin": lambda: (SmallSwin(fbank=Fbank(mel_bins=32, frames=32, shift_ms=15.0, seconds=0.5)), "shared"),
}
#: methods that run on pairs other than their papers' own
TOYS = ("toy_side", "toy_loss", "toy_edits", "toy_outputs")
MIXED = {
    "clip-htsat": ("none", "dgsct", "dgsct_fewshot", "dgsct_paper_gated", "toy_lone", "stgcma", "copl", *TOYS, *FOUND),
    "clip": ("none", "dgsct", "dgsct_paper", *TOYS),
    "dual-clip": ("none", "avstfp", "avstfp_temporal_fusion", "avstfp_merged", "avstfp_kv_cross", "avstfp_bottleneck"),
}


def cases(methods: list[str]) -> list[tuple[str, str]]:
    """(method, pair): every method on its papers' own pair, and what is said above."""
    papers = {
        "avstfp": "clip",
        "maple": "clip-htsat",
        "lavish": "swin",
        "cola": "clip",
        "stgcma": "swin",
        "copl": "swin",
        "moma": "clip",
        "mbt": "dual-clip",
    }
    own = [(name, papers.get(name.partition("_")[0], "swin-htsat")) for name in methods]
    return own + [(name, pair) for pair, names in MIXED.items() for name in names if name in methods]


def build(method: str, pair: str, open_gates: bool = False) -> AVPromptBackbone:
    torch.manual_seed(0)
    net = AVPromptBackbone(*PAIRS[pair](), METHODS[method]())
    for name, parameter in net.prompts.named_parameters():
        if open_gates and (name.endswith("gate") or ("spatial_" in name and name.endswith("bias"))):
            nn.init.constant_(parameter, 0.5)  # a positive bias keeps tiny ReLU layers from being dead by chance
        elif open_gates and name.endswith((".up", ".up.weight")) and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    if open_gates:
        for encoder in (net.visual, net.audio):
            for name, parameter in encoder.named_parameters():
                if name == "temporal_embedding":
                    nn.init.normal_(parameter)
    return net.train()


def objective(features: AVFeatures) -> torch.Tensor:
    """A scalar that sees every feature and is flat in none (a plain mean would be blind behind a layer norm)."""
    generator = torch.Generator().manual_seed(7)
    seen = sum(
        (x * torch.randn(x.shape, generator=generator)).sum()
        for x in (features.visual, features.audio, *features.pyramid)
    )
    return seen + sum(features.losses.values())


def clips(**options: int) -> dict[str, torch.Tensor]:
    """A small batch with the input that a toy method asks for besides."""
    batch = small_clips(**options)
    return {**batch, "weights": batch["frames"].mean((2, 3, 4))}


def is_trainable(net: AVPromptBackbone, name: str) -> bool:
    """Prompts, and what the encoders say that they train."""
    encoder, _, rest = name.partition(".")
    return encoder == "prompts" or rest.startswith(getattr(net, encoder).trained)


def test_every_method_has_a_row() -> None:
    assert not without_a_row(), "no fragment in lightning_configs/methods has the class_path of these"


@pytest.mark.parametrize(("method", "pair"), cases(list(METHODS)))
def test_step_zero_is_the_frozen_network_where_the_method_says_so(method: str, pair: str) -> None:
    net, batch = build(method, pair), clips()
    prompted, plain = net(batch), net(batch, prompted=False)
    assert prompted.visual_tokens.shape == plain.visual_tokens.shape
    # fused attention rounds otherwise where its position bias is trained
    equal = partial(torch.allclose, atol=1e-5) if isinstance(net.prompts, FineTuning) else torch.equal
    same = equal(prompted.visual_tokens, plain.visual_tokens) and equal(prompted.audio_tokens, plain.audio_tokens)
    assert same is net.prompts.identity_at_start


@pytest.mark.parametrize(("method", "pair"), cases(TRAINED))
def test_gradients_reach_exactly_the_trainable_parameters(method: str, pair: str) -> None:
    net = build(method, pair, open_gates=True)
    objective(net(clips())).backward()
    for name, parameter in net.named_parameters():
        if is_trainable(net, name):
            assert parameter.requires_grad and parameter.grad is not None, f"{name} is dead"
            assert parameter.grad.abs().sum() > 0, f"{name} never moves"
        else:
            assert not parameter.requires_grad and parameter.grad is None, f"{name} is not frozen"


@pytest.mark.parametrize(("method", "pair"), cases(list(METHODS)))
def test_gradients_flow_where_the_method_says(method: str, pair: str) -> None:
    """No activation inside an encoder has a graph unless the method or a trained part of an encoder needs one."""
    net, graphs = build(method, pair, open_gates=True), []

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        graphs.append(isinstance(output, torch.Tensor) and output.requires_grad)

    for encoder in (net.visual, net.audio):
        for module in encoder.modules():
            module.register_forward_hook(note)
    features = net(clips())
    trained = any(encoder.trained for encoder in (net.visual, net.audio))
    assert any(graphs) is (net.prompts.gradient == "encoder" or trained)
    assert (features.visual.requires_grad or features.audio.requires_grad) is (
        net.prompts.gradient != "none" or trained
    )
    graphs.clear()
    with torch.no_grad():
        features = net(clips(), maps=True)
    found = [
        features.visual,
        features.audio,
        *features.pyramid,
        *features.maps.values(),
        *features.tables.values(),
        *features.losses.values(),
    ]
    assert not any(graphs) and all(x.grad_fn is None for x in found)


@pytest.mark.parametrize(("method", "pair"), cases(TRAINED))
def test_checkpointing_changes_nothing(method: str, pair: str) -> None:
    """Same features, losses and gradients where every block pair is computed again in the backward pass."""
    found = []
    for checkpointing in ("none", "adapters", "all") if METHODS[method]().has_adapters else ("none", "all"):
        net = build(method, pair, open_gates=True)
        net.checkpointing = checkpointing
        features = net(clips(), maps=True)
        objective(features).backward()
        found.append(
            (
                features,
                {name: p.grad for name, p in net.named_parameters() if p.requires_grad},
                dict(net.named_buffers()),
            )
        )
    plain, gradients, buffers = found[0]
    for again, others, counted in found[1:]:
        for name in ("visual", "audio", "visual_tokens", "audio_tokens"):
            assert torch.equal(getattr(plain, name), getattr(again, name)), name
        for kind in ("maps", "tables", "losses"):
            a, b = getattr(plain, kind), getattr(again, kind)
            assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, others[name], rtol=1e-4, atol=1e-5), name
        for name, buffer in buffers.items():
            assert torch.equal(buffer, counted[name]), f"{name}: a batch was counted twice"


@pytest.mark.parametrize(("method", "pair"), cases(TRAINED))
def test_frozen_tensors_stay_bit_equal_and_trainable_ones_move(method: str, pair: str) -> None:
    net = build(method, pair, open_gates=True)
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.01)
    for seed in range(3):
        optimizer.zero_grad()
        objective(net(clips(seed=seed))).backward()
        optimizer.step()
    for name, after in net.state_dict().items():
        assert torch.equal(before[name], after) is not is_trainable(net, name), name


@pytest.mark.parametrize(("method", "pair"), cases(list(METHODS)))
def test_save_and_load(method: str, pair: str) -> None:
    first, batch = build(method, pair, open_gates=True).eval(), clips()
    with torch.no_grad():
        for parameter in first.prompts.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        second = build(method, pair).eval()
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(batch).visual, second(batch).visual)
        assert torch.equal(first(batch).audio, second(batch).audio)


@pytest.mark.parametrize(("method", "pair"), cases(list(METHODS)))
def test_bfloat16_is_finite_and_near(method: str, pair: str) -> None:
    net, batch = build(method, pair, open_gates=method != "dgsct_paper").eval(), clips()
    with torch.no_grad():
        exact = net(batch)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = net(batch)
    for a, b in ((exact.visual, mixed.visual), (exact.audio, mixed.audio)):
        assert torch.isfinite(b).all()
        assert (a - b.float()).norm() < 0.1 * a.norm()


@pytest.mark.parametrize(("method", "pair"), cases(list(METHODS)))
def test_clips_of_a_batch_do_not_mix_in_eval_mode(method: str, pair: str) -> None:
    net, batch = build(method, pair, open_gates=True).eval(), clips(clips=3)
    with torch.no_grad():
        together = net(batch)
        for clip in range(3):
            alone = net({name: value[clip : clip + 1] for name, value in batch.items()})
            assert torch.allclose(together.visual[clip], alone.visual[0], rtol=1e-4, atol=1e-4)
            assert torch.allclose(together.audio[clip], alone.audio[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "pair"), cases([name for name in TRAINED if name.startswith("dgsct") and "s4" not in name])
)
def test_directions(method: str, pair: str) -> None:
    """Audio reaches the visual features where A2V is on and nowhere else, and the other way round."""
    net, batch = build(method, pair, open_gates=True).eval(), clips()
    frames, audio = (batch[name].requires_grad_() for name in ("frames", "audio"))
    for encoder in (net.visual, net.audio):
        encoder.frozen = False  # lets gradients through the embedding
    for features, other, on in (
        (net(batch).visual, audio, net.prompts.a2v),
        (net(batch).audio, frames, net.prompts.v2a),
    ):
        other.grad = None
        features.square().sum().backward()
        # a method without attention or latent tokens never reads the other modality
        reads = getattr(net.prompts, "num_tokens", 0) or net.prompts.channel or net.prompts.spatial
        reached = other.grad is not None and bool(other.grad.abs().sum() > 0)
        assert reached is bool(on and reads)


def test_a_loss_of_weight_zero_changes_nothing() -> None:
    gradients = []
    for weight in (None, 0.0, 1.0):
        net = build("toy_loss", "swin-htsat")
        features = net(clips())
        assert list(features.losses) == [f"draw@{site}" for site in range(len(net.sites))]
        loss = features.visual.square().sum() + features.audio.square().sum()
        if weight is not None:
            loss = loss + weight * sum(features.losses.values())
        loss.backward()
        gradients.append(torch.cat([p.grad for p in net.prompts.parameters()]))
    assert torch.equal(gradients[0], gradients[1]) and not torch.equal(gradients[0], gradients[2])


def test_blocks_without_a_partner_reach_the_method() -> None:
    net, batch = build("toy_lone", "swin-htsat"), clips()
    assert {side: len(shifts) for side, shifts in net.prompts.shift.items()} == {"visual": 2, "audio": 0}
    plain = net(batch)
    nn.init.ones_(net.prompts.shift["visual"][1])
    changed = net(batch)
    assert not torch.allclose(plain.visual, changed.visual) and torch.equal(plain.audio, changed.audio)


def test_a_method_names_its_own_outputs() -> None:
    net, batch = build("toy_outputs", "swin-htsat"), clips()
    features, plain = net(batch, maps=True), net(batch, prompted=False, maps=True)
    assert features.maps.keys() == {"saliency"} and features.maps["saliency"].shape == (2, SEGMENTS, 4, 4)
    assert features.tables.keys() == {"router"} and features.tables["router"].shape == (2, SEGMENTS, 2)
    assert not net(batch).maps and not net(batch).tables and not plain.maps
    assert (net.visual_dim, net.audio_dim) == (64, 33) == (features.visual.shape[-1], features.audio.shape[-1])
    assert torch.allclose(features.audio[..., -1], batch["audio"].square().mean(-1))
    assert torch.equal(features.pyramid[-1], 2 * features.visual_tokens)
    with pytest.raises(ArgumentError, match="weights too"):
        net({name: batch[name] for name in ("frames", "audio")})


def adapter_parameters(n: int, m: int, c: int, d: int, k: int, r: int, g: int, batch_norm: bool = True) -> int:
    """Closed form of one released guide, from the table of shapes of the authors' adapter."""
    h = c // r
    prompt_map = n * m + n + c * d + c
    latent = k * c + 1
    channel = 2 * (c * c + c) + (c * c // 2 + c // 2) + (c * c // 2 + c)
    spatial = 2 * (c * c // 2 + c // 2) + c // 2 + 1
    bottleneck = 2 * c * h // g + 4 * c + 1 + (2 * h + 2 * c if batch_norm else 0)
    return prompt_map + latent + channel + spatial + bottleneck


@pytest.mark.parametrize("pair", ["swin-htsat", "clip-htsat", "clip"])
def test_exact_parameter_count(pair: str) -> None:
    net = build("dgsct", pair)
    visual, audio = list(net.visual.blocks()), list(net.audio.blocks())
    expected = 0
    for i, j in net.sites:
        v, a = visual[i].spec, audio[j].spec
        for own, other in ((v, a), (a, v)):
            expected += 2 * adapter_parameters(own.tokens, other.tokens, own.dim, other.dim, 4, 4, 2)
    assert sum(p.numel() for p in net.prompts.parameters()) == expected
    assert sum(p.numel() for p in build("none", pair).prompts.parameters()) == 0


def test_reassociated_prompt_map_is_exact() -> None:
    from avprompt.encoders import BlockSpec
    from avprompt.methods.dgsct import PromptMap

    torch.manual_seed(0)
    prompt_map = PromptMap(BlockSpec(6, (5, 5), 0), BlockSpec(7, (4, 4), 0), tokens=3).double()
    latent, other = torch.randn(3, 6).double(), torch.randn(2, 16, 7).double()
    p = prompt_map(other)
    expected = latent + torch.softmax(latent @ p.transpose(1, 2), -1) @ p
    for associate in (False, True):
        prompt_map.associate = associate
        read, mean = prompt_map.read(latent, other, mean=True)
        assert torch.allclose(read, expected, atol=1e-12) and torch.allclose(mean, p.mean(1), atol=1e-12)
    assert torch.allclose(prompt_map.mean(other), p.mean(1), atol=1e-12)


def test_released_guide_equals_the_formulas_written_out() -> None:
    """Facts of the released adapter, steps 0 to 6, written once more without any re-association."""
    net = build("dgsct", "swin-htsat", open_gates=True).eval()
    for parameter in net.prompts.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    guide, method = net.prompts.visual_p1[0].double(), net.prompts
    own, other = list(net.visual.blocks())[net.sites[0][0]].spec, next(iter(net.audio.blocks())).spec
    x = torch.randn(2, own.tokens, own.dim).double()
    u = torch.randn(2, other.tokens, other.dim).double()
    p = (guide.map.weight @ u + guide.map.bias[:, None]) @ guide.map.project.weight.T + guide.map.project.bias
    r = guide.tokens + torch.softmax(guide.tokens @ p.transpose(1, 2), -1) @ p
    y = x + guide.token_gate * torch.softmax(x @ r.transpose(1, 2), -1) @ r
    a = p.mean(1)
    m = (guide.channel_guide(a).relu().unsqueeze(1) * guide.channel_own(y).relu()).mean(1)
    mc = guide.excite(guide.squeeze(m).relu()).sigmoid().unsqueeze(1)
    s = guide.score(guide.spatial_own(y * (mc + 1)).relu() * guide.spatial_guide(a).relu().unsqueeze(1))
    y = guide.norm_before(y * (method.alpha * mc + method.beta * s.sigmoid() + 1 - method.alpha))
    shape, groups = y.shape, y.reshape(-1, 2, own.dim // 2)
    z = torch.einsum("bgc,ghc->bgh", groups, guide.down.weight).flatten(1)
    z = guide.bn_down(z).relu().unflatten(1, (2, -1))
    o = guide.bn_up(torch.einsum("bgh,gch->bgc", z, guide.up.weight).flatten(1)).reshape(shape)
    expected = guide.gate * guide.norm_after(o)
    got, scores = guide(x, u)
    assert torch.allclose(got, expected, atol=1e-10) and torch.allclose(scores, s.squeeze(-1), atol=1e-10)


def test_paper_guide_equals_equations_3_4_and_6() -> None:
    net = build("dgsct_paper", "swin-htsat")
    guide = net.prompts.visual_p1[0].double()
    own, other = list(net.visual.blocks())[net.sites[0][0]].spec, next(iter(net.audio.blocks())).spec
    x, u = torch.randn(2, own.tokens, own.dim).double(), torch.randn(2, other.tokens, other.dim).double()
    p = guide.map(u)
    cm = (guide.channel_guide(p.mean(1)).unsqueeze(1) * guide.channel_own(x)).mean(1)
    mc = guide.excite(guide.squeeze(cm).relu()).sigmoid().unsqueeze(1)
    ms = guide.score(guide.spatial_guide(p) * guide.spatial_own((mc + 1) * x)).sigmoid()
    expected = (net.prompts.alpha * mc + net.prompts.beta * ms + 1) * x
    assert torch.allclose(guide(x, u)[0], expected, atol=1e-10)


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ArgumentError, match="NoPrompts"):
        DGSCT(a2v=False, v2a=False)
    with pytest.raises(ArgumentError, match="reduction, groups"):
        AVPromptBackbone(SmallSwin(), SmallHTSAT(), DGSCT(reduction=5))


def test_segments_do_not_mix_without_the_paper_gate() -> None:
    net, batch = build("dgsct", "swin-htsat", open_gates=True).eval(), clips(clips=1)
    net.audio.repeat = SEGMENTS
    with torch.no_grad():
        whole = net(batch)
        alone = net({name: value[:, 1:2] for name, value in batch.items()})
    assert torch.allclose(whole.visual[:, 1], alone.visual[:, 0], rtol=1e-4, atol=1e-4)
