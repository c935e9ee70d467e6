"""Audio-visual event localisation with the heads of earlier publications, fully or weakly supervised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.aggregation import MeanMetric

from avprompt import losses
from avprompt.backbone import seeded
from avprompt.errors import check_choice
from avprompt.features import AVFeatures, FeatureSource
from avprompt.heads import AVEL, EventHead
from avprompt.precision import wide
from avprompt.ranges import Count, NonNegative
from avprompt.tasks.ave import annotated_categories
from avprompt.tasks.base import AVPromptTask, Column, named

#: (audio_dim, visual_dim, num_classes, weak) -> head
EventHeadCallable = Callable[[int, int, int, bool], EventHead]


class AVEClassic(AVPromptTask):
    """Event localisation by a head that reads a sound and the positions of a frame: AVEL, PSP, CMRAN and others.

    Args:
        backbone: computes the features, see `FeatureSource`.
        head: one of `avprompt.heads`, see `EventHead`.
        num_classes: event categories, background not counted; linked from the data module, never written in YAML.
        supervision: `full` learns from labels of segments; `weak` from the label of each clip alone (`category`).
        loss: `cross_entropy`, or `released`: what the authors' code computes instead. Probabilities are then taken for
            logits: those of segments (AVEL, RFJC), of clips with `weak` (AVEL, CMRAN, CMBS), or the product of gates
            (CMBS).
        relevance_weight: weight of the term on `is_event` (DAM: 0.5).
        similarity_weight: weight of the term on the similarity of sound and sight (PSP: 100).
        options: see `AVPromptTask`.

    Raises:
        ArgumentError: an unknown choice, or `weak` for a head of which no such form is known.

    Example:
        >>> from avprompt.backbone import PublishedFeatures
        >>> from avprompt.heads import PSP
        >>> task = AVEClassic(PublishedFeatures(), PSP, num_classes=3)
        >>> batch = {"visual_features": torch.rand(1, 10, 49, 512), "audio_features": torch.rand(1, 10, 128)}
        >>> task(batch)["segments"].shape
        torch.Size([1, 10, 4])
    """

    monitor = "val_accuracy"
    mode = "max"

    def __init__(
        self,
        backbone: FeatureSource,
        head: EventHeadCallable = AVEL,
        num_classes: Count = 28,
        supervision: Literal["full", "weak"] = "full",
        loss: Literal["cross_entropy", "released"] = "cross_entropy",
        relevance_weight: NonNegative = 1.0,
        similarity_weight: NonNegative = 100.0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        check_choice("supervision", supervision, ("full", "weak"))
        check_choice("loss", loss, ("cross_entropy", "released"))
        self.num_classes, self.supervision, self.loss = num_classes, supervision, loss
        self.relevance_weight, self.similarity_weight = relevance_weight, similarity_weight
        with seeded("head"):
            self.head = head(self.backbone.audio_dim, self.backbone.visual_dim, num_classes, supervision == "weak")
        self.metrics["accuracy"] = MeanMetric()

    def head_outputs(self, features: AVFeatures, batch: dict[str, Any], maps: bool) -> dict[str, Tensor]:
        """Features -> outputs, see `EventHead`."""
        positions = features.visual_tokens
        if positions.shape[2] > 1:  # otherwise there is one vector a segment
            positions = positions[:, :, self.backbone.visual_spec.prefix :]
        return self.head(features.audio, positions)

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Terms on the segments, or with weak labels the one on the clip, which reads nothing but `category`."""
        released = self.loss == "released"
        if self.supervision == "weak":
            if released:
                return {
                    "clip": losses.softmax_margin(outputs["clip"], F.one_hot(batch["category"], self.num_classes + 1))
                }
            return {"clip": F.cross_entropy(wide(outputs["clip"]), batch["category"])}
        foreground, category, has_event = losses.event_targets(batch["event"])
        found = {}
        if "segments" in outputs:
            logits = wide(outputs["segments"]).flatten(0, 1)
            target = batch["event"].flatten(0, 1).to(logits.dtype)
            found["segment"] = losses.softmax_margin(logits, target) if released else F.cross_entropy(logits, target)
        else:
            found["segment"] = self.relevance_weight * losses.segment_relevance(outputs["is_event"], foreground)
            found["event"] = losses.clip_category(outputs["event"], category, has_event)
        if "gate" in outputs:
            found["gate"] = losses.gate_relevance(
                outputs["gate"], foreground, "released" if released else "probability"
            )
            found["video"] = losses.clip_category(outputs["video_scores"], category, has_event)
        if "similarity" in outputs:
            found["similarity"] = self.similarity_weight * losses.pair_similarity(outputs["similarity"], foreground)
        return found

    def decisions(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction` (B, T) long; the number of categories stands for background."""
        if "segments" in outputs:
            return {"prediction": outputs["segments"].argmax(-1)}
        best = outputs["event"].argmax(-1, keepdim=True).expand_as(outputs["is_event"])
        return {"prediction": torch.where(outputs["is_event"] > 0, best, self.num_classes)}

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`event` (B, T, C + 1), background last; heads with gates have `any event` (B, T) and `event` (B, T, C)."""
        if "segments" in outputs:
            return {"event": outputs["segments"].float().softmax(-1)}
        relevance = outputs["is_event"].float().sigmoid()
        return {"any event": relevance, "event": relevance[..., None] * outputs["event"].float().softmax(-1)[:, None]}

    def columns(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> dict[str, Column]:
        """Predicted category of a segment, its probability (or that of any event), and the annotated category if it is
        known."""
        names = [*class_names, "background"]
        probability = (
            outputs["segments"].float().softmax(-1).amax(-1)
            if "segments" in outputs
            else (outputs["is_event"].float().sigmoid())
        )
        return {
            "predicted": named(self.decisions(outputs)["prediction"], names),
            "probability": probability,
            "annotated": annotated_categories(batch, names),
        }

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        self.metrics["accuracy"].update(self.scores(outputs, batch)["accuracy"])

    def scores(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Whether the category of a segment is right."""
        return {"accuracy": (self.decisions(outputs)["prediction"] == batch["event"].argmax(-1)).float()}
