"""VGG-Sound(40K)'s annotations, data module and synthetic dataset."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_contract import DatasetContract
from PIL import Image

from avprompt.cli import main
from avprompt.data_modules import VGGSoundDataModule
from avprompt.datasets import vggsound
from avprompt.datasets.ave import read_splits as read_ave
from avprompt.datasets.verify import verify
from avprompt.errors import AnnotationError, ArgumentError, DatasetError
from avprompt.synthetic.ave import split_of
from avprompt.synthetic.scenes import BANDS, CATEGORIES, Settings
from avprompt.synthetic.vggsound import HELD_OUT, active, corresponding_scene, synthesize

FILES = (vggsound.CATEGORY_FILE, vggsound.LABEL_FILE)
HEADER = "split,category,video_id,label"
NAMES = CATEGORIES[3:]  # in the synthetic dataset
ALWAYS = '"[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"'


def module(root: Path, **options: object) -> VGGSoundDataModule:
    settings = {"batch_size": 4, "image_size": 64, "sample_rate": 16000}
    return VGGSoundDataModule(root, **{**settings, **options})


@pytest.fixture
def copy(vggsound_root: Path, tmp_path: Path) -> Path:
    """The synthetic dataset with annotation files of its own, sharing the media."""
    root = tmp_path / "vggsound"
    root.mkdir()
    for name in FILES:
        (root / name).write_text((vggsound_root / name).read_text())
    (root / "store").symlink_to(vggsound_root / "store")
    return root


def written(root: Path, *rows: str, header: str = HEADER) -> Path:
    """Hand-made annotation files."""
    (root / vggsound.CATEGORY_FILE).write_text("playing violin, fiddle\ndog barking\n")
    (root / vggsound.LABEL_FILE).write_text("\n".join([header, *rows]) + "\n")
    return root


class TestVGGSound(DatasetContract):
    """The shared tests on the synthetic dataset."""

    counts = {"train": 15, "val": 5, "test": 5}
    labels = {"event": (10, 6), "category": ()}

    @pytest.fixture
    def root(self, copy: Path, vggsound_root: Path) -> Path:
        (copy / "store").unlink()
        shutil.copytree(vggsound_root / "store", copy / "store")
        return copy

    def module(self, root: Path, **options: object) -> VGGSoundDataModule:
        return module(root, **options)

    def test_labels_are_those_of_the_file(self, root: Path) -> None:
        data = self.module(root)
        data.setup("fit")
        with (root / vggsound.LABEL_FILE).open(newline="") as file:
            rows = {f"{int(row['video_id']):06d}": row for row in csv.DictReader(file)}
        broken = 0
        for sample in data.datasets["train"]:
            row, event = rows[sample["id"]], sample["event"]
            on = torch.tensor(json.loads(row["label"]), dtype=torch.float32)
            assert torch.equal(event[:, NAMES.index(row["category"])], on) and torch.equal(event[:, 5], 1 - on)
            assert event.sum() == 10 and event.dtype == torch.float32
            broken += int((on.diff() != 0).sum()) > 2
        assert broken  # some come back after a break

    def test_plot_draws_label_and_prediction(self, root: Path) -> None:
        data = self.module(root)
        data.setup("test")
        sample = data.datasets["test"][0]
        bare = data.plot({key: value for key, value in sample.items() if key != "event"})
        for prediction in (torch.full((10,), 3), torch.tensor(3)):  # a second, or a clip
            assert len(data.plot({**sample, "prediction": prediction}).axes) == len(bare.axes) + 2


def test_label_of_a_video() -> None:
    label = vggsound.Video("000001", 1, (True, False, True)).label(3, 2)
    assert label.tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]] and label.dtype == torch.float32
    assert vggsound.Video("000001", 0, (False,) * 3).label(3, 2)[:, 2].tolist() == [1, 1, 1]


def test_format(tmp_path: Path) -> None:
    """Names with commas, ids with and without leading zeros, any word that begins with val, columns in any order."""
    root = written(
        tmp_path,
        f'7,train,a,{ALWAYS},"playing violin, fiddle"',
        f"000123,validation,b,{ALWAYS},dog barking",
        '1234567,val,c,"[0,0,0,0,0,0,0,0,0,1]",dog barking',
        '8,test,,"[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]",dog barking',
        "",
        header="video_id,split,comment,label,category",
    )
    names = vggsound.read_categories(root / vggsound.CATEGORY_FILE)
    assert names == ("playing violin, fiddle", "dog barking")
    splits = vggsound.read_splits(root / vggsound.LABEL_FILE, names)
    assert splits == {
        "train": [vggsound.Video("000007", 0, (True,) * 10)],
        "val": [vggsound.Video("000123", 1, (True,) * 10), vggsound.Video("1234567", 1, (False,) * 9 + (True,))],
        "test": [vggsound.Video("000008", 1, (False,) * 10)],
    }
    assert vggsound.remarks(splits) == ["1 videos of split test are background from beginning to end: 000008"]
    text = (root / vggsound.LABEL_FILE).read_text()
    (root / vggsound.LABEL_FILE).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (root / vggsound.CATEGORY_FILE).write_bytes("\ufeffplaying violin, fiddle\r\ndog barking\r\n\r\n".encode())
    assert vggsound.read_categories(root / vggsound.CATEGORY_FILE) == names
    assert vggsound.read_splits(root / vggsound.LABEL_FILE, names) == splits


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"holdout,dog barking,2,{ALWAYS}", "split 'holdout'"),
        (f",dog barking,2,{ALWAYS}", "split ''"),
        (f"train,cat,2,{ALWAYS}", "category 'cat'; expected one of 2 categories"),
        (f"train,playing violin, fiddle,2,{ALWAYS}", "expected 4 fields"),
        ("train,dog barking,2", "expected 4 fields"),
        (f"train,dog barking,-2,{ALWAYS}", "video_id '-2'"),
        (f"train,dog barking,2.0,{ALWAYS}", "video_id '2.0'"),
        (f"train,dog barking,../2,{ALWAYS}", "video_id '../2'"),
        (f"train,dog barking,٣,{ALWAYS}", "video_id '٣'"),
        (f"train,dog barking,,{ALWAYS}", "video_id ''"),
        (f"test,dog barking,01,{ALWAYS}", "video_id 01 again; expected one row a video; see .*line 2"),
        ('train,dog barking,2,"[1, 1, 1, 1, 1, 1, 1, 1, 1]"', "a list of 10 numbers"),
        ('train,dog barking,2,"[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"', "a list of 10 numbers"),
        ('train,dog barking,2,"[1, 1, 1, 1, 1, 1, 1, 1, 1, 2]"', "each 0 or 1"),
        ('train,dog barking,2,"[1, 1, 1, 1, 1, 1, 1, 1, 1, true]"', "each 0 or 1"),
        ('train,dog barking,2,"[1, 1, 1, 1, 1, 1, 1, 1, 1, [1]]"', "each 0 or 1"),
        ('train,dog barking,2,"[1 1 1 1 1 1 1 1 1 1]"', "a list of 10 numbers"),
        ("train,dog barking,2,1", "a list of 10 numbers"),
        ('train,dog barking,2,"[1] * 10"', "a list of 10 numbers"),
        ("train,dog barking,2,\"__import__('os').getcwd()\"", "a list of 10 numbers"),
        ("train,dog barking,2," + "[" * 100_000, "a list of 10 numbers"),
        (f'train,"dog" barking,2,{ALWAYS}', "comma-separated values"),
    ],
)
def test_malformed_rows_name_their_line(tmp_path: Path, row: str, message: str) -> None:
    written(tmp_path, f"train,dog barking,1,{ALWAYS}", row)
    with pytest.raises(AnnotationError, match=message) as error:
        module(tmp_path).read_annotations()
    assert f"{vggsound.LABEL_FILE}, line 3:" in str(error.value)


def test_other_numbers_of_seconds(tmp_path: Path) -> None:
    written(tmp_path, 'train,dog barking,1,"[0, 1, 1]"')
    data = module(tmp_path, segments=3)
    (item,) = data.read_annotations()["train"]
    assert data.annotate(item, np.random.default_rng())["event"].tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 0]]
    with pytest.raises(AnnotationError, match="a list of 10 numbers"):
        module(tmp_path).read_annotations()


@pytest.mark.parametrize("header", ["split,category,label", "a,b,c,d", ""])
def test_missing_columns(tmp_path: Path, header: str) -> None:
    written(tmp_path, header=header)
    with pytest.raises(AnnotationError, match="line 1: got columns .*without .*video_id"):
        module(tmp_path).read_annotations()


@pytest.mark.parametrize(
    ("content", "message"), [("", "an empty file"), ("\n\n", "an empty file"), ("a\nb\na\n", r"\['a'\] more")]
)
def test_malformed_category_file(copy: Path, content: str, message: str) -> None:
    (copy / vggsound.CATEGORY_FILE).write_text(content)
    with pytest.raises(AnnotationError, match=message):
        module(copy)


def test_missing_files(copy: Path) -> None:
    """The network's sizes do not need them; a run does."""
    (copy / vggsound.LABEL_FILE).unlink()
    assert module(copy).class_names == NAMES
    with pytest.raises(DatasetError, match="labels.csv: got no such file.*label_file"):
        module(copy).setup("fit")
    (copy / vggsound.CATEGORY_FILE).unlink()
    data = module(copy)
    assert data.num_classes == 141 and data.class_names == ()
    with pytest.raises(DatasetError, match="Categories.txt: got no such file.*category_file"):
        data.setup("test")


def test_files_of_other_names(copy: Path, tmp_path: Path) -> None:
    expected = module(copy).read_annotations()
    (copy / vggsound.CATEGORY_FILE).rename(tmp_path / "names.txt")
    (copy / vggsound.LABEL_FILE).rename(copy / "labels_of_ours.csv")
    data = module(copy, category_file=tmp_path / "names.txt", label_file=Path("labels_of_ours.csv"))
    assert data.read_annotations() == expected and data.num_classes == 5


def test_without_validation_rows(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / vggsound.LABEL_FILE
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("val")) + "\n")
    for stage in ("fit", "validate"):
        with pytest.raises(DatasetError, match="no row of a validation split.*`validation_split: test`"):
            module(copy).setup(stage)
    data = module(copy, validation_split="test")
    data.setup("fit")
    assert [clip for batch in data.val_dataloader() for clip in batch["id"]] == data.datasets["test"].ids
    module(copy).setup("test")
    assert verify(copy, "vggsound") and "no validation rows: `validation_split: test`" in capsys.readouterr().out


def test_published_layout(copy: Path) -> None:
    (copy / "store").unlink()
    with pytest.raises(DatasetError, match="frames: got no such folder"):
        module(copy, layout="folders").setup("test")
    for number in range(25):
        folder = copy / "frames" / f"{number:06d}"
        folder.mkdir(parents=True)
        for frame in range(1, 21):
            Image.new("RGB", (80, 60), (10 * frame,) * 3).save(folder / f"{frame:08d}.jpg", quality=95)
        (copy / "wave").mkdir(exist_ok=True)
        np.save(copy / "wave" / f"{number:06d}.npy", np.full(160_000, number / 25, np.float32))
    data = module(copy, layout="folders", antialias=False)
    data.setup("test")
    for sample in data.datasets["test"]:
        assert sample["audio"][3, 5] == pytest.approx(int(sample["id"]) / 25)
    brightness = (sample["frames"] / 255).mean((1, 2, 3))
    chosen = np.linspace(1, 20, 10, dtype=int)  # the released loader's
    assert torch.allclose(brightness, torch.tensor(10.0 * chosen / 255).float(), atol=0.01)


def test_verify_from_the_command_line(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "verify", "--root", str(copy), "--dataset", "vggsound"])
    out = capsys.readouterr().out
    assert "train         15      15      15        0         0       0       0" in out
    assert all(name in out for name in (*FILES, "every clip can be used"))
    with (copy / vggsound.LABEL_FILE).open("a") as file:
        file.write(f"test,star,99,{ALWAYS}\n")
    with pytest.raises(SystemExit) as stop:
        main(["data", "verify", "--root", str(copy), "--dataset", "vggsound"])
    assert stop.value.code == 1
    with (copy / "verify.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["id"] == "000099" and row["problem"].startswith("missing")


def test_few_shots(copy: Path) -> None:
    data = module(copy, shots=2)
    data.setup("fit")
    items = module(copy).read_annotations()["train"]
    first = {name: [item.id for item in items if item.category == c][:2] for c, name in enumerate(NAMES)}
    assert data.manifest()["shots"]["clips"] == first and len(data.datasets["train"]) == 10


def test_generated_scenes() -> None:
    """What a scene shows and plays is what its label says, and nothing of what is left out."""
    categories = [CATEGORIES.index(name) for name in CATEGORIES if name not in HELD_OUT]
    scenes = [corresponding_scene(0, index, Settings(5, 2, 1), categories) for index in range(300)]
    assert scenes == [corresponding_scene(0, index, Settings(5, 2, 1), categories) for index in range(300)]
    seen, heard = (
        [sum(p.end - p.start for p in parts) for parts in kind]
        for kind in (
            [[t for t in s.things if t.category == s.things[0].category] for s in scenes],
            [[p for p in s.sounds if p.category == s.sounds[0].category] for s in scenes],
        )
    )
    for index, scene in enumerate(scenes):
        category = categories[index % 5]
        assert {event[0] for event in scene.events()} == {category}
        parts = (*scene.things, *scene.sounds)
        assert {part.category for part in parts} <= set(categories) and all(0 <= p.start < p.end <= 10 for p in parts)
        assert len({t.category for t in scene.things}) == 3 and len({s.category for s in scene.sounds}) == 2
        label = active(scene)
        for second, on in enumerate(label):
            at = [{p.category for p in kind if p.start <= second < p.end} for kind in (scene.things, scene.sounds)]
            assert on == bool(at[0] & at[1])
        assert scene.sounds[-1].category % len(BANDS) != category % len(BANDS)
    on = np.array([active(scene) for scene in scenes])
    assert 0.5 < on.mean() < 0.8 and on.sum(1).min() >= 2
    assert 0.3 < ((np.diff(on, axis=1) == 1).sum(1) + on[:, 0] == 2).mean() < 0.7  # with a break
    wider = np.array([(a > o, b > o) for a, b, o in zip(seen, heard, on.sum(1))]).mean(0)
    assert (wider > 0.2).all()  # neither what is seen nor what is heard tells when


def test_synthetic_dataset(vggsound_root: Path, tmp_path: Path) -> None:
    data = module(vggsound_root)
    assert data.class_names == NAMES and set(NAMES) | set(HELD_OUT) == set(CATEGORIES)
    splits = data.read_annotations()
    for split, items in splits.items():
        assert {name: sum(item.category == c for item in items) for c, name in enumerate(NAMES)} == (
            dict.fromkeys(NAMES, 3 if split == "train" else 1)
        )
        assert all(split_of(int(item.id), 5) == split for item in items)
    with (vggsound_root / "scenes.jsonl").open() as file:
        scenes = {scene["id"]: scene for scene in map(json.loads, file)}
    held = {CATEGORIES.index(name) for name in HELD_OUT}
    for item in (item for items in splits.values() for item in items):
        scene = scenes[item.id]
        assert CATEGORIES[scene["things"][0]["category"]] == NAMES[item.category]
        assert held.isdisjoint(part["category"] for part in (*scene["things"], *scene["sounds"]))
    before = {path: path.read_bytes() for path in vggsound_root.iterdir() if path.is_file()}
    assert synthesize(vggsound_root, videos=25, seed=7, workers=1) == {"train": 15, "val": 5, "test": 5}
    assert {path: path.read_bytes() for path in before} == before and len(before) >= 3
    shutil.copy(vggsound_root / "scenes.jsonl", tmp_path)
    with pytest.raises(DatasetError, match="another synthetic dataset"):
        synthesize(tmp_path, videos=25, seed=8, workers=1)


def test_zero_shot_datasets_from_the_command_line(tmp_path: Path) -> None:
    """The categories of one are not those of the other."""
    main(
        [
            "data",
            "synth",
            "vggsound",
            "--root",
            str(tmp_path / "vggsound"),
            "--videos",
            "10",
            "--workers",
            "1",
            "--categories",
            "[star, ring]",
            "--objects",
            "2",
            "--offscreen_sounds",
            "0",
        ]
    )
    main(
        [
            "data",
            "synth",
            "ave",
            "--root",
            str(tmp_path / "ave"),
            "--videos",
            "15",
            "--workers",
            "1",
            "--classes",
            "3",
            "--objects",
            "2",
            "--offscreen_sounds",
            "1",
        ]
    )
    trained = module(tmp_path / "vggsound").class_names
    assert trained == ("star", "ring")
    assert tuple((tmp_path / "ave" / "categories.txt").read_text().split()) == HELD_OUT
    assert all(len(items) for items in read_ave(tmp_path / "ave").values()) and not set(trained) & set(HELD_OUT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": ["disc", "dragon"]}, "categories: got"),
        ({"categories": ["disc", "disc"]}, "each once"),
        ({"categories": ["disc"]}, "classes: got 1"),
        ({"categories": ["disc", "ring"]}, "objects, offscreen"),
        ({"videos": 24}, "25 .one of each"),
        ({"videos": 1_000_001}, "to 1000000"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_impossible_synthetic_datasets(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        synthesize(tmp_path, **options)
    assert not list(tmp_path.iterdir())
