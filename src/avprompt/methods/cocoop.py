"""CoCoOp: CoOp with a context that depends on the image (Zhou et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from avprompt.encoders.text import CLIPText
from avprompt.methods.base import PromptMethod
from avprompt.methods.coop import CoOp
from avprompt.ranges import Count


class CoCoOp(CoOp):
    """Adds a small network's output for the image to every context vector: `v + net(x)`, x its normalised embedding.

    Each image has texts of its own, so that the text tower runs K times for each image.

    Args:
        tower: CLIP's text tower.
        context: see `CoOp`.
        position: see `CoOp`.
        condition: `video`, one pass for the mean over a clip's segments, or `segment`, the published method (for single
            images) on each frame, for T times the time and memory.

    Raises:
        ArgumentError: see `CoOp`.

    Example:
        >>> import torch
        >>> from avprompt.encoders import TinyCLIPText
        >>> from avprompt.methods import NoPrompts
        >>> texts = CoCoOp(TinyCLIPText("none"))
        >>> texts.attach(["red disc", "star"], NoPrompts())
        >>> texts(torch.rand(3, 10, 64)).shape  # three clips, each with its own two texts
        torch.Size([3, 1, 2, 64])
    """

    def __init__(
        self,
        tower: CLIPText,
        context: Count | str = "a photo of a",
        position: Literal["end", "middle", "front"] = "end",
        condition: Literal["video", "segment"] = "video",
    ) -> None:
        super().__init__(tower, context, position=position)
        self.condition = condition

    def attach(self, names: Sequence[str], prompts: PromptMethod) -> None:
        super().attach(names, prompts)
        hidden = max(1, self.dim // 16)
        self.meta_net = nn.Sequential(
            nn.Linear(self.dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, self.context.shape[-1])
        )

    def forward(self, features: Tensor) -> Tensor:
        if self.condition == "video":
            features = features.mean(1, keepdim=True)
        images = features.flatten(0, 1)
        moved = self.context + self.meta_net(images).unsqueeze(1)
        texts = self.splice(moved.unsqueeze(1))
        encoded = self.tower.encode(texts.flatten(0, 1), self.end.repeat(len(images)), span=self.span)
        return encoded.unflatten(0, (*features.shape[:2], -1))
