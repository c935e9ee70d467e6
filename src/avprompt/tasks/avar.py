"""Audio-visual action recognition (AVAR), such as on Kinetics-Sounds: one action a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from avprompt.backbone import AVPromptBackbone, seeded
from avprompt.heads.linear import LinearHead
from avprompt.tasks.base import AVPromptTask


class AVAR(AVPromptTask):
    """Which action a clip shows: features averaged over its decoded segments, then the head of AV-STFP.

    Clips may be shorter than T segments; the published average is over all, padding included.

    Args:
        backbone: see `AVPromptBackbone`.
        num_classes: actions; linked from the data module, never written in YAML.
        modality: which features the head reads; `audio` and `visual` are single branches.
        options: see `AVPromptTask`.
    """

    monitor = "val_top1"
    mode = "max"

    def __init__(self, backbone: AVPromptBackbone, num_classes: int = 32,
                 modality: Literal["both", "audio", "visual"] = "both", **options: Any) -> None:
        super().__init__(backbone, **options)
        with seeded("head"):
            self.head = LinearHead(backbone.audio_dim, backbone.visual_dim, num_classes, modality)
        self.accuracy = MetricCollection({f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro")
                                          for k in (1, 5) if k <= num_classes})

    def forward(self, batch: dict[str, Any], maps: bool = False) -> dict[str, Tensor]:
        """Frames (B, T, 3, H, W) and audio (B, T, S) -> `logits` (B, C)."""
        features = self.backbone(batch, maps=maps)
        weights = torch.where(batch["valid"].any(1, keepdim=True), batch["valid"], True).to(features.audio.dtype)
        weights = (weights / weights.sum(1, keepdim=True)).unsqueeze(1)
        return {"logits": self.head(*((weights @ x).squeeze(1) for x in (features.audio, features.visual)))}

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Cross-entropy."""
        return {"action": torch.nn.functional.cross_entropy(outputs["logits"].float(), batch["label"])}

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction` (B,) long."""
        return {"prediction": outputs["logits"].argmax(-1)}

    def prediction_rows(self, outputs: dict[str, Tensor], batch: dict[str, Any],
                        class_names: Sequence[str]) -> list[dict[str, Any]]:
        """One row a clip: what is predicted, how surely, and what is annotated where that is known."""
        best = outputs["logits"].float().softmax(-1).max(-1)
        return [{
            "id": clip_id,
            "start": float(batch["start"][clip]) if "start" in batch else 0.0,
            "predicted": class_names[int(best.indices[clip])],
            "probability": round(float(best.values[clip]), 4),
            "annotated": class_names[int(batch["label"][clip])] if "label" in batch else "",
            "path": batch["path"][clip] if "path" in batch else "",
        } for clip, clip_id in enumerate(batch["id"])]

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        self.accuracy.update(outputs["logits"], batch["label"])

    def compute_metrics(self) -> dict[str, Tensor]:
        scores = self.accuracy.compute()
        self.accuracy.reset()
        return scores
