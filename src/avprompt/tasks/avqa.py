"""Audio-visual question answering (MUSIC-AVQA; Li et al., CVPR 2022) and its grounding stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from avprompt import checkpoints, losses
from avprompt.backbone import AVPromptBackbone, seeded
from avprompt.errors import ShapeError
from avprompt.heads.st_avqa import Grounding, STAVQAHead
from avprompt.metrics.avqa import AVQAAccuracy
from avprompt.tasks.base import AVPromptTask


def distinct(names: Sequence[str | int], *tensors: Tensor) -> tuple[list[int], list[int]]:
    """Which examples of a batch are needed where some are there several times.

    Args:
        names: B names; examples of different names differ.
        tensors: (B, ...) each; those of one name are compared, since augmentation may tell them apart.

    Returns:
        Places of the first of each, and for all B examples their place among those.
    """
    firsts, places = [], []
    for index, name in enumerate(names):
        same = [place for place, first in enumerate(firsts)
                if names[first] == name and all(torch.equal(t[first], t[index]) for t in tensors)]
        firsts += [] if same else [index]
        places.append(same[0] if same else len(firsts) - 1)
    return firsts, places


class AVQA(AVPromptTask):
    """Answer a question about what is heard and seen; a video with several questions in a batch is encoded once.

    Args:
        backbone: see `AVPromptBackbone`.
        num_classes: answers to choose from; linked from the data module, never written in YAML.
        vocabulary_size: words of the questions, padding included; linked likewise.
        match_weight: weight of the term on negative frames, where the data module gives them (released: 0.5).
        prompted_negatives: negative frames go through the prompted network, like the others. As released they go through the
            plain one: the prompts then only need to leave a mark for sound and frame to be told to belong together.
        width: channels of the head, see `heads.st_avqa.Grounding`.
        grounding: checkpoint of `AVQAGrounding` to start the grounding module from; the published procedure has one.
        options: see `AVPromptTask`.
    """

    monitor = "val_average"
    mode = "max"

    def __init__(self, backbone: AVPromptBackbone, num_classes: int = 42, vocabulary_size: int = 93,
                 match_weight: float = 0.5, prompted_negatives: bool = False, width: int | None = None,
                 grounding: Path | None = None, **options: Any) -> None:
        super().__init__(backbone, **options)
        self.match_weight, self.prompted_negatives = match_weight, prompted_negatives
        with seeded("head"):
            self.head = STAVQAHead(backbone.audio_dim, backbone.visual_dim, num_classes, vocabulary_size, width)
        self.grounding, self.accuracy = grounding, AVQAAccuracy()

    def setup(self, stage: str) -> None:
        """Before training, take over the grounding module.

        Raises:
            CheckpointError: the grounding checkpoint is missing, broken or of another network.
        """
        if stage == "fit" and self.grounding is not None:
            checkpoints.load_part(self, self.head.grounding, self.grounding, "head.grounding.")

    def forward(self, batch: dict[str, Any], maps: bool = False) -> dict[str, Tensor]:
        """Frames (B, T, 3, H, W), audio (B, T, S), `question` (B, L), in training `negative_frames` -> outputs.

        Negative frames go through the plain frozen encoder without a graph, as released, or see `prompted_negatives`.

        Returns:
            `answer` (B, A) logits; `match_positive`, `match_negative` (B*T, 2) logits when negatives are given; with `maps`
            also `map_grounding` (B, T, rows, columns).
        """
        needed, places = self._needed(batch)
        features = self.backbone({name: batch[name][needed] for name in self._inputs()})
        encoder, negatives = self.backbone.visual, batch.get("negative_frames")
        spec = encoder.stages[-1].blocks[-1].spec
        if negatives is not None and self.prompted_negatives:
            negatives = self.backbone({**batch, "frames": negatives}).visual_tokens[:, :, spec.prefix:]
        elif negatives is not None:
            with torch.no_grad():
                negatives = encoder(negatives).unflatten(0, negatives.shape[:2])[:, :, spec.prefix:]
        out = self.head(features.audio[places], features.visual_tokens[places][:, :, spec.prefix:], batch["question"],
                        negatives)
        grounding = out.pop("grounding")
        return {**out, "map_grounding": grounding.unflatten(-1, spec.grid)} if maps else out

    def _inputs(self) -> tuple[str, ...]:
        """Entries of a batch that the backbone reads."""
        return "frames", "audio", *self.backbone.prompts.extra_inputs

    def _needed(self, batch: dict[str, Any]) -> tuple[list[int], list[int]]:
        """See `distinct`; encoders in train mode, as released, treat each example by chance: none stands for another."""
        chance = self.backbone.visual.training or self.backbone.audio.training
        names = range(len(batch["question"])) if chance or "id" not in batch else batch["id"]
        return distinct(names, batch["frames"], batch["audio"])

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Cross-entropy of the answer, and with negatives half that of sound and frame, as released."""
        terms = {"answer": torch.nn.functional.cross_entropy(outputs["answer"].float(), batch["answer"])}
        if "match_negative" in outputs:
            terms["match"] = self.match_weight * losses.audio_visual_match(outputs["match_positive"],
                                                                        outputs["match_negative"])
        return terms

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction` (B,) long, index of the answer; `map_grounding` as it is."""
        maps = {name: value for name, value in outputs.items() if name == "map_grounding"}
        return {"prediction": outputs["answer"].argmax(-1), **maps}

    def prediction_rows(self, outputs: dict[str, Tensor], batch: dict[str, Any],
                        class_names: Sequence[str]) -> list[dict[str, Any]]:
        """One row a question."""
        best = outputs["answer"].float().softmax(-1).max(-1)
        return [{
            "id": clip_id,
            "question_id": batch["question_id"][clip] if "question_id" in batch else "",
            "question": batch["question_text"][clip],
            "type": batch["question_type"][clip] if "question_type" in batch else "",
            "predicted": class_names[int(best.indices[clip])],
            "probability": round(float(best.values[clip]), 4),
            "annotated": class_names[int(batch["answer"][clip])] if "answer" in batch else "",
            "start": float(batch["start"][clip]) if "start" in batch else 0.0,
            "path": batch["path"][clip] if "path" in batch else "",
        } for clip, clip_id in enumerate(batch["id"])]

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        self.accuracy.update(outputs["answer"], batch["answer"], batch["question_type"])

    def compute_metrics(self) -> dict[str, Tensor]:
        scores, self.counts = self.accuracy.compute(), self.accuracy.counts()
        self.accuracy.reset()
        return {name.replace(" ", "_"): torch.as_tensor(score) / 100 for name, score in scores.items()}


class AVQAGrounding(AVPromptTask):
    """The stage before `AVQA`: does a second's sound belong to a frame? Its grounding module is what `AVQA` starts from.

    Both encoders stay as they are (`prompts: NoPrompts`). Every segment is one pair with its own frame and one with a frame
    of another video; the released script takes the first segment alone. Validation needs negatives too.

    Args:
        backbone: see `AVPromptBackbone`.
        width: see `Grounding`; the same as in `AVQA`.
        options: see `AVPromptTask`.
    """

    monitor = "val_accuracy"
    mode = "max"

    def __init__(self, backbone: AVPromptBackbone, width: int | None = None, **options: Any) -> None:
        super().__init__(backbone, **options)
        with seeded("grounding"):
            self.head = torch.nn.ModuleDict({"grounding": Grounding(backbone.audio_dim, backbone.visual_dim, width)})
        self.accuracy = MeanMetric()

    def forward(self, batch: dict[str, Any], maps: bool = False) -> dict[str, Tensor]:
        """Frames and `negative_frames` (B, T, 3, H, W), audio (B, T, S) -> outputs.

        Returns:
            `match_positive`, `match_negative` (B*T, 2) logits; with `maps` also `map_grounding` (B, T, rows, columns).

        Raises:
            ShapeError: no negative frames.
        """
        if "negative_frames" not in batch and not maps:
            raise ShapeError("negative_frames", "none", "frames of other videos, (B, T, 3, H, W)",
                             "Set the data module's `negatives` and `negatives_in_evaluation`.")
        features = self.backbone(batch)
        encoder, grounding = self.backbone.visual, self.head["grounding"]
        spec, sound, out = encoder.stages[-1].blocks[-1].spec, grounding.audio(features.audio), {}
        sight, where = grounding(sound, features.visual_tokens[:, :, spec.prefix:])
        out["match_positive"] = grounding.matches(sound, sight)
        if "negative_frames" in batch:
            with torch.no_grad():
                tokens = encoder(batch["negative_frames"]).unflatten(0, sound.shape[:2])[:, :, spec.prefix:]
            out["match_negative"] = grounding.matches(sound, grounding(sound, tokens)[0])
        return {**out, "map_grounding": where.unflatten(-1, spec.grid)} if maps else out

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Cross-entropy over pairs that belong together and pairs that do not."""
        return {"match": losses.audio_visual_match(outputs["match_positive"], outputs["match_negative"])}

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`map_grounding` as it is."""
        return {name: value for name, value in outputs.items() if name == "map_grounding"}

    def prediction_rows(self, outputs: dict[str, Tensor], batch: dict[str, Any],
                        class_names: Sequence[str]) -> list[dict[str, Any]]:
        """One row a second: how surely its sound and its frame belong together."""
        match = outputs["match_positive"].float().softmax(-1)[:, 1].unflatten(0, batch["valid"].shape)
        return [{"id": clip_id, "second": second, "together": round(float(value), 4)}
                for clip_id, clip in zip(batch["id"], match) for second, value in enumerate(clip)]

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        for name, right in (("match_positive", 1), ("match_negative", 0)):
            self.accuracy.update((outputs[name].argmax(-1) == right).float())

    def compute_metrics(self) -> dict[str, Tensor]:
        accuracy = self.accuracy.compute()
        self.accuracy.reset()
        return {"accuracy": accuracy}
