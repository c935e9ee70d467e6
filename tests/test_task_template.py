"""What all tasks do alike: the table of predictions and its times, losses of prompt methods, sources without
encoders."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from lightning import Trainer
from media_files import write_video
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avprompt.cli import run
from avprompt.data_modules import AVEDataModule
from avprompt.encoders.base import BlockSpec
from avprompt.errors import ArgumentError, ShapeError
from avprompt.features import AVFeatures, FeatureSource
from avprompt.media.decode import Sampling
from avprompt.tasks import AVAR, AVE, AVQA, AVS, AVVP, AVELinear, AVQAGrounding, Contrastive

SEGMENTS, VISUAL, AUDIO = 3, 8, 6
NAMES = ("bell", "dog", "violin")


class Stored(FeatureSource):
    """Features that stand in the batch, and what a prompt method may add to them."""

    visual_dim, audio_dim, batch_keys = VISUAL, AUDIO, ("visual_features", "audio_features")

    def __init__(self, losses: dict[str, float] | None = None) -> None:
        super().__init__()
        self.scale, self.given, self.seen = nn.Parameter(torch.ones(())), losses or {}, []

    def forward(self, batch: dict[str, Any], prompted: bool = True, maps: bool = False) -> AVFeatures:
        visual, audio = batch["visual_features"] * self.scale, batch["audio_features"]
        self.seen.append(len(visual))
        found = {"visual": torch.ones(*visual.shape[:2], 2, 2)} if maps else {}
        return AVFeatures(
            visual.mean(2),
            audio,
            visual,
            audio[:, :, None],
            [visual],
            found,
            losses={name: value * self.scale for name, value in self.given.items()},
        )


class OnAGrid(Stored):
    """Its tokens lie on a grid of 2 x 2 behind one class token."""

    @property
    def visual_spec(self) -> BlockSpec:
        return BlockSpec(VISUAL, (2, 2), 0, prefix=1)

    @property
    def pyramid_specs(self) -> list[BlockSpec]:
        return [self.visual_spec]


def batch(clips: int = 2, **sampling: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    event = torch.zeros(clips, SEGMENTS, len(NAMES) + 1)
    event[..., 0] = 1
    return {
        "id": [f"clip{number}" for number in range(clips)],
        "valid": torch.ones(clips, SEGMENTS, dtype=torch.bool),
        "visual_features": torch.randn(clips, SEGMENTS, 5, VISUAL, generator=generator),
        "audio_features": torch.randn(clips, SEGMENTS, AUDIO, generator=generator),
        "event": event,
        "label": torch.zeros(clips, dtype=torch.long),
        "labels": event[:, 0, :-1],
        "times": torch.from_numpy(Sampling(SEGMENTS, **sampling).times(60.0)).expand(clips, -1, -1),
    }


# --- sources without encoders


def test_every_task_reads_stored_features() -> None:
    data, source = batch(), OnAGrid()
    asked = {"question": torch.tensor([[1, 2], [3, 0]]), "question_text": ["How many?", "Which?"]}
    expected = {
        AVE(source, len(NAMES)): {"is_event": (2, 3), "event": (2, 3), "gate": (2, 3), "video_scores": (2, 3)},
        AVELinear(source, len(NAMES)): {"logits": (2, 3, 4)},
        AVAR(source, len(NAMES)): {"logits": (2, 3)},
        AVVP(source, len(NAMES), SEGMENTS, 0): {"audio_prob": (2, 3, 3), "video_prob": (2, 3)},
        AVS(source, 16, decoder_width=8): {"masks": (2, 3, 16, 16)},
        AVQA(source, 5, 9): {"answer": (2, 5)},
    }
    for task, shapes in expected.items():
        outputs = task.eval()({**data, **asked})
        assert {name: tuple(outputs[name].shape) for name in shapes} == shapes, type(task).__name__
        assert "method_losses" not in outputs and not any(name.startswith("map") for name in outputs)
        with_maps = task({**data, **asked}, maps=True)
        assert "map_visual" in task.postprocess(with_maps), type(task).__name__
        rows = task.prediction_rows(with_maps, {**data, **asked}, (*NAMES, "four", "five"))
        assert len(rows) == 2 * (SEGMENTS if task.row_per_segment else 1)
        assert {"id", "start", "end", "decoded", "path"} <= rows[0].keys()


def test_a_source_says_what_it_lacks() -> None:
    for build in (lambda: AVQA(Stored()), lambda: AVQAGrounding(Stored()), lambda: AVS(Stored())):
        with pytest.raises(ArgumentError, match=r"backbone: got Stored; expected a source of .*Use AVPromptBackbone"):
            build()
    with pytest.raises(ArgumentError, match="visual embeddings in the space of texts"):
        Stored().log_scale("visual")
    grounding = AVQAGrounding(OnAGrid())
    with pytest.raises(ArgumentError, match="features of frames"):
        grounding({**batch(), "negative_frames": torch.zeros(2, SEGMENTS, 3, 4, 4)})


def test_stored_features_of_one_video_are_read_once() -> None:
    data, source = batch(), OnAGrid()
    data = {
        **data,
        "id": ["a", "a"],
        "visual_features": data["visual_features"][[0, 0]],
        "audio_features": data["audio_features"][[0, 0]],
        "question": torch.tensor([[1, 2], [3, 0]]),
    }
    task = AVQA(source, 5, 9).eval()
    assert task(data, maps=True)["map_visual"].shape == (2, SEGMENTS, 2, 2) and source.seen == [1]


# --- the table of predictions


@pytest.mark.parametrize(
    ("sampling", "times"),
    [
        ({}, [(60, 61), (61, 62), (62, 63)]),
        ({"stride": 6.0}, [(60, 61), (66, 67), (72, 73)]),
        ({"seconds": 2.0}, [(60, 62), (62, 64), (64, 66)]),
        ({"seconds": 2.0, "stride": 0.5}, [(60, 62), (60.5, 62.5), (61, 63)]),
    ],
)
def test_times_of_rows_follow_the_sampling(sampling: dict[str, float], times: list[tuple[float, float]]) -> None:
    data = batch(**sampling)
    segments, clips = AVELinear(Stored(), len(NAMES)), AVAR(Stored(), len(NAMES))
    rows = segments.prediction_rows(segments(data), data, NAMES)
    assert [(row["id"], row["start"], row["end"]) for row in rows] == [
        (f"clip{clip}", *span) for clip in range(2) for span in times
    ]
    rows = clips.prediction_rows(clips(data), data, NAMES)
    assert [(row["start"], row["end"]) for row in rows] == [(times[0][0], times[-1][1])] * 2


def test_rows_need_times() -> None:
    task, data = AVELinear(Stored(), len(NAMES)), batch()
    for times in (None, data["times"][..., 0]):
        with pytest.raises(ShapeError, match=r"times: got .* expected \(2, 3, 2\).*Sampling.times"):
            task.prediction_rows(task(data), {**data, "times": times}, NAMES)


@pytest.mark.parametrize(
    ("experiment", "fixture", "spans"),
    [
        ("avqa_grounding_dgsct", "avqa_root", [(t, t + 1) for t in range(10)]),
        ("quickstart", "ave_root", [(t, t + 1) for t in range(10)]),
    ],
)
def test_times_of_a_dataset(
    experiment: str, fixture: str, spans: list[tuple[int, int]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from test_experiments import on_a_laptop

    flags = on_a_laptop(ROOT / "experiments" / f"{experiment}.yaml", request, tmp_path)
    run(
        [
            "predict",
            *flags,
            "--trainer.fast_dev_run",
            "false",
            "--trainer.limit_predict_batches",
            "1",
            "--trainer.logger",
            str(ROOT / "lightning_configs" / "logger" / "tensorboard.yaml"),
            "--trainer.logger.save_dir",
            str(tmp_path),
            "--ckpt_path",
            "none",
        ]
    )
    (path,) = tmp_path.rglob("predictions.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["start"]), float(row["end"])) for row in rows[:10]] == spans
    assert experiment != "avqa_grounding_dgsct" or 0 <= float(rows[0]["match_probability"]) <= 1


def test_times_of_windows_of_a_long_video(tmp_path: Path) -> None:
    """Every sixth second of a video; the second window begins where the first one ends."""
    write_video(tmp_path / "minute.mp4", seconds=40)
    data = AVEDataModule(tmp_path, predict_root=tmp_path, segments=3, stride=6.0)
    data.setup("predict")
    first, second, third = next(iter(DataLoader(data.datasets["predict"], batch_size=3)))["times"].tolist()
    assert first == [[0, 1], [6, 7], [12, 13]] and second == [[18, 19], [24, 25], [30, 31]] and third[0] == [36, 37]


# --- losses of prompt methods


def step(task: AVELinear, data: dict[str, Any]) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient of the source, and what is logged."""
    torch.manual_seed(0)
    logged: dict[str, float] = {}
    task.log_dict = lambda values, **_: logged.update({name: float(value) for name, value in values.items()})
    task.log = lambda name, value, **_: logged.update({name: float(value)})
    task.zero_grad()
    loss = task.train().training_step(data, 0)
    loss.backward()
    logged |= {name: float(value) for name, value in task.epoch_means.compute().items()}
    return float(loss.detach()), task.backbone.scale.grad.clone(), logged


def build(losses: dict[str, float], **weights: float) -> AVELinear:
    torch.manual_seed(0)
    return AVELinear(
        Stored(losses), len(NAMES), method_losses={name.replace("_at_", "@"): value for name, value in weights.items()}
    )


def test_losses_of_the_method_are_weighed_and_logged() -> None:
    data = batch()
    plain, gradient, _ = step(build({}), data)
    given = {"balance@0": 2.0, "balance@1": 3.0, "orthogonal": 5.0}
    for weights, added in (
        ({}, 10.0),
        ({"balance": 0.5}, 7.5),
        ({"balance": 0.5, "balance_at_1": 2.0}, 12.0),
        ({"balance": 0.0, "orthogonal": 0.1}, 0.5),
    ):
        loss, moved, logged = step(build(given, **weights), data)
        assert loss == pytest.approx(plain + added) and float(moved - gradient) == pytest.approx(added, rel=1e-4)
        assert (
            logged.items()
            >= {
                "train_balance@0": 2.0,
                "train_balance@1": 3.0,
                "train_balance": 5.0,
                "train_orthogonal": 5.0,
                "train_loss_step": pytest.approx(loss),
            }.items()
        )


def test_weight_zero_is_bit_equal_to_no_loss() -> None:
    data = batch()
    none, zero = step(build({}), data), step(build({"balance@0": 2.0, "other": float("inf")}, balance=0, other=0), data)
    assert none[0] == zero[0] and torch.equal(none[1], zero[1])


def test_outputs_hold_the_losses_of_the_method_apart() -> None:
    outputs = build({"balance@0": 2.0})(batch())
    assert set(outputs) == {"logits", "method_losses"} and float(outputs["method_losses"]["balance@0"]) == 2.0


def test_wrong_weights() -> None:
    data = batch()
    with pytest.raises(ArgumentError, match=r"method_losses: got \['balanced'\]; .*some of \['balance', 'balance@0'\]"):
        step(build({"balance@0": 2.0}, balanced=1.0), data)
    with pytest.raises(ArgumentError, match="method_losses: got .*'balance'"):
        step(build({}, balance=1.0), data)
    with pytest.raises(ArgumentError, match="method_losses.balance: got nan"):
        build({}, balance=float("nan"))
    with pytest.raises(ArgumentError, match=r"losses: got \['segment'\]"):
        step(build({"segment@0": 1.0}), data)
    task = build({}, balance=1.0).eval()  # in evaluation a method may leave its losses out
    task.total_loss(task(data), data)


def test_weights_come_from_a_configuration(ave_root: Path, tmp_path: Path) -> None:
    """A weight for what the method does not have is told at the first batch."""
    with pytest.raises(ArgumentError, match="method_losses: got .*'balance'"):
        run(
            [
                "fit",
                "--config",
                str(ROOT / "experiments" / "quickstart.yaml"),
                "--data.root",
                str(ave_root),
                "--trainer.fast_dev_run",
                "true",
                "--trainer.enable_progress_bar",
                "false",
                "--model.method_losses",
                "{balance: 0.5}",
            ]
        )


# --- metrics


def test_metrics_are_computed_and_reset_by_the_template() -> None:
    task, data = AVELinear(Stored(), len(NAMES)), batch()
    right = {"logits": data["event"]}
    wrong = {"logits": data["event"].flip(-1)}
    task.update_metrics(right, data)
    task.update_metrics(wrong, data)
    assert task.compute_metrics() == {"accuracy": 0.5}
    assert task.compute_metrics() == {}  # nothing was counted since
    task.update_metrics(right, data)
    assert task.compute_metrics() == {"accuracy": 1.0}
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (found,) = trainer.test(task, DataLoader([data], batch_size=None), verbose=False)
    assert found.keys() == {"test_loss", "test_accuracy"}


def test_metrics_in_percent_become_shares() -> None:
    task = AVQA(OnAGrid(), 5, 9)
    task.update_metrics(
        {"answer": torch.eye(5)[:2]}, {"answer": torch.tensor([0, 0]), "question_type": ['["Audio", "Counting"]'] * 2}
    )
    assert task.compute_metrics() == {"AQ": 0.5, "average": 0.5, "Audio_Counting": 0.5}
    assert task.counts == {"AQ": 2, "average": 2, "Audio Counting": 2}


def test_contrastive_needs_class_names() -> None:
    with pytest.raises(ArgumentError, match="no branch|adapters"):
        Contrastive(Stored())


def test_any_module_with_the_three_serves_as_a_backbone() -> None:
    """`forward(batch) -> AVFeatures`, `visual_dim` and `audio_dim` are all that a task needs of it."""

    class Mine(torch.nn.Module):
        visual_dim, audio_dim = 8, 4

        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(6, 8)

        def forward(self, batch: dict) -> AVFeatures:
            visual = self.project(batch["frames"])
            return AVFeatures(visual, batch["audio"], visual.unsqueeze(2), batch["audio"].unsqueeze(2), [])

    task = AVE(Mine(), num_classes=3)
    out = task({"frames": torch.rand(2, 10, 6), "audio": torch.rand(2, 10, 4)})
    out["is_event"].sum().backward()
    assert out["event"].shape == (2, 3) and task.backbone.module.project.weight.grad.abs().sum() > 0
    assert task.configure_optimizers().param_groups[1]["params"]
    with pytest.raises(ArgumentError, match="visual_dim"):
        AVE(torch.nn.Linear(2, 2), num_classes=3)


@pytest.mark.parametrize(
    "build",
    [
        lambda: AVELinear(OnAGrid(), len(NAMES)),
        lambda: AVAR(OnAGrid(), len(NAMES)),
        lambda: AVE(OnAGrid(), len(NAMES)),
        lambda: AVQAGrounding(OnAGrid()),
    ],
)
def test_scores_that_are_nan_are_not_counted(build: Any) -> None:
    """The largest of several scores would be NaN, and its place a prediction like any other."""
    task, data = build(), batch()
    data["audio_features"][1] = torch.nan
    if isinstance(task, AVQAGrounding):
        task.backbone.plain_visual_tokens = lambda frames: torch.zeros(len(frames), SEGMENTS, 5, VISUAL)
        data["negative_frames"] = torch.zeros(2, SEGMENTS, 3, 4, 4)
    task.log = lambda *args, **options: None
    with pytest.raises(ArgumentError, match="got NaN for clip1; expected scores"):
        task.eval().validation_step(data, 0)


def test_few_shot_scores_that_are_nan_are_not_counted() -> None:
    from avprompt import AVPromptBackbone
    from avprompt.encoders import TinyCLAP, TinyCLIP
    from avprompt.methods import RandomEmbeddings

    task = Contrastive(
        AVPromptBackbone(TinyCLIP("none", projection=True), TinyCLAP("none")),
        RandomEmbeddings(64),
        RandomEmbeddings(64),
        NAMES,
        visual_scale=100.0,
        level="video",
        objective="class",
    ).eval()
    data = {
        "id": ["quiet", "broken"],
        "frames": torch.zeros(2, 2, 3, 64, 64),
        "audio": torch.zeros(2, 2, 16000),
        "label": torch.zeros(2, dtype=torch.long),
    }
    data["audio"][1, 0, 7] = torch.nan
    with pytest.raises(ArgumentError, match="got NaN for broken; expected scores"):
        task.validation_step(data, 0)
