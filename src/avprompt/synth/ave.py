"""The generated world in AVE's own layout: real mp4 files with sound, Annotations.txt and split files."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from avprompt.errors import ArgumentError, DatasetError
from avprompt.media.ave import HEADER, SPLITS
from avprompt.synth.world import CATEGORIES, FPS, SAMPLE_RATE, SECONDS, SIZE, Scene, Settings, draw_scene
from avprompt.synth.world import render_audio, render_frames


def write_video(path: Path, scene: Scene) -> None:
    """Render a scene into an mp4 file: H.264 picture, AAC sound."""
    partial = path.with_suffix(".partial.mp4")
    with av.open(str(partial), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "16", "preset": "veryfast", "threads": "1"})
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 64000
        for picture in render_frames(scene):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(render_audio(scene)[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    partial.replace(path)


def clip_scene(seed: int, index: int, settings: Settings) -> Scene:
    """Scene number `index` of a world: the same whatever else is generated."""
    return draw_scene(np.random.default_rng([seed, index]), settings, category=index % settings.classes)


def _write(job: tuple[Path, int, int, Settings]) -> None:
    path, seed, index, settings = job
    if not path.is_file():
        write_video(path, clip_scene(seed, index, settings))


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
    """Write a generated world in AVE's layout.

    `root` gets videos/<id>.mp4 (ten seconds each, picture and sound), Annotations.txt, trainSet.txt, valSet.txt and
    testSet.txt in AVE's format, categories.txt, and scenes.jsonl with everything that is in each scene. Six tenths of
    the clips are for training, a fifth each for validation and test; every class is equally frequent in each. The
    same arguments give the same world.

    Args:
        root: folder to write.
        videos: number of clips.
        seed: of the world.
        classes: categories in use, 2 to 8.
        silent_objects: objects in view that make no sound.
        offscreen_sounds: sounds whose object is not in view.
        noise: visual clutter and background noise, 0 to 1.
        workers: processes.

    Returns:
        Number of clips by split.

    Raises:
        ArgumentError: too few videos or categories.
        DatasetError: another world stands in `root`.
    """
    settings = Settings(classes, silent_objects, offscreen_sounds, noise)
    if videos < 5 * classes:
        raise ArgumentError("videos", videos, f"at least {5 * classes}, one of each class in each split", "Ask for more.")
    root = Path(root)
    (root / "videos").mkdir(parents=True, exist_ok=True)
    ids = [f"world{seed:03d}{index:06d}" for index in range(videos)]
    scenes = [clip_scene(seed, index, settings) for index in range(videos)]
    side = "".join(json.dumps({"id": clip, **scene.as_dict()}) + "\n" for clip, scene in zip(ids, scenes))
    if (root / "scenes.jsonl").is_file() and (root / "scenes.jsonl").read_text(encoding="utf-8") != side:
        raise DatasetError(root, "another generated world", "an empty folder, or the same arguments as before",
                           "Choose another folder or remove this one.")
    (root / "scenes.jsonl").write_text(side, encoding="utf-8")
    jobs = [(root / "videos" / f"{clip}.mp4", seed, index, settings) for index, clip in enumerate(ids)]
    with ProcessPoolExecutor(workers) as pool:
        for _ in tqdm(pool.map(_write, jobs, chunksize=4), total=len(jobs), desc="generate", unit="clip"):
            pass
    rows = []
    for clip, scene in zip(ids, scenes):
        (category, start, end), = scene.events()
        rows.append(f"{CATEGORIES[category]}&{clip}&good&{start}&{end}")
    (root / "Annotations.txt").write_text("\n".join([HEADER, *sorted(rows)]) + "\n", encoding="utf-8")
    (root / "categories.txt").write_text("\n".join(CATEGORIES[:classes]) + "\n", encoding="utf-8")
    # every block of 5 * classes clips holds each class five times: three for training, one each for the others
    turn = {0: "train", 1: "train", 2: "train", 3: "val", 4: "test"}
    counts = {}
    for split, name in SPLITS.items():
        chosen = [row for index, row in enumerate(rows) if turn[index // classes % 5] == split]
        (root / name).write_text("\n".join(chosen) + "\n", encoding="utf-8")
        counts[split] = len(chosen)
    print(f"{root}: {videos} clips of {SECONDS} s, {counts}")
    return counts
