"""Outcomes: the rows of scored units, and that the metrics of a run follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.aggregation import MeanMetric

from avprompt.callbacks import OutcomeWriter
from avprompt.cli import run
from avprompt.errors import DatasetError
from avprompt.media.decode import Sampling
from avprompt.metrics import AVEAccuracy, AVSFScore, AVSJaccard
from avprompt.metrics.avqa import TYPES, AVQAAccuracy
from avprompt.reports.outcomes import clip_scores, metric_columns, read_outcomes
from avprompt.tasks import AVE, AVQA, AVS, AVQAGrounding, Contrastive

T = 4


class Fixed:
    """Outputs that come with the batch, in place of a network."""

    def __init__(self, **metrics: nn.Module) -> None:
        LightningModule.__init__(self)
        self.metrics = nn.ModuleDict(metrics)
        self.backbone, self.method_losses, self.gather = nn.Identity(), {}, False
        from avprompt.tasks.base import EpochMeans

        self.epoch_means, self.evaluation_means = EpochMeans(), EpochMeans()

    def forward(self, batch: dict[str, Any], maps: bool = False) -> dict[str, Tensor]:
        return batch["outputs"]

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"none": torch.zeros(())}


class Data(LightningDataModule):
    def __init__(self, batches: list[dict[str, Any]], class_names: str) -> None:
        super().__init__()
        self.batches, self.class_names = batches, class_names

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)


def batch(ids: list[str], outputs: dict[str, Tensor], **labels: Any) -> dict[str, Any]:
    return {
        "id": ids,
        "outputs": outputs,
        "valid": torch.ones(len(ids), T, dtype=torch.bool),
        "times": torch.from_numpy(Sampling(T).times()).repeat(len(ids), 1, 1),
        **labels,
    }


def check(task: Any, batches: list[dict[str, Any]], folder: Path, names: str = "abcdefg") -> Any:
    """Test, and see that each metric is the mean of its column."""
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[OutcomeWriter()],
        enable_progress_bar=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    (found,) = trainer.test(task, Data(batches, names), verbose=False)
    table = read_outcomes(next(folder.rglob("outcomes.csv")))
    metrics = {name.removeprefix("test_"): value for name, value in found.items() if name != "test_loss"}
    assert set(metric_columns(table)) == set(metrics)
    assert {name: clip_scores(table, name).value for name in metrics} == pytest.approx(metrics, abs=1e-6)
    return table


def one_hot(rows: list[list[int]], classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(rows), classes).float()


class FixedAVE(Fixed, AVE):
    pass


@pytest.mark.parametrize("protocol", ["exact", "released"])
def test_ave(protocol: str, tmp_path: Path) -> None:
    """By the released protocol the clip of a small batch weighs more."""

    def part(ids: list[str], right: list[list[int]]) -> dict[str, Any]:
        gate = torch.tensor(right).float() * 2 - 1  # every segment has event 1
        return batch(
            ids,
            {"is_event": gate, "event": torch.tensor([[0.0, 3.0]]).repeat(len(ids), 1)},
            event=one_hot([[1] * T] * len(ids), 3),
        )

    table = check(
        FixedAVE(accuracy=AVEAccuracy(protocol)),
        [part(["x", "y"], [[1, 1, 0, 0], [1, 1, 1, 1]]), part(["007"], [[0, 0, 0, 1]])],
        tmp_path,
        "ab",
    )
    assert list(table["id"]) == ["x"] * T + ["y"] * T + ["007"] * T and list(table["start"][:2]) == ["0.0", "1.0"]
    assert list(table["predicted"][:3]) == ["b", "b", "background"] and set(table["annotated"]) == {"b"}
    scores = clip_scores(table, "accuracy")
    assert scores.ids == ("007", "x", "y")
    assert scores.value == pytest.approx(7 / 12 if protocol == "exact" else (6 / 8 + 1 / 4) / 2)


class FixedAVS(Fixed, AVS):
    pass


@pytest.mark.parametrize("protocol", ["dataset", "released"])
@pytest.mark.parametrize("silent", [False, True])
def test_avs(protocol: str, silent: bool, tmp_path: Path) -> None:
    """Frames in which nothing sounds, frames without annotation, a last group that is smaller."""
    generator, batches = torch.Generator().manual_seed(3), []
    for place in range(3):
        masks = (torch.rand(2, T, 6, 6, generator=generator) > 0.6).float()
        masks[0, :3] = 0
        if silent or place == 1:
            masks[:] = 0
        annotated = torch.ones(2, T, dtype=torch.bool)
        annotated[1, 3] = place != 0
        batches.append(
            batch(
                [f"{place}a", f"{place}b"],
                {"masks": torch.randn(2, T, 6, 6, generator=generator)},
                masks=masks,
                annotated=annotated,
            )
        )
    table = check(FixedAVS(miou=AVSJaccard(), fscore=AVSFScore(protocol, frames_per_group=5)), batches, tmp_path)
    assert len(table) == 3 * 2 * T - 1 and table["miou"].between(0, 1).all()


class FixedAVQA(Fixed, AVQA):
    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        return batch  # there is no backbone whose videos could be compared


def test_avqa(tmp_path: Path) -> None:
    """A question counts under its type, its group and the average; kinds that nobody asks have no column."""
    generator = torch.Generator().manual_seed(0)
    kinds = [TYPES[place] for place in (0, 3, 3, 8, 8, 8)]
    batches = [
        batch(
            ["v", "v", "w"],
            {"answer": torch.randn(3, 7, generator=generator)},
            answer=torch.randint(2, (3,), generator=generator),
            question_text=["?"] * 3,
            question_id=torch.arange(3),
            question_type=[json.dumps(kind) for kind in part],
        )
        for part in (kinds[:3], kinds[3:])
    ]
    table = check(FixedAVQA(accuracy=AVQAAccuracy()), batches, tmp_path)
    assert metric_columns(table) == [
        "AQ",
        "VQ",
        "AVQ",
        "average",
        "Audio_Counting",
        "Visual_Location",
        "Audio-Visual_Temporal",
    ]
    assert list(table["AQ"].notna()) == [True] + [False] * 5 and table["average"].notna().all()
    assert clip_scores(table, "average").weights.tolist() == [4, 2]  # questions of v and w


class FixedGrounding(Fixed, AVQAGrounding):
    pass


def test_grounding(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = {name: torch.randn(2 * T, 2, generator=generator) for name in ("match_positive", "match_negative")}
    table = check(FixedGrounding(accuracy=MeanMetric()), [batch(["a", "b"], outputs)], tmp_path)
    assert set(table["accuracy"]) <= {0, 0.5, 1} and len(table) == 2 * T


class FixedContrastive(Fixed, Contrastive):
    def __init__(self, level: str) -> None:
        super().__init__(
            **{
                name: MeanMetric()
                for name in ("accuracy", "visual_accuracy", "audio_accuracy", "video_accuracy", "any_match")
            }
        )
        self.head = nn.Module()
        self.head.branches = ("visual", "audio")
        self.class_names, self.num_texts, self.level, self.row_per_segment = "ab", 2, level, level == "segment"


def test_contrastive(tmp_path: Path) -> None:
    """A clip's own accuracy stands in each of its rows, none where it has no event."""
    generator, shape = torch.Generator().manual_seed(0), (3, T, 2)
    outputs = {f"{side}logits": torch.randn(shape, generator=generator) for side in ("", "visual_", "audio_")}
    event = one_hot([[0, 1, 2, 2], [2] * 4, [1] * 4], 3)
    table = check(FixedContrastive("segment"), [batch(list("xyz"), outputs, event=event)], tmp_path / "segments")
    assert table["video_accuracy"].isna().tolist() == [False] * 4 + [True] * 4 + [False] * 4
    labels = torch.tensor([[1, 0], [1, 1], [0, 1]])
    mean = {name: value.mean(1) for name, value in outputs.items()}
    check(
        FixedContrastive("video"),
        [batch(list("xyz"), mean, label=torch.tensor([0, 1, 1]), labels=labels, accepted=labels.float())],
        tmp_path / "clips",
    )


def test_training_keeps_the_best_epoch(ave_root: Path, tmp_path: Path) -> None:
    """The validation split as the checkpoint that is selected sees it; a run that resumes elsewhere takes it along."""
    given = [
        "fit",
        "--config",
        str(ROOT / "experiments" / "quickstart.yaml"),
        "--data.root",
        str(ave_root),
        "--trainer.limit_train_batches",
        "1",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.enable_model_summary",
        "false",
        "--trainer.logger.save_dir",
        str(tmp_path),
        "--model.prompt_lr",
        "1e-30",
        "--model.optimizer.lr",
        "1e-30",
    ]
    run([*given, "--trainer.max_epochs", "1", "--trainer.logger.version", "a"])
    first = next(tmp_path.rglob("a/outcomes.csv"))
    metrics = json.loads(first.with_name("result.json").read_text())["metrics"]
    table = read_outcomes(first)
    assert clip_scores(table, "accuracy").value == pytest.approx(metrics["best_val_accuracy"], abs=1e-6)
    manifest = json.loads(first.with_name("manifest.json").read_text())
    assert list(dict.fromkeys(table["id"])) == manifest["ids"]["val"]
    # nothing is learned: the second epoch is no better, and writes nothing
    run(
        [
            *given,
            "--trainer.max_epochs",
            "2",
            "--trainer.logger.version",
            "b",
            "--ckpt_path",
            str(first.parent / "checkpoints" / "last.ckpt"),
        ]
    )
    assert next(tmp_path.rglob("b/outcomes.csv")).read_bytes() == first.read_bytes()


def test_files_that_are_no_outcomes(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        read_outcomes(tmp_path / "outcomes.csv")
    (tmp_path / "outcomes.csv").write_text("id,score\na,1\n")
    with pytest.raises(DatasetError, match="the columns"):
        read_outcomes(tmp_path / "outcomes.csv")
    (tmp_path / "outcomes.csv").write_text("id,decoded,accuracy\na,True,good\n")
    with pytest.raises(DatasetError, match="good"):
        read_outcomes(tmp_path / "outcomes.csv")


def test_best_is_the_checkpoints(tmp_path: Path) -> None:
    """Strictly better, in the task's direction; a first NaN counts, a later one never."""
    writer, written = OutcomeWriter(), []
    writer._write = lambda *_: written.append(True)  # type: ignore[method-assign]
    task = SimpleNamespace(monitor="m", mode="max")
    for value in (float("nan"), 0.5, 0.5, 0.4, float("nan"), 0.6):
        before = len(written)
        trainer = SimpleNamespace(callback_metrics={"m": value}, state=SimpleNamespace(fn="fit"), sanity_checking=False)
        writer.on_validation_end(trainer, task)
        written[before:] = written[before:] and [value]
    assert written[1:] == [0.5, 0.6] and len(written) == 3
