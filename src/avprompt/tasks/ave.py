"""Audio-visual event localisation (AVE; Tian et al., ECCV 2018), fully supervised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from avprompt import losses
from avprompt.backbone import AVPromptBackbone, seeded
from avprompt.heads.cmbs import CMBSHead, LateFusionHead, SingleHead, audio_stream, visual_stream
from avprompt.heads.linear import LinearHead
from avprompt.metrics.ave import AVEAccuracy, predicted_categories
from avprompt.tasks.base import AVPromptTask


class AVE(AVPromptTask):
    """Which event is both seen and heard, and in which seconds.

    Args:
        backbone: see `AVPromptBackbone`.
        num_classes: event categories, background not counted; linked from the data module, never written in YAML.
        modality: `both` is CMBS; `audio`, `visual` and `late` (two single-modality heads averaged) are baselines.
        gate_loss: how the gates' product is scored, see `losses.gate_relevance`.
        protocol: how accuracy is counted, see `AVEAccuracy`.
        options: see `AVPromptTask`.
    """

    monitor = "val_accuracy"
    mode = "max"

    def __init__(
        self,
        backbone: AVPromptBackbone,
        num_classes: int = 28,
        modality: Literal["both", "audio", "visual", "late"] = "both",
        gate_loss: Literal["probability", "released"] = "probability",
        protocol: Literal["exact", "released"] = "exact",
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.modality, self.gate_loss = modality, gate_loss
        audio, visual = backbone.audio_dim, backbone.visual_dim
        with seeded("head"):
            if modality == "both":
                self.head = CMBSHead(audio, visual, num_classes, backbone.prompts.temporal_gates)
            elif modality == "late":
                self.head = LateFusionHead(audio, visual, num_classes)
            else:
                stream = audio_stream(audio) if modality == "audio" else visual_stream(visual)
                self.head = SingleHead(stream, num_classes)
        self.accuracy = AVEAccuracy(protocol)

    def forward(self, batch: dict[str, Any], maps: bool = False) -> dict[str, Tensor]:
        """Frames (B, T, 3, H, W) and audio (B, T, S) -> outputs.

        Returns:
            `is_event` (B, T) logits, `event` (B, C) logits, `gate` (B, T) in (0, 1), `video_scores` (B, C) logits; with
            `maps` also `map_visual` (B, T, rows, columns) where the prompts have one.
        """
        features = self.backbone(batch, maps=maps)
        audio, visual = features.audio, features.visual
        single = {"audio": (audio,), "visual": (visual,)}.get(self.modality, (audio, visual))
        return {**self.head(*single), **{f"map_{name}": value for name, value in features.maps.items()}}

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The four terms of the released training script, each with weight 1."""
        foreground, category, has_event = losses.event_targets(batch["event"])
        return {
            "segment": losses.segment_relevance(outputs["is_event"], foreground),
            "gate": losses.gate_relevance(outputs["gate"], foreground, self.gate_loss),
            "event": losses.clip_category(outputs["event"], category, has_event),
            "video": losses.clip_category(outputs["video_scores"], category, has_event),
        }

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction` (B, T) long, background being the number of categories; `map_visual` as it is."""
        maps = {name: value for name, value in outputs.items() if name == "map_visual"}
        return {"prediction": predicted_categories(outputs["is_event"], outputs["event"]), **maps}

    def prediction_rows(self, outputs: dict[str, Tensor], batch: dict[str, Any],
                        class_names: Sequence[str]) -> list[dict[str, Any]]:
        """One row a second: what is predicted, how surely, and what is annotated where that is known."""
        names = [*class_names, "background"]
        is_event, best = outputs["is_event"].float().sigmoid(), outputs["event"].float().softmax(-1).max(-1)
        truth = batch["event"].argmax(-1) if "event" in batch else None
        rows = []
        for clip, categories in enumerate(self.postprocess(outputs)["prediction"].tolist()):
            begin = float(batch["start"][clip]) if "start" in batch else 0.0
            for second, category in enumerate(categories):
                rows.append({
                    "id": batch["id"][clip],
                    "start": begin + second,
                    "end": begin + second + 1,
                    "predicted": names[category],
                    "event_probability": round(float(is_event[clip, second]), 4),
                    "clip_category": names[int(best.indices[clip])],
                    "clip_category_probability": round(float(best.values[clip]), 4),
                    "decoded": bool(batch["valid"][clip, second]),
                    "annotated": "" if truth is None else names[int(truth[clip, second])],
                    "path": batch["path"][clip] if "path" in batch else "",
                })
        return rows

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        self.accuracy.update(outputs["is_event"], outputs["event"], batch["event"])

    def compute_metrics(self) -> dict[str, Tensor]:
        accuracy = self.accuracy.compute().float()
        self.accuracy.reset()
        return {"accuracy": accuracy}


class AVELinear(AVPromptTask):
    """The same question second by second: a linear head over both modalities' features of one segment, background a category
    like the others (AV-STFP and its lineage).

    Args:
        backbone: see `AVPromptBackbone`.
        num_classes: event categories, background not counted; linked from the data module, never written in YAML.
        modality: which features the head reads; `audio` and `visual` are single branches.
        options: see `AVPromptTask`.
    """

    monitor = "val_accuracy"
    mode = "max"

    def __init__(self, backbone: AVPromptBackbone, num_classes: int = 28,
                 modality: Literal["both", "audio", "visual"] = "both", **options: Any) -> None:
        super().__init__(backbone, **options)
        with seeded("head"):
            self.head = LinearHead(backbone.audio_dim, backbone.visual_dim, num_classes + 1, modality)
        self.accuracy = MeanMetric()

    def forward(self, batch: dict[str, Any], maps: bool = False) -> dict[str, Tensor]:
        """Frames (B, T, 3, H, W) and audio (B, T, S) -> `logits` (B, T, C + 1), background last; `map_visual` as in `AVE`."""
        features = self.backbone(batch, maps=maps)
        found = {f"map_{name}": value for name, value in features.maps.items()}
        return {"logits": self.head(features.audio, features.visual), **found}

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Cross-entropy over all seconds."""
        logits, target = outputs["logits"].float().flatten(0, 1), batch["event"].flatten(0, 1)
        return {"segment": torch.nn.functional.cross_entropy(logits, target)}

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction` (B, T) long, background being the number of categories; `map_visual` as it is."""
        maps = {name: value for name, value in outputs.items() if name == "map_visual"}
        return {"prediction": outputs["logits"].argmax(-1), **maps}

    def prediction_rows(self, outputs: dict[str, Tensor], batch: dict[str, Any],
                        class_names: Sequence[str]) -> list[dict[str, Any]]:
        """One row a second: what is predicted, how surely, and what is annotated where that is known."""
        names, rows = [*class_names, "background"], []
        best = outputs["logits"].float().softmax(-1).max(-1)
        truth = batch["event"].argmax(-1) if "event" in batch else None
        for clip, categories in enumerate(best.indices.tolist()):
            begin = float(batch["start"][clip]) if "start" in batch else 0.0
            for second, category in enumerate(categories):
                rows.append({
                    "id": batch["id"][clip],
                    "start": begin + second,
                    "end": begin + second + 1,
                    "predicted": names[category],
                    "probability": round(float(best.values[clip, second]), 4),
                    "decoded": bool(batch["valid"][clip, second]),
                    "annotated": "" if truth is None else names[int(truth[clip, second])],
                    "path": batch["path"][clip] if "path" in batch else "",
                })
        return rows

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        self.accuracy.update((outputs["logits"].argmax(-1) == batch["event"].argmax(-1)).float())

    def compute_metrics(self) -> dict[str, Tensor]:
        accuracy = self.accuracy.compute()
        self.accuracy.reset()
        return {"accuracy": accuracy}
