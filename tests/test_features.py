"""Pictures of features, frequency maps and gates: what they show is what the network did."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from small import SAMPLES, SEGMENTS, SmallHTSAT, SmallSwin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avprompt import AVPromptBackbone
from avprompt.backbone import PublishedFeatures
from avprompt.callbacks import feature_pictures
from avprompt.cli import lightning_cli, parts_of, run
from avprompt.errors import ArgumentError, ConfigError
from avprompt.methods import LAVISH, FineTuning
from avprompt.plots import features

QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")
PROMPTS = "--model.backbone.prompts"


def flags(root: Path, out: Path, *more: str) -> list[str]:
    return [
        "--config",
        QUICKSTART,
        "--data.root",
        str(root),
        "--trainer.logger.save_dir",
        str(out),
        "--trainer.enable_progress_bar",
        "false",
        *more,
    ]


@pytest.fixture(scope="module")
def drawn(ave_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, feature_pictures.FeaturePictures]:
    """Run folder and callback after four clips, two of them drawn."""
    out = tmp_path_factory.mktemp("visualize")
    cli = lightning_cli()(
        [
            "predict",
            *flags(
                ave_root,
                out,
                "--data.eval_batch_size",
                "4",
                "--trainer.limit_predict_batches",
                "1",
                "--trainer.callbacks+=avprompt.callbacks.feature_pictures.FeaturePictures",
                "--trainer.callbacks.max_clips=2",
                "--ckpt_path",
                "none",
            ),
        ]
    )
    callback = next(one for one in cli.trainer.callbacks if isinstance(one, feature_pictures.FeaturePictures))
    return out / "quickstart" / "version_0", callback


def test_a_band_is_found_again_in_the_folded_map() -> None:
    """Attention to one band of a folded spectrogram is attention to that band, at every second alike."""
    encoder = SmallHTSAT().eval()
    bands, width = encoder.spec_size // encoder.freq_ratio, encoder.spec_size * encoder.freq_ratio
    for band in (0, 5, bands - 1):
        mel = torch.zeros(SEGMENTS, 1, width, bands)
        mel[..., band] = 1
        square = encoder.fold(mel)[:, 0].unflatten(0, (1, SEGMENTS))
        found = feature_pictures.frequency_map(encoder, square)
        assert found.shape == (1, SEGMENTS, bands, feature_pictures.COLUMNS)
        assert torch.equal(found[0].mean((0, 2)).argmax(), torch.tensor(band))
        assert torch.allclose(found[0, :, band], torch.ones(SEGMENTS, feature_pictures.COLUMNS))
        assert float(found.sum()) == pytest.approx(SEGMENTS * feature_pictures.COLUMNS)


def test_a_moment_is_found_again_in_the_folded_map() -> None:
    """A moment of every repetition of the segment is that moment of the segment."""
    encoder = SmallHTSAT().eval()
    encoder.repeat = 4
    bands, width = encoder.spec_size // encoder.freq_ratio, encoder.spec_size * encoder.freq_ratio
    period = width // encoder.repeat
    mel = torch.zeros(SEGMENTS, 1, width, bands)
    for repetition in range(encoder.repeat):
        mel[:, :, repetition * period + period // 2 : (repetition + 1) * period] = 1  # its second half
    found = feature_pictures.frequency_map(encoder, encoder.fold(mel)[:, 0].unflatten(0, (1, SEGMENTS)))
    half = feature_pictures.COLUMNS // 2
    assert float(found[..., :half].max()) == 0 and float(found[..., half:].min()) == 1


def test_spectrogram_has_low_bands_first() -> None:
    encoder = SmallHTSAT().eval()
    noise, time = 0.01 * torch.randn(1, SEGMENTS, SAMPLES), torch.arange(SAMPLES) / 16000
    quiet, loudest = feature_pictures.spectrogram(encoder, noise), []
    assert quiet.shape[:3] == (1, SEGMENTS, 16)
    for hertz in (1000, 2500, 6000):
        found = feature_pictures.spectrogram(encoder, noise + 0.5 * torch.sin(2 * torch.pi * hertz * time))
        loudest.append(int((found - quiet).mean((0, 1, 3)).argmax()))
    assert loudest == sorted(set(loudest))


def test_events_of_each_kind_of_data() -> None:
    event = torch.zeros(2, 3, 5)
    event[0, 1, 2] = event[1, :, 4] = 1  # the last column is background
    found = feature_pictures.events({"event": event})
    assert found["visual"].nonzero().tolist() == [[0, 1, 2]] and found["audio"].shape == (2, 3, 4)
    both = feature_pictures.events({"audio_target": event, "visual_target": 1 - event})
    assert torch.equal(both["audio"], ~both["visual"])
    label = feature_pictures.events({"label": torch.tensor([1, 0]), "valid": torch.ones(2, 3)})
    assert label["audio"][0].tolist() == [[False, True]] * 3
    assert feature_pictures.events({"masks": event}) is None


def test_silhouette_and_embedding_tell_clusters_from_noise() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 8) * 5, 8, axis=0).astype(np.float32)
    labels, points = [0] * 8 + [1] * 8 + [2] * 8, centres + 0.1 * rng.standard_normal((24, 8)).astype(np.float32)
    assert features.silhouette(points, labels) > 0.9 and features.silhouette(rng.standard_normal((24, 8)), labels) < 0.1
    assert features.silhouette(points, [0] * 24) is None and features.silhouette(points, list(range(24))) is None
    flat = features.embed(points, 0)
    assert flat.shape == (24, 2) and np.array_equal(flat, features.embed(points, 0))
    within = np.linalg.norm(flat[0] - flat[1:8], axis=1).max()
    assert within < np.linalg.norm(flat[0] - flat[8:], axis=1).min()


def test_files_and_tensorboard(drawn: tuple) -> None:
    folder = drawn[0]
    place = folder / "features"
    names = {path.name for path in place.iterdir()}
    assert names == {"tsne.png", "classes.png", "clips", "events.csv", "silhouette.json"}
    assert len(list((place / "clips").glob("*.png"))) == 2
    scores = json.loads((place / "silhouette.json").read_text())
    assert set(scores) == {f"{kind}_{name}" for kind in ("frozen", "prompted") for name in ("visual", "audio")}
    with (place / "events.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len({row["id"] for row in rows}) == 16  # a category a clip: 2 modalities, with and without
    board = EventAccumulator(str(folder))
    board.Reload()
    images = set(board.Tags()["images"])
    assert {"features/tsne", "features/classes"} <= images and len(images) == 4


def test_points_maps_and_gates_are_the_networks(drawn: tuple, ave_root: Path) -> None:
    """Frozen and prompted features of each event's seconds, its frequency map and its gates, computed here again."""
    callback = drawn[1]
    torch.manual_seed(0)
    model, data = parts_of([*flags(ave_root, drawn[0])[:4], "--data.eval_batch_size", "4"])
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    with torch.no_grad():
        model.eval()
        found = {"frozen": model.backbone(batch, prompted=False), "prompted": model.backbone(batch, maps=True)}
        gate = model.head.audio(found["prompted"].audio)[2].squeeze(-1)
    maps = feature_pictures.frequency_map(model.backbone.audio, found["prompted"].maps["audio"])
    for clip, event in enumerate(batch["event"]):
        inside, category = event[:, -1] == 0, int(event.sum(0)[:-1].argmax())
        for (kind, name), points in callback.points.items():
            clip_id, label, point = points[clip]
            assert (clip_id, label) == (batch["id"][clip], category)
            assert torch.allclose(point, getattr(found[kind], name)[clip][inside].mean(0), atol=1e-5)
        assert torch.allclose(callback.listened[category][0], maps[clip][inside].mean(0), atol=1e-6)
        within, without = callback.gated[category]["from sound"]
        assert within == pytest.approx(gate[clip][inside].tolist(), abs=1e-5)
        assert without == pytest.approx(gate[clip][~inside].tolist(), abs=1e-5)


def test_clip_figure_draws_the_gates_it_is_given() -> None:
    frames, gate = torch.rand(3, 3, 8, 8), torch.tensor([0.1, 0.9, 0.4])
    truth = torch.zeros(3, 2, dtype=torch.bool)
    truth[1:, 1] = True
    figure = features.clip_features_figure(
        frames, {"from sound": gate}, ["a", "b"], {"event": truth}, torch.rand(3, 16, 10), None, torch.rand(3, 16, 4)
    )
    stairs = [patch for axis in figure.axes for patch in axis.patches if hasattr(patch, "get_data")]
    assert stairs[0].get_data().values.tolist() == pytest.approx(gate.tolist())
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == [
        "spectrogram\nmel band",
        "listens here\nmel band",
        "gates",
    ]
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == ["b"]


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (PublishedFeatures, "model.backbone: got PublishedFeatures; expected a backbone with a prompt method"),
        (lambda: AVPromptBackbone(SmallSwin(), SmallHTSAT(), FineTuning("norms", last=1)), "FineTuning, which trains"),
        (
            lambda: AVPromptBackbone(
                SmallSwin(), SmallHTSAT(), LAVISH(reduction=4, prompt_map="linear", train_norms=True)
            ),
            "LAVISH, which trains",
        ),
    ],
)
def test_backbones_without_frozen_features_beside_are_refused(backbone: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        feature_pictures.FeaturePictures().on_predict_start(None, SimpleNamespace(backbone=backbone()))


def test_errors(ave_root: Path, avqa_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NoPrompts"):
        run(
            [
                "visualize",
                *flags(
                    ave_root, tmp_path, "--features", "--ckpt_path", "none", f"{PROMPTS}=avprompt.methods.NoPrompts"
                ),
            ]
        )
    with pytest.raises(ConfigError, match="MUSICAVQADataModule"):
        run(
            [
                "visualize",
                "--config",
                str(ROOT / "experiments" / "avqa_quickstart.yaml"),
                "--data.root",
                str(avqa_root),
                "--trainer.logger.save_dir",
                str(tmp_path),
                "--ckpt_path",
                "none",
                "--features",
            ]
        )
    with pytest.raises(ArgumentError, match="max_clips"):
        feature_pictures.FeaturePictures(max_clips=-1)
