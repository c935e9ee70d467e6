"""Audio-visual segmentation (AVSBench; Zhou et al., ECCV 2022), settings S4 and MS3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avprompt import losses
from avprompt.backbone import seeded
from avprompt.features import AVFeatures, FeatureSource
from avprompt.heads.avs_decoder import AVSDecoder
from avprompt.metrics.avs import AVSFScore, AVSJaccard
from avprompt.ranges import Count, NonNegative
from avprompt.tasks.base import AVPromptTask, Column


class AVS(AVPromptTask):
    """Segments the pixels of sounding objects.

    Frames of another size than the visual encoder's are resized to it inside the network (bicubic, no low-pass), as in
    the released one, which reads 224 x 224 frames into 192 x 192.

    Args:
        backbone: computes the features, see `FeatureSource`; it needs a pyramid.
        mask_size: height and width of the masks; linked from the data module, never written in YAML.
        matching: weight of the term that compares audio features with visual features under the mask (released: 0 for
            S4, 0.5 for MS3).
        decoder_width: channels of the decoder's maps.
        rectified: keep the side effects of the released decoder's in-place ReLUs, see `AVSDecoder`.
        dilated: AVSBench's dilated convolutions, see `AVSDecoder`.
        project: `False` is AVSBench's own decoder, see `AVSDecoder`.
        protocol: how the F-score is counted, see `AVSFScore`.
        options: see `AVPromptTask`.

    Raises:
        ArgumentError: the backbone has no pyramid, or `mask_size` does not fit to it.

    Example:
        >>> import torch
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyHTSAT, TinySwinV2
        >>> task = AVS(AVPromptBackbone(TinySwinV2("none"), TinyHTSAT("none")), mask_size=32, decoder_width=16)
        >>> task({"frames": torch.zeros(1, 2, 3, 64, 64), "audio": torch.zeros(1, 2, 16000)})["masks"].shape
        torch.Size([1, 2, 32, 32])
    """

    monitor = "val_miou"
    mode = "max"
    resizes_frames = True

    def __init__(
        self,
        backbone: FeatureSource,
        mask_size: Count = 224,
        matching: NonNegative = 0.0,
        decoder_width: Count = 256,
        rectified: bool = True,
        dilated: bool = False,
        project: bool = True,
        protocol: Literal["dataset", "released"] = "dataset",
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.matching = matching
        with seeded("head"):
            self.head = AVSDecoder(
                self.backbone.audio_dim,
                self.backbone.pyramid_specs,
                mask_size,
                self.backbone.temporal_gates,
                matching > 0,
                decoder_width,
                rectified,
                dilated,
                project,
            )
        self.metrics.update({"miou": AVSJaccard(), "fscore": AVSFScore(protocol)})

    def extract(self, batch: dict[str, Any], maps: bool) -> AVFeatures:
        """The features of a batch whose frames may have any size."""
        if "frames" in batch:
            batch = {**batch, "frames": self.backbone.fit_frames(batch["frames"])}
        return super().extract(batch, maps)

    def head_outputs(self, features: AVFeatures, batch: dict[str, Any], maps: bool) -> dict[str, Tensor]:
        """Features -> `masks` (B, T, mask_size, mask_size) logits; more with `matching`, see `AVSDecoder`."""
        return self.head(features.audio, features.pyramid)

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The terms of the released training scripts: cross-entropy of the pixels, and for MS3 the match with the
        sound."""
        terms = {"mask": losses.mask_bce(outputs["masks"], batch["masks"], batch["annotated"])}
        if self.matching:
            terms["match"] = self.matching * losses.masked_audio_visual_kl(
                outputs["matched_visual"], outputs["matched_audio"]
            )
        return terms

    def decisions(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction` (B, T, H, W) bool: probability above one half."""
        return {"prediction": outputs["masks"] > 0}

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`share of the frame that sounds` (B, T): the mean probability of its pixels."""
        return {"share of the frame that sounds": outputs["masks"].float().sigmoid().mean((2, 3))}

    def columns(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], class_names: Sequence[str]
    ) -> dict[str, Column]:
        """Share of the frame under the predicted mask, and its overlap with the annotation if there is one."""
        masks = self.decisions(outputs)["prediction"]
        overlaps: Column = [""] * len(masks)
        if "masks" in batch:
            truth = batch["masks"].bool()
            both, either = ((masks & truth).sum((2, 3)).double(), (masks | truth).sum((2, 3)))
            shares = torch.where(either > 0, both / either.clamp(min=1), 1.0)  # two empty masks agree
            overlaps = [
                [share if known else "" for share, known in zip(*clip)]
                for clip in zip(shares.tolist(), batch["annotated"].tolist())
            ]
        return {"sounding_share": masks.float().mean((2, 3)), "iou": overlaps}

    def prediction_files(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Image.Image]:
        """The predicted masks as `masks/<id>_<segment>.png`, segments counted from 1; sounding pixels are white."""
        masks = self.decisions(outputs)["prediction"].cpu().byte() * 255
        return {
            f"masks/{clip_id.replace('/', '_')}_{segment}.png": Image.fromarray(mask.numpy())
            for clip_id, clip in zip(batch["id"], masks)
            for segment, mask in enumerate(clip, 1)
        }

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        for metric in self.metrics.values():
            metric.update(outputs["masks"].float()[batch["annotated"]], batch["masks"][batch["annotated"]])

    def scores(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Of an annotated frame: intersection over union, and where something sounds the curve of F over thresholds,
        (B, T, 255), as the metrics have just computed them."""
        fscore, annotated = self.metrics["fscore"], batch["annotated"]
        curves, sounds = fscore.curves[-1], fscore.sounds[-1]
        found = {"miou": self.metrics["miou"].frames[-1], "fscore": torch.where(sounds[:, None], curves, torch.nan)}
        whole = {name: value.new_full((*annotated.shape, *value.shape[1:]), torch.nan) for name, value in found.items()}
        for name, value in found.items():
            whole[name][annotated] = value
        return whole

    def finish_outcomes(self, rows: list[dict[str, Any]]) -> None:
        """Curves of F become F at the best threshold: of the split, or by the released protocol of each group, all of
        which weigh the same."""
        fscore = self.metrics["fscore"]
        size = len(rows) if fscore.protocol == "dataset" else fscore.frames_per_group
        for group in (rows[first : first + size] for first in range(0, len(rows), size)):
            sounding = [row for row in group if not np.isnan(row["fscore"]).all()]
            best = int(np.sum([row["fscore"] for row in sounding], 0).argmax()) if sounding else None
            for row in group:
                # a group in which nothing sounds scores 0
                row["fscore"] = 0.0 if best is None else float(row["fscore"][best])
                if fscore.protocol == "released":
                    row["weight:fscore"] = 1 / len(sounding or group)
