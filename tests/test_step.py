"""A training step: precision, waiting for the device, the optimizer, what is kept for the backward pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from conftest import ROOT
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from avprompt.cli import parts_of

#: an experiment of every task, and of AVE with each objective that reads a mask
TASKS = ("quickstart", "ave_linear_probe_quickstart", "avvp_quickstart", "avs_s4_quickstart", "avs_ms3_quickstart",
         "avqa_quickstart", "avar_avstfp_quickstart", "fewshot_ave_quickstart", "ave_psp_vgg19")


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """Tasks and data modules, built when they are asked for."""
    return {}


def task_of(parts: dict[str, Any], name: str) -> tuple[Any, Any]:
    if name not in parts:
        parts[name] = parts_of(["--config", str(ROOT / "experiments" / f"{name}.yaml")])
    return parts[name]


class Waits(TorchDispatchMode):
    """Counts the operations for which a program waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(own, Tensor) and own.dtype in (torch.bool, torch.uint8) for own in args[1])
        if masks or name in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "_unique2"):
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


class Examples(Dataset):
    """A made batch, whole, as often as it is asked for."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.batch)


class Watch(Callback):
    """Counts in every training step, from the batch on the device to the update."""

    def __init__(self) -> None:
        self.waits = Waits()

    def on_train_batch_start(self, *_: Any) -> None:
        self.waits.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.waits.__exit__(None, None, None)


@pytest.mark.parametrize("name", TASKS)
def test_a_training_step_waits_for_nothing(name: str, parts: dict[str, Any]) -> None:
    """No value is read back and nothing is selected by a mask; a video with two questions is still encoded once."""
    task, data = task_of(parts, name)
    batch = data.example_batch(2)
    if name == "avqa_quickstart":
        batch = {key: value[[0, 0]] if torch.is_tensor(value) else [value[0]] * 2 for key, value in batch.items()}
    watch = Watch()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=True,
                      enable_model_summary=False, max_epochs=1, limit_val_batches=0, callbacks=[watch],
                      log_every_n_steps=50)
    trainer.fit(task, DataLoader(Examples(batch), batch_size=None))
    assert trainer.global_step == 3 and not watch.waits.found, watch.waits.found


@pytest.mark.parametrize("name", TASKS)
def test_every_task_computes_in_float64(name: str, parts: dict[str, Any]) -> None:
    """`.double()` reaches every part, front ends and losses included: the step is in float64 from end to end."""
    task, data = task_of(parts, name)
    batch = data.example_batch(1 if name != "fewshot_ave_quickstart" else 2)
    try:
        task.double().train()
        loss, _ = task.total_loss(task(batch), batch)
        loss.backward()
        assert loss.dtype is torch.float64
        assert {p.grad.dtype for p in task.parameters() if p.grad is not None} == {torch.float64}
    finally:
        task.float().zero_grad()
