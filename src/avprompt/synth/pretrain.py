"""Pretraining of the tiny encoders, each on its own modality alone: `python -m avprompt.synth.pretrain --modality visual`.

Like their large relatives they learn to name whatever is there, not what belongs together: the visual one every shape and
colour in a crowded picture, the audio one every sound in a crowded second. Neither ever meets the other modality, nor a
clip of a generated dataset (pictures and seconds are drawn one by one from seeds of their own).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multilabel_average_precision
from tqdm import tqdm

from avprompt.encoders.base import FrozenEncoder
from avprompt.encoders.htsat import is_constant
from avprompt.encoders.tiny import WEIGHTS, TinyHTSAT, TinySwinV2
from avprompt.synth import world

SEED = 10**9  # far from the seeds of generated datasets


class Pictures(Dataset):
    """Single pictures with 0 to 4 objects; labels say which shapes and which colours are there.

    Args:
        count: pictures.
        seed: of the stream.
    """

    labels = len(world.CATEGORIES) + len(world.COLOURS)

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture (1, 3, 64, 64) in [-1, 1] and labels (14,) in {0, 1}."""
        rng = np.random.default_rng([SEED, self.seed, index])
        noise, labels = float(rng.uniform(0, 0.5)), torch.zeros(self.labels)
        image = Image.fromarray(world.ground(rng, noise).clip(0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(rng.integers(0, 5)):
            category, colour = rng.integers(len(world.CATEGORIES)), rng.integers(len(world.COLOURS))
            radius = rng.uniform(7, 16)
            world.paint(draw, category, tuple(rng.uniform(radius, world.SIZE - radius, 2)), radius, world.COLOURS[colour])
            labels[category] = labels[len(world.CATEGORIES) + colour] = 1.0
        pixels = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = (pixels + rng.normal(0, 20 * noise, pixels.shape)).clip(0, 255) / 127.5 - 1
        return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None], labels


class Seconds(Dataset):
    """Single seconds with 0 to 3 sounds; labels say which.

    Args:
        count: seconds.
        seed: of the stream.
    """

    labels = len(world.CATEGORIES)

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Waveform (1, 16000) in [-1, 1] and labels (8,) in {0, 1}."""
        rng = np.random.default_rng([SEED, self.seed, index])
        wave, labels = rng.normal(0, 0.04 * rng.uniform(0, 0.5), world.SAMPLE_RATE), torch.zeros(self.labels)
        for category in rng.choice(self.labels, rng.integers(0, 4), replace=False):
            sound = world.render_sound(int(category), rng.uniform(0.92, 1.08), world.SAMPLE_RATE, rng)
            wave += rng.uniform(0.08, 0.3) * sound
            labels[category] = 1.0
        return torch.from_numpy(wave.clip(-1, 1).astype(np.float32))[None], labels


STREAMS: dict[str, tuple[type[FrozenEncoder], type[Dataset], str]] = {
    "visual": (TinySwinV2, Pictures, "tiny_swinv2.safetensors"),
    "audio": (TinyHTSAT, Seconds, "tiny_htsat.safetensors"),
}


def pretrain(modality: Literal["visual", "audio"], steps: int = 3000, batch_size: int = 64, lr: float = 2e-3,
             out: Path = WEIGHTS) -> float:
    """Train one tiny encoder and write its weights, in half precision and the library's naming.

    Args:
        modality: `visual` or `audio`.
        steps: of AdamW under a cosine schedule.
        batch_size: pictures or seconds a step.
        lr: highest learning rate.
        out: folder for the weights.

    Returns:
        Mean average precision over the labels on 2048 unseen examples.
    """
    torch.manual_seed(0)
    kind, stream, name = STREAMS[modality]
    encoder = kind(pretrained="none", frozen=False).train()
    head = nn.Linear(encoder.dim, stream.labels)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    loader = DataLoader(stream(steps * batch_size, 0), batch_size, num_workers=1)
    for inputs, labels in (bar := tqdm(loader, desc=modality, unit="step")):
        loss = F.binary_cross_entropy_with_logits(head(encoder(inputs).mean(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    encoder.eval()
    with torch.no_grad():
        parts = [(head(encoder(x).mean(1)), y) for x, y in DataLoader(stream(2048, 1), 128, num_workers=1)]
    scores, truth = (torch.cat(part) for part in zip(*parts))
    precision = float(multilabel_average_precision(scores, truth.long(), stream.labels))
    weights = {encoder.library_key(key): value.half() if value.is_floating_point() else value
               for key, value in encoder.state_dict().items() if not is_constant(key)}
    out.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in weights.items()}, out / name)
    print(f"{modality}: mean average precision {precision:.3f} on unseen examples, {out / name}")
    return precision


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(pretrain, as_positional=False)
