"""Audio-visual segmentation (AVSBench; Zhou et al., ECCV 2022), settings S4 and MS3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from avprompt import losses
from avprompt.backbone import AVPromptBackbone, seeded
from avprompt.heads.avs_decoder import AVSDecoder
from avprompt.metrics.avs import AVSFScore, AVSJaccard
from avprompt.tasks.base import AVPromptTask


class AVS(AVPromptTask):
    """Which pixels sound.

    Frames of another size than the visual encoder's are resized to it inside the network (bicubic, no low-pass), as in
    the released one, which reads 224 x 224 frames into 192 x 192.

    Args:
        backbone: see `AVPromptBackbone`.
        mask_size: height and width of the masks; linked from the data module, never written in YAML.
        matching: weight of the term that matches sound and what is seen under the mask (released: 0 for S4, 0.5 for MS3).
        decoder_width: channels of the decoder's maps.
        rectified: keep the side effects of the released decoder's in-place ReLUs, see `AVSDecoder`.
        protocol: how the F-score is counted, see `AVSFScore`.
        options: see `AVPromptTask`.
    """

    monitor = "val_miou"
    mode = "max"

    def __init__(self, backbone: AVPromptBackbone, mask_size: int = 224, matching: float = 0.0, decoder_width: int = 256,
                 rectified: bool = True, protocol: Literal["dataset", "released"] = "dataset", **options: Any) -> None:
        super().__init__(backbone, **options)
        self.matching = matching
        stages = [stage.blocks[-1].spec for stage in backbone.visual.stages]
        with seeded("head"):
            self.head = AVSDecoder(backbone.audio_dim, stages, mask_size, backbone.prompts.temporal_gates, matching > 0,
                                   decoder_width, rectified)
        self.jaccard, self.fscore = AVSJaccard(), AVSFScore(protocol)

    def forward(self, batch: dict[str, Any], maps: bool = False) -> dict[str, Tensor]:
        """Frames (B, T, 3, H, W) and audio (B, T, S) -> outputs.

        Returns:
            `masks` (B, T, mask_size, mask_size) logits; more with `matching`, see `AVSDecoder`.
        """
        visual, frames = self.backbone.visual, batch["frames"]
        size = visual.input.height, visual.input.width
        if frames.shape[-2:] != size:
            frames = F.interpolate(visual.normalise(frames).flatten(0, 1), size, mode="bicubic").unflatten(0, frames.shape[:2])
        features = self.backbone({**batch, "frames": frames})
        return self.head(features.audio, features.pyramid)

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The terms of the released training scripts: a pixel's cross-entropy, and for MS3 the match with the sound."""
        terms = {"mask": losses.mask_bce(outputs["masks"], batch["masks"], batch["annotated"])}
        if self.matching:
            terms["match"] = self.matching * losses.masked_audio_visual_kl(outputs["matched_visual"], outputs["matched_audio"])
        return terms

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`prediction` (B, T, H, W) bool: probability above one half."""
        return {"prediction": outputs["masks"] > 0}

    def prediction_rows(self, outputs: dict[str, Tensor], batch: dict[str, Any],
                        class_names: Sequence[str]) -> list[dict[str, Any]]:
        """One row a second: the share of the frame that sounds, and the overlap with the annotation where there is one."""
        masks = self.postprocess(outputs)["prediction"]
        rows = []
        for clip, clip_id in enumerate(batch["id"]):
            begin = float(batch["start"][clip]) if "start" in batch else 0.0
            for second, mask in enumerate(masks[clip]):
                overlap = ""
                if "masks" in batch and batch["annotated"][clip, second]:
                    truth = batch["masks"][clip, second].bool()
                    union = int((mask | truth).sum())
                    overlap = round(int((mask & truth).sum()) / union, 4) if union else 1.0
                rows.append({"id": clip_id, "start": begin + second, "end": begin + second + 1,
                             "sounding_share": round(float(mask.float().mean()), 4), "iou": overlap,
                             "decoded": bool(batch["valid"][clip, second]),
                             "path": batch["path"][clip] if "path" in batch else ""})
        return rows

    def prediction_files(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Image.Image]:
        """The masks themselves, `masks/<id>_<second>.png`, white where it sounds."""
        masks = self.postprocess(outputs)["prediction"].cpu().byte() * 255
        return {f"masks/{clip_id.replace('/', '_')}_{second}.png": Image.fromarray(mask.numpy())
                for clip_id, clip in zip(batch["id"], masks) for second, mask in enumerate(clip, 1)}

    def update_metrics(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
        for metric in (self.jaccard, self.fscore):
            metric.update(outputs["masks"].float()[batch["annotated"]], batch["masks"][batch["annotated"]])

    def compute_metrics(self) -> dict[str, Tensor]:
        scores = {"miou": self.jaccard.compute(), "fscore": self.fscore.compute()}
        self.jaccard.reset()
        self.fscore.reset()
        return {name: score.float() for name, score in scores.items()}
