"""Training that stops anywhere goes on bit for bit: weights, batch norm statistics, optimizer, order of clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from avprompt import AVPromptBackbone
from avprompt.callbacks import ExactResume, InterruptCheckpoint, LastCheckpoint, TaskCheckpoint
from avprompt.cli import run
from avprompt.data_modules import AVEDataModule
from avprompt.encoders import TinyHTSAT, TinySwinV2
from avprompt.errors import CheckpointError, DatasetError, NonFiniteLossError
from avprompt.methods import DGSCT
from avprompt.synthetic.scenes import CATEGORIES
from avprompt.tasks import AVE

EPOCHS = 3


class Watch(Callback):
    """Notes the clips of every batch; stops after `stop` batches as Ctrl-C would."""

    def __init__(self, stop: int | None = None) -> None:
        self.ids: list[list[str]] = []
        self.stop = stop

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: dict, batch_idx: int) -> None:
        self.ids.append(batch["id"])
        if len(self.ids) == self.stop:
            raise KeyboardInterrupt


def make(ave_root: Path, workers: int = 0, seed: int = 0) -> tuple[AVE, AVEDataModule]:
    seed_everything(seed, verbose=False)
    backbone = AVPromptBackbone(TinySwinV2(), TinyHTSAT(), DGSCT(num_tokens=2, reduction=4))
    task = AVE(
        backbone,
        8,
        optimizer=lambda p: torch.optim.Adam(p, 1e-3),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
    )
    data = AVEDataModule(
        ave_root, categories=list(CATEGORIES), batch_size=5, image_size=64, sample_rate=16000, num_workers=workers
    )
    return task, data


def train(
    task: AVE, data: AVEDataModule, folder: Path, watch: Watch, epochs: int = EPOCHS, ckpt_path: Path | None = None
) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name=None, version=""),
        callbacks=[ExactResume(), TaskCheckpoint(), LastCheckpoint(), InterruptCheckpoint(), watch],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=1,
        num_sanity_val_steps=1,
        log_every_n_steps=1,
    )
    trainer.fit(task, data, ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(scope="module")
def whole(ave_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list, dict]:
    """An uninterrupted run: owned weights, order of clips, optimizer state."""
    task, data = make(ave_root)
    watch = Watch()
    trainer = train(task, data, tmp_path_factory.mktemp("whole"), watch)
    return task.state_dict(), watch.ids, trainer.optimizers[0].state_dict()


def assert_same(task: AVE, optimizer: torch.optim.Optimizer, whole: tuple) -> None:
    state, _, expected = whole
    assert state.keys() == task.state_dict().keys()
    for name, value in task.state_dict().items():
        assert torch.equal(value, state[name]), name
    for index, slot in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, expected["state"][index][key]) for key, value in slot.items())
    assert optimizer.state_dict()["param_groups"] == expected["param_groups"]


def test_the_run_under_test_is_not_trivial(whole: tuple) -> None:
    _, ids, _ = whole
    epochs = [ids[i : i + 5] for i in (0, 5, 10)]
    assert len(ids) == 15 and epochs[0] != epochs[1] != epochs[2]
    task, _ = make(Path())
    assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in task.modules())
    assert any(isinstance(m, torch.nn.BatchNorm1d) for m in task.modules())


@pytest.mark.parametrize("workers", [0])
def test_resume_at_the_end_of_an_epoch(workers: int, ave_root: Path, whole: tuple, tmp_path: Path) -> None:
    first, second = Watch(), Watch()
    train(*make(ave_root, workers), tmp_path, first, epochs=1)
    task, data = make(ave_root, workers, seed=99)
    trainer = train(task, data, tmp_path, second, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert first.ids + second.ids == whole[1]
    assert_same(task, trainer.optimizers[0], whole)


@pytest.mark.parametrize(("workers", "stop"), [(2, 7), (0, 10)])
def test_resume_inside_an_epoch(workers: int, stop: int, ave_root: Path, whole: tuple, tmp_path: Path) -> None:
    first, second = Watch(stop), Watch()
    with pytest.raises(SystemExit):
        train(*make(ave_root, workers), tmp_path, first)
    interrupted = tmp_path / "checkpoints" / "interrupted.ckpt"
    task, data = make(ave_root, workers, seed=99)
    trainer = train(task, data, tmp_path, second, ckpt_path=interrupted)
    assert first.ids + second.ids == whole[1]
    assert_same(task, trainer.optimizers[0], whole)


def test_nothing_to_resume_where_nothing_was_trained(tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        run(
            [
                "fit",
                "--config",
                str(ROOT / "experiments" / "quickstart.yaml"),
                "--data.root",
                str(tmp_path / "nowhere"),
                "--trainer.logger.save_dir",
                str(tmp_path),
            ]
        )
    assert not list(tmp_path.rglob("*.ckpt"))


def test_non_finite_loss_stops_before_the_step(ave_root: Path, tmp_path: Path) -> None:
    """P21: otherwise training goes on with NaN weights."""
    task, data = make(ave_root)
    before: dict[str, torch.Tensor] = {}

    class Poison(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: AVE, batch: dict, batch_idx: int) -> None:
            if batch_idx == 2:
                before.update({name: p.detach().clone() for name, p in pl_module.named_parameters()})
                before["ids"] = batch["id"]
                batch["audio"][0, 3] = float("nan")

    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[Poison()],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    with pytest.raises(NonFiniteLossError) as error:
        trainer.fit(task, data)
    message = str(error.value)
    poisoned, *others = before.pop("ids")
    assert f"on clip {poisoned};" in message and not any(clip in message for clip in others)
    assert "'segment': nan" in message and "step 2" in message
    for name, parameter in task.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_owned_weights_are_complete(tmp_path: Path) -> None:
    """Everything that training can change is in a checkpoint, and nothing else."""
    task, _ = make(Path())
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
        for buffer in task.backbone.prompts.buffers():
            buffer.add_(3)
    state = task.state_dict()
    prompts_and_head = {f"backbone.prompts.{n}" for n in task.backbone.prompts.state_dict()} | {
        f"head.{n}" for n in task.head.state_dict()
    }
    assert state.keys() == prompts_and_head
    other, _ = make(Path(), seed=5)
    other.load_state_dict(state)
    for name, value in other.state_dict().items():
        assert torch.equal(value, state[name])


def test_wrong_keys_are_listed() -> None:
    task, _ = make(Path())
    state = task.state_dict()
    state["head.localize.event.wight"] = state.pop("head.localize.event.weight")
    with pytest.raises(CheckpointError, match=r"missing \['head.localize.event.weight'\], unexpected .*wight"):
        task.load_state_dict(state)
    state = task.state_dict()
    state["head.localize.event.weight"] = torch.zeros(3, 256)
    with pytest.raises(CheckpointError, match=r"other shapes \['head.localize.event.weight'\]"):
        task.load_state_dict(state)


def test_other_frozen_weights_are_refused(ave_root: Path, tmp_path: Path) -> None:
    task, data = make(ave_root)
    train(task, data, tmp_path, Watch(), epochs=1)
    other, data = make(ave_root)
    with torch.no_grad():
        other.backbone.audio.stages[0].blocks[0].feed_forward.fc1.weight[0, 0] += 1.0
    with pytest.raises(CheckpointError, match="backbone.audio trained on TinyHTSAT"):
        train(other, data, tmp_path, Watch(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt")


def test_moving_statistics_of_a_released_procedure_are_owned() -> None:
    backbone = AVPromptBackbone(TinySwinV2(), TinyHTSAT(released_mode=True), DGSCT(num_tokens=2, reduction=4))
    state = AVE(backbone, 8).state_dict()
    assert {n for n in state if n.startswith("backbone.audio.")} == {
        f"backbone.audio.bn0.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")
    }
