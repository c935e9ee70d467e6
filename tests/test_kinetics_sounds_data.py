"""Kinetics-Sounds: annotations, data module and synthetic dataset."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_contract import DatasetContract
from matplotlib.figure import Figure
from PIL import Image

from avprompt.cli import main, run
from avprompt.data_modules import KineticsSoundsDataModule
from avprompt.datasets import kinetics_sounds
from avprompt.datasets.verify import verify
from avprompt.errors import AnnotationError, ArgumentError, DatasetError
from avprompt.synthetic.kinetics_sounds import action_scene, synthesize
from avprompt.synthetic.scenes import CATEGORIES, SECONDS, Settings

HEADER = "label,youtube_id,time_start,time_end,split,is_cc"


def module(root: Path, **options: object) -> KineticsSoundsDataModule:
    settings = {"batch_size": 4, "image_size": 64, "sample_rate": 16000}
    return KineticsSoundsDataModule(root, **{**settings, **options})


@pytest.fixture
def copy(ks_root: Path, tmp_path: Path) -> Path:
    """The synthetic dataset with annotation files of its own, sharing the media."""
    root = tmp_path / "ks"
    root.mkdir()
    for name in ("train.csv", "val.csv", "test.csv", "classes.txt"):
        shutil.copy(ks_root / name, root)
    (root / "store").symlink_to(ks_root / "store")
    return root


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A few rows as Kinetics-400 publishes them: quoted labels, ids that begin with a dash, a column more."""
    root = tmp_path / "k400"
    root.mkdir()
    rows = {
        "train": [
            '"playing violin",-3B32lodo2M,59,69,train,0',
            '"air drumming",--nQbRBEz2s,104,114,train,0',
            "laughing,_dbcJuKJQNs,40,50,train,1",
            '"playing violin",0wR5jVB-WPk,417,427,train,0',
        ],
        "val": ["abseiling,3caPS4FHFF8,36,46,val,0", "laughing,6IbvOJxXnOo,0,10,val,0"],
        "test": ['"playing violin",8pIBspPMeKs,1279,1289,test,0'],
    }
    for split, lines in rows.items():
        (root / f"{split}.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    (root / "classes.txt").write_text("laughing\nplaying violin\n")
    return root


class TestKineticsSounds(DatasetContract):
    """The shared tests on the synthetic dataset."""

    counts = {"train": 24, "val": 8, "test": 8}
    labels = {"label": ()}

    @pytest.fixture
    def root(self, copy: Path, ks_root: Path) -> Path:
        (copy / "store").unlink()
        shutil.copytree(ks_root / "store", copy / "store")
        return copy

    def predicted(self) -> dict[str, torch.Tensor]:
        return {"prediction": torch.tensor(3)}

    def module(self, root: Path, **options: object) -> KineticsSoundsDataModule:
        return module(root, **options)

    def test_labels(self, root: Path) -> None:
        data = self.module(root)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert batch["label"].dtype == torch.int64
        with (root / "train.csv").open() as file:
            named = {f"{row['youtube_id']}_000000_000010": row["label"] for row in csv.DictReader(file)}
        assert [data.class_names[label] for label in batch["label"]] == [named[clip] for clip in batch["id"]]

    def test_card_says_whether_the_prediction_is_right(self, root: Path) -> None:
        data = self.module(root)
        data.setup("test")
        sample = data.datasets["test"][2]

        def words(**more: object) -> str:
            figure = data.plot({**sample, **more})
            return " ".join(text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text")))

        assert isinstance(data.plot(sample), Figure) and "annotated: triangle" in words()
        assert "predicted: triangle (right)" in words(prediction=torch.tensor(2))
        assert "predicted: ring (wrong)" in words(prediction=torch.tensor(4))


def test_published_rows(published: Path) -> None:
    splits = kinetics_sounds.read_splits(published)
    assert {split: [(item.id, item.label) for item in items] for split, items in splits.items()} == {
        "train": [("-3B32lodo2M_000059_000069", 1), ("_dbcJuKJQNs_000040_000050", 0), ("0wR5jVB-WPk_000417_000427", 1)],
        "val": [("6IbvOJxXnOo_000000_000010", 0)],
        "test": [("8pIBspPMeKs_001279_001289", 1)],
    }
    assert splits.others == {"train": 1, "val": 1, "test": 0}
    assert kinetics_sounds.remarks(splits) == [
        "1 rows of split train are of other classes and left out",
        "1 rows of split val are of other classes and left out",
    ]


def test_shipped_classes(tmp_path: Path) -> None:
    names = module(tmp_path / "nowhere").class_names
    assert len(names) == 32 == module(tmp_path).num_classes and list(names) == sorted(names)
    assert sum(name.startswith("playing ") for name in names) == 15 and {"tap dancing", "tickling"} <= set(names)


def test_class_lists(published: Path, tmp_path: Path) -> None:
    """A file beside the annotations, any other file, or names; what is given comes first."""
    assert module(published).class_names == ("laughing", "playing violin")
    (tmp_path / "mine.txt").write_bytes(b"\xef\xbb\xbfplaying violin\r\n\r\nabseiling \r\nlaughing\r\n")
    data = module(published, classes=tmp_path / "mine.txt")
    assert data.class_names == ("playing violin", "abseiling", "laughing") and data.num_classes == 3
    assert [item.label for item in data.read_annotations()["val"]] == [1, 2]
    assert data.others == {"train": 1, "val": 0, "test": 0} == data.manifest()["other_classes"]
    assert module(published, classes=["laughing"]).class_names == ("laughing",)


def test_unknown_classes(published: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("playing violen\nlaughing\n")
    with pytest.raises(
        AnnotationError, match="mine.txt: got .'playing violen'., in none.*4 labels. Did you mean 'playing violin'"
    ):
        module(published, classes=path).read_annotations()
    with pytest.raises(AnnotationError, match="kinetics_sounds_32.txt: got .'blowing nose'"):
        (published / "classes.txt").unlink()
        module(published).read_annotations()
    with pytest.raises(AnnotationError, match="classes: got .'zzz'.*Correct the list"):
        module(published, classes=["laughing", "zzz"]).read_annotations()
    with pytest.raises(DatasetError, match="none.txt: got no such file"):
        module(published, classes=tmp_path / "none.txt")
    for content, message in (("", "an empty file"), ("a\nb\na\n", "'a'. more than once")):
        path.write_text(content)
        with pytest.raises(AnnotationError, match=f"mine.txt: got .?{message}"):
            module(published, classes=path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("laughing,abc,0", "3 fields; expected 6"),
        ("laughing,abc,0,10,train,0,9", "7 fields; expected 6"),
        ("laughing,abc,x,10,train,0", "x to 10; expected whole seconds"),
        ("laughing,abc,-1,10,train,0", "-1 to 10"),
        ("laughing,abc,10,10,train,0", "10 to 10"),
        ("laughing,../abc,0,10,train,0", "youtube_id '../abc'"),
        ("laughing,,0,10,train,0", "youtube_id ''"),
        (
            "laughing,_dbcJuKJQNs,40,50,train,0",
            "_dbcJuKJQNs_000040_000050 again; expected one row a clip; see .*line 4",
        ),
        ('laughing,"abc,0,10,train,0', "unexpected end of data"),
    ],
)
def test_malformed_rows_name_their_line(published: Path, bad: str, message: str) -> None:
    with (published / "train.csv").open("a") as file:
        file.write(bad + "\n")
    with pytest.raises(AnnotationError, match=f"train.csv, line 6: got .*{message}"):
        kinetics_sounds.read_splits(published)


def test_files_of_other_copies(published: Path) -> None:
    """DeepMind's name of the validation file, columns in another order, a test file without labels, a missing one."""
    expected = kinetics_sounds.read_splits(published)
    text = (published / "val.csv").read_text().replace(",val,", ",validate,")
    (published / "val.csv").unlink()
    (published / "validate.csv").write_text(text)
    rows = [line.split(",") for line in (published / "test.csv").read_text().splitlines()]
    (published / "test.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(",".join(row[4::-1]) for row in rows).encode())
    again = kinetics_sounds.read_splits(published)
    assert again == expected and again.strays == {"train": 0, "val": 0, "test": 0}
    (published / "val.csv").write_text(text)
    with pytest.raises(AnnotationError, match="val.csv and validate.csv; expected one file"):
        kinetics_sounds.read_splits(published)
    (published / "val.csv").unlink()
    (published / "test.csv").write_text("youtube_id,time_start,time_end,split\n8pIBspPMeKs,1279,1289,test\n")
    with pytest.raises(AnnotationError, match="test.csv: got columns .*have no labels"):
        kinetics_sounds.read_splits(published)
    (published / "test.csv").unlink()
    with pytest.raises(DatasetError, match="test.csv: got no such file"):
        kinetics_sounds.read_splits(published)


def test_videos_in_two_splits_are_reported(published: Path) -> None:
    """Another ten seconds of a training video."""
    with (published / "test.csv").open("a") as file:
        file.write("laughing,_dbcJuKJQNs,90,100,train,0\n")
    with pytest.warns(UserWarning, match="1 videos of training clips are also in split test ._dbcJuKJQNs"):
        splits = module(published).read_annotations()
    assert kinetics_sounds.remarks(splits)[2:] == [
        "1 clips of split test say another split in their own column",
        "1 videos of training clips are also in split test: _dbcJuKJQNs",
    ]


def test_verify(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (copy / "train.csv").open("a") as file:
        file.write("abseiling,3caPS4FHFF8,36,46,train\n")
    run(["data", "verify", "--root", str(copy), "--dataset", "kinetics_sounds"])
    out = capsys.readouterr().out
    assert "1 rows of split train are of other classes and left out" in out and "every clip can be used" in out
    assert "train         24      24      24        0         0" in out and "val.csv (or validate.csv)" in out
    with (copy / "test.csv").open("a") as file:
        file.write("disc,3caPS4FHFF8,36,46,test\n")
    with pytest.raises(SystemExit):
        run(["data", "verify", "--root", str(copy), "--dataset", "kinetics_sounds"])
    with (copy / "verify.csv").open() as file:
        assert [(row["split"], row["id"]) for row in csv.DictReader(file)] == [("test", "3caPS4FHFF8_000036_000046")]


def test_extracted_folders(published: Path) -> None:
    """Frames and waveforms as the published code of the other tasks expects them."""
    clip = "8pIBspPMeKs_001279_001289"
    (published / "frames" / clip).mkdir(parents=True)
    (published / "wave").mkdir()
    for number in range(1, 21):
        Image.new("RGB", (80, 60), (10 * number,) * 3).save(published / "frames" / clip / f"{number:08d}.jpg")
    np.save(published / "wave" / f"{clip}.npy", np.linspace(-1, 1, 160000, dtype=np.float32))
    data = module(published, layout="folders")
    data.setup("test")
    sample = data.datasets["test"][0]
    frames = (sample["frames"] / 255).mean((1, 2, 3))
    assert torch.allclose(frames, torch.tensor(10.0 * np.linspace(1, 20, 10, dtype=int) / 255).float(), atol=0.01)
    assert sample["label"] == 1 and sample["audio"].flatten()[-1] == 1
    assert not verify(published, "kinetics_sounds", "folders")


def test_synthetic_dataset(ks_root: Path) -> None:
    """Kinetics' own layout: media named by id and times, every class once in each block of its split."""
    splits = kinetics_sounds.read_splits(ks_root)
    assert {split: np.bincount([item.label for item in items]).tolist() for split, items in splits.items()} == {
        "train": [3] * 8,
        "val": [1] * 8,
        "test": [1] * 8,
    }
    assert {item.id for items in splits.values() for item in items} == {
        path.stem for path in (ks_root / "videos").glob("*.mp4")
    }
    assert all(len(item.video) == 11 for item in splits["train"])
    assert module(ks_root).class_names == CATEGORIES
    scenes = {line["id"]: line for line in map(json.loads, (ks_root / "scenes.jsonl").read_text().splitlines())}
    for item in splits["test"]:
        assert scenes[item.id]["things"][0]["category"] == scenes[item.id]["sounds"][0]["category"] == item.label


def test_scenes_need_both_modalities() -> None:
    """The action is all that is seen and heard from beginning to end; in many scenes neither alone tells it."""
    settings, sight, sound, both = Settings(), 0, 0, 0
    for index in range(400):
        scene = action_scene(5, index, settings)
        seen, heard = (
            {part.category for part in parts if (part.start, part.end) == (0, SECONDS)}
            for parts in (scene.things, scene.sounds)
        )
        assert seen & heard == {index % 8} and scene.events() == [(index % 8, 0, SECONDS)]
        assert len(scene.things) == 3 and len(scene.sounds) == 2
        sight, sound, both = sight + (len(seen) == 1), sound + (len(heard) == 1), both + (len(seen) > 1 < len(heard))
    assert 40 < sight < 130 and 120 < sound < 240 and both > 120
    assert action_scene(5, 9, settings) == action_scene(5, 9, settings) != action_scene(6, 9, settings)


def test_impossible_synthetic_datasets(tmp_path: Path) -> None:
    for wrong in ({"videos": 39}, {"seed": 1000}, {"seed": -1}, {"classes": 1}, {"videos": 1_000_001}):
        with pytest.raises(ArgumentError, match="|".join(wrong)):
            synthesize(tmp_path / "world", **wrong)
    assert not (tmp_path / "world").exists()


def test_own_clips_reach_training(tmp_path: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a new user does first says what is expected."""
    with pytest.raises(SystemExit):
        main(["data", "verify", "--root", str(tmp_path), "--dataset", "kinetics_sounds"])
    out = capsys.readouterr()
    assert "classes.txt (32 classes without it)" in out.out and "train.csv: got no such file" in out.err
