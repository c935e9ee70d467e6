"""Synthetic dataset in LLP's layout: audible and visible events come and go independently of each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avprompt.datasets.llp import EVENT_HEADER, EVENTS, SPLITS, VIDEO_HEADER
from avprompt.errors import ArgumentError
from avprompt.synthetic.ave import split_of, write_dataset
from avprompt.synthetic.scenes import BANDS, CATEGORIES, SECONDS, Scene, Settings, draw_interval, draw_sound, draw_thing

KINDS = (("audio",), ("visual",), ("audio", "visual"))


def parsing_scene(seed: int, index: int, settings: Settings) -> Scene:
    """Scene number `index` of a dataset; it does not depend on what else is generated.

    It has one to three categories, each heard, seen, or both, for 3 to 10 seconds; sounds lie in different bands.
    """
    rng = np.random.default_rng([seed, index])
    category = index % settings.classes
    by_band = {category % len(BANDS): category}
    for other in rng.permutation(settings.classes):
        by_band.setdefault(int(other) % len(BANDS), int(other))
    chosen = list(by_band.values())[:int(rng.integers(1, 4))]
    kinds = {c: KINDS[rng.integers(len(KINDS))] for c in chosen}
    things = [draw_thing(rng, settings, c, draw_interval(rng)) for c in chosen if "visual" in kinds[c]]
    sounds = [draw_sound(rng, c, draw_interval(rng)) for c in chosen if "audio" in kinds[c]]
    return Scene(int(rng.integers(2**31)), things, sounds, settings.noise)


def _table(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in (header, *rows)), encoding="utf-8")


def synthesize(
    root: Path,
    videos: int = 400,
    seed: int = 0,
    classes: int = 8,
    noise: float = 0.3,
    workers: int = 2,
) -> dict[str, int]:
    """Write a synthetic dataset in LLP's layout.

    `root` gets videos/<id>.mp4 (ten seconds each, picture and sound), the five csv files of LLP, categories.txt, and
    scenes.jsonl with the full description of each scene. Six tenths of the videos are for training, a fifth each for
    validation and test; in each split, every class is equally often the first of a video. The same arguments give the
    same dataset.

    Args:
        root: folder to write.
        videos: number of videos, at most 100000.
        seed: of the dataset, 0 to 999.
        classes: categories in use, 2 to 8.
        noise: visual clutter and background noise, 0 to 1.
        workers: processes.

    Returns:
        Number of videos by split.

    Raises:
        ArgumentError: too few or too many videos, too few categories, or a seed that does not fit into the ids.
        DatasetError: `root` holds another synthetic dataset.
    """
    settings = Settings(classes, silent_objects=0, offscreen_sounds=0, noise=noise)
    if not 5 * classes <= videos <= 100_000:
        raise ArgumentError("videos", videos, f"{5 * classes} (one of each class in each split) to 100000",
                            "Choose another number.")
    if not 0 <= seed < 1000:
        raise ArgumentError("seed", seed, "0 to 999, because ids contain it", "Choose another seed.")
    root = Path(root)
    scenes = {f"llp{seed:03d}{index:05d}": parsing_scene(seed, index, settings) for index in range(videos)}
    write_dataset(root, scenes, workers)
    rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in (*SPLITS, *EVENTS)}
    for index, (clip, scene) in enumerate(scenes.items()):
        split, name = split_of(index, classes), f"{clip}_0_{SECONDS}"
        labels = sorted({part.category for part in (*scene.sounds, *scene.things)})
        rows[split].append((name, ",".join(CATEGORIES[c] for c in labels)))
        if split != "train":
            for kind, parts in (("audio", scene.sounds), ("visual", scene.things)):
                rows[kind] += [(name, part.start, part.end, CATEGORIES[part.category]) for part in parts]
    for kinds, header in ((SPLITS, VIDEO_HEADER), (EVENTS, EVENT_HEADER)):
        for kind, file in kinds.items():
            _table(root / file, header, rows[kind])
    (root / "categories.txt").write_text("\n".join(CATEGORIES[:classes]) + "\n", encoding="utf-8")
    counts = {split: len(rows[split]) for split in SPLITS}
    print(f"{root}: {videos} clips of {SECONDS} s, {counts}")
    return counts
