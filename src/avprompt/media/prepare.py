"""Folders of videos -> the prepared store."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from tqdm import tqdm

from avprompt.errors import ArgumentError, ClipDecodeError, DatasetError
from avprompt.media.decode import NO_AUDIO, NO_VIDEO, Sampling, decode_clip
from avprompt.media.store import ClipStore, Entry, read_manifest, write_manifest

VIDEO = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".ts", ".mts", ".m2ts", ".3gp",
         ".wmv", ".ogv"}
AUDIO = {".wav", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".aac"}

#: clip id -> its video file, and the audio file that replaces its sound; either may be absent
Media = dict[str, tuple[Path | None, Path | None]]


def find_media(folders: list[Path]) -> Media:
    """Clip id (file name without ending) -> video file, and a separate audio file of the same name where there is one.

    Hidden files are left alone, as are files of other kinds.

    Raises:
        DatasetError: a folder is missing, holds no videos, or two videos share an id.
    """
    videos: dict[str, Path] = {}
    waves: dict[str, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise DatasetError(folder, "no such folder", "a folder of videos", "Check the path.")
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
            found = videos if path.suffix.lower() in VIDEO else waves if path.suffix.lower() in AUDIO else None
            if found is None:
                continue
            if path.stem in found:
                raise DatasetError(path, f"the id of {found[path.stem]}", "one file an id", "Rename or remove one.")
            found[path.stem] = path
    if not videos:
        raise DatasetError(", ".join(map(str, folders)), "no video files", f"files ending in {sorted(VIDEO)}",
                           "Check the path.")
    return {clip: (videos.get(clip), waves.get(clip)) for clip in sorted({*videos, *waves})}


def describe(video: Path | None, wave: Path | None) -> str:
    """Names and sizes of a clip's files: a clip is prepared again when one of them changes."""
    return " + ".join(f"{path.name} ({path.stat().st_size} bytes)" for path in (video, wave) if path is not None)


def prepare_clip(clip_id: str, video: Path | None, wave: Path | None, store: Path, sampling: Sampling) -> Entry:
    """Decode one clip into the store and say how it went; never raises for a bad file."""
    source = describe(video, wave)
    try:
        if video is None:
            raise ClipDecodeError(wave, NO_VIDEO, "a video file of the same name", "Leave the clip out.")
        clip = decode_clip(video, sampling, wave=wave)
    except ClipDecodeError as error:
        ClipStore(store).remove(clip_id)
        return Entry(clip_id, {NO_AUDIO: "no-audio", NO_VIDEO: "no-video"}.get(str(error.got), "broken"), str(error),
                     source=source)
    ClipStore(store).write(clip_id, clip)
    count = int(clip.valid.sum())
    status, reason = "ok", ""
    if count < sampling.segments:
        status, reason = "short", f"{clip.duration:.2f} s of {sampling.duration:g} s"
    if clip.silent:
        status, reason = "silent", "; ".join(filter(None, ["no sample above the silence threshold", reason]))
    return Entry(clip_id, status, reason, clip.duration, count, source)


def _run(media: Media, store: Path, sampling: Sampling, workers: int) -> Iterator[Entry]:
    """Entries as they come, from worker processes; a file that kills its process is `broken` and stops nothing."""
    waiting = list(media)
    while waiting:
        done: set[str] = set()
        with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                jobs = [pool.submit(prepare_clip, clip, *media[clip], store, sampling) for clip in waiting]
                for job in as_completed(jobs):
                    entry = job.result()
                    done.add(entry.id)
                    yield entry
            except BrokenProcessPool:
                pass  # some process died: its clip is among the first of those unfinished
            finally:
                pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the clips in hand, not for all
        waiting = [clip for clip in waiting if clip not in done]
        suspects, waiting = waiting[:2 * workers + 1], waiting[2 * workers + 1:]
        for clip in suspects:
            with ProcessPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                try:
                    yield pool.submit(prepare_clip, clip, *media[clip], store, sampling).result()
                except BrokenProcessPool:
                    yield Entry(clip, "broken", "it kills the process that decodes it", source=describe(*media[clip]))


def prepare(
    videos: list[Path] | Path,
    out: Path,
    segments: int = 10,
    size: int = 192,
    sample_rate: int = 32000,
    antialias: bool = True,
    stride: float | None = None,
    workers: int = 2,
    overwrite: bool = False,
) -> dict[str, int]:
    """Turn folders of videos into the store that a training run reads.

    One frame is taken from the middle of every segment and resized once; the sound is cut per segment. A file that is
    broken, silent, short or without sound is listed with its reason in manifest.csv and problems.csv and stops nothing.
    Run again after an interruption: clips that are already there are kept, unless their files have changed.

    Args:
        videos: folder of video files, or several (`--videos '[VIDEOS, WAVES]'`), searched through; a .wav or other
            audio file with a video's name replaces its sound.
        out: the store's folder.
        segments: segments of one second a clip.
        size: height and width of the frames in pixels; 192 for Swin-V2-L, 224 for CLIP.
        sample_rate: Hz; 32000 for HTS-AT on AudioSet.
        antialias: low-pass before resizing; `false` is what the published numbers were made with.
        stride: seconds from the beginning of a segment to that of the next; `null` is 1, `6` spreads ten segments over
            the minute of a MUSIC-AVQA video.
        workers: processes.
        overwrite: start again although a store stands there.

    Returns:
        Number of clips by status.

    Raises:
        ArgumentError: a number is not positive.
        DatasetError: a folder is missing or empty, ids collide, the store was made with other settings, or it cannot be
            written.
    """
    if workers < 1:
        raise ArgumentError("workers", workers, "at least 1", "Choose another value.")
    sampling = Sampling(segments=segments, size=size, sample_rate=sample_rate, antialias=antialias,
                        stride=stride)
    media, store = find_media(videos if isinstance(videos, list) else [videos]), ClipStore(out)
    store.create(sampling, overwrite)
    entries = read_manifest(store.manifest_path) if store.manifest_path.is_file() else {}
    kept = {clip for clip, files in media.items() if clip in entries and entries[clip].usable and clip in store
            and entries[clip].source == describe(*files)}
    todo = {clip: files for clip, files in media.items() if clip not in kept}
    try:
        try:
            bar = tqdm(_run(todo, store.root, sampling, workers), total=len(todo), desc="prepare", unit="clip")
            for count, entry in enumerate(bar, 1):
                entries[entry.id] = entry
                if count % 200 == 0:
                    write_manifest(store.manifest_path, list(entries.values()))
        finally:
            write_manifest(store.manifest_path, list(entries.values()))
    except OSError as error:
        raise DatasetError(store.root, error, "a folder with room to write",
                           "Free some space and run it again.") from error
    problems = sorted((e for e in entries.values() if e.status != "ok"), key=lambda e: (e.status, e.id))
    with (store.root / "problems.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "status", "reason"])
        writer.writerows([e.id, e.status, e.reason] for e in problems)
    counts = dict(sorted(Counter(entry.status for entry in entries.values()).items()))
    print(f"{store.root}: {counts}, {len(kept)} kept from before, problems in {store.root / 'problems.csv'}")
    return counts
