"""Data that do not give the encoders what they take are refused before work starts, by every command."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from avprompt.cli import parts_of, run
from avprompt.compatibility import check_input, check_run
from avprompt.encoders.base import AudioInput, VisualInput
from avprompt.errors import AVPromptError, ConfigError
from avprompt.media.decode import Sampling

QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")
SAMPLING = Sampling(size=64, sample_rate=16000)
VISUAL, AUDIO = VisualInput(64, 64, (0.5,) * 3, (0.5,) * 3), AudioInput(16000)


def test_what_fits_passes() -> None:
    check_input(SAMPLING, VISUAL, AUDIO)
    check_input(SAMPLING, None, None)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"size": 96}, "--data.image_size: got 96 x 96 pixels; expected 64 x 64 pixels"),
        ({"frames": 8}, "--data.frames_per_segment: got 8; expected 1, which the visual encoder takes"),
        ({"sample_rate": 8000}, "--data.sample_rate: got 8000 Hz; expected 16000 Hz"),
        ({"seconds": 0.5}, r"--model.backbone.audio: got segments of 1 s \(16000 samples\); expected 0.5 s \(8000"),
    ],
)
def test_what_does_not_fit_names_flag_and_both_values(sampling: dict[str, float], message: str) -> None:
    given = Sampling(**{"size": 64, "sample_rate": 16000, **sampling})
    with pytest.raises(ConfigError, match=message):
        check_input(given, VISUAL, AUDIO)


def test_no_data_fit_an_oblong_encoder() -> None:
    with pytest.raises(ConfigError, match="expected 64 x 96 pixels.*Frames of the data are square"):
        check_input(SAMPLING, VisualInput(64, 96, (0.5,) * 3, (0.5,) * 3), AUDIO)


def test_features_without_encoders_are_not_compared() -> None:
    task = SimpleNamespace(backbone=SimpleNamespace(visual_dim=8, audio_dim=8), resizes_frames=False)
    check_run(
        task, SimpleNamespace(sampling=Sampling(size=7, sample_rate=7), feature_cache=None, published_features=None)
    )


def test_a_source_of_ones_own_may_read_published_features() -> None:
    names = SimpleNamespace(visual="VGG-19", audio="VGGish")
    data = SimpleNamespace(
        sampling=SAMPLING, feature_cache=None, published_features=Path("features"), info=SimpleNamespace(features=names)
    )
    check_run(SimpleNamespace(backbone=SimpleNamespace(visual_dim=8, audio_dim=8), resizes_frames=False), data)
    for side in ("visual", "audio"):
        encoders = SimpleNamespace(**{side: SimpleNamespace(input=VISUAL if side == "visual" else AUDIO)})
        with pytest.raises(ConfigError, match="--model.backbone: .*expected encoders, the backbone's"):
            check_run(SimpleNamespace(backbone=encoders, resizes_frames=False), data)


def test_a_task_that_resizes_frames_takes_any_size() -> None:
    """The released AVS networks read 224 x 224 frames into 192 x 192; the sound is compared all the same."""
    experiment = ["--config", str(ROOT / "experiments" / "avs_s4_quickstart.yaml")]
    _, data = parts_of([*experiment, "--data.image_size", "80"], meta=True)
    assert data.sampling.size == 80
    with pytest.raises(ConfigError, match="--data.sample_rate"):
        parts_of([*experiment, "--data.sample_rate", "8000"], meta=True)


@pytest.mark.parametrize(
    ("command", "flag", "value", "wanted"),
    [
        ("fit", "sample_rate", "8000", "16000 Hz"),
        ("fit", "image_size", "96", "64 x 64"),
        *(
            (command, "sample_rate", "8000", "16000 Hz")
            for command in ("validate", "test", "predict", "visualize", "params", "data stats")
        ),
    ],
)
def test_every_command_compares(command: str, flag: str, value: str, wanted: str, tmp_path: Path) -> None:
    """The folder of the data is empty: the comparison comes before anything looks into it."""
    with pytest.raises(ConfigError, match=f"--data.{flag}: got {value}.*expected {wanted}"):
        run(
            [
                *command.split(),
                "--config",
                QUICKSTART,
                "--data.root",
                str(tmp_path),
                f"--data.{flag}",
                value,
                *(["--ckpt_path", "none"] if command in ("validate", "test", "predict", "visualize") else []),
            ]
        )


def test_efficiency_counts_without_running(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["efficiency", "quickstart", "ave_linear_probe_quickstart", "--device", "meta", "--against"]
    run([*command, "quickstart"])
    header, _, first, second = (line.strip("| ").split("|") for line in capsys.readouterr().out.splitlines()[:4])
    names = [name.strip() for name in header]
    assert names[-3:] == ["trained, ratio", "GFLOPs forward a clip, ratio", "kept for backward a clip, ratio"]
    assert [float(cell) for cell in first[-3:]] == [1, 1, 1]
    assert float(second[-1]) < 0.1 < 0.5 < float(second[-2])  # frozen encoders compute, and keep nothing
    with pytest.raises(ConfigError, match="against"):
        run([*command, "ave_dgsct"])


def test_efficiency_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("{base: quickstart, data.sample_rate: 8000}")
    with pytest.raises(AVPromptError):
        run(["efficiency", str(path), "--steps", "1"])
    assert "--data.sample_rate: got 8000 Hz; expected 16000 Hz" in capsys.readouterr().out


def test_normalisation_is_no_option_of_the_data() -> None:
    with pytest.raises(ConfigError, match="--data.mean: got no such argument"):
        run(["fit", "--config", QUICKSTART, "--data.mean", "[0.5, 0.5, 0.5]"])
