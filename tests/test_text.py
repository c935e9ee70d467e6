"""Text towers equal the libraries' own, take learned contexts, and never run on a wrong tokenizer or a stale cache."""

from __future__ import annotations

import functools
import json
from functools import partial
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import enliven
from test_clap import laion_clap, published
from torch import Tensor, nn

from avprompt.checkpoints import record
from avprompt.encoders import CLAPText, CLIPText, class_embeddings, class_texts
from avprompt.encoders.text import CLAP_TEMPLATE, CLIP_TEMPLATE
from avprompt.encoders.tiny import WEIGHTS, TinyCLAPText, TinyCLIPText
from avprompt.errors import ArgumentError, ShapeError, WeightsError

WIDTH, TEXTS = 32, ["a photo of a church bell.", "a dog", "X X X X violin, fiddle."]
TEXT_SIZES = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 3}
VISION_SIZES = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}


class SmallCLIPText(CLIPText):
    """Three blocks of width 32."""

    def _build(self, model: str, activation: type[nn.Module]) -> nn.Module:
        from open_clip.transformer import TextTransformer

        return TextTransformer(**TEXT_SIZES, output_dim=24, act_layer=activation)


class SmallCLAPText(CLAPText):
    """RoBERTa of two blocks and 300 tokens; its width is RoBERTa's, which laion-clap's projection insists on."""

    def _build(self, **sizes: int) -> nn.Module:
        return super()._build(
            vocab_size=300,
            hidden_size=768,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=90,
        )


def clip_net(quick_gelu: bool = True) -> nn.Module:
    net = open_clip.CLIP(
        24, open_clip.CLIPVisionCfg(**VISION_SIZES), open_clip.CLIPTextCfg(**TEXT_SIZES), quick_gelu=quick_gelu
    )
    enliven(net, seed=4)
    with torch.no_grad():  # open_clip starts small enough to hide a wrong activation
        for parameter in net.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
        net.logit_scale.fill_(4.5)
    return net.eval()


@pytest.fixture(scope="module")
def clip() -> tuple[nn.Module, CLIPText]:
    net, ours = clip_net(), SmallCLIPText()
    ours.load_library_weights(net.state_dict(), "open_clip")
    return net, ours


def roberta_folder(folder: Path, entries: int = 300, layout: str = "vocab") -> Path:
    """A byte-level tokenizer as RoBERTa's, of so many entries."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<s>", "<pad>", "</s>", "<unk>", ".", "Ġthe", *sorted({*ByteLevel.alphabet()} - {"."})]
    tokens += ["th", "the", "do", "dog", "Ġdog"]
    tokens += [f"filler{number}" for number in range(entries - len(tokens) - 1)] + ["<mask>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\nd o\ndo g\nĠ dog\n")
    if layout == "tokenizer.json":
        from transformers import RobertaTokenizer

        RobertaTokenizer.from_pretrained(str(folder), local_files_only=True).save_pretrained(folder)
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink()
    return folder


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_clip_text_equals_open_clip(quick_gelu: bool, tmp_path) -> None:
    net = clip_net(quick_gelu)
    torch.save(net.state_dict(), tmp_path / "clip.pt")
    ours = SmallCLIPText(pretrained=str(tmp_path / "clip.pt"), quick_gelu=quick_gelu)
    ids = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    assert torch.equal(ours.tokenize(TEXTS), ids) and ids.shape == (3, 77)
    with torch.no_grad():
        expected = net.encode_text(ids)
        assert relative(ours(TEXTS), expected) <= 1e-6
        other = SmallCLIPText(pretrained=str(tmp_path / "clip.pt"), quick_gelu=not quick_gelu)
        assert relative(other(TEXTS), expected) > 1e-3
    assert ours(TEXTS).shape == (3, ours.dim) == (3, 24) and ours.logit_scale == 4.5


def test_spliced_context_equals_open_clip(clip) -> None:
    """CoOp: the learned vectors stand where X X X X stood."""
    net, ours = clip
    ids = ours.tokenize(["X X X X dog.", "X X X X church bell."])
    context = torch.randn(4, WIDTH, requires_grad=True)
    spliced = torch.cat((ours.embed(ids[:, :1]), context.expand(2, -1, -1), ours.embed(ids[:, 5:])), dim=1)
    features = ours.encode(spliced, ids.argmax(-1))
    with torch.no_grad():
        x = net.transformer(spliced + net.positional_embedding, attn_mask=net.attn_mask)
        expected = net.ln_final(x)[torch.arange(2), ids.argmax(-1)] @ net.text_projection
    assert relative(features, expected) <= 1e-6
    assert relative(features, net.encode_text(ids)) > 0.1
    features.sum().backward()
    assert context.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_tokens_behind_the_last_end_have_no_influence(clip) -> None:
    _, ours = clip
    ids = ours.tokenize(TEXTS)
    embedded, end = ours.embed(ids), ids.argmax(-1)
    changed = embedded.clone()
    changed[:, int(end.max()) + 1 :] = 7.0
    assert torch.equal(ours.encode(embedded, end), ours.encode(changed, end))
    assert relative(ours.encode(embedded[:, : int(end.max()) + 1], end), ours.encode(embedded, end)) <= 1e-6


@pytest.mark.parametrize("count", [1, 2])
def test_deep_prompts_replace_tokens_before_the_next_blocks(count: int, clip) -> None:
    """MaPLe: the first blocks after the first see fresh prompts at places 1 and 2; then they flow."""
    net, ours = clip
    ids = ours.tokenize(TEXTS)
    end, deep = ids.argmax(-1), torch.randn(count, 2, WIDTH, requires_grad=True)
    features = ours.encode(ours.embed(ids), end, deep)
    with torch.no_grad():
        x = net.token_embedding(ids) + net.positional_embedding
        for number, block in enumerate(net.transformer.resblocks):
            if 1 <= number <= count:
                x[:, 1:3] = deep[number - 1]
            x = block(x, attn_mask=net.attn_mask)
        expected = net.ln_final(x)[torch.arange(3), end] @ net.text_projection
    assert relative(features, expected) <= 1e-6
    assert relative(features, net.encode_text(ids)) > 1e-3
    features.sum().backward()
    assert deep.grad.abs().min() > 0
    each = ours.encode(ours.embed(ids), end, [prompt.expand(3, -1, -1) for prompt in deep])
    assert torch.equal(each, features)


def test_mixed_precision(clip) -> None:
    _, ours = clip
    ids, deep = ours.tokenize(TEXTS), torch.randn(2, 2, WIDTH, requires_grad=True)
    expected = ours.encode(ours.embed(ids), ids.argmax(-1), deep)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = ours.encode(ours.embed(ids), ids.argmax(-1), deep)
    features.float().sum().backward()
    assert 0 < relative(features, expected) < 0.05 and deep.grad.isfinite().all()


def test_wrong_inputs_of_clip_text_are_named(clip) -> None:
    _, ours = clip
    ids = ours.tokenize(["dog"])
    embedded, end = ours.embed(ids), ids.argmax(-1)
    with pytest.raises(ArgumentError, match="at most 75 tokens"):
        ours.tokenize(["dog " * 76])
    assert ours.tokenize(["dog " * 75])[0, -1] == 49407
    with pytest.raises(ShapeError, match=r"at most 77, 32"):
        ours.encode(torch.zeros(1, 78, WIDTH), end)
    with pytest.raises(ShapeError, match="end: got .*up to 2"):
        ours.encode(embedded[:, :2], end)
    with pytest.raises(ShapeError, match="deep.*fewer than 3 blocks"):
        ours.encode(embedded, end, torch.zeros(3, 1, WIDTH))
    with pytest.raises(ShapeError, match="2 tokens"):
        ours.encode(embedded, end, torch.zeros(1, 2, WIDTH))
    with pytest.raises(ArgumentError, match="text tower is CLIP's own"):
        CLIPText("roberta-ViT-B-32")


def test_clip_weights_are_checked() -> None:
    weights = clip_net().state_dict()
    weights.pop("ln_final.bias")
    with pytest.raises(WeightsError, match=r"missing \['ln_final.bias'\], unknown \['surprise'\]"):
        SmallCLIPText().load_library_weights({**weights, "surprise": torch.zeros(1)}, "file")


def test_clap_text_equals_laion_clap(monkeypatch, tmp_path) -> None:
    net, path = laion_clap(monkeypatch, "fused"), tmp_path / "630k-fusion-best.pt"
    torch.save(published(net), path)
    ours = SmallCLAPText(str(path), roberta_folder(tmp_path / "roberta"))
    texts = ["The sounds of Church_bell", "a dog"]
    given = ours.tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = net.encode_text(given, device="cpu")
        assert relative(ours(texts), expected) <= 1e-5  # ours is padded to the longest text only
    assert ours(texts).shape == (2, ours.dim) == (2, 512)
    assert relative(ours(texts)[:1], ours(texts)[1:]) > 1e-3


@pytest.mark.parametrize("layout", ["vocab", "tokenizer.json"])
def test_tokenizer_layouts(layout: str, tmp_path) -> None:
    ours = SmallCLAPText(tokenizer=roberta_folder(tmp_path / "roberta", layout=layout))
    ids = ours.tokenize(["dog", "a dog dog"])
    assert ids[0, 0] == 0 and (ids[0] == 2).nonzero().tolist() == [[2]] and ids[0, -1] == 1
    assert not (ids == 3).any() and ids.shape == (2, 5)  # begin, "a", two dogs with their spaces, end
    with pytest.raises(ArgumentError, match="at most 77"):
        ours.tokenize(["x" * 80])


def test_wrong_tokenizers_are_refused(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(WeightsError, match=r"(empty|nowhere).*vocab.json and merges.txt"):
            SmallCLAPText(tokenizer=folder)
    with pytest.raises(WeightsError, match="310 entries.*300 entries"):
        SmallCLAPText(tokenizer=roberta_folder(tmp_path / "large", 310))
    (tmp_path / "hollow").mkdir()  # what transformers makes of a hub name without a network
    (tmp_path / "hollow" / "vocab.json").write_text("{}")
    (tmp_path / "hollow" / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(WeightsError, match="hollow.*save_pretrained"):
        SmallCLAPText(tokenizer=tmp_path / "hollow")
    with pytest.raises(WeightsError, match="text.tokenizer.*cached class embeddings"):
        SmallCLAPText()(["dog"])


def test_tokenizers_of_the_right_size_are_not_yet_right(tmp_path) -> None:
    without_merges = roberta_folder(tmp_path / "letters")  # spells every text letter by letter
    (without_merges / "merges.txt").write_text("#version: 0.2\n")
    reordered = roberta_folder(tmp_path / "reordered")
    vocab = json.loads((reordered / "vocab.json").read_text())
    vocab["Ġthe"], vocab["dog"] = vocab["dog"], vocab["Ġthe"]
    (reordered / "vocab.json").write_text(json.dumps(vocab))
    for folder in (without_merges, reordered):
        with pytest.raises(WeightsError, match="300 entries, padding and ' the.' as .*RoBERTa's 300 entries"):
            SmallCLAPText(tokenizer=folder)


def test_full_size_towers_on_the_meta_device() -> None:
    with torch.device("meta"):
        clip, large, clap = CLIPText("ViT-B-32"), CLIPText("ViT-L-14"), CLAPText()
    # less the vision tower and the scale, which is a buffer here
    assert sum(p.numel() for p in clip.parameters()) == 151_277_313 - 87_849_216 - 1 == 38_131_200 + 25_296_896
    assert sum(p.numel() for p in large.parameters()) == 427_616_513 - 303_966_208 - 1
    assert (clip.dim, large.dim) == (512, 768)
    transform = 2 * (512 * 512 + 512)
    assert sum(p.numel() for p in clap.parameters()) == 125_827_328 - transform
    assert len(clap.text_branch.state_dict()) == 199


def forbidden() -> CLAPText:
    pytest.fail("the tower was built")


def test_cached_embeddings_need_no_tower(clip, tmp_path) -> None:
    net, ours = clip
    texts, cache = class_texts(["Church_bell", "dog"], CLIP_TEMPLATE), tmp_path / "embeddings" / "ave.safetensors"
    first = class_embeddings(ours, texts, cache)
    with torch.no_grad():
        assert relative(first, net.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts))) <= 1e-6
    assert first.shape == (2, 24) and not first.requires_grad
    assert [path.name for path in cache.parent.iterdir()] == ["ave.safetensors"]
    for tower in (None, forbidden, ours):
        assert torch.equal(class_embeddings(tower, texts, cache), first)
    assert torch.equal(class_embeddings(lambda: ours, texts), first)


def test_wrong_caches_are_refused(clip, tmp_path) -> None:
    _, ours = clip
    cache = tmp_path / "ave.safetensors"
    class_embeddings(ours, ["a dog", "a cat"], cache)
    for texts in (["a cat", "a dog"], ["a dog"], ["a dog", "a cat", "a rat"]):
        with pytest.raises(WeightsError, match="ave.safetensors.*other texts"):
            class_embeddings(None, texts, cache)
    other = SmallCLIPText()
    with pytest.raises(WeightsError, match="another text tower.*fingerprint.*Delete the file"):
        class_embeddings(other, ["a dog", "a cat"], cache)
    save_file(load_file(cache), tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match="bare.safetensors"):
        class_embeddings(None, ["a dog", "a cat"], tmp_path / "bare.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no such format")
    with pytest.raises(WeightsError, match="broken.safetensors"):
        class_embeddings(None, ["a dog"], tmp_path / "broken.safetensors")
    with pytest.raises(WeightsError, match="an existing file of class embeddings, or a text tower"):
        class_embeddings(None, ["a dog"], tmp_path / "nowhere.safetensors")
    with pytest.raises(ArgumentError, match="frozen: False"):
        class_embeddings(SmallCLIPText(frozen=False), ["a dog"])


def test_a_cache_of_other_weights_is_refused_without_building_the_tower(tmp_path) -> None:
    texts, cache, files = (
        ["a disc", "a ring"],
        tmp_path / "world.safetensors",
        [tmp_path / f"{name}.safetensors" for name in "ab"],
    )
    for file, scale in zip(files, (1.0, 2.0)):
        save_file(
            {name: scale * value for name, value in load_file(WEIGHTS / "tiny_clip_text.safetensors").items()}, file
        )
    first = class_embeddings(functools.cache(partial(TinyCLIPText, pretrained=str(files[0]))), texts, cache)
    same, other, tag = (functools.cache(partial(TinyCLIPText, pretrained=str(name))) for name in (*files, "world"))
    assert torch.equal(class_embeddings(same, texts, cache), first)
    for tower in (
        other,
        tag,
        partial(TinyCLAPText, pretrained=str(files[0])),
        partial(TinyCLIPText, pretrained=str(files[0]), frozen=True),
    ):
        with pytest.raises(WeightsError, match="world.safetensors.*another text tower.*Delete the file"):
            class_embeddings(tower, texts, cache)
    assert not any(tower.cache_info().currsize for tower in (same, other, tag))
    files[0].unlink()  # what is not there contradicts nothing
    assert torch.equal(class_embeddings(same, texts, cache), first)


def test_sentences_about_classes() -> None:
    names = ["Church_bell", "dog"]
    assert class_texts(names, CLIP_TEMPLATE) == ["a photo of a Church bell.", "a photo of a dog."]
    assert class_texts(names, CLAP_TEMPLATE, spaces=False) == ["The sounds of Church_bell", "The sounds of dog"]
    for template in ("a photo.", "{} and {}"):
        with pytest.raises(ArgumentError, match="one {}"):
            class_texts(names, template)


def test_frozen_and_recorded_in_checkpoints(clip) -> None:
    _, ours = clip
    ours.train()
    assert not any(module.training for module in ours.modules())
    assert record(nn.ModuleDict({"text": ours}))["encoders"]["text"]["fingerprint"] == ours.fingerprint()
