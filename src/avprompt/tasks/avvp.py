"""Audio-visual video parsing (AVVP; Tian et al., ECCV 2020): LLP, weakly supervised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from avprompt import losses
from avprompt.backbone import seeded
from avprompt.errors import ArgumentError, check_choice
from avprompt.features import AVFeatures, FeatureSource
from avprompt.heads.han import ParsingHead
from avprompt.heads.mgn import MGNHead
from avprompt.metrics.avvp import TYPES, AVVPFScore
from avprompt.ranges import Count, Natural, Share
from avprompt.tasks.base import AVPromptTask, Column

#: (audio_dim, visual_dim, num_classes, segments, video_dim) -> head
ParsingHeadCallable = Callable[[int, int, int, int, int], ParsingHead]


class AVVP(AVPromptTask):
    """Finds audible and visible events and their times, learned from labels that only name the events of a video.

    Args:
        backbone: computes the features, see `FeatureSource`.
        num_classes: event categories; linked from the data module, never written in YAML.
        segments: number T of segments; linked likewise.
        video_dim: channels of the r2plus1d features, 0 without them; linked likewise.
        head: `avprompt.heads.HAN` or `avprompt.heads.MMPyramidParsing`; `None` is MGN. Temporal gates, where the
            backbone has them, belong to MGN alone.
        gate_audio: apply MGN's temporal gate of vision on audio, which the released code computes and overwrites.
        smoothing: label smoothing s of visual events: s y + (1 - s) / 2.
        supervision: `video`, the video's labels on the probabilities by sound, by sight and by both; `taught`, VALOR's:
            the video's labels on the probability by both, and labels of segments that other networks gave (`taught` of
            the data module) on the probabilities of segments.
        options: see `AVPromptTask`.

    Raises:
        ArgumentError: `gate_audio` with another head than MGN, an unknown `supervision`, or in training with `taught` a
            batch without such labels.

    Example:
        >>> import torch
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> task = AVVP(AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none")), 4, segments=2, video_dim=0)
        >>> outputs = task({"frames": torch.zeros(1, 2, 3, 64, 64), "audio": torch.zeros(1, 2, 16000)})
        >>> tuple(outputs["audio_prob"].shape), tuple(outputs["video_prob"].shape)
        ((1, 2, 4), (1, 4))
    """

    monitor = "val_segment_type"
    mode = "max"
    metric_unit = 100.0
    score_per_segment = False
    common_outputs = ("audio_token_logits", "visual_token_logits")

    def __init__(
        self,
        backbone: FeatureSource,
        num_classes: Count = 25,
        segments: Count = 10,
        video_dim: Natural = 512,
        head: ParsingHeadCallable | None = None,
        gate_audio: bool = False,
        smoothing: Share = 0.9,
        supervision: Literal["video", "taught"] = "video",
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        if gate_audio and head is not None:
            raise ArgumentError(
                "gate_audio", True, "false, with another head than MGN", "Leave out `gate_audio`, or `head`."
            )
        check_choice("supervision", supervision, ("video", "taught"))
        self.smoothing, self.supervision = smoothing, supervision
        with seeded("head"):
            sizes = self.backbone.audio_dim, self.backbone.visual_dim, num_classes, segments, video_dim
            self.head = MGNHead(*sizes, self.backbone.temporal_gates, gate_audio) if head is None else head(*sizes)
        self.metrics["fscore"] = AVVPFScore()

    def head_outputs(self, features: AVFeatures, batch: dict[str, Any], maps: bool) -> dict[str, Tensor]:
        """Features and, where the head was built for them, `video_features` (B, T, 512) -> outputs, see `MGNHead`."""
        video = batch.get("video_features")
        video = None if video is None else video.to(next(self.head.parameters()).dtype)
        return self.head(features.audio, features.visual, video)

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The terms of the released training scripts, each with weight 1: three on the video's labels, or with `taught`
        one on these and two on labels of segments; and with MGN two on its class tokens."""
        labels = batch["labels"]
        tokens = {
            f"{name}_tokens": losses.token_category(outputs[f"{name}_token_logits"])
            for name in ("audio", "visual")
            if f"{name}_token_logits" in outputs
        }
        if self.supervision == "taught":
            kinds = [kind for kind in ("audio", "visual") if f"taught_{kind}" in batch]
            if self.training and len(kinds) < 2:
                raise ArgumentError(
                    "supervision",
                    "taught, and training batches without labels of segments",
                    "such labels",
                    "Give the data module their folder: --data.taught.",
                )
            segments = {
                f"{kind}_segments": losses.cross_entropy_of_probability(
                    outputs[f"{kind}_prob"], batch[f"taught_{kind}"]
                )
                for kind in kinds
            }
            return {**tokens, "video": losses.multi_label(outputs["video_prob"], labels), **segments}
        return {
            **tokens,
            "video": losses.multi_label(outputs["video_prob"], labels),
            "audio": losses.multi_label(outputs["audio_video_prob"], labels),
            "visual": losses.multi_label(outputs["visual_video_prob"], labels, self.smoothing),
        }

    def decisions(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction_audio`, `prediction_visual` (B, T, C) bool: both the video and the segment have the event."""
        present = (outputs["video_prob"] >= 0.5).unsqueeze(1)
        return {f"prediction_{name}": (outputs[f"{name}_prob"] >= 0.5) & present for name in ("audio", "visual")}

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`heard` and `seen`, (B, T, C)."""
        return {"heard": outputs["audio_prob"].float(), "seen": outputs["visual_prob"].float()}

    def columns(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> dict[str, Column]:
        """Predicted audible and visible events of a segment, and the annotated ones if they are known."""
        found = {
            **{f"predicted_{key[11:]}": value for key, value in self.decisions(outputs).items()},
            **{f"annotated_{key[:-7]}": batch[key] > 0.5 for key in ("audio_target", "visual_target") if key in batch},
        }
        return {
            name: [
                [";".join(class_names[index] for index in segment.nonzero().flatten().tolist()) for segment in clip]
                for clip in value
            ]
            for name, value in found.items()
        }

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        self.metrics["fscore"].update(
            outputs["audio_prob"],
            outputs["visual_prob"],
            outputs["video_prob"],
            batch["audio_target"],
            batch["visual_target"],
        )

    def scores(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The F-scores of a clip, which the metric has just computed."""
        return {
            f"{level}_{name}": scores[:, place]
            for level, scores in zip(("segment", "event"), self.metrics["fscore"].scores[-1].unbind(1))
            for place, name in enumerate(TYPES)
        }

    def outcome_columns(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> dict[str, Column]:
        """Predicted and annotated events of a clip, wherever in it."""
        return {
            name: [
                ";".join(dict.fromkeys(event for segment in clip for event in segment.split(";") if event))
                for clip in clips
            ]
            for name, clips in self.columns(outputs, batch, class_names).items()
        }
