"""Folders of videos -> the prepared store."""

from __future__ import annotations

import csv
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from avprompt.errors import ClipDecodeError, DatasetError
from avprompt.media.decode import Sampling, decode_clip
from avprompt.media.store import ClipStore, Entry, read_manifest, write_manifest

VIDEO = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".ts", ".3gp"}
AUDIO = {".wav", ".flac", ".m4a", ".mp3", ".ogg", ".aac"}


def find_media(folders: list[Path]) -> dict[str, tuple[Path, Path | None]]:
    """Clip id (file name without ending) -> video file, and a separate audio file of the same name where there is one.

    Raises:
        DatasetError: a folder is missing, holds no videos, or two videos share an id.
    """
    videos: dict[str, Path] = {}
    waves: dict[str, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise DatasetError(folder, "no such folder", "a folder of videos", "Check the path.")
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            found = videos if path.suffix.lower() in VIDEO else waves if path.suffix.lower() in AUDIO else None
            if found is None:
                continue
            if path.stem in found:
                raise DatasetError(path, f"the id of {found[path.stem]}", "one file an id", "Rename or remove one.")
            found[path.stem] = path
    if not videos:
        raise DatasetError(", ".join(map(str, folders)), "no video files", f"files ending in {sorted(VIDEO)}",
                           "Check the path.")
    return {clip: (path, waves.get(clip)) for clip, path in videos.items()}


def prepare_clip(clip_id: str, video: Path, wave: Path | None, store: Path, sampling: Sampling) -> Entry:
    """Decode one clip into the store and say how it went; never raises for a bad file."""
    try:
        clip = decode_clip(video, sampling, wave=wave)
    except ClipDecodeError as error:
        kinds = {"no audio stream": "no-audio", "no video stream": "no-video"}
        return Entry(clip_id, kinds.get(str(error.got), "broken"), str(error))
    ClipStore(store).write(clip_id, clip)
    count = int(clip.valid.sum())
    if clip.silent:
        return Entry(clip_id, "silent", "no sample above the silence threshold", clip.duration, count)
    if count < sampling.segments:
        return Entry(clip_id, "short", f"{clip.duration:.2f} s of {sampling.duration:g} s", clip.duration, count)
    return Entry(clip_id, "ok", "", clip.duration, count)


def prepare(
    videos: Path,
    out: Path,
    waves: Path | None = None,
    segments: int = 10,
    size: int = 192,
    sample_rate: int = 32000,
    antialias: bool = True,
    workers: int = 2,
    overwrite: bool = False,
) -> dict[str, int]:
    """Turn folders of videos into the store that a training run reads.

    One frame is taken from the middle of every second and resized once; the sound is cut per second. A file that is
    broken, silent, short or without sound is listed with its reason in manifest.csv and problems.csv and stops nothing.
    Run again after an interruption: clips that are already there are kept.

    Args:
        videos: folder of video files, searched through; a .wav (or other audio file) of the same name replaces the sound.
        out: the store's folder.
        waves: another folder to look for such audio files in.
        segments: seconds a clip.
        size: height and width of the frames in pixels; 192 for Swin-V2-L, 224 for CLIP.
        sample_rate: Hz; 32000 for HTS-AT on AudioSet.
        antialias: low-pass before resizing; `false` is what the published numbers were made with.
        workers: processes.
        overwrite: start again although a store stands there.

    Returns:
        Number of clips by status.

    Raises:
        DatasetError: a folder is missing or empty, ids collide, or the store was made with other settings.
    """
    sampling = Sampling(segments=segments, size=size, sample_rate=sample_rate, antialias=antialias)
    media, store = find_media([videos] if waves is None else [videos, waves]), ClipStore(out)
    store.create(sampling, overwrite)
    entries = read_manifest(store.manifest_path) if store.manifest_path.is_file() else {}
    todo = [clip for clip in media if not (clip in entries and entries[clip].usable and clip in store)]
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(prepare_clip, clip, *media[clip], store.root, sampling) for clip in todo]
        for count, job in enumerate(tqdm(as_completed(jobs), total=len(jobs), desc="prepare", unit="clip"), 1):
            entry = job.result()
            entries[entry.id] = entry
            if count % 200 == 0:
                write_manifest(store.manifest_path, list(entries.values()))
    write_manifest(store.manifest_path, list(entries.values()))
    problems = sorted((e for e in entries.values() if e.status != "ok"), key=lambda e: (e.status, e.id))
    with (store.root / "problems.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "status", "reason"])
        writer.writerows([e.id, e.status, e.reason] for e in problems)
    counts: dict[str, int] = {}
    for entry in entries.values():
        counts[entry.status] = counts.get(entry.status, 0) + 1
    kept = len(media) - len(todo)
    print(f"{store.root}: {counts}, {kept} kept from before, problems in {store.root / 'problems.csv'}")
    return counts
