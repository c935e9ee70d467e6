"""Audio-visual event localisation (AVE; Tian et al., ECCV 2018), fully supervised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from avprompt import losses
from avprompt.backbone import seeded
from avprompt.errors import check_choice
from avprompt.features import AVFeatures, FeatureSource
from avprompt.heads.cmbs import CMBSHead, LateFusionHead, SingleHead, audio_stream, visual_stream
from avprompt.heads.linear import LinearHead
from avprompt.metrics.ave import AVEAccuracy, predicted_categories
from avprompt.precision import wide
from avprompt.ranges import Count, Dropout
from avprompt.tasks.base import AVPromptTask, Column, named


def annotated_categories(batch: dict[str, Any], names: Sequence[str]) -> list[Any]:
    """Name of the category of each segment from `event` (B, T, C + 1); an empty text for a clip without labels."""
    return named(batch["event"].argmax(-1), names) if "event" in batch else [""] * len(batch["id"])


class AVE(AVPromptTask):
    """Finds the event that is both seen and heard, and the segments in which it occurs.

    Args:
        backbone: computes the features, see `FeatureSource`.
        num_classes: event categories, background not counted; linked from the data module, never written in YAML.
        modality: `both` is CMBS; `audio`, `visual` and `late` (two single-modality heads averaged) are baselines.
        gate_loss: how the product of the gates is scored, see `losses.gate_relevance`; `none` leaves it out (AVMoE).
        protocol: how accuracy is counted, see `AVEAccuracy`.
        options: see `AVPromptTask`.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> task = AVE(AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none")), num_classes=3)
        >>> outputs = task({"frames": torch.zeros(1, 2, 3, 64, 64), "audio": torch.zeros(1, 2, 16000)})
        >>> {name: tuple(value.shape) for name, value in outputs.items()}
        {'is_event': (1, 2), 'event': (1, 3), 'gate': (1, 2), 'video_scores': (1, 3)}
    """

    monitor = "val_accuracy"
    mode = "max"

    def __init__(
        self,
        backbone: FeatureSource,
        num_classes: Count = 28,
        modality: Literal["both", "audio", "visual", "late"] = "both",
        gate_loss: Literal["probability", "released", "none"] = "probability",
        protocol: Literal["exact", "released"] = "exact",
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.modality, self.gate_loss = modality, gate_loss
        audio, visual = self.backbone.audio_dim, self.backbone.visual_dim
        with seeded("head"):
            if modality == "both":
                self.head = CMBSHead(audio, visual, num_classes, self.backbone.temporal_gates)
            elif modality == "late":
                self.head = LateFusionHead(audio, visual, num_classes)
            else:
                stream = audio_stream(audio) if modality == "audio" else visual_stream(visual)
                self.head = SingleHead(stream, num_classes)
        self.metrics["accuracy"] = AVEAccuracy(protocol)

    def head_outputs(self, features: AVFeatures, batch: dict[str, Any], maps: bool) -> dict[str, Tensor]:
        """Features -> `is_event` (B, T) logits, `event` (B, C) logits, `gate` (B, T) in (0, 1), `video_scores` (B, C)
        logits."""
        audio, visual = features.audio, features.visual
        return self.head(*{"audio": (audio,), "visual": (visual,)}.get(self.modality, (audio, visual)))

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The four terms of the released training script, each with weight 1."""
        foreground, category, has_event = losses.event_targets(batch["event"])
        gate = (
            {}
            if self.gate_loss == "none"
            else {"gate": losses.gate_relevance(outputs["gate"], foreground, self.gate_loss)}
        )
        return {
            "segment": losses.segment_relevance(outputs["is_event"], foreground),
            **gate,
            "event": losses.clip_category(outputs["event"], category, has_event),
            "video": losses.clip_category(outputs["video_scores"], category, has_event),
        }

    def decisions(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction` (B, T) long; the number of categories stands for background."""
        return {"prediction": predicted_categories(outputs["is_event"], outputs["event"])}

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`any event` (B, T), and `event` (B, T, C): that times the probability of the clip's category."""
        relevance = outputs["is_event"].float().sigmoid()
        return {"any event": relevance, "event": relevance[..., None] * outputs["event"].float().softmax(-1)[:, None]}

    def columns(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> dict[str, Column]:
        """Predicted category of a segment, its probability, and the annotated category if it is known."""
        names, best = [*class_names, "background"], outputs["event"].float().softmax(-1).max(-1)
        return {
            "predicted": named(self.decisions(outputs)["prediction"], names),
            "event_probability": outputs["is_event"].float().sigmoid(),
            "clip_category": named(best.indices, names),
            "clip_category_probability": best.values,
            "annotated": annotated_categories(batch, names),
        }

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        self.metrics["accuracy"].update(outputs["is_event"], outputs["event"], batch["event"])

    def scores(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Whether the category of a segment is right; by the released protocol every batch has the same weight."""
        right = (self.decisions(outputs)["prediction"] == batch["event"].argmax(-1)).float()
        if self.metrics["accuracy"].protocol == "released":
            return {
                "accuracy": right,
                "weight:accuracy": torch.full_like(right, 1 / right.numel(), dtype=torch.float64),
            }
        return {"accuracy": right}


class AVELinear(AVPromptTask):
    """Event localisation segment by segment: a linear head over the features of both modalities, with background as one
    more category (LAVISH, STG-CMA and AV-STFP).

    Args:
        backbone: computes the features, see `FeatureSource`.
        num_classes: event categories, background not counted; linked from the data module, never written in YAML.
        modality: which features the head reads; `audio` and `visual` are single branches.
        loss: `cross_entropy`, or `softmax_bce`, LAVISH's: the binary cross-entropy of the softmax's probabilities,
            whose gradients are small.
        dropout: rate between the two layers of the head that reads both; LAVISH has 0.
        options: see `AVPromptTask`.

    Raises:
        ArgumentError: an unknown loss.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> task = AVELinear(AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none")), num_classes=3, modality="audio")
        >>> task({"frames": torch.zeros(1, 2, 3, 64, 64), "audio": torch.zeros(1, 2, 16000)})["logits"].shape
        torch.Size([1, 2, 4])
    """

    monitor = "val_accuracy"
    mode = "max"

    def __init__(
        self,
        backbone: FeatureSource,
        num_classes: Count = 28,
        modality: Literal["both", "audio", "visual"] = "both",
        loss: Literal["cross_entropy", "softmax_bce"] = "cross_entropy",
        dropout: Dropout = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        check_choice("loss", loss, ("cross_entropy", "softmax_bce"))
        self.loss = loss
        with seeded("head"):
            self.head = LinearHead(
                self.backbone.audio_dim, self.backbone.visual_dim, num_classes + 1, modality, dropout
            )
        self.metrics["accuracy"] = MeanMetric()

    def head_outputs(self, features: AVFeatures, batch: dict[str, Any], maps: bool) -> dict[str, Tensor]:
        """Features -> `logits` (B, T, C + 1), background last."""
        return {"logits": self.head(features.audio, features.visual)}

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Mean over all segments, see `loss`."""
        logits = wide(outputs["logits"]).flatten(0, 1)
        target = batch["event"].flatten(0, 1).to(logits.dtype)
        if self.loss == "softmax_bce":
            return {"segment": losses.cross_entropy_of_probability(logits.softmax(-1), target)}
        return {"segment": torch.nn.functional.cross_entropy(logits, target)}

    def decisions(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction` (B, T) long; the number of categories stands for background."""
        return {"prediction": outputs["logits"].argmax(-1)}

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`event` (B, T, C + 1), background last."""
        return {"event": outputs["logits"].float().softmax(-1)}

    def columns(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> dict[str, Column]:
        """Predicted category of a segment, its probability, and the annotated category if it is known."""
        names, best = [*class_names, "background"], outputs["logits"].float().softmax(-1).max(-1)
        return {
            "predicted": named(best.indices, names),
            "probability": best.values,
            "annotated": annotated_categories(batch, names),
        }

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        self.metrics["accuracy"].update(self.scores(outputs, batch)["accuracy"])

    def scores(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Whether the category of a segment is right."""
        return {"accuracy": (outputs["logits"].argmax(-1) == batch["event"].argmax(-1)).float()}
