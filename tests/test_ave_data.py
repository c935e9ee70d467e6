"""AVE's annotations and data module, on generated data and on the published files."""

from __future__ import annotations

import csv
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_contract import DatasetContract
from PIL import Image

from avprompt.data_modules import AVEDataModule
from avprompt.datasets import ave
from avprompt.datasets.verify import verify
from avprompt.errors import AnnotationError, ClipDecodeError, DatasetError
from avprompt.media.store import read_manifest, write_manifest
from avprompt.synthetic.scenes import CATEGORIES


def module(root: Path, **options: object) -> AVEDataModule:
    settings = {"batch_size": 4, "image_size": 64, "sample_rate": 16000}
    return AVEDataModule(root, **{**settings, **options})


@pytest.fixture
def copy(ave_root: Path, tmp_path: Path) -> Path:
    """The synthetic dataset with annotation files of its own, sharing the media."""
    root = tmp_path / "ave"
    root.mkdir()
    for name in ("Annotations.txt", "categories.txt", *ave.SPLITS.values()):
        (root / name).write_text((ave_root / name).read_text())
    (root / "store").symlink_to(ave_root / "store")
    return root


class TestAVE(DatasetContract):
    """The shared tests on the synthetic dataset."""

    counts = {"train": 24, "val": 8, "test": 8}
    labels = {"event": (10, 9), "category": ()}

    @pytest.fixture
    def root(self, copy: Path, ave_root: Path) -> Path:
        (copy / "store").unlink()
        shutil.copytree(ave_root / "store", copy / "store")
        return copy

    def module(self, root: Path, **options: object) -> AVEDataModule:
        return module(root, **options)

    def test_plot_draws_label_and_prediction(self, root: Path) -> None:
        data = self.module(root)
        data.setup("test")
        sample = data.datasets["test"][0]
        bare = data.plot({key: value for key, value in sample.items() if key != "event"})
        full = data.plot({**sample, "prediction": torch.full((10,), 3)})
        assert len(full.axes) == len(bare.axes) + 2

    def test_labels_are_one_hot(self, root: Path) -> None:
        data = self.module(root)
        data.setup("test")
        for index in range(8):
            sample, item = data.datasets["test"][index], data.datasets["test"].items[index]
            assert torch.equal(sample["event"].sum(-1), torch.ones(10))
            assert sample["event"][item.start : item.end, item.category].sum() == item.end - item.start


def folders(root: Path, clips: list[str]) -> None:
    """The published code's layout for these clips: 20 jpg frames of growing brightness, one waveform."""
    for clip in clips:
        (root / "frames" / clip).mkdir(parents=True)
        for number in range(1, 21):
            picture = Image.new("RGB", (80, 60), (10 * number,) * 3)
            picture.save(root / "frames" / clip / f"{number:08d}.jpg", quality=95)
        (root / "wave").mkdir(exist_ok=True)
        np.save(root / "wave" / f"{clip}.npy", np.linspace(-1, 1, 160000, dtype=np.float32))


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
    assert len({row.id for row in rows}) == 4097 and sum(row.id.startswith("-") for row in rows) == 1030
    assert sum([row.id for row in rows].count(clip) > 1 for clip in {row.id for row in rows}) == 45
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


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("disc&x&good&0", "five fields"),
        ("dragon&x&good&0&10", "category 'dragon'"),
        ("disc&x&good&7&3", "7 to 3"),
        ("disc&x&good&0&11", "0 to 11"),
        ("disc&x&good&a&3", "a to 3"),
        ("disc&x&good&-1&3", "-1 to 3"),
        ("disc&&good&0&3", "clip id ''"),
        ("disc&../x&good&0&3", "clip id '../x'"),
        ("disc&x&good&0&3\ndisc&x&good&5&7", "disc of x again"),
    ],
)
def test_malformed_rows_name_their_line(copy: Path, bad: str, message: str) -> None:
    with (copy / "Annotations.txt").open("a") as file:
        file.write(bad + "\n")
    with pytest.raises(AnnotationError, match=message) as error:
        module(copy).read_annotations()
    assert f"Annotations.txt, line {42 + bad.count(chr(10))}:" in str(error.value)


@pytest.mark.parametrize("row", ["disc&nobody&good&0&10", "{category}&{clip}&good&0&0"])
def test_split_row_without_annotation_is_an_error(copy: Path, row: str) -> None:
    """No such clip, or another event of it than Annotations.txt has."""
    category, clip, _, start, end = (copy / "trainSet.txt").read_text().splitlines()[0].split("&")
    assert start != end
    with (copy / "testSet.txt").open("a") as file:
        file.write(row.format(category=category, clip=clip) + "\n")
    with pytest.raises(AnnotationError, match="testSet.txt, line 9: .*the row of Annotations.txt"):
        module(copy).read_annotations()


def test_missing_annotation_file(copy: Path) -> None:
    (copy / "valSet.txt").unlink()
    with pytest.raises(DatasetError, match="valSet.txt: got no such file"):
        module(copy).read_annotations()


def test_headers_line_ends_and_order_do_not_matter(copy: Path) -> None:
    expected = module(copy).read_annotations()
    lines = (copy / "Annotations.txt").read_text().splitlines()
    (copy / "Annotations.txt").write_bytes(
        b"\xef\xbb\xbf" + "\r\n".join([lines[0], *reversed(lines[1:])]).encode() + b"\r\n\r\n"
    )
    (copy / "valSet.txt").write_text(ave.HEADER + "\n" + (copy / "valSet.txt").read_text())
    assert module(copy).read_annotations() == expected


def test_a_clip_on_two_rows_is_two_examples(copy: Path) -> None:
    row = (copy / "trainSet.txt").read_text().splitlines()[0]
    clip = row.split("&")[1]
    other = f"{'star' if not row.startswith('star') else 'disc'}&{clip}&good&2&4"
    for name in ("Annotations.txt", "trainSet.txt"):
        with (copy / name).open("a") as file:
            file.write(other + "\n")
    data = module(copy)
    data.setup("fit")
    one, two = data.datasets["train"][0], data.datasets["train"][24]
    assert one["id"] == two["id"] == clip and torch.equal(one["frames"], two["frames"])
    assert not torch.equal(one["event"], two["event"]) and two["event"][:, :8].sum() == 2


def test_categories(copy: Path, tmp_path: Path) -> None:
    """Known without `setup`: from the argument, from categories.txt, else AVE's own."""
    assert module(copy).class_names == CATEGORIES and module(copy).num_classes == 8
    assert module(tmp_path).class_names == ave.CATEGORIES and module(tmp_path / "nowhere").num_classes == 28
    assert module(tmp_path, categories=["a", "b"]).num_classes == 2
    assert module(copy, categories=list(CATEGORIES)).read_annotations().keys() == {"train", "val", "test"}
    with pytest.raises(AnnotationError, match="categories: got .*categories.txt"):
        module(copy, categories=list(reversed(CATEGORIES))).read_annotations()
    (copy / "categories.txt").write_text("disc\nstar\ndisc\n")
    with pytest.raises(AnnotationError, match="each once"):
        module(copy)


def test_published_layout(copy: Path) -> None:
    (copy / "store").unlink()
    ids = sorted({line.split("&")[1] for line in (copy / "Annotations.txt").read_text().splitlines()[1:]})
    folders(copy, ids)
    data = module(copy, layout="folders", antialias=False)
    data.setup("test")
    sample = data.datasets["test"][0]
    frames = sample["frames"] / 255
    chosen = np.linspace(1, 20, 10, dtype=int)  # 1, 3, 5, 7, 9, 11, 13, 15, 17, 20
    assert torch.allclose(frames.mean((1, 2, 3)), torch.tensor(10.0 * chosen / 255).float(), atol=0.01)
    assert np.array_equal(sample["audio"].flatten().numpy(), np.linspace(-1, 1, 160000, dtype=np.float32))
    np.save(copy / "wave" / f"{sample['id']}.npy", np.zeros(1000, np.float32))
    with pytest.raises(ClipDecodeError, match="1000 samples"):
        data.datasets["test"][0]
    np.save(copy / "wave" / f"{sample['id']}.npy", np.array([{}], dtype=object))
    with pytest.raises(ClipDecodeError, match="allow_pickle=False"):
        data.datasets["test"][0]
    np.save(copy / "wave" / f"{sample['id']}.npy", np.full(160000, 3000, np.int16))
    with pytest.raises(ClipDecodeError, match="int16; expected floating-point samples"):
        data.datasets["test"][0]
    np.save(copy / "wave" / f"{sample['id']}.npy", np.zeros(160000, np.float32))
    (copy / "frames" / sample["id"] / "00000003.jpg").write_bytes(b"no picture")
    with pytest.raises(ClipDecodeError, match="00000003.jpg"):
        data.datasets["test"][0]


def test_published_layout_with_a_file_less(copy: Path) -> None:
    """The two modalities are joined by id: one missing waveform costs one clip and shifts nothing."""
    ids = sorted({line.split("&")[1] for line in (copy / "Annotations.txt").read_text().splitlines()[1:]})
    with pytest.raises(DatasetError, match="frames: got no such folder"):
        module(copy, layout="folders").setup("test")
    folders(copy, ids)
    victim = (copy / "testSet.txt").read_text().splitlines()[2].split("&")[1]
    (copy / "wave" / f"{victim}.npy").unlink()
    for clip in ids:
        if clip != victim:
            np.save(copy / "wave" / f"{clip}.npy", np.full(160000, int(clip[-3:]) / 1000, np.float32))
    data = module(copy, layout="folders", missing="skip")
    with pytest.warns(UserWarning, match=f"test: 1 of 8 left out .{victim}: missing: wave"):
        data.setup("test")
    for sample in data.datasets["test"]:
        assert sample["audio"][0, 0] == pytest.approx(int(sample["id"][-3:]) / 1000)
    assert len(data.datasets["test"]) == 7


def test_resize_of_published_frames(tmp_path: Path) -> None:
    """The authors resize floating-point tensors, without low-pass; ours are the same, rounded and clipped to uint8."""
    from avprompt.media.decode import Sampling
    from avprompt.media.readers import FolderReader

    (tmp_path / "frames" / "a").mkdir(parents=True)
    (tmp_path / "wave").mkdir()
    board = (np.indices((60, 80)).sum(0) // 10 % 2 * 255).astype(np.uint8)
    Image.fromarray(np.stack([board] * 3, -1)).save(tmp_path / "frames" / "a" / "00000001.jpg", quality=100)
    np.save(tmp_path / "wave" / "a.npy", np.zeros(10 * 800, np.float32))
    plain, smooth = (
        FolderReader(tmp_path, Sampling(size=40, sample_rate=800, antialias=a)).read("a")[0] for a in (False, True)
    )
    assert plain.shape == (10, 3, 40, 40) and plain.dtype == torch.uint8
    assert (plain.float() - smooth.float()).abs().max() > 13
    with Image.open(tmp_path / "frames" / "a" / "00000001.jpg") as picture:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    theirs = torch.nn.functional.interpolate(pixels, (40, 40), mode="bicubic")[0]
    assert theirs.max() > 1.01 and theirs.min() < -0.01
    assert (plain[0] / 255 - theirs.clamp(0, 1)).abs().max() < 0.501 / 255


def test_own_videos(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "clips"
    data = AVEDataModule(tmp_path, predict_root=folder, batch_size=2)
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert batch["id"] == ["nasa_13013", "nasa_13013@10"] and batch["start"].tolist() == [0, 10]
    assert batch["valid"][0].all() and batch["valid"][1].tolist() == [True] * 3 + [False] * 7


def test_verify(copy: Path, capsys: pytest.CaptureFixture[str], ave_root: Path) -> None:
    assert verify(copy)
    out = capsys.readouterr().out
    assert "train         24      24      24        0         0       0       0" in out
    assert all(name in out for name in ("Annotations.txt", "testSet.txt", "store/clips/<id>", "every clip can"))
    (copy / "store").unlink()
    shutil.copytree(ave_root / "store", copy / "store")
    rows = (copy / "testSet.txt").read_text().splitlines()
    short, silent, broken, cut, gone = (row.split("&")[1] for row in rows[:5])
    for name in ("Annotations.txt", "testSet.txt"):
        with (copy / name).open("a") as file:
            file.write("disc&nobody&good&0&10\n")
    manifest = copy / "store" / "manifest.csv"
    entries = read_manifest(manifest)
    for clip, status in ((short, "short"), (silent, "silent"), (broken, "broken")):
        entries[clip] = replace(entries[clip], status=status, reason="because")
    write_manifest(manifest, list(entries.values()))
    audio = copy / "store" / "clips" / cut / "audio.npy"
    audio.write_bytes(audio.read_bytes()[:-1])
    shutil.rmtree(copy / "store" / "clips" / gone)
    assert not verify(copy, report=copy / "report.csv")
    out = capsys.readouterr().out
    assert "test           9       9       5        2         2       1       1" in out
    assert "4 clips cannot be used" in out
    with (copy / "report.csv").open() as file:
        rows = {row["id"]: row["problem"] for row in csv.DictReader(file)}
    assert {clip: why.split(":")[0] for clip, why in rows.items()} == {
        short: "usable, short",
        silent: "usable, silent",
        broken: "broken",
        cut: "broken",
        gone: "missing",
        "nobody": "missing",
    }


def test_verify_before_anything_is_there(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first thing that a new user runs says what is expected and what to do."""
    (copy / "store").unlink()
    with pytest.raises(DatasetError, match="Run `avprompt data prepare"):
        verify(copy)
    assert "store/manifest.csv" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="frames"):
        verify(copy, layout="folders")
    with pytest.raises(DatasetError, match="an existing folder"):
        verify(tmp_path / "nowhere")


def test_verify_names_leaked_clips(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = (copy / "valSet.txt").read_text().splitlines()[0].split("&")[1]
    with (copy / "trainSet.txt").open("a") as file, (copy / "Annotations.txt").open("a") as other:
        row = f"{'star' if not (copy / 'valSet.txt').read_text().startswith('star') else 'disc'}&{clip}&good&0&1\n"
        file.write(row)
        other.write(row)
    assert verify(copy) and f"1 training clips are also in split val: {clip}" in capsys.readouterr().out


def test_store_settings_must_match(ave_root: Path) -> None:
    with pytest.raises(DatasetError, match="image_size"):
        module(ave_root, image_size=96).setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(ave_root).setup("fit")


def test_where_the_module_lives() -> None:
    assert AVEDataModule.__module__ == "avprompt.data_modules.ave"
