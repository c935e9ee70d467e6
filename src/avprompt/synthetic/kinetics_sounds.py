"""Synthetic dataset in Kinetics-Sounds' layout: one action a clip, seen and heard from beginning to end."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from avprompt.datasets.kinetics_sounds import COLUMNS, Action
from avprompt.errors import ArgumentError
from avprompt.synthetic.ave import split_of, write_dataset
from avprompt.synthetic.scenes import CATEGORIES, SECONDS, Scene, Settings, Sound, Thing, draw_scene


def action_scene(seed: int, index: int, settings: Settings) -> Scene:
    """Scene number `index` of a dataset; it does not depend on what else is generated.

    The object of the action is in view and sounds all the time. Half of the silent objects are in view and half of the
    off-screen sounds are heard all the time too; the others come and go. Often only both modalities together identify
    the action.
    """
    rng = np.random.default_rng([seed, index])
    scene = draw_scene(rng, settings, category=index % settings.classes)

    def spans(parts: list[Thing] | list[Sound]) -> list[Thing] | list[Sound]:
        return [replace(part, start=0, end=SECONDS) if place == 0 or rng.random() < 0.5 else part
                for place, part in enumerate(parts)]

    return replace(scene, things=spans(scene.things), sounds=spans(scene.sounds))


def synthesize(
    root: Path,
    videos: int = 400,
    seed: int = 0,
    classes: int = 8,
    silent_objects: int = 2,
    offscreen_sounds: int = 1,
    noise: float = 0.3,
    workers: int = 2,
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
        silent_objects: objects in view that make no sound.
        offscreen_sounds: sounds whose object is not in view.
        noise: visual clutter and background noise, 0 to 1.
        workers: processes.

    Returns:
        Number of clips by split.

    Raises:
        ArgumentError: too few or too many videos, too few categories, or a seed that does not fit into the ids.
        DatasetError: `root` holds another synthetic dataset.
    """
    settings = Settings(classes, silent_objects, offscreen_sounds, noise)
    if not 5 * classes <= videos <= 1_000_000:
        raise ArgumentError("videos", videos, f"{5 * classes} (one of each class in each split) to 1000000",
                            "Choose another number.")
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
            writer.writerows([CATEGORIES[a.label], a.video, a.start, a.end, split] for a in chosen)
        counts[split] = len(chosen)
    (root / "classes.txt").write_text("\n".join(CATEGORIES[:classes]) + "\n", encoding="utf-8")
    print(f"{root}: {videos} clips of {SECONDS} s, {counts}")
    return counts
