"""Audio-visual video parsing (AVVP; Tian et al., ECCV 2020): LLP, weakly supervised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from avprompt import losses
from avprompt.backbone import AVPromptBackbone, seeded
from avprompt.heads.mgn import MGNHead
from avprompt.metrics.avvp import AVVPFScore
from avprompt.tasks.base import AVPromptTask


class AVVP(AVPromptTask):
    """Which events are heard, which are seen, and when, from labels that name a video's events alone.

    Args:
        backbone: see `AVPromptBackbone`.
        num_classes: event categories; linked from the data module, never written in YAML.
        segments: number T of segments; linked likewise.
        video_dim: channels of the r2plus1d features, 0 without them; linked likewise.
        gate_audio: let vision gate audio in time, which the released code computes and overwrites.
        smoothing: of the labels for what is seen: s y + (1 - s) / 2.
        options: see `AVPromptTask`.
    """

    monitor = "val_segment_type"
    mode = "max"

    def __init__(self, backbone: AVPromptBackbone, num_classes: int = 25, segments: int = 10, video_dim: int = 512,
                 gate_audio: bool = False, smoothing: float = 0.9, **options: Any) -> None:
        super().__init__(backbone, **options)
        self.smoothing = smoothing
        with seeded("head"):
            self.head = MGNHead(backbone.audio_dim, backbone.visual_dim, num_classes, segments, video_dim,
                                backbone.prompts.temporal_gates, gate_audio)
        self.fscore = AVVPFScore()

    def forward(self, batch: dict[str, Any], maps: bool = False) -> dict[str, Tensor]:
        """Frames (B, T, 3, H, W), audio (B, T, S), `video_features` (B, T, 512) where the network has them -> outputs.

        Returns:
            See `MGNHead`.
        """
        features = self.backbone(batch)
        return self.head(features.audio, features.visual, batch.get("video_features"))

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The five terms of the released training script, each with weight 1."""
        labels = batch["labels"]
        return {
            "audio_tokens": losses.token_category(outputs["audio_token_logits"]),
            "visual_tokens": losses.token_category(outputs["visual_token_logits"]),
            "video": losses.multi_label(outputs["video_prob"], labels),
            "audio": losses.multi_label(outputs["audio_video_prob"], labels),
            "visual": losses.multi_label(outputs["visual_video_prob"], labels, self.smoothing),
        }

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction_audio`, `prediction_visual` (B, T, C) bool: where the video has the event and the segment too."""
        present = (outputs["video_prob"] >= 0.5).unsqueeze(1)
        return {f"prediction_{name}": (outputs[f"{name}_prob"] >= 0.5) & present for name in ("audio", "visual")}

    def prediction_rows(self, outputs: dict[str, Tensor], batch: dict[str, Any],
                        class_names: Sequence[str]) -> list[dict[str, Any]]:
        """One row a second: what is heard and what is seen, and what is annotated where that is known."""
        decided = {**{f"predicted_{key[11:]}": value for key, value in self.postprocess(outputs).items()},
                   **{f"annotated_{key[:-7]}": batch[key] > 0.5 for key in ("audio_target", "visual_target") if key in batch}}
        rows = []
        for clip, clip_id in enumerate(batch["id"]):
            begin = float(batch["start"][clip]) if "start" in batch else 0.0
            for second in range(batch["valid"].shape[1]):
                named = {key: ";".join(class_names[c] for c in value[clip, second].nonzero().flatten().tolist())
                         for key, value in decided.items()}
                rows.append({"id": clip_id, "start": begin + second, "end": begin + second + 1, **named,
                             "decoded": bool(batch["valid"][clip, second]),
                             "path": batch["path"][clip] if "path" in batch else ""})
        return rows

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        self.fscore.update(outputs["audio_prob"], outputs["visual_prob"], outputs["video_prob"], batch["audio_target"],
                           batch["visual_target"])

    def compute_metrics(self) -> dict[str, Tensor]:
        scores = self.fscore.compute()
        self.fscore.reset()
        return {name: value / 100 for name, value in scores.items()}
