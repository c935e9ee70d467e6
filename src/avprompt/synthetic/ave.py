"""Synthetic dataset in AVE's layout: real mp4 files with sound, Annotations.txt and split files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from avprompt.datasets.ave import HEADER, SPLITS
from avprompt.errors import ArgumentError, DatasetError
from avprompt.media.workers import begin_worker
from avprompt.ranges import Count, Natural, Share
from avprompt.synthetic.bound import Binding, BoundScene, BoundSettings, counts, event_scene
from avprompt.synthetic.scenes import CATEGORIES, FPS, SAMPLE_RATE, SECONDS, SIZE, Scene, Settings, draw_scene

#: options with which x264 writes the same bytes on every run and processor
X264 = {"crf": "16", "preset": "veryfast", "threads": "1", "x264-params": "cpu-independent=1"}


def write_video(path: Path, scene: Scene | BoundScene, seconds: int = SECONDS) -> None:
    """Render the seconds of a scene into an mp4 file: H.264 picture, AAC sound."""
    partial = path.with_suffix(".partial.mp4")
    with av.open(str(partial), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options=X264)
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 64000
        for picture in scene.frames(seconds):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(scene.audio(seconds)[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    partial.replace(path)


def refuse_without_binding(**arguments: Any) -> None:
    """Refuse arguments that say something about bound scenes, where none are made.

    Raises:
        ArgumentError: names the first one that is given.
    """
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise ArgumentError(name, value, "nothing with `binding: none`", "Choose a binding.")


def settings_of(
    binding: Binding, objects: int | None, offscreen_sounds: int | None, noise: float, classes: int, alone: bool
) -> Settings | BoundSettings:
    """Settings of either world from the arguments of a dataset.

    Raises:
        ArgumentError: an unknown binding, a number out of its range, or `alone` without a binding.
    """
    objects, offscreen_sounds = counts(binding, objects, offscreen_sounds)
    if binding != "none":
        return BoundSettings(binding, objects, offscreen_sounds, noise, classes, alone)
    refuse_without_binding(alone=alone)
    if objects < 1:
        raise ArgumentError("objects", objects, "at least 1", "Choose another number.")
    return Settings(classes, objects - 1, offscreen_sounds, noise)


def names_of(settings: Settings | BoundSettings) -> tuple[str, ...]:
    """Names of a dataset's categories."""
    return settings.names if isinstance(settings, BoundSettings) else CATEGORIES[: settings.classes]


def clip_scene(seed: int, index: int, settings: Settings | BoundSettings) -> Scene | BoundScene:
    """Scene number `index` of a dataset; it does not depend on what else is generated."""
    rng, category = np.random.default_rng([seed, index]), index % settings.classes
    if isinstance(settings, BoundSettings):
        return event_scene(rng, settings, category)
    return draw_scene(rng, settings, category)


def _write(job: tuple[Path, Scene | BoundScene, Callable[[Path, Any], None]]) -> None:
    path, scene, write = job
    if not path.is_file():
        write(path, scene)


def write_dataset(
    root: Path,
    scenes: Mapping[str, Scene | BoundScene],
    workers: int = 2,
    write: Callable[[Path, Any], None] = write_video,
) -> None:
    """Write `root`/scenes.jsonl and render each scene that has no file yet into `root`/videos/<id>.mp4.

    Args:
        root: folder to write.
        scenes: by id.
        workers: processes.
        write: writes all files of a scene, the video last, because the video's presence means that the scene is done.

    Raises:
        DatasetError: `root` holds another synthetic dataset.
    """
    (root / "videos").mkdir(parents=True, exist_ok=True)
    side = "".join(json.dumps({"id": clip, **scene.as_dict()}) + "\n" for clip, scene in scenes.items())
    if (root / "scenes.jsonl").is_file() and (root / "scenes.jsonl").read_text(encoding="utf-8") != side:
        raise DatasetError(
            root,
            "another synthetic dataset",
            "an empty folder, or the same arguments as before",
            "Choose another folder or remove this one.",
        )
    (root / "scenes.jsonl").write_text(side, encoding="utf-8")
    jobs = [(root / "videos" / f"{clip}.mp4", scene, write) for clip, scene in scenes.items()]
    with ProcessPoolExecutor(workers, initializer=begin_worker) as pool:
        for _ in tqdm(pool.map(_write, jobs, chunksize=4), total=len(jobs), desc="generate", unit="clip", disable=None):
            pass


def split_of(index: int, classes: int) -> str:
    """Split of clip `index` if classes take turns: six tenths train, a fifth each val and test, balanced by class.

    Every block of 5 * classes clips holds each class five times: three for training, one each for the others.
    """
    return ("train", "train", "train", "val", "test")[index // classes % 5]


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
    """Write a synthetic dataset in AVE's layout.

    `root` gets videos/<id>.mp4 (ten seconds each, picture and sound), Annotations.txt, trainSet.txt, valSet.txt and
    testSet.txt in AVE's format, categories.txt, and scenes.jsonl with the full description of each scene. Six tenths of
    the clips are for training, a fifth each for validation and test; every class is equally frequent in each. The
    same arguments give the same dataset.

    Args:
        root: folder to write.
        videos: number of clips.
        seed: of the dataset.
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
        ArgumentError: too few videos or categories.
        DatasetError: `root` holds another synthetic dataset.
    """
    settings = settings_of(binding, objects, offscreen_sounds, noise, classes, alone)
    names = names_of(settings)
    if videos < 5 * classes:
        raise ArgumentError(
            "videos", videos, f"at least {5 * classes}, one of each class in each split", "Ask for more."
        )
    root = Path(root)
    ids = [f"world{seed:03d}{index:06d}" for index in range(videos)]
    scenes = [clip_scene(seed, index, settings) for index in range(videos)]
    write_dataset(root, dict(zip(ids, scenes)), workers)
    rows = []
    for clip, scene in zip(ids, scenes):
        ((category, start, end),) = scene.events()
        rows.append(f"{names[category]}&{clip}&good&{start}&{end}")
    (root / "Annotations.txt").write_text("\n".join([HEADER, *sorted(rows)]) + "\n", encoding="utf-8")
    (root / "categories.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    counts = {}
    for split, name in SPLITS.items():
        chosen = [row for index, row in enumerate(rows) if split_of(index, classes) == split]
        (root / name).write_text("\n".join(chosen) + "\n", encoding="utf-8")
        counts[split] = len(chosen)
    print(f"{root}: {videos} clips of {SECONDS} s, {counts}")
    return counts
