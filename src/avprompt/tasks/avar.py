"""Audio-visual action recognition (AVAR), such as on Kinetics-Sounds: one action a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from avprompt.backbone import seeded
from avprompt.features import AVFeatures, FeatureSource
from avprompt.heads.linear import LinearHead
from avprompt.precision import wide
from avprompt.ranges import Count
from avprompt.tasks.base import AVPromptTask, Column, named


class AVAR(AVPromptTask):
    """Classifies the action of a clip: features averaged over its decoded segments, then the head of AV-STFP.

    Clips may be shorter than T segments; the published code averages over all segments, padding included.

    Args:
        backbone: computes the features, see `FeatureSource`.
        num_classes: actions; linked from the data module, never written in YAML.
        modality: which features the head reads; `audio` and `visual` are single branches.
        options: see `AVPromptTask`.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> task = AVAR(AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none")), num_classes=5)
        >>> task({"frames": torch.zeros(2, 2, 3, 64, 64), "audio": torch.zeros(2, 2, 16000),
        ...       "valid": torch.tensor([[True, True], [True, False]])})["logits"].shape
        torch.Size([2, 5])
    """

    monitor = "val_top1"
    mode = "max"
    row_per_segment = False

    def __init__(
        self,
        backbone: FeatureSource,
        num_classes: Count = 32,
        modality: Literal["both", "audio", "visual"] = "both",
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        with seeded("head"):
            self.head = LinearHead(self.backbone.audio_dim, self.backbone.visual_dim, num_classes, modality)
        self.metrics.update(
            {f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in (1, 5) if k <= num_classes}
        )

    def head_outputs(self, features: AVFeatures, batch: dict[str, Any], maps: bool) -> dict[str, Tensor]:
        """Features and `valid` (B, T) -> `logits` (B, C)."""
        weights = torch.where(batch["valid"].any(1, keepdim=True), batch["valid"], True).to(features.audio.dtype)
        weights = (weights / weights.sum(1, keepdim=True)).unsqueeze(1)
        return {"logits": self.head(*((weights @ x).squeeze(1) for x in (features.audio, features.visual)))}

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Cross-entropy."""
        return {"action": torch.nn.functional.cross_entropy(wide(outputs["logits"]), batch["label"])}

    def decisions(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction` (B,) long."""
        return {"prediction": outputs["logits"].argmax(-1)}

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`action` (B, C)."""
        return {"action": outputs["logits"].float().softmax(-1)}

    def columns(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> dict[str, Column]:
        """Predicted action, its probability, and the annotated action if it is known."""
        best = wide(outputs["logits"]).softmax(-1).max(-1)
        return {
            "predicted": named(best.indices, class_names),
            "probability": best.values,
            "annotated": named(batch["label"], class_names) if "label" in batch else [""] * len(best.indices),
        }

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        for metric in self.metrics.values():
            metric.update(outputs["logits"], batch["label"])

    def scores(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Whether the action of a clip is among the k best."""
        return {
            name: (outputs["logits"].topk(metric.top_k).indices == batch["label"][:, None]).any(1).float()
            for name, metric in self.metrics.items()
        }
