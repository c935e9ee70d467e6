"""The template of a task: one LightningModule over the shared backbone, which adds a head, losses and metrics."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from PIL import Image
from torch import Tensor

from avprompt import checkpoints
from avprompt.backbone import AVPromptBackbone
from avprompt.errors import NonFiniteLossError
from avprompt.schedules import WarmupCosine


class AVPromptTask(LightningModule, abc.ABC):
    """What every task shares: steps, logging, the optimizer over trained parameters only, owned-weights checkpoints.

    A subclass builds its head in `__init__` and implements `forward`, `losses`, `update_metrics` and
    `compute_metrics`. Hyper-parameters are not stored in checkpoints: `config.yaml` beside them is the truth, so nothing
    in a checkpoint can override a command line.

    Args:
        backbone: the audio-visual feature extractor.
        optimizer: called with the trained parameters.
        lr_scheduler: called with the optimizer, stepped once an epoch (`WarmupCosine`: after every batch); `None` keeps the
            learning rate.
        prompt_lr: learning rate of what is trained inside the backbone (prompts; encoders where they are not frozen); `None`
            is the optimizer's. Prompts behind a zero gate start slower than a head.
    """

    #: what checkpoints are selected by, and whether more or less of it is better
    monitor = "val_loss"
    mode = "min"
    #: over how many examples `compute_metrics` averaged last, by name, where a metric is one of several kinds
    counts: dict[str, int] = {}

    def __init__(self, backbone: AVPromptBackbone, optimizer: OptimizerCallable = torch.optim.Adam,
                 lr_scheduler: LRSchedulerCallable | None = None, prompt_lr: float | None = None) -> None:
        super().__init__()
        self.strict_loading = False  # Lightning's own check knows full state dicts only; ours is stricter
        self.backbone = backbone
        self.optimizer, self.lr_scheduler, self.prompt_lr = optimizer, lr_scheduler, prompt_lr

    @abc.abstractmethod
    def forward(self, batch: dict[str, Any], maps: bool = False) -> dict[str, Tensor]:
        """A batch (flat dict) -> named outputs; with `maps`, attention maps too, for pictures."""

    @abc.abstractmethod
    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Named scalar loss terms; the training loss is their sum."""

    @abc.abstractmethod
    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs -> what the data module draws of each clip: `prediction` (B, ...), and maps."""

    @abc.abstractmethod
    def prediction_rows(self, outputs: dict[str, Tensor], batch: dict[str, Any],
                        class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Outputs -> rows of the table that `avprompt predict` writes."""

    def prediction_files(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Image.Image]:
        """Pictures that are results themselves, by path below the run's folder."""
        return {}

    @abc.abstractmethod
    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        """Count an evaluated batch."""

    @abc.abstractmethod
    def compute_metrics(self) -> dict[str, Tensor]:
        """Name -> value in [0, 1] over everything counted since the last call; resets the count."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One training batch -> loss.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; no parameter has been changed by this batch.
        """
        terms = self.losses(self(batch), batch)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            values = {name: float(term) for name, term in terms.items()}
            raise NonFiniteLossError(
                "loss", f"{values} on clips {batch['id']} at step {self.global_step}", "finite loss terms",
                "Nothing was updated. Lower the learning rate, clip gradients, or look at these clips.")
        self.log_dict({f"train_{name}": term.detach() for name, term in terms.items()}, batch_size=len(batch["id"]),
                      on_step=False, on_epoch=True)
        self.log("train_loss", loss.detach(), batch_size=len(batch["id"]), on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def _evaluate(self, stage: str, batch: dict[str, Any]) -> None:
        outputs = self(batch)
        terms = self.losses(outputs, batch)
        self.update_metrics(outputs, batch)
        self.log(f"{stage}_loss", torch.stack(list(terms.values())).sum(), batch_size=len(batch["id"]), sync_dist=True)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Count one batch of the selection split."""
        self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Count one batch of the test split."""
        self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Log `val_<metric>`."""
        self.log_dict({f"val_{name}": value for name, value in self.compute_metrics().items()}, prog_bar=True)

    def on_test_epoch_end(self) -> None:
        """Log `test_<metric>`."""
        self.log_dict({f"test_{name}": value for name, value in self.compute_metrics().items()})

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """One batch -> its outputs, maps included."""
        return self(batch, maps=True)

    def configure_optimizers(self) -> Any:
        """The optimizer over the parameters that require a gradient, and the schedule where there is one."""
        inside = {id(parameter) for parameter in self.backbone.parameters()}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [p for p in trained if id(p) not in inside]}]
        if prompts := [p for p in trained if id(p) in inside]:
            groups.append({"params": prompts, **({} if self.prompt_lr is None else {"lr": self.prompt_lr})})
        optimizer = self.optimizer(groups)
        if self.lr_scheduler is None:
            return optimizer
        scheduler, interval = self.lr_scheduler(optimizer), "epoch"
        if isinstance(scheduler, WarmupCosine):
            interval = "step"
            if self._trainer is not None:  # a step may be timed without one
                scheduler.plan(int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval,
                                                         "monitor": self.monitor}}

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> dict[str, Tensor]:
        """What this task owns: trained parameters and the buffers beside them."""
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        owned = {prefix + name for name in checkpoints.trainable_state_names(self)}
        for name in [name for name in state if name.startswith(prefix) and name not in owned]:
            del state[name]
        return state

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load exactly what this task owns.

        Raises:
            CheckpointError: a tensor is missing, unexpected or has another shape.
        """
        checkpoints.check_names(self, state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the fingerprint of the frozen encoders."""
        checkpoint[checkpoints.RECORD] = checkpoints.record(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that fingerprint.

        Raises:
            CheckpointError: a foreign checkpoint, or one trained on other frozen weights.
        """
        checkpoints.check_record(self, checkpoint.get(checkpoints.RECORD))
