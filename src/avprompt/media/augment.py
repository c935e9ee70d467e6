"""Augmentation of a clip's frames (that of STG-CMA's training, after VideoMAE's)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2

POLICY = "rand-m7-n4-mstd0.5-inc1"


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Global random streams of Python, numpy and torch (CPU) begin at `seed`, and afterwards are what they were before.

    Not through `torch.manual_seed`, which would also set the GPU's stream.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class RandAugment:
    """RandAugment, normalisation, random resized crop, horizontal flip, random erasing, in this order.

    RandAugment is timm's `rand-m7-n4-mstd0.5-inc1`, bicubic; crops have 8 to 100 % of the area and an aspect ratio from
    3/4 to 4/3; half of the clips are flipped; in a quarter a rectangle becomes normal noise. All frames of a clip
    share one draw, the noise included. Deviation: published loaders crop pictures of their own size, this one prepared
    frames.

    Args:
        size: height and width of frames.
        normalise: the data module's, (..., 3, H, W) in [0, 1] -> normalised.
    """

    def __init__(self, size: int, normalise: Callable[[Tensor], Tensor]) -> None:
        self.normalise = normalise
        options = {"translate_const": int(0.45 * size), "interpolation": Image.Resampling.BICUBIC}
        self.policy = rand_augment_transform(POLICY, options)
        self.geometry = v2.Compose([
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomErasing(0.25, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random"),
        ])

    def __call__(self, frames: Tensor, seed: int) -> Tensor:
        """Frames (T, 3, size, size) in [0, 1] -> augmented and normalised, same shape; the same for the same seed."""
        pictures = (frames * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        varied = []
        for picture in pictures:
            with drawing(seed):
                varied.append(np.array(self.policy(Image.fromarray(picture))))
        with drawing(seed):
            return self.geometry(self.normalise(torch.from_numpy(np.stack(varied)).permute(0, 3, 1, 2) / 255))
