"""AVE's annotations and data module, on generated data and on the published files."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avprompt.data_modules import AVDataModule, AVEDataModule
from avprompt.errors import AnnotationError, ClipDecodeError, DatasetError
from avprompt.media import ave
from avprompt.media.verify import verify
from avprompt.synth.world import CATEGORIES


def module(root: Path, **options: object) -> AVEDataModule:
    settings = {"categories": list(CATEGORIES), "batch_size": 4, "image_size": 64, "mean": (0.5,) * 3,
                "std": (0.5,) * 3, "sample_rate": 16000}
    return AVEDataModule(root, **{**settings, **options})


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """The generated world with annotation files of its own, sharing the media."""
    for name in ("Annotations.txt", *ave.SPLITS.values()):
        (tmp_path / name).write_text((world / name).read_text())
    (tmp_path / "store").symlink_to(world / "store")
    return tmp_path


def folders(root: Path, clips: list[str]) -> None:
    """The published code's layout for these clips: 20 jpg frames of growing brightness, one waveform."""
    for clip in clips:
        (root / "frames" / clip).mkdir(parents=True)
        for number in range(1, 21):
            picture = Image.new("RGB", (80, 60), (10 * number,) * 3)
            picture.save(root / "frames" / clip / f"{number:08d}.jpg", quality=95)
        (root / "wave").mkdir(exist_ok=True)
        np.save(root / "wave" / f"{clip}.npy", np.linspace(-1, 1, 160000, dtype=np.float32))


class TestContract:
    """What every data module promises; later datasets add a row."""

    @pytest.fixture
    def data(self, world: Path) -> AVDataModule:
        return module(world)

    def test_batches(self, data: AVDataModule) -> None:
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert isinstance(batch["id"], list) and len(batch["id"]) == 4
        assert batch["frames"].shape == (4, 10, 3, 64, 64) and batch["frames"].dtype == torch.float32
        assert batch["audio"].shape == (4, 10, 16000) and batch["audio"].abs().max() <= 1
        assert batch["valid"].shape == (4, 10) and batch["valid"].dtype == torch.bool
        assert batch["event"].shape == (4, 10, 9) and torch.equal(batch["event"].sum(-1), torch.ones(4, 10))

    def test_every_clip_once(self, data: AVDataModule) -> None:
        data.setup("fit")
        data.setup("test")
        for loader, split in ((data.train_dataloader(), "train"), (data.test_dataloader(), "test")):
            ids = [clip for batch in loader for clip in batch["id"]]
            assert sorted(ids) == sorted(item.id for item in data.datasets[split].items)

    def test_manifest_and_counts(self, data: AVDataModule) -> None:
        data.setup("fit")
        assert data.clips() == {"train": {"used": 24, "missing": 0, "corrupt": 0},
                                "val": {"used": 8, "missing": 0, "corrupt": 0}}
        assert len(json.loads(json.dumps(data.manifest()))["ids"]["train"]) == 24

    def test_plot(self, data: AVDataModule) -> None:
        data.setup("test")
        sample = data.datasets["test"][0]
        bare = data.plot({key: value for key, value in sample.items() if key != "event"})
        full = data.plot({**sample, "prediction": torch.full((10,), 3)})
        assert len(full.axes) == len(bare.axes) + 2


def test_labels_follow_the_annotation() -> None:
    label = ave.Event("x", 2, 3, 5).label(10, 28)
    assert label[:, 2].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert label[:, 28].tolist() == [1, 1, 1, 0, 0, 1, 1, 1, 1, 1] and label.sum() == 10
    assert ave.Event("x", 0, 0, 0).label(10, 28)[:, 28].sum() == 10


def test_published_annotations(shared: Path) -> None:
    h5py = pytest.importorskip("h5py")
    root = shared / "data" / "ave"
    rows = ave.read_rows(root / "Annotations.txt", ave.CATEGORIES)
    splits = ave.read_splits(root)
    assert len(rows) == 4143 and {k: len(v) for k, v in splits.items()} == {"train": 3339, "val": 402, "test": 402}
    assert tuple((root / "categories.txt").read_text().splitlines()) == ave.CATEGORIES
    labels = torch.stack([row.label(10, 28) for row in rows])
    with h5py.File(root / "labels_closs.h5") as file:
        assert np.array_equal(labels[..., :28].amax(-1).numpy(), file["avadataset"][:])
    with h5py.File(root / "mil_labels.h5") as file:
        weak = file["avadataset"][:]
    assert np.array_equal(weak.argmax(1), [row.category for row in rows]) and not weak[:, 28].any()
    for split in splits:
        with h5py.File(root / f"{split}_order.h5") as file:
            order = file["order"][:]
        assert [rows[index] for index in order] == splits[split]


def test_published_anomalies(shared: Path) -> None:
    root = shared / "data" / "ave"
    rows, splits = ave.read_rows(root / "Annotations.txt", ave.CATEGORIES), ave.read_splits(root)
    assert len({row.id for row in rows}) == 4097 and sum(row.id.startswith("-") for row in rows) > 0
    assert len({(row.id, row.category) for row in rows}) == 4143  # a clip's rows differ in category
    empty = [row for row in rows if row.start == row.end]
    assert [(row.id, row.category, row.start) for row in empty] == [("VWi2ENBuTbw", 0, 0)]
    shared_ids = ave.leaked(splits)
    assert {split: len(ids) for split, ids in shared_ids.items()} == {"val": 10, "test": 8}
    data = AVEDataModule(root, drop_leaked=True)
    with pytest.warns(UserWarning, match="10 with val .* 8 with test .* left out of training"):
        train = data.read_annotations()["train"]
    assert not {row.id for row in train} & {clip for ids in shared_ids.values() for clip in ids}
    assert len(train) < 3339


def test_leaked_clips_are_reported_and_kept_by_default(copy: Path) -> None:
    line = (copy / "valSet.txt").read_text().splitlines()[0]
    other = line.replace(line.split("&")[0], "star" if not line.startswith("star") else "disc")
    for name in ("Annotations.txt", "trainSet.txt"):
        (copy / name).write_text((copy / name).read_text() + other + "\n")
    with pytest.warns(UserWarning, match="1 with val .* kept"):
        assert len(module(copy).read_annotations()["train"]) == 25
    with pytest.warns(UserWarning, match="left out of training"):
        assert len(module(copy, drop_leaked=True).read_annotations()["train"]) == 24


@pytest.mark.parametrize(("bad", "message"), [
    ("disc&x&good&0", "five fields"),
    ("dragon&x&good&0&10", "category 'dragon'"),
    ("disc&x&good&7&3", "7 to 3"),
    ("disc&x&good&0&11", "0 to 11"),
    ("disc&x&good&a&3", "a to 3"),
])
def test_malformed_rows_name_their_line(copy: Path, bad: str, message: str) -> None:
    with (copy / "Annotations.txt").open("a") as file:
        file.write(bad + "\n")
    with pytest.raises(AnnotationError, match=message) as error:
        module(copy).read_annotations()
    assert "line 42" in str(error.value)


def test_split_row_without_annotation_is_an_error(copy: Path) -> None:
    with (copy / "testSet.txt").open("a") as file:
        file.write("disc&nobody&good&0&10\n")
    with pytest.raises(AnnotationError, match="nobody"):
        module(copy).read_annotations()


def test_missing_media(copy: Path, world: Path) -> None:
    victim = (copy / "trainSet.txt").read_text().split("&")[1]
    (copy / "store").unlink()
    shutil.copytree(world / "store", copy / "store")
    shutil.rmtree(copy / "store" / "clips" / victim)
    with pytest.raises(DatasetError, match=f"(?s)1 of 24 clips of split train unusable .{victim}.*missing: skip"):
        module(copy).setup("fit")
    data = module(copy, missing="skip")
    with pytest.warns(UserWarning, match="1 of 24 left out"):
        data.setup("fit")
    assert data.clips()["train"] == {"used": 23, "missing": 1, "corrupt": 0}
    assert victim not in [item.id for item in data.datasets["train"].items]
    assert victim in data.manifest()["left_out"]["train"]


def test_corrupt_clips_are_substituted_in_training_only(copy: Path, world: Path) -> None:
    (copy / "store").unlink()
    shutil.copytree(world / "store", copy / "store")
    for name in ("trainSet.txt", "testSet.txt"):
        victim = (copy / name).read_text().split("&")[1]
        (copy / "store" / "clips" / victim / "audio.npy").write_bytes(b"gone")
    data = module(copy)
    data.setup("fit")
    with pytest.raises(ClipDecodeError):
        data.datasets["train"][0]
    data = module(copy, corrupt="substitute")
    data.setup("fit")
    sample, other = data.datasets["train"][0], data.datasets["train"][1]
    assert sample["id"] == other["id"] and not sample["valid"].any() and other["valid"].any()
    assert torch.equal(sample["event"], other["event"])
    assert data.clips()["train"]["corrupt"] == 1
    data.setup("test")
    with pytest.raises(ClipDecodeError):
        data.datasets["test"][0]
    for item in data.datasets["train"].items[:4]:
        (copy / "store" / "clips" / item.id / "audio.npy").write_bytes(b"gone")
    with pytest.raises(ClipDecodeError):  # too many: something is wrong with the store
        [data.datasets["train"][index] for index in range(4)]


def test_published_layout(copy: Path) -> None:
    (copy / "store").unlink()
    ids = sorted({line.split("&")[1] for line in (copy / "Annotations.txt").read_text().splitlines()[1:]})
    folders(copy, ids)
    data = module(copy, layout="folders", antialias=False)
    data.setup("test")
    sample = data.datasets["test"][0]
    frames = data.normalise.undo(sample["frames"])
    chosen = np.linspace(1, 20, 10, dtype=int)  # 1, 3, 5, 7, 9, 11, 13, 15, 17, 20
    assert torch.allclose(frames.mean((1, 2, 3)), torch.tensor(10.0 * chosen / 255).float(), atol=0.01)
    assert np.array_equal(sample["audio"].flatten().numpy(), np.linspace(-1, 1, 160000, dtype=np.float32))
    np.save(copy / "wave" / f"{sample['id']}.npy", np.zeros(1000, np.float32))
    with pytest.raises(ClipDecodeError, match="1000 samples"):
        data.datasets["test"][0]
    np.save(copy / "wave" / f"{sample['id']}.npy", np.array([{}], dtype=object))
    with pytest.raises(ClipDecodeError, match="allow_pickle=False"):
        data.datasets["test"][0]


def test_published_resize_overshoots(tmp_path: Path) -> None:
    """The authors resize floating-point tensors without low-pass or clamping."""
    from avprompt.media.decode import Sampling
    from avprompt.media.readers import FolderReader

    (tmp_path / "frames" / "a").mkdir(parents=True)
    (tmp_path / "wave").mkdir()
    board = (np.indices((60, 80)).sum(0) // 10 % 2 * 255).astype(np.uint8)
    Image.fromarray(np.stack([board] * 3, -1)).save(tmp_path / "frames" / "a" / "00000001.jpg", quality=100)
    np.save(tmp_path / "wave" / "a.npy", np.zeros(10 * 800, np.float32))
    plain, smooth = (FolderReader(tmp_path, Sampling(size=40, sample_rate=800, antialias=a)).read("a")[0]
                     for a in (False, True))
    assert plain.shape == (10, 3, 40, 40) and plain.max() > 1.01 and plain.min() < -0.01
    assert (plain - smooth).abs().max() > 0.05


def test_validation_on_the_test_split_is_a_switch(world: Path) -> None:
    data = module(world, validation_split="test")
    data.setup("fit")
    assert "test" in data.datasets and "val" not in data.datasets
    assert len(data.val_dataloader().dataset) == 8


def test_own_videos(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "clips"
    data = AVEDataModule(tmp_path, predict_root=folder, batch_size=2)
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert batch["id"] == ["nasa_13013", "nasa_13013@10"] and batch["start"].tolist() == [0, 10]
    assert batch["valid"][0].all() and batch["valid"][1].tolist() == [True] * 3 + [False] * 7


def test_own_videos_that_do_not_decode_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    data = AVEDataModule(tmp_path, predict_root=tmp_path)
    with pytest.warns(UserWarning, match="left out: .*broken.mp4"), pytest.raises(DatasetError, match="no usable video"):
        data.setup("predict")


def test_verify(copy: Path, capsys: pytest.CaptureFixture[str], world: Path) -> None:
    assert verify(copy, categories=world / "categories.txt")
    out = capsys.readouterr().out
    assert "train         24      24      24        0         0" in out and "Annotations.txt" in out
    for name in ("Annotations.txt", "testSet.txt"):
        with (copy / name).open("a") as file:
            file.write("disc&nobody&good&0&10\n")
    assert not verify(copy, categories=world / "categories.txt", report=copy / "report.csv")
    assert "test,nobody,missing" in (copy / "report.csv").read_text()


def test_store_settings_must_match(world: Path) -> None:
    with pytest.raises(DatasetError, match="image_size"):
        module(world, image_size=96).setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(world).setup("fit")


def test_where_the_module_lives() -> None:
    assert AVEDataModule.__module__ == "avprompt.data_modules.ave"
