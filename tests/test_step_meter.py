"""What a training step costs, as result.json says it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from avprompt.callbacks import StepMeter
from avprompt.callbacks.steps import LiveTensors

WIDTH, HIDDEN, BATCH, FLOAT = 32, 4096, 8, 4
#: weights of both layers, without biases
WEIGHTS = 2 * WIDTH * HIDDEN * FLOAT


class Clips(Dataset):
    """Clips that take time to load."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 8 * BATCH

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.full((WIDTH,), float(index))


class Network(LightningModule):
    """Two layers."""

    def __init__(self, momentum: float = 0.0, fail: bool = False) -> None:
        super().__init__()
        self.first = torch.nn.Linear(WIDTH, HIDDEN, bias=False)
        self.second = torch.nn.Linear(HIDDEN, WIDTH, bias=False)
        self.momentum, self.fail = momentum, fail

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.fail and self.global_step:
            raise RuntimeError("a step that ends early")
        return self.second(self.first(batch).relu()).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6, momentum=self.momentum)


def fit(tmp_path: Path, network: Network, seconds: float = 0.0, **options: Any) -> StepMeter:
    meter = StepMeter()
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        max_epochs=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[meter],
        **options,
    )
    trainer.fit(network, DataLoader(Clips(seconds), batch_size=BATCH))
    return meter


def test_memory_is_what_the_tensors_take(tmp_path: Path) -> None:
    """Weights, their gradients, and what the passes keep of the hidden layer; exactly the same each time."""
    hidden = BATCH * HIDDEN * FLOAT
    plain = fit(tmp_path, Network()).measured["memory_bytes"]
    assert 2 * WEIGHTS < plain < 2 * WEIGHTS + 4 * hidden
    moving = fit(tmp_path, Network(momentum=0.9)).measured["memory_bytes"]
    assert moving - plain == WEIGHTS  # the optimizer's state
    assert fit(tmp_path, Network()).measured["memory_bytes"] == plain  # the same each time


def test_a_step_of_several_batches(tmp_path: Path) -> None:
    """Gradients that are kept from batch to batch count, as does the update after the last one."""
    several = fit(tmp_path, Network(momentum=0.9), accumulate_grad_batches=2).measured
    assert several["memory_bytes"] >= 3 * WEIGHTS and several["n"] == 5  # of 8: the first one and two that count bytes


def test_what_is_computed_again_is_not_kept() -> None:
    layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(8))
    clips = torch.zeros(512, 64)

    def half(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return layer(torch.nn.functional.gelu(x))

    def peak(again: bool) -> int:
        with LiveTensors([clips, *layers.parameters()]) as live:
            x = clips.clone().requires_grad_()
            for layer in layers:
                x = checkpoint(half, layer, x, use_reentrant=False) if again else half(layer, x)
            x.sum().backward()
        return live.peak

    assert peak(True) < 0.75 * peak(False)


def test_seconds_leave_out_the_data(tmp_path: Path) -> None:
    """Eight batches of 0.08 s to load."""
    measured = fit(tmp_path, Network(), seconds=0.01).measured
    assert measured["n"] == 6  # the first one warms up, one counts bytes
    assert 0 < measured["processor_s"] < 0.08 and 0 < measured["wall_s"] < 0.08


def test_too_few_steps_say_nothing(tmp_path: Path) -> None:
    assert fit(tmp_path, Network(), limit_train_batches=1).measured == {
        "n": 0,
        "wall_s": None,
        "processor_s": None,
        "memory_bytes": None,
    }


def test_a_step_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ends early"):
        fit(tmp_path, Network(fail=True))
    assert not is_in_torch_dispatch_mode()
