"""Images and sounds against the names of classes: DG-SCT's few-shot task and the methods that it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from open_clip.transformer import VisionTransformer
from small import SmallHTSAT, SmallSwin, enliven
from test_clap import SmallCLAP
from test_text import SmallCLAPText, SmallCLIPText, roberta_folder
from torch import nn
from torch.nn import functional as F

from avprompt import AVPromptBackbone, checkpoints, losses
from avprompt.encoders import CLIP, CLAPAudio, CLAPText, CLIPText
from avprompt.errors import ArgumentError, CheckpointError, ConfigError, WeightsError
from avprompt.heads.clip_adapter import CLIPAdapter
from avprompt.heads.contrastive import Matching, fuse, visual_weight
from avprompt.media.decode import Sampling
from avprompt.methods import (
    ClassEmbeddings,
    CoCoOp,
    CoOp,
    DGSCTFewShot,
    FixedEmbeddings,
    MaPLe,
    MaPLeEmbeddings,
    NoPrompts,
    PromptMethod,
)
from avprompt.tasks import Contrastive

NAMES, SEGMENTS = ("Church_bell", "dog", "violin, fiddle"), 2


class Eye(CLIP):
    """Four blocks of width 32 over 32 x 32 frames, in the small text tower's space of 24 channels."""

    def _build(self, model: str) -> nn.Module:
        net = VisionTransformer(32, 16, 32, 4, 2, 4.0, output_dim=24)
        enliven(net)
        return net


class Words(SmallCLIPText):
    """The small text tower with weights that tell texts apart."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        enliven(self, seed=4)
        generator = torch.Generator().manual_seed(4)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, 0, 0.2, generator)


@cache
def words() -> Words:
    """One for all: it is frozen."""
    return Words()


@cache
def ear() -> SmallCLAP:
    """To be copied, which is faster than building."""
    torch.manual_seed(0)
    ear = SmallCLAP()
    enliven(ear, seed=3)
    return ear


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roberta_folder(tmp_path_factory.mktemp("roberta") / "tokenizer")


@cache
def clap_text(tokenizer: Path) -> CLAPText:
    torch.manual_seed(2)
    return SmallCLAPText(tokenizer=tokenizer)


def sound_texts(tokenizer: Path, **options: object) -> FixedEmbeddings:
    return FixedEmbeddings(partial(clap_text, tokenizer), template="The sounds of {}", spaces=False, **options)


def batch(clips: int = 2, names: tuple[str, ...] = NAMES, seed: int = 0) -> dict[str, object]:
    """AVE's labels: clip i has category i at its first segment, background at its second."""
    generator = torch.Generator().manual_seed(seed)
    event = torch.zeros(clips, SEGMENTS, len(names) + 1)
    for clip in range(clips):
        event[clip, 0, clip % len(names)] = event[clip, 1, -1] = 1
    return {
        "id": [str(clip) for clip in range(clips)],
        "event": event,
        "frames": torch.randn(clips, SEGMENTS, 3, 32, 32, generator=generator),
        "audio": 0.1 * torch.randn(clips, SEGMENTS, 48000, generator=generator),
        "valid": torch.ones(clips, SEGMENTS, dtype=torch.bool),
        "times": torch.from_numpy(Sampling(SEGMENTS).times()).expand(clips, -1, -1),
    }


def build(
    tokenizer: Path | None,
    visual: Callable[[CLIPText], ClassEmbeddings] | None = None,
    prompts: PromptMethod | None = None,
    **options: object,
) -> Contrastive:
    torch.manual_seed(0)
    backbone = AVPromptBackbone(Eye(projection=True), copy.deepcopy(ear()), prompts)
    return Contrastive(
        backbone,
        visual(words()) if visual else None,
        sound_texts(tokenizer) if tokenizer else None,
        **{"class_names": NAMES, **options},
    )


def fixed(words: CLIPText) -> FixedEmbeddings:
    return FixedEmbeddings(lambda: words)


def network(tokenizer: Path, name: str, **options: object) -> Contrastive:
    """Each method as its experiment has it, at toy size."""
    maple = MaPLe(num_tokens=2, depth=3, text_width=32)
    dgsct, four = DGSCTFewShot(num_tokens=2, reduction=4), partial(CoOp, context=4)
    sounds = {"adapters": ["audio", "audio_texts"]}
    two = {"adapters": ["visual", "visual_texts"], "objective": "released"}
    return {
        "clip": lambda: build(None, fixed, objective="class", **options),
        "clap": lambda: build(tokenizer, objective="class", **options),
        "coop": lambda: build(None, CoOp, objective="class", **options),
        "cocoop": lambda: build(None, CoCoOp, objective="class", **options),
        "clip_adapter": lambda: build(None, fixed, adapters=["visual"], objective="class", **options),
        "maple": lambda: build(None, MaPLeEmbeddings, maple, objective="class", **options),
        "dgsct": lambda: build(tokenizer, four, dgsct, **{**two, **options}),
        "dgsct_paper": lambda: build(tokenizer, four, dgsct, **{"learned_scales": True, **sounds, **options}),
    }[name]()


BASELINES = ["coop", "cocoop", "clip_adapter", "maple", "dgsct", "dgsct_paper"]


def open_gates(task: Contrastive) -> Contrastive:
    for name, parameter in task.backbone.prompts.named_parameters():
        if name.endswith("gate") or ("spatial_" in name and name.endswith("bias")):
            nn.init.constant_(parameter, 0.5)
    return task


@pytest.mark.parametrize("background", [False, True])
def test_without_prompts_it_is_clip_and_clap(tokenizer: Path, background: bool) -> None:
    """CLIP's and CLAP's own use, written out: normalised embeddings and texts, cosines times the trained scale."""
    task, data = build(tokenizer, fixed, background=background, fusion="sum").eval(), batch()
    eye, own_ear, names = task.backbone.visual, task.backbone.audio, [*NAMES, *["background"] * background]
    with torch.no_grad():
        out = task(data)
        image = eye(data["frames"])[:, 0] @ eye.projection
        sound = own_ear.audio_projection(own_ear(data["audio"]).mean(1))
        sides = {
            "visual": (image, words(), [f"a photo of a {name.replace('_', ' ')}." for name in names]),
            "audio": (sound, clap_text(tokenizer), [f"The sounds of {name}" for name in names]),
        }
        for side, (embedding, tower, texts) in sides.items():
            expected = F.normalize(embedding, dim=-1) @ F.normalize(tower(texts), dim=-1).T / 0.07
            assert torch.allclose(out[f"{side}_logits"].flatten(0, 1), expected, atol=1e-4)
            assert out[f"{side}_logits"].std() > 5e-3
    assert out["logits"].shape == (2, SEGMENTS, len(names))
    assert torch.allclose(out["logits"], 2 * out["visual_logits"] + 2 * out["audio_logits"])


@pytest.mark.parametrize("name", ["coop", "dgsct", "dgsct_paper"])
def test_step_zero(tokenizer: Path, name: str) -> None:
    """Gated prompts leave the encoders alone; adapters and drawn contexts are what they are from the start."""
    task, data = network(tokenizer, name).eval(), batch()
    features, plain = (task.backbone(data, prompted=on) for on in (True, False))
    assert torch.equal(features.visual, plain.visual) and torch.equal(features.audio, plain.audio)


@pytest.mark.parametrize("name", BASELINES)
def test_gradients_reach_exactly_the_trainable_state(tokenizer: Path, name: str) -> None:
    task, data = open_gates(network(tokenizer, name, background=True)).train(), batch(3)
    before = copy.deepcopy(nn.Module.state_dict(task))
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], 1e-3)
    torch.stack(list(task.losses(task(data), data).values())).sum().backward()
    for key, parameter in task.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) is parameter.requires_grad, key
    optimizer.step()
    after, owned = nn.Module.state_dict(task), checkpoints.trainable_state_names(task)
    assert {key for key in after if not torch.equal(before[key], after[key])} == owned
    assert owned == task.state_dict().keys()


def test_trainable_parameters_are_the_published_counts() -> None:
    def owned(texts: ClassEmbeddings | None, prompts: PromptMethod | None = None, **options: object) -> int:
        task = Contrastive(AVPromptBackbone(eye, clap, prompts), texts, class_names=NAMES, **options)
        return sum(p.numel() for p in task.parameters() if p.requires_grad)

    with torch.device("meta"):
        eye, clap, words = CLIP("ViT-B-16", projection=True), CLAPAudio(), CLIPText("ViT-B-16")
        sounds = partial(FixedEmbeddings, CLAPText)
        assert owned(CoOp(words)) == 8192 and owned(CoOp(words, "a photo of a")) == 2048
        assert owned(CoOp(words, class_specific=True)) == 8192 * len(NAMES)
        assert owned(CoCoOp(words)) == 35360
        assert owned(FixedEmbeddings(lambda: words), adapters=["visual"]) == 131072
        assert owned(MaPLeEmbeddings(words), MaPLe()) == 3555072
        released = {"adapters": ["visual", "visual_texts"], "objective": "released", "audio_texts": sounds()}
        assert owned(CoOp(words, 4), **released) == 2 * 131072 + 262656 + 2048
        assert owned(FixedEmbeddings(lambda: words), audio_texts=sounds(), learned_scales=True) == 2


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_context_stands_where_it_says(position: str) -> None:
    """Words as context give the sentence's own embedding; other vectors give another."""
    start, tower = "a photo of a", words()
    texts = CoOp(tower, start, position=position)
    texts.attach(NAMES, NoPrompts())
    before = {"end": "a photo of a ", "middle": "a photo ", "front": ""}[position]
    sentences = [f"{before}{name.replace('_', ' ')} {start[len(before) :]}".strip() + "." for name in NAMES]
    with torch.no_grad():
        assert torch.allclose(texts(torch.zeros(1, 1, 24)), tower(sentences), atol=1e-5)
        texts.context[1] += torch.randn(32)  # not the same everywhere: layer norms would not notice
        assert not torch.allclose(texts(torch.zeros(1, 1, 24)), tower(sentences), atol=2e-3)


def test_a_context_for_each_class() -> None:
    texts = CoOp(words(), "a photo of a", class_specific=True)
    texts.attach(NAMES, NoPrompts())
    before = texts(torch.zeros(1, 1, 24)).detach()
    with torch.no_grad():
        texts.context[1] += torch.randn(32)
        moved = (texts(torch.zeros(1, 1, 24)) - before).abs().amax(-1)
    assert moved[1] > 1e-2 and moved[0] == moved[2] == 0


def test_drawn_contexts_follow_the_seed() -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        task = Contrastive(AVPromptBackbone(Eye(projection=True), ear()), CoOp(words(), 16), class_names=NAMES)
        drawn.append(task.head.branches["visual"].texts.context)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("condition", ["video", "segment"])
def test_cocoop_moves_the_context_by_the_image(condition: str) -> None:
    """One image after the other, as published; two clips of two segments, or their means."""
    texts, plain = CoCoOp(words(), condition=condition), CoOp(words(), "a photo of a")
    for own in (texts, plain):
        own.attach(NAMES, NoPrompts())
    features = F.normalize(torch.randn(2, SEGMENTS, 24), dim=-1)
    with torch.no_grad():
        got = texts(features)
        assert got.shape == (2, 1 if condition == "video" else SEGMENTS, 3, 24)
        for clip, own in enumerate(features):
            for place, image in enumerate([own.mean(0)] if condition == "video" else own):
                plain.context.copy_(texts.context + texts.meta_net(image))
                assert torch.allclose(got[clip, place], plain(features), atol=1e-5)
    assert (got[0] - got[1]).abs().max() > 1e-4


def maple() -> tuple[Contrastive, MaPLe, CLIPText]:
    task = build(None, MaPLeEmbeddings, MaPLe(num_tokens=2, depth=3, text_width=32)).eval()
    return task, task.backbone.prompts, task.head.branches["visual"].texts.tower


def test_maple_in_the_text_tower() -> None:
    """Block by block: the first two words learned, replaced before blocks 1 and 2 by prompts of their own."""
    task, prompts, words = maple()
    ids = words.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    with torch.no_grad():
        x = words.embed(ids)
        assert torch.allclose(x[0, 1:3], prompts.context)  # begins as "a photo"
        prompts.context.add_(0.3)
        x[:, 1:3] = prompts.context
        x = x + words.positional_embedding
        for number, block in enumerate(words.transformer.resblocks):
            if number in (1, 2):
                x[:, 1:3] = prompts.deep[number - 1]
            x = block(x, attn_mask=words.attn_mask)
        expected = words.ln_final(x[torch.arange(3), ids.argmax(-1)]) @ words.text_projection
        assert torch.allclose(task.head.branches["visual"].texts(torch.zeros(1, 1, 24)), expected, atol=1e-5)


def test_maple_in_the_image_tower() -> None:
    """Two tokens behind the patches, linear in the text prompts, new in each of the first three blocks."""
    task, prompts, _ = maple()
    data, eye = batch(), task.backbone.visual
    with torch.no_grad():
        x = eye.embed(data["frames"])
        patches = x.shape[1]
        for number, block in enumerate(eye.blocks()):
            if number < 3:
                text = prompts.context if number == 0 else prompts.deep[number - 1]
                new = F.linear(text, prompts.project[number].weight, prompts.project[number].bias)
                x = torch.cat((x[:, :patches], new.expand(len(x), -1, -1)), dim=1)
            x = block(x)
        features = task.backbone(data)
        assert torch.allclose(features.visual.flatten(0, 1), eye.finalize(x)[:, 0], atol=1e-5)
        plain = task.backbone(data, prompted=False)
        assert torch.equal(features.audio, plain.audio) and not torch.allclose(features.visual, plain.visual, atol=1e-3)


def test_maple_is_coupled_to_fitting_towers() -> None:
    with pytest.raises(ArgumentError, match="NoPrompts.*MaPLe"):
        build(None, MaPLeEmbeddings)
    with pytest.raises(ArgumentError, match="text_width: got 512; expected 32"):
        build(None, MaPLeEmbeddings, MaPLe(depth=3))
    with pytest.raises(ArgumentError, match="depth: got 9; expected at most 4"):
        build(None, MaPLeEmbeddings, MaPLe(text_width=32))
    with pytest.raises(ArgumentError, match="words.*at least 5"):
        build(None, MaPLeEmbeddings, MaPLe(num_tokens=5, depth=2, text_width=32))
    with pytest.raises(ArgumentError, match="plain transformer"):
        AVPromptBackbone(SmallSwin(), SmallHTSAT(), MaPLe(depth=2))


def test_clip_adapter_is_a_blended_bottleneck() -> None:
    adapter, x = CLIPAdapter(16, ratio=0.2), torch.randn(3, 16)
    hidden = (x @ adapter.down.weight.T).relu()
    expected = 0.2 * (hidden @ adapter.up.weight.T).relu() + 0.8 * x
    assert torch.allclose(adapter(x), expected, atol=1e-6) and hidden.shape == (3, 4)
    assert torch.equal(CLIPAdapter(16, ratio=0.0)(x), x)
    with pytest.raises(ArgumentError, match="adapter_ratio"):
        CLIPAdapter(16, ratio=1.2)


def test_adapters_stand_where_they_are_asked_for(tokenizer: Path) -> None:
    data, plain = batch(), build(tokenizer, fixed, fusion="sum").eval()
    with torch.no_grad():
        before = plain(data)
        for place in ("visual", "visual_texts", "audio", "audio_texts"):
            after = build(tokenizer, fixed, fusion="sum", adapters=[place]).eval()(data)
            for side in ("visual", "audio"):
                changed = not torch.equal(before[f"{side}_logits"], after[f"{side}_logits"])
                assert changed is place.startswith(side)


def test_fusion() -> None:
    visual, audio = torch.tensor([[[3.0, 1.0, -2.0]]]), torch.tensor([[[0.5, 0.0, 1.0]]])
    assert torch.allclose(fuse(visual, audio, "sum"), 2 * visual + 2 * audio)
    released = (visual**2 + audio**2) / (visual + audio)  # what the released rule comes to
    assert torch.allclose(fuse(visual, audio, "weighted"), released)
    sure = [x.softmax(-1).max() for x in (visual, audio)]
    w1 = sure[0] / (sure[0] + sure[1])
    assert visual_weight(visual, audio).item() == pytest.approx(w1.item()) and w1 > 0.5
    assert torch.allclose(fuse(visual, audio), w1 * visual + (1 - w1) * audio)
    assert torch.equal(fuse(visual, audio, "mean"), (visual + audio) / 2)
    share = torch.tensor(0.7)
    assert torch.allclose(fuse(visual, audio, "trained", (share / (1 - share)).log()), 0.7 * visual + 0.3 * audio)
    assert torch.isfinite(fuse(visual, -visual)).all() and not torch.isfinite(fuse(visual, -visual, "weighted")).all()


def test_matching_averages_segments(tokenizer: Path) -> None:
    task, data = network(tokenizer, "dgsct").eval(), batch(3)
    with torch.no_grad():
        out, features = task(data), task.backbone(data)
        image = task.backbone.visual.project(features.visual).mean(1)
        sound = task.head.matching.audio(task.backbone.audio.project(features.audio)).mean(1)
        expected = F.cosine_similarity(sound[:, None], image[None], dim=-1) / 0.07
    assert torch.allclose(out["matching"], expected, atol=1e-4)
    assert isinstance(task.head.matching, Matching)


def test_scales(tokenizer: Path) -> None:
    data = batch()
    with torch.no_grad():
        plain, raw, given = (
            build(tokenizer, fixed, **options).eval()(data)
            for options in ({}, {"exp_audio_scale": False}, {"visual_scale": 100.0, "audio_scale": 2.0})
        )
    natural = 1 / 0.07
    assert torch.allclose(raw["audio_logits"], plain["audio_logits"] / natural * torch.tensor(natural).log(), atol=1e-4)
    assert torch.equal(raw["visual_logits"], plain["visual_logits"])
    for side, scale in (("visual", 100.0), ("audio", 2.0)):
        assert torch.allclose(given[f"{side}_logits"], plain[f"{side}_logits"] / natural * scale, atol=1e-3)
    learned = build(tokenizer, fixed, learned_scales=True).train()
    branch = learned.head.branches["visual"]
    with torch.no_grad():
        branch.log_scale.fill_(9.0)
    learned(data)["visual_logits"].sum().backward()
    assert branch.scale.item() == pytest.approx(100, rel=1e-5) and branch.log_scale.grad != 0
    with pytest.raises(ArgumentError, match="visual_scale.*positive"):
        build(tokenizer, fixed, visual_scale=0.0)


def test_contrast_within_a_batch_is_the_equation() -> None:
    """Equation 9 written out, where no class occurs twice; where one does, both items are right for each other."""
    torch.manual_seed(0)
    logits, target, everything = torch.randn(4, 6), torch.tensor([5, 0, 2, 3]), torch.ones(4, dtype=torch.bool)
    s = logits[:, target].exp()
    expected = [-0.5 * ((s[i, i] / s[i].sum()).log() + (s[i, i] / s[:, i].sum()).log()) for i in range(4)]
    assert torch.allclose(losses.text_contrast(logits, target, everything), torch.stack(expected))
    target = torch.tensor([5, 0, 5, 3])
    s = logits[:, target]
    right = -0.25 * sum((s.log_softmax(1)[0, j] + s.log_softmax(0)[j, 0]) for j in (0, 2))
    assert losses.text_contrast(logits, target, everything)[0] == pytest.approx(right.item(), rel=1e-5)
    some = torch.tensor([True, False, True, False])
    part = losses.text_contrast(logits, target, some)
    assert part[1] == part[3] == 0
    assert torch.equal(part[some], losses.text_contrast(logits[some], target[some], everything[:2]))
    nothing = losses.text_contrast(logits.requires_grad_(), target, torch.zeros(4, dtype=torch.bool))
    nothing.sum().backward()
    assert nothing.sum() == 0 and torch.equal(logits.grad, torch.zeros(4, 6))


def test_paper_objective_weighs_the_surer_modality(tokenizer: Path) -> None:
    task, data = build(tokenizer, fixed, background=True), batch()
    out = task(data)
    terms, target = task.losses(out, data), data["event"].argmax(-1).flatten()
    w1 = visual_weight(out["visual_logits"], out["audio_logits"]).flatten()
    for side, weight in (("visual", w1), ("audio", 1 - w1)):
        each = losses.text_contrast(out[f"{side}_logits"].flatten(0, 1), target, torch.ones(4, dtype=torch.bool))
        assert terms[side] == pytest.approx((weight * each).mean().item(), rel=1e-5)


def test_released_objective(tokenizer: Path) -> None:
    data = batch()
    for weighting in ("epochs", "proportional", "misplaced"):
        task = network(tokenizer, "dgsct", background=True, weighting=weighting, fusion="sum").eval()
        for epoch in (0, 9, 10):
            task._trainer = SimpleNamespace(current_epoch=epoch)
            out, e = task(data), epoch + 1
            got = list(task.losses(out, data).values())
            target, own = data["event"].argmax(-1).flatten(), torch.arange(2)
            ce, ai, ia = (
                F.cross_entropy(*pair)
                for pair in ((out["logits"].flatten(0, 1), target), (out["matching"], own), (out["matching"].T, own))
            )
            s = ce + ai + ia
            w = {
                "epochs": ((500 if e <= 10 else 5), 2, 1.5),
                "proportional": [x / (e + s) + 1 / e for x in (ce, ai, ia)],
                "misplaced": [ce / (e + s) + 1 / e, ai / (e + s) + 1 / e, ia / e + s + 1 / e],
            }[weighting]
            assert torch.allclose(torch.stack(got), torch.stack([w[0] * ce, w[1] * ai, w[2] * ia]), rtol=1e-4)


@pytest.mark.parametrize("background", [False, True])
def test_segments_of_the_background(tokenizer: Path, background: bool) -> None:
    """With a text they are a class; without one they are counted, are never right, and do not train."""
    task, data = build(tokenizer, fixed, background=background, objective="class"), batch(3)
    logits = torch.full((3, SEGMENTS, 3 + background), -9.0)
    logits[:, 0] = torch.eye(3, 3 + background)
    logits[:, 1, -1] = 9.0
    out = {"logits": logits.requires_grad_()}
    task.losses(out, data)["class"].backward()
    assert bool(logits.grad[:, 1].abs().sum() > 0) is background
    task.update_metrics(out, data)
    found = task.compute_metrics()
    assert found["accuracy"] == (1.0 if background else 0.5)
    assert found.keys() == {"accuracy", "video_accuracy"} and task.compute_metrics() == {}


def test_level_of_videos(tokenizer: Path) -> None:
    """The mean over segments' logits; a clip without an event does not train and is never right."""
    data, options = batch(3), {"fusion": "weighted", "objective": "class"}
    segments, videos = (build(tokenizer, fixed, level=level, **options).eval() for level in ("segment", "video"))
    with torch.no_grad():
        one, mean = segments(data), videos(data)
    for name in ("logits", "visual_logits", "audio_logits"):
        assert mean[name].shape == (3, 3) and torch.allclose(mean[name], one[name].mean(1), atol=1e-5)
    logits = torch.eye(3).requires_grad_()
    data["event"][0] = torch.eye(4)[-1]
    videos.losses({"logits": logits}, data)["class"].backward()
    assert logits.grad[0].abs().sum() == 0 and logits.grad[1].abs().sum() > 0
    videos.update_metrics({"logits": logits, "visual_logits": logits.roll(1, 0), "audio_logits": logits}, data)
    found = videos.compute_metrics()
    assert found == {"accuracy": pytest.approx(2 / 3), "visual_accuracy": 0, "audio_accuracy": pytest.approx(2 / 3)}


def test_labels_of_clips(tokenizer: Path) -> None:
    task, data = build(tokenizer, fixed, level="video"), batch(3)
    del data["event"]
    data |= {"label": torch.tensor([0, 1, 0]), "labels": torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])}
    out = {"logits": torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]])}
    task.update_metrics(out, data)
    assert task.compute_metrics() == {"accuracy": pytest.approx(1 / 3), "any_match": pytest.approx(2 / 3)}
    task.update_metrics(out, {**data, "accepted": data["labels"]})
    assert task.compute_metrics() == {"accuracy": pytest.approx(2 / 3), "any_match": pytest.approx(2 / 3)}
    rows = task.prediction_rows(task(data), data, NAMES)
    assert [row["annotated"] for row in rows] == ["Church_bell, violin, fiddle", "dog", "Church_bell, violin, fiddle"]
    assert len(rows) == 3 and {"predicted", "predicted_visual", "predicted_audio", "decoded"} <= rows[0].keys()
    with pytest.raises(ArgumentError, match="level: got segment"):
        build(tokenizer, fixed).losses(task(data), data)


def test_rows_of_segments(tokenizer: Path) -> None:
    task, data = build(None, fixed, background=True), batch()
    data["valid"][1, 0] = False
    with torch.no_grad():
        out = task(data)
        rows, decided = task.prediction_rows(out, data, NAMES), task.postprocess(out)["prediction"]
    places = [(row["id"], row["start"], row["end"]) for row in rows]
    assert places == [("0", 0, 1), ("0", 1, 2), ("1", 0, 1), ("1", 1, 2)]
    assert [row["annotated"] for row in rows] == ["Church_bell", "background", "dog", "background"]
    assert [row["decoded"] for row in rows] == [True, True, False, True]
    assert [row["predicted"] for row in rows] == [[*NAMES, "background"][i] for i in decided.flatten()]
    del data["event"]
    assert {row["annotated"] for row in task.prediction_rows(out, data, NAMES)} == {""}


def save(task: Contrastive, path: Path) -> Path:
    content = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(content)
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", BASELINES)
def test_a_checkpoint_serves_other_classes(tokenizer: Path, tmp_path: Path, name: str) -> None:
    trained = network(tokenizer, name, background=True)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.05 * parameter.requires_grad)
    path, others = save(trained, tmp_path / "trained.ckpt"), ("cat", "horse", "train horn", "flute", "bus")
    again = network(tokenizer, name, class_names=others, pretrained=path)
    ours, theirs = again.state_dict(), trained.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert again.eval()(batch())["logits"].shape == (2, SEGMENTS, 5)


def test_wrong_checkpoints_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    path = save(network(tokenizer, "coop"), tmp_path / "coop.ckpt")
    with pytest.raises(CheckpointError, match="coop.ckpt.*missing"):
        network(tokenizer, "cocoop", pretrained=path)
    with pytest.raises(CheckpointError, match="no such file"):
        network(tokenizer, "coop", pretrained=tmp_path / "none.ckpt")
    other = build(None, lambda words: CoOp(copy.deepcopy(words)), objective="class")
    with torch.no_grad():
        other.head.branches["visual"].texts.tower.ln_final.bias += 1
    with pytest.raises(CheckpointError, match=r"other.ckpt.*tower trained on"):
        network(tokenizer, "coop", pretrained=save(other, tmp_path / "other.ckpt"))
    specific = partial(CoOp, class_specific=True)
    path = save(build(None, specific), tmp_path / "specific.ckpt")
    with pytest.raises(CheckpointError, match="other shapes"):
        build(None, specific, class_names=("cat", "dog"), pretrained=path)


def test_cached_texts_need_no_tower(tokenizer: Path, tmp_path: Path) -> None:
    cache, data = tmp_path / "texts.safetensors", batch()

    def texts(tower: Callable[[], CLAPText] | None) -> FixedEmbeddings:
        return FixedEmbeddings(tower, "The sounds of {}", False, cache)

    def never() -> CLAPText:
        raise AssertionError("the tower was built")

    def task(tower: Callable[[], CLAPText] | None) -> Contrastive:
        torch.manual_seed(0)
        return Contrastive(AVPromptBackbone(Eye(projection=True), ear()), None, texts(tower), NAMES).eval()

    with torch.no_grad():
        first = task(partial(clap_text, tokenizer))(data)["logits"]
        for tower in (never, None):
            assert torch.equal(task(tower)(data)["logits"], first)
    with pytest.raises(WeightsError, match="other texts"):
        Contrastive(AVPromptBackbone(Eye(projection=True), ear()), None, texts(never), ("cat", "dog", "bus"))
    with pytest.raises(ArgumentError, match="visual_scale"):  # nobody is there to say it
        Contrastive(AVPromptBackbone(Eye(projection=True), ear()), texts(None), None, NAMES)


def test_what_does_not_fit_is_named(tokenizer: Path) -> None:
    with pytest.raises(ArgumentError, match="visual: got SmallSwin"):
        Contrastive(AVPromptBackbone(SmallSwin(), ear()), fixed(words()), class_names=NAMES)
    with pytest.raises(ArgumentError, match="no branch"):
        build(None)
    with pytest.raises(ArgumentError, match="adapters.*audio"):
        build(None, fixed, adapters=["audio"])
    with pytest.raises(ArgumentError, match="objective.*released"):
        build(None, fixed, objective="released")
    with pytest.raises(ArgumentError, match="context"):
        CoOp(words(), 0)
    with pytest.raises(ArgumentError, match="class_names"):
        build(tokenizer, fixed, class_names=())(batch())
    with pytest.raises(ConfigError, match="avprompt test"):
        network(tokenizer, "clip").configure_optimizers()
