"""Tiny CLIP and CLAP: what ships is a real CLIP and a real CLAP that name pictures and seconds they never met."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from avprompt.encoders import TinyCLAP, TinyCLAPText, TinyCLIP, TinyCLIPText, ViTSpectrogram
from avprompt.encoders.htsat import is_constant
from avprompt.encoders.tiny import CONTEXT, TINY_FBANK, WEIGHTS, WORDS
from avprompt.errors import ArgumentError, WeightsError
from avprompt.synthetic import pretrain, scenes
from avprompt.synthetic.pretrain import Captioned, Matching, Pictures, Seconds, contrastive_loss


@pytest.fixture(scope="module")
def clip() -> Matching:
    return Matching(TinyCLIP(projection=True), TinyCLIPText(), "a photo of a {}.").eval()


@pytest.fixture(scope="module")
def clap() -> Matching:
    return Matching(TinyCLAP(), TinyCLAPText(), "The sounds of {}").eval()


@torch.no_grad()
def test_tiny_clip_names_pictures_it_never_met(clip: Matching) -> None:
    alone, crowded = clip.measure(Pictures(192, 7, (1, 1))), clip.measure(Pictures(192, 8, (2, 4)))
    assert alone["accuracy of zero-shot naming"] > 0.8  # chance 0.125
    assert crowded["zero-shot mean average precision"] > 0.7  # chance about 0.33


@torch.no_grad()
def test_tiny_clap_names_sounds_it_never_met(clap: Matching) -> None:
    reached = clap.measure(Seconds(256, 7))
    assert reached["accuracy of zero-shot naming"] > 0.8
    assert reached["zero-shot mean average precision"] > 0.8  # chance about 0.19


@torch.no_grad()
@pytest.mark.parametrize("side", ["clip", "clap"])
def test_nothing_there_is_background(side: str, request: pytest.FixtureRequest) -> None:
    matching = request.getfixturevalue(side)
    stream = Pictures(32, 7, (0, 0)) if side == "clip" else Seconds(64, 7)
    empty = torch.stack([example for example, things in map(stream.draw, range(len(stream))) if not things])
    names = [matching.template.format(name) for name in (*scenes.CATEGORIES, "Background")]
    scores = F.normalize(matching.embed(empty), dim=-1) @ F.normalize(matching.text(names), dim=-1).T
    assert (scores.argmax(1) == len(scenes.CATEGORIES)).float().mean() > 0.8


def test_random_towers_name_nothing() -> None:
    torch.manual_seed(0)
    matching = Matching(TinyCLIP("none", projection=True), TinyCLIPText("none"), "a photo of a {}.").eval()
    with torch.no_grad():
        assert matching.measure(Pictures(192, 7, (1, 1)))["accuracy of zero-shot naming"] < 0.35


def test_shipped_file_is_open_clip_s_own(clip: Matching) -> None:
    vision = open_clip.model.CLIPVisionCfg(layers=4, width=96, head_width=32, patch_size=8, image_size=64)
    text = open_clip.model.CLIPTextCfg(context_length=CONTEXT, vocab_size=len(WORDS) + 3, width=64, heads=2, layers=2)
    library = open_clip.CLIP(64, vision, text, quick_gelu=True).eval()
    both = load_file(WEIGHTS / "tiny_clip.safetensors") | load_file(WEIGHTS / "tiny_clip_text.safetensors")
    library.load_state_dict({k: v.float() for k, v in both.items()})
    picture, _ = Pictures(1, 7).draw(0)
    texts = ["a photo of a red disc and a star.", "the sounds of bar"]
    with torch.no_grad():
        for ours, theirs in (
            (clip.embed(picture[None]), library.encode_image(picture)),
            (clip.text(texts), library.encode_text(clip.text.tokenize(texts))),
        ):
            assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert clip.text.logit_scale == library.logit_scale


def test_shipped_clap_has_laion_clap_s_layout() -> None:
    names = load_file(WEIGHTS / "tiny_clap.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {
        "audio_branch",
        "audio_projection",
        "text_branch",
        "text_projection",
        "logit_scale_a",
    }


@pytest.mark.parametrize("kind", [TinyCLIP, TinyCLIPText, TinyCLAP, TinyCLAPText])
def test_synthetic_none_and_files(kind: type, tmp_path) -> None:
    shipped = kind()
    assert not any(parameter.requires_grad for parameter in shipped.parameters())
    assert shipped.fingerprint() == kind("synthetic").fingerprint() != kind("none").fingerprint()
    with pytest.raises(WeightsError, match="nowhere.safetensors"):
        kind(str(tmp_path / "nowhere.safetensors"))
    with torch.device("meta"):
        assert kind().is_meta()


def test_shipped_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) < 4e6


def test_spectrograms_have_the_grid_of_frames() -> None:
    tower = TinyCLIP(segments=10)
    shared, apart = tower.listener(), ViTSpectrogram(TinyCLIP(), TINY_FBANK)
    assert shared.positions is tower.positions
    assert [block.spec for block in shared.blocks()] == [block.spec for block in tower.blocks()]
    scene = scenes.draw_scene(np.random.default_rng(5), scenes.Settings())
    audio = torch.from_numpy(scenes.render_audio(scene)).view(1, 10, -1)
    assert shared(audio).shape == apart(audio).shape == tower(torch.zeros(1, 10, 3, 64, 64)).shape == (10, 65, 96)
    spectrograms = TINY_FBANK(audio[0])
    assert abs(spectrograms.mean()) < 0.25 and 0.35 < spectrograms.std() < 0.65


def test_words_become_ids() -> None:
    clip, clap = TinyCLIPText("none"), TinyCLAPText("none")
    ids = clip.tokenize(["A photo_of a DISC.", ""])
    place = [WORDS.index(word) for word in ("a", "photo", "of", "a", "disc", ".")]
    assert ids.shape == (2, CONTEXT) and ids.dtype == torch.int64
    assert ids[0, :8].tolist() == [len(WORDS) + 1, *(1 + word for word in place), len(WORDS) + 2]
    assert ids[0, 8:].eq(0).all() and ids.argmax(-1).tolist() == [7, 1]
    ids = clap.tokenize(["A photo_of a DISC.", ""])
    assert ids[0, :8].tolist() == [0, *(3 + word for word in place), 2] and ids[0, 8:].eq(1).all()
    assert int(clip.tokenize(WORDS).max()) < clip.token_embedding.num_embeddings
    assert int(clap.tokenize(WORDS).max()) < clap.text_branch.config.vocab_size


@pytest.mark.parametrize("kind", [TinyCLIPText, TinyCLAPText])
def test_padding_and_company_change_nothing(kind: type) -> None:
    tower, texts = kind(), ["a photo of a disc.", "a photo of a red disc, a blue ring and a white bar."]
    with torch.no_grad():
        together = tower(texts)
        for text, expected in zip(texts, together):
            assert (tower([text])[0] - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("kind", [TinyCLIPText, TinyCLAPText])
def test_words_of_another_vocabulary_are_refused(kind: type) -> None:
    tower = kind("none")
    with pytest.raises(ArgumentError, match="'a photo of a Church_bell.' with 'church', 'bell'.*hourglass"):
        tower(["a photo of a disc.", "a photo of a Church_bell."])
    with pytest.raises(ArgumentError, match=f"at most {CONTEXT - 2} words"):
        tower(["a disc " * 16])


@pytest.mark.parametrize("stream", [Pictures(64, 3), Seconds(64, 3)])
def test_captions_say_what_is_there(stream: Pictures | Seconds) -> None:
    captioned, text = Captioned(stream), TinyCLIPText("none")
    details = set()
    for index in range(len(stream)):
        example, caption, holds, said = captioned[index]
        again, things = stream.draw(index)
        assert torch.equal(example, again) and captioned[index][1] == caption
        assert said.sum() > 0 and (said <= holds).all()
        for phrase, claimed in zip(stream.phrases, said):
            if claimed:
                assert phrase in caption
        present = {scenes.CATEGORIES[stream.facts(thing)[0]] for thing in things}
        named = {name for name in scenes.CATEGORIES if name in caption.replace(".", "").replace(",", "").split()}
        assert named <= present and bool(named) == bool(things) and ("background" in caption) == (not things)
        details.add((len(said.nonzero()), bool(said[len(scenes.CATEGORIES) :].any())))
        text.tokenize([caption])
    assert len(details) > 3  # one and several things, plain and with more detail
    for template in stream.templates:
        text.tokenize([template.format(phrase) for phrase in stream.phrases])


def true_by_hand(holds: Tensor, said: Tensor) -> list[list[int]]:
    return [
        [int(all(h or not s for h, s in zip(input_, caption))) for caption in said.tolist()]
        for input_ in holds.tolist()
    ]


def test_contrastive_loss_by_hand() -> None:
    torch.manual_seed(0)
    inputs, texts, scale = torch.randn(5, 4), torch.randn(5, 4), torch.tensor(1.5)
    holds = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1.0]])
    said = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    true = true_by_hand(holds, said)
    assert true[0] == [1, 0, 1, 1, 0] and true[2] == [1, 0, 1, 0, 0]
    cosines = [[float(F.cosine_similarity(a, b, 0)) * math.exp(1.5) for b in texts] for a in inputs]
    total = 0.0
    for rows, target in ((cosines, true), (list(zip(*cosines)), list(zip(*true)))):
        for row, wanted in zip(rows, target):
            normaliser = math.log(sum(map(math.exp, row)))
            total += sum(w * (normaliser - value) for w, value in zip(wanted, row)) / sum(wanted) / 5 / 2
    assert float(contrastive_loss(inputs, texts, holds, said, scale)) == pytest.approx(total, rel=1e-5)


def test_equal_captions_are_no_negatives() -> None:
    facts = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    embeddings = torch.tensor([[1.0, 0], [1, 0], [0, 1]], requires_grad=True)
    loss = contrastive_loss(embeddings, embeddings.detach(), facts, facts, torch.tensor(9.0))  # clamped to CLIP's 100
    assert float(loss) == pytest.approx((2 * math.log(2) + 0) / 3, rel=1e-4)  # entropy of two equal owners: the least


@pytest.mark.parametrize("modality", ["visual", "audio", "clip", "clap"])
def test_recipe_runs(modality: str, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    recipe = pretrain.RECIPES[modality]
    learners = []
    few = replace(
        recipe,
        batch_size=5,
        examples={name: type(held)(40, 1) for name, held in recipe.examples.items()},
        learner=lambda: learners.append(recipe.learner()) or learners[0],
    )
    monkeypatch.setitem(pretrain.RECIPES, modality, few)
    pretrain.main(["--modality", modality, "--steps", "2", "--out", str(tmp_path)])
    said, text_file = capsys.readouterr().out, recipe.text_file or recipe.file
    for file in {recipe.file, text_file}:
        assert str(tmp_path / file) in said
        shipped, written = load_file(WEIGHTS / file), load_file(tmp_path / file)
        assert {k: (v.shape, v.dtype) for k, v in shipped.items()} == {
            k: (v.shape, v.dtype) for k, v in written.items()
        }
        assert any(not torch.equal(shipped[name], written[name]) for name in shipped)
    assert {path.name for path in tmp_path.iterdir()} == {recipe.file, text_file, "weights.json"}
    encoder = learners[0].encoder.state_dict()
    fresh = type(learners[0].encoder)("none").state_dict()
    for name in filter(is_constant, fresh):  # not in the file, so training must leave them alone
        assert torch.equal(encoder[name], fresh[name]), name
    towers = {"clip": (TinyCLIP, TinyCLIPText), "clap": (TinyCLAP, TinyCLAPText)}
    for kind, file in zip(towers.get(modality, ()), (recipe.file, text_file)):
        assert kind(str(tmp_path / file)).fingerprint() != kind().fingerprint()


def test_no_shipped_file_is_large() -> None:
    """A repository keeps every version of every file for good."""
    assert all(path.stat().st_size < 2**20 for path in WEIGHTS.iterdir())
