"""Synthetic dataset in Kinetics-Sounds' layout: one action a clip, seen and heard from beginning to end."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from avprompt.datasets.kinetics_sounds import COLUMNS, Action
from avprompt.errors import ArgumentError
from avprompt.ranges import Count, Natural, Share
from avprompt.synthetic.ave import names_of, settings_of, split_of, write_dataset
from avprompt.synthetic.bound import Binding, BoundScene, BoundSettings, draw_bound, turns
from avprompt.synthetic.scenes import SECONDS, Scene, Settings, Sound, Thing, draw_scene

#: both have a start and an end
Part = TypeVar("Part", Thing, Sound)


def action_scene(seed: int, index: int, settings: Settings | BoundSettings) -> Scene | BoundScene:
    """Scene number `index` of a dataset; it does not depend on what else is generated.

    The object of the action is in view and sounds all the time. Half of the silent objects are in view and half of the
    off-screen sounds are heard all the time too; the others come and go. Often only both modalities together identify
    the action. In a bound scene with `time` two objects sound one after the other, and the action is the longer one.
    """
    rng = np.random.default_rng([seed, index])
    if isinstance(settings, BoundSettings):
        spans = None
        if settings.binding == "time":
            spans = sorted(turns(rng), key=lambda span: span[0] - span[1])  # the longer first
        return draw_bound(rng, settings, index % settings.classes, spans)
    scene = draw_scene(rng, settings, category=index % settings.classes)

    def throughout(parts: list[Part]) -> list[Part]:
        return [
            replace(part, start=0, end=SECONDS) if place == 0 or rng.random() < 0.5 else part
            for place, part in enumerate(parts)
        ]

    return replace(scene, things=throughout(scene.things), sounds=throughout(scene.sounds))


def synthesize(
    root: Path,
    videos: Count = 400,
    seed: Natural = 0,
    classes: Count = 8,
    binding: Binding = "none",
    objects: Count | None = None,
    offscreen_sounds: Natural | None = None,
    noise: Share = 0.3,
    alone: bool = False,
    workers: Count = 2,
) -> dict[str, int]:
    """Write a synthetic dataset in Kinetics-Sounds' layout.

    `root` gets videos/<id>.mp4 (ten seconds each, picture and sound), train.csv, val.csv and test.csv in Kinetics'
    format, classes.txt, and scenes.jsonl with the full description of each scene. Six tenths of the clips are for
    training, a fifth each for validation and test; every class is equally frequent in each. The same arguments give the
    same dataset.

    Args:
        root: folder to write.
        videos: number of clips, at most 1000000.
        seed: of the dataset, 0 to 999.
        classes: categories in use, 2 to 8.
        binding: `none`, or how sound and sight must be bound: `a2v`, `v2a`, `time`, see `synthetic.bound`.
        objects: objects in view, one of which belongs to the event; `None` is 3, with `v2a` 1.
        offscreen_sounds: sounds whose object is not in view; `None` is 1, with `a2v` and `time` 0, with `v2a` 2.
        noise: visual clutter and background noise, 0 to 1.
        alone: with a binding, show and play what belongs together and nothing else, for an oracle's row.
        workers: processes.

    Returns:
        Number of clips by split.

    Raises:
        ArgumentError: too few or too many videos, too few categories, or a seed that does not fit into the ids.
        DatasetError: `root` holds another synthetic dataset.
    """
    settings = settings_of(binding, objects, offscreen_sounds, noise, classes, alone)
    names = names_of(settings)
    if not 5 * classes <= videos <= 1_000_000:
        raise ArgumentError(
            "videos", videos, f"{5 * classes} (one of each class in each split) to 1000000", "Choose another number."
        )
    if not 0 <= seed < 1000:
        raise ArgumentError("seed", seed, "0 to 999, because ids contain it", "Choose another seed.")
    root = Path(root)
    actions = [Action(f"ks{seed:03d}{index:06d}", 0, SECONDS, index % classes) for index in range(videos)]
    scenes = {action.id: action_scene(seed, index, settings) for index, action in enumerate(actions)}
    write_dataset(root, scenes, workers)
    counts = {}
    for split in ("train", "val", "test"):
        chosen = [action for index, action in enumerate(actions) if split_of(index, classes) == split]
        with (root / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, "split"])
            writer.writerows([names[a.label], a.video, a.start, a.end, split] for a in chosen)
        counts[split] = len(chosen)
    (root / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    print(f"{root}: {videos} clips of {SECONDS} s, {counts}")
    return counts
