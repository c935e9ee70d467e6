"""What a user meets at the command line: what is refused before any work, what is left behind, what is printed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from avprompt import encoders
from avprompt.cli import run
from avprompt.cli.doctor import findings
from avprompt.cli.quickstart import shown
from avprompt.configs import EXPERIMENTS
from avprompt.data_modules import base as data_base
from avprompt.errors import AVPromptError, CheckpointError, ConfigError, DatasetError, WeightsError

QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")
BRIEF = [
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
    "--trainer.max_epochs",
    "1",
    *(word for stage in ("train", "val", "test", "predict") for word in (f"--trainer.limit_{stage}_batches", "1")),
]


def flags(root: Path, out: Path, *more: str) -> list[str]:
    return [
        "--config",
        QUICKSTART,
        "--data.root",
        str(root),
        "--trainer.logger.save_dir",
        str(out),
        "--model.backbone.prompts",
        "avprompt.methods.NoPrompts",
        *BRIEF,
        *more,
    ]


@pytest.fixture(scope="module")
def trained(ave_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of one step of the quickstart without prompts."""
    out = tmp_path_factory.mktemp("trained")
    run(["fit", *flags(ave_root, out)])
    return out / "quickstart" / "version_0"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- refused before any work


@pytest.fixture
def nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weights nor a user's videos may be read."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(data_base, "probe", refuse)
    monkeypatch.setattr(data_base, "find_media", refuse)
    for kind in (encoders.TinySwinV2, encoders.TinyHTSAT):
        monkeypatch.setattr(kind, "load_library_weights", refuse)


@pytest.mark.parametrize("command", ["validate", "test", "predict", "visualize"])
def test_an_untrained_network_is_not_evaluated_unasked(
    command: str, ave_root: Path, tmp_path: Path, nothing_read: None
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"--ckpt_path: got nothing, for an experiment that trains [\d,]+ parameters"
        ".*--ckpt_path best.*--ckpt_path none",
    ):
        run([command, *flags(ave_root, tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_none_evaluates_the_network_as_it_is(ave_root: Path, tmp_path: Path) -> None:
    run(["test", *flags(ave_root, tmp_path, "--ckpt_path", "none")])
    assert (tmp_path / "quickstart" / "version_0" / "result.json").is_file()


def test_a_network_without_anything_to_train_needs_no_checkpoint(ave_root: Path, tmp_path: Path) -> None:
    run(
        [
            "test",
            "--config",
            str(ROOT / "lightning_configs" / "fewshot" / "clip_tiny.yaml"),
            "--data.root",
            str(ave_root),
            "--trainer.logger.save_dir",
            str(tmp_path),
            *BRIEF,
        ]
    )
    assert list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        (["--data.root", "{root}-s"], DatasetError, "--data.root: got .*which is no folder.*Did you mean {name}"),
        (["--data.predict_root", "{root}/video"], DatasetError, "--data.predict_root: .*Did you mean videos"),
        (["--ckpt_path", "{root}/split.ckpt"], CheckpointError, "split.ckpt: got no such file"),
        (["--ckpt_path", "{root}/Annotations.txt"], CheckpointError, "Annotations.txt: got .* bytes that do not load"),
    ],
)
def test_wrong_paths_are_refused_before_any_work(
    more: list[str], kind: type[AVPromptError], message: str, ave_root: Path, tmp_path: Path, nothing_read: None
) -> None:
    more = [word.format(root=ave_root) for word in more]
    with pytest.raises(kind, match=message.format(name=ave_root.name)):
        run(["predict", *flags(ave_root, tmp_path / "runs", "--ckpt_path", "none", *more)])
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_of_another_network_is_refused_before_videos_are_decoded(
    trained: Path, ave_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_base, "find_media", lambda *args: pytest.fail("videos are looked at"))
    with pytest.raises(CheckpointError, match=r"best.ckpt: got missing \['backbone.prompts"):
        run(
            [
                "predict",
                *flags(
                    ave_root,
                    tmp_path,
                    "--model.backbone.prompts",
                    "avprompt.methods.DGSCT",
                    "--model.backbone.prompts.num_tokens",
                    "4",
                    "--model.backbone.prompts.reduction",
                    "4",
                    "--data.predict_root",
                    str(ave_root / "videos"),
                    "--ckpt_path",
                    str(trained / "checkpoints" / "best.ckpt"),
                ),
            ]
        )


# --- folders


@pytest.mark.parametrize("logger", ["tensorboard", "none"])
def test_a_command_that_fails_leaves_no_folder(
    logger: str, ave_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    none = ["--trainer.logger", "false"] if logger == "none" else []
    with pytest.raises(AVPromptError, match="Annotations.txt"):
        run(["fit", *flags(tmp_path / "data", tmp_path / "runs"), *none])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_refused_second_run_leaves_nothing(trained: Path, ave_root: Path) -> None:
    before = contents(trained.parent)
    with pytest.raises(
        ConfigError, match="the run of another configuration, which differs in data.init_args.batch_size"
    ):
        run(
            [
                "fit",
                *flags(ave_root, trained.parents[1], "--trainer.logger.version", "version_0", "--data.batch_size", "3"),
            ]
        )
    assert contents(trained.parent) == before


def test_predictions_with_a_runs_own_configuration_lie_beside_it(ave_root: Path, tmp_path: Path) -> None:
    """Also where the configuration names the training's folder, as in sweeps and the quickstart."""
    run(["fit", *flags(ave_root, tmp_path, "--trainer.logger.version", "fit")])
    folder = tmp_path / "quickstart" / "fit"
    before = contents(folder)
    for _ in range(2):
        run(
            [
                "predict",
                "--config",
                str(folder / "config.yaml"),
                "--ckpt_path",
                str(folder / "checkpoints" / "last.ckpt"),
            ]
        )
    assert contents(folder) == before
    assert sorted(path.parent.name for path in tmp_path.rglob("predictions.csv")) == ["version_0", "version_1"]


def test_monitors_that_need_a_logger_are_left_out_without_one(
    ave_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monitor = ["--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"]
    run(["fit", *flags(ave_root, tmp_path), "--trainer.logger", "false", *monitor])
    assert list(tmp_path.rglob("result.json"))


# --- what there is


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    """Every public method, every dataset of the registry, every experiment; each class with what it is."""
    import avprompt
    from avprompt.datasets.registry import DATASETS

    run(["list", "--json"])
    found = {
        kind: {item["name"]: item["about"] for item in items}
        for kind, items in json.loads(capsys.readouterr().out).items()
    }
    methods = avprompt._PUBLIC["avprompt.methods"]
    assert set(methods) - {"PromptMethod", "PromptState", "CoOp", "CoCoOp"} <= found["methods"].keys()
    assert {"SwinV2", "HTSAT", "CLIPText"} <= found["encoders"].keys() and "FrozenEncoder" not in found["encoders"]
    assert found["datasets"].keys() == DATASETS.keys()
    assert found["experiments"].keys() == {path.stem for path in EXPERIMENTS.glob("*.yaml")}
    assert "82.2" in found["experiments"]["ave_dgsct"]
    assert all(
        about.endswith((".", ".)", "csv", "json", ")", "txt"))
        for kind in ("methods", "tasks")
        for about in found[kind].values()
    )
    run(["list", "tasks"])
    said = capsys.readouterr().out
    assert said.startswith("tasks (") and "AVE " in said and "DGSCT" not in said


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Found where an experiment looks for it; a wrong digest is refused; what a hub serves is fetched from it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(["weights", "ave_dgsct", "fewshot_ave_dgsct", "--json"])
    assert stop.value.code == 1
    found = {weight["name"]: weight for weight in json.loads(capsys.readouterr().out)}
    swin, clap = found["timm:swinv2_large_window12_192.ms_in22k"], found["checkpoints/630k-audioset-fusion-best.pt"]
    assert swin["hub"] == "timm/swinv2_large_window12_192.ms_in22k" and swin["licence"] == "mit"
    assert swin["experiments"] == ["ave_dgsct"] and clap["path"] is None and "checkpoints/roberta-base" in found
    calls = []

    def fetch(repo: str, file: str, local_dir: Path | None = None) -> None:
        calls.append((repo, file))
        if local_dir is not None:
            local_dir.mkdir(parents=True, exist_ok=True)
            (local_dir / file).write_bytes(b"weights")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    with pytest.raises(SystemExit):  # HTS-AT's file is on no hub
        run(["weights", "ave_dgsct", "fewshot_ave_dgsct", "--fetch", "--hash"])
    said = capsys.readouterr().out
    assert ("lukewys/laion_clap", "630k-audioset-fusion-best.pt") in calls and (
        "FacebookAI/roberta-base",
        "vocab.json",
    ) in calls
    assert (
        hashlib.sha256(b"weights").hexdigest() in said and "checkpoints/HTSAT_AudioSet_Saved_1.ckpt: missing\n" in said
    )
    run(["weights", "quickstart"])
    assert capsys.readouterr().out == "0 files, 0 missing\n"


def test_weights_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have no network: huggingface_hub says so, and the message says what to do."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        WeightsError, match="expected model.safetensors of https://huggingface.co/timm/.*HF_HUB_OFFLINE"
    ):
        run(["weights", "ave_dgsct", "--fetch"])


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    run(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["torch"] and found["pyav"] and found["disk_free_bytes"] > 0 and found["decoders"]["h264"]
    assert {kind for kind, _, _ in found["findings"]} <= {"ok", "note"}
    lacking = {**found, "decoders": {"h264": False}, "writable": False, "bf16": False, "gpus": ["GTX 1080"]}
    said = {what: (kind, meaning) for kind, what, meaning in findings(lacking)}
    assert said["decoders"][0] == said["disk"][0] == "missing" and "16-mixed" in said["bfloat16"][1]
    run(["doctor"])
    assert "ok       decoders" in capsys.readouterr().out


# --- what a run shows


def shell(*words: str, cwd: Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "avprompt", *words],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def test_a_run_prints_a_line_an_epoch_and_nothing_else(ave_root: Path, tmp_path: Path) -> None:
    """Into a file: no bar, no advertisement, no warning with its file and line; `--quiet` leaves out the rest."""
    words = list(flags(ave_root, tmp_path, "--trainer.max_epochs", "2"))
    place = words.index("--trainer.enable_progress_bar")
    run_ = shell("fit", *words[:place], *words[place + 2 :], cwd=tmp_path)
    said, problems = run_.communicate(timeout=500)
    assert run_.returncode == 0, problems
    lines = [line for line in said.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2, said + problems
    assert re.fullmatch(r"epoch 1/2: loss [\d.]+, val_accuracy [\d.]+, .* s, .* s left", lines[0]), lines
    assert re.fullmatch(r"epoch 2/2: loss [\d.]+, val_accuracy [\d.]+, .* s", lines[1]), lines
    for unwanted in ("\r", "it/s", "💡", "litlogger", "Deprecat", "deprecated", ".py:", "warnings.warn", "TPU"):
        assert unwanted not in said + problems, (unwanted, said + problems)
    quiet = shell("test", *flags(ave_root, tmp_path), "--ckpt_path", "best", "--quiet", cwd=tmp_path)
    said, problems = quiet.communicate(timeout=500)
    assert quiet.returncode == 0 and "INFO" not in problems and "GPU available" not in problems, problems


def test_two_callbacks_that_write_the_same_files_are_refused(ave_root: Path, tmp_path: Path) -> None:
    given = flags(
        ave_root,
        tmp_path,
        "--ckpt_path",
        "none",
        "--format",
        "pdf",
        "--trainer.callbacks+=avprompt.callbacks.PredictionWriter",
    )
    with pytest.raises(ConfigError, match="PredictionWriter twice"):
        run(["visualize", *given])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc to see what is imported")
def test_ctrl_c_while_imports_run_ends_with_one_line(ave_root: Path, tmp_path: Path) -> None:
    stopped = shell("fit", *flags(ave_root, tmp_path / "runs", "--trainer.max_epochs", "500"), cwd=tmp_path)
    while "libtorch" not in Path(f"/proc/{stopped.pid}/maps").read_text():  # torch is being imported
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    _said, problems = stopped.communicate(timeout=200)
    assert stopped.returncode == 130 and "Traceback" not in problems, problems
    assert problems.strip().startswith("avprompt: stopped by Ctrl-C; the same command begins again"), problems
    assert problems.strip().count("\n") == 0 and not (tmp_path / "runs").exists()


def test_quickstart_shows_the_lines_of_its_trainings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.txt"
    log.write_text("epoch 1/2: of an earlier part\n")
    with shown(log, pause=0.01), log.open("a") as file:
        file.write("something else\nepoch 2/2: loss 1.0\n")
    assert capsys.readouterr().out == "    epoch 2/2: loss 1.0\n"


# --- what to do next


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fti"], "Did you mean fit"),
        (["fit"], "Try `avprompt fit --config quickstart`"),
        (["visualize"], "Try `avprompt visualize --config quickstart`"),
    ],
)
def test_a_wrong_command_says_what_to_try(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(words)


def test_experiments_are_not_evaluated_by_their_headers_unasked() -> None:
    """A header that says `avprompt test` alone is that of an experiment without anything to train."""
    for path in EXPERIMENTS.glob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("#   avprompt test") and "--ckpt_path" not in line:
                assert path.stem.startswith(("zeroshot", "fewshot_ave_cl")), path


def test_files_for_contributors_name_what_exists() -> None:
    """CONTRIBUTING.md names files and tests; CITATION.cff has the package's version."""
    import avprompt

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = [
        path
        for path in re.findall(r"`((?:tests|src|lightning_configs|data_modules|experiments)/[\w/.]+)`", text)
        if not re.search("NAME|TASK", path)
    ]
    assert len(named) > 8 and all((ROOT / path).exists() for path in named)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(cited["version"]) == avprompt.__version__ and len(cited["references"]) == 2
