"""AVMoE and CASTE: the published sizes, the authors' numbers on the same weights, and what their switches do."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from small import SmallHTSAT, SmallSwin, small_clips
from torch import nn

from avprompt import AVPromptBackbone
from avprompt.checkpoints import RECORD, record
from avprompt.cli import run
from avprompt.configs import read_yaml
from avprompt.encoders import CLIP, HTSAT, BlockSpec, FrozenEncoder, SwinV2
from avprompt.encoders.base import sizes_alone
from avprompt.errors import ArgumentError, CheckpointError
from avprompt.methods import DGSCT, AVMoE, PromptState
from avprompt.methods.avmoe import Mixture
from avprompt.methods.caste import CASTE
from avprompt.methods.dgsct import ReleasedAdapter
from avprompt.plots.features import tables_figure
from avprompt.tasks import AVE

OWN, OTHER = BlockSpec(8, (3, 3), 0), BlockSpec(6, (2, 2), 0)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 with every parameter drawn from N(0.1, 0.3^2), in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.double().named_parameters()):
            parameter.copy_(0.1 + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def tokens(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Two clips of three segments of `OWN`'s and of `OTHER`'s tokens, float64."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(6, spec.tokens, spec.dim, generator=generator, dtype=torch.float64) for spec in (OWN, OTHER)
    )


def mixture(attention: str = "none", batch_norm: bool = False, gated: bool = True, **options: object) -> Mixture:
    settings = {
        "cross_experts": 1,
        "unimodal_experts": 1,
        "unimodal_relu": False,
        "router_noise": 0.0,
        "num_tokens": 4,
        "reduction": 2,
        "groups": 2,
        **options,
    }
    return Mixture(OWN, OTHER, unimodal_attention=attention, batch_norm=batch_norm, gated=gated, **settings)


@pytest.fixture(scope="module")
def pair() -> tuple[FrozenEncoder, FrozenEncoder]:
    with sizes_alone():
        return SwinV2(), HTSAT()


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("avmoe", 90_549_536),
        ("avmoe_avvp", 111_877_104),
        ("avmoe_s4", 94_299_776),
        ("avmoe_ms3", 107_847_296),
        ("avmoe_avqa", 109_841_880),
        ("caste_avmoe", 90_549_536 + 17_095_056),
        ({}, 111_996_288),
        ({"batch_norm": False, "audio_gate": False, "unimodal_attention": "frames_released"}, 198_244_752),
        (
            {
                "batch_norm": False,
                "audio_gate": False,
                "unimodal_attention": "frames_released",
                "cross_experts": 2,
                "unimodal_experts": 2,
                "stages": [0, 2],
            },
            165_714_496,
        ),
    ],
)
def test_sizes_of_the_authors_networks(settings: str | dict, expected: int, pair: tuple) -> None:
    """The last two are those of the scripts for training and for testing S4."""
    if isinstance(settings, str):
        settings = read_yaml(ROOT / "lightning_configs" / "methods" / f"{settings}.yaml")["init_args"]
    with sizes_alone():
        assert size(AVPromptBackbone(*pair, AVMoE(**settings)).prompts) == expected


def test_sizes_of_caste_by_stage(pair: tuple) -> None:
    with sizes_alone():
        prompts = AVPromptBackbone(*pair, AVMoE(caste=True)).prompts
        stages = [size(prompts.visual_caste[stage]) + size(prompts.audio_caste[stage]) for stage in range(4)]
        clip = AVPromptBackbone(CLIP("ViT-B-16"), "shared", AVMoE(caste=True)).prompts
    assert stages == [328_236, 958_668, 3_325_452, 12_482_700]
    assert size(clip.visual_caste) + size(clip.audio_caste) == 5_198_220


#: what the authors' `MoEAdapter` gives on the weights of `filled` and the input of `tokens`, in eval mode: sum of the
#: output, four of its entries, sum of |gradient| by x and by u of the sum of output * `weights()`
RELEASED = {
    "none": [
        3.159456546144,
        0.011373885854,
        0.044599338839,
        -0.062704807013,
        0.011165648393,
        0.135196731642,
        0.0092179012,
    ],
    "tokens": [
        2.315708779249,
        0.007263917408,
        0.034534627364,
        -0.021870823695,
        0.017716381972,
        3.465055058358,
        8.0893231e-05,
    ],
    "latents": [
        -5.130356762405,
        -0.00627543669,
        -0.034768943974,
        -0.031836392744,
        -0.032380996697,
        2.006539267033,
        0.053850838568,
    ],
    "frames_released": [
        9.063467654193,
        0.132210426954,
        0.885671715551,
        0.446030714385,
        0.162442185622,
        88.544618041848,
        3.76061407313,
    ],
    "caste": [9.490837486335, 0.0, 0.0, 1.673295825168, 0.919894154787, 47.291474263994, 0.197055667575],
}


def weights(shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def numbers(out: torch.Tensor, *inputs: torch.Tensor) -> list[float]:
    found = [float(out.detach().sum()), *out.detach().flatten()[[0, 7, 100, 400]].tolist()]
    return found + [float(own.abs().sum()) for own in torch.autograd.grad((out * weights(out.shape)).sum(), inputs)]


@pytest.mark.parametrize(
    ("attention", "batch_norm", "gated"),
    [("none", True, True), ("tokens", False, True), ("latents", False, True), ("frames_released", False, False)],
)
def test_mixture_gives_the_authors_numbers(attention: str, batch_norm: bool, gated: bool) -> None:
    x, u = (own.requires_grad_() for own in tokens())
    out, _ = filled(mixture(attention, batch_norm, gated)).eval()(x, u)
    assert numbers(out, x, u) == pytest.approx(RELEASED[attention], rel=1e-9, abs=1e-11)


def test_caste_gives_the_authors_numbers() -> None:
    x, u = (own.requires_grad_() for own in tokens())
    assert numbers(filled(CASTE(OWN, OTHER))(x, u, segments=3)[0], x, u) == pytest.approx(
        RELEASED["caste"], rel=1e-9, abs=1e-11
    )


def test_router() -> None:
    """Weights sum to one; noise is for training alone; fixed on the cross-modal expert, it is LAVISH's adapter."""
    module, (x, u) = filled(mixture(router_noise=1.0)), tokens()
    noisy = [module.train()(x, u)[1] for _ in range(2)]
    quiet = [module.eval()(x, u)[1] for _ in range(2)]
    assert torch.allclose(noisy[0].sum(-1), torch.ones(6).double()) and noisy[0].shape == (6, 2)
    assert torch.equal(*quiet) and not torch.equal(*noisy)
    with torch.no_grad():
        module.router[-1].weight.zero_()
        module.router[-1].bias.copy_(torch.tensor([1000.0, 0.0]))
    lavish = ReleasedAdapter(
        OWN,
        OTHER,
        channel=False,
        spatial=False,
        alpha=0,
        beta=0,
        gamma=None,
        num_tokens=4,
        reduction=2,
        groups=2,
        batch_norm=False,
    ).double()
    state = module.state_dict()
    lavish.load_state_dict(
        {name: state[name] if name.startswith("map.") else state[f"experts.0.{name}"] for name in lavish.state_dict()}
    )
    assert torch.allclose(module(x, u)[0], lavish(x, u)[0], atol=1e-12)


def test_the_released_attention_over_frames_mixes_clips() -> None:
    """Why it is a switch, and no experiment has it."""
    x, u = tokens()
    for attention in ("none", "tokens", "latents", "frames_released"):
        module = filled(mixture(attention)).eval()
        together, alone = module(x, u)[0][:3], module(x[:3], u[:3])[0]
        assert torch.allclose(together, alone, atol=1e-10) is (attention != "frames_released"), attention
    for path in (ROOT / "lightning_configs" / "methods").glob("*.yaml"):
        assert "frames_released" not in str(read_yaml(path)), path


def test_balance_is_the_divergence_from_uniform() -> None:
    net = AVPromptBackbone(SmallSwin(), SmallHTSAT(), AVMoE(num_tokens=4, reduction=4, balance=True, stages=[1]))
    features = net(small_clips(), maps=True)
    assert len(features.losses) == 8 == len(features.tables) and all(name[:8] == "balance@" for name in features.losses)
    for name, loss in features.losses.items():
        mean = features.tables[name.replace("balance", "router")].flatten(0, 1).mean(0)
        expected = torch.nn.functional.kl_div(mean.detach().log(), torch.full((2,), 0.5), reduction="sum")
        assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-6) and loss >= -1e-7


def test_balance_of_an_expert_without_weight_is_finite() -> None:
    """Far logits make the softmax of an expert exactly zero."""
    method = AVMoE(num_tokens=2, reduction=2, groups=1, balance=True)
    method.attach([(OWN, OTHER)], {"visual": [], "audio": []})
    nn.init.constant_(method.visual_p1[0].router[-1].bias, 0.0)
    with torch.no_grad():
        method.visual_p1[0].router[-1].bias[0] = 1000
    state = PromptState(3)
    method._adapt("p1", 0, *(own.float() for own in tokens()), state)
    loss = state.losses["balance@0_visual_p1"]
    loss.backward()
    assert 30 < float(loss.detach()) < 100
    assert all(own.grad.isfinite().all() for own in method.visual_p1[0].router.parameters())


def test_agreement_prefers_space() -> None:
    """With a silent MLP the spatial branch weighs more exactly where the cosine is positive."""
    module, (x, u) = filled(CASTE(OWN, OTHER)), tokens()
    nn.init.zeros_(module.decide[-1].weight)
    nn.init.zeros_(module.decide[-1].bias)
    with torch.no_grad():
        chosen = module.weights(x, u)
        cosine = nn.functional.cosine_similarity(module.project_own(x.mean(1)), module.project_other(u.mean(1)), dim=-1)
        added, _ = module(x, u, segments=3)
    assert torch.equal(chosen[:, 0] > chosen[:, 1], cosine > 0)
    assert ((added != 0).any(-1).sum(1) == int(0.3 * OWN.tokens)).all()


def test_errors() -> None:
    with pytest.raises(ArgumentError, match="cross_experts"):
        AVMoE(cross_experts=1, unimodal_experts=0)
    with pytest.raises(ArgumentError, match="unimodal_attention: got frames; expected one of none, tokens, latents"):
        AVMoE(unimodal_attention="frames")
    with pytest.raises(ArgumentError, match="stages"):
        AVPromptBackbone(SmallSwin(), SmallHTSAT(), AVMoE(stages=[2], reduction=4))
    with pytest.raises(ArgumentError, match="4 heads"):
        Mixture(
            BlockSpec(6, (2, 2), 0),
            OTHER,
            cross_experts=1,
            unimodal_experts=1,
            router_noise=0,
            num_tokens=2,
            unimodal_attention="frames_released",
            unimodal_relu=False,
            reduction=3,
            groups=1,
            gated=True,
            batch_norm=False,
        )


def test_the_head_starts_from_another_methods_run(tmp_path: Path) -> None:
    """As the authors' AVE run starts from DG-SCT's; and its loss has no term of the gates."""
    encoders = SmallSwin(), SmallHTSAT()

    def task(method: object, **options: object) -> AVE:
        return AVE(AVPromptBackbone(*encoders, method), num_classes=3, **options)

    torch.manual_seed(1)
    first = task(DGSCT(num_tokens=4, reduction=4))
    torch.save({"state_dict": first.state_dict(), RECORD: record(first)}, tmp_path / "dgsct.ckpt")
    torch.manual_seed(2)
    second = task(AVMoE(num_tokens=4, reduction=4), head_from=tmp_path / "dgsct.ckpt", gate_loss="none")
    drawn = {name: value.clone() for name, value in second.head.state_dict().items()}
    second.setup("test")
    assert all(torch.equal(value, drawn[name]) for name, value in second.head.state_dict().items())
    second.setup("fit")
    assert all(torch.equal(value, first.head.state_dict()[name]) for name, value in second.head.state_dict().items())
    event = torch.eye(4)[torch.tensor([[0, 3, 3], [1, 1, 3]])]
    assert second.losses(second(small_clips()), {"event": event}).keys() == {"segment", "event", "video"}
    with pytest.raises(CheckpointError, match="no such file"):
        task(AVMoE(num_tokens=4, reduction=4), head_from=tmp_path / "none.ckpt").setup("fit")


def test_heat_maps_of_router_and_agreement(ave_root: Path, tmp_path: Path) -> None:
    """`visualize --features` draws block pairs over clips and writes the numbers."""
    run(
        [
            "visualize",
            "--config",
            str(ROOT / "experiments" / "quickstart.yaml"),
            "--data.root",
            str(ave_root),
            "--trainer.logger.save_dir",
            str(tmp_path),
            "--trainer.limit_predict_batches",
            "1",
            "--data.eval_batch_size",
            "3",
            "--ckpt_path",
            "none",
            "--model.backbone.prompts",
            (
                "{class_path: avprompt.methods.AVMoE, init_args: {num_tokens: 8, reduction: 4, "
                "groups: 2, caste: true, gamma: 0.1}}"
            ),
            "--features",
        ]
    )
    place = tmp_path / "quickstart" / "version_0" / "features"
    assert {"router.png", "router.csv", "agreement.png", "agreement.csv"} <= {path.name for path in place.iterdir()}
    with (place / "router.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4 * 4  # clips, block pairs, steps and modalities
    assert all(
        float(row["cross-modal expert 1"]) + float(row["unimodal expert 1"]) == pytest.approx(1, abs=1e-3)
        for row in rows
    )


def test_heat_map_shows_what_it_is_given() -> None:
    values = np.stack([np.linspace(0, 1, 12).reshape(4, 3)] * 2, -1)
    values[..., 1] = 1 - values[..., 0]
    places = [("visual p1", 0), ("visual p1", 1), ("audio p1", 0), ("audio p1", 1)]
    figure = tables_figure(values, places, ["bell", "bell", "car"], ["cross-modal", "unimodal"], "router")
    axis = figure.axes[0]
    assert len(figure.axes) == 2 and axis.get_title() == "cross-modal"  # one panel and the colour bar
    assert np.array_equal(axis.images[0].get_array(), values[..., 0])
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["bell", "car"]
    assert len(tables_figure(np.random.rand(4, 3, 3), places, ["bell"] * 3, "abc", "router").axes) == 4
