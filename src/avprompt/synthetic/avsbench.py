"""Synthetic dataset in AVSBench's layout: frames, masks of the sounding objects, wav files, and mp4 files of the same.

Sounding objects are drawn over silent ones. In S4 one object is seen and heard for all five seconds, among silent
objects. In MS3 two or three objects come and go, and so do their sounds: masks change from second to second, and are
empty where no visible object sounds. With a binding, S4 is `a2v` or `v2a`, and MS3 is `time`: the object that sounds
changes.
"""

from __future__ import annotations

import csv
import wave
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from avprompt.datasets.avsbench import LAYOUTS, SECONDS, SPLITS, Setting, Video, files
from avprompt.errors import ArgumentError
from avprompt.media.decode import resize
from avprompt.ranges import Count, Natural, Share
from avprompt.synthetic.ave import names_of, settings_of, split_of, write_dataset, write_video
from avprompt.synthetic.bound import Binding, BoundScene, BoundSettings, draw_bound, turns
from avprompt.synthetic.scenes import FPS, SAMPLE_RATE, Scene, Settings, draw_interval, draw_sound, draw_thing

SOUNDING = {"s4": (1, 1), "ms3": (2, 3)}  # least and largest number of sounding objects


def draw_scene(rng: np.random.Generator, setting: Setting, settings: Settings, category: int) -> Scene:
    """Draw five seconds in which an object of `category` sounds, and in MS3 one or two others.

    Args:
        rng: source of all random draws.
        setting: `s4` or `ms3`.
        settings: how hard the dataset is; nothing sounds off screen.
        category: of the first object that sounds.
    """
    least, most = SOUNDING[setting]
    others = [int(c) for c in rng.permutation(settings.classes) if c != category]
    count = int(rng.integers(least, most + 1))
    sounding, silent = [category, *others[: count - 1]], others[count - 1 :][: settings.silent_objects]

    def span(least: int) -> tuple[int, int]:
        return (0, SECONDS) if setting == "s4" else draw_interval(rng, seconds=SECONDS, least=least)

    things = [draw_thing(rng, settings, c, span(3)) for c in (*silent, *sounding)]
    sounds = [draw_sound(rng, c, span(1)) for c in sounding]
    return Scene(int(rng.integers(2**31)), things, sounds, settings.noise)


def bound_scene(rng: np.random.Generator, settings: BoundSettings, category: int) -> BoundScene:
    """Draw five seconds in which one object sounds, or with `time` two objects, one after the other."""
    spans = turns(rng, SECONDS, 1) if settings.binding == "time" else None
    return draw_bound(rng, settings, category, spans, seconds=SECONDS)


def _write_clip(path: Path, scene: Scene | BoundScene, root: Path) -> None:
    """Write frames, masks, wav file, and last the mp4 file: its presence means that the others are complete."""
    setting, size = scene.extra["setting"], scene.extra["size"]
    target = files(root, setting, Video(**scene.extra["video"]))
    for file in (target.frames[0], target.masks[0], target.audio):
        file.parent.mkdir(parents=True, exist_ok=True)
    middles = [second * FPS + FPS // 2 for second in range(SECONDS)]
    pictures = scene.frames(SECONDS)
    for index, file in zip(middles, target.frames, strict=True):
        Image.fromarray(resize(pictures[index], size, antialias=True)).save(file)
    for index, file in zip(middles, target.masks):
        mask = 255 * scene.mask(index / FPS)[..., None].astype(np.uint8)
        mask = 255 * (resize(mask, size, antialias=True)[..., 0] > 127).astype(np.uint8)
        Image.fromarray(mask).convert("1" if setting == "s4" else "P").save(file)
    with wave.open(str(target.audio), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE)
        sound.writeframes((scene.audio(SECONDS) * 32767).round().astype("<i2").tobytes())
    write_video(path, scene, SECONDS)


def synthesize(
    root: Path,
    setting: Literal["s4", "ms3"] = "s4",
    videos: Count = 400,
    seed: Natural = 0,
    classes: Count = 8,
    binding: Binding = "none",
    objects: Count | None = None,
    offscreen_sounds: Natural | None = None,
    noise: Share = 0.3,
    alone: bool = False,
    size: Count = 64,
    workers: Count = 2,
) -> dict[str, int]:
    """Write a synthetic dataset in AVSBench's layout.

    `root` gets the setting's table and folders (`Single-source` or `Multi-sources`) with frames, masks and wav files,
    videos/<name>.mp4 (five seconds each, picture and sound), categories.txt, and scenes.jsonl with the full
    description of each scene. Frame and mask of a second show its middle. Six tenths of the videos are for training, a
    fifth each for validation and test. The same arguments give the same dataset.

    Args:
        root: folder to write; each setting needs its own.
        setting: `s4`, one object sounds, or `ms3`, two or three come and go.
        videos: number of videos.
        seed: of the dataset.
        classes: categories in use, 2 to 8.
        binding: `none`, or how sound and sight must be bound: `a2v`, `v2a`, `time`, see `synthetic.bound`. `s4` has one
            sounding object and cannot be `time`; `ms3` is `time` or `none`.
        objects: objects in view; without a binding, one more for each further sound of `ms3`. `None` is 3, with `v2a`
            1.
        offscreen_sounds: sounds whose object is not in view; only with a binding, `None` is 0, with `v2a` 2.
        noise: visual clutter and background noise, 0 to 1.
        alone: with a binding, show and play what belongs together and nothing else, for an oracle's row.
        size: height and width of frames and masks in pixels.
        workers: processes.

    Returns:
        Number of videos by split.

    Raises:
        ArgumentError: an unknown setting, a binding that it cannot have, or too few videos or categories.
        DatasetError: `root` holds another synthetic dataset.
    """
    if setting not in SOUNDING:
        raise ArgumentError("setting", setting, " or ".join(SOUNDING), "Correct the argument.")
    allowed = ("none", "time") if setting == "ms3" else ("none", "a2v", "v2a")
    if binding not in allowed:
        raise ArgumentError("binding", binding, f"{' or '.join(allowed)} with `setting: {setting}`", "Choose another.")
    if binding == "none" and offscreen_sounds:
        raise ArgumentError("offscreen_sounds", offscreen_sounds, "0 with `binding: none`", "Choose a binding.")
    settings = settings_of(binding, objects, 0 if binding == "none" else offscreen_sounds, noise, classes, alone)
    names, most = names_of(settings), SOUNDING[setting][1]
    if isinstance(settings, Settings) and most + settings.silent_objects > classes:
        raise ArgumentError(
            "objects",
            1 + settings.silent_objects,
            f"at most {classes - most + 1}: all categories of a scene differ",
            "Lower it or raise classes.",
        )
    if videos < 5 * classes:
        raise ArgumentError(
            "videos", videos, f"at least {5 * classes}, one of each class in each split", "Ask for more."
        )
    if size < 1:
        raise ArgumentError("size", size, "at least 1", "Choose another value.")
    root, layout, rows = Path(root), LAYOUTS[setting], []
    scenes: dict[str, Scene | BoundScene] = {}
    for index in range(videos):
        name, category, split = f"world{seed:03d}{index:06d}", index % classes, split_of(index, classes)
        row = {"name": name, **({"category": names[category]} if setting == "s4" else {}), "split": split}
        rng = np.random.default_rng([seed, index])
        if isinstance(settings, BoundSettings):
            scene: Scene | BoundScene = bound_scene(rng, settings, category)
        else:
            scene = draw_scene(rng, setting, settings, category)
        scenes[name] = replace(scene, extra={"setting": setting, "size": size, "video": row})
        rows.append(row)
    write_dataset(root, scenes, workers, partial(_write_clip, root=root))
    with (root / layout.table).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (root / "categories.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    counts = {split: sum(row["split"] == split for row in rows) for split in SPLITS}
    print(f"{root}: {videos} videos of {SECONDS} s, {counts}")
    return counts
