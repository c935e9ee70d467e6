"""AVSBench's tables, masks, folders and data module, on generated data in the official layout."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from dataset_contract import DatasetContract
from PIL import Image

from avprompt.data_modules import AVSBenchDataModule
from avprompt.datasets import avsbench
from avprompt.datasets.verify import verify
from avprompt.errors import AnnotationError, ArgumentError, ClipDecodeError, DatasetError, ShapeError
from avprompt.media.decode import Sampling
from avprompt.plots.overlays import overlay_figure
from avprompt.synthetic import scenes as geometry
from avprompt.synthetic.avsbench import synthesize

COUNTS = {"train": 15, "val": 5, "test": 5}


@pytest.fixture
def s4(avs_roots: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(avs_roots["s4"], tmp_path / "s4"))


@pytest.fixture
def ms3(avs_roots: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(avs_roots["ms3"], tmp_path / "ms3"))


def module(root: Path, **options: object) -> AVSBenchDataModule:
    settings = {
        "setting": "s4" if (root / "Single-source").is_dir() else "ms3",
        "batch_size": 4,
        "image_size": 64,
        "sample_rate": 16000,
    }
    return AVSBenchDataModule(root, **{**settings, **options})


def located(root: Path, clip: str) -> avsbench.Files:
    data = module(root)
    (video,) = (item for items in data.read_annotations().values() for item in items if item.id == clip)
    return avsbench.files(root, data.setting, video)


def rewrite(path: Path, seconds: float, rate: int = 16000) -> None:
    """A wav file of ones."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.full(round(seconds * rate), 16384, "<i2").tobytes())


class FoldersContract(DatasetContract):
    """The shared tests, media in the official folders."""

    counts = COUNTS
    labels = {"masks": (5, 64, 64), "annotated": (5,)}
    segments = 5

    def module(self, root: Path, **options: object) -> AVSBenchDataModule:
        return module(root, **options)

    def remove(self, root: Path, clip: str) -> None:
        located(root, clip).audio.unlink()

    def damage(self, root: Path, clip: str) -> None:
        located(root, clip).audio.write_bytes(b"gone")

    def predicted(self) -> dict[str, torch.Tensor]:
        return {"prediction": torch.zeros(10, 64, 64, dtype=torch.bool)}  # one's own videos are cut in tens there

    def test_store_of_other_settings_is_refused(self, root: Path) -> None:
        """There is no store, and folders take any size and rate."""
        with pytest.raises(ArgumentError, match="layout: got store"):
            self.module(root, layout="store")
        data = self.module(root, image_size=96, sample_rate=8000, mask_size=24)
        data.setup("test")
        sample = data.datasets["test"][0]
        assert sample["frames"].shape == (5, 3, 96, 96) and sample["audio"].shape == (5, 8000)
        assert sample["masks"].shape == (5, 24, 24)


class TestS4(FoldersContract):
    """Single source."""

    @pytest.fixture
    def root(self, s4: Path) -> Path:
        return s4


class TestMS3(FoldersContract):
    """Multiple sources."""

    @pytest.fixture
    def root(self, ms3: Path) -> Path:
        return ms3


def test_official_layout(avs_roots: dict[str, Path]) -> None:
    """As the published loaders build their paths."""
    root = avs_roots["s4"] / "Single-source"
    with (root / "s4_meta_data.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "category", "split"]
    for row in rows:
        place = f"{row['split']}/{row['category']}/{row['name']}"
        names = [f"{row['name']}_{k}.png" for k in range(1, 6)]
        assert sorted(p.name for p in (root / "s4_data/visual_frames" / place).iterdir()) == names
        masks = names[:1] if row["split"] == "train" else names
        assert sorted(p.name for p in (root / "s4_data/gt_masks" / place).iterdir()) == masks
        assert (root / f"s4_data/audio_wav/{place}.wav").is_file()
        assert (avs_roots["s4"] / f"videos/{row['name']}.mp4").is_file()
    assert Image.open(root / "s4_data/gt_masks" / place / masks[0]).mode == "1"
    root = avs_roots["ms3"] / "Multi-sources"
    with (root / "ms3_meta_data.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        name = row["name"]
        frames = root / "ms3_data/visual_frames" / name
        assert sorted(p.name for p in frames.iterdir()) == [f"{name}.mp4_{k}.png" for k in range(1, 6)]
        masks = root / "ms3_data/gt_masks" / row["split"] / name
        assert sorted(p.name for p in masks.iterdir()) == [f"{name}_{k}.png" for k in range(1, 6)]
        assert (root / "ms3_data/audio_wav" / row["split"] / f"{name}.wav").is_file()
    mask = Image.open(masks / f"{name}_1.png")
    assert mask.mode == "P" and set(np.unique(np.asarray(mask))) <= {0, 255}


@pytest.mark.parametrize("setting", ["s4", "ms3"])
def test_masks_are_what_sounds_and_is_seen(avs_roots: dict[str, Path], setting: str, tmp_path: Path) -> None:
    """In a dataset without clutter the mask is where the picture loses something when what sounds is taken out of it."""
    root = tmp_path / "plain"
    synthesize(root, setting, videos=25, seed=5, classes=5, objects=2, noise=0, size=96, workers=1)
    data = module(root, image_size=96)
    data.setup("test")
    scenes = {row["extra"]["video"]["name"]: row for row in map(json.loads, (root / "scenes.jsonl").open())}
    empty = partial = same = 0
    for item, sample in zip(data.datasets["test"].items, data.datasets["test"]):
        scene = scenes[item.name]
        things, sounds = [geometry.Thing(**t) for t in scene["things"]], [geometry.Sound(**s) for s in scene["sounds"]]
        frames = sample["frames"]
        for second in range(5):
            time, heard = second + 0.5, {s.category for s in sounds if s.start <= second < s.end}
            seen = [t for t in things if t.start <= second < t.end]
            loud = [t for t in seen if t.category in heard]
            mask, rest = sample["masks"][second].bool(), [t for t in seen if t not in loud]
            ground = geometry.ground(np.random.default_rng(scene["seed"]), 0.0)
            without = geometry.render_frame(geometry.Scene(0, rest, [], 0.0), time, ground, np.random.default_rng(0))
            changed = (frames[second] != torch.from_numpy(without).permute(2, 0, 1)).any(0)
            assert torch.equal(changed & ~mask, torch.zeros_like(mask))  # nothing that sounds is left out
            # where a sounding object hides a silent one of its colour, taking it out changes nothing
            alike = {thing.colour for thing in loud} & {thing.colour for thing in rest}
            assert alike or torch.equal(mask, changed)
            same += not alike
            assert bool(mask.any()) is bool(loud)
            empty, partial = empty + (not loud), partial + (0 < len(loud) < len(things))
            # clutter changes no mask, and a smaller one shows the same places
            path = avsbench.files(avs_roots[setting], setting, item).masks[second]
            small = torch.from_numpy(avsbench.read_mask(path))
            share = mask.view(32, 3, 32, 3).float().mean((1, 3)), small.view(32, 2, 32, 2).float().mean((1, 3))
            assert (share[0] - share[1]).abs().max() < 0.4
    assert same >= 10
    if setting == "s4":
        assert empty == 0 and partial == 25
    else:
        assert 0 < empty < 13 and partial > 5


def test_scenes(avs_roots: dict[str, Path]) -> None:
    for setting, root in avs_roots.items():
        changes = 0
        for row in map(json.loads, (root / "scenes.jsonl").open()):
            sounding = {sound["category"] for sound in row["sounds"]}
            assert len(row["things"]) == len({thing["category"] for thing in row["things"]}) == len(sounding) + 1
            spans = {(s["start"], s["end"]) for s in (*row["sounds"], *row["things"])}
            if setting == "s4":
                category = geometry.CATEGORIES.index(row["extra"]["video"]["category"])
                assert sounding == {category} and spans == {(0, 5)}
            else:
                assert 2 <= len(sounding) <= 3 and all(0 <= start < end <= 5 for start, end in spans)
                changes += len(spans) > 1
        assert changes == (25 if setting == "ms3" else 0)


@pytest.mark.parametrize("setting", ["s4", "ms3"])
def test_frames_are_those_of_the_video(avs_roots: dict[str, Path], setting: str) -> None:
    """An mp4 decoded like a user's own gives the same frames at the same seconds, and the same sound."""
    root = avs_roots[setting]
    data = module(root)
    data.setup("test")
    item, sample = data.datasets["test"].items[1], data.datasets["test"][1]
    own = module(root, predict_root=root / "videos")
    own.setup("predict")
    video = own.datasets["predict"][own.datasets["predict"].ids.index(item.name)]
    with av.open(str(root / "videos" / f"{item.name}.mp4")) as container:
        assert container.duration / av.time_base == pytest.approx(5, abs=0.1)
    difference = (sample["frames"][:, None].float() - video["frames"][None].float()).abs().mean((2, 3, 4)) / 255
    assert difference.argmin(1).tolist() == [0, 1, 2, 3, 4] and difference.diagonal().max() < 0.05
    spectra = [torch.fft.rfft(s["audio"]).abs() for s in (sample, video)]
    assert torch.nn.functional.cosine_similarity(*spectra).min() > 0.95 and sample["valid"].all()


def test_annotated_frames(s4: Path, ms3: Path) -> None:
    for root, training in ((s4, [True] + 4 * [False]), (ms3, 5 * [True])):
        data = module(root)
        data.setup("fit")
        for split, expected in (("train", training), ("val", 5 * [True])):
            for sample in data.datasets[split]:
                assert sample["annotated"].tolist() == expected and not sample["masks"][~sample["annotated"]].any()
                assert set(sample["masks"].unique().tolist()) <= {0.0, 1.0}


def test_generating_again(avs_roots: dict[str, Path], s4: Path) -> None:
    """Resumes, repeats itself exactly, and leaves another synthetic dataset alone."""
    names = [path.relative_to(s4) for path in sorted(s4.rglob("*")) if path.is_file() and path.suffix != ".mp4"]
    arguments = {"videos": 25, "seed": 5, "classes": 5, "objects": 2, "workers": 1}
    for path in [*s4.glob("Single-source/s4_data/*/test/*/*/*.png"), *s4.glob("videos/*20.mp4")]:
        path.unlink()
    synthesize(s4, "s4", **arguments)
    gone = [name for name in names if not (s4 / name).is_file()]
    assert gone and all("world005000020" not in str(name) for name in gone)  # that one was done again
    for path in s4.glob("videos/*.mp4"):
        path.unlink()
    synthesize(s4, "s4", **arguments)
    assert all((s4 / name).read_bytes() == (avs_roots["s4"] / name).read_bytes() for name in names)
    for other in ({"seed": 6}, {"size": 96}, {"setting": "ms3"}):
        with pytest.raises(DatasetError, match="another synthetic dataset"):
            synthesize(s4, **{"setting": "s4", **arguments, **other})


@pytest.mark.parametrize(
    "bad",
    [
        {"videos": 39},
        {"objects": 7, "setting": "ms3"},
        {"objects": 9},
        {"setting": "avss"},
        {"size": 0},
        {"classes": 9},
    ],
)
def test_impossible_synthetic_datasets(tmp_path: Path, bad: dict[str, object]) -> None:
    with pytest.raises(ArgumentError):
        synthesize(tmp_path, **{"setting": "s4", "videos": 40, **bad})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_masks_of_every_mode(tmp_path: Path, mode: str) -> None:
    truth = np.zeros((6, 9), bool)
    truth[1:3, 4:8] = True
    image = Image.fromarray(np.where(truth, 255, 0).astype(np.uint8)).convert(mode)
    if mode == "P":  # an index, not a colour
        image = Image.fromarray(truth.astype(np.uint8) * 3, "P")
        image.putpalette([9, 9, 9, 1, 1, 1, 2, 2, 2, 0, 0, 0])
    image.save(tmp_path / "mask.png")
    assert Image.open(tmp_path / "mask.png").mode == mode
    mask = avsbench.read_mask(tmp_path / "mask.png")
    assert mask.dtype == bool and np.array_equal(mask, truth)


def test_faint_masks_count(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1], [128, 255]], np.uint8)).save(tmp_path / "mask.png")
    assert avsbench.read_mask(tmp_path / "mask.png").tolist() == [[False, True], [True, True]]
    (tmp_path / "mask.png").write_bytes(b"no picture")
    with pytest.raises(AnnotationError, match="mask.png.*a png picture"):
        avsbench.read_mask(tmp_path / "mask.png")


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    """Pillow raises one of several errors, by the place of the damage."""
    path, rng = tmp_path / "mask.png", np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    content, kinds = path.read_bytes(), set()
    chunk = content.index(b"IDAT") + 4
    for damaged in (
        content[: chunk + 400],
        content.replace(b"IHDR", b"IHDX"),
        content.replace(b"IDAT", b"ID\xdbT"),
        content[:chunk] + b"no" + content[chunk + 2 :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(AnnotationError, match="mask.png") as error:
            avsbench.read_mask(path)
        kinds.add(type(error.value.__cause__))
    assert len(kinds) > 1


def test_mask_of_another_size(ms3: Path) -> None:
    """Resized to the nearest pixel: frame and mask keep showing the same places."""
    data = module(ms3, mask_size=32)
    item = data.read_annotations()["test"][0]
    big = np.zeros((160, 224), np.uint8)
    big[40:80, 56:112] = 255
    Image.fromarray(big).save(avsbench.files(ms3, "ms3", item).masks[2])
    data.setup("test")
    masks = data.datasets["test"][0]["masks"]
    expected = torch.zeros(32, 32)
    expected[8:16, 8:16] = 1
    assert torch.equal(masks[2], expected) and masks.shape == (5, 32, 32)


@pytest.mark.parametrize("name", ["s4", "ms3"])
def test_missing_files(name: str, request: pytest.FixtureRequest) -> None:
    """Named before training, by their place in the dataset's folder."""
    root = request.getfixturevalue(name)
    data = module(root)
    train, val = (data.read_annotations()[split] for split in ("train", "val"))
    where = [avsbench.files(root, data.setting, video) for video in (train[0], train[1], val[0])]
    for path in (where[0].masks[0], *where[1].frames, where[2].masks[4]):
        path.unlink()
    data = module(root, missing="skip")
    with pytest.warns(UserWarning, match="left out"):
        data.setup("fit")
    reasons = data.manifest()["left_out"]
    assert reasons["train"] == {
        train[0].id: f"missing: {where[0].masks[0].relative_to(root)}",
        train[1].id: f"missing: {', '.join(str(p.relative_to(root)) for p in where[1].frames[:2])} and 3 more",
    }
    assert reasons["val"] == {val[0].id: f"missing: {where[2].masks[4].relative_to(root)}"}
    with pytest.raises(DatasetError, match="2 of 15 clips of split train unusable .*gt_masks"):
        module(root).setup("fit")


@pytest.mark.parametrize(
    ("seconds", "valid"),
    [(4.9, [1, 1, 1, 1, 1]), (3.4, [1, 1, 1, 0, 0]), (1.6, [1, 1, 0, 0, 0]), (7.0, [1, 1, 1, 1, 1])],
)
def test_sound_of_another_length(ms3: Path, seconds: float, valid: list[int]) -> None:
    data = module(ms3)
    data.setup("test")
    rewrite(avsbench.files(ms3, "ms3", data.datasets["test"].items[0]).audio, seconds)
    sample = data.datasets["test"][0]
    assert sample["valid"].tolist() == [bool(v) for v in valid]
    wave, known = sample["audio"].flatten(), round(min(seconds, 5) * 16000)
    assert torch.allclose(wave[:known], torch.tensor(0.5), atol=1e-3) and not wave[known:].any()


def test_sound_of_another_rate_and_stereo(ms3: Path) -> None:
    data = module(ms3)
    data.setup("test")
    path = avsbench.files(ms3, "ms3", data.datasets["test"].items[0]).audio
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 44100, 0, "NONE", ""))
        file.writeframes(np.stack([np.full(5 * 44100, 16384), np.zeros(5 * 44100)], 1).astype("<i2").tobytes())
    sample = data.datasets["test"][0]
    assert sample["audio"].shape == (5, 16000) and sample["valid"].all()
    assert torch.allclose(sample["audio"][1:4], torch.tensor(0.25), atol=2e-3)


def test_damaged_files(s4: Path) -> None:
    data = module(s4)
    data.setup("test")
    items = data.datasets["test"].items
    where = [avsbench.files(s4, "s4", item) for item in items]
    rewrite(where[0].audio, 0.3)
    where[1].frames[3].write_bytes(where[1].frames[3].read_bytes()[:200])
    where[2].masks[1].write_bytes(b"no picture")
    with pytest.raises(ClipDecodeError, match="4800 samples; expected at least half a second"):
        data.datasets["test"][0]
    with pytest.raises(ClipDecodeError, match="_4.png.*a png picture"):
        data.datasets["test"][1]
    with pytest.raises(AnnotationError, match="_2.png.*a png picture"):
        data.datasets["test"][2]


def test_frames_of_another_size(ms3: Path) -> None:
    """Bicubic, with and without low-pass; uint8 holds no overshoot."""
    item = module(ms3).read_annotations()["test"][0]
    board = (np.indices((60, 80)).sum(0) // 10 % 2 * 255).astype(np.uint8)
    for path in avsbench.files(ms3, "ms3", item).frames:
        Image.fromarray(np.stack([board] * 3, -1)).save(path)
    plain, smooth = (
        avsbench.AVSBenchReader(ms3, Sampling(segments=5, size=40, sample_rate=800, antialias=a), "ms3").read(item.id)[
            0
        ]
        for a in (False, True)
    )
    assert plain.shape == (5, 3, 40, 40) and plain.dtype == torch.uint8
    assert (plain.float() - smooth.float()).abs().max() > 13


S4_TABLE, MS3_TABLE = "Single-source/s4_meta_data.csv", "Multi-sources/ms3_meta_data.csv"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,disc,eval", "split 'eval'"),
        ("x,disc,", "split ''"),
        ("x,disc", "3 fields"),
        ("x,disc,test,4", "3 fields"),
        (",disc,test", "name ''"),
        ("../x,disc,test", "name '../x'"),
        ("x,a/b,test", "category 'a/b'"),
        ("x,,test", "category ''"),
        ("x,disc,test\nx,disc,val", "disc_x again"),
        ("world005000000,disc,test", "disc_world005000000 again"),
    ],
)
def test_malformed_rows_name_their_line(s4: Path, row: str, message: str) -> None:
    with (s4 / S4_TABLE).open("a") as file:
        file.write(row + "\n")
    with pytest.raises(AnnotationError, match=message) as error:
        avsbench.read_splits(s4, "s4")
    assert f"s4_meta_data.csv, line {27 + row.count(chr(10))}:" in str(error.value)


def test_same_name_in_two_categories(s4: Path) -> None:
    """S4's files lie in their category's folder, so both are there to be read."""
    with (s4 / S4_TABLE).open("a") as file:
        file.write("world005000000,star,test\n")
    splits = avsbench.read_splits(s4, "s4")
    twins = [video.id for split in splits.values() for video in split if video.name == "world005000000"]
    assert twins == ["disc_world005000000", "star_world005000000"]


def test_same_name_twice(ms3: Path) -> None:
    with (ms3 / MS3_TABLE).open("a") as file:
        file.write("world005000000,test\n")
    with pytest.raises(AnnotationError, match="line 27: got world005000000 again"):
        avsbench.read_splits(ms3, "ms3")


def test_columns(s4: Path, ms3: Path) -> None:
    """By name; where a name is missing, where the published loaders look."""
    expected = avsbench.read_splits(s4, "s4")
    with (s4 / S4_TABLE).open() as file:
        rows = list(csv.DictReader(file))
    for header, keys in (
        ("split,start,category,name", ("split", None, "category", "name")),
        ("video,start,label,split", ("name", None, "category", "split")),
    ):
        lines = [header, *(",".join(row[key] if key else "3" for key in keys) for row in rows)]
        (s4 / S4_TABLE).write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode())
        assert avsbench.read_splits(s4, "s4") == expected
    table = ms3 / MS3_TABLE
    expected = avsbench.read_splits(ms3, "ms3")
    table.write_text(table.read_text().replace("name,split", "video,split"))
    assert avsbench.read_splits(ms3, "ms3") == expected and expected["test"][0].category == ""
    table.write_text("\n".join(table.read_text().splitlines()[1:]))
    with pytest.raises(AnnotationError, match="line 1: .*without split"):
        avsbench.read_splits(ms3, "ms3")
    table.unlink()
    with pytest.raises(DatasetError, match="ms3_meta_data.csv: got no such file"):
        avsbench.read_splits(ms3, "ms3")


def test_only_the_pickle_is_there(s4: Path) -> None:
    """It would be read by running what is in it."""
    data = s4 / "Single-source/s4_data"
    shutil.rmtree(data / "audio_wav")
    with pytest.raises(DatasetError, match="audio_wav: got no such folder; .*Extract AVSBench's archive"):
        module(s4).setup("fit")
    (data / "wave/train/disc").mkdir(parents=True)
    np.save(data / "wave/train/disc/AVS.npy", np.array({"a.wav": np.zeros(4)}, dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match="train/disc/AVS.npy; .*A pickle may run code and is never read"):
        module(s4).setup("fit")


def test_arguments(tmp_path: Path) -> None:
    """Own defaults are those of the published experiments; nothing is looked at yet."""
    data = AVSBenchDataModule(tmp_path, "ms3")
    assert (data.sampling.segments, data.sampling.size, data.mask_size, data.layout) == (5, 224, 224, "folders")
    assert data.class_names == ("sounding",) and data.info is avsbench.INFO["ms3"]
    assert AVSBenchDataModule.__module__ == "avprompt.data_modules.avsbench"
    for bad in ({"setting": "avss"}, {"setting": "s4", "mask_size": 0}):
        with pytest.raises(ArgumentError):
            AVSBenchDataModule(tmp_path, **bad)


@pytest.mark.parametrize("other", [{"segments": 10}, {"stride": 0.5}])
def test_annotated_videos_have_five_seconds(ms3: Path, other: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="segments, stride: .*a frame a second of five"):
        module(ms3, **other).setup("test")


def texts(figure: object) -> list[str]:
    return [
        text
        for axis in figure.axes
        for text in (axis.get_xlabel(), axis.get_ylabel(), *(t.get_text() for t in axis.texts))
        if text
    ]


def test_overlay() -> None:
    frames, audio = torch.rand(3, 3, 20, 24), torch.rand(3, 100) - 0.5
    masks, prediction = torch.zeros(3, 10, 10), torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[0, :4, :5] = masks[1, :4, :5] = 1
    prediction[0, :2, :5] = prediction[2, :1] = True
    known = torch.tensor([True, False, True])
    assert texts(overlay_figure(frames, audio)) == []
    assert texts(overlay_figure(frames, audio, masks)) == ["annotated"]
    assert texts(overlay_figure(frames, audio, prediction=prediction)) == ["predicted"]
    assert texts(overlay_figure(frames, audio, masks, prediction, known)) == [
        "annotated",
        "not annotated",
        "IoU 0.50",
        "predicted",
        "IoU 0.90, nothing sounds",
    ]
    figure = overlay_figure(frames, audio, masks, prediction, title="a $ b", start=10.0, valid=known)
    figure.canvas.draw()
    assert "no media" in texts(figure) and figure.get_suptitle() == "a $ b"
    drawn = {axis.get_ylabel(): axis.images[0].get_array() for axis in figure.axes if axis.get_ylabel()}
    for name, values in (("annotated", masks), ("predicted", prediction)):
        coloured = (
            np.abs(np.asarray(drawn[name]) - frames[0].permute(1, 2, 0).numpy()).max(-1) > 0
        )  # else the frame as it is
        mask = values[0].bool().repeat_interleave(2, 0)
        assert np.array_equal(coloured[:, :2], mask[:, :1].expand(-1, 2)) and not coloured[:, 13:].any()
    for wrong in (prediction[:2], prediction[0], prediction[:, :5]):
        with pytest.raises(ShapeError, match="masks, prediction"):
            overlay_figure(frames, audio, masks, wrong)


@pytest.mark.parametrize("name", ["s4", "ms3"])
def test_verify(name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    root = request.getfixturevalue(name)
    assert verify(root, f"avs_{name}", layout="folders")
    out = capsys.readouterr().out
    assert "train         15      15      15        0         0       0       0" in out
    assert avsbench.LAYOUTS[name].table in out and "_{1..5}.png" in out and "gt_masks/<split>" in out
    data = module(root)
    items = data.read_annotations()["test"]
    where = [avsbench.files(root, data.setting, item) for item in items]
    where[0].frames[2].write_bytes(b"")
    where[1].audio.write_bytes(b"RIFF")
    where[2].masks[0].write_bytes(b"no picture")
    where[3].masks[4].unlink()
    assert not verify(root, f"avs_{name}", layout="folders")
    assert "test           5       5       1        1         3       0       0" in capsys.readouterr().out
    with (root / "verify.csv").open() as file:
        problems = {row["id"]: row["problem"].split(":")[0] for row in csv.DictReader(file)}
    assert problems == {items[0].id: "broken", items[1].id: "broken", items[2].id: "broken", items[3].id: "missing"}


def test_a_synthetic_dataset_is_written_after_torch_has_used_its_threads(tmp_path: Path) -> None:
    """A process forked from such a one hangs in torch's own code, unless it keeps to one thread."""
    code = (
        "import torch, sys; from pathlib import Path; from avprompt.synthetic.avsbench import synthesize;"
        "torch.set_num_threads(2); torch.rand(8, 3, 400, 400).sort(); x = torch.rand(2000, 2000); x @ x;"
        "torch.nn.functional.interpolate(torch.rand(8, 3, 400, 400), (64, 64), mode='bicubic', antialias=True);"
        "synthesize(Path(sys.argv[1]), videos=10, classes=2, objects=2, workers=1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120, capture_output=True)
