"""Audio-visual video parsing (AVVP; Tian et al., ECCV 2020): LLP, weakly supervised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from avprompt import checkpoints, losses
from avprompt.backbone import seeded
from avprompt.errors import ArgumentError, check_choice
from avprompt.features import AVFeatures, FeatureSource
from avprompt.heads.han import JoMoLD, ParsingHead
from avprompt.heads.mgn import MGNHead
from avprompt.metrics.avvp import TYPES, AVVPFScore
from avprompt.ranges import Count, Natural, Number, Share
from avprompt.tasks.base import AVPromptTask, Column
from avprompt.tasks.denoising import KINDS, LabelDenoising, cross_entropies

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
        presence: what an event in a segment needs besides its own probability: `both`, the video's probability by sound
            and sight together; `own`, that by the same modality, as JoMoLD's evaluation has it.
        term_weights: weights of the loss terms by name, such as `audio`; a term without has weight 1.
        denoising: takes labels of the video from one modality in training, as JoMoLD does; it needs that head.
        options: see `AVPromptTask`.

    Raises:
        ArgumentError: `gate_audio` with another head than MGN, an unknown `supervision` or `presence`, a weight of no
            term, `denoising` with another head or with `taught`, or in training with `taught` a batch without such
            labels.

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
        presence: Literal["both", "own"] = "both",
        term_weights: dict[str, Number] | None = None,
        denoising: LabelDenoising | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        if gate_audio and head is not None:
            raise ArgumentError(
                "gate_audio", True, "false, with another head than MGN", "Leave out `gate_audio`, or `head`."
            )
        check_choice("supervision", supervision, ("video", "taught"))
        check_choice("presence", presence, ("both", "own"))
        self.smoothing, self.supervision, self.presence = smoothing, supervision, presence
        self.term_weights = dict(term_weights or {})
        with seeded("head"):
            sizes = self.backbone.audio_dim, self.backbone.visual_dim, num_classes, segments, video_dim
            self.head = MGNHead(*sizes, self.backbone.temporal_gates, gate_audio) if head is None else head(*sizes)
        if denoising is not None and not (
            isinstance(self.head, JoMoLD) and self.head.across and supervision == "video"
        ):
            raise ArgumentError(
                "denoising",
                f"{type(self.head).__name__}, supervision {supervision}",
                "avprompt.heads.JoMoLD with across, and supervision video",
                "Set `head` so, or leave out `denoising`.",
            )
        self.denoising = denoising
        self.metrics["fscore"] = AVVPFScore()

    def on_fit_start(self) -> None:
        """Let the estimator say how much of the labels is noise, see `LabelDenoising`.

        Raises:
            CheckpointError: the estimator's checkpoint is missing, broken, of another head, or on other features.
        """
        super().on_fit_start()
        if self.denoising is None:
            return
        estimator = self.head.estimator().eval()
        checkpoints.load_part(self, estimator, self.denoising.estimator, "head.")
        found: dict[str, list[Tensor]] = {"labels": [], **{kind: [] for kind in KINDS}}
        with torch.no_grad():
            for batch in self.trainer.datamodule.in_order("train"):  # by each process, so that all find the same
                batch = self.trainer.strategy.batch_to_device(batch, self.device)
                with self.trainer.precision_plugin.forward_context():
                    outputs = self._run(estimator, self.extract(batch, False), batch)
                found["labels"].append(batch["labels"])
                for kind in KINDS:
                    found[kind].append(outputs[f"{kind}_video_prob"])
        labels, *probabilities = (torch.cat(parts) for parts in found.values())
        targets = {"audio": 1.0, "visual": self.smoothing + (1 - self.smoothing) / 2}
        self.denoising.find_shares(dict(zip(KINDS, probabilities)), labels, targets)

    @staticmethod
    def _run(head: ParsingHead, features: AVFeatures, batch: dict[str, Any], **options: Any) -> dict[str, Tensor]:
        video = batch.get("video_features")
        video = None if video is None else video.to(next(head.parameters()).dtype)
        return head(features.audio, features.visual, video, **options)

    def head_outputs(self, features: AVFeatures, batch: dict[str, Any], maps: bool) -> dict[str, Tensor]:
        """Features and, where the head was built for them, `video_features` (B, T, 512) -> outputs, see `MGNHead`."""
        alone = {}
        if self.denoising is not None and self.training and torch.is_grad_enabled():
            with torch.no_grad():
                found = self._run(self.head, features, batch, across=False)
            alone = {f"{kind}_alone_prob": found[f"{kind}_video_prob"] for kind in KINDS}
        return {**self._run(self.head, features, batch), **alone}

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The terms of the released training scripts, each with its weight (`term_weights`): three on the video's
        labels, or with `taught` one on these and two on labels of segments; with MGN two on its class tokens, and with
        JoMoLD's head the contrast of segments."""
        terms = self._terms(outputs, batch)
        if unknown := sorted(self.term_weights.keys() - terms.keys()):
            raise ArgumentError(
                "term_weights", unknown, f"some of {sorted(terms)}, which this task has", "Correct the names."
            )
        return {name: self.term_weights.get(name, 1.0) * term for name, term in terms.items()}

    def _terms(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        labels = batch["labels"]
        tokens = {
            f"{name}_tokens": losses.token_category(outputs[f"{name}_token_logits"])
            for name in ("audio", "visual")
            if f"{name}_token_logits" in outputs
        }
        if "similarity" in outputs:
            tokens["contrast"] = losses.segment_contrast(outputs["similarity"])
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
        targets = {"audio": labels, "visual": self.smoothing * labels + (1 - self.smoothing) / 2}
        if self.denoising is not None and "audio_alone_prob" in outputs:
            entropies = {
                kind: cross_entropies(outputs[f"{kind}_alone_prob"], target) for kind, target in targets.items()
            }
            trainer = self.trainer
            rise = self.denoising.rise(
                self.current_epoch, trainer.fit_loop.batch_idx, int(trainer.num_training_batches)
            )
            removed = self.denoising.remove(entropies, labels, rise)
            targets = {kind: target.masked_fill(removed[kind], 0.0) for kind, target in targets.items()}
        return {
            **tokens,
            "video": losses.multi_label(outputs["video_prob"], labels),
            **{
                kind: losses.cross_entropy_of_probability(outputs[f"{kind}_video_prob"], target)
                for kind, target in targets.items()
            },
        }

    def decisions(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction_audio`, `prediction_visual` (B, T, C) bool: both the video and the segment have the event."""
        return {
            f"prediction_{kind}": (outputs[f"{kind}_prob"] >= 0.5) & (self._present(outputs, kind) >= 0.5).unsqueeze(1)
            for kind in KINDS
        }

    def _present(self, outputs: dict[str, Tensor], kind: str) -> Tensor:
        """(B, C), the video's probability that decides whether an event counts, see `presence`."""
        return outputs[f"{kind}_video_prob" if self.presence == "own" else "video_prob"]

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
        audio, visual, video = (outputs[f"{name}_prob"] for name in ("audio", "visual", "video"))
        if self.presence == "own":  # what is absent by the own modality counts in no segment
            audio, visual = (
                own.where((self._present(outputs, kind) >= 0.5).unsqueeze(1), 0.0)
                for kind, own in zip(KINDS, (audio, visual))
            )
            video = torch.ones_like(video)
        self.metrics["fscore"].update(
            audio,
            visual,
            video,
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
