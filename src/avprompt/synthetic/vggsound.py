"""Synthetic dataset in the layout of VGG-Sound(40K); it leaves out some categories for zero-shot tests."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from avprompt.datasets.vggsound import CATEGORY_FILE, COLUMNS, LABEL_FILE, SPLITS
from avprompt.errors import ArgumentError
from avprompt.ranges import Count, Natural, Share
from avprompt.synthetic.ave import settings_of, split_of, write_dataset
from avprompt.synthetic.bound import CONTOURS, Binding, BoundScene, BoundSettings, event_scene
from avprompt.synthetic.scenes import BANDS, CATEGORIES, SECONDS, Scene, Settings, draw_interval, draw_sound, draw_thing

#: categories left out by default: those of the synthetic AVE and LLP datasets with `classes: 3`
HELD_OUT = CATEGORIES[:3]


def corresponding_scene(
    seed: int, index: int, settings: Settings | BoundSettings, categories: Sequence[int]
) -> Scene | BoundScene:
    """Scene number `index` of a dataset; it does not depend on what else is generated.

    One category is both seen and heard for at least five seconds; half of the scenes have a break of one to three
    seconds in between. Its object or its sound continues during the break, and may begin earlier and end later. Silent
    objects and off-screen sounds are of other categories. A bound scene has one event without a break.
    """
    rng = np.random.default_rng([seed, index])
    category = categories[index % len(categories)]
    if isinstance(settings, BoundSettings):
        return event_scene(rng, settings, category)
    others = [int(c) for c in rng.permutation(categories) if c != category]
    silent, rest = others[: settings.silent_objects], others[settings.silent_objects :]
    # as in the synthetic AVE dataset, the visible object tells which band counts
    offscreen = sorted(rest, key=lambda c: c % len(BANDS) == category % len(BANDS))[: settings.offscreen_sounds]
    start, end = draw_interval(rng, least=5)
    spells = [(start, end)]
    if rng.random() < 0.5:
        begin = int(rng.integers(start + 1, end - 1))
        resume = int(rng.integers(begin + 1, min(begin + 4, end)))
        spells = [(start, begin), (resume, end)]
    spans = {"seen": spells, "heard": [draw_interval(rng, (start, end))]}
    if rng.random() < 0.5:
        spans = {"seen": spans["heard"], "heard": spans["seen"]}
    things = [
        *(draw_thing(rng, settings, category, span) for span in spans["seen"]),
        *(draw_thing(rng, settings, c, draw_interval(rng)) for c in silent),
    ]
    sounds = [
        *(draw_sound(rng, category, span) for span in spans["heard"]),
        *(draw_sound(rng, c, draw_interval(rng)) for c in offscreen),
    ]
    return Scene(int(rng.integers(2**31)), things, sounds, settings.noise)


def active(scene: Scene | BoundScene) -> list[int]:
    """For every second 1 if a category is both seen and heard, else 0."""
    return [int(any(start <= t < end for _, start, end in scene.events())) for t in range(SECONDS)]


def synthesize(
    root: Path,
    videos: Count = 400,
    seed: Natural = 0,
    categories: list[str] | None = None,
    binding: Binding = "none",
    objects: Count | None = None,
    offscreen_sounds: Natural | None = None,
    noise: Share = 0.3,
    alone: bool = False,
    workers: Count = 2,
) -> dict[str, int]:
    """Write a synthetic dataset in VGG-Sound(40K)'s layout.

    `root` gets videos/<id>.mp4 (ten seconds each, picture and sound), VggsoundAVEL40kCategories.txt,
    vggsound-avel40k_labels.csv, and scenes.jsonl with the full description of each scene. Six tenths of the videos are
    for training, a fifth each for validation and test; every category is equally frequent in each. The same arguments
    give the same dataset.

    For zero-shot experiments disc, square and triangle do not occur in it, neither as events nor as distractors. They
    are the only categories of the datasets that these commands write:

      avprompt data synth ave --root ROOT --classes 3 --objects 2 --offscreen_sounds 1
      avprompt data synth llp --root ROOT --classes 3

    Args:
        root: folder to write.
        videos: number of videos.
        seed: of the dataset.
        categories: names of the categories in use, in the order of their indices; `null` stands for all except disc,
            square and triangle (with `v2a`, for all contours except steady, pulses and flutter).
        binding: `none`, or how sound and sight must be bound: `a2v`, `v2a`, `time`, see `synthetic.bound`.
        objects: objects in view, one of which belongs to the event; `None` is 3, with `v2a` 1.
        offscreen_sounds: sounds whose object is not in view; `None` is 1, with `a2v` and `time` 0, with `v2a` 2.
        noise: visual clutter and background noise, 0 to 1.
        alone: with a binding, show and play what belongs together and nothing else, for an oracle's row.
        workers: processes.

    Returns:
        Number of videos by split.

    Raises:
        ArgumentError: too few or too many videos, too few categories, an unknown or repeated one, or a negative seed.
        DatasetError: `root` holds another synthetic dataset.
    """
    known = CONTOURS if binding == "v2a" else CATEGORIES
    names = list(known[len(HELD_OUT) :]) if categories is None else list(categories)
    if len(set(names)) < len(names) or not set(names) <= set(known):
        raise ArgumentError("categories", names, f"some of {', '.join(known)}, each once", "Correct the names.")
    settings, indices = (
        settings_of(binding, objects, offscreen_sounds, noise, len(names), alone),
        tuple(known.index(name) for name in names),
    )
    if isinstance(settings, BoundSettings):
        settings = replace(settings, labels=indices)
    if seed < 0:
        raise ArgumentError("seed", seed, "at least 0", "Choose another seed.")
    if not 5 * len(names) <= videos <= 1_000_000:
        raise ArgumentError(
            "videos",
            videos,
            f"{5 * len(names)} (one of each category in each split) to 1000000",
            "Choose another number.",
        )
    root = Path(root)
    scenes = {f"{index:06d}": corresponding_scene(seed, index, settings, indices) for index in range(videos)}
    write_dataset(root, scenes, workers)
    counts = dict.fromkeys(SPLITS, 0)
    with (root / LABEL_FILE).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for index, scene in enumerate(scenes.values()):
            split = split_of(index, len(names))
            counts[split] += 1
            rows.writerow([split, names[index % len(names)], index, json.dumps(active(scene))])
    (root / CATEGORY_FILE).write_text("\n".join(names) + "\n", encoding="utf-8")
    print(f"{root}: {videos} clips of {SECONDS} s, {counts}")
    return counts
