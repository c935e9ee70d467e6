"""The command line: every way in which it could ignore, keep or override what a user wrote."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from lightning import LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avprompt.callbacks import GroupedTensorBoard, RunReport
from avprompt.cli import checks, lightning_cli, main, model_of, run
from avprompt.cli.remembered import remembered
from avprompt.cli.signatures import arguments, check_keys
from avprompt.configs import parameters, read_arguments, read_yaml
from avprompt.errors import CheckpointError, ConfigError

QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")
PROMPTS = "--model.backbone.prompts"


def flags(ave_root: Path, out: Path, *more: str) -> list[str]:
    return [
        "--config",
        QUICKSTART,
        "--data.root",
        str(ave_root),
        "--trainer.logger.save_dir",
        str(out),
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.max_epochs",
        "1",
        *more,
    ]


@pytest.fixture(scope="module")
def fitted(ave_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of one epoch of the quickstart experiment."""
    out = tmp_path_factory.mktemp("fitted")
    run(["fit", *flags(ave_root, out, f"{PROMPTS}.alpha", "0.25")])
    return out / "quickstart" / "version_0"


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_run_folder(fitted: Path) -> None:
    assert {p.name for p in fitted.iterdir()} >= {"config.yaml", "manifest.json", "result.json", "checkpoints"}
    assert {p.name for p in (fitted / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    result = json.loads((fitted / "result.json").read_text())
    assert set(result) == {
        "experiment",
        "task",
        "metrics",
        "monitor",
        "parameters",
        "seed",
        "config",
        "git",
        "versions",
        "device",
        "wall_s",
        "peak_memory_bytes",
        "step",
        "clips",
        "epochs",
    }
    assert result["experiment"] == "quickstart" and result["task"] == "AVE" and result["monitor"] == "val_accuracy"
    assert result["clips"]["train"] == {"used": 24, "missing": 0, "corrupt": 0}
    assert set(result["parameters"]) == {"trainable", "frozen", "total", "checkpoint"}
    step = result["step"]
    assert step["n"] > 0 and step["processor_s"] > 0 and 0 < step["wall_s"] < result["wall_s"]
    weights = 4 * result["parameters"]["total"]
    assert weights < step["memory_bytes"] < result["peak_memory_bytes"]
    assert 0 <= result["metrics"]["best_val_accuracy"] <= 1
    assert result["config"]["model"]["init_args"]["backbone"]["init_args"]["prompts"]["init_args"]["alpha"] == 0.25
    assert len(json.loads((fitted / "manifest.json").read_text())["ids"]["val"]) == 8


def test_a_run_without_a_result_has_no_line_of_hyper_parameters(tmp_path: Path) -> None:
    logger = GroupedTensorBoard(tmp_path, name="", version="", default_hp_metric=False)
    trainer = Trainer(logger=logger, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    module = LightningModule()
    module.monitor = "val_accuracy"
    report = RunReport("x", {"seed_everything": 0})
    report.setup(trainer, module, "fit")
    report._log_hparams(trainer, module, {})
    with pytest.raises(KeyError):
        events(tmp_path).SummaryMetadata("_hparams_/session_start_info")
    report._log_hparams(trainer, module, {"test_accuracy": 0.5, "test_loss": 1.0})
    shown = {"metric/test_accuracy", "test/accuracy", "test/loss"}
    assert set(events(tmp_path).Tags()["scalars"]) == shown
    assert events(tmp_path).SummaryMetadata("_hparams_/session_start_info")


def test_hparams_reach_tensorboard_with_the_result(fitted: Path) -> None:
    """P12: with Lightning's defaults the hyper-parameters are either missing or stand beside a dummy metric."""
    tags = events(fitted).Tags()
    assert {"metric/val_accuracy", "metric/best_val_accuracy", "val/accuracy", "train/loss"} <= set(tags["scalars"])
    assert {tag.partition("/")[0] for tag in tags["scalars"]} == {"metric", "train", "val"}  # the metric on top
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events(fitted).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = HParamsPluginData.FromString(content).session_start_info.hparams
    assert given["model.backbone.prompts.alpha"].number_value == 0.25
    assert given["model"].string_value == "AVE" and given["model.backbone.prompts"].string_value == "DGSCT"
    assert not [name for name in given if "init_args" in name or name.startswith(("trainer.logger", "ckpt_path"))]
    assert given["parameters/trainable"].number_value > 1e6
    (best,) = events(fitted).Scalars("metric/best_val_accuracy")
    assert best.value == pytest.approx(json.loads((fitted / "result.json").read_text())["metrics"]["best_val_accuracy"])


def test_saved_config_runs_again_and_says_the_same(fitted: Path, ave_root: Path, tmp_path: Path) -> None:
    """P10, and the round trip of a configuration: config.yaml names its experiment and needs no other file."""
    run(["fit", "--config", str(fitted / "config.yaml"), "--trainer.logger.save_dir", str(tmp_path)])
    again = yaml.safe_load((tmp_path / "quickstart" / "version_0" / "config.yaml").read_text())
    first = yaml.safe_load((fitted / "config.yaml").read_text())
    for config in (first, again):
        config["trainer"]["logger"]["init_args"].pop("save_dir")
    assert again == first


def test_checkpoint_settings_never_override_the_command_line(fitted: Path, ave_root: Path, tmp_path: Path) -> None:
    """P1: Lightning merges a checkpoint's hyper-parameters over YAML and flags without a word."""
    checkpoint = torch.load(fitted / "checkpoints" / "best.ckpt", weights_only=True)
    assert "hyper_parameters" not in checkpoint
    checkpoint["hyper_parameters"] = {"_class_path": "avprompt.tasks.AVE", "modality": "late"}
    torch.save(checkpoint, tmp_path / "forged.ckpt")
    cli = lightning_cli()(
        ["test", *flags(ave_root, tmp_path, f"{PROMPTS}.alpha", "0.9", "--ckpt_path", str(tmp_path / "forged.ckpt"))]
    )
    assert cli.model.backbone.prompts.alpha == 0.9 and cli.model.modality == "both"


def test_test_and_predict(fitted: Path, ave_root: Path, tmp_path: Path) -> None:
    best = ["--ckpt_path", str(fitted / "checkpoints" / "best.ckpt")]
    run(["test", *flags(ave_root, tmp_path, *best)])
    result = json.loads((tmp_path / "quickstart" / "version_0" / "result.json").read_text())
    assert 0 <= result["metrics"]["test_accuracy"] <= 1
    run(["predict", *flags(ave_root, tmp_path, *best)])
    folder = tmp_path / "quickstart" / "version_1"
    rows = (folder / "predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + 8 * 10 and len(list((folder / "pictures").glob("*.png"))) == 8
    table = list(csv.DictReader(rows))
    right = sum(row["predicted"] == row["annotated"] for row in table) / 80
    assert right == pytest.approx(result["metrics"]["test_accuracy"], abs=1e-6)


def test_stale_argument_of_another_class(tmp_path: Path) -> None:
    """P3: the parser keeps an old class's arguments where the new class has the same names."""
    overlay = tmp_path / "overlay.yaml"
    encoder = {"class_path": "avprompt.encoders.TinyHTSAT"}
    content = {"model": {"init_args": {"backbone": {"init_args": {"visual": encoder}}}}}
    base = {
        "model": {
            "init_args": {
                "backbone": {
                    "init_args": {
                        "visual": {"class_path": "avprompt.encoders.TinySwinV2", "init_args": {"released_mode": True}}
                    }
                }
            }
        }
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    overlay.write_text(yaml.safe_dump(content))
    flags = ["--config", QUICKSTART, "--config", str(tmp_path / "base.yaml"), "--config", str(overlay)]
    with pytest.raises(ConfigError, match=r"TinyHTSAT without released_mode, which .*base.yaml gives to .*TinySwinV2"):
        run(["fit", *flags])
    for given in (
        ["--model.backbone.visual.released_mode", "false"],
        ["--model.init_args.backbone.init_args.visual.init_args.released_mode=false"],
    ):
        checks.check_stale(read_arguments([*flags, *given]))
    encoder["init_args"] = {"released_mode": False}
    overlay.write_text(yaml.safe_dump(content))
    checks.check_stale(read_arguments(flags))


@pytest.mark.parametrize("name", ["avprompt.encoders.HTSAT", "HTSAT"])
@pytest.mark.parametrize("path", ["--model.init_args.backbone.init_args.audio", "--model.backbone.audio"])
def test_short_form_of_a_class_is_checked_too(path: str, name: str) -> None:
    """By its whole path or as the parser finds it, at a path with and without `init_args`."""
    with pytest.raises(ConfigError, match="HTSAT without frozen, which --model.backbone.audio.frozen gives"):
        checks.check_stale(
            read_arguments(["--config", QUICKSTART, "--model.backbone.audio.frozen", "false", f"{path}={name}"])
        )


def test_replaced_class_starts_from_its_own_defaults() -> None:
    """No argument of the old class reaches the parser, neither from a file nor from an earlier flag or one within it."""
    texts = "--model.visual_texts"
    task = model_of(
        [
            "--config",
            "fewshot_ave_quickstart",
            f"{texts}.tower.pretrained",
            "none",
            f"{texts}",
            (
                "{class_path: avprompt.methods.CoCoOp, context: an image of, condition: video, "
                "tower: avprompt.encoders.TinyCLIPText}"
            ),
        ]
    )
    kinds = {type(module).__name__ for module in task.modules()}
    assert "CoCoOp" in kinds and "CoOp" not in kinds
    line = read_arguments(
        [
            "--config",
            "fewshot_ave_quickstart",
            f"{texts}.tower.pretrained",
            "none",
            f"{texts}.class_path",
            "avprompt.methods.CoCoOp",
        ]
    )
    assert line.content["model"]["init_args"]["visual_texts"] == {"class_path": "avprompt.methods.CoCoOp"}
    assert not any("tower" in word for word in line.arguments if "visual_texts" in word and "audio_texts" not in word)


@pytest.mark.parametrize("flag", ["--model.init_args.num_classes=5", "--model.num_classes=5"])
def test_linked_argument_may_not_be_written(flag: str, tmp_path: Path) -> None:
    """P4: the parser ignores it without a word."""
    with pytest.raises(ConfigError, match="the data module sets it"):
        run(["fit", "--config", QUICKSTART, flag])
    (tmp_path / "more.yaml").write_text("model: {init_args: {num_classes: 3}}")
    with pytest.raises(ConfigError, match="more.yaml"):
        run(["fit", "--config", QUICKSTART, "--config", str(tmp_path / "more.yaml")])


def test_no_experiment_writes_a_linked_argument() -> None:
    for path in (ROOT / "experiments").glob("*.yaml"):
        checks.check_linked([(str(path), read_yaml(path))])


def test_number_of_classes_is_the_datas(ave_root: Path) -> None:
    """P5: known without setup."""
    model = model_of(["--config", QUICKSTART, "--data.root", str(ave_root)])
    assert model.head.localize.event.out_features == 8
    assert (
        model_of(["--config", str(ROOT / "experiments" / "ave_dgsct.yaml")], meta=True).head.localize.event.out_features
        == 28
    )


@pytest.mark.parametrize("text", ["modle: {}", "modle: {init_args: {lr: 1}}", "fit: {trainer: {max_epochs: 1}}"])
def test_unknown_top_level_keys(text: str, tmp_path: Path) -> None:
    """P6 (an empty unknown key passes the parser) and P11 (a file nested under its command)."""
    (tmp_path / "typo.yaml").write_text(text)
    with pytest.raises(ConfigError, match="typo.yaml"):
        run(["fit", "--config", QUICKSTART, "--config", str(tmp_path / "typo.yaml")])


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        (f"{PROMPTS}=avprompt.methods.NoPromts", "NoPromts.*a class that can be imported"),
        ("--data.batch_size=[", "--data.batch_size.*no YAML"),
    ],
)
def test_values_that_nothing_can_be_made_of(flag: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        run(["fit", "--config", QUICKSTART, flag])


def test_later_wins() -> None:
    """P7: flags after --config override it; before it they are overridden."""

    class ConfigOnly(lightning_cli()):
        def instantiate_classes(self) -> None:
            """Nothing."""

    after = ConfigOnly(["--config", QUICKSTART, "--trainer.max_epochs", "77"], run=False)
    before = ConfigOnly(["--trainer.max_epochs", "77", "--config", QUICKSTART], run=False)
    assert after.config.trainer.max_epochs == 77 and before.config.trainer.max_epochs != 77


def test_callbacks_are_added_not_replaced(ave_root: Path, tmp_path: Path) -> None:
    """P8 and P9: what must hold is there whatever list a user gives, and a user's own are kept."""
    (tmp_path / "more.yaml").write_text(
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.LearningRateMonitor}]}"
    )
    cli = lightning_cli()(
        [
            "fit",
            *flags(
                ave_root,
                tmp_path,
                "--config",
                str(tmp_path / "more.yaml"),
                "--trainer.limit_train_batches",
                "1",
                "--trainer.limit_val_batches",
                "1",
            ),
        ]
    )
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    for name in (
        "LearningRateMonitor",
        "ExactResume",
        "TaskCheckpoint",
        "LastCheckpoint",
        "InterruptCheckpoint",
        "RunReport",
    ):
        assert names.count(name) == 1, name


def test_no_logger_writes_nothing(ave_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P10: Lightning would leave config.yaml in the working folder; P30: debugging needs no checkpointing."""
    monkeypatch.chdir(tmp_path)
    run(
        [
            "fit",
            "--config",
            QUICKSTART,
            "--trainer",
            str(ROOT / "lightning_configs" / "trainer" / "debug.yaml"),
            "--data.root",
            str(ave_root),
        ]
    )
    assert list(tmp_path.iterdir()) == []


def test_only_trained_parameters_reach_the_optimizer(ave_root: Path) -> None:
    """P14: Lightning's automatic optimizer takes the frozen ones too."""
    model = model_of(["--config", QUICKSTART, "--data.root", str(ave_root)])
    configured = model.configure_optimizers()
    given = {id(p) for group in configured["optimizer"].param_groups for p in group["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}
    assert configured["optimizer"].param_groups[0]["lr"] == 1e-3


def test_rows_of_an_ablation_start_from_the_same_head(ave_root: Path) -> None:
    """P19: one module more or less before the head would otherwise shift its initial weights."""
    heads = []
    for override in ([], [f"{PROMPTS}.num_tokens", "2"], [f"{PROMPTS}=avprompt.methods.NoPrompts"]):
        heads.append(model_of(["--config", QUICKSTART, *override]).head.state_dict())
    for other in heads[1:]:
        assert all(torch.equal(value, other[name]) for name, value in heads[0].items())
    other = model_of(["--config", QUICKSTART, "--seed_everything", "5"]).head.state_dict()
    assert not torch.equal(heads[0]["localize.event.weight"], other["localize.event.weight"])


def test_gpu_experiment_without_a_gpu_says_what_to_change() -> None:
    with pytest.raises(ConfigError, match="--trainer cpu"):
        run(["fit", "--config", str(ROOT / "experiments" / "ave_dgsct.yaml")])


def test_unwritable_log_folder_is_named_before_any_work(ave_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="save_dir"):
        run(["fit", *flags(ave_root, tmp_path / "file")])


@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign"])
def test_checkpoints_that_cannot_be_used(damage: str, fitted: Path, ave_root: Path, tmp_path: Path) -> None:
    """P31: PyTorch names neither the file nor a way out."""
    path, whole = tmp_path / "broken.ckpt", (fitted / "checkpoints" / "best.ckpt").read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "foreign":
        torch.save(
            {
                "state_dict": {"weight": torch.zeros(1)},
                "pytorch-lightning_version": "2.6.4",
                "epoch": 0,
                "global_step": 0,
            },
            path,
        )
    with pytest.raises(CheckpointError, match="broken.ckpt" if damage != "foreign" else "record of frozen encoders"):
        run(["test", *flags(ave_root, tmp_path, "--ckpt_path", str(path))])


def test_params(capsys: pytest.CaptureFixture[str]) -> None:
    run(["params", "--config", str(ROOT / "experiments" / "ave_dgsct.yaml"), "--json"])
    table = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert table["trainable"] == 196_420_503
    assert table["total"] == table["trainable"] + table["frozen"]
    model = model_of(["--config", str(ROOT / "experiments" / "ave_dgsct.yaml")], meta=True)
    norms = sum(buffer.numel() for name, buffer in model.backbone.prompts.named_buffers())
    assert table["checkpoint"] == table["trainable"] + norms
    assert sum(part["total"] for part in table["modules"].values()) == table["total"]


def test_params_without_arguments_shows_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["params"], ["data", "stats"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        said = capsys.readouterr()
        assert stop.value.code == 2 and said.out == "" and said.err.startswith(f"usage: avprompt {' '.join(command)}")


def test_commands_from_a_shell(tmp_path: Path) -> None:
    """Exit codes and messages as a user sees them; help needs no heavy import (P32)."""

    def shell(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "avprompt", *args],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=False,
        )

    help_ = shell("--help")
    assert help_.returncode == 0 and "avprompt fit --config" in help_.stdout and "torch" not in help_.stderr
    wrong = shell("fti")
    assert wrong.returncode == 2 and "ConfigError: COMMAND: got fti" in wrong.stderr and "Traceback" not in wrong.stderr


def test_errors_become_messages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "nowhere.yaml"])
    assert stop.value.code == 2 and "nowhere.yaml" in capsys.readouterr().err
    monkeypatch.setenv("AVPROMPT_DEBUG", "1")
    with pytest.raises(ConfigError):
        main(["fit", "--config", "nowhere.yaml"])


def test_no_torchaudio_reading() -> None:
    """P28: torchaudio's readers are on their way out; PyAV is the one decoder."""
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "data_modules").rglob("*.py")]:
        assert "torchaudio.load" not in path.read_text() and "torchaudio.info" not in path.read_text()


def test_interpolation_is_not_offered(tmp_path: Path) -> None:
    """P13: with omegaconf `${...}` keeps the value that a file was read with, whatever overrides it later."""
    (tmp_path / "more.yaml").write_text("data: {init_args: {batch_size: '${seed_everything}'}}")
    with pytest.raises(ConfigError, match="--data.batch_size: got '.*seed_everything.*; expected int"):
        run(["fit", "--config", QUICKSTART, "--config", str(tmp_path / "more.yaml")])


def test_classes_live_outside_the_command_line() -> None:
    """P2: a class defined in the script that runs is another class than the imported one."""
    model = model_of(["--config", QUICKSTART])
    assert type(model).__module__ == "avprompt.tasks.ave"


def test_errors_of_a_constructor_come_through(ave_root: Path) -> None:
    """The parser turns what a constructor raises into a page of its own."""
    from avprompt.errors import ArgumentError

    with pytest.raises(ArgumentError, match="reduction, groups: got 7, 2"):
        run(["params", "--config", QUICKSTART, f"{PROMPTS}.reduction", "7"])


def test_waiting_threads_sleep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a busy machine OpenMP's spinning threads cost many times what they wait for; a user's setting is kept."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "7")
    main(["--version"])
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["KMP_BLOCKTIME"]) == ("PASSIVE", "7")
    assert capsys.readouterr().out.startswith("0.1.0")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("fit --config quickstrat", "Did you mean quickstart"),
        ("params --config=nowhere.yaml", "nowhere.yaml"),
        ("test --config quickstart --ckpt_path nowhere.ckpt", "nowhere.ckpt: got no such file"),
    ],
)
def test_a_file_that_is_not_there_is_refused_before_torch_is_imported(args: str, message: str) -> None:
    """Which takes ten seconds."""
    program = (
        "import sys; from avprompt.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program, *args.split()], capture_output=True, text=True, check=False)
    assert said.returncode == 2 and message in said.stderr and said.stdout.split() == ["False"], said


def test_answers_about_the_program_are_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Until a file of the package changes; a failure is not kept, and a cache that cannot be written only costs time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def answer(args: list[str], code: int | None = 0) -> None:
        asked.append(args)
        print("the text")
        sys.exit(code)

    for _ in range(2):
        remembered(["fit", "--help"], answer)
    assert asked == [["fit", "--help"]] and capsys.readouterr().out == "the text\n" * 2
    monkeypatch.setattr("avprompt.cli.remembered.PACKAGE", tmp_path)  # other files
    (tmp_path / "new.py").write_text("x = 1\n", encoding="utf-8")
    remembered(["fit", "--help"], answer)
    assert len(asked) == 2 and len(list((tmp_path / "cache" / "avprompt").iterdir())) == 1
    with pytest.raises(SystemExit):
        remembered(["sweep", "--help"], lambda args: answer(args, 2))
    assert len(list((tmp_path / "cache" / "avprompt").iterdir())) == 1
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remembered(["test", "--help"], answer)
    assert asked[-1] == ["test", "--help"]


@pytest.mark.parametrize(
    "flag, said",
    [
        (
            "--data.batch_sizes 2",
            (
                "--data.batch_sizes: got no such argument; expected an argument of AVEDataModule. Did you "
                "mean batch_size or eval_batch_size?"
            ),
        ),
        ("--modl.x 3", "--modl: got no such flag; expected a flag of this command. Did you mean model?"),
        (
            "--model.backbone.prompts.alphaa 1",
            "--model.backbone.prompts.alphaa: got no such argument; expected an argument of DGSCT. Did you mean alpha?",
        ),
        (
            "--config misspelt.yaml",
            (
                "--trainer.max_epoch: got no such argument in misspelt.yaml; expected an argument of "
                "Trainer. Did you mean max_epochs or min_epochs or max_steps?"
            ),
        ),
    ],
)
def test_a_misspelt_key_is_refused_before_torch_is_imported(
    flag: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("misspelt.yaml").write_text("trainer: {max_epoch: 3}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        check_keys(["fit", "--config", "quickstart", *flag.split()])
    assert str(error.value) == said
    program = f"from avprompt.cli import main; main(['fit', '--config', 'quickstart', *{flag.split()}])"
    if "alphaa" in flag:
        run_ = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True, check=False
        )
        assert run_.returncode == 2 and said in run_.stderr and "| torch\n" not in run_.stderr


@pytest.mark.parametrize("package", ["methods", "tasks", "encoders", "heads", "data_modules", "callbacks"])
def test_arguments_from_the_source_text_are_those_of_the_classes(package: str) -> None:
    module = importlib.import_module(f"avprompt.{package}")
    kinds = [name for name in module.__all__ if inspect.isclass(getattr(module, name))]
    known = {name: found for name in kinds if (found := arguments(f"avprompt.{package}.{name}")) is not None}
    assert len(known) > len(kinds) / 2
    for name, found in known.items():
        declared = {
            key
            for key, value in parameters(f"avprompt.{package}.{name}").items()
            if key != "self" and value.kind not in (value.VAR_KEYWORD, value.VAR_POSITIONAL)
        }
        assert found == declared, name
