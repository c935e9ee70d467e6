"""Audio-visual event localisation (AVE; Tian et al., ECCV 2018), fully supervised."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from avprompt import losses
from avprompt.backbone import AVPromptBackbone, seeded
from avprompt.heads.cmbs import CMBSHead, LateFusionHead, SingleHead, audio_stream, visual_stream
from avprompt.metrics import AVEAccuracy
from avprompt.tasks.base import AVPromptTask


class AVE(AVPromptTask):
    """Which event is both seen and heard, and in which seconds.

    Args:
        backbone: see `AVPromptBackbone`.
        num_classes: event categories, background not counted; linked from the data module, never written in YAML.
        modality: `both` is CMBS; `audio`, `visual` and `late` (two single-modality heads averaged) are baselines.
        gate_loss: how the gates' product is scored, see `losses.gate_relevance`.
        protocol: how accuracy is counted, see `AVEAccuracy`.
        optimizer: see `AVPromptTask`.
        lr_scheduler: see `AVPromptTask`.
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
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
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

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Frames (B, T, 3, H, W) and audio (B, T, S) -> outputs.

        Returns:
            `is_event` (B, T) logits, `event` (B, C) logits, `gate` (B, T) in (0, 1), `video_scores` (B, C) logits.
        """
        features = self.backbone(batch["frames"], batch["audio"])
        audio, visual = features.audio, features.visual
        single = {"audio": (audio,), "visual": (visual,)}.get(self.modality, (audio, visual))
        return self.head(*single)

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The four terms of the released training script, each with weight 1."""
        foreground, category, has_event = losses.event_targets(batch["event"])
        return {
            "segment": losses.segment_relevance(outputs["is_event"], foreground),
            "gate": losses.gate_relevance(outputs["gate"], foreground, self.gate_loss),
            "event": losses.clip_category(outputs["event"], category, has_event),
            "video": losses.clip_category(outputs["video_scores"], category, has_event),
        }

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        self.accuracy.update(outputs["is_event"], outputs["event"], batch["event"])

    def compute_metrics(self) -> dict[str, Tensor]:
        accuracy = self.accuracy.compute().float()
        self.accuracy.reset()
        return {"accuracy": accuracy}
