"""The few-shot DG-SCT network against the authors' own code, and the converter of its checkpoints.

The recorded numbers come from the authors' few-shot network, built at the small sizes below (its hard-coded widths
changed) with weights drawn by name as in `draw`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import pytest
import torch
from open_clip.transformer import TextTransformer, VisionTransformer
from safetensors.torch import load_file
from torch import Tensor, nn

from avprompt import AVPromptBackbone, checkpoints
from avprompt.backbone import pair_blocks
from avprompt.cli import main, model_of
from avprompt.convert import from_released, released
from avprompt.encoders import CLIP, BlockSpec, CLAPAudio, CLAPText, CLIPText
from avprompt.encoders.htsat import FrontEnd
from avprompt.errors import ArgumentError, CheckpointError, WeightsError
from avprompt.methods import CoOp, DGSCTFewShot, FixedEmbeddings, PromptState
from avprompt.tasks import Contrastive

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["Church_bell", "Male_speech", "Frying_(food)"]
#: seen and heard tokens and channels of every site
SITES = [((17, 64), (64, 16)), ((17, 64), (64, 16)), ((17, 64), (16, 32)), ((17, 64), (16, 32))]
PUBLISHED = [
    ((50, 768), heard)
    for heard, count in (((4096, 96), 2), ((1024, 192), 2), ((256, 384), 6), ((64, 768), 2))
    for _ in range(count)
]


class SmallViT(CLIP):
    """Four blocks of width 64 over 32 x 32 frames."""

    def _build(self, model: str) -> nn.Module:
        return VisionTransformer(32, 8, 64, 4, 1, 4.0, output_dim=512)


class SmallText(CLIPText):
    """Two blocks of width 64, and the whole vocabulary."""

    def _build(self, model: str, activation: type[nn.Module]) -> nn.Module:
        return TextTransformer(77, 49408, 64, 1, 2, output_dim=512, act_layer=activation)


class SmallCLAP(CLAPAudio):
    """Two stages of 2 blocks, width 16 and 32, over seconds of 8000 samples."""

    def _build(self, front_end: FrontEnd, **sizes: object) -> nn.Module:
        coarse = FrontEnd(sample_rate=8000, window_size=512, hop_size=400, mel_bins=16, fmin=50, fmax=4000)
        return super()._build(coarse, spec_size=32, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)


class SmallRoBERTa(CLAPText):
    """Two blocks of width 32; a sentence is a few numbers that tell its place in the list."""

    def _build(self, **sizes: int) -> nn.Module:
        return super()._build(
            vocab_size=300,
            max_position_embeddings=90,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )

    def tokenize(self, texts: list[str]) -> Tensor:
        assert texts == [f"The sounds of {name}" for name in (*NAMES, "background")]
        ids = torch.ones(len(texts), 12, dtype=torch.long)
        for place in range(len(texts)):
            length = 5 + place
            ids[place, :length] = torch.arange(3 + 10 * place, 3 + 10 * place + length)
            ids[place, 0], ids[place, length - 1] = 0, 2
        return ids


def adapter(own: tuple[int, int], other: tuple[int, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the 42 tensors of one released adapter."""
    (n, c), (m, d), half, low = own, other, own[1] // 2, own[1] // 8
    yield from {"gate": (1,), "gate_tk": (1,), "gate_av": (1,), "my_tokens": (2, c)}.items()
    maps = {
        "fc_caption": (192, 512),
        "conv_adapter": (n, m, 1, 1),
        "fc": (c, d),
        "fc_affine_audio_1": (c, c),
        "fc_affine_video_1": (c, c),
        "fc_affine_bottleneck": (half, c),
        "fc_affine_video_2": (half, c),
        "fc_affine_audio_2": (half, c),
        "fc_affine_v_s_att": (1, half),
        "fc_affine_v_c_att": (c, half),
        "temporal_gated.0": (1, c),
        "ln_before": (c,),
        "ln_post": (c,),
        "bn1": (low,),
        "bn2": (c,),
    }
    for name, shape in maps.items():
        yield from ((f"{name}.weight", shape), (f"{name}.bias", shape[:1]))
    for name, width in (("bn1", low), ("bn2", c)):
        yield from (
            (f"{name}.running_mean", (width,)),
            (f"{name}.running_var", (width,)),
            (f"{name}.num_batches_tracked", ()),
        )
    yield from (("down_sampler.weight", (low, half, 1, 1)), ("up_sampler.weight", (c, low // 2, 1, 1)))


def layout(towers: tuple[CLIP, CLIPText, CLAPAudio, CLAPText], sites: list, classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a few-shot checkpoint, but for the two heads that it never calls."""
    visual, names, audio, heard = towers
    found = {f"ViT.{visual.library_key(name)}": value.shape for name, value in visual.state_dict().items()}
    for name, value in names.state_dict().items():
        found[name if name.startswith(("token_embedding", "logit_scale")) else f"text_encoder.{name}"] = value.shape
    for name, value in audio.state_dict().items():
        if name != "logit_scale":
            found[audio.library_key(name).replace("audio_branch.", "htsat.")] = value.shape
    found |= {f"clap_text_encoder.{name}": value.shape for name, value in heard.state_dict().items()}
    for layer in ("0", "3"):
        found |= {
            f"clap_text_encoder.text_transform.sequential.{layer}.weight": (512, 512),
            f"clap_text_encoder.text_transform.sequential.{layer}.bias": (512,),
        }
    for place, (seen, sound) in enumerate(sites):
        for own, other, side in ((seen, sound, "vis"), (sound, seen, "audio")):
            found |= {
                f"{side}_adapter_blocks_{step}.{place}.{name}": shape
                for step in ("p1", "p2")
                for name, shape in adapter(own, other)
            }
    width = names.positional_embedding.shape[1]
    found |= {
        "prompt_learner.ctx": (4, width),
        "prompt_learner.meta_net.linear1.weight": (32, 512),
        "prompt_learner.meta_net.linear1.bias": (32,),
        "prompt_learner.meta_net.linear2.weight": (width, 32),
        "prompt_learner.meta_net.linear2.bias": (width,),
        "prompt_learner.token_prefix": (classes, 1, width),
        "prompt_learner.token_suffix": (classes, 72, width),
    }
    for name in ("clip_adapter", "clip_adapter_text"):
        found |= {f"{name}.fc.0.weight": (128, 512), f"{name}.fc.2.weight": (512, 128)}
    return {
        **found,
        "audio_visual_contrastive_learner.fc_a1.weight": (512, 512),
        "audio_visual_contrastive_learner.fc_a1.bias": (512,),
    }


def draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight called `name`: norms near 1, gates near 0.5, so that no path is dead."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("running_var"):
        return 1 + 0.1 * noise.abs()
    if name.endswith(("gate", "gate_av")):
        return 0.5 + 0.1 * noise
    if "logit_scale" in name:
        return 2.3 + 0.1 * noise
    if len(shape) < 2:
        return 1 + 0.1 * noise if name.endswith("weight") else 0.05 * noise
    return noise / noise[0].numel() ** 0.5


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A small released file with some of the dead heads."""
    towers = SmallViT(projection=True), SmallText(), SmallCLAP(repeat=3), SmallRoBERTa()
    shapes = layout(towers, SITES, len(NAMES) + 1) | {
        "CMBS.audio_cas.weight": (28, 256),
        "audio_adapter.audio_gated.0.weight": (1, 256),
        "htsat.tscam_conv.weight": (1, 32, 2, 3),
        "htsat.head.bias": (1,),
    }
    return {
        name: torch.zeros((), dtype=torch.long) if name.endswith("tracked") else draw(name, tuple(shape))
        for name, shape in shapes.items()
        if not name.startswith(("htsat.spectrogram", "htsat.logmel"))
    }


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter builds these sizes."""
    monkeypatch.setattr(released, "CLIP", lambda model, projection: SmallViT(projection=projection))
    monkeypatch.setattr(released, "CLIPText", lambda model: SmallText())
    monkeypatch.setattr(released, "CLAPAudio", lambda front_end: SmallCLAP(repeat=3))
    monkeypatch.setattr(released, "CLAPText", lambda tokenizer: SmallRoBERTa())


def example() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(2, 10, 3, 32, 32, generator=generator)
    return {"frames": frames, "audio": 0.1 * torch.randn(2, 10, 8000, generator=generator)}


RECORDED = {
    "visual_tokens": ([2.761577, 0.489617, -1.828788, 0.542332, 4.472404, -1.943647], 382.46741),
    "audio_tokens": ([-0.010555, -0.696957, 1.171744, 1.395538, 3.379107, -1.09628], 99.83069),
    "visual": ([0.282764, 0.007334, 0.35235, 0.488051, -0.119688, -0.139787], 36.0935),
    "audio": ([0.333981, 0.732177, -0.296729, -1.475674, 0.667229, -1.06059], 71.06081),
    "matching": ([0.416832, 0.440653, 0.420341, 0.445668], 0.86211),
    "visual_logits": ([0.331474, 0.135066, 0.306161, 0.177798, 0.594395, 0.572749], 2.6891),
    "audio_logits": ([0.06895, 0.098777, 0.036188, 0.066208, 0.048634, 0.060712], 0.66914),
    "logits": ([0.800848, 0.467686, 0.684699, 0.488011, 1.286057, 1.266921], 6.38144),
}


@pytest.mark.usefixtures("_small")
def test_outputs_equal_the_authors(state: dict[str, Tensor]) -> None:
    """Tokens of the last block (CLIP's before, CLAP's after the final norm), projected features, and every score."""
    module = from_released("fewshot", state, class_names=NAMES, background=True, audio_scale=math.exp(2.5))
    tokens: list[Tensor] = []
    module.backbone.visual.norm.register_forward_pre_hook(lambda norm, inputs: tokens.append(inputs[0]))
    batch = example()
    with torch.no_grad():
        features, out = module.backbone(batch), module(batch)
    out |= {
        "visual_tokens": tokens[0],
        "audio_tokens": features.audio_tokens,
        "visual": module.backbone.visual.project(features.visual),
        "audio": module.backbone.audio.project(features.audio),
    }
    for name, (elements, norm) in RECORDED.items():
        flat, expected = out[name].flatten(), torch.tensor(elements)
        found = flat[:: max(1, len(flat) // 6)][:6]
        assert (found - expected).norm() < 1e-4 * expected.norm(), name
        assert abs(float(flat.norm()) - norm) < 1e-4 * norm, name


@pytest.mark.usefixtures("_small")
def test_pretraining_has_other_settings_and_another_fusion(state: dict[str, Tensor]) -> None:
    """Those hard-coded in the pretraining and zero-shot scripts; the classes may be a part of training's."""
    with pytest.warns(UserWarning, match="logit_scale_a"):
        module = from_released("pretrain", state, class_names=NAMES, background=True, level="video")
    assert float(module.head.branches["audio"].log_scale.exp()) == pytest.approx(1 / 0.07)
    prompts = module.backbone.prompts
    assert (prompts.alpha, prompts.beta, prompts.gamma) == (0.3, 0.01, 0.05)
    with torch.no_grad():
        module.level = "segment"
        out = module(example())
    seen, heard = out["visual_logits"], out["audio_logits"]
    assert torch.allclose(out["logits"], (seen.square() + heard.square()) / (seen + heard), atol=1e-5)
    chosen = from_released("pretrain", state, gamma=0.02, audio_scale=20.0)
    assert chosen.backbone.prompts.gamma == 0.02
    assert torch.equal(chosen.head.branches["visual"].texts.context, state["prompt_learner.ctx"])


@pytest.mark.usefixtures("_small")
def test_every_key_is_used_or_known_or_an_error(state: dict[str, Tensor]) -> None:
    def convert(changed: dict[str, Tensor]) -> Contrastive:
        return from_released("fewshot", changed, audio_scale=14.0)

    module = convert({f"module.{name}": value for name, value in state.items()})
    assert not module.training and not module.class_names
    with pytest.raises(ArgumentError, match="class_names"):
        module(example())
    novelties = "prompt_learner.novelty", "vis_adapter_blocks_p1.0.novelty.bias", "clip_adapter.fc.4.weight", "novelty"
    with pytest.raises(CheckpointError) as error:
        convert({**state, **{name: torch.zeros(1) for name in novelties}})
    assert all(f"{name} (1,)" in str(error.value) for name in novelties)
    for name in ("ViT.novelty", "text_encoder.novelty", "htsat.novelty", "clap_text_encoder.novelty"):
        with pytest.raises(WeightsError, match="novelty"):
            convert({**state, name: torch.zeros(1)})
    ours = {
        "audio_adapter_blocks_p2.3.temporal_gated.0.weight": "audio_p2.3.temporal_score.weight",
        "prompt_learner.ctx": "texts.context",
        "clip_adapter_text.fc.2.weight": "text_adapter.up.weight",
        "audio_visual_contrastive_learner.fc_a1.bias": "matching.audio.bias",
    }
    with pytest.raises(CheckpointError) as error:
        convert({key: value for key, value in state.items() if key not in ours})
    assert all(name in str(error.value) for name in ours.values())
    with pytest.raises(CheckpointError, match=r"unknown .*ctx \(7,\)"):
        convert({**state, "prompt_learner.ctx": torch.zeros(7)})
    for name in (
        "ViT.proj",
        "text_encoder.text_projection",
        "htsat.norm.weight",
        "audio_projection.2.bias",
        "clap_text_encoder.text_branch.pooler.dense.bias",
        "logit_scale",
    ):
        with pytest.raises(WeightsError, match=f"missing .*{name.split('.', 1)[-1]}"):
            convert({key: value for key, value in state.items() if key != name})
    with pytest.raises(ArgumentError, match="gama"):
        from_released("fewshot", state, gama=0.1)


@pytest.mark.usefixtures("_small")
def test_command_writes_what_the_network_loads(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "mm_best_72.40.pt", tmp_path / "ours.ckpt"
    torch.save(state, source)
    main(["convert", "--task", "fewshot", "--audio_scale", "20", str(source), str(target)])
    files = {side: tmp_path / f"ours.{side}.safetensors" for side in ("visual", "audio")}
    said = capsys.readouterr().out
    for place in ("backbone.{0}", "{0}_texts.tower"):
        for side, path in files.items():
            assert f"--model.{place.format(side)}.pretrained {path}" in said
    names, heard = SmallText(pretrained=str(files["visual"])), SmallRoBERTa(str(files["audio"]))
    visual, audio = (
        SmallViT(pretrained=str(files["visual"]), projection=True),
        SmallCLAP(pretrained=str(files["audio"]), front_end="released", repeat=3),
    )
    module = Contrastive(
        AVPromptBackbone(visual, audio, DGSCTFewShot(num_tokens=2, alpha=0.2, beta=0.05, gamma=0.01)),
        CoOp(names, 4),
        FixedEmbeddings(lambda: heard, "The sounds of {}", spaces=False),
        NAMES,
        True,
        adapters=["visual", "visual_texts"],
        fusion="sum",
        objective="released",
        exp_audio_scale=False,
    )
    content = checkpoints.read_checkpoint(target)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    direct = from_released("fewshot", state, class_names=NAMES, background=True, audio_scale=20.0)
    with torch.no_grad():
        ours, theirs = module.eval()(example()), direct(example())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    # dead: text_transform, tscam_conv and head; CLAP's scale is added
    assert (
        len(load_file(files["audio"]))
        == sum(name.startswith(("htsat.", "audio_projection.", "clap_text_encoder.")) for name in state) - 6 + 1
    )


def attached(sites: list) -> DGSCTFewShot:
    with torch.device("meta"):
        method = DGSCTFewShot(num_tokens=2)
        grids = {50: ((7, 7), 1), 17: ((4, 4), 1)}

        def spec(tokens: int, dim: int) -> BlockSpec:
            side = math.isqrt(tokens)
            grid, prefix = grids.get(tokens, ((side, side), 0))
            return BlockSpec(dim, grid, 0, prefix)

        method.attach([(spec(*seen), spec(*heard)) for seen, heard in sites], {})
    return method


def test_parameters_are_those_of_the_authors_that_ever_get_a_gradient() -> None:
    method, dead = attached(PUBLISHED), 192 * 512 + 192 + 1  # fc_caption, gate_tk
    count = [
        [sum(p.numel() for p in guide.parameters()) for guide in getattr(method, name)]
        for name in ("audio_p1", "visual_p1")
    ]
    heard = [420_605] * 2 + [453_173] * 2 + [1_020_581] * 6 + [3_136_325] * 2
    seen = [2_821_815] * 2 + [2_741_943] * 2 + [2_850_999] * 6 + [3_136_311] * 2
    assert count == [[total - dead for total in side] for side in (heard, seen)]
    assert sum(p.numel() for p in method.parameters()) == 92_571_792
    assert sum(p.numel() for p in DGSCTFewShot(temporal=False).parameters()) == 0


@pytest.mark.parametrize("task", ["fewshot", "pretrain"])
def test_the_experiment_owns_what_a_published_file_holds(task: str) -> None:
    """Of 3018 entries, 276 are in heads that are never called; the others have their places in what is told to run."""
    task = released.TASKS[task]
    module = model_of(["--config", str(ROOT / "experiments" / f"{task.experiment}.yaml"), *task.flags], meta=True)
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == 93_098_640
    with torch.device("meta"):
        towers = module.backbone.visual, CLIPText("ViT-B-32"), module.backbone.audio, CLAPText()
    shapes = layout(towers, PUBLISHED, 29) | {
        "htsat.tscam_conv.weight": (),
        "htsat.tscam_conv.bias": (),
        "htsat.head.weight": (),
        "htsat.head.bias": (),
    }
    constants = 12 + 5  # position indices of all blocks and masks of the shifted ones, none of ours
    assert len(shapes) == 3018 - 276 - constants
    owned = module.state_dict()
    for name, shape in shapes.items():
        if not any(name.startswith(tuple(names)) for names in task.towers.values()):
            ours = released.adapter_key(name) if "_adapter_blocks_" in name else task.head.rename(name)
            assert ours is None or owned.pop(ours).numel() == math.prod(shape), name
    assert not owned
    prompts, built = module.backbone.prompts, signature(task.build).parameters
    assert (type(prompts), module.head.fusion) == (DGSCTFewShot, built["fusion"].default)
    assert not module.head.branches["audio"].exponential


@pytest.mark.parametrize(
    ("visual", "audio", "seen", "heard"),
    [
        (12, [2, 2, 6, 2], range(12), range(12)),
        (24, [2, 2, 6, 2], range(1, 24, 2), range(12)),
        (12, [2, 2, 12, 2], range(12), [0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17]),
        (24, [2, 2, 12, 2], [0, 1, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 19, 20, 21, 23], range(18)),
    ],
)
def test_one_stage_of_clip_pairs_with_all_blocks_of_clap(
    visual: int, audio: list[int], seen: list[int], heard: list[int]
) -> None:
    """B/32, B/16 (12 blocks) and L/14 (24) with HTS-AT tiny (12) and base (18): evenly spread, ending together."""
    assert pair_blocks([visual], audio) == list(zip(seen, heard))


def test_a_site_in_its_published_order() -> None:
    """Both guides of a step read what stands before either is added; the second reads the frames before the MLP."""
    torch.manual_seed(0)
    visual, audio = SmallViT(), SmallCLAP(repeat=3)
    backbone = AVPromptBackbone(visual, audio, DGSCTFewShot(num_tokens=2)).eval()
    for name, parameter in backbone.prompts.named_parameters():
        if name.endswith("gate"):
            nn.init.constant_(parameter, 0.5)
    prompts, seen, heard = backbone.prompts, next(visual.blocks()), next(audio.blocks())
    v, a = torch.randn(3, 17, 64), torch.randn(3, 64, 16)
    with torch.no_grad():
        v1, a1 = v + seen.attention(v), heard(a)
        v2, a2 = v1 + prompts.visual_p1[0](v1, a1)[0], a1 + prompts.audio_p1[0](a1, v1)[0]
        v3 = v2 + seen.mlp(v2) + prompts.visual_p2[0](v2, a2)[0]
        a3 = a2 + prompts.audio_p2[0](a2, v2)[0]
        found = prompts.step(0, seen, heard, v, a, PromptState(segments=3))
    assert torch.equal(found[0], v3) and torch.equal(found[1], a3)
    assert prompts.temporal_gates == (0.0, 0.0)  # they are in the guides, none is left for a head


def test_the_temporal_gate_of_a_guide() -> None:
    """alpha Mc + beta Ms + gamma G + 1 - alpha, with G = sigmoid(w mean(p) + b) for each segment."""
    method = DGSCTFewShot(num_tokens=0, spatial=False, reduction=4, gamma=0.7)
    method.attach([(BlockSpec(8, (2, 2), 0, 1), BlockSpec(16, (3, 3), 0))], {})
    guide = method.visual_p1[0].eval()
    nn.init.ones_(guide.gate)
    x, u = torch.randn(4, 5, 8), torch.randn(4, 9, 16)
    with torch.no_grad():
        mean = guide.map(u).mean(1)
        joint = guide.channel_guide(mean).relu() * guide.channel_own(x).relu().mean(1)
        channel = guide.excite(guide.squeeze(joint).relu()).sigmoid()
        gate = guide.temporal_score(mean).sigmoid()
        factor = method.alpha * channel + 0.7 * gate + 1 - method.alpha
        expected = guide.bottleneck(guide.norm_before(x * factor.unsqueeze(1)))
        assert torch.allclose(guide(x, u)[0], expected, atol=1e-5)
