"""A task of milliseconds whose training depends on everything that a resumed run has to bring back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch import Tensor, nn
from torch.utils.data import Dataset

from avprompt.callbacks import ExactResume, InterruptCheckpoint, LastCheckpoint, TaskCheckpoint
from avprompt.features import AVFeatures, FeatureSource
from avprompt.media.samplers import ResumableLoader
from avprompt.tasks import AVELinear

# TensorBoard reads files in the order of their names, which end with second, process and number: all of one length here
event_file_writer._global_uid = event_file_writer.AtomicCounter(1000)

SEGMENTS, VISUAL, AUDIO, CLASSES = 2, 4, 3, 3


class Features(Dataset):
    """Clips of random features, always the same."""

    def __init__(self, clips: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.visual = torch.randn(clips, SEGMENTS, VISUAL, generator=generator)
        self.audio = torch.randn(clips, SEGMENTS, AUDIO, generator=generator)
        self.event = nn.functional.one_hot(torch.arange(clips) % CLASSES, CLASSES + 1).float()

    def __len__(self) -> int:
        return len(self.event)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "id": f"clip{index}",
            "visual": self.visual[index],
            "audio": self.audio[index],
            "event": self.event[index].expand(SEGMENTS, -1),
        }


class Data(LightningDataModule):
    """Five batches an epoch, the last one smaller; two batches of validation."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = 0

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(Features(14, 1), 3, shuffle=True)

    def val_dataloader(self) -> ResumableLoader:
        return ResumableLoader(Features(6, 2), 3)


class Noisy(FeatureSource):
    """Noise from the global generator in training, and batch norm."""

    visual_dim, audio_dim, batch_keys = VISUAL, AUDIO, ("visual", "audio")

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(VISUAL)

    def forward(self, batch: dict[str, Any], prompted: bool = True, maps: bool = False) -> AVFeatures:
        visual = self.norm(batch["visual"].flatten(0, 1)).unflatten(0, batch["visual"].shape[:2])
        if self.training:
            visual = visual + torch.randn_like(visual)
        return AVFeatures(visual, batch["audio"], visual[:, :, None], batch["audio"][:, :, None], [])


def build(seed: int = 0, **options: Any) -> AVELinear:
    """The task with its weights."""
    seed_everything(seed, verbose=False)
    return AVELinear(
        Noisy(),
        CLASSES,
        optimizer=lambda groups: torch.optim.Adam(groups, 0.05),
        **{"lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9), **options},
    )


class Watch(Callback):
    """Notes every batch, validation and end of an epoch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen.append(("epoch", trainer.current_epoch))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(
            (trainer.current_epoch, batch_idx, *batch["id"], round(trainer.optimizers[0].param_groups[0]["lr"], 9))
        )

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.seen.append(("validated", trainer.global_step))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen.append(("end", trainer.global_step))


def train(
    folder: Path,
    *extra: Callback,
    task: AVELinear | None = None,
    ckpt_path: Path | None = None,
    epochs: int = 3,
    seed: int = 0,
    **options: Any,
) -> tuple[Trainer, list[Any]]:
    """Fit in a folder; the trainer, and what happened."""
    watch = Watch()
    options = {"log_every_n_steps": 1, "num_sanity_val_steps": 1, **options}
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name=None, version=""),
        callbacks=[ExactResume(), TaskCheckpoint(), LastCheckpoint(), InterruptCheckpoint(), watch, *extra],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    trainer.watch = watch
    trainer.fit(build(seed) if task is None else task, Data(), ckpt_path=ckpt_path)
    return trainer, watch.seen


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) by name."""
    found = EventAccumulator(str(folder), {"scalars": 0})
    found.Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Trained weights and buffers, and the optimizer's moments."""
    slots = trainer.optimizers[0].state_dict()["state"]
    return {
        **trainer.lightning_module.state_dict(),
        **{f"{index}.{name}": value for index, slot in slots.items() for name, value in slot.items()},
    }


@contextmanager
def leaving() -> Iterator[None]:
    """A run that is expected to stop."""
    try:
        yield
    except (SystemExit, RuntimeError):
        pass
    else:
        raise AssertionError("nothing stopped the run")
