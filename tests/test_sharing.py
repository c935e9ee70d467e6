"""From Python: a loaded task is the trained one, what it says of videos, and the folder that is shared."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import save_file

import avprompt
from avprompt.cli import lightning_cli, run
from avprompt.errors import ArgumentError, AVPromptError, CheckpointError, ConfigError, DatasetError, WriteError
from avprompt.tasks import AVPromptTask

QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")
FILES = ["README.md", "config.yaml", "model.safetensors"]


@pytest.fixture(scope="module")
def trained(ave_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AVPromptTask, Path]:
    """The task of a quickstart of two steps as training left it, and its run's folder."""
    out = tmp_path_factory.mktemp("trained")
    cli = lightning_cli()(
        [
            "fit",
            "--config",
            QUICKSTART,
            "--data.root",
            str(ave_root),
            "--trainer.logger.save_dir",
            str(out),
            "--trainer.max_epochs",
            "1",
            "--trainer.limit_train_batches",
            "2",
            "--trainer.limit_val_batches",
            "1",
        ]
    )
    return cli.model.eval(), out / "quickstart" / "version_0"


@pytest.fixture(scope="module")
def last(trained: tuple[AVPromptTask, Path]) -> Path:
    return trained[1] / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def loaded(last: Path) -> AVPromptTask:
    return avprompt.load(last)


@pytest.fixture(scope="module")
def pushed(loaded: AVPromptTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loaded.push(tmp_path_factory.mktemp("pushed") / "model")


@pytest.fixture(scope="module")
def video(ave_root: Path) -> Path:
    return min((ave_root / "videos").glob("*.mp4"))


def outputs(task: AVPromptTask) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        found = task(
            {
                "id": ["a", "b"],
                "audio": 0.1 * torch.randn(2, 10, 16000, generator=generator),
                "frames": torch.randint(256, (2, 10, 3, 64, 64), generator=generator, dtype=torch.uint8),
            }
        )
    return {name: value for name, value in found.items() if torch.is_tensor(value)}


def same(one: AVPromptTask, other: AVPromptTask) -> bool:
    ours, theirs = outputs(one), outputs(other)
    return (
        ours.keys() == theirs.keys() and len(ours) > 1 and all(torch.equal(ours[name], theirs[name]) for name in ours)
    )


def test_a_loaded_task_is_the_trained_one(trained: tuple[AVPromptTask, Path], loaded: AVPromptTask) -> None:
    assert not loaded.training and type(loaded) is type(trained[0]) and same(trained[0], loaded)


def test_the_shared_folder_is_the_trained_one_too(
    trained: tuple[AVPromptTask, Path], pushed: Path, tmp_path: Path
) -> None:
    """On a machine without the dataset, with the random state of the process left alone."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    task = avprompt.load(pushed, ["--data.root", str(tmp_path / "nowhere")])
    assert torch.equal(torch.get_rng_state(), before)
    assert same(trained[0], task) and task.source.data.root == tmp_path / "nowhere"
    assert sorted(path.name for path in pushed.iterdir()) == FILES
    again = task.push(tmp_path / "again")
    assert (again / "README.md").read_bytes() == (pushed / "README.md").read_bytes()
    assert task.push(tmp_path / "again") == again  # one of its own is written again


def test_the_files_of_a_shared_folder(trained: tuple[AVPromptTask, Path], pushed: Path) -> None:
    task, folder = trained
    with safe_open(pushed / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(task.state_dict())
        record = json.loads(file.metadata()["avprompt"])
    config = yaml.safe_load((pushed / "config.yaml").read_text(encoding="utf-8"))
    assert set(config) == {"seed_everything", "model", "data"} and len(config["data"]["init_args"]["categories"]) == 8
    card = (pushed / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "avprompt"
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for name, value in result["metrics"].items():
        assert f"| {name} | {value:.4f} |" in card
    assert all(entry["fingerprint"] in card for entry in record["encoders"].values()) and len(record["encoders"]) == 2
    for words in (
        "# quickstart",
        "DGSCT (",
        "TinySwinV2",
        "TinyHTSAT",
        "generated, synthetic",
        "limit_val_batches",
        f"{result['parameters']['trainable']:,} trained",
        "`last.ckpt`",
    ):
        assert words in card, words


def test_the_card_has_no_metrics_of_other_weights(last: Path, tmp_path: Path) -> None:
    task = avprompt.load(last)
    with torch.no_grad():
        next(parameter for parameter in task.parameters() if parameter.requires_grad).add_(1)
    card = (task.push(tmp_path / "changed") / "README.md").read_text(encoding="utf-8")
    assert "Not measured: the weights were changed" in card and "val_accuracy" not in card


def test_predict_says_what_the_command_says(
    loaded: AVPromptTask, last: Path, video: Path, ave_root: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / video.name).symlink_to(video)
    (own / "broken.mp4").write_bytes(b"no video")
    run(
        [
            "predict",
            "--config",
            QUICKSTART,
            "--data.root",
            str(ave_root),
            "--ckpt_path",
            str(last),
            "--data.predict_root",
            str(own),
            "--trainer.logger.save_dir",
            str(tmp_path),
        ]
    )
    with next(tmp_path.rglob("predictions.csv")).open(newline="", encoding="utf-8") as file:
        said = list(csv.DictReader(file))
    with pytest.warns(UserWarning, match="left out"):
        found = loaded.predict(own)
    assert [{name: str(value) for name, value in row.items()} for row in found.table] == said
    assert len(said) == 11 and said[-1]["id"] == "broken" and said[-1]["reason"]

    one = loaded.predict(str(video))
    assert [{**row, "path": ""} for row in one.table] == [{**row, "path": ""} for row in found.table[:10]]
    assert one.table[0]["path"] == str(video) and not loaded.training
    assert one.arrays["times"].shape == (1, 10, 2) and one.arrays["valid"].all()
    assert one.arrays["is_event"].shape == (1, 10) and one.arrays["event"].shape == (1, 8)
    assert one.arrays.keys() == found.arrays.keys()
    assert all(isinstance(value, np.ndarray) for value in one.arrays.values())
    assert any(name.startswith("map_") for name in one.arrays)


def test_a_video_that_is_not_there(loaded: AVPromptTask, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere\.mp4: got no such"):
        loaded.predict(tmp_path / "nowhere.mp4")
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(DatasetError, match="no video files"):
        loaded.predict(tmp_path / "notes.txt")


def test_features_of_a_dataset_are_no_videos(
    loaded: AVPromptTask, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.source.data, "feature_cache", Path("features"))
    with pytest.raises(ArgumentError, match="feature_cache"):
        loaded.predict(video)


def test_a_task_built_by_hand_has_no_configuration(trained: tuple[AVPromptTask, Path], tmp_path: Path) -> None:
    for call in (lambda: trained[0].predict("a.mp4"), lambda: trained[0].push(tmp_path)):
        with pytest.raises(ArgumentError, match=r"avprompt\.load"):
            call()


def damaged(kind: str, last: Path, pushed: Path, folder: Path) -> Path:
    """A checkpoint or folder that cannot be loaded."""
    config = (last.parent.parent / "config.yaml").read_bytes()
    (folder / "run" / "checkpoints").mkdir(parents=True)
    path = folder / "run" / "checkpoints" / "best.ckpt"
    content: Any = torch.load(last, weights_only=True)
    if kind != "without config":
        (folder / "run" / "config.yaml").write_bytes(b"trainer: {max_epochs: 1}" if kind == "other config" else config)
    if kind == "missing":
        return path
    if kind == "run folder":
        return folder / "run"
    if kind == "foreign":
        content = {"state_dict": content["state_dict"]}
    if kind == "plain":
        content = content["state_dict"]
    if kind == "other tensors":
        content["state_dict"].popitem()
    if kind == "other encoders":
        content["avprompt"]["encoders"] = {
            name: {**entry, "fingerprint": "0" * 64} for name, entry in content["avprompt"]["encoders"].items()
        }
    torch.save(content, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    if kind in ("truncated folder", "foreign folder"):
        path = folder / "shared"
        path.mkdir()
        (path / "config.yaml").write_bytes((pushed / "config.yaml").read_bytes())
        save_file(content["state_dict"], path / "model.safetensors")
        if kind == "truncated folder":
            (path / "model.safetensors").write_bytes(b"\x10")
    return path


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("missing", CheckpointError, r"best\.ckpt: got no such file"),
        ("without config", ConfigError, r"no config\.yaml"),
        ("other config", ConfigError, "nothing of data, model"),
        ("foreign", CheckpointError, "no record of frozen encoders"),
        ("plain", CheckpointError, "no state of a network"),
        ("truncated", CheckpointError, "do not load"),
        ("run folder", CheckpointError, r"checkpoints/best\.ckpt"),
        ("truncated folder", CheckpointError, "do not load"),
        ("foreign folder", CheckpointError, "no record of frozen encoders"),
        ("other tensors", CheckpointError, r"best\.ckpt: got missing \["),
        ("other encoders", CheckpointError, "expected the encoder in use"),
    ],
)
def test_what_cannot_be_loaded(
    kind: str, error: type[AVPromptError], message: str, last: Path, pushed: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        avprompt.load(damaged(kind, last, pushed, tmp_path))


def test_a_folder_of_something_else_is_left_alone(trained: tuple[AVPromptTask, Path], loaded: AVPromptTask) -> None:
    before = (trained[1] / "config.yaml").read_bytes()
    with pytest.raises(ArgumentError, match="something else"):
        loaded.push(trained[1])
    assert (trained[1] / "config.yaml").read_bytes() == before


class Hub:
    """Stands in for the hub's client: records what it is asked."""

    calls: list[tuple[str, dict[str, Any]]] = []
    error: Exception | None = None

    def __init__(self, **options: Any) -> None:
        """As the client is made."""

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(("upload", options))


def test_upload(loaded: AVPromptTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WriteError, match=r"me/model.*whole"):  # the tests have no network
        loaded.push(tmp_path / "model", "me/model")
    with pytest.raises(ArgumentError, match="repo_id"):
        loaded.push(tmp_path / "model", "no name of a repository")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    loaded.push(tmp_path / "model", "me/model")
    (_, made), (_, sent) = Hub.calls
    assert made == {"repo_id": "me/model", "private": True, "exist_ok": True}
    assert sent["repo_id"] == "me/model" and sent["folder_path"] == tmp_path / "model"
    assert sorted(sent["allow_patterns"]) == FILES
    monkeypatch.setattr(Hub, "error", PermissionError("no token"))
    with pytest.raises(WriteError, match="no token"):
        loaded.push(tmp_path / "model", "me/model")


def test_the_package_itself_takes_no_torch() -> None:
    program = "import sys, avprompt; assert 'load' in dir(avprompt); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
