"""Features in the published files' formats: read as they are, and each fault of a file is named."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import feature_files
import h5py
import numpy as np
import pytest
import torch

from avprompt.backbone import PublishedFeatures
from avprompt.compatibility import check_run
from avprompt.data_modules import AVEDataModule, AVSBenchDataModule, LLPDataModule, MUSICAVQADataModule
from avprompt.datasets.ave import H5Features, read_rows
from avprompt.errors import ArgumentError, ClipDecodeError, ConfigError, DatasetError
from avprompt.media.feature_files import h5_rows
from avprompt.tasks import AVELinear

CATEGORIES = ("Church bell", "Bark", "Truck")
LINES = ["Bark&one&good&2&5", "Truck&two&good&0&10", "Church bell&one&good&0&0", "Bark&three&good&1&2"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows of three clips, one of them twice, and the published files."""
    root = tmp_path_factory.mktemp("ave")
    (root / "categories.txt").write_text("\n".join(CATEGORIES) + "\n")
    (root / "Annotations.txt").write_text("\n".join(["Category&VideoID&Quality&StartTime&EndTime", *LINES]) + "\n")
    for name, lines in (("trainSet", LINES[:2]), ("valSet", LINES[2:3]), ("testSet", LINES[3:])):
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    feature_files.write_ave(root, root / "features")
    return root


def module(root: Path, **options: object) -> AVEDataModule:
    return AVEDataModule(root, published_features=root / "features", batch_size=2, **options)


@pytest.mark.filterwarnings("ignore:training clips that are also evaluated on")
def test_a_row_of_the_annotations_is_a_row_of_the_files(small: Path) -> None:
    data = module(small)
    for stage in ("fit", "test"):
        data.setup(stage)
    with (
        h5py.File(small / "features" / "visual_feature.h5") as visual,
        h5py.File(small / "features" / "audio_feature.h5") as audio,
    ):
        for split, row in (("val", 2), ("test", 3)):
            sample = data.datasets[split][0]
            assert sample["visual_features"].shape == (10, 49, 512) and sample["audio_features"].dtype == torch.float32
            assert np.array_equal(sample["audio_features"].numpy(), audio["avadataset"][row].astype(np.float32))
            theirs = torch.from_numpy(visual["avadataset"][row]).reshape(10, 49, 512)
            assert (sample["visual_features"] - theirs).abs().max() <= 2**-11 * theirs.max()  # float16
    batch = next(iter(data.train_dataloader()))
    assert batch["category"].sort().values.tolist() == [1, 2] and "frames" not in batch and batch["valid"].all()
    features = PublishedFeatures()(batch)
    assert features.visual_tokens.shape == (2, 10, 49, 512) and features.visual.shape == (2, 10, 512)
    kinds = [
        {key: (value.shape, value.dtype) for key, value in found.items() if torch.is_tensor(value)}
        for found in (data.example_batch(2), batch)
    ]
    assert kinds[0] == kinds[1]
    assert data.plot(data.datasets["test"][0]) is not None  # without media, and without an error
    again = pickle.loads(pickle.dumps(data.datasets["test"].features))  # as a spawned worker gets it
    assert torch.equal(again.read_item(data.datasets["test"].items[0])["audio_features"], sample["audio_features"])


def test_files_are_converted_once(small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small / "features", tmp_path / "features")
    for leftover in folder.glob("*.npy"):
        leftover.unlink()
    rows, where = read_rows(small / "Annotations.txt", CATEGORIES), folder / "audio_feature.float32.npy"
    H5Features(folder, small, CATEGORIES)
    made = where.stat().st_mtime_ns
    H5Features(folder, small, CATEGORIES)
    assert where.stat().st_mtime_ns == made
    feature_files.write_h5(folder / "audio_feature.h5", (4, 10, 128), seed=5)  # another file: converted again
    before = H5Features(folder, small, CATEGORIES).read_item(rows[0])["audio_features"]
    assert where.stat().st_mtime_ns != made
    for path in folder.glob("*.h5"):
        path.unlink()  # the maps alone serve
    assert torch.equal(H5Features(folder, small, CATEGORIES).read_item(rows[0])["audio_features"], before)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("absent", "audio.h5: got no such file"),
        ("text", "audio.h5: got .*expected HDF5"),
        ("key", r"audio.h5: got the keys \['features'\]; expected avadataset"),
        ("link", "audio.h5: got the keys"),
        ("count", "audio.h5: got 3 rows; expected 4, one for each row of the annotations"),
        ("shape", r"avadataset: float64 \(4, 10, 64\); expected avadataset \(4, 10, 128\)"),
        ("kind", "avadataset: int64"),
        ("nan", "NaN, infinity or too large a number in row 2"),
        ("range", "too large a number in row 1; expected finite numbers that float16 can hold"),
        ("map", r"audio.float16.npy: got float16 \(2, 10, 128\)"),
    ],
)
def test_each_fault_of_a_file_is_named(damage: str, message: str, tmp_path: Path) -> None:
    path, shape = tmp_path / "audio.h5", (4, 10, {"shape": 64}.get(damage, 128))
    values = np.ones(({"count": 3}.get(damage, 4), *shape[1:]))
    values[2, 0, 0] = {"nan": np.nan}.get(damage, 1)
    values[1, 0, 0] = {"range": 1e6}.get(damage, 1)
    if damage == "text":
        path.write_text("Not found")
    elif damage == "map":
        np.save(tmp_path / "audio.float16.npy", np.ones((2, 10, 128), np.float16))
    elif damage != "absent":
        with h5py.File(path, "w") as file:
            if damage == "link":
                file["avadataset"] = h5py.ExternalLink("/etc/hostname", "/")
            else:
                values = values.astype(int) if damage == "kind" else values
                file["features" if damage == "key" else "avadataset"] = values
    with pytest.raises(DatasetError, match=message):
        h5_rows(path, "avadataset", 4, (10, 128), np.float16)
    assert not list(tmp_path.glob(".*"))


def test_further_clips_without_an_event(small: Path, tmp_path: Path) -> None:
    data = module(small, background_clips=True)
    with pytest.raises(DatasetError, match="visual_feature_noisy.h5"):
        data.setup("fit")
    folder = small / "features"
    for name, shape in (("visual", (178, 10, 7, 7, 512)), ("audio", (178, 10, 128))):
        kind = {"visual": np.float16, "audio": np.float32}[name]  # the maps alone: the HDF5 file has 357 MB
        made = np.lib.format.open_memmap(folder / f"{name}_feature_noisy.{np.dtype(kind).name}.npy", "w+", kind, shape)
        made[177] = 3
    with pytest.warns(UserWarning, match="also evaluated on"):
        data.setup("fit")
    train = data.datasets["train"]
    assert len(train) == 2 + 178 and len(data.datasets["val"]) == 1
    last = train[len(train) - 1]
    assert last["category"] == 3 and last["event"][:, 3].all() and last["event"].sum() == 10
    assert (last["visual_features"] == 3).all() and last["id"] == "background_177"
    with pytest.raises(ArgumentError, match="background_clips"):
        AVEDataModule(small, background_clips=True)


def test_folders_of_valor(llp_root: Path, tmp_path: Path) -> None:
    """Features of CLIP and CLAP in the place of ResNet-152's and VGGish's, for a backbone that says so."""
    ids = [video.id for video in LLPDataModule(llp_root, features=None).read_annotations()["test"]]
    shapes = {"CLIP/features": (10, 768), "CLAP/features": (64, 768), "feats/r2plus1d_18": (10, 512)}
    for name, shape in shapes.items():
        (tmp_path / name).mkdir(parents=True)
        for clip_id in ids:
            np.save(tmp_path / name / f"{clip_id}.npy", np.full(shape, 2, np.float32))
    with pytest.raises(DatasetError, match="vggish|res152"):
        LLPDataModule(llp_root, published_features=tmp_path).setup("test")
    data = LLPDataModule(llp_root, published_features=tmp_path, published_by="VALOR")
    data.setup("test")
    sample, example = data.datasets["test"][0], data.example_batch(1)
    for name, width in (("visual", 768), ("audio", 768), ("video", 512)):
        values = sample[f"{name}_features"]
        assert values.shape == (10, width) == example[f"{name}_features"].shape[1:]
        assert torch.allclose(values, torch.full((10, width), 2.0))
    features = PublishedFeatures("CLIP-L/14", "CLAP")(
        {name: value[None] for name, value in sample.items() if "_f" in name}
    )
    assert features.visual.shape == features.audio.shape == (1, 10, 768)
    with pytest.raises(ArgumentError, match="^published_by:"):
        LLPDataModule(llp_root, published_by="JoMoLD")


def test_folders_of_video_parsing(llp_root: Path, tmp_path: Path) -> None:
    plain = LLPDataModule(llp_root, features=None)
    ids = {split: [video.id for video in videos] for split, videos in plain.read_annotations().items()}
    folder = feature_files.write_llp(tmp_path, ids["test"])
    data = LLPDataModule(llp_root, published_features=folder, batch_size=2)
    data.setup("test")
    sample = data.datasets["test"][0]
    assert {name: tuple(sample[f"{name}_features"].shape) for name in ("visual", "audio", "video")} == {
        "visual": (10, 2048),
        "audio": (10, 128),
        "video": (10, 512),
    }
    frames = np.load(folder / "res152" / f"{sample['id']}.npy")
    assert np.allclose(sample["visual_features"][3], frames[24:32].mean(0), rtol=1e-5)  # the seconds' eight frames
    assert data.video_dim == 512
    wrong = folder / "vggish" / f"{sample['id']}.npy"
    for values, message in (
        (np.zeros((9, 128), np.float32), r"float32 \(9, 128\); expected finite.*\(10, 128\)"),
        (np.full((10, 128), np.nan, np.float32), "NaN or infinity"),
        (np.zeros((10, 128), int), "int64"),
        (np.array([{}] * 3), "Python objects"),
    ):
        np.save(wrong, values, allow_pickle=True)
        with pytest.raises(ClipDecodeError, match=f"{wrong.name}: got .*{message}"):
            data.datasets["test"][0]
    wrong.unlink()
    again = LLPDataModule(llp_root, published_features=folder)
    with pytest.raises(DatasetError, match=f"1 of 8 clips of split test unusable .*{sample['id']}: missing: vggish"):
        again.setup("test")
    shutil.rmtree(folder / "res152")
    with pytest.raises(DatasetError, match="res152: got no folder"):
        LLPDataModule(llp_root, published_features=folder).setup("test")
    with pytest.raises(ConfigError, match="one of them"):
        LLPDataModule(llp_root, published_features=folder, features=folder / "r2plus1d_18")


def test_folders_of_question_answering(avqa_root: Path, tmp_path: Path) -> None:
    plain = MUSICAVQADataModule(avqa_root)
    ids = sorted({question.id for question in plain.read_annotations()["train"]})[:3]
    folder = feature_files.write_music_avqa(tmp_path, ids)
    data = MUSICAVQADataModule(avqa_root, published_features=folder, negatives="other_video")
    items = [question for question in plain.read_annotations()["train"] if question.id in ids]
    data.read_annotations = lambda: {"train": items, "val": items, "test": items}
    data.setup("fit")
    sample = data.datasets["train"][0]
    grids = {clip: np.load(folder / "res18_14x14" / f"{clip}.npy") for clip in ids}
    chosen = grids[sample["id"]][::6].reshape(10, 512, 196).transpose(0, 2, 1)
    assert np.array_equal(sample["visual_features"], chosen) and sample["audio_features"].shape == (10, 128)
    others = torch.cat(
        [
            torch.from_numpy(grids[clip][::6].reshape(10, 512, 196).transpose(0, 2, 1).copy())
            for clip in ids
            if clip != sample["id"]
        ]
    )
    for frame in sample["negative_features"]:
        assert (others == frame).all(2).all(1).any()  # one of another video's ten
    assert len({float(frame.max()) for frame in sample["negative_features"]}) > 1


def test_what_does_not_fit_is_refused(small: Path) -> None:
    with pytest.raises(ArgumentError, match="segments: got 5; expected 10"):
        module(small, segments=5)
    with pytest.raises(DatasetError, match="published_features: got .*expected a folder"):
        AVEDataModule(small, published_features=small / "nowhere").setup("test")
    for more in (
        {"augment": "randaugment"},
        {"mix_audio": 0.5},
        {"predict_root": small},
        {"feature_cache": small},
        {"corrupt": "substitute"},
    ):
        with pytest.raises(ArgumentError, match="feature"):
            module(small, **more)
    with pytest.raises(ArgumentError, match="published_features: .*none"):
        AVSBenchDataModule(small, "s4", published_features=small)
    check_run(AVELinear(PublishedFeatures(), 3), module(small))
    for backbone, data, message in (
        (PublishedFeatures(), AVEDataModule(small), "--data.published_features: got nothing"),
        (PublishedFeatures("ResNet-152"), module(small), "--model.backbone: .*VGG-19.*ResNet-152"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_run(AVELinear(backbone, 3), data)
