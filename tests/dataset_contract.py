"""What every data module promises, whatever its dataset: a test class inherits this and says how to build it."""

from __future__ import annotations

import json
import shutil
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from matplotlib.figure import Figure
from media_files import write_video
from torch import Tensor

from avprompt.data_modules import AVDataModule
from avprompt.errors import ArgumentError, ClipDecodeError, DatasetError


class Recorder(LightningModule):
    """Notes the ids of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.ids: dict[str, list[list[str]]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        self.ids["train"].append(batch["id"])
        return self.weight * batch["audio"].mean()

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.ids["val"].append(batch["id"])

    def test_step(self, batch: dict, batch_idx: int) -> None:
        self.ids["test"].append(batch["id"])

    def predict_step(self, batch: dict, batch_idx: int) -> None:
        self.ids["predict"].append(batch["id"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**options: Any) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "max_epochs": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **options,
        }
    )


class DatasetContract:
    """Shared tests over a dataset, by default a prepared one whose media lie in a store.

    A subclass gives the fixture `root` (a folder that tests may change: annotations of its own, `store` a copy), the
    numbers of items by split, and `module`; where its media lie elsewhere, also `remove` and `damage`.
    """

    #: items of train, val, test
    counts: dict[str, int]
    #: key of a batch -> shape of one sample, for what the annotations add
    labels: dict[str, tuple[int, ...]]
    #: those of them that one's own videos have too
    own: frozenset[str] = frozenset()
    segments, size, sample_rate = 10, 64, 16000

    def predicted(self) -> dict[str, Tensor]:
        """What a task decides about one clip."""
        return {"prediction": torch.zeros(self.segments, dtype=torch.long)}

    def module(self, root: Path, **options: object) -> AVDataModule:
        """A data module of batch size 4 over `root`, with these arguments besides."""
        raise AssertionError("a subclass builds it")

    def remove(self, root: Path, clip: str) -> None:
        """Take a clip's media away."""
        shutil.rmtree(root / "store" / "clips" / clip)

    def damage(self, root: Path, clip: str) -> None:
        """Leave a clip's files in their places, and make them unreadable."""
        (root / "store" / "clips" / clip / "audio.npy").write_bytes(b"gone")

    def victims(self, root: Path, split: str, count: int = 1) -> list[str]:
        """The first clips of a split."""
        return [item.id for item in self.module(root).read_annotations()[split][:count]]

    def test_fewer_training_clips(self, root: Path) -> None:
        """Drawn by the seed, the fewer among the more, all items of a clip; other splits stay whole."""

        def drawn(count: int | None, seed: int = 0) -> tuple[list[str], AVDataModule]:
            data = self.module(root, train_clips=count, seed=seed)
            data.setup("fit")
            return data.datasets["train"].ids, data

        every, few, more = (drawn(count)[0] for count in (None, 2, 4))
        assert len(set(few)) == 2 and len(set(more)) == 4 and set(few) < set(more) < set(every)
        assert more == [clip for clip in every if clip in more] and more != drawn(4, seed=1)[0]
        data = drawn(2)[1]
        assert len(data.datasets["val"]) == self.counts["val"]
        assert data.clips()["train"] == {"used": len(few), "missing": 0, "corrupt": 0}
        with pytest.raises(DatasetError, match="at least 10000"):
            drawn(10_000)
        with pytest.raises(ArgumentError, match="train_clips"):
            drawn(0)

    def test_batches(self, root: Path) -> None:
        data = self.module(root)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert isinstance(batch["id"], list) and len(batch["id"]) == 4 and isinstance(batch["id"][0], str)
        assert batch["frames"].shape == (4, self.segments, 3, self.size, self.size)
        assert batch["audio"].shape == (4, self.segments, self.sample_rate) and batch["audio"].abs().max() <= 1
        assert batch["frames"].dtype == torch.uint8 and batch["audio"].dtype == torch.float32
        assert batch["frames"].is_contiguous() and batch["frames"].max() > 50
        assert batch["valid"].shape == (4, self.segments) and batch["valid"].dtype == torch.bool
        assert batch["times"].shape == (4, self.segments, 2) and batch["times"].dtype == torch.float32
        assert {
            key: tuple(value.shape[1:])
            for key, value in batch.items()
            if key not in ("id", "frames", "audio", "valid", "times") and isinstance(value, Tensor)
        } == self.labels

    def test_normalisation_is_the_encoders(self, root: Path) -> None:
        with pytest.raises(TypeError, match="unexpected keyword argument 'mean'"):
            self.module(root, mean=(0.5,) * 3)

    def test_example_batch_is_like_a_training_batch(self, root: Path) -> None:
        """The same keys, shapes and dtypes, but for strings and paths, which describe real clips."""
        data = self.module(root)
        example = data.example_batch(4)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        kinds = [
            {key: (value.dtype, tuple(value.shape)) for key, value in found.items() if isinstance(value, Tensor)}
            for found in (example, batch)
        ]
        assert kinds[0] == {key: kinds[1][key] for key in kinds[0]} and len(example["id"]) == 4
        missing = set(batch) - set(example) - self.own
        assert not {key for key in missing if isinstance(batch[key], Tensor)}
        assert self.module(root, segments=3).example_batch(1)["frames"].shape[1] == 3

    def test_described_once(self, root: Path) -> None:
        data = self.module(root)
        data.setup("test")
        assert data.manifest()["dataset"] == data.info.name and data.manifest()["unit"] == data.info.unit
        assert [item.id for item in data.info.published.read(root)["test"]] != []

    def test_classes_are_known_before_any_data_is_read(self, root: Path) -> None:
        data = self.module(root)
        assert data.num_classes == len(data.class_names) and not data.datasets

    def test_every_item_once(self, root: Path) -> None:
        data = self.module(root)
        data.setup("fit")
        data.setup("test")
        loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
        for split, loader in loaders.items():
            ids = [clip for batch in loader for clip in batch["id"]]
            assert sorted(ids) == sorted(item.id for item in data.datasets[split].items)
            assert len(ids) == self.counts[split]

    @pytest.mark.parametrize(
        ("stage", "splits"), [("fit", {"train", "val"}), ("validate", {"val"}), ("test", {"test"})]
    )
    def test_each_stage_reads_its_splits_only(self, root: Path, stage: str, splits: set[str]) -> None:
        data = self.module(root)
        data.setup(stage)
        assert set(data.datasets) == splits

    def test_workers_change_nothing(self, root: Path) -> None:
        batches = []
        for workers in (0, 2):
            data = self.module(root, num_workers=workers)
            data.setup("fit")
            batches.append(list(data.train_dataloader()))
        for one, two in zip(*batches, strict=True):
            assert one["id"] == two["id"] and torch.equal(one["frames"], two["frames"])

    def test_chance_depends_on_seed_epoch_and_place_alone(self, root: Path) -> None:
        data = self.module(root)
        data.setup("fit")
        data.setup("test")
        drawn: dict[str, list[list[float]]] = {}
        for split in ("train", "test"):
            dataset = data.datasets[split]
            dataset.annotate = lambda item, rng: {"chance": rng.random()}
            loader = data.train_dataloader() if split == "train" else data.test_dataloader()
            drawn[split] = []
            for epoch in (0, 1, 0):
                loader.order.set_epoch(epoch)
                drawn[split].append(sorted(torch.cat([batch["chance"] for batch in loader]).tolist()))
        for split, (first, second, again) in drawn.items():
            assert first == again and len(set(first)) == len(first)
            assert (first == second) is (split == "test")

    def test_manifest_and_counts(self, root: Path) -> None:
        data = self.module(root)
        data.setup("fit")
        assert data.clips() == {
            split: {"used": self.counts[split], "missing": 0, "corrupt": 0} for split in ("train", "val")
        }
        manifest = json.loads(json.dumps(data.manifest()))
        assert len(manifest["ids"]["train"]) == self.counts["train"] and manifest["clips"] == data.clips()

    def test_plot(self, root: Path) -> None:
        data = self.module(root)
        data.setup("test")
        assert isinstance(data.plot(data.datasets["test"][0]), Figure)

    def test_missing_media(self, root: Path) -> None:
        (victim,) = self.victims(root, "train")
        self.remove(root, victim)
        with pytest.raises(DatasetError, match=f"(?s)split train unusable .{victim}.*missing: skip"):
            self.module(root).setup("fit")
        data = self.module(root, missing="skip")
        with pytest.warns(UserWarning, match="train: .* left out"):
            data.setup("fit")
        assert data.clips()["train"]["missing"] == self.counts["train"] - data.clips()["train"]["used"] > 0
        assert victim not in [item.id for item in data.datasets["train"].items]
        assert victim in data.manifest()["left_out"]["train"]

    def test_corrupt_clips_are_substituted_in_training_only(self, root: Path) -> None:
        for split in ("train", "test"):
            self.damage(root, self.victims(root, split)[0])
        data = self.module(root)
        data.setup("fit")
        with pytest.raises(ClipDecodeError):
            data.datasets["train"][0]
        data = self.module(root, corrupt="substitute")
        data.setup("fit")
        with pytest.warns(UserWarning, match="takes the place of"):
            sample = data.datasets["train"][0]
        other = data.datasets["train"][1]
        assert sample["id"] == other["id"] and not sample["valid"].any() and other["valid"].any()
        for key in self.labels:
            assert torch.equal(sample[key], other[key])
        assert data.clips()["train"]["corrupt"] == 1
        data.setup("test")
        with pytest.raises(ClipDecodeError):
            data.datasets["test"][0]

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.filterwarnings("ignore:another clip takes the place")
    def test_too_many_corrupt_clips_end_the_run(self, root: Path, workers: int) -> None:
        for clip in self.victims(root, "train", 4):
            self.damage(root, clip)
        data = self.module(root, corrupt="substitute", num_workers=workers)
        data.setup("fit")
        with pytest.raises(ClipDecodeError, match=f"of {self.counts['train']} clips that do not decode"):
            list(data.train_dataloader())

    def test_validation_on_the_test_split_is_a_switch(self, root: Path) -> None:
        data = self.module(root, validation_split="test")
        data.setup("fit")
        assert set(data.datasets) == {"train", "test"}
        assert [c for b in data.val_dataloader() for c in b["id"]] == self.victims(root, "test", 99)

    def test_in_a_trainer(self, root: Path) -> None:
        model, data = Recorder(), self.module(root, eval_batch_size=3)
        run = trainer(max_epochs=2)
        run.fit(model, data)
        run.test(model, data)
        run.predict(model, data)
        per_epoch = -(-self.counts["train"] // 4)
        assert len(model.ids["train"]) == 2 * per_epoch
        assert model.ids["train"][:per_epoch] != model.ids["train"][per_epoch:]
        assert model.ids["test"] == model.ids["predict"] and len(model.ids["test"][0]) == 3
        assert sum(model.ids["test"], []) == self.victims(root, "test", 99)

    def test_overfitting_repeats_its_batches(self, root: Path) -> None:
        model = Recorder()
        trainer(max_epochs=3, overfit_batches=1, limit_val_batches=0).fit(model, self.module(root))
        assert model.ids["train"] == 3 * [self.victims(root, "train", 4)]

    def test_own_videos(self, root: Path, tmp_path: Path) -> None:
        folder = tmp_path / "own"
        folder.mkdir()
        write_video(folder / "long.mkv", seconds=23)
        write_video(folder / "-brief.mp4", seconds=4)
        write_video(folder / "mute.mp4", tone=None)
        write_video(folder / "later.mp4", delay=3)
        write_video(folder / "breaks.mp4", seconds=40, movflags="faststart")
        content = (folder / "breaks.mp4").read_bytes()
        (folder / "breaks.mp4").write_bytes(content[: len(content) * 6 // 10])
        data = self.module(root, predict_root=folder, segments=10)
        with pytest.warns(UserWarning, match="left out: .*mute.mp4.*no audio"):
            data.setup("predict")
        with pytest.warns(UserWarning, match="not decoded from second 30"):
            samples = {sample["id"]: sample for sample in (data.datasets["predict"][k] for k in range(10))}
        assert (
            list(samples)
            == data.datasets["predict"].ids
            == [
                "-brief",
                "breaks",
                "breaks@10",
                "breaks@20",
                "breaks@30",
                "later",
                "later@10",
                "long",
                "long@10",
                "long@20",
            ]
        )
        assert set(self.labels) & set(samples["long"]) == self.own
        valid = {clip: int(sample["valid"].sum()) for clip, sample in samples.items()}
        assert {clip: count for clip, count in valid.items() if "breaks" not in clip} == {
            "-brief": 4,
            "later": 7,
            "later@10": 0,
            "long": 10,
            "long@10": 10,
            "long@20": 3,
        }
        assert samples["breaks"]["valid"].all() and not samples["breaks@30"]["valid"].any()
        assert data.clips() == {"predict": {"used": 10, "missing": 0, "corrupt": 1}}
        assert "no audio" in data.manifest()["left_out"]["predict"]["mute"]
        with pytest.warns(UserWarning, match="not decoded"):
            batches = list(data.predict_dataloader())
        assert batches[0]["start"].tolist() == [0, 0, 10, 20] and batches[0]["path"][1].endswith("breaks.mp4")
        assert batches[0]["times"][2].tolist() == [[10.0 + t, 11.0 + t] for t in range(10)]
        drawn = data.plot({**samples["long@10"], **self.predicted()})
        assert any(text.get_text() == "10 s" for axis in drawn.axes for text in axis.get_xticklabels())

    def test_own_videos_of_which_none_can_be_used(self, root: Path, tmp_path: Path) -> None:
        folder = tmp_path / "own"
        folder.mkdir()
        (folder / "broken.mp4").write_bytes(b"nothing")
        data = self.module(root, predict_root=folder)
        with pytest.warns(UserWarning, match="left out: .*broken.mp4"), pytest.raises(DatasetError, match="no usable"):
            data.setup("predict")

    @pytest.mark.parametrize("setting", [{"image_size": 96}, {"sample_rate": 32000}, {"antialias": False}])
    def test_store_of_other_settings_is_refused(self, root: Path, setting: dict[str, object]) -> None:
        with pytest.raises(DatasetError, match="image_size, sample_rate"):
            self.module(root, **setting).setup("fit")

    @pytest.mark.parametrize(
        "setting",
        [
            {"batch_size": 0},
            {"eval_batch_size": -1},
            {"num_workers": -1},
            {"seed": -1},
            {"segments": 0},
            {"image_size": 0},
        ],
    )
    def test_impossible_numbers(self, root: Path, setting: dict[str, object]) -> None:
        with pytest.raises(ArgumentError, match="got (0|-1); expected"):
            self.module(root, **setting)

    def test_loaders_can_be_sent_to_spawned_workers(self, root: Path) -> None:
        """macOS and Windows start workers anew: what a loader hands them is pickled, in the midst of a run too."""
        data = self.module(root, predict_root=None)
        run = trainer()
        run.fit(Recorder(), data)
        data.setup("test")
        for loader in (
            data.train_dataloader(),
            data.val_dataloader(),
            data.test_dataloader(),
            data.predict_dataloader(),
        ):
            sent = ForkingPickler.loads(ForkingPickler.dumps((loader.dataset, loader.collate_fn, loader.batch_sampler)))
            assert len(sent[0]) == len(loader.dataset)
            one, two = loader.dataset[0], sent[0][0]
            assert one.keys() == two.keys() and all(
                torch.equal(one[key], two[key]) if isinstance(one[key], Tensor) else one[key] == two[key] for key in one
            )
