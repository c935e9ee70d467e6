"""The template of a task: one LightningModule over a source of features, which adds a head, losses and metrics."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from PIL import Image
from torch import Tensor, nn

from avprompt import checkpoints
from avprompt.errors import ArgumentError, NonFiniteLossError, ShapeError
from avprompt.features import AVFeatures, FeatureSource, ForeignSource
from avprompt.processes import AllClips, check_strategy, gathered, gathered_objects, world
from avprompt.ranges import Number, Positive
from avprompt.schedules import WarmupCosine
from avprompt.tasks.guard import Guard, Step, fuse, read

#: a column of the table of predictions: a value for each clip, or for each segment of each clip
Column: TypeAlias = Tensor | Sequence[Any]


def named(indices: Tensor, names: Sequence[str]) -> list[Any]:
    """Category indices of any shape -> nested lists of their names.

    Example:
        >>> named(torch.tensor([[0, 1], [1, 1]]), ["bell", "dog"])
        [['bell', 'dog'], ['dog', 'dog']]
    """
    return _named(indices.tolist(), names)


def _named(indices: list[Any], names: Sequence[str]) -> list[Any]:
    return [_named(part, names) if isinstance(part, list) else names[part] for part in indices]


def cell(column: Column, clip: int, segment: int | None) -> Any:
    """One value of a column as plain Python: of a segment, or of the clip if the column has one value a clip."""
    value = column[clip]
    if segment is not None and (value.ndim if isinstance(value, Tensor) else isinstance(value, (list, tuple))):
        value = value[segment]
    value = value.item() if isinstance(value, Tensor) else value
    return round(value, 4) if isinstance(value, float) else value


#: reasons of the table of predictions
AFTER_END, LACKING = "after the end of the video", "picture or sound is missing"


def missing(batch: Mapping[str, Any], clip: int, times: Tensor, valid: Tensor) -> tuple[str, bool]:
    """Why media of a clip's segments are missing, as text, and whether there is something to predict from.

    Args:
        batch: see `AVPromptTask.prediction_rows`.
        clip: its place in the batch.
        times: (N, 2) begin and end of the segments in seconds.
        valid: whether they were decoded, any shape.

    Example:
        >>> batch = {"length": [3.2], "problem": [""]}
        >>> missing(batch, 0, torch.tensor([[4.0, 5.0]]), torch.tensor(False))
        ('after the end of the video', False)
    """
    if bool(valid.all()):
        return "", True
    if "length" not in batch:  # an annotated clip, whose padding counts in the metrics too
        return LACKING, True
    if batch["problem"][clip]:
        return batch["problem"][clip], False
    # a segment of which less than half lies before the end has nothing to predict
    after = times.mean(1) >= float(batch["length"][clip])
    if bool(after.all()):
        return AFTER_END, False
    return (AFTER_END if int(after.sum()) == int((~valid).sum()) else LACKING), True


class EpochMeans:
    """Means over the steps of an epoch of the logged values, weighted by the number of clips.

    Unlike Lightning's means, they can be saved, so that a run that resumes inside an epoch keeps its earlier steps, and
    several processes whose numbers of clips differ have the mean of one process.
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, values: Mapping[str, Tensor], weight: int) -> None:
        """Count a step: scalars by name, and its number of clips."""
        for name, value in values.items():
            total, weights = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + value.detach().float() * weight, weights + weight

    def compute(self, common: bool = False) -> dict[str, Tensor]:
        """The means by name, with `common` those over the steps of all processes, a collective."""
        parts = [self.sums]
        if common:
            parts = gathered_objects({name: (total.cpu(), weight) for name, (total, weight) in self.sums.items()})
        names = dict.fromkeys(name for part in parts for name in part)
        found = {name: [part[name] for part in parts if name in part] for name in names}
        return {
            name: sum(total for total, _ in pairs) / sum(weight for _, weight in pairs) for name, pairs in found.items()
        }

    def reset(self) -> None:
        """Reset the count."""
        self.sums = {}

    def state_dict(self) -> dict[str, tuple[Tensor, int]]:
        """Sum and weight by name."""
        return dict(self.sums)

    def load_state_dict(self, state: Mapping[str, Sequence[Any]], device: torch.device) -> None:
        """Continue from `state_dict`, whose sums may be numbers."""
        self.sums = {
            name: (torch.as_tensor(total, dtype=torch.float32, device=device), weights)
            for name, (total, weights) in state.items()
        }


class AVPromptTask(LightningModule, abc.ABC):
    """Base class of tasks: steps, logging, metrics, the table of predictions, the optimizer, checkpoints.

    A subclass builds its head and puts its metrics into `self.metrics` in `__init__`; it implements `head_outputs`,
    `losses`, `decisions`, `columns` and `update_metrics`. Checkpoints hold only the trainable state. Hyper-parameters
    are not stored in them but in `config.yaml` beside them, so that a checkpoint cannot override the command line.

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
        head_from: checkpoint of another run, perhaps with another prompt method, whose head this one starts from in
            training, as the authors of AVMoE do with DG-SCT's; `None` starts from scratch.

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

    #: metric by which checkpoints are selected, and whether its maximum or minimum is best
    monitor = "val_loss"
    mode = "min"
    #: whether `forward` resizes frames to the size that the visual encoder takes
    resizes_frames = False
    #: divisor of the metrics, 100 if they are in percent
    metric_unit = 1.0
    #: whether the table of predictions has a row for each segment, or for each clip
    row_per_segment = True
    #: whether metrics count segments or clips, where the table of predictions has other rows
    score_per_segment: bool | None = None
    #: outputs that are not of single clips: the same in every process, or gathered already
    common_outputs: tuple[str, ...] = ()
    #: what `avprompt.load` read the task from, an `avprompt.sharing.Source`; `None` where it was built otherwise
    source: Any = None
    #: over how many examples `compute_metrics` averaged last, by name, where a metric is one of several kinds
    counts: dict[str, int] = {}

    def __init__(
        self,
        backbone: FeatureSource,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        prompt_lr: Positive | None = None,
        method_losses: dict[str, Number] | None = None,
        gather: bool = True,
        head_from: Path | None = None,
    ) -> None:
        super().__init__()
        self.gather, self.head_from = gather, head_from
        self.strict_loading = False  # Lightning's own check knows full state dicts only; ours is stricter
        self.method_losses = dict(method_losses or {})
        for name, weight in self.method_losses.items():
            if not math.isfinite(weight):
                raise ArgumentError(f"method_losses.{name}", weight, "a finite number", "0 switches the loss off.")
        self.backbone = backbone if isinstance(backbone, FeatureSource) else ForeignSource(backbone)
        self.optimizer, self.lr_scheduler, self.prompt_lr = optimizer, lr_scheduler, prompt_lr
        self.metrics = nn.ModuleDict()
        self.epoch_means, self.evaluation_means = EpochMeans(), EpochMeans()
        self.guard = Guard()

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
    def columns(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> dict[str, Column]:
        """Outputs -> columns of the table of predictions, a value for each clip or for each segment of each clip."""

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs -> the probabilities behind the decisions, which pictures draw as curves.

        By name, in [0, 1], each (B, T, C) of every category in every segment, with C + 1 where background is the last;
        (B, C) where there is one answer for the clip; or (B, T) where it is of no category, such as the probability of
        any event. A task without any has no curves.
        """
        return {}

    @abc.abstractmethod
    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        """Count an evaluated batch in `self.metrics`."""

    def scores(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """What each scored unit of a batch, which `update_metrics` has just counted, adds to the metrics.

        A metric is the mean of its scores. Where units weigh differently, `weight:<metric>` has their weights.

        Args:
            outputs: of `forward`.
            batch: with labels.

        Returns:
            By name of a metric, scores in [0, 1], (B,), or (B, T) where segments are scored; NaN where a unit does not
            count. None by default: then no outcomes are kept.
        """
        return {}

    def outcome_columns(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> dict[str, Column]:
        """What stands beside the scores of a unit: the columns of the table of predictions."""
        return self.columns(outputs, batch, class_names)

    def finish_outcomes(self, rows: list[dict[str, Any]]) -> None:
        """Complete the rows of a whole split in place: what depends on all of its units."""

    def extract(self, batch: dict[str, Any], maps: bool) -> AVFeatures:
        """The features of a batch."""
        return self.backbone(batch, maps=maps)

    def prediction_files(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Image.Image]:
        """Pictures that are results themselves, by path below the run's folder."""
        return {}

    # --- what all tasks share

    def setup(self, stage: str) -> None:
        """Refuse strategies that split the network, whose checkpoints would be parts, and load the head of `head_from`.

        Raises:
            ConfigError: neither one device nor ddp.
            CheckpointError: `head_from` is missing, broken, of another head, or trained on other frozen weights.
        """
        if self._trainer is not None:
            check_strategy(type(self.trainer.strategy).__name__)
            if self.trainer.precision == "bf16-mixed" and hasattr(self.backbone, "store"):
                self.backbone.store(torch.bfloat16)
        if stage == "fit" and self.head_from is not None:
            checkpoints.load_part(self, self.head, self.head_from, "head.")

    def forward(self, batch: dict[str, Any], maps: bool = False) -> dict[str, Tensor]:
        """A batch (flat dict) -> the outputs of `head_outputs`.

        With `maps` they also hold attention maps, `map_<name>` (B, T, rows, columns), and the method's tables,
        `table_<name>` (B, T, K). Where the prompt method has auxiliary losses they hold these under `method_losses`, a
        dict of scalars.
        """
        features = self.extract(batch, maps)
        found = {
            **{f"map_{name}": value for name, value in features.maps.items()},
            **{f"table_{name}": value for name, value in features.tables.items()},
        }
        auxiliary = {"method_losses": features.losses} if features.losses else {}
        return {**self.head_outputs(features, batch, maps), **found, **auxiliary}

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs -> what the data module draws of each clip: the decisions, the probabilities behind them,
        `probability_<name>`, and the maps as they are."""
        maps = {name: value for name, value in outputs.items() if name.startswith("map_")}
        curves = {f"probability_{name}": value for name, value in self.probabilities(outputs).items()}
        return {**self.decisions(outputs), **curves, **maps}

    def prediction_rows(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Outputs -> rows of the table that `avprompt predict` writes, one a segment or one a clip.

        Every row has `id`, `start` and `end` in seconds of the video, the task's `columns`, `decoded` (whether the
        media of the segment, or of all segments, could be read), `path` of the video where that is known, and `reason`:
        why media are missing. A user's own video has no prediction after its end, nor where nothing of it decoded: the
        task's columns are empty there.

        Args:
            outputs: of `forward`.
            batch: with `times` (B, T, 2), begin and end of each segment in seconds, and `valid` (B, T); a user's own
                videos also with `length`, seconds of each, and `problem`, why nothing was decoded, or an empty text.
            class_names: of the categories.

        Raises:
            ShapeError: the batch has no `times`, or others.
        """
        valid, times = batch["valid"], batch.get("times")
        if times is None or tuple(times.shape) != (*valid.shape, 2):
            raise ShapeError(
                "times",
                None if times is None else tuple(times.shape),
                f"{(*valid.shape, 2)}, begin and end of each segment in seconds",
                "Give every sample of the data module `times` (T, 2), see `Sampling.times`.",
            )
        columns = self.columns(outputs, batch, class_names)
        rows = self._rows(columns, batch, self.row_per_segment)
        count, found = len(rows) // len(batch["id"]), []
        for place, row in enumerate(rows):
            clip, part = place // count, slice(None) if count == 1 else slice(place % count, place % count + 1)
            reason, predicted = missing(batch, clip, times[clip, part], valid[clip, part])
            found.append(
                {
                    **row,
                    **({} if predicted else dict.fromkeys(columns, "")),
                    "path": batch["path"][clip] if "path" in batch else "",
                    "reason": reason,
                }
            )
        return found

    def outcome_rows(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Outputs of a batch that `update_metrics` has just counted -> rows of the table of outcomes, one a scored unit.

        Every row has `id`, `start` and `end` (empty where the batch has no `times`), `outcome_columns`, `decoded`, and
        the unit's `scores` as float64, or as an array that `finish_outcomes` condenses. A unit without any score has no
        row.

        Args:
            outputs: of `forward`.
            batch: with labels and `valid` (B, T).
            class_names: of the categories.
        """
        per_segment = self.row_per_segment if self.score_per_segment is None else self.score_per_segment
        found = {}
        for name, value in self.scores(outputs, batch).items():
            value = value.detach().cpu().double()
            if per_segment:
                value = (value[:, None].expand(batch["valid"].shape) if value.ndim == 1 else value).flatten(0, 1)
            found[name.replace(" ", "_")] = value.numpy()
        if not found:
            return []
        counts = np.any(
            [
                ~np.isnan(value).reshape(len(value), -1).all(1)
                for name, value in found.items()
                if not name.startswith("weight:")
            ],
            axis=0,
        )
        rows = self._rows(self.outcome_columns(outputs, batch, class_names), batch, per_segment)
        return [
            {**row, **{name: value[place] for name, value in found.items()}}
            for place, row in enumerate(rows)
            if counts[place]
        ]

    @staticmethod
    def _rows(columns: dict[str, Column], batch: dict[str, Any], per_segment: bool) -> list[dict[str, Any]]:
        valid, times, rows = batch["valid"].cpu(), batch.get("times"), []
        columns = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in columns.items()}
        times = None if times is None else times.cpu()
        for clip, clip_id in enumerate(batch["id"]):
            for segment in range(valid.shape[1]) if per_segment else [None]:
                part = slice(None) if segment is None else slice(segment, segment + 1)
                start, end = (
                    ("", "")
                    if times is None
                    else (round(float(times[clip, part][0, 0]), 3), round(float(times[clip, part][-1, 1]), 3))
                )
                rows.append(
                    {
                        "id": clip_id,
                        "start": start,
                        "end": end,
                        **{name: cell(column, clip, segment) for name, column in columns.items()},
                        "decoded": bool(valid[clip, part].all()),
                    }
                )
        return rows

    @staticmethod
    def reasons(batch: Mapping[str, Any], clip: int) -> list[str]:
        """Why media of each segment of a clip are missing; an empty text where they are not."""
        times, valid = batch["times"][clip], batch["valid"][clip]
        return [missing(batch, clip, times[place : place + 1], valid[place])[0] for place in range(len(times))]

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
        return {
            name.replace(" ", "_"): (torch.as_tensor(value, dtype=torch.float64) / self.metric_unit).float()
            for name, value in found.items()
        }

    def reset_metrics(self) -> None:
        """Reset the count, and the mean of the evaluation loss."""
        self.evaluation_means.reset()
        for metric in self.metrics.values():
            metric.reset()

    def weight_of(self, name: str) -> float:
        """Weight of a method's loss such as `balance@3`: its own, that of `balance`, or else 1."""
        return self.method_losses.get(name, self.method_losses.get(name.partition("@")[0], 1.0))

    @property
    def gathers(self) -> bool:
        """Whether the losses are now those of the clips of all processes, see `gather`."""
        return self.gather and world() > 1 and torch.is_grad_enabled()

    def total_loss(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
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
            # mappings that gather what a loss asks for
            everyone: Any = AllClips(outputs, self.common_outputs), AllClips(batch)
            outputs, batch = everyone
            auxiliary = {name: gathered(loss.reshape(1)).mean() for name, loss in auxiliary.items()}
        terms = self.losses(outputs, batch)
        families = {name: name.partition("@")[0] for name in auxiliary}
        unknown = sorted(set(self.method_losses) - {*families, *families.values()})
        if unknown and self.training:  # in evaluation a method may leave out its losses
            raise ArgumentError(
                "method_losses",
                unknown,
                f"some of {sorted({*families, *families.values()})}, which the prompt method has",
                "Correct the name, or choose another prompt method.",
            )
        if twice := sorted(terms.keys() & {*families, *families.values()}):
            raise ArgumentError(
                "losses",
                twice,
                f"names other than the task's own {sorted(terms)}",
                "Rename the loss in the prompt method.",
            )
        weighed = [self.weight_of(name) * value for name, value in auxiliary.items() if self.weight_of(name)]
        shown = {**terms, **auxiliary}
        for family in dict.fromkeys(families.values()):
            shown.setdefault(family, sum(value for name, value in auxiliary.items() if families[name] == family))
        return torch.stack([*terms.values(), *weighed]).sum(), shown

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One training batch -> loss.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; no parameter has been changed by this batch. On a GPU the
                error comes a step later, see `avprompt.tasks.guard`.
        """
        loss, terms = self.total_loss(self(batch), batch)
        self.guard.begin(
            Step(self.global_step, batch, loss.detach(), {name: term.detach() for name, term in terms.items()})
        )
        self._newest = self.guard.steps[-1]
        if self.guard.ahead(loss.device):
            self._newest.send()  # again with the gradients, where this batch ends in an update
        else:
            self._look(0)
        terms = {**{f"train_{name}": term for name, term in terms.items()}, "train_loss_epoch": loss}
        self.epoch_means.add(terms, len(batch["id"]))
        self.log("train_loss_step", loss.detach(), batch_size=len(batch["id"]), on_step=True, sync_dist=not self.gather)
        return loss

    def _look(self, ahead: int) -> None:
        """Look at all steps but the `ahead` newest, and show the last one's loss in the progress bar.

        Raises:
            NonFiniteLossError: a loss or gradient was NaN or infinite; no parameter has been changed since.
        """
        step, loss = self.guard.look(ahead)
        if step is None:
            if loss is not None and self._trainer is not None:
                self.trainer.progress_bar_metrics["loss"] = loss
            return
        if not math.isfinite(loss):
            values = {name: read(term) for name, term in step.terms.items()}
            raise NonFiniteLossError(
                "loss",
                f"{values} at step {step.number}, on {self._culprits(step.batch)}",
                "finite loss terms",
                "Nothing was updated. Lower the learning rate, clip gradients, or look at these clips.",
            )
        self._refuse_gradients(step.bad_gradients(), step)

    def _refuse_gradients(self, wrong: list[str], step: Step) -> None:
        raise NonFiniteLossError(
            "gradient",
            f"NaN or infinity in {len(wrong)} parameters ({', '.join(wrong[:3])}) at step "
            f"{step.number}, with a finite loss, on {self._culprits(step.batch, gradients=True)}",
            "finite gradients",
            "Nothing was updated. Lower the learning rate, or look at these clips.",
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the step before while the device works at this one."""
        self._look(self.guard.ahead(self.device))

    def on_train_start(self) -> None:
        """Forget the steps of an earlier run."""
        self.guard.steps.clear()
        self.guard.held = None

    def on_validation_start(self) -> None:
        """Evaluate nothing, and with it save nothing, after a step that has not been looked at."""
        self._look(0)

    def on_train_epoch_start(self) -> None:
        """Reset the means."""
        self.epoch_means.reset()

    def on_train_epoch_end(self) -> None:
        """Log the means of a whole epoch, `train_loss_epoch` and `train_<term>`; an epoch that is cut off has no point.

        Loggers receive them here, before checkpoints are written, because a run that resumes does not log them again.
        """
        self._look(0)
        if not checkpoints.epoch_is_whole(self.trainer):
            return
        means = self.epoch_means.compute()
        if world() > 1 and not self.gather:
            means = {name: self.trainer.strategy.reduce(value, reduce_op="mean") for name, value in means.items()}
        self.log_dict(means, logger=False)
        values = {name: float(value) for name, value in means.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics({**values, "epoch": self.current_epoch}, self.global_step - 1)
        self.epoch_means.reset()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients if the trainer is configured so, and check that their norm is finite.

        Raises:
            NonFiniteLossError: a gradient is NaN or infinite; no parameter has been changed by it. Not with float16,
                whose scaler expects such steps and skips them.
        """
        parameters = [
            parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None
        ]
        ahead, by_norm = self.guard.ahead(self.device), gradient_clip_val and gradient_clip_algorithm in (None, "norm")
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters]) if by_norm or not ahead else None
        if ahead:
            self.guard.gradients(optimizer, self.named_parameters())
        elif getattr(self.trainer.precision_plugin, "scaler", None) is None and not read(torch.isfinite(norm)):
            # a norm may overflow though every gradient is finite
            wrong = [
                name
                for name, parameter in self.named_parameters()
                if parameter.grad is not None and not read(torch.isfinite(parameter.grad).all())
            ]
            if wrong:
                self._refuse_gradients(wrong, self._newest)
        if by_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _culprits(self, batch: dict[str, Any], gradients: bool = False) -> str:
        """Which clips of a batch make the loss or its gradient NaN or infinite, each evaluated alone."""
        ids, bad, gather = list(batch["id"]), [], self.gather
        common = world() > 1 and (gather or gradients)  # then every process is here
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        modes = {module: module.training for module in self.modules()}
        precision = nullcontext if self._trainer is None else self.trainer.precision_plugin.forward_context
        trained = checkpoints.trainable_state_names(self)
        spoilt = [
            (buffer, buffer.clone())
            for name, buffer in self.named_buffers()
            if name in trained and not torch.isfinite(buffer).all()
        ]
        self.gather = False
        self.eval()  # batch norm would spread NaN over the batch
        for buffer, _ in spoilt:  # and its statistics already contain it
            buffer.nan_to_num_(nan=1.0, posinf=1.0, neginf=1.0)
        try:
            for place, clip in enumerate(ids):
                with torch.set_grad_enabled(gradients), precision():
                    alone = {key: value[place : place + 1] for key, value in batch.items()}
                    loss, _ = self.total_loss(self(alone), alone)
                found = [loss]
                if gradients and torch.isfinite(loss) and loss.requires_grad:
                    gradients_found = torch.autograd.grad(loss, parameters, allow_unused=True)
                    found += [grad for grad in gradients_found if grad is not None]
                if not all(torch.isfinite(value).all() for value in found):
                    bad.append(clip)
        finally:
            self.gather = gather
            for buffer, value in spoilt:
                buffer.copy_(value)
            for module, training in modes.items():
                module.training = training
        if common:
            ids, bad = ([clip for part in gathered_objects(own) for clip in part] for own in (ids, bad))
        if not bad:
            return f"none of these clips alone, only together: {ids}"
        return f"every clip of the batch {ids}" if len(bad) == len(ids) > 1 else f"clip {', '.join(map(str, bad))}"

    @staticmethod
    def _check_scores(outputs: dict[str, Tensor], ids: Sequence[str]) -> None:
        """Refuse NaN, which would be counted: the largest of several scores is NaN if one of them is."""
        for name, value in outputs.items():
            if torch.is_tensor(value) and value.is_floating_point() and value.isnan().any():
                clips = [str(clip) for clip, part in zip(ids, value.chunk(len(ids))) if part.isnan().any()]
                if len(value) % len(ids):
                    clips = list(map(str, ids))
                raise ArgumentError(
                    name,
                    f"NaN for {', '.join(clips)}",
                    "scores",
                    "Look at these clips, and at the loss: has training diverged?",
                )

    def _evaluate(self, stage: str, batch: dict[str, Any]) -> dict[str, Tensor]:
        outputs = self(batch)
        self._check_scores(outputs, batch["id"])
        loss, _ = self.total_loss(outputs, batch)
        self.update_metrics(outputs, batch)
        self.evaluation_means.add({f"{stage}_loss": loss}, len(batch["id"]))
        return outputs

    def _log_evaluation(self, stage: str) -> None:
        self.log_dict(self.evaluation_means.compute(common=True))
        self.log_dict(
            {f"{stage}_{name}": value for name, value in self.compute_metrics().items()}, prog_bar=stage == "val"
        )

    def on_validation_epoch_start(self) -> None:
        """Forget what an evaluation that was cut off counted."""
        self.reset_metrics()

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self.reset_metrics()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Count one batch of the selection split; its outputs."""
        return self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Count one batch of the test split; its outputs."""
        return self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Log `val_loss` and `val_<metric>`."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log `test_loss` and `test_<metric>`."""
        self._log_evaluation("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """One batch -> its outputs, maps included."""
        return self(batch, maps=True)

    def predict(self, videos: str | Path) -> Any:
        """A video of the user's own, or a folder of them -> an `avprompt.sharing.Prediction`, `table` and `arrays`.

        The videos are read as `avprompt predict` reads those of `predict_root`: cut into consecutive windows, at the
        rates and sizes of training, in batches of `eval_batch_size`. A sound file beside a video that has its name
        replaces its sound.

        Args:
            videos: path of a video file, or of a folder of videos.

        Raises:
            ArgumentError: the task is not one of `avprompt.load`, or reads features that your videos do not have.
            DatasetError: there is no such file, or no usable video.
        """
        return self._loaded("predict").predict(self, videos)

    def push(self, folder: str | Path, repo_id: str | None = None, private: bool = True) -> Path:
        """Write a folder that `avprompt.load` reads: trainable state, configuration, model card; and upload it.

        The card has method, encoders, data, the metrics of the run's `result.json`, and the fingerprints of the frozen
        encoders. Where the weights have changed since they were loaded, it says so in the place of metrics.

        Args:
            folder: new, empty, or one that this wrote before.
            repo_id: `owner/name` on the Hugging Face hub to upload the folder to; `None` uploads nothing. Configuration
                and card then show the paths of this machine that the configuration names.
            private: whether a repository that does not exist yet is made a private one.

        Returns:
            The folder.

        Raises:
            ArgumentError: the task is not one of `avprompt.load`, the folder holds something else, or `repo_id` is no
                such name.
            WriteError: the folder cannot be written to, or the hub refuses the upload.
        """
        return self._loaded("push").push(self, folder, repo_id, private)

    def _loaded(self, asked: str) -> Any:
        if self.source is None:
            raise ArgumentError(
                f"{type(self).__name__}.{asked}",
                "a task without its configuration",
                "a task that `avprompt.load` returned",
                "Train it with `avprompt fit`, and load its checkpoint.",
            )
        return self.source

    def configure_optimizers(self) -> Any:
        """The optimizer over the parameters that require a gradient, fused where PyTorch can, and the schedule."""
        inside = {id(parameter) for parameter in self.backbone.parameters()}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [p for p in trained if id(p) not in inside]}]
        if prompts := [p for p in trained if id(p) in inside]:
            groups.append({"params": prompts, **({} if self.prompt_lr is None else {"lr": self.prompt_lr})})
        optimizer = self.optimizer(groups)
        scaled = self._trainer is not None and getattr(self.trainer.precision_plugin, "scaler", None) is not None
        self.guard.able = fuse(optimizer) and not scaled  # a scaler sets what holds updates back itself
        if self.lr_scheduler is None:
            return optimizer
        scheduler, interval = self.lr_scheduler(optimizer), "epoch"
        if isinstance(scheduler, WarmupCosine):
            interval = "step"
            if self._trainer is not None:  # a step may be timed without one
                scheduler.plan(self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": self.monitor},
        }

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
        """Add the fingerprint of the frozen encoders; nothing is saved that a step has spoilt.

        Raises:
            NonFiniteLossError: see `training_step`.
        """
        self._look(0)
        checkpoint[checkpoints.RECORD] = checkpoints.record(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that fingerprint.

        Raises:
            CheckpointError: a foreign checkpoint, or one trained on other frozen weights.
        """
        checkpoints.check_record(self, checkpoint.get(checkpoints.RECORD))
