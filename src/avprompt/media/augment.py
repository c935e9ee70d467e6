"""Augmentation of a clip's frames, as in STG-CMA's training, which takes it from VideoMAE."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms import v2

from avprompt.errors import ShapeError

POLICY = "rand-m7-n4-mstd0.5-inc1"


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Within the context, the global random streams of Python, numpy and torch (CPU) start at `seed`.

    Afterwards they are what they were before. `torch.manual_seed` is not used, because it would also set the GPU's
    stream.
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
    """RandAugment, random resized crop, horizontal flip and random erasing, in this order, on uint8 frames.

    RandAugment is timm's `rand-m7-n4-mstd0.5-inc1`, bicubic. Crops have 8 to 100 % of the area and an aspect ratio from
    3/4 to 4/3. Half of the clips are flipped. In a quarter of the clips, noise fills a rectangle of 2 to 33 % of the
    area. All frames of a clip share one draw, including the noise.

    Deviations from the published loaders: they crop pictures of their original size, this class crops prepared frames;
    they erase after normalisation with standard normal noise, this class erases before it, with normal noise of
    ImageNet's colour means and deviations, rounded and clipped to 0..255. After the encoder's normalisation that is
    noise of mean near 0 and deviation near 1 without the values that no pixel can have (beyond about 2 deviations).

    Args:
        size: height and width of frames in pixels.

    Example:
        >>> augment = RandAugment(64)
        >>> frames = torch.randint(256, (10, 3, 64, 64), dtype=torch.uint8)
        >>> augmented = augment(frames, seed=3)
        >>> augmented.dtype, tuple(augmented.shape), torch.equal(augmented, augment(frames, seed=3))
        (torch.uint8, (10, 3, 64, 64), True)
    """

    def __init__(self, size: int) -> None:
        options = {"translate_const": int(0.45 * size), "interpolation": Image.Resampling.BICUBIC}
        self.policy = rand_augment_transform(POLICY, options)
        self.geometry = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
                v2.RandomHorizontalFlip(0.5),
            ]
        )
        self.erasing = v2.RandomErasing(0.25, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value=0)
        self.mean, self.std = (
            torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )

    def __call__(self, frames: Tensor, seed: int) -> Tensor:
        """Augment a clip.

        Args:
            frames: uint8 (..., 3, size, size).
            seed: everything that is drawn depends on it alone.

        Returns:
            Augmented frames, uint8, same shape.

        Raises:
            ShapeError: the frames are not uint8.
        """
        if frames.dtype != torch.uint8:
            raise ShapeError("frames", frames.dtype, "torch.uint8", "Augment frames before they are normalised.")
        varied = []
        for picture in frames.flatten(0, -4).permute(0, 2, 3, 1).contiguous().numpy():
            with drawing(seed):
                varied.append(np.array(self.policy(Image.fromarray(picture))))
        with drawing(seed):
            moved = self.geometry(torch.from_numpy(np.stack(varied)).permute(0, 3, 1, 2).contiguous())
            return self._erase(moved).view_as(frames)

    def _erase(self, frames: Tensor) -> Tensor:
        kept = self.erasing(torch.ones(1, *frames.shape[-2:], dtype=torch.uint8)).bool()
        if kept.all():
            return frames
        noise = self.mean + self.std * torch.randn(frames.shape[1:])
        return torch.where(kept, frames, (255 * noise).round_().clamp_(0, 255).byte())
