"""Runs that are stopped anywhere and resume: the same batches, weights, rates and points in TensorBoard as one left
alone."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from stops import Data, build, points, state, train

from avprompt.callbacks import InterruptCheckpoint, TaskCheckpoint
from avprompt.errors import ArgumentError, ConfigError, NonFiniteLossError, WriteError
from avprompt.files import full_disks, write_json, write_whole
from avprompt.processes import Stopped
from avprompt.schedules import WarmupCosine
from avprompt.signals import exit_code
from avprompt.sweeps.run import read_json

#: where a run may be stopped: hook, and optimizer steps done by then; an epoch has 5
PLACES = [
    ("on_train_batch_start", 1),
    ("on_train_batch_start", 7),
    ("training_step", 2),
    ("training_step", 5),
    ("on_train_batch_end", 3),
    ("on_train_batch_end", 5),
    ("on_train_batch_end", 15),
    ("on_validation_start", 5),
    ("on_validation_batch_end", 5),
    ("on_validation_batch_end", 10),
    ("on_validation_end", 5),
    ("on_train_epoch_end", 5),
    ("on_train_epoch_start", 10),
]
VARIANTS = {
    "plain": {},
    "steps": {"max_steps": 15},
    "often": {"val_check_interval": 2},
    "second": {"check_val_every_n_epoch": 2},
    "accumulate": {"accumulate_grad_batches": 2},
}


class At(Callback):
    """Does something once: the first time that a hook is called after so many batches."""

    def __init__(self, hook: str, batches: int, action: Any) -> None:
        self.hook, self.batches, self.action, self.count = hook, batches, action, 0

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        owner = pl_module if self.hook == "training_step" else self
        before = getattr(owner, self.hook)

        def hook(*args: Any) -> Any:
            if self.hook == "on_train_batch_end":
                self.count += 1
            if self.action is not None and not trainer.sanity_checking and self.count >= self.batches:
                action, self.action = self.action, None
                action()
            return before(*args)

        setattr(owner, self.hook, hook)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.count += self.hook != "on_train_batch_end"


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fail() -> None:
    raise RuntimeError("full")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """Runs that were left alone: what happened, what came out, what TensorBoard shows."""
    found = {}
    for name, options in VARIANTS.items():
        folder = tmp_path_factory.mktemp(name)
        trainer, seen = train(folder, **options)
        found[name] = seen, state(trainer), points(folder)
    return found


def assert_same(trainer: Trainer, folder: Path, whole: tuple, lost: set[str] = frozenset()) -> None:
    _, expected, expected_points = whole
    found = state(trainer)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected[name])), name
    shown = points(folder)
    assert shown.keys() == expected_points.keys()
    for name, values in shown.items():
        assert name in lost or values == expected_points[name], name


def test_the_run_under_test_is_not_trivial(whole: dict[str, tuple]) -> None:
    seen, _, shown = whole["plain"]
    batches = [entry for entry in seen if len(entry) > 2]
    assert len(batches) == 15 and len({entry[2:-1] for entry in batches}) > 10
    assert [step for step, _ in shown["train_loss_epoch"]] == [4, 9, 14] and len(shown["train_loss_step"]) == 15
    assert len({value for _, value in shown["train_loss_epoch"]}) == 3


CASES = [("plain", place, action) for place in PLACES for action in (interrupt, fail)]
CASES += [
    (variant, place, action)
    for variant in VARIANTS
    if variant != "plain"
    for place, action in [
        (("on_train_batch_start", 1), fail),
        (("training_step", 7), interrupt),
        (("on_train_batch_end", 5), interrupt),
        (("on_train_batch_end", 15), interrupt),
        (("on_validation_batch_end", 5), interrupt),
        (("on_train_epoch_end", 5), fail),
    ]
]


@pytest.mark.parametrize(
    ("variant", "place", "action"),
    CASES,
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", str(value)),
)
def test_stopped_anywhere(variant: str, place: tuple[str, int], action: Any, whole: dict, tmp_path: Path) -> None:
    options, expected, stop = VARIANTS[variant], whole[variant], At(*place, action)
    try:
        _, seen = train(tmp_path, stop, **options)
    except (SystemExit, RuntimeError) as error:
        assert action is fail or error.code == 130
    else:  # behind the last step there is nothing to stop
        assert seen == expected[0] and (stop.count == 15 and action is interrupt)
        return
    checkpoint = tmp_path / "checkpoints" / "interrupted.ckpt"
    assert checkpoint.is_file() == (variant != "accumulate" or place[1] > 1)  # there, no step is done yet
    trainer, seen = train(
        tmp_path,
        ckpt_path=checkpoint if checkpoint.is_file() else None,
        seed=99 if checkpoint.is_file() else 0,
        **options,
    )
    assert seen == expected[0][len(expected[0]) - len(seen) :]
    lost = {"train_loss_step", "epoch"} if action is fail and place[0] == "on_train_batch_end" else set()
    assert_same(trainer, tmp_path, expected, lost)  # what a callback keeps Lightning from logging


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
@pytest.mark.parametrize("variant", ["often", "second"])
def test_any_checkpoint_resumes(name: str, variant: str, whole: dict, tmp_path: Path) -> None:
    """Checkpoints that are written after a validation, whatever came after them."""
    with pytest.raises(RuntimeError):
        train(tmp_path, At("training_step", 13, fail), **VARIANTS[variant])
    trainer, seen = train(tmp_path, ckpt_path=tmp_path / "checkpoints" / name, seed=99, **VARIANTS[variant])
    assert seen == whole[variant][0][len(whole[variant][0]) - len(seen) :]
    assert_same(trainer, tmp_path, whole[variant])


@pytest.mark.parametrize(
    ("options", "variant"), [({"max_steps": 7}, "plain"), ({"max_steps": 5}, "plain"), ({"max_steps": 4}, "steps")]
)
def test_cut_off_by_max_steps(options: dict, variant: str, whole: dict, tmp_path: Path) -> None:
    """The rest of the epoch is trained on resuming, and its mean covers all of it."""
    _, first = train(tmp_path, **options)
    trainer, seen = train(tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", seed=99, **VARIANTS[variant])
    together = [entry for entry in (*first, *seen) if len(entry) > 2]
    assert together == [entry for entry in whole[variant][0] if len(entry) > 2]
    assert_same(trainer, tmp_path, whole[variant])


def test_cut_off_by_a_timer(whole: dict, tmp_path: Path) -> None:
    class Time(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step >= 8

    train(tmp_path, Time())
    trainer, seen = train(tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", seed=99)
    assert [entry for entry in seen if len(entry) > 2] == [entry for entry in whole["plain"][0] if len(entry) > 2][8:]
    assert_same(trainer, tmp_path, whole["plain"], {"val_loss", "val_accuracy", "epoch"})  # the timer's own validation


def test_more_epochs(whole: dict, tmp_path: Path) -> None:
    train(tmp_path, epochs=2)
    trainer, _ = train(tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", seed=99)
    assert_same(trainer, tmp_path, whole["plain"])


# --- checkpoints on disk


def test_the_best_checkpoint_travels(tmp_path: Path) -> None:
    """A run that resumes in another folder keeps the best score so far, and has its checkpoint."""
    first, second = tmp_path / "first", tmp_path / "second"
    task = build()
    task.compute_metrics = lambda: {"accuracy": torch.tensor(0.9)}
    trainer, _ = train(first, task=task, epochs=2)
    best = (first / "checkpoints" / "best.ckpt").read_bytes()
    task = build()
    task.compute_metrics = lambda: {"accuracy": torch.tensor(0.5)}
    trainer, _ = train(second, task=task, ckpt_path=first / "checkpoints" / "last.ckpt")
    selected = next(callback for callback in trainer.callbacks if isinstance(callback, TaskCheckpoint))
    assert float(selected.best_model_score) == pytest.approx(0.9)
    assert (second / "checkpoints" / "best.ckpt").read_bytes() == best
    assert Path(selected.best_model_path) == second / "checkpoints" / "best.ckpt"


def test_a_best_checkpoint_that_was_moved_or_replaced(tmp_path: Path) -> None:
    first, moved, second, third = (tmp_path / name for name in ("first", "moved", "second", "third"))
    train(first, epochs=2)
    first.rename(moved)
    best = (moved / "checkpoints" / "best.ckpt").read_bytes()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train(second, ckpt_path=moved / "checkpoints" / "last.ckpt", epochs=2)
    assert not [entry for entry in said if "selection starts again" in str(entry.message)]
    train(moved, epochs=1)  # another run's
    train(moved / "more", epochs=2)
    (moved / "checkpoints" / "last.ckpt").write_bytes((moved / "more" / "checkpoints" / "last.ckpt").read_bytes())
    (moved / "more" / "checkpoints" / "best.ckpt").unlink()
    (moved / "checkpoints" / "best.ckpt").write_bytes(best[:1000])
    with pytest.warns(UserWarning, match="is not at .*best.ckpt any more: the selection starts again"):
        train(third, ckpt_path=moved / "checkpoints" / "last.ckpt", epochs=3)
    assert (third / "checkpoints" / "best.ckpt").is_file()


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing fails in the second epoch, half way through the file."""
    kept: dict[str, bytes] = {}

    def full(path: Path, content: bytes | memoryview) -> None:
        checkpoints = tmp_path / "checkpoints"
        if (checkpoints / "last.ckpt").exists():
            kept.update({each.name: each.read_bytes() for each in checkpoints.glob("*.ckpt")})
            path.write_bytes(bytes(content)[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr("avprompt.files.write_file", full)
    with pytest.raises(
        WriteError, match=r"(best|last).ckpt: got No space left on device; the file that was there is kept"
    ):
        train(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == kept
    monkeypatch.undo()
    train(tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")


def test_a_real_full_disk(tmp_path: Path) -> None:
    """A file system of 64 KiB, where one may be made."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        path = disk / "kept.json"
        write_json(path, {"a": 1})
        with pytest.raises(WriteError, match="No space left on device; the file that was there is kept"):
            write_whole(path, bytes(100_000))
        assert read_json(path) == {"a": 1} and [each.name for each in disk.iterdir()] == ["kept.json"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_checkpoint_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has the content before the name is its own."""
    order: list[str] = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, call=call, name=name: (order.append(name), call(*args))[1])
    write_whole(tmp_path / "x", b"x")
    assert order == ["fsync", "replace", "fsync"]


# --- signals


def test_a_second_signal_stops_at_once(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, At("training_step", 7, twice))
    assert stopped.value.code == 130 and not (tmp_path / "checkpoints" / "interrupted.ckpt").exists()
    said = capfd.readouterr()
    assert "Stopping after the current step" in said.err and "resume from the previous checkpoint" in said.out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path, At("training_step", 0, interrupt), epochs=1)
    assert (tmp_path / "checkpoints" / "interrupted.ckpt").is_file()  # the step is finished
    with pytest.raises(SystemExit):
        train(tmp_path / "other", At("on_train_epoch_start", 0, interrupt))
    assert not (tmp_path / "other" / "checkpoints" / "interrupted.ckpt").exists()


def test_exit_codes() -> None:
    assert exit_code(Stopped(signal.SIGINT)) == 130 and exit_code(Stopped(signal.SIGTERM)) == 143
    assert exit_code(SIGTERMException()) == 143  # before our handlers stand


def test_a_library_that_finds_the_disk_full() -> None:
    """As TensorBoard does, whose events another thread writes; other errors of the system stay what they are."""
    with pytest.raises(WriteError, match="a file of the run: got No space.*checkpoints are whole"), full_disks():
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), full_disks():
        raise PermissionError(errno.EACCES, "Permission denied")


def test_interrupts_need_exact_resume() -> None:
    trainer = Trainer(
        logger=False,
        callbacks=[InterruptCheckpoint()],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with pytest.raises(ConfigError, match="ExactResume beside it"):
        trainer.fit(build(), Data())


# --- numbers that are none


class Root(torch.autograd.Function):
    """The identity, whose gradient is NaN for the clip whose values are zero."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return torch.where((x == 0).flatten(1).all(1)[:, None, None], torch.nan, gradient)


@pytest.mark.parametrize(
    "options", [{}, {"gradient_clip_val": 1.0}, {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}]
)
def test_a_gradient_that_is_not_finite(options: dict, tmp_path: Path) -> None:
    """The loss is finite: only the gradient tells, and the step is not taken."""
    task, before = build(), {}
    losses = task.losses
    task.losses = lambda outputs, batch: losses(
        {**outputs, "logits": Root.apply(outputs["logits"] * batch["audio"].sum(-1, keepdim=True).ne(0))}, batch
    )

    class Zero(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 3:
                batch["audio"][1] = 0
                before.update(id=batch["id"], **{name: p.detach().clone() for name, p in pl_module.named_parameters()})

    with pytest.raises(NonFiniteLossError) as error:
        train(tmp_path, Zero(), task=task, **options)
    first, wrong, _last = before.pop("id")
    message = str(error.value)
    assert message.startswith("gradient: got NaN or infinity in") and "at step 3, with a finite loss" in message
    assert f"on clip {wrong};" in message and first not in message.split(" on clip ")[1]
    for name, parameter in task.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_clipping_is_what_it_was(tmp_path: Path) -> None:
    """The same parameters as with Lightning's own clipping."""
    ours, _ = train(tmp_path / "ours", gradient_clip_val=0.1)
    task = build()
    task.configure_gradient_clipping = task.clip_gradients
    theirs, _ = train(tmp_path / "theirs", task=task, gradient_clip_val=0.1)
    plain, _ = train(tmp_path / "plain")
    for name, value in state(ours).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(state(theirs)[name])), name
    assert any(
        not torch.equal(torch.as_tensor(value), torch.as_tensor(state(plain)[name]))
        for name, value in state(ours).items()
    )


# --- the schedule


@pytest.mark.parametrize(("then", "now"), [({"epochs": 2}, {"epochs": 4}), ({"max_steps": 7}, {})])
def test_a_schedule_is_planned_again(then: dict, now: dict, tmp_path: Path) -> None:
    """After resuming, the rates are those of a run that was planned for the new length."""
    schedule = {"lr_scheduler": lambda optimizer: WarmupCosine(optimizer, 0.2, 1e-4)}
    _, whole = train(tmp_path / "whole", task=build(**schedule), **now)
    train(tmp_path / "first", task=build(**schedule), **then)
    message = r"planned for (7|10) steps and is now planned for (15|20): at step (7|10) the rate"
    with pytest.warns(UserWarning, match=message):
        _, second = train(
            tmp_path / "first",
            task=build(**schedule),
            ckpt_path=tmp_path / "first" / "checkpoints" / "last.ckpt",
            **now,
        )
    rates = [[entry[-1] for entry in seen if len(entry) > 2] for seen in (whole, second)]
    assert rates[0][-len(rates[1]) :] == rates[1] and rates[1][0] > 1e-3
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the schedule was planned")
        train(
            tmp_path / "same", task=build(**schedule), ckpt_path=tmp_path / "whole" / "checkpoints" / "last.ckpt", **now
        )


def test_a_schedule_needs_an_end(tmp_path: Path) -> None:
    task = build(lr_scheduler=WarmupCosine)
    with pytest.raises(ArgumentError, match="a run without an end"):
        train(tmp_path, task=task, epochs=-1, max_time={"seconds": 1})


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scheduler that writes down what it is asked for; its answer."""
    asked, tools = tmp_path / "asked", tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    (tools / "scontrol").chmod(0o755)
    for name, value in {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4712",
        "SLURM_ARRAY_JOB_ID": "4711",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_STEP_ID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    return asked


def test_a_job_out_of_time_is_queued_again_and_goes_on(slurm: Path, whole: dict, tmp_path: Path) -> None:
    folder, before = tmp_path / "run", signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit) as stopped:
        train(folder, At("training_step", 7, lambda: os.kill(os.getpid(), signal.SIGUSR1)))
    assert stopped.value.code == 128 + signal.SIGUSR1 and slurm.read_text() == "requeue 4711_3\n"
    assert signal.getsignal(signal.SIGUSR1) is before
    assert not [*tmp_path.rglob("hpc_ckpt*"), *Path.cwd().glob("hpc_ckpt*")]  # of Lightning's own requeueing
    trainer, _ = train(folder, ckpt_path=folder / "checkpoints" / "interrupted.ckpt", seed=1)
    assert trainer.global_step == 15
    assert_same(trainer, folder, whole["plain"])


def test_a_job_that_is_stopped_is_not_queued_again(slurm: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path / "run", At("training_step", 1, lambda: os.kill(os.getpid(), signal.SIGTERM)), epochs=1)
    assert not slurm.exists()
    (tmp_path / "tools" / "scontrol").write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    with pytest.raises(SystemExit):
        train(tmp_path / "other", At("training_step", 1, lambda: os.kill(os.getpid(), signal.SIGUSR1)), epochs=1)
    assert "SLURM job 4711_3 is not queued again: no such job" in capfd.readouterr().out


def test_a_job_that_was_queued_again_finds_its_run(
    slurm: Path, ave_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avprompt.cli import run

    command = [
        "fit",
        "--config",
        "ave_linear_probe_quickstart",
        "--data.root",
        str(ave_root),
        "--trainer.max_epochs",
        "9",
        "--trainer.limit_val_batches",
        "1",
        "--trainer.num_sanity_val_steps",
        "0",
        "--trainer.logger.save_dir",
        str(tmp_path / "runs"),
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.limit_train_batches",
        "1",
    ]
    run([*command, "--trainer.max_steps", "1"])
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert folder.name == "slurm_4711_3.0"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run([*command, "--trainer.max_steps", "2"])
    assert [path.name for path in folder.parent.iterdir()] == ["slurm_4711_3.0"]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert read_json(folder / "result.json")["config"]["ckpt_path"].endswith("slurm_4711_3.0/checkpoints/last.ckpt")
