"""Few-shot and zero-shot: images and sounds compared with class names (DG-SCT, NeurIPS 2023, and its baselines)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from avprompt import checkpoints, losses
from avprompt.backbone import seeded
from avprompt.errors import ArgumentError, ConfigError
from avprompt.features import AVFeatures, FeatureSource, Modality
from avprompt.heads.contrastive import ContrastiveHead, Fusion
from avprompt.methods.class_embeddings import ClassEmbeddings
from avprompt.ranges import Positive, Share
from avprompt.tasks.base import AVPromptTask, Column, named


class Contrastive(AVPromptTask):
    """Classifies a segment or a clip: its class is the one whose text is nearest to its image and its sound.

    Without anything to train it is zero-shot: `avprompt test` alone. Except for `CoOp` with `class_specific`, nothing
    that is trained depends on the classes, so a checkpoint serves other datasets too. Logged are `accuracy`; with both
    modalities `visual_accuracy` and `audio_accuracy` of the logits of each; at segment level `video_accuracy` of the
    mean logits; and for clips with several classes `any_match`, where each of them counts as right. In `accuracy` each
    of them counts too where a batch has `accepted`, (B, K) float with 1 for each right class.

    Args:
        backbone: computes the features; its encoders project into the space of the texts, as `CLIP` (`projection:
            true`) and `CLAPAudio` do.
        visual_texts: texts for images; `None` compares sounds alone.
        audio_texts: texts for sounds; `None` compares images alone.
        class_names: linked from the data module, never written in YAML.
        background: `background` is one more class, the last one (segments of AVE and VGG-Sound). Without it, segments
            of the background have no text: they are not trained on and count as wrong, as in the published zero-shot
            figures.
        level: what is classified: `segment`, or `video` by the mean over its segments' logits.
        adapters: `CLIPAdapter` on some of `visual`, `visual_texts`, `audio`, `audio_texts`.
        adapter_ratio: of these.
        fusion: of both modalities' logits, see `heads.contrastive.fuse`.
        objective: `paper`, equations 9 to 11: images and texts, sounds and texts against each other within a batch,
            weighted by `visual_weight`; `released`: cross-entropy of the fused logits, and sounds against pictures of a
            batch; `class`: that cross-entropy alone, as CoOp and its successors.
        weighting: of the released objective, see `losses.released_weights`.
        visual_scale: of cosines; `None` is the one that the encoder or the text tower was trained with.
        audio_scale: likewise.
        learned_scales: train both (the paper does, the released code does not).
        exp_audio_scale: `false` repeats a defect of the released code, which multiplies by the logarithm of the scale.
        pretrained: checkpoint of another run of the same network, perhaps on other classes, to start or to test from.
        options: see `AVPromptTask`.

    Attributes:
        num_texts: number K of classes with a text.

    Raises:
        ArgumentError: encoders that do not project, no texts, texts of another width, or contradictory settings.
        CheckpointError: `pretrained` is missing, broken, of another network, or trained on other frozen weights.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyCLAP, TinyCLIP
        >>> from avprompt.methods import RandomEmbeddings
        >>> backbone = AVPromptBackbone(TinyCLIP("none", projection=True), TinyCLAP("none"))
        >>> task = Contrastive(backbone, RandomEmbeddings(64), RandomEmbeddings(64), ["bell", "dog"])
        >>> task({"frames": torch.zeros(1, 2, 3, 64, 64), "audio": torch.zeros(1, 2, 16000)})["logits"].shape
        torch.Size([1, 2, 2])
    """

    monitor = "val_accuracy"
    mode = "max"
    common_outputs = ("matching",)

    def __init__(
        self,
        backbone: FeatureSource,
        visual_texts: ClassEmbeddings | None = None,
        audio_texts: ClassEmbeddings | None = None,
        class_names: Sequence[str] = (),
        background: bool = False,
        level: Literal["segment", "video"] = "segment",
        adapters: list[str] = [],  # noqa: B006
        adapter_ratio: Share = 0.2,
        fusion: Fusion = "paper",
        objective: Literal["paper", "released", "class"] = "paper",
        weighting: Literal["epochs", "proportional", "misplaced"] = "proportional",
        visual_scale: Positive | None = None,
        audio_scale: Positive | None = None,
        learned_scales: bool = False,
        exp_audio_scale: bool = True,
        pretrained: Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.class_names, self.level = tuple(class_names), level
        self.row_per_segment = level == "segment"
        self.objective, self.weighting = objective, weighting
        texts: dict[str, ClassEmbeddings] = {
            side: own for side, own in (("visual", visual_texts), ("audio", audio_texts)) if own is not None
        }
        names = [*self.class_names, *(["background"] if background else [])] if self.class_names else []
        self.num_texts = len(names)
        scales = {"visual": visual_scale, "audio": audio_scale}
        with seeded("head"):
            for own in texts.values():
                own.attach(names, self.backbone.prompts)
            logs = {side: self._log_scale(side, own, scales[side]) for side, own in texts.items()}
            self.head = ContrastiveHead(
                texts,
                logs,
                adapters,
                adapter_ratio,
                fusion,
                learned_scales,
                exp_audio_scale,
                objective == "released",
                self.gather,
            )
        self.metrics.update(
            {
                name: MeanMetric()
                for name in ("accuracy", "visual_accuracy", "audio_accuracy", "video_accuracy", "any_match")
            }
        )
        if pretrained is not None and not any(parameter.is_meta for parameter in self.parameters()):
            content = checkpoints.read_checkpoint(pretrained)
            checkpoints.check_record(self, content.get(checkpoints.RECORD), pretrained)
            checkpoints.check_names(self, content["state_dict"], pretrained)
            self.load_state_dict(content["state_dict"])

    def _log_scale(self, modality: str, texts: ClassEmbeddings, given: float | None) -> Tensor:
        trained = self.backbone.log_scale(cast(Modality, modality))
        if given is not None:
            if given <= 0:
                raise ArgumentError(f"{modality}_scale", given, "a positive number", "Choose another value.")
            return torch.tensor(given).log()
        trained = texts.logit_scale if trained is None else trained
        if trained is None:
            raise ArgumentError(
                f"{modality}_scale",
                None,
                "a number: neither encoder nor text tower has one",
                "CLIP's published models have 100.",
            )
        return trained

    def forward(self, batch: dict[str, Any], maps: bool = False) -> dict[str, Tensor]:
        """See `AVPromptTask.forward`.

        Raises:
            ArgumentError: built without `class_names`.
        """
        if not self.class_names:
            raise ArgumentError("class_names", "none", "the names of the classes", "Give them, or a data module.")
        return super().forward(batch, maps)

    def head_outputs(self, features: AVFeatures, batch: dict[str, Any], maps: bool) -> dict[str, Tensor]:
        """Features -> `logits` (B, T, K), at video level (B, K).

        With both modalities also `visual_logits`, `audio_logits` likewise and `visual_weight` (B, T) or (B,); with the
        released objective `matching` (B, B), in a training step of k processes (k B, k B), see `gather`.
        """
        out = self.head(
            **{
                modality: self.backbone.project(modality, getattr(features, modality))
                if modality in self.head.branches
                else None
                for modality in ("visual", "audio")
            }
        )
        if self.level == "video":
            out = {name: value if name == "matching" else value.mean(1) for name, value in out.items()}
        return out

    def targets(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Index of the right class, (B, T) or (B,) long, and whether there is a text for it, bool.

        Raises:
            ArgumentError: labels of clips, for `level: segment`.
        """
        if "event" in batch and self.level == "segment":
            target = batch["event"].argmax(-1)
            return target, target < self.num_texts
        if "event" in batch:
            _, category, has_event = losses.event_targets(batch["event"])
            return category, has_event
        if self.level == "segment":
            raise ArgumentError("level", "segment", "video, for a dataset with one label a clip", "Set level: video.")
        return batch["label"], torch.ones_like(batch["label"], dtype=torch.bool)

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The terms of the objective."""
        target, has_class = (own.flatten() for own in self.targets(batch))
        logits = {name: outputs[name].flatten(0, -2) for name in outputs if name.endswith("logits")}
        if self.objective == "paper":
            return self._contrast(logits, outputs.get("visual_weight"), target, has_class)
        fused = losses.clip_category(logits["logits"], target, has_class)
        if self.objective == "class":
            return {"class": fused}
        terms = fused, *losses.audio_clip_contrast(outputs["matching"])
        weights = losses.released_weights(terms, self.current_epoch + 1, self.weighting)
        names = "class", "sound_to_clip", "clip_to_sound"
        return {name: weight * term for name, weight, term in zip(names, weights, terms)}

    @staticmethod
    def _contrast(
        logits: dict[str, Tensor], share: Tensor | None, target: Tensor, has_class: Tensor
    ) -> dict[str, Tensor]:
        count = has_class.sum().clamp(min=1)
        if share is None:
            return {"contrast": losses.text_contrast(logits["logits"], target, has_class).sum() / count}
        share = share.flatten()
        return {
            side: (weight * losses.text_contrast(logits[f"{side}_logits"], target, has_class)).sum() / count
            for side, weight in (("visual", share), ("audio", 1 - share))
        }

    def decisions(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction` (B, T) or (B,) long; the number of classes stands for background."""
        return {"prediction": outputs["logits"].argmax(-1)}

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`class` (B, T, K) or (B, K), and where there are two modalities that of each alone."""
        names = {"logits": "class", "visual_logits": "class, sight alone", "audio_logits": "class, sound alone"}
        return {shown: outputs[name].float().softmax(-1) for name, shown in names.items() if name in outputs}

    def columns(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> dict[str, Column]:
        """Predicted class and its probability, also of each modality alone, and the annotated class."""
        names, best = [*class_names, "background"], outputs["logits"].float().softmax(-1).max(-1)
        annotated: Column = [""] * len(best.indices)
        if "labels" in batch:
            annotated = [", ".join(names[index] for index in labels.nonzero().flatten()) for labels in batch["labels"]]
        elif "event" in batch or "label" in batch:
            annotated = named(self.targets(batch)[0], names)
        return {
            "predicted": named(best.indices, names),
            "probability": best.values,
            **{
                f"predicted_{modality}": named(outputs[f"{modality}_logits"].argmax(-1), names)
                for modality in ("visual", "audio")
                if f"{modality}_logits" in outputs
            },
            "annotated": annotated,
        }

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        for name, value in self.scores(outputs, batch).items():
            self.metrics[name].update(value[~value.isnan()])

    def scores(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Whether the class of a segment or a clip is right; `video_accuracy` (B,) is the clip's, NaN without event."""
        (target, has_class), accepted, scores = self.targets(batch), batch.get("accepted"), {}
        if "event" in batch and self.level == "video":
            target = target.masked_fill(~has_class, -1)  # a clip without an event counts and is always wrong
        for name in ("", *(f"{modality}_" for modality in self.head.branches)):
            if f"{name}logits" in outputs:
                found = outputs[f"{name}logits"].argmax(-1)
                right = accepted.gather(1, found[:, None])[:, 0] if accepted is not None else found == target
                scores[f"{name}accuracy"] = right.float()
        if self.level == "segment":
            _, category, has_event = losses.event_targets(batch["event"])
            found = outputs["logits"].mean(1).argmax(-1)
            scores["video_accuracy"] = (found == category).float().masked_fill(~has_event, torch.nan)
        if "labels" in batch:
            found = outputs["logits"].argmax(-1, keepdim=True)
            scores["any_match"] = batch["labels"].gather(1, found).squeeze(1).float()
        return scores

    def configure_optimizers(self) -> Any:
        """As every task's.

        Raises:
            ConfigError: nothing is trained.
        """
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ConfigError(
                "model",
                "nothing to train: plain encoders and fixed texts",
                "prompts, texts or adapters",
                "Zero-shot needs no training: run `avprompt test` with this config.",
            )
        return super().configure_optimizers()
