"""Synthetic dataset in LLP's layout: audible and visible events come and go independently of each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avprompt.datasets.llp import EVENT_HEADER, EVENTS, SPLITS, VIDEO_HEADER
from avprompt.errors import ArgumentError
from avprompt.ranges import Count, Natural, Share
from avprompt.synthetic.ave import names_of, refuse_without_binding, split_of, write_dataset
from avprompt.synthetic.bound import Binding, BoundScene, BoundSettings, draw_bound, turns
from avprompt.synthetic.scenes import BANDS, SECONDS, Scene, Settings, draw_interval, draw_sound, draw_thing

KINDS = (("audio",), ("visual",), ("audio", "visual"))


def parsing_scene(seed: int, index: int, settings: Settings | BoundSettings) -> Scene | BoundScene:
    """Scene number `index` of a dataset; it does not depend on what else is generated.

    It has one to three categories, each heard, seen, or both, for 3 to 10 seconds; sounds lie in different bands. In a
    bound scene one object sounds for 3 to 9 seconds, or with `time` two objects, one after the other.
    """
    rng = np.random.default_rng([seed, index])
    category = index % settings.classes
    if isinstance(settings, BoundSettings):
        spans = turns(rng) if settings.binding == "time" else [draw_interval(rng)]
        return draw_bound(rng, settings, category, spans)
    by_band = {category % len(BANDS): category}
    for other in rng.permutation(settings.classes):
        by_band.setdefault(int(other) % len(BANDS), int(other))
    chosen = list(by_band.values())[: int(rng.integers(1, 4))]
    kinds = {c: KINDS[rng.integers(len(KINDS))] for c in chosen}
    things = [draw_thing(rng, settings, c, draw_interval(rng)) for c in chosen if "visual" in kinds[c]]
    sounds = [draw_sound(rng, c, draw_interval(rng)) for c in chosen if "audio" in kinds[c]]
    return Scene(int(rng.integers(2**31)), things, sounds, settings.noise)


def parts(scene: Scene | BoundScene) -> dict[str, list[tuple[int, int, int]]]:
    """(category, start, end) of what is audible and of what is visible.

    In a bound scene only objects and sounds that belong together have a category: the sound is audible while it lasts,
    and the object visible while it is in view. The others are background.
    """
    if isinstance(scene, Scene):
        return {
            kind: [(part.category, part.start, part.end) for part in those]
            for kind, those in (("audio", scene.sounds), ("visual", scene.things))
        }
    pairs = scene.pairs()
    return {
        "audio": [(scene.label(o, s), s.start, s.end) for o, s, *_ in pairs],
        "visual": [(scene.label(o, s), o.start, o.end) for o, s, *_ in pairs],
    }


def _table(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in (header, *rows)), encoding="utf-8")


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
        binding: `none`, or how sound and sight must be bound: `a2v`, `v2a`, `time`, see `synthetic.bound`.
        objects: with a binding, objects in view; `None` is 3, with `v2a` 1.
        offscreen_sounds: with a binding, sounds whose object is not in view; `None` is 0, with `v2a` 2.
        noise: visual clutter and background noise, 0 to 1.
        alone: with a binding, show and play what belongs together and nothing else, for an oracle's row.
        workers: processes.

    Returns:
        Number of videos by split.

    Raises:
        ArgumentError: too few or too many videos, too few categories, or a seed that does not fit into the ids.
        DatasetError: `root` holds another synthetic dataset.
    """
    settings: Settings | BoundSettings
    if binding == "none":
        refuse_without_binding(objects=objects, offscreen_sounds=offscreen_sounds, alone=alone)
        settings = Settings(classes, silent_objects=0, offscreen_sounds=0, noise=noise)
    else:
        settings = BoundSettings(binding, objects, offscreen_sounds, noise, classes, alone)
    names = names_of(settings)
    if not 5 * classes <= videos <= 100_000:
        raise ArgumentError(
            "videos", videos, f"{5 * classes} (one of each class in each split) to 100000", "Choose another number."
        )
    if not 0 <= seed < 1000:
        raise ArgumentError("seed", seed, "0 to 999, because ids contain it", "Choose another seed.")
    root = Path(root)
    scenes = {f"llp{seed:03d}{index:05d}": parsing_scene(seed, index, settings) for index in range(videos)}
    write_dataset(root, scenes, workers)
    rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in (*SPLITS, *EVENTS)}
    for index, (clip, scene) in enumerate(scenes.items()):
        split, name, found = split_of(index, classes), f"{clip}_0_{SECONDS}", parts(scene)
        labels = sorted({category for those in found.values() for category, *_ in those})
        rows[split].append((name, ",".join(names[c] for c in labels)))
        if split != "train":
            for kind, those in found.items():
                rows[kind] += [(name, start, end, names[category]) for category, start, end in those]
    for kinds, header in ((SPLITS, VIDEO_HEADER), (EVENTS, EVENT_HEADER)):
        for kind, file in kinds.items():
            _table(root / file, header, rows[kind])
    (root / "categories.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    counts = {split: len(rows[split]) for split in SPLITS}
    print(f"{root}: {videos} clips of {SECONDS} s, {counts}")
    return counts
