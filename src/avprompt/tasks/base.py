"""The template of a task: one LightningModule over a source of features, which adds a head, losses and metrics."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from PIL import Image
from torch import Tensor, nn

from avprompt import checkpoints
from avprompt.errors import ArgumentError, NonFiniteLossError, ShapeError
from avprompt.features import AVFeatures, FeatureSource, ForeignSource
from avprompt.processes import AllClips, check_strategy, gathered, gathered_objects, world
from avprompt.schedules import WarmupCosine

#: a column of the table of predictions: a value for each clip, or for each segment of each clip
Column = Tensor | Sequence[Any]


def named(indices: Tensor, names: Sequence[str]) -> list[Any]:
    """Category indices of any shape -> nested lists of their names.

    Example:
        >>> named(torch.tensor([[0, 1], [1, 1]]), ["bell", "dog"])
        [['bell', 'dog'], ['dog', 'dog']]
    """
    return [named(part, names) if part.ndim else names[int(part)] for part in indices]


def cell(column: Column, clip: int, segment: int | None) -> Any:
    """One value of a column as plain Python; that of the whole clip where the column has one a clip."""
    value = column[clip]
    if segment is not None and (value.ndim if isinstance(value, Tensor) else isinstance(value, (list, tuple))):
        value = value[segment]
    value = value.item() if isinstance(value, Tensor) else value
    return round(value, 4) if isinstance(value, float) else value


class AVPromptTask(LightningModule, abc.ABC):
    """What every task shares: steps, logging, metrics, the table of predictions, the optimizer, checkpoints.

    A subclass builds its head and puts its metrics into `self.metrics` in `__init__`; it implements `head_outputs`,
    `losses`, `decisions`, `columns` and `update_metrics`. Checkpoints hold the trainable state alone. Hyper-parameters
    are not stored in them: `config.yaml` beside them is the truth, so that nothing in a checkpoint can override a
    command line.

    Args:
        backbone: computes the features, see `FeatureSource`; in Python any module with `forward(batch) -> AVFeatures`,
            `visual_dim` and `audio_dim` serves.
        optimizer: called with the trained parameters.
        lr_scheduler: called with the optimizer, stepped once an epoch (`WarmupCosine`: after every batch); `None` keeps
            the learning rate.
        prompt_lr: learning rate of what is trained inside the backbone (prompts; encoders where they are not frozen);
            `None` is the optimizer's. Prompts behind a zero gate start slower than a head.
        method_losses: weights of the prompt method's auxiliary losses, by name: `balance` weighs that loss of every
            block pair, `balance@3` that of block pair 3 alone. A loss without a weight has weight 1, one with weight 0
            is logged and not trained on. A name that the method does not have stops training with an error.
        gather: on several processes, compute the losses of a training step over the clips of all processes. Then k
            processes with batches of B clips train like one with k B: contrastive losses compare all clips, and means
            weigh every clip alike. With `false`, as in the released code, each process computes the losses of its own
            clips, and the gradients are averaged. Losses of the prompt method are always computed by each process and
            averaged.

    Raises:
        ArgumentError: a weight that is not a finite number.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> from avprompt.tasks import AVELinear
        >>> task = AVELinear(AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none")), num_classes=3)
        >>> batch = {"id": ["clip"], "frames": torch.zeros(1, 2, 3, 64, 64), "audio": torch.zeros(1, 2, 16000)}
        >>> task(batch)["logits"].shape
        torch.Size([1, 2, 4])
    """

    #: what checkpoints are selected by, and whether more or less of it is better
    monitor = "val_loss"
    mode = "min"
    #: whether `forward` resizes frames to the size that the visual encoder takes
    resizes_frames = False
    #: what values of the metrics are divided by, 100 where these are in percent
    metric_unit = 1.0
    #: whether the table of predictions has a row for each segment, or for each clip
    row_per_segment = True
    #: outputs that are not of single clips: the same in every process, or gathered already
    common_outputs: tuple[str, ...] = ()
    #: over how many examples `compute_metrics` averaged last, by name, where a metric is one of several kinds
    counts: dict[str, int] = {}

    def __init__(self, backbone: FeatureSource, optimizer: OptimizerCallable = torch.optim.Adam,
                 lr_scheduler: LRSchedulerCallable | None = None, prompt_lr: float | None = None,
                 method_losses: dict[str, float] | None = None, gather: bool = True) -> None:
        super().__init__()
        self.gather = gather
        self.strict_loading = False  # Lightning's own check knows full state dicts only; ours is stricter
        self.method_losses = dict(method_losses or {})
        for name, weight in self.method_losses.items():
            if not math.isfinite(weight):
                raise ArgumentError(f"method_losses.{name}", weight, "a finite number", "0 switches the loss off.")
        self.backbone = backbone if isinstance(backbone, FeatureSource) else ForeignSource(backbone)
        self.optimizer, self.lr_scheduler, self.prompt_lr = optimizer, lr_scheduler, prompt_lr
        self.metrics = nn.ModuleDict()

    # --- what a subclass implements

    @abc.abstractmethod
    def head_outputs(self, features: AVFeatures, batch: dict[str, Any], maps: bool) -> dict[str, Tensor]:
        """Features of the batch -> the task's named outputs; with `maps`, those that the head makes, named
        `map_...`."""

    @abc.abstractmethod
    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The task's own loss terms by name, scalars; the training loss is their sum and the method's."""

    @abc.abstractmethod
    def decisions(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs -> decisions, `prediction` (B, ...) in most tasks."""

    @abc.abstractmethod
    def columns(self, outputs: dict[str, Tensor], batch: dict[str, Any],
                class_names: Sequence[str]) -> dict[str, Column]:
        """Outputs -> columns of the table of predictions, a value for each clip or for each segment of each clip."""

    @abc.abstractmethod
    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        """Count an evaluated batch in `self.metrics`."""

    def extract(self, batch: dict[str, Any], maps: bool) -> AVFeatures:
        """The features of a batch."""
        return self.backbone(batch, maps=maps)

    def prediction_files(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Image.Image]:
        """Pictures that are results themselves, by path below the run's folder."""
        return {}

    # --- what all tasks do alike

    def setup(self, stage: str) -> None:
        """Refuse strategies that split the network, whose checkpoints would be parts.

        Raises:
            ConfigError: neither one device nor ddp.
        """
        if self._trainer is not None:
            check_strategy(type(self.trainer.strategy).__name__)

    def forward(self, batch: dict[str, Any], maps: bool = False) -> dict[str, Tensor]:
        """A batch (flat dict) -> the outputs of `head_outputs`.

        With `maps` they also hold attention maps, `map_<name>` (B, T, rows, columns), and the method's tables,
        `table_<name>` (B, T, K). Where the prompt method has auxiliary losses they hold these under `method_losses`, a
        dict of scalars.
        """
        features = self.extract(batch, maps)
        found = {**{f"map_{name}": value for name, value in features.maps.items()},
                 **{f"table_{name}": value for name, value in features.tables.items()}}
        auxiliary = {"method_losses": features.losses} if features.losses else {}
        return {**self.head_outputs(features, batch, maps), **found, **auxiliary}

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs -> what the data module draws of each clip: the decisions, and the maps as they are."""
        maps = {name: value for name, value in outputs.items() if name.startswith("map_")}
        return {**self.decisions(outputs), **maps}

    def prediction_rows(self, outputs: dict[str, Tensor], batch: dict[str, Any],
                        class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Outputs -> rows of the table that `avprompt predict` writes, one a segment or one a clip.

        Every row has `id`, `start` and `end` in seconds of the video, the task's `columns`, `decoded` (whether the
        media of the segment, or of all segments, could be read), and `path` of the video where that is known.

        Args:
            outputs: of `forward`.
            batch: with `times` (B, T, 2), begin and end of each segment in seconds, and `valid` (B, T).
            class_names: of the categories.

        Raises:
            ShapeError: the batch has no `times`, or others.
        """
        valid, times = batch["valid"], batch.get("times")
        if times is None or tuple(times.shape) != (*valid.shape, 2):
            raise ShapeError("times", None if times is None else tuple(times.shape),
                             f"{(*valid.shape, 2)}, begin and end of each segment in seconds",
                             "Give every sample of the data module `times` (T, 2), see `Sampling.times`.")
        columns, rows = self.columns(outputs, batch, class_names), []
        for clip, clip_id in enumerate(batch["id"]):
            for segment in range(valid.shape[1]) if self.row_per_segment else [None]:
                spans, decoded = (times[clip], valid[clip]) if segment is None else (
                    times[clip, segment:segment + 1], valid[clip, segment])
                rows.append({"id": clip_id, "start": round(float(spans[0, 0]), 3), "end": round(float(spans[-1, 1]), 3),
                             **{name: cell(column, clip, segment) for name, column in columns.items()},
                             "decoded": bool(decoded.all()), "path": batch["path"][clip] if "path" in batch else ""})
        return rows

    def compute_metrics(self) -> dict[str, Tensor]:
        """Name -> value in [0, 1] over everything counted since the last call; resets the count.

        A metric that is a dictionary contributes its entries. A metric that was not updated is left out.
        """
        found: dict[str, Any] = {}
        counted = {name: metric for name, metric in self.metrics.items() if metric.update_called}
        self.counts = {}
        for name, metric in counted.items():
            value = metric.compute()
            found |= value if isinstance(value, Mapping) else {name: value}
            self.counts |= metric.counts() if hasattr(metric, "counts") else {}
        self.reset_metrics()
        return {name.replace(" ", "_"): (torch.as_tensor(value, dtype=torch.float64) / self.metric_unit).float()
                for name, value in found.items()}

    def reset_metrics(self) -> None:
        """Forget what was counted."""
        for metric in self.metrics.values():
            metric.reset()

    def weight_of(self, name: str) -> float:
        """Weight of a method's loss such as `balance@3`: its own, that of `balance`, or else 1."""
        return self.method_losses.get(name, self.method_losses.get(name.partition("@")[0], 1.0))

    @property
    def gathers(self) -> bool:
        """Whether the losses are now those of the clips of all processes, see `gather`."""
        return self.gather and world() > 1 and torch.is_grad_enabled()

    def objective(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss of a batch, and what is logged of it.

        Args:
            outputs: of `forward`.
            batch: what they were computed from.

        Returns:
            The sum of the task's terms and the weighted losses of the prompt method, a scalar; and by name each term as
            it is added, each loss of the method without its weight, and their sum over block pairs.

        Raises:
            ArgumentError: a weight for a loss that the method does not have, or a loss that has a term's name.
        """
        auxiliary = outputs.get("method_losses", {})
        if self.gathers:
            outputs, batch = AllClips(outputs, self.common_outputs), AllClips(batch)
            auxiliary = {name: gathered(loss.reshape(1)).mean() for name, loss in auxiliary.items()}
        terms = self.losses(outputs, batch)
        families = {name: name.partition("@")[0] for name in auxiliary}
        unknown = sorted(set(self.method_losses) - {*families, *families.values()})
        if unknown and self.training:  # in evaluation a method may leave its losses out
            raise ArgumentError("method_losses", unknown, f"some of {sorted({*families, *families.values()})}, which "
                                "the prompt method has", "Correct the name, or choose another prompt method.")
        if twice := sorted(terms.keys() & {*families, *families.values()}):
            raise ArgumentError("losses", twice, f"names other than the task's own {sorted(terms)}",
                                "Rename the loss in the prompt method.")
        weighed = [self.weight_of(name) * value for name, value in auxiliary.items() if self.weight_of(name)]
        shown = {**terms, **auxiliary}
        for family in dict.fromkeys(families.values()):
            shown.setdefault(family, sum(value for name, value in auxiliary.items() if families[name] == family))
        return torch.stack([*terms.values(), *weighed]).sum(), shown

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One training batch -> loss.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; no parameter has been changed by this batch.
        """
        outputs = self(batch)
        loss, terms = self.objective(outputs, batch)
        if not torch.isfinite(loss):
            values = {name: float(term) for name, term in terms.items()}
            raise NonFiniteLossError(
                "loss", f"{values} on clips {self._suspects(outputs, batch)} at step {self.global_step}", "finite loss terms",
                "Nothing was updated. Lower the learning rate, clip gradients, or look at these clips.")
        self.log_dict({f"train_{name}": term.detach() for name, term in terms.items()}, batch_size=len(batch["id"]),
                      on_step=False, on_epoch=True, sync_dist=not self.gather)
        self.log("train_loss", loss.detach(), batch_size=len(batch["id"]), on_step=True, on_epoch=True, prog_bar=True,
                 sync_dist=not self.gather)
        return loss

    def _suspects(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> list[str]:
        """Clips of the processes whose outputs are not finite, where the losses are of all; otherwise of this batch."""
        if not self.gathers:
            return batch["id"]
        finite = all(bool(torch.isfinite(value).all()) for value in outputs.values() if torch.is_tensor(value))
        return [clip for part in gathered_objects([] if finite else batch["id"]) for clip in part] or batch["id"]

    def _evaluate(self, stage: str, batch: dict[str, Any]) -> None:
        outputs = self(batch)
        loss, _ = self.objective(outputs, batch)
        self.update_metrics(outputs, batch)
        self.log(f"{stage}_loss", loss, batch_size=len(batch["id"]), sync_dist=True)

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
        """The trainable state: trained parameters and the buffers beside them."""
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        kept = {prefix + name for name in checkpoints.trainable_state_names(self)}
        for name in [name for name in state if name.startswith(prefix) and name not in kept]:
            del state[name]
        return state

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load exactly the trainable state.

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
