"""MUSIC-AVQA's questions and data module, on generated data and on the published files."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_contract import DatasetContract
from matplotlib.figure import Figure
from media_files import shorten
from PIL import Image
from torch import Tensor

from avprompt.data_modules import MUSICAVQADataModule
from avprompt.datasets import music_avqa
from avprompt.datasets.music_avqa import (
    TYPES,
    Question,
    Vocabulary,
    is_generated,
    read_splits,
    read_vocabulary,
    tokenise,
)
from avprompt.datasets.verify import verify
from avprompt.errors import AnnotationError, ArgumentError, ClipDecodeError, DatasetError, ShapeError
from avprompt.media.decode import Sampling, decode_clip
from avprompt.plots.cards import RIGHT, WRONG, question_figure
from avprompt.synthetic.music_avqa import clip_scene, questions, synthesize
from avprompt.synthetic.scenes import CATEGORIES, SAMPLE_RATE, render_sound

HOW_MANY = "How many instruments are sounding in the video?"


@pytest.fixture
def copy(avqa_root: Path, tmp_path: Path) -> Path:
    """The synthetic dataset with annotation files of its own, sharing the media."""
    root = tmp_path / "copy"
    shutil.copytree(avqa_root / "json", root / "json")
    for name in ("ques_vocab.txt", "ans_vocab.txt"):
        shutil.copy(avqa_root / name, root)
    (root / "store").symlink_to(avqa_root / "store")
    return root


def module(root: Path, **options: object) -> MUSICAVQADataModule:
    settings = {"batch_size": 4, "image_size": 64, "sample_rate": 16000, "stride": None}
    return MUSICAVQADataModule(root, **{**settings, **options})


def rewrite(root: Path, split: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the records of a split in place."""
    path = music_avqa.questions_path(root, "json", split)
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records))


class TestMUSICAVQA(DatasetContract):
    """The shared tests on the synthetic dataset."""

    counts = {"train": 48, "val": 16, "test": 16}
    labels = {"question": (14,), "answer": ()}
    own = frozenset({"question"})

    def predicted(self) -> dict[str, Tensor]:
        return {"prediction": torch.tensor(1), "map_grounding": torch.rand(10, 4, 4)}

    @pytest.fixture
    def root(self, copy: Path, avqa_root: Path) -> Path:
        (copy / "store").unlink()
        shutil.copytree(avqa_root / "store", copy / "store")
        return copy

    def module(self, root: Path, **options: object) -> MUSICAVQADataModule:
        return module(root, **{**({"question": HOW_MANY} if "predict_root" in options else {}), **options})

    def test_entries_of_a_question(self, root: Path) -> None:
        data = self.module(root)
        data.setup("test")
        assert data.vocabulary_size == len(data.vocabulary.words) > 30
        batch = next(iter(data.test_dataloader()))
        for place, item in enumerate(data.datasets["test"].items[:4]):
            indices = [index for index in batch["question"][place].tolist() if index]
            assert " ".join(data.vocabulary.words[i] for i in indices) + "?" == item.text
            assert batch["question_text"][place] == item.text
            assert data.class_names[batch["answer"][place]] == item.answer
            assert json.loads(batch["question_type"][place]) == [item.group, item.kind]
            assert batch["question_id"][place] == item.question_id
        assert batch["question"].dtype == batch["answer"].dtype == torch.long
        assert (batch["question"][:, -1] == 0).any() and "negative_frames" not in batch

    def test_questions_of_a_video_come_together(self, root: Path) -> None:
        """Always in evaluation, and in training where that is wanted."""
        data, mixed = self.module(root, group_by_video=True), self.module(root)
        for each in (data, mixed):
            each.setup("fit")
        videos = len(set(data.datasets["train"].ids))

        def turns(loader: Iterable[dict[str, Any]]) -> int:
            return len(list(itertools.groupby(name for batch in loader for name in batch["id"])))

        assert turns(data.train_dataloader()) == videos < turns(mixed.train_dataloader())
        assert turns(mixed.val_dataloader()) == len(set(mixed.datasets["val"].ids)) < len(mixed.datasets["val"])

    def test_own_videos_need_a_question_of_known_words(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="question: got none"):
            module(root, predict_root=tmp_path)
        with pytest.raises(ArgumentError, match="unknown words .'trombones', 'jazz'. in .*words of the vocabulary"):
            module(root, predict_root=tmp_path, question="How many trombones are sounding in the jazz?")
        with pytest.raises(ArgumentError, match="a value for every <...>"):
            module(root, question="Is there a <Object> sound?")
        with pytest.raises(ArgumentError, match="8 words: .*question_length 7"):
            module(root, question=HOW_MANY, question_length=7)


# ---- what the files say


def record(**changes: object) -> dict[str, object]:
    return {
        "video_id": "00000028",
        "question_id": 7,
        "type": '["Audio-Visual", "Existential"]',
        "question_content": "Is the <Object> in the video always playing?",
        "templ_values": '["ukulele"]',
        "question_deleted": 0,
        "anser": "yes",
        **changes,
    }


def write(root: Path, **splits: list[dict[str, object]]) -> Path:
    """A dataset of these records; splits that are not named have the first one."""
    (root / "json").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        path = music_avqa.questions_path(root, "json", split)
        path.write_text(json.dumps(splits.get(split, [record()]), ensure_ascii=False), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("content", "values", "words"),
    [
        ("Is the <Object> in the video always playing?", ["ukulele"], "Is the ukulele in the video always playing"),
        (
            "Is the <Object> on the <LR> louder than the <Object> on the <LR>?",
            ["flute", "left", "cello", "right"],
            "Is the flute on the left louder than the cello on the right",
        ),
        ("Are there <Object> and <Object> sound? ", ["violin", "pipa"], "Are there violin and pipa sound"),
        ("How many sounding <Object> in the video？", ["bagpipe"], "How many sounding bagpipe in the video"),
        ("Is the <Object> louder than the <Object>?", ["a", "b"], "Is the a louder than the b"),
        ("Is there a voiceover", [], "Is there a voiceover"),
    ],
)
def test_words_of_a_question(content: str, values: list[str], words: str) -> None:
    assert tokenise(content, values) == tuple(words.split())


def test_vocabulary_by_first_appearance(tmp_path: Path) -> None:
    train = [
        record(),
        record(question_id=8, question_content="Is there a voiceover?", templ_values="[]", anser="no"),
        record(question_id=9, anser="more than ten"),
    ]
    vocabulary = read_vocabulary(write(tmp_path, train=train))
    assert vocabulary.words == (
        "<pad>",
        "Is",
        "the",
        "ukulele",
        "in",
        "video",
        "always",
        "playing",
        "there",
        "a",
        "voiceover",
    )
    assert vocabulary.answers == ("yes", "no", "more than ten")
    assert vocabulary.encode(("Is", "there", "a", "video"), 6).tolist() == [1, 8, 9, 5, 0, 0]
    data = module(tmp_path)
    assert (data.num_classes, data.vocabulary_size, data.class_names) == (3, 11, vocabulary.answers)


def test_vocabulary_from_files_is_that_of_the_training_questions(copy: Path, tmp_path: Path) -> None:
    by_train = read_vocabulary(copy)
    assert read_vocabulary(copy, source="files") == by_train
    words = (copy / "ques_vocab.txt").read_text()
    (copy / "ques_vocab.txt").write_text(words + words)  # as published: the list twice
    assert read_vocabulary(copy, source="files") == by_train
    (copy / "ques_vocab.txt").write_text(words + "video\n")
    with pytest.raises(AnnotationError, match="ques_vocab.txt.*each word once"):
        module(copy, vocabulary="files")
    (copy / "ques_vocab.txt").write_text(words.replace("<pad>\n", ""))
    with pytest.raises(AnnotationError, match="ques_vocab.txt.*expected <pad>"):
        module(copy, vocabulary="files")
    (copy / "ans_vocab.txt").unlink()
    (copy / "ques_vocab.txt").write_text(words)
    with pytest.raises(DatasetError, match="ans_vocab.txt"):
        module(copy, vocabulary="files").setup("fit")


def test_without_training_questions(copy: Path) -> None:
    (copy / "json" / "avqa-train.json").unlink()
    data = module(copy)
    assert (data.num_classes, data.vocabulary_size) == (42, 93)  # as published, until the data are there
    with pytest.raises(DatasetError, match="avqa-train.json.*vocabulary: files"):
        data.setup("fit")
    data = module(copy, vocabulary="files")
    with pytest.warns(UserWarning, match="avqa-train.json is missing"):
        data.setup("test")
    assert len(data.datasets["test"]) == 16
    with pytest.warns(UserWarning), pytest.raises(DatasetError, match="no clip of split train"):
        data.setup("fit")
    (copy / "json" / "avqa-val.json").unlink()
    with pytest.warns(UserWarning), pytest.raises(DatasetError, match="avqa-val.json: got no such file"):
        data.setup("validate")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templ_values": '["pipa"]'}, "unknown words .'pipa'."),
        ({"anser": "maybe"}, "unknown answer 'maybe'"),
        ({"question_content": "Is <Object> " + "the " * 12 + "video?"}, "15 words: .*question_length 14"),
    ],
)
def test_questions_that_do_not_fit_name_their_file(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(tmp_path, test=[record(), record(question_id=31, **change)])
    with pytest.raises(AnnotationError, match=f"avqa-test.json, question_id 31: got {message}"):
        module(tmp_path).read_annotations()


def test_longer_questions_where_they_are_wanted(tmp_path: Path) -> None:
    long = record(question_content="Is <Object> " + "the " * 12 + "video?")
    data = module(write(tmp_path, train=[record(), long]), question_length=15)
    item = data.read_annotations()["train"][1]
    assert data.annotate(item, None)["question"].shape == (15,) and data.annotate(item, None)["question"].all()
    assert "split train has 1 questions of more than 14 words: raise question_length" in music_avqa.remarks(
        read_splits(tmp_path)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anser": None}, "anser"),
        ({"anser": ""}, "empty anser"),
        ({"video_id": 28}, "video_id"),
        ({"video_id": "../28"}, "name of a file"),
        ({"question_deleted": 2}, "question_deleted 2"),
        ({"type": '["Audio", "Location"]'}, "type .*one of"),
        ({"type": "Audio Counting"}, "JSON list of strings"),
        ({"templ_values": "[1]"}, "templ_values .*JSON list of strings"),
        ({"templ_values": "[]"}, "every <...>"),
        ({"templ_values": '["a", "b"]'}, "every <...>"),
        ({"question_content": "How  many?", "templ_values": "[]"}, "blanks"),
        ({"question_content": "?", "templ_values": "[]"}, "words with"),
    ],
)
def test_malformed_records_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(tmp_path, val=[record(), record(question_id=4711, **change)])
    with pytest.raises(AnnotationError, match=f"avqa-val.json, record 2, question_id 4711: .*{message}"):
        read_splits(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"video_id": ', "JSON list of questions"),
        (b'{"a": 1}', "got dict"),
        (b"[7]", "record 1: got 7"),
        (b'["\xff"]', "JSON list of questions"),
        (b'[{"video_id": "a"}]', "record 1, question_id None"),
    ],
)
def test_malformed_files(tmp_path: Path, content: bytes, message: str) -> None:
    write(tmp_path)
    (tmp_path / "json" / "avqa-test.json").write_bytes(content)
    with pytest.raises(AnnotationError, match=f"avqa-test.json.*{message}"):
        read_splits(tmp_path)


def test_repeated_and_deleted_questions(copy: Path) -> None:
    """A question with two answers is two examples; a deleted one is none. Both are reported."""
    rewrite(
        copy,
        "train",
        lambda records: records.append({**records[0], "anser": "yes" if records[0]["anser"] == "no" else "no"}),
    )
    rewrite(copy, "train", lambda records: records[1].update(question_deleted=1))
    data = module(copy)
    with pytest.warns(UserWarning, match="avqa-train.json: 1 questions marked as deleted are left out"):
        data.setup("fit")
    items = data.datasets["train"].items
    assert len(items) == 48 and items[0].question_id == items[-1].question_id and items[0].answer != items[-1].answer
    splits = read_splits(copy)
    assert len(splits["train"]) == 49 and splits["train"][1].deleted and splits["train"][1] not in items
    assert music_avqa.remarks(splits) == [
        "split train has 1 question_ids more than once, mostly with different answers: all kept",
        "split train has 1 questions marked as deleted: left out",
    ]


def test_impossible_arguments(copy: Path) -> None:
    for options in (
        {"release": "new"},
        {"vocabulary": "val"},
        {"negatives": "released"},
        {"question_length": 0},
        {"negatives_in_evaluation": True},
    ):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            module(copy, **options)
    with pytest.raises(DatasetError, match="json_update"):
        module(copy, release="json_update").setup("fit")
    shutil.copytree(copy / "json", copy / "json_update")
    rewrite(copy, "test", lambda records: records.pop())
    updated, first = (module(copy, release=release).read_annotations() for release in ("json_update", "json"))
    assert len(updated["test"]) == 16 and len(first["test"]) == 15
    assert MUSICAVQADataModule(copy).sampling.duration == 55  # ten seconds of a minute: 0, 6, ..., 54


# ---- the published files

PUBLISHED_COUNTS = {  # per kind as in the tables, questions, ids that stand twice, about generated videos
    ("json", "val"): ((515, 299, 600, 614, 499, 635, 462, 557, 414), 4595, 27, 897),
    ("json", "test"): ((1022, 601, 1199, 1228, 995, 1274, 927, 1115, 824), 9185, 55, 1783),
    ("json_update", "val"): ((511, 295, 600, 613, 495, 633, 461, 549, 411), 4568, 0, 887),
    ("json_update", "test"): ((1017, 594, 1197, 1225, 988, 1265, 920, 1101, 822), 9129, 0, 1764),
}


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[tuple[str, str], list[Question]]:
    """Questions by (release, split)."""
    root = shared / "data" / "music_avqa"
    return {place: music_avqa.read_questions(music_avqa.questions_path(root, *place)) for place in PUBLISHED_COUNTS}


@pytest.mark.parametrize("place", PUBLISHED_COUNTS)
def test_published_counts(published: dict[tuple[str, str], list[Question]], place: tuple[str, str]) -> None:
    kinds, total, repeated, generated = PUBLISHED_COUNTS[place]
    found = published[place]
    assert len(found) == total == sum(kinds)
    assert tuple(Counter((q.group, q.kind) for q in found)[pair] for pair in TYPES) == kinds
    twice = [ident for ident, count in Counter(q.question_id for q in found).items() if count > 1]
    assert len(twice) == repeated
    for ident in twice:  # the same question with two answers: neither can be dropped as a copy
        one, two = (q for q in found if q.question_id == ident)
        assert one.text == two.text and one.id == two.id and one.answer != two.answer
    assert sum(is_generated(q.id) for q in found) == generated
    assert all(q.id.isdecimal() for q in found if not is_generated(q.id))
    assert not any(q.deleted for q in found) and max(len(q.words) for q in found) == 14


def test_published_vocabulary(shared: Path, published: dict[tuple[str, str], list[Question]]) -> None:
    root = shared / "data" / "music_avqa"
    vocabulary = read_vocabulary(root, source="files")
    assert (len(vocabulary.words), len(vocabulary.answers)) == (93, 42)
    assert vocabulary.words[:4] == ("<pad>", "How", "many", "instruments")
    assert vocabulary.answers[:2] == ("two", "cello")
    for found in published.values():
        for question in found:
            assert not set(question.words) - set(vocabulary.words) and question.answer in vocabulary.answer_index
    data = MUSICAVQADataModule(root, vocabulary="files")
    with pytest.warns(UserWarning, match="avqa-train.json is missing"):
        splits = data.read_annotations()
    assert {split: len(items) for split, items in splits.items()} == {"train": 0, "val": 4595, "test": 9185}


def test_published_types_and_texts_come_back(shared: Path, published: dict[tuple[str, str], list[Question]]) -> None:
    path = music_avqa.questions_path(shared / "data" / "music_avqa", "json", "test")
    records = json.loads(path.read_text(encoding="utf-8"))
    assert [q.type for q in published["json", "test"]] == [r["type"] for r in records]
    ends = Counter(r["question_content"][-1] for r in records)
    assert ends == {"?": 8164, "？": 430, " ": 591}
    for question, raw in zip(published["json", "test"], records):
        text = raw["question_content"]
        for value in json.loads(raw["templ_values"]):
            text = re.sub("<[A-Za-z]+>", value, text, count=1)
        assert question.text == text.strip().replace("？", "?") and question.question_id == str(raw["question_id"])


def test_published_splits_share_videos(published: dict[tuple[str, str], list[Question]]) -> None:
    splits = {split: published["json", split] for split in ("val", "test")}
    found = music_avqa.remarks({"train": [], **splits})
    assert "2296 videos of split val are also in split test" in found
    assert "split test has 55 question_ids more than once, mostly with different answers: all kept" in found
    assert "split test has 1783 questions about videos that the authors put together from others" in found
    assert len(found) == 5


@pytest.mark.parametrize(
    ("video", "generated"),
    [
        ("00000028", False),
        ("va00000028", True),
        ("sa00000001", True),
        ("evv00000001", True),
        ("eva00000001", True),
        ("esa00000001", True),
        ("vv00000001", True),
        ("va", False),
        ("xva00000001", False),
    ],
)
def test_generated_videos(video: str, generated: bool) -> None:
    assert is_generated(video) is generated


# ---- negative frames


def sources(data: MUSICAVQADataModule, split: str, frames: Tensor) -> list[tuple[str, int]]:
    """Video and segment that each of T frames comes from."""
    reader, found = data.datasets[split].reader, []
    videos = {video: reader.read(video)[0] for video in sorted(set(data.datasets[split].ids))}
    for frame in frames:
        matches = [(video, t) for video, clip in videos.items() for t in range(10) if torch.equal(clip[t], frame)]
        assert len(matches) == 1
        found += matches
    return found


def test_negative_frames_are_of_other_videos(copy: Path) -> None:
    data = module(copy, negatives="other_video")
    data.setup("fit")
    data.setup("test")
    train = data.datasets["train"]
    taken = Counter()
    for index in range(0, 48, 4):
        sample = train[index]
        assert sample["negative_frames"].shape == sample["frames"].shape
        assert sample["negative_frames"].dtype == torch.uint8
        found = sources(data, "train", sample["negative_frames"])
        assert sample["id"] not in {video for video, _ in found} and len(set(found)) > 5
        taken.update(found)
    assert len({video for video, _ in taken}) == len(set(train.ids)) == 12  # all serve
    assert {segment for _, segment in taken} == set(range(10))
    assert "negative_frames" not in data.datasets["test"][0] and "negative_frames" not in data.datasets["val"][0]


def test_negative_frames_depend_on_seed_epoch_and_place(copy: Path) -> None:
    def drawn(epoch: int, index: int = 3, split: str = "train", **options: object) -> Tensor:
        data = module(copy, negatives="other_video", negatives_in_evaluation=True, **options)
        data.setup("fit")
        data.datasets[split].set_epoch(epoch)
        return data.datasets[split][index]["negative_frames"]

    assert torch.equal(drawn(0), drawn(0)) and torch.equal(drawn(2), drawn(2))
    for other in (drawn(1), drawn(0, index=4), drawn(0, seed=1)):
        assert not torch.equal(drawn(0), other)
    assert torch.equal(drawn(0, split="val"), drawn(1, split="val"))


def test_negative_frames_come_from_decoded_segments(copy: Path, avqa_root: Path) -> None:
    (copy / "store").unlink()
    shutil.copytree(avqa_root / "store", copy / "store")
    shorten(copy / "store", 4)
    data = module(copy, negatives="other_video")
    data.setup("fit")
    frames = torch.cat([data.datasets["train"][index]["negative_frames"] for index in range(6)])
    assert {segment for _, segment in sources(data, "train", frames)} == {0, 1, 2, 3}


def test_negative_videos_that_do_not_decode(copy: Path, avqa_root: Path) -> None:
    """Like every training clip: an error, or the next one; in evaluation an error."""
    (copy / "store").unlink()
    shutil.copytree(avqa_root / "store", copy / "store")
    data = module(copy, negatives="other_video")
    videos = list(dict.fromkeys(data.read_annotations()["train"][index].id for index in range(48)))
    for video in videos[2:]:
        (copy / "store" / "clips" / video / "frames.npy").write_bytes(b"gone")
    data.setup("fit")
    with pytest.raises(ClipDecodeError):
        data.datasets["train"][0]
    data = module(copy, negatives="other_video", corrupt="substitute")
    data.setup("fit")
    with pytest.warns(UserWarning, match="gives negative frames in place of"):
        sample = data.datasets["train"][0]
    assert sample["id"] == videos[0] and sample["valid"].all()
    frames = data.datasets["train"].reader.read(videos[1])[0]
    assert all(any(torch.equal(frame, own) for own in frames) for frame in sample["negative_frames"])
    (copy / "store" / "clips" / videos[1] / "frames.npy").write_bytes(b"gone")
    with pytest.warns(UserWarning), pytest.raises(ClipDecodeError, match="no other video of the split decodes"):
        data.datasets["train"][0]
    val = list(dict.fromkeys(item.id for item in data.read_annotations()["val"]))
    for video in val[1:]:
        (copy / "store" / "clips" / video / "frames.npy").write_bytes(b"gone")
    data = module(copy, negatives="other_video", corrupt="substitute", negatives_in_evaluation=True)
    data.setup("validate")
    with pytest.raises(ClipDecodeError, match="frames"):
        data.datasets["val"][0]


def test_negatives_need_two_videos(copy: Path) -> None:
    def keep_one(records: list[dict[str, Any]]) -> None:
        records[:] = [r for r in records if r["video_id"] == records[0]["video_id"]]

    rewrite(copy, "val", keep_one)
    module(copy, negatives="other_video").setup("fit")
    with pytest.raises(DatasetError, match="one video in split val"):
        module(copy, negatives="other_video", negatives_in_evaluation=True).setup("fit")


def test_negatives_in_workers(copy: Path) -> None:
    batches = []
    for workers in (0, 2):
        data = module(copy, negatives="other_video", num_workers=workers)
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader())))
    assert torch.equal(batches[0]["negative_frames"], batches[1]["negative_frames"])
    assert batches[0]["negative_frames"].shape == (4, 10, 3, 64, 64)


# ---- media, verify, pictures


def test_published_layout(copy: Path) -> None:
    (copy / "store").unlink()
    with pytest.raises(DatasetError, match="frames: got no such folder"):
        module(copy, layout="folders").setup("test")
    ids = {item.id for items in module(copy).read_annotations().values() for item in items}
    (copy / "audio_wave").mkdir()
    for video in ids:
        (copy / "frames" / video).mkdir(parents=True)
        for number in range(1, 21):
            picture = Image.new("RGB", (80, 60), (10 * number,) * 3)
            picture.save(copy / "frames" / video / f"{number:08d}.jpg", quality=95)
        np.save(copy / "audio_wave" / f"{video}.npy", np.full(160000, int(video) / 100, np.float32))
    data = module(copy, layout="folders")
    data.setup("test")
    sample = data.datasets["test"][0]
    chosen = torch.from_numpy(np.linspace(1, 20, 10, dtype=int))
    assert torch.allclose((sample["frames"] / 255).mean((1, 2, 3)), 10 * chosen / 255, atol=0.01)
    assert (sample["audio"] == int(sample["id"]) / 100).all()
    (copy / "audio_wave" / f"{sample['id']}.npy").unlink()
    with pytest.raises(DatasetError, match="missing: audio_wave"):
        module(copy, layout="folders").setup("test")


def test_verify(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(copy, "val", lambda records: records[0].update(video_id="va00000099"))
    assert not verify(copy, dataset="music_avqa")
    out = capsys.readouterr().out
    assert "json/avqa-train.json" in out and "split val has 1 questions about videos that the authors put" in out
    assert "train         48      12      12        0         0" in out
    assert "val           16       5       4        1" in out
    with pytest.raises(DatasetError):
        verify(copy, dataset="music_avqa", layout="folders")
    assert "audio_wave/<video_id>.npy" in capsys.readouterr().out


def texts(figure: Figure) -> dict[str, str]:
    """Every text of a figure -> its colour."""
    return {text.get_text(): text.get_color() for axis in figure.axes for text in axis.texts}


def test_card_says_whether_the_answer_is_right(copy: Path) -> None:
    data = module(copy)
    data.setup("test")
    sample = data.datasets["test"][0]
    truth = data.class_names[int(sample["answer"])]
    wrong = (sample["answer"] + 1) % data.num_classes
    assert texts(data.plot({**sample, "prediction": sample["answer"]}))[f"predicted: {truth} (right)"] == RIGHT
    figure = data.plot({**sample, "prediction": wrong})
    assert texts(figure)[f"predicted: {data.class_names[wrong]} (wrong)"] == WRONG
    assert f"annotated: {truth}" in texts(figure) and sample["id"] in texts(figure)
    assert figure.get_suptitle().replace("\n", " ") == sample["question_text"]
    own = data.plot({key: sample[key] for key in ("id", "frames", "audio", "question_text")})
    assert not any("annotated" in text or "predicted" in text for text in texts(own))
    minute = MUSICAVQADataModule(copy).plot({key: sample[key] for key in ("id", "frames", "audio", "question_text")})
    assert [label.get_text() for label in minute.axes[10].get_xticklabels()][:3] == ["0 s", "6 s", "12 s"]


def test_card_draws_grounding_and_seconds() -> None:
    frames, audio, heat = torch.rand(10, 3, 16, 16), torch.zeros(10, 100), torch.zeros(10, 2, 2)
    heat[4, 0, 1] = 1
    valid = torch.ones(10, dtype=torch.bool)
    valid[9] = False
    figure = question_figure(frames, audio, "What?", grounding=heat, valid=valid, start=60, stride=6)
    drawn = [len(axis.images) for axis in figure.axes]
    assert drawn == [1] * 10 + [2] * 9 + [1] + [0]  # clean frames; no map over a second without media
    shown = figure.axes[14].images[1].get_array()
    assert shown.shape == (16, 16) and shown[0, 15] == shown.max() == 1 and shown[15, 0] == 0
    assert figure.axes[13].images[1].get_alpha().max() == 0 and figure.axes[14].images[1].get_alpha()[0, 15] > 0.5
    assert figure.axes[13].images[1].get_array().max() == 0  # one scale for the whole clip
    assert [label.get_text() for label in figure.axes[20].get_xticklabels()] == [f"{60 + 6 * t} s" for t in range(10)]
    for wrong in (heat[:9], heat[0]):
        with pytest.raises(ShapeError, match="maps"):
            question_figure(frames, audio, "What?", grounding=wrong)


# ---- the synthetic dataset


class Unclear(Exception):
    """A question has no answer, or several."""


def only(found: Any) -> Any:
    if len(values := set(found)) != 1:
        raise Unclear
    return values.pop()


class Watched:
    """A scene as somebody who watches it second by second knows it.

    Args:
        scene: a line of scenes.jsonl.
    """

    def __init__(self, scene: dict[str, Any]) -> None:
        things, sounds = scene["things"], scene["sounds"]
        self.name = [CATEGORIES[thing["category"]] for thing in things]
        self.place = [("left", "middle", "right")[int(3 * thing["position"][0] / 96)] for thing in things]
        self.order = [["left", "middle", "right"].index(place) for place in self.place]
        self.in_view = [{t for t in range(10) if thing["start"] <= t < thing["end"]} for thing in things]
        self.audible = {CATEGORIES[s["category"]]: {t for t in range(10) if s["start"] <= t < s["end"]} for s in sounds}
        self.level = {CATEGORIES[s["category"]]: s["level"] for s in sounds}
        self.plays = [view & self.audible.get(name, set()) for view, name in zip(self.in_view, self.name)]
        self.sounding = [i for i, seconds in enumerate(self.plays) if seconds]

    def at(self, place: str) -> int:
        return only(i for i, where in enumerate(self.place) if where == place)

    def beside(self, thing: int, side: str) -> str:
        sign = -1 if side == "left" else 1
        away = {sign * (self.order[i] - self.order[thing]): i for i in range(len(self.name))}
        return self.name[away[min((d for d in away if d > 0), default=None)]]

    def thing(self, name: str) -> int:
        return only(i for i, other in enumerate(self.name) if other == name)

    def came_in(self, which: str) -> int:
        """The sounding object that comes in first, second or last."""
        times = sorted({min(self.plays[i]) for i in self.sounding})
        if not times or (which == "second" and len(times) != 2):
            raise Unclear
        time = {"first": times[0], "second": times[-1], "last": times[-1]}[which]
        return only(i for i in self.sounding if min(self.plays[i]) == time)

    def loudness(self, thing: int) -> float:
        return self.level[self.name[thing]] if self.plays[thing] else 0.0

    def extreme(self, values: dict[str, float], largest: bool) -> str:
        if len(values) < 2:
            raise Unclear
        best = max(values.values()) if largest else min(values.values())
        return only(name for name, value in values.items() if value == best)

    def answer(self, text: str) -> str:
        """The answer to a question, in words."""
        for pattern, reply in RULES:
            if match := re.fullmatch(pattern, text):
                value = reply(self, *match.groups())
                return (
                    value
                    if isinstance(value, str)
                    else ("no", "yes")[value]
                    if isinstance(value, bool)
                    else ("zero", "one", "two", "three")[value]
                )
        raise AssertionError(text)


def differ(one: float, two: float) -> bool:
    if one == two:
        raise Unclear
    return one > two


RULES: list[tuple[str, Callable[..., Any]]] = [
    (r"How many musical instruments were heard throughout the video\?", lambda w: len(w.audible)),
    (r"Is there a (\w+) sound\?", lambda w, a: a in w.audible),
    (r"Are there (\w+) and (\w+) sound\?", lambda w, a, b: a in w.audible and b in w.audible),
    (r"Is the (\w+) louder than the (\w+)\?", lambda w, a, b: differ(w.level[a], w.level[b])),
    (r"Is the (\w+) playing longer than the (\w+)\?", lambda w, a, b: differ(len(w.audible[a]), len(w.audible[b]))),
    (r"How many (\w+) are in the entire video\?", lambda w, a: w.name.count(a)),
    (r"Is there a (\w+) in the entire video\?", lambda w, a: a in w.name),
    (r"How many types of musical instruments appeared in the entire video\?", lambda w: len(set(w.name))),
    (r"Are there (\w+) and (\w+) instruments in the video\?", lambda w, a, b: a in w.name and b in w.name),
    (
        r"What kind of instrument is the (left|right)est instrument\?",
        lambda w, side: w.name[w.order.index((min if side == "left" else max)(w.order))],
    ),
    (r"What kind of musical instrument is it\?", lambda w: only(w.name)),
    (r"What is the instrument on the (left|right) of (\w+)\?", lambda w, side, a: w.beside(w.thing(a), side)),
    (
        r"What is the (left|right) instrument of the (first|last) sounding instrument\?",
        lambda w, side, end: w.beside(w.came_in(end), side),
    ),
    (
        r"Is the (\w+) in the video always playing\?",
        lambda w, a: w.in_view[w.thing(a)] <= w.audible[a] if a in w.audible else False,
    ),
    (r"Is there a voiceover\?", lambda w: not set(w.audible) <= set(w.name)),
    (r"Is this sound from the instrument in the video\?", lambda w: only(w.audible) == only(w.name)),
    (r"How many instruments are sounding in the video\?", lambda w: len(w.sounding)),
    (r"How many types of musical instruments sound in the video\?", lambda w: len({w.name[i] for i in w.sounding})),
    (
        r"How many instruments in the video did not sound from beginning to end\?",
        lambda w: len(w.name) - len(w.sounding),
    ),
    (r"How many sounding (\w+) in the video\?", lambda w, a: sum(w.name[i] == a for i in w.sounding)),
    (
        r"Where is the (loudest|lowest) instrument\?",
        lambda w, end: w.place[w.thing(w.extreme(w.level, end == "loudest"))],
    ),
    (
        r"Is the (first|last) sound coming from the (\w+) instrument\?",
        lambda w, end, place: (
            w.name[w.at(place)] == w.extreme({a: min(s) for a, s in w.audible.items()}, end == "last")
        ),
    ),
    (
        r"What is the (first|second) instrument that comes in\?",
        lambda w, which: (
            w.name[w.came_in(which)]
            if which == "first"
            else only(w.name[i] for i in w.sounding if min(w.plays[i]) != min(map(min, filter(None, w.plays))))
        ),
    ),
    (r"Where is the (first|last) sounding instrument\?", lambda w, end: w.place[w.came_in(end)]),
    (
        r"Is the instrument on the (\w+) louder than the instrument on the (\w+)\?",
        lambda w, one, two: differ(w.loudness(w.at(one)), w.loudness(w.at(two))),
    ),
]


@pytest.fixture(scope="module")
def big() -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Scenes and questions of a dataset of 400 videos, not rendered."""
    scenes = {f"{index + 1:08d}": clip_scene(0, index, 8, 0.3) for index in range(400)}
    return {video: scene.as_dict() for video, scene in scenes.items()}, questions(scenes)


def filled(raw: dict[str, Any]) -> str:
    return " ".join(tokenise(raw["question_content"], json.loads(raw["templ_values"]))) + "?"


def test_answers_follow_from_the_scene(big: tuple[dict, dict]) -> None:
    scenes, asked = big
    used = set()
    for raw in (raw for records in asked.values() for raw in records):
        assert Watched(scenes[raw["video_id"]]).answer(filled(raw)) == raw["anser"], raw
        used.add(raw["question_content"])
    assert len(used) == len(RULES)


def test_no_answer_is_nearly_always_right(big: tuple[dict, dict]) -> None:
    """Not for a kind of question, and not for a wording."""
    for split, records in big[1].items():
        answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for raw in records:
            answers[raw["type"]][raw["anser"]] += 1
            answers[raw["question_content"]][raw["anser"]] += 1
        assert {json.dumps(list(pair)) for pair in TYPES} <= set(answers)
        for key, counts in answers.items():
            if counts.total() >= 20:
                assert max(counts.values()) <= 0.6 * counts.total(), (split, key, counts)
        kinds = [answers[json.dumps(list(pair))].total() for pair in TYPES]
        assert max(kinds) <= min(kinds) + 2


def test_it_takes_both_to_answer_audio_visual_questions(big: tuple[dict, dict]) -> None:
    """Another scene's sounds, or another scene's objects, change many answers; they change none of the others."""
    scenes, asked = big
    videos, changed, clear = list(scenes), Counter(), Counter()
    for raw in (raw for records in asked.values() for raw in records):
        group, own = json.loads(raw["type"])[0], scenes[raw["video_id"]]
        for step in range(1, 8):
            other = scenes[videos[(videos.index(raw["video_id"]) + step) % 400]]
            for modality in ("things", "sounds"):
                key = raw["question_content"] if group == "Audio-Visual" else group, modality
                try:
                    answer = Watched({**own, modality: other[modality]}).answer(filled(raw))
                except (Unclear, KeyError):
                    continue
                clear[key] += 1
                changed[key] += answer != raw["anser"]
    assert not changed["Audio", "things"] and not changed["Visual", "sounds"]
    assert changed["Audio", "sounds"] > 100 and changed["Visual", "things"] > 100
    for key, count in clear.items():
        if key[0] not in ("Audio", "Visual"):
            assert count > 10 and changed[key] > 0.15 * count, (key, changed[key], count)


def test_louder_sounds_are_louder(big: tuple[dict, dict]) -> None:
    """Of two sounds the louder one is the louder one in the rendered samples, whatever kinds of sound they are."""
    for scene in list(big[0].values())[:120]:
        if len(scene["sounds"]) == 2:
            rng = np.random.default_rng(0)
            one, two = (
                sound["level"] * render_sound(sound["category"], sound["pitch"], SAMPLE_RATE, rng).std()
                for sound in scene["sounds"]
            )
            assert (one > two) == (scene["sounds"][0]["level"] > scene["sounds"][1]["level"])
            assert max(one, two) > 1.15 * min(one, two)


def test_scenes_are_what_the_questions_need(big: tuple[dict, dict]) -> None:
    seen = Counter()
    for scene in big[0].values():
        watched = Watched(scene)
        assert 1 <= len(scene["things"]) <= 3 and 1 <= len(scene["sounds"]) <= 2
        assert len(set(watched.place)) == len(scene["things"])  # side by side
        assert len({s["category"] % 4 for s in scene["sounds"]}) == len(scene["sounds"])  # bands of their own
        assert all(len(view) >= 3 for view in watched.in_view)
        for plays, name in zip(watched.plays, watched.name):
            assert not (0 < len(plays) < 2) and bool(plays) == (name in watched.audible)
        seen[len(watched.name), len(watched.audible), len(watched.sounding)] += 1
    assert len(seen) >= 12  # sounds without objects, objects without sounds, both


def test_synthetic_dataset(avqa_root: Path) -> None:
    splits = read_splits(avqa_root)
    assert not music_avqa.remarks(splits)  # ids once, no video in two splits
    videos = {split: sorted({q.id for q in items}) for split, items in splits.items()}
    assert [len(ids) for ids in videos.values()] == [12, 4, 4]
    assert sorted(sum(videos.values(), [])) == sorted(path.stem for path in (avqa_root / "videos").glob("*.mp4"))
    assert not any(map(is_generated, sum(videos.values(), []))) and all(len(v) == 8 for v in sum(videos.values(), []))
    scenes = {line["id"]: line for line in map(json.loads, (avqa_root / "scenes.jsonl").read_text().splitlines())}
    for items in splits.values():
        assert set(Counter(item.id for item in items).values()) == {4}
        assert len({(item.id, item.text) for item in items}) == len(items)
        for item in items:
            assert Watched(scenes[item.id]).answer(item.text) == item.answer
    assert tuple((avqa_root / "categories.txt").read_text().split()) == CATEGORIES
    assert read_vocabulary(avqa_root).answers
    assert Vocabulary.of(splits["train"]) == read_vocabulary(avqa_root, source="files")


def test_synthetic_dataset_repeats_and_goes_on(tmp_path: Path) -> None:
    options = {"videos": 10, "questions_per_video": 3, "classes": 5, "seed": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        assert synthesize(root, **options) == {"train": 18, "val": 6, "test": 6}
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 10 + 3 + 4 and files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    for name in files:
        if name.suffix != ".mp4":
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
            continue
        first, second = (decode_clip(root / name, Sampling(size=96, sample_rate=16000)) for root in (one, two))
        assert np.array_equal(first.audio, second.audio), name
        # x264 does not write the same bytes twice: its noise is 2, another scene 20 and more
        assert np.abs(first.frames.astype(int) - second.frames.astype(int)).mean() < 5, name
    (one / "videos" / "00000004.mp4").unlink()
    kept = (one / "videos" / "00000005.mp4").stat().st_mtime_ns
    synthesize(one, **options)
    assert (one / "videos" / "00000004.mp4").is_file()
    assert (one / "videos" / "00000005.mp4").stat().st_mtime_ns == kept
    with pytest.raises(DatasetError, match="another synthetic dataset"):
        synthesize(one, **{**options, "seed": 3})
    assert questions({f"{i}": clip_scene(3, i, 5, 0.3) for i in range(10)}) != questions(
        {f"{i}": clip_scene(2, i, 5, 0.3) for i in range(10)}
    )


def test_some_kinds_of_questions_alone() -> None:
    scenes = {f"{i:08d}": clip_scene(0, i, 8, 0.3) for i in range(40)}
    for kinds in (("Counting", "Existential"), ("Temporal",)):
        asked = questions(scenes, 3, kinds=kinds)
        assert {json.loads(raw["type"])[1] for records in asked.values() for raw in records} == set(kinds)
    # when something comes in cannot be asked of every video
    assert [len(records) for records in questions(scenes, 3, kinds=("Counting",)).values()] == [72, 24, 24]
    assert 0 < len(asked["train"]) < 72
    quiet = {video: replace(scene, sounds=scene.sounds[:1], things=scene.things[:1]) for video, scene in scenes.items()}
    with pytest.raises(ArgumentError, match="videos, kinds: got 40, .*a question for split train"):
        questions(quiet, 3, kinds=("Comparative",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"videos": 9},
        {"classes": 3},
        {"classes": 9},
        {"questions_per_video": 0},
        {"questions_per_video": 9},
        {"kinds": []},
    ],
)
def test_impossible_synthetic_datasets(tmp_path: Path, wrong: dict[str, Any]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ArgumentError, match=re.escape(f"{name}: got {value}")):
        synthesize(tmp_path / "world", **wrong)
    with pytest.raises(ArgumentError, match="some of Counting, Comparative, Location, Existential, Temporal"):
        synthesize(tmp_path / "world", kinds=["Counting", "Odour"])
    assert not (tmp_path / "world").exists()


def test_synthetic_datasets_too_small_to_teach_their_words(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="videos, questions_per_video: got 10, 1; .*Ask for more"):
        synthesize(tmp_path / "world", videos=10, questions_per_video=1, classes=4, seed=0)
    assert not (tmp_path / "world").exists()


@pytest.mark.parametrize("seed", range(4))
def test_small_synthetic_datasets_ask_known_words_only(seed: int) -> None:
    """Whatever the numbers, validation and test can be read with the training questions' vocabulary."""
    for videos, per_video, classes in ((10, 4, 4), (10, 8, 8), (30, 4, 6)):
        scenes = {f"{i:08d}": clip_scene(seed, i, classes, 0.3) for i in range(videos)}
        asked = questions(scenes, per_video, seed, classes)
        words, answers = (
            {split: {word for raw in records for word in part(raw)} for split, records in asked.items()}
            for part in (lambda raw: filled(raw)[:-1].split(), lambda raw: [raw["anser"]])
        )
        for split in ("val", "test"):
            assert len(asked[split]) == videos // 5 * per_video
            assert words[split] <= words["train"] and answers[split] <= answers["train"]


def test_nothing_warns_without_cause(copy: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = module(copy, negatives="other_video")
        data.setup("fit")
        data.setup("test")
        data.datasets["train"][0]
    assert MUSICAVQADataModule.__module__ == "avprompt.data_modules.music_avqa"
