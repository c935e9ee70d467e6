"""LLP's annotations, data module and pictures, on generated data and on the published files."""

from __future__ import annotations

import itertools
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_contract import DatasetContract
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from avprompt.data_modules import LLPDataModule
from avprompt.datasets import llp
from avprompt.datasets.verify import verify
from avprompt.errors import AnnotationError, ArgumentError, ClipDecodeError, ConfigError, DatasetError
from avprompt.media.decode import Sampling
from avprompt.plots.parsing import parsing_figure
from avprompt.plots.timeline import category_colour
from avprompt.synthetic.llp import parsing_scene, synthesize
from avprompt.synthetic.scenes import BANDS, CATEGORIES, Settings

FILES = (*llp.SPLITS.values(), *llp.EVENTS.values(), "categories.txt")
pytestmark = pytest.mark.filterwarnings("ignore:parsing runs without the r2plus1d stream")


def module(root: Path, **options: object) -> LLPDataModule:
    settings = {"batch_size": 4, "image_size": 64, "sample_rate": 16000}
    return LLPDataModule(root, **{**settings, **options})


@pytest.fixture
def copy(llp_root: Path, tmp_path: Path) -> Path:
    """The synthetic dataset with annotation files of its own, sharing the media."""
    root = tmp_path / "llp"
    root.mkdir()
    for name in FILES:
        (root / name).write_text((llp_root / name).read_text())
    (root / "store").symlink_to(llp_root / "store")
    return root


def append(path: Path, *fields: object) -> None:
    with path.open("a") as file:
        file.write("\t".join(map(str, fields)) + "\n")


class TestLLP(DatasetContract):
    """The shared tests on the synthetic dataset."""

    counts = {"train": 24, "val": 8, "test": 8}
    labels = {"labels": (8,)}

    @pytest.fixture
    def root(self, copy: Path, llp_root: Path) -> Path:
        (copy / "store").unlink()
        shutil.copytree(llp_root / "store", copy / "store")
        return copy

    def module(self, root: Path, **options: object) -> LLPDataModule:
        return module(root, **options)

    def test_evaluation_has_targets_and_training_has_none(self, root: Path) -> None:
        data = self.module(root)
        data.setup("fit")
        data.setup("test")
        for loader in (data.val_dataloader(), data.test_dataloader()):
            batch = next(iter(loader))
            for key in ("audio_target", "visual_target"):
                assert batch[key].shape == (4, 10, 8) and batch[key].dtype == torch.float32
            both = torch.maximum(batch["audio_target"], batch["visual_target"]).amax(1)
            assert torch.equal(both, batch["labels"]) and batch["labels"].dtype == torch.float32
        assert not any("target" in key for key in data.datasets["train"][0])

    def test_plot_draws_what_the_sample_has(self, root: Path) -> None:
        data = self.module(root)
        data.setup("fit")
        sample, weak = data.datasets["val"][0], data.datasets["train"][1]
        full = data.plot(
            {**sample, "prediction_audio": torch.zeros(10, 8).bool(), "prediction_visual": torch.ones(10, 8).bool()}
        )
        assert legend(full) == ["annotated", "predicted"] and legend(data.plot(sample)) == ["annotated"]
        assert names(full)[1] == list(CATEGORIES) != names(data.plot(sample))[1]
        bare = data.plot(weak)
        assert bare.get_suptitle() == f"{weak['id']}: square, bar" and not bare.legends
        assert len(bare.axes) == 11 and len(full.axes) == 13


def test_labels_and_targets_of_a_video() -> None:
    video = llp.Video("abcdefghijk_0_10", (2, 0, 2), ((0, 1, 3), (0, 2, 5), (2, 9, 0), (2, 4, 4)), ())
    assert video.id == "abcdefghijk" and video.weak_label(4).tolist() == [1, 0, 1, 0]
    heard = llp.target(video.audio, 6, 4)
    assert heard.T.tolist() == [[0, 1, 1, 1, 1, 0], [0] * 6, [0] * 6, [0] * 6]
    assert not llp.target(video.visual, 6, 4).any()


def test_published_annotations(shared: Path) -> None:
    splits = llp.read_splits(shared / "data" / "llp")
    assert {split: len(videos) for split, videos in splits.items()} == {"train": 10000, "val": 649, "test": 1200}
    assert len({video.id for videos in splits.values() for video in videos}) == 11849
    counts = [len(video.labels) for video in splits["train"]]
    assert [counts.count(n) for n in (1, 2, 3)] == [4032, 5879, 89]
    assert splits["train"][0] == llp.Video("BjCEufrlXm4_20_30", (0, 3)) and splits["train"][0].audio is None
    events = {
        split: [sum(len(getattr(video, kind)) for video in splits[split]) for kind in ("audio", "visual")]
        for split in ("val", "test")
    }
    assert events == {"val": [1451, 856], "test": [2663, 1628]}  # all of the rows that belong to a video
    assert len(llp.CATEGORIES) == len(set(llp.CATEGORIES)) == 25


def test_published_anomalies(shared: Path) -> None:
    root = shared / "data" / "llp"
    splits = llp.read_splits(root)
    unmatched = {kind: {name: len(rows) for name, rows in names.items()} for kind, names in splits.unmatched.items()}
    assert unmatched["audio"] == {
        "12eWNawPekw_30_40": 1,
        "17iGUal2M_10_20": 1,
        "19jWnmYnlD8_30_400": 1,
        "7X3oSVoA_90_100": 2,
        "AkAfFL5Q4QA_30_40": 2,
        "Baby_cry_infant_cry": 2,
        "CSWQ_HzQ_10_20": 3,
        "KvIjsmANkxI_10_20`": 1,
        "P7x4FV4lg_570_580": 2,
        "VMTJRpjbE_150_160": 2,
    }
    assert len(unmatched["visual"]) == 7 and set(unmatched["visual"]) < set(unmatched["audio"])
    said = "\n".join(llp.remarks(splits))
    for sentence in (
        "10 names in AVVP_eval_audio.csv (rows) belong to no",
        "KvIjsmANkxI_10_20` (1)",
        "6 rows of AVVP_eval_audio.csv end no later",
        "8DF2PxdT5tE_390_400 9 to 0",
        "8 rows of AVVP_eval_audio.csv stand there before",
        "BYEYNxKvij4_70_80 0 to 4",
        "7 names in AVVP_eval_visual.csv",
        "1 videos name a category more than once: LcFWKgFphXI_20_30",
        "4 videos of split val without audio",
        "70 videos of split val without visual",
        "6 videos of split test without audio",  # one has an empty event only
        "121 videos of split test without visual",
    ):
        assert sentence in said
    assert "rows of AVVP_eval_visual.csv" not in said
    videos = {video.name: video for split in ("val", "test") for video in splits[split]}
    rows = {name: {c for c, *_ in (*video.audio, *video.visual)} for name, video in videos.items()}
    assert sum(set(video.labels) != rows[name] for name, video in videos.items()) == 82
    assert "31 videos of split val whose" in said and "54 videos of split test whose" in said  # empty events left out
    # what the published evaluation makes of them
    assert not llp.target(videos["8DF2PxdT5tE_390_400"].audio, 10, 25)[:, llp.CATEGORIES.index("Cheering")].any()
    assert videos["LcFWKgFphXI_20_30"].weak_label(25).sum() == 1
    assert llp.target(videos["CY5ib3L_Z2Y_330_340"].audio, 10, 25)[:6, llp.CATEGORIES.index("Singing")].sum() == 6
    cat = llp.CATEGORIES.index("Cat")  # second 0 is in the row whose name ends with a backtick
    assert not llp.target(videos["KvIjsmANkxI_10_20"].audio, 10, 25)[0, cat]
    with pytest.warns(UserWarning, match="change no label: 10 names .* 6 rows .* 8 rows .* 7 names .* LcFWKgFphXI"):
        assert LLPDataModule(root).read_annotations() == splits


def test_anomalies_change_no_label_and_are_all_named(copy: Path) -> None:
    before = module(copy).read_annotations()
    name, first = before["val"][0].name, before["val"][0].audio[0]
    audio, visual = copy / "AVVP_eval_audio.csv", copy / "AVVP_eval_visual.csv"
    append(audio, name + "`", 0, 10, "star")
    append(audio, before["train"][0].name, 0, 10, "star")
    append(audio, name, 9, 2, "star")
    append(visual, name, 5, 5, "star")
    append(audio, name, *first[1:], CATEGORIES[first[0]])
    path = copy / "AVVP_test_pd.csv"
    path.write_text(path.read_text().replace("\tdisc,triangle\n", "\tdisc,triangle,disc\n", 1))
    data = module(copy)
    with pytest.warns(UserWarning, match="annotations that change no label") as caught:
        data.setup("fit")
    said = str(next(w.message for w in caught if "change no label" in str(w.message)))
    assert f"2 names in {audio.name} (rows) belong to no validation or test video: {name}` (1), " in said
    for sentence in (
        f"1 rows of {audio.name} end no later than they begin: {name} 9 to 2",
        f"1 rows of {visual.name} end no later than they begin: {name} 5 to 5",
        f"1 rows of {audio.name} stand there before: {name} {first[1]} to {first[2]}",
        "1 videos name a category more than once: llp00700032_0_10",
    ):
        assert sentence in said
    with pytest.warns(UserWarning, match="change no label"):
        data.setup("test")
    clean = module(copy)
    for split in ("val", "test"):
        for sample, video in zip(data.datasets[split], before[split], strict=True):
            for key, expected in clean.annotate(video, np.random.default_rng()).items():
                assert torch.equal(sample[key], expected)


def test_what_is_usual_is_remarked_without_a_warning(copy: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        splits = module(copy).read_annotations()
    assert not llp.ignored(splits)
    expected = []
    for split in ("val", "test"):
        for kind in ("audio", "visual"):
            without = [video.name for video in splits[split] if not getattr(video, kind)]
            if without:
                expected.append(f"{len(without)} videos of split {split} without {kind} events: {', '.join(without)}")
    assert llp.remarks(splits) == expected != []
    path = copy / "AVVP_val_pd.csv"
    path.write_text(path.read_text().replace("\tstar\n", "\tstar,disc\n"))
    assert any(
        "1 videos of split val whose categories are not those of their events: llp00700029_0_10" in line
        for line in llp.remarks(llp.read_splits(copy))
    )


def test_long_lists_are_counted_and_cut(copy: Path) -> None:
    for number in range(12):
        append(copy / "AVVP_eval_audio.csv", f"nobody{number}", 0, 1, "disc")
    (line,) = llp.ignored(llp.read_splits(copy))
    assert line.startswith("12 names in") and line.endswith("nobody9 (1) and 2 more")


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("AVVP_train.csv", "abcdefghijk_0_10", "2 fields"),
        ("AVVP_train.csv", "abcdefghijk_0_10\tdragon", "category 'dragon'"),
        ("AVVP_train.csv", "abcdefghijk_0_10\t", "category ''"),
        ("AVVP_val_pd.csv", "abcdefghij_0_10\tdisc", "<id of 11 characters>_<start>_<end>"),
        ("AVVP_val_pd.csv", "abcdefghijk_0_10`\tdisc", "abcdefghijk_0_10`"),
        ("AVVP_test_pd.csv", "../../etc/p_0_10\tdisc", "filename '../../etc/p_0_10'"),
        ("AVVP_test_pd.csv", "llp00700000_0_10\tdisc", "one row a video; see .*AVVP_train.csv, line 2"),
        ("AVVP_test_pd.csv", "llp00700033_20_30\tdisc", "one row a video; see .*AVVP_test_pd.csv, line 3"),
        ("AVVP_eval_audio.csv", "llp00700032_0_10\t0\t10", "4 fields"),
        ("AVVP_eval_audio.csv", "llp00700032_0_10\t0\t11\tdisc", "0 to 11"),
        ("AVVP_eval_audio.csv", "llp00700032_0_10\t12\t3\tdisc", "12 to 3"),
        ("AVVP_eval_visual.csv", "llp00700032_0_10\t-1\t3\tdisc", "-1 to 3"),
        ("AVVP_eval_visual.csv", "llp00700032_0_10\t0.5\t3\tdisc", "whole seconds from 0 to 10"),
        ("AVVP_eval_visual.csv", "llp00700032_0_10\t0\t3\tdisc,star", "category 'disc,star'"),
    ],
)
def test_malformed_rows_name_their_line(copy: Path, file: str, row: str, message: str) -> None:
    number = len((copy / file).read_text().splitlines()) + 1
    append(copy / file, row)
    with pytest.raises(AnnotationError, match=message) as error:
        module(copy).read_annotations()
    assert f"{file}, line {number}:" in str(error.value)


def test_files_without_header_or_altogether(copy: Path) -> None:
    path = copy / "AVVP_val_pd.csv"
    rows = path.read_text().split("\n", 1)[1]
    path.write_text(rows)
    with pytest.raises(AnnotationError, match="AVVP_val_pd.csv, line 1: .*the header"):
        module(copy).read_annotations()
    path.unlink()
    with pytest.raises(DatasetError, match="AVVP_val_pd.csv: got no such file"):
        module(copy).read_annotations()


def test_line_ends_and_order_do_not_matter(copy: Path) -> None:
    expected = module(copy).read_annotations()
    for name in FILES[:5]:
        header, *rows = (copy / name).read_text().splitlines()
        rows = rows if name in llp.SPLITS.values() else sorted(rows, key=lambda row: row.split("\t")[0], reverse=True)
        (copy / name).write_bytes(b"\xef\xbb\xbf" + "\r\n".join([header, *rows, "", ""]).encode())
    assert module(copy).read_annotations() == expected


def test_times_of_a_name_may_be_fractions(copy: Path) -> None:
    append(copy / "AVVP_train.csv", "AP0061o0Nvk_101.8_111.8", "disc")
    assert module(copy).read_annotations()["train"][-1].id == "AP0061o0Nvk"


def test_categories(copy: Path, tmp_path: Path) -> None:
    """Known without `setup`: from the argument, from categories.txt, else LLP's own."""
    assert module(copy).class_names == CATEGORIES and module(copy).num_classes == 8
    assert module(tmp_path).class_names == llp.CATEGORIES and module(tmp_path / "nowhere").num_classes == 25
    assert module(tmp_path, categories=["a", "b"]).num_classes == 2
    assert module(copy, categories=list(CATEGORIES)).class_names == CATEGORIES
    with pytest.raises(AnnotationError, match="categories: got .*categories.txt"):
        module(copy, categories=list(reversed(CATEGORIES)))
    (copy / "categories.txt").write_text("disc\nstar\ndisc\n")
    with pytest.raises(AnnotationError, match="each once"):
        module(copy)


def features(root: Path, ids: list[str]) -> Path:
    """r2plus1d features that say whose they are."""
    folder = root / "LLP_dataset" / "feats" / "r2plus1d_18"
    folder.mkdir(parents=True)
    for number, clip in enumerate(ids):
        np.save(folder / f"{clip}.npy", np.full((10, 512), number, np.float64) + np.arange(10)[:, None] / 10)
    return folder


def test_video_features(copy: Path) -> None:
    ids = sorted(video.id for videos in llp.read_splits(copy).values() for video in videos)
    folder = features(copy, ids)
    data = module(copy, features=folder)
    assert data.video_dim == 512 and module(copy).video_dim == 0
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        assert batch["video_features"].shape == (4, 10, 512) and batch["video_features"].dtype == torch.float32
        for clip, values in zip(batch["id"], batch["video_features"]):
            expected = ids.index(clip) + torch.arange(10) / 10
            assert torch.allclose(values, expected[:, None].expand(10, 512))
    with pytest.raises(ConfigError, match="your own videos have no r2plus1d features"):
        module(copy, features=folder, predict_root=copy)
    with pytest.raises(DatasetError, match="features: got .*nowhere; expected a folder"):
        module(copy, features=copy / "nowhere").setup("fit")


def test_labels_of_segments_from_other_networks(llp_root: Path, llp_taught: Path, tmp_path: Path) -> None:
    """VALOR's: for training videos alone; what lacks, and what is no label, is named."""
    data = module(llp_root, taught=llp_taught)
    data.setup("fit")
    sample, batch = data.datasets["train"][0], data.example_batch(2)
    for kind in ("audio", "visual"):
        assert torch.equal(sample[f"taught_{kind}"], sample["labels"].expand(10, -1))
        assert batch[f"taught_{kind}"].shape == (2, 10, 8) and f"taught_{kind}" not in data.datasets["val"][0]
    shutil.copytree(llp_taught, tmp_path / "taught")
    first = tmp_path / "taught" / "audio" / f"{sample['id']}.npy"
    np.save(first, np.full((10, 8), 0.5))
    wrong = module(llp_root, taught=tmp_path / "taught")
    wrong.setup("fit")
    with pytest.raises(AnnotationError, match=rf"{sample['id']}\.npy.*0 or 1"):
        wrong.datasets["train"][0]
    np.save(first, np.zeros((9, 8), np.int64))
    with pytest.raises(ClipDecodeError, match=r"int64 \(9, 8\).*numbers \(10, 8\)"):
        wrong.datasets["train"][0]
    first.unlink()
    with pytest.raises(DatasetError, match=f"no labels of 1 training videos, such as {sample['id']}"):
        module(llp_root, taught=tmp_path / "taught").setup("fit")
    with pytest.raises(DatasetError, match="no folder"):
        module(llp_root, taught=tmp_path / "nowhere").setup("fit")


def test_missing_and_damaged_video_features(copy: Path) -> None:
    ids = sorted(video.id for videos in llp.read_splits(copy).values() for video in videos)
    folder = features(copy, ids)
    victim, other = (video.id for video in llp.read_splits(copy)["test"][:2])
    (folder / f"{victim}.npy").unlink()
    with pytest.raises(DatasetError, match=f"1 of 8 clips of split test unusable .{victim}: missing: features"):
        module(copy, features=folder).setup("test")
    data = module(copy, features=folder, missing="skip")
    with pytest.warns(UserWarning, match=f"test: 1 of 8 left out .{victim}: missing: features"):
        data.setup("test")
    assert data.datasets["test"][0]["id"] == other and data.clips()["test"] == {"used": 7, "missing": 1, "corrupt": 0}
    path = folder / f"{other}.npy"
    broken = np.zeros((10, 512), np.float32)
    broken[3, 3] = np.nan
    for values in (np.zeros((10, 511), np.float32), np.zeros((10, 512), np.int64), broken, np.zeros((0,))):
        np.save(path, values)
        with pytest.raises(ClipDecodeError, match=rf"{other}.npy: got .*expected finite .*\(10, 512\)"):
            data.datasets["test"][0]
    np.save(path, np.array([{}], dtype=object))
    with pytest.raises(ClipDecodeError, match="allow_pickle=False"):
        data.datasets["test"][0]
    path.write_bytes(b"")
    with pytest.raises(ClipDecodeError, match=other):
        data.datasets["test"][0]


@pytest.mark.filterwarnings("always:parsing runs without")
def test_parsing_without_features_says_so_once(copy: Path) -> None:
    data = module(copy)
    with pytest.warns(UserWarning, match="without the r2plus1d stream") as caught:
        data.setup("fit")
        data.setup("test")
    assert sum("r2plus1d" in str(warning.message) for warning in caught) == 1
    folder = features(copy, [video.id for videos in llp.read_splits(copy).values() for video in videos])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        module(copy, features=folder).setup("fit")


def test_published_layout(copy: Path) -> None:
    """Frames 00000001.jpg to 00000010.jpg, one a second, as they are; one waveform."""
    (copy / "store").unlink()
    with pytest.raises(DatasetError, match="LLP_dataset/frame: got no such folder"):
        module(copy, layout="folders").setup("test")
    videos = llp.read_splits(copy)["test"]
    for video in videos:
        folder = copy / "LLP_dataset" / "frame" / video.id
        folder.mkdir(parents=True)
        for number in range(1, 11):
            Image.new("RGB", (80, 60), (20 * number,) * 3).save(folder / f"{number:08d}.jpg", quality=95)
        (copy / "LLP_dataset" / "wave").mkdir(exist_ok=True)
        np.save(copy / "LLP_dataset" / "wave" / f"{video.id}.npy", np.linspace(-1, 1, 160000, dtype=np.float32))
    data = module(copy, layout="folders", antialias=False)
    data.setup("test")
    sample = data.datasets["test"][0]
    frames = sample["frames"] / 255
    assert torch.allclose(frames.mean((1, 2, 3)), 20 * torch.arange(1, 11) / 255, atol=0.01)
    assert np.array_equal(sample["audio"].flatten().numpy(), np.linspace(-1, 1, 160000, dtype=np.float32))
    (copy / "LLP_dataset" / "wave" / f"{videos[3].id}.npy").unlink()
    with pytest.raises(DatasetError, match=f"{videos[3].id}: missing: wave"):
        module(copy, layout="folders").setup("test")
    reader = llp.INFO.published.folders(copy, Sampling(size=64, sample_rate=16000))
    assert reader.inspect(videos[0].id) is None and "wave" in reader.inspect(videos[3].id)


def test_verify(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(copy / "AVVP_eval_audio.csv", "nobody", 0, 1, "disc")
    assert verify(copy, "llp")
    out = capsys.readouterr().out
    assert "train         24      24      24        0         0       0       0" in out
    assert all(name in out for name in FILES[:5]) and "1 names in AVVP_eval_audio.csv" in out and "nobody (1)" in out
    append(copy / "AVVP_test_pd.csv", "abcdefghijk_0_10", "disc")
    assert not verify(copy, "llp")
    assert "LLP_dataset/frame/<id>/%08d.jpg" in "\n".join(llp.INFO.published.tree)


def test_synthetic_annotations_follow_the_scenes(llp_root: Path) -> None:
    scenes = {scene["id"]: scene for scene in map(json.loads, (llp_root / "scenes.jsonl").read_text().splitlines())}
    splits = llp.read_splits(llp_root)
    videos = [video for split in splits.values() for video in split]
    assert (
        sorted(scenes)
        == sorted(video.id for video in videos)
        == sorted(path.stem for path in (llp_root / "videos").iterdir())
    )
    for video in videos:
        scene = scenes[video.id]
        spans = {
            kind: [(part["category"], part["start"], part["end"]) for part in scene[key]]
            for kind, key in (("audio", "sounds"), ("visual", "things"))
        }
        assert video.name == f"{video.id}_0_10" and len(video.id) == 11
        assert set(video.labels) == {c for c, *_ in spans["audio"] + spans["visual"]} and 1 <= len(video.labels) <= 3
        if video.audio is not None:
            assert list(video.audio) == spans["audio"] and list(video.visual) == spans["visual"]
    assert not splits.unmatched["audio"] and not splits.unmatched["visual"]
    assert [video.audio is None for video in videos] == [True] * 24 + [False] * 16


def test_synthetic_dataset_is_varied_and_balanced() -> None:
    scenes = [parsing_scene(0, index, Settings(8, 0, 0)) for index in range(400)]
    heard = [{sound.category: (sound.start, sound.end) for sound in scene.sounds} for scene in scenes]
    seen = [{thing.category: (thing.start, thing.end) for thing in scene.things} for scene in scenes]
    both = [(a[c], v[c]) for a, v in zip(heard, seen) for c in a.keys() & v.keys()]
    kinds = [
        len(both),
        sum(len(a.keys() - v.keys()) for a, v in zip(heard, seen)),
        sum(len(v.keys() - a.keys()) for a, v in zip(heard, seen)),
    ]
    assert min(kinds) > 0.28 * sum(kinds) and sum(a != v for a, v in both) > 0.8 * len(both)
    sizes = [len(a.keys() | v.keys()) for a, v in zip(heard, seen)]
    assert min(sizes.count(n) for n in (1, 2, 3)) > 100 and set(sizes) == {1, 2, 3}
    for a, v in zip(heard, seen):
        assert len({c % len(BANDS) for c in a}) == len(a)  # sounds that can be told apart
        assert all(0 <= start < end <= 10 for start, end in (*a.values(), *v.values()))
    occurs = np.zeros(8)
    for a, v in zip(heard, seen):
        occurs[list(a.keys() | v.keys())] += 1
    assert occurs.min() > 0.75 * occurs.mean()


def test_synthetic_dataset_is_the_same_again_and_refuses_another(
    llp_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "again"
    shutil.copytree(llp_root / "videos", root / "videos")
    stamps = {path.name: path.stat().st_mtime_ns for path in (root / "videos").iterdir()}
    synthesize(root, videos=40, seed=7)
    assert "40 clips of 10 s, {'train': 24, 'val': 8, 'test': 8}" in capsys.readouterr().out
    for name in (*FILES, "scenes.jsonl"):
        assert (root / name).read_bytes() == (llp_root / name).read_bytes()
    assert stamps == {path.name: path.stat().st_mtime_ns for path in (root / "videos").iterdir()}  # resumed
    with pytest.raises(DatasetError, match="another synthetic dataset"):
        synthesize(root, videos=40, seed=8)


@pytest.mark.parametrize("options", [{"videos": 39}, {"videos": 100_001}, {"seed": 1000}, {"seed": -1}, {"classes": 9}])
def test_impossible_synthetic_datasets(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        synthesize(tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


# pictures


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def names(figure: Figure) -> list[list[str]]:
    """Categories in the rows of what is heard and of what is seen."""
    return [[label.get_text() for label in axis.get_yticklabels()] for axis in figure.axes[-2:]]


def bars(figure: Figure) -> list[list[tuple[float, float, float, bool, tuple[float, ...]]]]:
    """(from, to, top, hatched, colour) of every bar that is heard and that is seen."""
    found = []
    for axis in figure.axes[-2:]:
        found.append([])
        for bar in axis.collections:
            box = bar.get_paths()[0].get_extents()
            found[-1].append(
                (round(box.x0), round(box.x1), box.y0, bar.get_hatch() is not None, tuple(bar.get_facecolor()[0][:3]))
            )
    return found


def picture(truth: list[llp.Events] | None, prediction: list[llp.Events] | None, **options: object) -> Figure:
    pairs = {
        key: None if pair is None else tuple(llp.target(events, 10, 25).bool() for events in pair)
        for key, pair in (("truth", truth), ("prediction", prediction))
    }
    return parsing_figure(torch.rand(10, 3, 8, 8), torch.rand(10, 50) - 0.5, llp.CATEGORIES, **pairs, **options)


def test_picture_shows_every_event_truth_above_prediction() -> None:
    figure = picture([((0, 0, 4), (0, 6, 10), (22, 2, 9), (5, 1, 5)), ((5, 0, 3),)], [((0, 0, 10),), ((19, 8, 10),)])
    heard, seen = bars(figure)
    assert names(figure) == [["Speech", "Frying_(food)", "Baby_cry_infant_cry"], ["Frying_(food)", "Helicopter"]]
    assert [bar[:2] for bar in heard] == [(0, 4), (6, 10), (0, 10), (1, 5), (2, 9)]
    assert [bar[3] for bar in heard] == [False, False, True, False, False]
    assert 0 < heard[0][2] == heard[1][2] < heard[2][2] < 1 < heard[3][2] < 2 < heard[4][2] < 3
    assert figure.axes[-1].get_ylim() == (2, 0)  # the first line is on top
    assert [bar[:2] + bar[3:4] for bar in seen] == [(0, 3, False), (8, 10, True)]
    assert heard[0][4] == pytest.approx(to_rgb(category_colour(0))) and seen[0][4] == heard[3][4]
    assert [axis.get_ylabel() for axis in figure.axes[-2:]] == ["heard", "seen"]
    assert legend(figure) == ["annotated", "predicted"]


def test_picture_of_nothing_of_padding_and_of_names_in_full() -> None:
    figure = picture([(), ()], [(), ()], title="$a$")
    assert [text.get_text() for axis in figure.axes[-2:] for text in axis.texts] == ["nothing"] * 2
    assert names(figure) == [[], []] and bars(figure) == [[], []] and figure.get_suptitle() == "$a$"
    padded = picture(None, [((21, 0, 10),), ()], start=20.0, valid=torch.arange(10) < 6)
    assert [axis.images[0].get_alpha() for axis in padded.axes[5:7]] == [1.0, 0.25] and legend(padded) == ["predicted"]
    assert [label.get_text() for label in padded.axes[10].get_xticklabels()][::5] == ["20 s", "25 s", "30 s"]
    everything = [tuple((category, 0, 10) for category in range(25))] * 2
    full = picture(everything, everything)
    canvas = FigureCanvasAgg(full)
    canvas.draw()
    renderer = canvas.get_renderer()
    for axis in full.axes[-2:]:
        boxes = [label.get_window_extent(renderer) for label in axis.get_yticklabels()]
        assert len(boxes) == 25 and min(box.x0 for box in boxes) >= 0  # in the picture
        assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))  # apart
    assert len(picture(None, None).axes) == 11
