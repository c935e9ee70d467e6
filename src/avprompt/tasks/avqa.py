"""Audio-visual question answering (MUSIC-AVQA; Li et al., CVPR 2022) and its grounding stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from avprompt import checkpoints, losses
from avprompt.backbone import seeded
from avprompt.errors import ArgumentError, ShapeError, check_choice
from avprompt.features import AVFeatures, FeatureSource
from avprompt.heads.st_avqa import Grounding, QuestionHead, STAVQAHead
from avprompt.metrics.avqa import METRICS, AVQAAccuracy, metric_names
from avprompt.precision import wide
from avprompt.ranges import Count, NonNegative
from avprompt.tasks.base import AVPromptTask, Column, named


def distinct(names: Sequence[str | int], *tensors: Tensor) -> tuple[list[int], list[int]]:
    """Find examples that occur several times in a batch.

    Args:
        names: B names; examples of different names differ.
        tensors: (B, ...) each; examples of one name are compared, because augmentation may have changed them.

    Returns:
        Indices of the first example of each kind, and for all B examples the index of their kind among these.

    Example:
        >>> distinct(["a", "b", "a"], torch.tensor([1, 2, 1]))
        ([0, 1], [0, 1, 0])
    """
    firsts: list[int] = []
    places: list[int] = []
    for index, name in enumerate(names):
        same = [
            place
            for place, first in enumerate(firsts)
            if names[first] == name and all(torch.equal(t[first], t[index]) for t in tensors)
        ]
        firsts += [] if same else [index]
        places.append(same[0] if same else len(firsts) - 1)
    return firsts, places


class AVQA(AVPromptTask):
    """Answers questions about videos; a video with several questions in a batch is encoded once.

    Args:
        backbone: computes the features, see `FeatureSource`; it needs visual tokens on a grid.
        num_classes: answers to choose from; linked from the data module, never written in YAML.
        vocabulary_size: words of the questions, padding included; linked likewise.
        match_weight: weight of the term on negative frames, where the data module gives them (released: 0.5).
        prompted_negatives: negative frames go through the prompted network, like positive ones. In the released code
            they go through the plain one, so that the match term can recognise a positive pair by the effect of the
            prompts.
        width: channels of the head, see `heads.st_avqa.Grounding`.
        inputs: `question` is a baseline that answers without looking or listening (`QuestionHead`).
        project_audio: see there.
        grounding: checkpoint of `AVQAGrounding` to start the grounding module from; the published procedure has one.
        options: see `AVPromptTask`.

    Raises:
        ArgumentError: the backbone has no visual tokens on a grid, unknown `inputs`, or `grounding` without a module to
            start.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> task = AVQA(AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none")), num_classes=5, vocabulary_size=9)
        >>> task({"frames": torch.zeros(1, 2, 3, 64, 64), "audio": torch.zeros(1, 2, 16000),
        ...       "question": torch.tensor([[1, 2, 0]])})["answer"].shape
        torch.Size([1, 5])
    """

    monitor = "val_average"
    mode = "max"
    metric_unit = 100.0
    row_per_segment = False

    def __init__(
        self,
        backbone: FeatureSource,
        num_classes: Count = 42,
        vocabulary_size: Count = 93,
        match_weight: NonNegative = 0.5,
        prompted_negatives: bool = False,
        width: Count | None = None,
        inputs: Literal["all", "question"] = "all",
        project_audio: bool = True,
        grounding: Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        check_choice("inputs", inputs, ("all", "question"))
        self.match_weight, self.prompted_negatives = match_weight, prompted_negatives
        self.spec = self.backbone.visual_spec
        with seeded("head"):
            if inputs == "question":
                self.head = QuestionHead(num_classes, vocabulary_size, width or 512)
            else:
                self.head = STAVQAHead(
                    self.backbone.audio_dim,
                    self.backbone.visual_dim,
                    num_classes,
                    vocabulary_size,
                    width,
                    project_audio,
                )
        if inputs == "question" and grounding is not None:
            raise ArgumentError("grounding", grounding, "null, with inputs: question", "Leave it out.")
        self.inputs = inputs
        self.grounding = grounding
        self.metrics["accuracy"] = AVQAAccuracy()

    def setup(self, stage: str) -> None:
        """Load the grounding module before training.

        Raises:
            CheckpointError: the grounding checkpoint is missing, broken or of another network.
        """
        super().setup(stage)
        if stage == "fit" and self.grounding is not None:
            checkpoints.load_part(self, self.head.grounding, self.grounding, "head.grounding.")

    def _same(self, batch: dict[str, Any]) -> list[int]:
        """For each of B questions a number of its video."""
        keys = [key for key in self.backbone.batch_keys if key in batch]
        return distinct(batch["id"], *(batch[key] for key in keys if torch.is_tensor(batch[key])))[1]

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Compare videos while they are on the host: on a GPU every comparison would wait for it."""
        return {**batch, "same_video": self._same(batch)} if "id" in batch else batch

    def extract(self, batch: dict[str, Any], maps: bool) -> AVFeatures:
        """The features of every question's video, each video encoded once.

        Encoders in train mode, as released, are random, so that every question's video is then encoded by itself.
        """
        if self.backbone.stochastic or "id" not in batch:
            return super().extract(batch, maps)
        videos = batch["same_video"] if "same_video" in batch else self._same(batch)
        kinds = list(dict.fromkeys(videos))
        if len(kinds) == len(videos):
            return super().extract(batch, maps)
        needed, places = [videos.index(kind) for kind in kinds], [kinds.index(video) for video in videos]
        tensors = {key: batch[key] for key in self.backbone.batch_keys if torch.is_tensor(batch.get(key))}
        device = next(iter(tensors.values())).device
        index, back = (
            torch.tensor(own, pin_memory=device.type == "cuda").to(device, non_blocking=True)
            for own in (needed, places)
        )
        chosen = {
            key: batch[key][index] if key in tensors else [batch[key][place] for place in needed]
            for key in self.backbone.batch_keys
            if key in batch
        }
        return super().extract({**batch, **chosen}, maps).select(back)

    def head_outputs(self, features: AVFeatures, batch: dict[str, Any], maps: bool) -> dict[str, Tensor]:
        """Features, `question` (B, L) and, in training, `negative_frames` (B, T, 3, H, W) -> outputs.

        Negative frames go through the plain frozen encoder without a graph, as released, or see `prompted_negatives`.
        In place of them `negative_features` (B, T, N, C_v) will do.

        Returns:
            `answer` (B, A) logits; `match_positive`, `match_negative` (B*T, 2) logits when negatives are given; with
            `maps` also `map_grounding` (B, T, rows, columns).
        """
        if self.inputs == "question":
            return {"answer": self.head(batch["question"])}
        negatives = batch.get("negative_features")
        negatives = None if negatives is None else negatives.to(next(self.head.parameters()).dtype)
        if "negative_frames" in batch:
            frames = batch["negative_frames"]
            negatives = (
                self.backbone({**batch, "frames": frames}).visual_tokens
                if self.prompted_negatives
                else self.backbone.plain_visual_tokens(frames)
            )[:, :, self.spec.prefix :]
        out = self.head(features.audio, features.visual_tokens[:, :, self.spec.prefix :], batch["question"], negatives)
        grounding = out.pop("grounding")
        return {**out, "map_grounding": grounding.unflatten(-1, self.spec.grid)} if maps else out

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Cross-entropy of the answer, and with negatives that of the match of sound and frame, weighted."""
        terms = {"answer": torch.nn.functional.cross_entropy(wide(outputs["answer"]), batch["answer"])}
        if "match_negative" in outputs:
            terms["match"] = self.match_weight * losses.audio_visual_match(
                outputs["match_positive"], outputs["match_negative"]
            )
        elif torch.is_grad_enabled() and self.inputs == "all":
            # DDP waits for a gradient of each trained parameter, and without negatives nothing compares pairs
            terms["answer"] = terms["answer"] + 0 * sum(own.sum() for own in self.head.grounding.match.parameters())
        return terms

    def decisions(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction` (B,) long, index of the answer."""
        return {"prediction": outputs["answer"].argmax(-1)}

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`answer` (B, A)."""
        return {"answer": outputs["answer"].float().softmax(-1)}

    def columns(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> dict[str, Column]:
        """Question, predicted answer, its probability, and the annotated answer if it is known."""
        best, unknown = outputs["answer"].float().softmax(-1).max(-1), [""] * len(batch["question_text"])
        return {
            "question_id": batch.get("question_id", unknown),
            "question": batch["question_text"],
            "type": batch.get("question_type", unknown),
            "predicted": named(best.indices, class_names),
            "probability": best.values,
            "annotated": named(batch["answer"], class_names) if "answer" in batch else unknown,
        }

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        self.metrics["accuracy"].update(outputs["answer"], batch["answer"], batch["question_type"])

    def scores(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Whether the answer is right, under each name that counts a question of this type."""
        right, names = (
            outputs["answer"].argmax(-1) == batch["answer"],
            [metric_names(kind) for kind in batch["question_type"]],
        )
        return {
            name: torch.where(
                torch.tensor([name in own for own in names], device=right.device), right.float(), torch.nan
            )
            for name in METRICS
        }


class AVQAGrounding(AVPromptTask):
    """Stage before `AVQA`: predicts whether a sound belongs to a frame. `AVQA` starts from its grounding module.

    Both encoders have no prompts (`prompts: NoPrompts`). Every segment forms one pair with its own frame and one with a
    frame of another video; the released script uses only the first segment. Validation needs negatives too.

    Args:
        backbone: computes the features, see `FeatureSource`; it needs visual tokens on a grid, and takes frames.
        width: see `Grounding`; the same as in `AVQA`.
        project_audio: see there, likewise.
        options: see `AVPromptTask`.

    Raises:
        ArgumentError: the backbone has no visual tokens on a grid.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> task = AVQAGrounding(AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none")))
        >>> frames = torch.zeros(1, 2, 3, 64, 64)
        >>> outputs = task({"frames": frames, "negative_frames": frames, "audio": torch.zeros(1, 2, 16000)})
        >>> outputs["match_positive"].shape
        torch.Size([2, 2])
    """

    monitor = "val_accuracy"
    mode = "max"

    def __init__(
        self, backbone: FeatureSource, width: Count | None = None, project_audio: bool = True, **options: Any
    ) -> None:
        super().__init__(backbone, **options)
        self.spec = self.backbone.visual_spec
        with seeded("grounding"):
            grounding = Grounding(self.backbone.audio_dim, self.backbone.visual_dim, width, project_audio)
            self.head = torch.nn.ModuleDict({"grounding": grounding})
        self.metrics["accuracy"] = MeanMetric()

    def extract(self, batch: dict[str, Any], maps: bool) -> AVFeatures:
        """The features of a batch.

        Raises:
            ShapeError: no negative frames.
        """
        if not {"negative_frames", "negative_features"} & set(batch) and not maps:
            raise ShapeError(
                "negative_frames",
                "none",
                "frames of other videos, (B, T, 3, H, W)",
                "Set the data module's `negatives` and `negatives_in_evaluation`.",
            )
        return super().extract(batch, maps)

    def head_outputs(self, features: AVFeatures, batch: dict[str, Any], maps: bool) -> dict[str, Tensor]:
        """Features and `negative_frames` (B, T, 3, H, W), or `negative_features` (B, T, N, C_v) -> `match_positive`,
        `match_negative` (B*T, 2) logits; with `maps` also `map_grounding` (B, T, rows, columns)."""
        grounding, prefix = self.head["grounding"], self.spec.prefix
        sound = grounding.audio(features.audio)
        sight, where = grounding(sound, features.visual_tokens[:, :, prefix:])
        out = {"match_positive": grounding.matches(sound, sight)}
        tokens = batch.get("negative_features")
        tokens = None if tokens is None else tokens.to(next(self.head.parameters()).dtype)
        if "negative_frames" in batch:
            tokens = self.backbone.plain_visual_tokens(batch["negative_frames"])[:, :, prefix:]
        if tokens is not None:
            out["match_negative"] = grounding.matches(sound, grounding(sound, tokens)[0])
        return {**out, "map_grounding": where.unflatten(-1, self.spec.grid)} if maps else out

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Cross-entropy over pairs that belong together and pairs that do not."""
        return {"match": losses.audio_visual_match(outputs["match_positive"], outputs["match_negative"])}

    def decisions(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """No decisions; only the map is drawn."""
        return {}

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`sound and frame match` (B, T), where the maps tell the number of clips."""
        if "map_grounding" not in outputs:
            return {}
        count = len(outputs["map_grounding"])
        return {"sound and frame match": outputs["match_positive"].float().softmax(-1)[:, 1].unflatten(0, (count, -1))}

    def columns(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> dict[str, Column]:
        """The probability that the sound and the frame of a segment belong together."""
        match = outputs["match_positive"].float().softmax(-1)[:, 1]
        return {"match_probability": match.unflatten(0, batch["valid"].shape)}

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        for name, right in (("match_positive", 1), ("match_negative", 0)):
            self.metrics["accuracy"].update((outputs[name].argmax(-1) == right).float())

    def scores(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """How many of the two pairs of a segment are rightly recognised, divided by two."""
        right = [
            (outputs[name].argmax(-1) == right).float()
            for name, right in (("match_positive", 1), ("match_negative", 0))
        ]
        return {"accuracy": (sum(right) / 2).unflatten(0, batch["valid"].shape)}
