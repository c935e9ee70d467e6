"""Pretraining of the tiny encoders: `python -m avprompt.synthetic.pretrain --all` makes every file that ships,
`--modality visual` one of them.

Like their large counterparts, they learn what an input contains, not which sounds and objects belong together. Swin-V2
(`visual`) learns to name every shape and colour in a crowded picture, and HTS-AT (`audio`) every sound, contour, timbre
and pitch in a crowded second of both synthetic worlds (`scenes` and `bound`). What they name of one object is never told
apart from what they name of another: nothing teaches them to bind. CLIP (`clip`) and CLAP (`clap`)
learn with a text tower which caption belongs to which picture or second. None of them sees the other modality, nor a
clip of a synthetic dataset: pictures and seconds are drawn one by one from other seeds.

Training runs on one thread with deterministic kernels, so that the same recipe gives the same bits on the same kind of
processor and version of PyTorch. `weights/weights.json` says of every file which recipe made it, what it reached, and
its SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchmetrics.functional.classification import multilabel_average_precision
from tqdm import tqdm

from avprompt.encoders.base import FrozenEncoder
from avprompt.encoders.htsat import is_constant
from avprompt.encoders.text import CLAP_TEMPLATE, CLIP_TEMPLATE, TextTower, class_texts
from avprompt.encoders.tiny import WEIGHTS, TinyCLAP, TinyCLAPText, TinyCLIP, TinyCLIPText, TinyHTSAT, TinySwinV2
from avprompt.errors import check_choice
from avprompt.files import write_json
from avprompt.synthetic import bound, scenes

SEED = 10**9  # far from the seeds of synthetic datasets
RIDGE = 10.0  # of the linear layer that tells what an encoder knows
COLOURS_SAID, ALL_SAID = 0.3, 0.6  # shares of captions that name colours, and that name everything
MAX_SCALE = math.log(100)  # CLIP's bound
COLOUR_NAMES = ("red", "blue", "yellow", "green", "purple", "white")  # of scenes.COLOURS


class Pictures(Dataset):
    """Single pictures with some objects; the labels say which shapes and which colours occur.

    Args:
        count: pictures.
        seed: of the stream.
        objects: least and largest number of objects in a picture.
    """

    groups = {"shape": len(scenes.CATEGORIES), "colour": len(scenes.COLOURS)}
    labels = sum(groups.values())
    templates = ("a photo of {}.", "a picture of {}.", "an image of {}.", "there is {} in this photo.")
    phrases = (
        *(f"a {name}" for name in scenes.CATEGORIES),
        *(f"a {colour} {name}" for name in scenes.CATEGORIES for colour in COLOUR_NAMES),
        "a background",
    )

    def __init__(self, count: int, seed: int, objects: tuple[int, int] = (0, 4)) -> None:
        self.count, self.seed, self.objects = count, seed, objects

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int) -> tuple[Tensor, list[tuple[int, int]]]:
        """Picture (1, 3, 64, 64) in [-1, 1], and category and colour of each object."""
        rng = np.random.default_rng([SEED, self.seed, index])
        noise, objects = float(rng.uniform(0, 0.5)), []
        image = Image.fromarray(scenes.ground(rng, noise).clip(0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(rng.integers(self.objects[0], self.objects[1] + 1)):
            category, colour = rng.integers(len(scenes.CATEGORIES)), rng.integers(len(scenes.COLOURS))
            radius = rng.uniform(7, 16)
            centre = tuple(rng.uniform(radius, scenes.SIZE - radius, 2))
            scenes.paint(draw, category, centre, radius, scenes.COLOURS[colour])
            objects.append((int(category), int(colour)))
        pixels = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = (pixels + rng.normal(0, 20 * noise, pixels.shape)).clip(0, 255) / 127.5 - 1
        return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None], objects

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture (1, 3, 64, 64) in [-1, 1] and labels (14,) in {0, 1}."""
        picture, objects = self.draw(index)
        labels = torch.zeros(self.labels)
        for category, colour in objects:
            labels[category] = labels[len(scenes.CATEGORIES) + colour] = 1.0
        return picture, labels

    @staticmethod
    def facts(thing: tuple[int, int]) -> tuple[int, int]:
        """Indices into `phrases` of what a caption may say of an object: its shape, or its shape and colour."""
        category, colour = thing
        return category, len(scenes.CATEGORIES) + category * len(scenes.COLOURS) + colour


class Seconds(Dataset):
    """Single seconds with 0 to 3 sounds; the labels say which.

    Args:
        count: seconds.
        seed: of the stream.
    """

    labels = len(scenes.CATEGORIES)
    templates = ("the sounds of {}", "the sound of {}", "a sound of {}.", "there is {} in the sound.")
    phrases = (*scenes.CATEGORIES, "background")

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int) -> tuple[Tensor, list[int]]:
        """Waveform (1, 16000) in [-1, 1], and the category of each sound."""
        rng = np.random.default_rng([SEED, self.seed, index])
        wave = rng.normal(0, 0.04 * rng.uniform(0, 0.5), scenes.SAMPLE_RATE)
        categories = rng.choice(self.labels, rng.integers(0, 4), replace=False).tolist()
        for category in categories:
            sound = scenes.render_sound(category, rng.uniform(0.92, 1.08), scenes.SAMPLE_RATE, rng)
            wave += rng.uniform(0.08, 0.3) * sound
        return torch.from_numpy(wave.clip(-1, 1).astype(np.float32))[None], categories

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Waveform (1, 16000) in [-1, 1] and labels (8,) in {0, 1}."""
        wave, categories = self.draw(index)
        labels = torch.zeros(self.labels)
        labels[categories] = 1.0
        return wave, labels

    @staticmethod
    def facts(thing: int) -> tuple[int]:
        """Index into `phrases` of what a caption may say of a sound: its name."""
        return (thing,)


class Hearings(Dataset):
    """Single seconds of both worlds by turns: half as `Seconds` draws them, half with 0 to 3 sounds of `bound`.

    Args:
        count: seconds.
        seed: of the stream.
        alone: draw seconds of one sound of `bound` each, to measure what is known of a lone sound.
    """

    groups = {
        "sound": len(scenes.CATEGORIES),
        "contour": len(bound.CONTOURS),
        "timbre": len(bound.FORMANTS),
        "pitch": len(bound.PITCHES),
    }
    labels = sum(groups.values())

    def __init__(self, count: int, seed: int, alone: bool = False) -> None:
        self.count, self.seed, self.alone = count, seed, alone
        self.plain = Seconds(count, seed)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Waveform (1, 16000) in [-1, 1] and labels (24,) in {0, 1}."""
        if index % 2 and not self.alone:
            wave, labels = self.plain[index]
            return wave, torch.cat((labels, torch.zeros(self.labels - len(labels))))
        rng = np.random.default_rng([SEED, self.seed, index, 2])
        noise, labels = float(rng.uniform(0, 0.5)), torch.zeros(self.labels)
        wave = np.zeros(scenes.SAMPLE_RATE)
        number = 1 if self.alone else int(rng.integers(0, 4))
        for timbre in rng.choice(len(bound.FORMANTS), number, replace=False):
            sound = bound.BoundSound(
                int(rng.integers(len(bound.CONTOURS))),
                int(timbre),
                int(rng.integers(len(bound.PITCHES))),
                float(rng.uniform(0.08, 0.3)),
            )
            wave += sound.level * bound.render_sound(sound, scenes.SAMPLE_RATE, rng)
            labels[offsets(self.groups, None, sound.contour, sound.timbre, sound.pitch)] = 1.0
        wave = bound.reverberate(wave, noise, rng) + rng.normal(0, 0.04 * noise, scenes.SAMPLE_RATE)
        return torch.from_numpy(wave.clip(-1, 1).astype(np.float32))[None], labels


def offsets(groups: dict[str, int], *values: int | None) -> list[int]:
    """Places of values in a row of labels in which the groups follow each other; `None` has none.

    >>> offsets({"shape": 8, "colour": 6}, 2, 5)
    [2, 13]
    """
    starts = np.cumsum([0, *groups.values()])
    return [int(start + value) for start, value in zip(starts, values) if value is not None]


class Captioned(Dataset):
    """Pictures or seconds, each with a caption that names some of the content, shapes alone or with their colours.

    Args:
        stream: pictures or seconds.
    """

    def __init__(self, stream: Pictures | Seconds) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, index: int) -> tuple[Tensor, str, Tensor, Tensor]:
        """Picture or second, its caption, and in {0, 1} which of the stream's F phrases are true (F,) and said (F,)."""
        example, things = self.stream.draw(index)
        phrases, rng = self.stream.phrases, np.random.default_rng([SEED, self.stream.seed, index, 1])
        facts: Any = self.stream.facts
        facts = [facts(thing) for thing in things] or [(len(phrases) - 1,)]
        detail = int(rng.random() < COLOURS_SAID) % len(facts[0])
        number = len(facts) if rng.random() < ALL_SAID else rng.integers(1, len(facts) + 1)
        spoken = list(dict.fromkeys(facts[place][detail] for place in rng.permutation(len(facts))[:number]))
        holds, said = torch.zeros(len(phrases)), torch.zeros(len(phrases))
        holds[[fact for known in facts for fact in known]] = said[spoken] = 1.0
        *others, last = (phrases[fact] for fact in spoken)
        text = f"{', '.join(others)} and {last}" if others else last
        return example, rng.choice(self.stream.templates).format(text), holds, said


def contrastive_loss(inputs: Tensor, texts: Tensor, holds: Tensor, said: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy in which every caption that is true of an input is a positive.

    Args:
        inputs: (B, E) embeddings of pictures or seconds.
        texts: (B, E) embeddings of their captions.
        holds: (B, F) in {0, 1}, facts that are true of the inputs.
        said: (B, F) in {0, 1}, facts that the captions state.
        scale: logarithm of the factor on the cosines.

    Returns:
        Scalar.
    """
    logits = scale.clamp(max=MAX_SCALE).exp() * F.normalize(inputs, dim=-1) @ F.normalize(texts, dim=-1).T
    true = (holds @ said.T == said.sum(1)).float()
    return (
        F.cross_entropy(logits, true / true.sum(1, keepdim=True)) + F.cross_entropy(logits.T, (true / true.sum(0)).T)
    ) / 2


class Naming(nn.Module):
    """Trains an encoder to name everything in an input, with a linear head that is not saved.

    Args:
        encoder: of the stream's modality, with random weights, not frozen.
        labels: number of things to name.
    """

    def __init__(self, encoder: FrozenEncoder, labels: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, labels)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Pictures or seconds and their labels, as the stream gives them -> loss."""
        return F.binary_cross_entropy_with_logits(self.head(self.encoder(inputs).mean(1)), labels)

    def measure(self, examples: Pictures | Hearings) -> dict[str, float]:
        """What the encoder knows, see `knowledge`; the head of training has no part in it, because no file holds it."""
        return knowledge(self.encoder, examples)

    def weights(self) -> dict[str, Tensor]:
        """Library's name -> tensor; the head is left out."""
        return library_weights(self.encoder)


def knowledge(encoder: FrozenEncoder, examples: Pictures | Hearings) -> dict[str, float]:
    """Mean average precision, over all labels and over each group of them, of a linear layer on the mean of an
    encoder's tokens. It is fitted by ridge regression on the first half of the examples and scored on the second."""
    parts = [(encoder(x).mean(1).double(), y.double()) for x, y in DataLoader(examples, 128, num_workers=1)]
    features, truth = (torch.cat(part) for part in zip(*parts))
    half = len(features) // 2
    features = (features - features[:half].mean(0)) / (features[:half].std(0) + 1e-6)
    features = torch.cat((features, torch.ones(len(features), 1, dtype=features.dtype)), 1)
    fit, target = features[:half], truth[:half].clamp(min=0)
    layer = torch.linalg.solve(fit.T @ fit + RIDGE * torch.eye(fit.shape[1], dtype=fit.dtype), fit.T @ target)
    precision = multilabel_average_precision(
        (features[half:] @ layer).float(), truth[half:].long(), examples.labels, None, ignore_index=-1
    )
    occurs = (truth[half:] == 1).any(0)
    found = {"mean average precision": float(precision[occurs].mean())}
    for (name, size), start in zip(examples.groups.items(), np.cumsum([0, *examples.groups.values()])):
        group = slice(int(start), int(start) + size)
        if occurs[group].any():
            found[name] = float(precision[group][occurs[group]].mean())
    return found


class Matching(nn.Module):
    """Trains an encoder and a text tower to match captions with pictures or seconds.

    Args:
        encoder: with a projection into the joint space and random weights, not frozen.
        text: the text tower, likewise.
        template: sentence into which a name is inserted for measuring.
    """

    def __init__(self, encoder: TinyCLIP | TinyCLAP, text: TextTower, template: str) -> None:
        super().__init__()
        self.encoder, self.text, self.template = encoder, text, template
        self.scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.sees = isinstance(encoder, TinyCLIP)

    def embed(self, inputs: Tensor) -> Tensor:
        """Pictures or seconds (B, 1, ...) -> (B, E): CLIP's class token, or the mean of HTS-AT's tokens, projected."""
        tokens = self.encoder(inputs)
        return self.encoder.project(tokens[:, 0] if self.sees else tokens.mean(1))

    def forward(self, inputs: Tensor, captions: list[str], holds: Tensor, said: Tensor) -> Tensor:
        """A batch of `Captioned` -> loss."""
        return contrastive_loss(self.embed(inputs), self.text(captions), holds, said, self.scale)

    def measure(self, examples: Pictures | Seconds) -> dict[str, float]:
        """Zero-shot naming: accuracy on examples with a single category, mean average precision over all examples."""
        names = F.normalize(self.text(class_texts(scenes.CATEGORIES, self.template)), dim=-1)
        scores, truth = [], torch.zeros(len(examples), len(scenes.CATEGORIES), dtype=torch.int64)
        for start in range(0, len(examples), 128):
            inputs, things = zip(*map(examples.draw, range(start, min(start + 128, len(examples)))))
            scores.append(F.normalize(self.embed(torch.stack(inputs)), dim=-1) @ names.T)
            for row, present in zip(truth[start:], things):
                row[[examples.facts(thing)[0] for thing in present]] = 1
        scores, alone = torch.cat(scores), truth.sum(1) == 1
        right = scores[alone].argmax(1) == truth[alone].argmax(1)
        return {
            "accuracy of zero-shot naming": float(right.float().mean()),
            "zero-shot mean average precision": float(multilabel_average_precision(scores, truth, len(names))),
        }

    def weights(self) -> dict[str, Tensor]:
        """Library's name -> tensor, of both towers."""
        keeper = self.text if self.sees else self.encoder  # the tower whose part of the file holds the scale
        keeper.logit_scale.copy_(self.scale.clamp(max=MAX_SCALE))
        return {**library_weights(self.encoder, "visual." if self.sees else ""), **library_weights(self.text)}


def library_weights(encoder: FrozenEncoder, prefix: str = "") -> dict[str, Tensor]:
    """Library's name -> tensor, without constants."""
    return {
        prefix + encoder.library_key(name): value
        for name, value in encoder.state_dict().items()
        if not is_constant(name)
    }


@dataclass(frozen=True)
class Recipe:
    """How a tiny network is pretrained.

    Args:
        file: name of the weights file.
        text_file: name of the text tower's own file; `None` keeps both towers in `file`.
        learner: builds the module to train, with random weights.
        stream: draws `count` training examples, in the order of training.
        examples: held out, for measuring: name -> examples.
        steps: number of AdamW steps, with a one-cycle schedule.
        batch_size: examples a step.
        lr: highest learning rate.
        weight_decay: of AdamW.
        betas: of AdamW.
    """

    file: str
    learner: Callable[[], Naming | Matching]
    stream: Callable[[int], Dataset]
    examples: dict[str, Dataset]
    steps: int
    batch_size: int
    lr: float
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.999)
    text_file: str | None = None

    def split(self, weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Name of a file -> the weights in it; the scale of cosines belongs to both towers."""
        if self.text_file is None:
            return {self.file: weights}
        seen = {name for name in weights if name.startswith("visual.")}
        return {
            self.file: {name: weights[name] for name in (*sorted(seen), "logit_scale")},
            self.text_file: {name: value for name, value in weights.items() if name not in seen},
        }


def easy_first(count: int) -> Dataset:
    """Captioned pictures, the first fifth with one object each: this shortens the plateau at the start of training."""
    alone = count // 5
    return ConcatDataset([Captioned(Pictures(alone, 2, (1, 1))), Captioned(Pictures(count - alone, 0))])


RECIPES = {
    "visual": Recipe(
        "tiny_swinv2.safetensors",
        lambda: Naming(TinySwinV2("none", frozen=False), Pictures.labels),
        lambda count: Pictures(count, 0),
        {"crowd": Pictures(2048, 1), "alone": Pictures(2048, 3, (1, 1))},
        3000,
        64,
        2e-3,
    ),
    "audio": Recipe(
        "tiny_htsat.safetensors",
        lambda: Naming(TinyHTSAT("none", frozen=False), Hearings.labels),
        lambda count: Hearings(count, 0),
        {"crowd": Hearings(2048, 1), "alone": Hearings(2048, 2, True)},
        1500,
        32,
        2e-3,
    ),
    "clip": Recipe(
        "tiny_clip.safetensors",
        lambda: Matching(
            TinyCLIP("none", projection=True, frozen=False), TinyCLIPText("none", frozen=False), CLIP_TEMPLATE
        ),
        easy_first,
        {"crowd": Pictures(2048, 1), "alone": Pictures(2048, 3, (1, 1))},
        6000,
        32,
        1.5e-3,
        0.05,
        (0.9, 0.98),
        "tiny_clip_text.safetensors",
    ),
    "clap": Recipe(
        "tiny_clap.safetensors",
        lambda: Matching(TinyCLAP("none", frozen=False), TinyCLAPText("none", frozen=False), CLAP_TEMPLATE),
        lambda count: Captioned(Seconds(count, 0)),
        {"crowd": Seconds(2048, 1)},
        3000,
        64,
        2e-3,
    ),
}
RECORD = "weights.json"


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread, deterministic kernels, and a seed; threads and kernels are as before afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pretrain(
    modality: str, steps: int | None = None, out: Path = WEIGHTS, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Train one tiny network and write its weights in half precision, under the library's names.

    `out`/weights.json gets an entry for each file: command, recipe, seed, scores, SHA-256, and the versions.

    Args:
        modality: which network, see `RECIPES`.
        steps: number of training steps; `None` is the recipe's.
        out: folder for the weights.
        seed: of the weights at the start; the examples are the recipe's.

    Returns:
        Its scores on unseen examples, by the name of the examples.

    Raises:
        ArgumentError: an unknown network.
    """
    check_choice("modality", modality, RECIPES)
    with reproducible(seed):
        return _pretrain(modality, RECIPES[modality], steps or RECIPES[modality].steps, Path(out), seed)


def _pretrain(modality: str, recipe: Recipe, steps: int, out: Path, seed: int) -> dict[str, dict[str, float]]:
    learner = recipe.learner().train()
    for name, parameter in learner.encoder.named_parameters():
        parameter.requires_grad_(not is_constant(name))  # constants are not saved, so they must keep their values
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, recipe.lr, recipe.betas, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps, pct_start=0.1)
    loader = DataLoader(recipe.stream(steps * recipe.batch_size), recipe.batch_size, num_workers=1)
    for batch in (bar := tqdm(loader, desc=modality, unit="step", mininterval=5)):
        loss = learner(*batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    learner.eval()
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(parameter.half())  # as the file holds them
        reached = {
            name: {score: round(value, 4) for score, value in learner.measure(examples).items()}
            for name, examples in recipe.examples.items()
        }
        weights = learner.weights()
    out.mkdir(parents=True, exist_ok=True)
    record = json.loads((out / RECORD).read_text(encoding="utf-8")) if (out / RECORD).is_file() else {}
    for file, part in recipe.split(weights).items():
        save_file(
            {name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in part.items()},
            out / file,
        )
        record[file] = {
            "command": f"python -m avprompt.synthetic.pretrain --modality {modality}",
            "recipe": {
                "steps": steps,
                "batch_size": recipe.batch_size,
                "lr": recipe.lr,
                "betas": list(recipe.betas),
                "weight_decay": recipe.weight_decay,
            },
            "seed": seed,
            "scores": reached,
            "sha256": digest(out / file),
            "versions": {
                "torch": torch.__version__,
                "numpy": np.__version__,
                "processor": torch.backends.cpu.get_cpu_capability(),
            },
        }
    write_json(out / RECORD, dict(sorted(record.items())))
    figures = "; ".join(
        f"{name}: " + ", ".join(f"{score} {value:.3f}" for score, value in scores.items())
        for name, scores in reached.items()
    )
    print(f"{modality}, {figures}. {', '.join(str(out / file) for file in recipe.split(weights))}")
    return reached


def main(args: list[str] | None = None) -> None:
    """`pretrain` on the command line, for one network or for all."""
    parser = argparse.ArgumentParser(
        prog="python -m avprompt.synthetic.pretrain",
        description="Make the weights of the tiny encoders from their recipes.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="every network, one after the other")
    which.add_argument("--modality", choices=RECIPES, help="one network")
    parser.add_argument("--steps", type=int, help="training steps; by default the recipe's")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights; by default where they ship")
    parser.add_argument("--seed", type=int, default=0, help="of the weights at the start")
    chosen = parser.parse_args(args)
    for modality in RECIPES if chosen.all else [chosen.modality]:
        pretrain(modality, chosen.steps, chosen.out, chosen.seed)


if __name__ == "__main__":
    main()
