"""Few-shot training sets, and LLP with one answer a video."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from dataset_contract import DatasetContract, Recorder, trainer
from jsonargparse import ArgumentParser
from matplotlib.figure import Figure

from avprompt.data_modules import AVDataModule, AVEDataModule, LLPClassificationDataModule
from avprompt.datasets import ave, llp
from avprompt.datasets.few_shot_sampling import Shots
from avprompt.errors import AnnotationError, ArgumentError, DatasetError
from avprompt.media.readers import ClipReader, Segments
from avprompt.synthetic.scenes import CATEGORIES

SMALL = {"batch_size": 4, "image_size": 64, "sample_rate": 16000}
NUMBERS = (1, 2, 4, 8, 16)


def ave_module(root: Path, **options: object) -> AVEDataModule:
    return AVEDataModule(root, **{**SMALL, **options})


def llp_module(root: Path, **options: object) -> LLPClassificationDataModule:
    return LLPClassificationDataModule(root, **{**SMALL, **options})


@pytest.fixture
def ave_copy(ave_root: Path, tmp_path: Path) -> Path:
    """The synthetic AVE dataset with annotations and media of its own."""
    return shutil.copytree(ave_root, tmp_path / "ave", ignore=shutil.ignore_patterns("videos"))


@pytest.fixture
def llp_copy(llp_root: Path, tmp_path: Path) -> Path:
    """The synthetic LLP dataset likewise; its videos 0 to 7 have one category each, all others as they come."""
    root = shutil.copytree(llp_root, tmp_path / "llp", ignore=shutil.ignore_patterns("videos"))
    path = root / "AVVP_train.csv"
    header, *rows = path.read_text().splitlines()
    single = [f"{row.split(chr(9))[0]}\t{CATEGORIES[number]}" for number, row in enumerate(rows[:8])]
    path.write_text("\n".join([header, *single, *rows[8:]]) + "\n")
    return root


def test_first_clips_in_the_files_order() -> None:
    items = ["b1", "a1", "b2", "a2", "b3", "d1"]
    category = "abcd".index
    assert Shots(2).draw(items, lambda item: category(item[0])) == {0: ["a1", "a2"], 1: ["b1", "b2"], 3: ["d1"]}
    assert Shots(2).draw(items, lambda item: category(item[0]), ["b3", "b2", "a2"]) == {0: ["a2"], 1: ["b2", "b3"]}
    assert Shots(5).draw([], len) == {}


def test_seeded_clips() -> None:
    items = [(category, number) for category in range(3) for number in range(20)]
    draws = {
        (number, seed): Shots(number, "seeded", seed).draw(items, lambda item: item[0])
        for number in NUMBERS
        for seed in range(50)
    }
    for (number, seed), drawn in draws.items():
        assert {index: len(set(group)) for index, group in drawn.items()} == dict.fromkeys(range(3), number)
        assert all(item[0] == index for index, group in drawn.items() for item in group)
        for index, group in drawn.items():  # more shots keep those of fewer
            assert group == draws[16, seed][index][:number]
    assert draws[4, 3] == Shots(4, "seeded", 3).draw(items, lambda item: item[0]) != draws[4, 4]
    counts = Counter(group[0][1] for seed in range(50) for group in draws[1, seed].values())
    assert len(counts) > 15 and max(counts.values()) < 20  # of 150 draws from 20 places
    assert {number for _, number in draws[4, 0][0]} != {number for _, number in draws[4, 0][1]}


def test_a_missing_clip_changes_nothing_about_the_others() -> None:
    items = [(category, number) for category in range(3) for number in range(20)]
    rule = Shots(4, "seeded", 1)
    before = rule.draw(items, lambda item: item[0])
    gone = before[1][2]
    after = rule.draw(items, lambda item: item[0], set(items) - {gone})
    assert (after[0], after[2]) == (before[0], before[2])
    fifth = Shots(5, "seeded", 1).draw(items, lambda item: item[0])[1][4]
    assert after[1] == [item for item in before[1] if item != gone] + [fifth]
    alone = rule.draw([item for item in items if item[0] == 1], lambda item: item[0])
    assert alone == {1: before[1]}  # nor does another category


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "shots: got 0"),
        ({"shots": -2}, "shots: got -2"),
        ({"shots": 1, "shot_seed": -1}, "shot_seed"),
        ({"shots": 1, "shot_sampling": "last"}, "shot_sampling: got last"),
        ({"label_seed": -1}, "label_seed"),
        ({"label_policy": "highest"}, "label_policy: got highest"),
    ],
)
def test_impossible_arguments(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        llp_module(tmp_path, **options)


@pytest.mark.filterwarnings("ignore:training clips that are also evaluated on")
def test_published_draw_of_ave(shared: Path) -> None:
    """The released procedure, done here by hand on the split file."""
    root = shared / "data" / "ave"
    data = AVEDataModule(root)
    items = data.read_annotations()["train"]
    rows = [line.split("&") for line in (root / "trainSet.txt").read_text().splitlines()]
    for number in NUMBERS:
        drawn = Shots(number).draw(items, data.category)
        assert sum(map(len, drawn.values())) == 28 * number
        for index, name in enumerate(ave.CATEGORIES):
            assert [item.id for item in drawn[index]] == [row[1] for row in rows if row[0] == name][:number]
    counts = Counter(item.category for item in items)
    assert min(counts.values()) == counts[ave.CATEGORIES.index("Cat")] == 48 and max(counts.values()) == 152
    order = pytest.importorskip("h5py").File(root / "train_order.h5")["order"][:]
    known = ave.read_rows(root / "Annotations.txt", ave.CATEGORIES)
    assert [known[index] for index in order] == items


@pytest.mark.filterwarnings("ignore:annotations that change no label")
def test_published_draw_of_llp(shared: Path) -> None:
    root = shared / "data" / "llp"
    data = LLPClassificationDataModule(root)
    with pytest.warns(UserWarning, match="test: the answers to 625 of 1200 videos .52.1 %.*: Speech 625;.* 47.9 % at"):
        splits = data.read_annotations()
    lines = [line.split("\t") for line in (root / "AVVP_train.csv").read_text().splitlines()[1:]]
    assert [video.name for video in splits["train"]] == [name for name, labels in lines if "," not in labels]
    counts = Counter(llp.CATEGORIES[data.category(video)] for video in splits["train"])
    assert counts.total() == 4032 and "Speech" not in counts
    assert [counts[name] for name in ("Cat", "Banjo", "Telephone_bell_ringing", "Clapping", "Cello", "Dog")] == [
        16,
        17,
        36,
        39,
        41,
        51,
    ]
    for number in NUMBERS:
        drawn = Shots(number).draw(splits["train"], data.category)
        assert sum(map(len, drawn.values())) == 24 * number and 0 not in drawn
        assert [video.name for video in drawn[3]] == [name for name, label in lines if label == "Dog"][:number]
    answers = Counter(llp.CATEGORIES[data.category(video)] for video in splits["test"])
    assert [answers[name] for name in ("Speech", "Cello", "Singing", "Helicopter")] == [625, 80, 76, 53]
    assert sum(len(set(video.labels)) > 1 for video in splits["test"]) == 796


class Everything(ClipReader):
    """Media of every clip, none of which is ever read."""

    def problem(self, clip_id: str) -> None:
        return None

    def inspect(self, clip_id: str) -> None:
        return None

    def identity(self, clip_id: str) -> str:
        return clip_id

    def read(self, clip_id: str) -> Segments:
        raise AssertionError("nothing is read")


@pytest.mark.parametrize("rule", ["first", "seeded"])
def test_manifest_of_a_published_draw(shared: Path, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    monkeypatch.setattr("avprompt.data_modules.base.open_reader", lambda *arguments: Everything())
    for name, kind, categories, few in (
        ("ave", AVEDataModule, ave.CATEGORIES, {}),
        ("llp", LLPClassificationDataModule, llp.CATEGORIES, {"Speech": 0, "Banjo": 17, "Cat": 16}),
    ):
        data = kind(shared / "data" / name, shots=20, shot_sampling=rule)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data.setup("fit")
        said = [str(w.message) for w in caught if "fewer than 20" in str(w.message)]
        expected = "3 of 25 categories have fewer than 20 training clips: Speech 0, Cat 16, Banjo 17"
        assert said == ([expected] if few else [])
        clips = json.loads(json.dumps(data.manifest()))["shots"]["clips"]
        assert {c: len(ids) for c, ids in clips.items()} == {c: few.get(c, 20) for c in categories}
        names = {item.id: categories[data.category(item)] for item in data.datasets["train"].items}
        if name == "llp":  # in AVE a clip can be one of two categories
            assert all(names[clip] == category for category, ids in clips.items() for clip in ids)
        assert len(data.datasets["train"]) == sum(map(len, clips.values())) == data.clips()["train"]["used"]


@pytest.mark.filterwarnings("ignore:annotations that change no label")
def test_published_answers_under_other_policies(shared: Path) -> None:
    root = shared / "data" / "llp"
    expected = [line.split("\t")[1].split(",") for line in (root / "AVVP_test_pd.csv").read_text().splitlines()[1:]]
    only_speech = sum(set(labels) == {"Speech"} for labels in expected)
    with pytest.warns(UserWarning, match=f"test: the answers to {only_speech} of 1200"):
        LLPClassificationDataModule(root, label_policy="any").read_annotations()
    data = LLPClassificationDataModule(root, label_policy="seeded")
    with pytest.warns(UserWarning, match="test: the answers to") as caught:
        test = data.read_annotations()["test"]
    drawn = [llp.CATEGORIES[data.category(video)] for video in test]
    assert all(name in labels for name, labels in zip(drawn, expected, strict=True))
    speech = drawn.count("Speech")
    assert any(f"the answers to {speech} of 1200" in str(w.message) for w in caught)
    chance = sum(1 / len(set(labels)) for labels in expected if "Speech" in labels)
    assert abs(speech - chance) < 50 and chance < 400  # one standard deviation is about 11
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*the answers to")
        train = LLPClassificationDataModule(root, single_label=False).read_annotations()["train"]
    assert len(train) == 10_000


def test_synthetic_ave(ave_copy: Path) -> None:
    rows = [line.split("&") for line in (ave_copy / "trainSet.txt").read_text().splitlines()]
    data = ave_module(ave_copy, shots=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every category has enough
        data.setup("fit")
    first = {name: [row[1] for row in rows if row[0] == name][:2] for name in CATEGORIES}
    manifest = json.loads(json.dumps(data.manifest()))
    assert manifest["shots"] == {"number": 2, "sampling": "first", "seed": None, "clips": first}
    drawn = {clip for clips in first.values() for clip in clips}
    assert data.datasets["train"].ids == [row[1] for row in rows if row[1] in drawn]  # in the file's order
    assert data.clips() == {
        "train": {"used": 16, "missing": 0, "corrupt": 0},
        "val": {"used": 8, "missing": 0, "corrupt": 0},
    }
    data.setup("test")
    assert len(data.datasets["test"]) == 8  # evaluation is whole
    plain = ave_module(ave_copy)
    plain.setup("fit")
    assert len(plain.datasets["train"]) == 24 and "shots" not in plain.manifest()
    evaluated = ave_module(ave_copy, shots=2)
    evaluated.setup("test")
    assert "shots" not in evaluated.manifest()


def test_seeds_of_the_draw(ave_copy: Path) -> None:
    """`shot_seed` decides, and is `seed` where it is not given."""
    manifests = {}
    for seed, shot_seed in ((0, None), (1, None), (0, 1), (5, 0)):
        data = ave_module(ave_copy, shots=1, shot_sampling="seeded", seed=seed, shot_seed=shot_seed)
        data.setup("fit")
        manifests[seed, shot_seed] = data.manifest()["shots"]
    assert manifests[0, None] == manifests[5, 0] != manifests[1, None] == manifests[0, 1]
    assert manifests[1, None]["sampling"] == "seeded" and manifests[1, None]["seed"] == 1
    assert all(len(clips) == 1 for clips in manifests[1, None]["clips"].values())


def test_a_clip_without_its_event_is_no_seeded_shot(ave_copy: Path) -> None:
    """One row of AVE's training split lasts from 0 to 0 s. The released procedure takes what stands first."""
    rows = [line.split("&") for line in (ave_copy / "trainSet.txt").read_text().splitlines()]
    silent = next(row[1] for row in rows if row[0] == "ring")
    for name in ("trainSet.txt", "Annotations.txt"):
        lines = [line.split("&") for line in (ave_copy / name).read_text().splitlines()]
        (ave_copy / name).write_text(
            "".join("&".join([*line[:3], "0", "0"] if line[1] == silent else line) + "\n" for line in lines)
        )
    for rule, seeds in (("first", [0]), ("seeded", range(8))):
        for seed in seeds:
            data = ave_module(ave_copy, shots=1, shot_sampling=rule, shot_seed=seed)
            data.setup("fit")
            assert (silent in data.drawn["ring"]) is (rule == "first") and len(data.drawn["ring"]) == 1


def test_categories_with_too_few_clips_are_named(ave_copy: Path) -> None:
    path = ave_copy / "trainSet.txt"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([row for row in rows if not row.startswith("ring")][1:]) + "\n")
    data = ave_module(ave_copy, shots=3)
    with pytest.warns(UserWarning, match="2 of 8 categories have fewer than 3 training clips: disc 2, ring 0"):
        data.setup("fit")
    assert {name: len(ids) for name, ids in data.manifest()["shots"]["clips"].items() if len(ids) < 3} == {
        "disc": 2,
        "ring": 0,
    }
    assert len(data.datasets["train"]) == 6 * 3 + 2


def test_media_of_drawn_clips_only(ave_copy: Path) -> None:
    """Whoever trains on a few clips needs no more; where one of them is gone, the next takes its place if asked to."""
    rows = [line.split("&") for line in (ave_copy / "trainSet.txt").read_text().splitlines()]
    discs, rings = ([row[1] for row in rows if row[0] == name] for name in ("disc", "ring"))
    shutil.rmtree(ave_copy / "store" / "clips" / discs[2])
    data = ave_module(ave_copy, shots=2)
    data.setup("fit")
    assert len(data.datasets["train"]) == 16
    for clip in (discs[0], rings[1], rings[2]):
        shutil.rmtree(ave_copy / "store" / "clips" / clip)
    with pytest.raises(DatasetError, match=f"2 of 16 clips of split train unusable .*{discs[0]}"):
        ave_module(ave_copy, shots=2).setup("fit")
    data = ave_module(ave_copy, shots=2, missing="skip")
    with pytest.warns(UserWarning) as caught:
        data.setup("fit")
    said = [str(w.message) for w in caught]
    assert any(text.startswith("train: 4 of 24 left out") for text in said)
    assert "2 of 8 categories have fewer than 2 training clips: disc 1, ring 1" in said
    shots = data.manifest()["shots"]["clips"]
    assert shots["disc"] == discs[1:2] and shots["ring"] == rings[:1] and len(shots["star"]) == 2
    assert data.clips()["train"] == {"used": 14, "missing": 4, "corrupt": 0}
    assert set(data.manifest()["left_out"]["train"]) == {discs[0], discs[2], rings[1], rings[2]}
    data = ave_module(ave_copy, shots=1, missing="skip")
    with pytest.warns(UserWarning, match="left out"):
        data.setup("fit")
    assert data.manifest()["shots"]["clips"]["disc"] == discs[1:2]  # in the place of the first
    assert data.clips()["train"] == {"used": 8, "missing": 4, "corrupt": 0}


def test_in_a_trainer(ave_copy: Path) -> None:
    model, data = Recorder(), ave_module(ave_copy, shots=1)
    trainer(max_epochs=2).fit(model, data)
    drawn = sorted(clip for clips in data.manifest()["shots"]["clips"].values() for clip in clips)
    first, second = (sum(model.ids["train"][k : k + 2], []) for k in (0, 2))
    assert sorted(first) == sorted(second) == drawn and first != second


class TestLLPClassification(DatasetContract):
    """The shared tests on the generated ave_root, all of whose training videos count."""

    counts = {"train": 24, "val": 8, "test": 8}
    labels = {"label": (), "labels": (8,)}

    @pytest.fixture
    def root(self, llp_copy: Path) -> Path:
        return llp_copy

    def module(self, root: Path, **options: object) -> LLPClassificationDataModule:
        return llp_module(root, **{"single_label": False, **options})

    def predicted(self) -> dict[str, torch.Tensor]:
        return {"prediction": torch.tensor(3)}

    def test_label_and_labels(self, root: Path) -> None:
        data = self.module(root)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert batch["label"].dtype == torch.int64 and batch["labels"].dtype == torch.float32
        for split in ("train", "val"):
            for sample, item in zip(data.datasets[split], data.datasets[split].items, strict=True):
                assert int(sample["label"]) == min(item.labels) == int(sample["labels"].argmax())
                assert sample["labels"].nonzero().flatten().tolist() == sorted(set(item.labels))
                assert "accepted" not in sample
        sample = self.module(root, label_policy="any").annotate(item, None)
        assert torch.equal(sample["accepted"], sample["labels"]) and int(sample["label"]) == min(item.labels)

    def test_no_word_about_features(self, root: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.module(root).setup("fit")
        with pytest.raises(TypeError, match="features"):
            self.module(root, features=root)

    def test_title_says_what_is_asked(self, root: Path) -> None:
        several = next(k for k, item in enumerate(self.module(root).read_annotations()["test"]) if len(item.labels) > 1)
        titles = {}
        for policy in ("lowest", "any"):
            data = self.module(root, label_policy=policy)
            data.setup("test")
            sample = data.datasets["test"][several]
            titles[policy] = data.plot({**sample, "prediction": torch.tensor(5)}).get_suptitle()
        names = [CATEGORIES[c] for c in sample["labels"].nonzero().flatten()]
        assert titles == {
            "lowest": f"{sample['id']}: {', '.join(names)}, answer {names[0]}; predicted star",
            "any": f"{sample['id']}: {', '.join(names)}; predicted star",
        }
        bare = {key: value for key, value in sample.items() if not key.startswith("label")}
        assert isinstance(data.plot(bare), Figure) and data.plot(bare).get_suptitle() == sample["id"]


def test_seeded_answers(llp_copy: Path) -> None:
    """One of the video's own, drawn once: the same in every epoch, stage and run."""
    drawn = {}
    for seed, label_seed in ((0, 0), (1, 0), (0, 1), (0, 2), (0, 3)):
        data = llp_module(llp_copy, single_label=False, label_policy="seeded", label_seed=label_seed, seed=seed)
        data.setup("fit")
        for epoch in (0, 1):
            data.datasets["train"].set_epoch(epoch)
            labels = [int(sample["label"]) for sample in data.datasets["train"]]
            assert labels == drawn.setdefault((seed, label_seed), labels)
        assert all(label in item.labels for label, item in zip(labels, data.datasets["train"].items, strict=True))
    assert drawn[0, 0] == drawn[1, 0] and len({tuple(labels) for labels in drawn.values()}) == 4
    assert any(label != min(item.labels) for label, item in zip(drawn[0, 1], data.datasets["train"].items))


def test_single_label_filter_and_what_it_costs(llp_copy: Path) -> None:
    lines = [line.split("\t") for line in (llp_copy / "AVVP_train.csv").read_text().splitlines()[1:]]
    single = [(name, label) for name, label in lines if "," not in label and label != "disc"]
    (llp_copy / "AVVP_train.csv").write_text(
        "\n".join(["filename\tevent_labels", *("\t".join(row) for row in lines if row[1] != "disc")]) + "\n"
    )
    test = [line.split("\t")[1].split(",") for line in (llp_copy / "AVVP_test_pd.csv").read_text().splitlines()[1:]]
    lost = sum("disc" in labels for labels in test)  # the lowest of all
    assert 0 < lost < 8
    data = llp_module(llp_copy, shots=1)
    with pytest.warns(UserWarning) as caught:
        data.setup("fit")
    said = "\n".join(str(w.message) for w in caught)
    assert f"test: the answers to {lost} of 8 videos ({12.5 * lost:.1f} %)" in said and f"clip: disc {lost};" in said
    assert f"reaches {100 - 12.5 * lost:.1f} % at most" in said and "fewer than 1 training clips: disc 0" in said
    expected = {name: [row[0][:11] for row in single if row[1] == name][:1] for name in CATEGORIES}
    assert data.manifest()["shots"]["clips"] == expected and len(data.datasets["train"]) == 7
    with pytest.warns(UserWarning, match=f"test: the answers to {lost} of 8"):
        data.setup("test")
    assert len(data.datasets["test"]) == 8
    alone = sum(set(labels) == {"disc"} for labels in test)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        llp_module(llp_copy, label_policy="any").read_annotations()
    assert any(f"test: the answers to {alone} of 8" in str(w.message) for w in caught) is bool(alone)


def test_categories_of_llp(llp_copy: Path, tmp_path: Path) -> None:
    assert llp_module(tmp_path / "nowhere").class_names == llp.CATEGORIES
    with pytest.raises(AnnotationError, match="categories: got"):
        llp_module(llp_copy, categories=["a", "b"])


def test_through_the_parser() -> None:
    """Arguments of every class in the chain, and no other."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AVDataModule, "data")
    flags = [
        "--data",
        "LLPClassificationDataModule",
        "--data.root",
        "/nowhere",
        "--data.shots",
        "4",
        "--data.shot_sampling",
        "seeded",
        "--data.label_policy",
        "any",
        "--data.categories",
        "[a, b]",
        "--data.batch_size",
        "2",
    ]
    data = parser.instantiate(parser.parse_args(flags)).data
    assert data.shots == Shots(4, "seeded", 0) and data.label_policy == "any" and data.class_names == ("a", "b")
    assert data.batch_size == 2
    for wrong in (["--data.features", "/nowhere"], ["--data.shot_sampling", "last"], ["--data.label_policy", "high"]):
        with pytest.raises(Exception, match=wrong[0].split(".")[1]):
            parser.parse_args([*flags, *wrong])
