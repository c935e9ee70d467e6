"""Preparation of the store from folders of videos, by one process, by several, or by the jobs of a cluster."""

from __future__ import annotations

import errno
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import av
from tqdm import tqdm

from avprompt.cluster import slurm_executor
from avprompt.cores import usable_cores
from avprompt.errors import ArgumentError, AVPromptError, ClipDecodeError, DatasetError
from avprompt.files import FULL, locked
from avprompt.media.decode import NO_AUDIO, NO_VIDEO, Sampling, decode_clip, duration
from avprompt.media.files import listed, walk
from avprompt.media.pictures import Pictures
from avprompt.media.store import (
    ClipStore,
    Entry,
    digest_of,
    read_manifest,
    recover_manifest,
    write_manifest,
    write_problems,
)
from avprompt.media.text import is_name, plain
from avprompt.media.untrusted import MAX_PIXELS
from avprompt.media.workers import begin_worker
from avprompt.ranges import Count, Positive, Range
from avprompt.signals import later_signals

VIDEO = {
    ".mp4",
    ".mkv",
    ".webm",
    ".avi",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".flv",
    ".ts",
    ".mts",
    ".m2ts",
    ".3gp",
    ".wmv",
    ".ogv",
}
AUDIO = {".wav", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".aac"}
#: errors of writing to the store, which no media file causes
REFUSED = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

#: seconds after which the rows of what was done since are written
PAUSE = 30
#: seconds in which the workers of a call that was killed end
PATIENCE = 10
#: links without a target that are printed
SHOWN = 20

#: a clip's video file, and the audio file that replaces its sound; either may be absent
Pair = tuple[Path | None, Path | None]


@dataclass
class Media:
    """Media files found in folders.

    Args:
        clips: id (file name without ending) -> video file, and a separate audio file of the same name.
        unusable: id -> why its file cannot be used: a broken link, or a name that cannot be written to a table.
        passed_over: id -> files that were not used, because another with the same id was preferred.
        others: other files by ending, and how many are hidden.
        links: links that lead nowhere, and folders that cannot be opened, with the reason.
    """

    clips: dict[str, Pair] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, list[Path]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    links: list[tuple[Path, str]] = field(default_factory=list)


def find_media(folders: list[Path], prefer: Literal["earlier", "later"] | None = None) -> Media:
    """Find videos and audio files in folders, including folders that links lead to.

    Hidden files and folders are ignored, including AppleDouble files (`._clip.mp4`). A file that is reached in two ways
    counts once.

    Args:
        folders: folders to search; a file stands for itself and a sound of its name beside it.
        prefer: which of several files with one id is used, in the order of the folders and, within them, of names;
            `None` raises an error that names all of them.

    Raises:
        DatasetError: a folder is missing, there are no videos, or two files share an id.
    """
    media, known = Media(), set[tuple[int, int]]()
    found: dict[str, dict[str, list[Path]]] = {"video": {}, "audio": {}}
    for folder in (Path(folder).expanduser() for folder in folders):
        if not folder.exists():
            raise DatasetError(folder, "no such folder", "a folder of videos, or a video", "Check the path.")
        problems: list[tuple[Path, str]] = []
        unseen: list[Path] = []
        for path in walk(folder, problems, unseen) if folder.is_dir() else _with_sound(folder):
            kind = _kind(path)
            if kind is None:
                media.others[path.suffix.lower() or "no ending"] += 1
                continue
            if not is_name(path.stem):
                media.unusable[plain(path.stem)] = f"{plain(str(path))}: its name holds characters that are no text"
                continue
            try:
                identity = path.stat().st_dev, path.stat().st_ino
            except OSError as error:
                media.unusable[path.stem] = f"{path}: {error}"
                continue
            if identity not in known:
                known.add(identity)
                found[kind].setdefault(path.stem, []).append(path)
        media.others.update({"hidden": len(unseen)} if unseen else {})
        media.links += problems
        media.unusable.update(
            {
                plain(path.stem): f"{plain(str(path))}: {plain(why)}"
                for path, why in problems
                if _kind(path) or path.is_dir() or not path.suffix
            }
        )
    shared = [(clip, paths) for kind in found.values() for clip, paths in kind.items() if len(paths) > 1]
    if shared and prefer is None:
        lines = [f"{clip}: {', '.join(map(str, paths))}" for clip, paths in sorted(shared)]
        raise DatasetError(
            ", ".join(map(str, folders)),
            "\n  ".join([f"{len(shared)} ids of several files each", *lines]) + "\n",
            "one file an id",
            "Rename or remove the others, or take the last of each with --prefer later (the first with "
            "--prefer earlier).",
        )
    if not found["video"]:
        raise DatasetError(
            ", ".join(map(str, folders)), "no video files", f"files ending in {sorted(VIDEO)}", "Check the path."
        )
    chosen = {
        kind: {clip: paths[0 if prefer == "earlier" else -1] for clip, paths in files.items()}
        for kind, files in found.items()
    }
    for files, taken in zip(found.values(), chosen.values()):
        for clip, paths in files.items():
            if len(paths) > 1:
                media.passed_over.setdefault(clip, []).extend(path for path in paths if path != taken[clip])
    media.clips = {
        clip: (chosen["video"].get(clip), chosen["audio"].get(clip))
        for clip in sorted({*chosen["video"], *chosen["audio"]})
    }
    for clip in media.clips:
        media.unusable.pop(clip, None)
    return media


def _with_sound(video: Path) -> list[Path]:
    return [video, *(path for path in listed(video.parent, *AUDIO) if path.stem == video.stem and path != video)]


def _kind(path: Path) -> str | None:
    ending = path.suffix.lower()
    return "video" if ending in VIDEO else "audio" if ending in AUDIO else None


def describe(video: Path | None, wave: Path | None) -> str:
    """Names and sizes of a clip's files: a clip is prepared again when one of them changes."""
    parts = []
    for path in (video, wave):
        if path is not None:
            try:
                parts.append(f"{path.name} ({path.stat().st_size} bytes)")
            except OSError:
                parts.append(f"{path.name} (gone)")
    return plain(" + ".join(parts))


def prepare_clip(clip_id: str, video: Path | None, wave: Path | None, store: Path, sampling: Sampling) -> Entry:
    """Decode one clip into the store; a bad file or name gives an entry with the reason, never an error.

    Raises:
        OSError: nothing can be written to the store.
    """
    source, folder = describe(video, wave), ClipStore(store)
    try:
        if video is None:
            raise ClipDecodeError(wave, NO_VIDEO, "a video file of the same name", "Leave the clip out.")
        clip = decode_clip(video, sampling, wave=wave)
    except ClipDecodeError as error:
        folder.remove(clip_id)
        return Entry(
            clip_id,
            {NO_AUDIO: "no-audio", NO_VIDEO: "no-video"}.get(str(error.got), "broken"),
            str(error),
            length_of(video),
            source=source,
        )
    except Exception as error:  # decoders raise all kinds of errors: the clip is listed, and the others go on
        folder.remove(clip_id)
        return Entry(clip_id, "broken", f"{type(error).__name__}: {error}", source=source)
    try:
        digest = folder.write(clip_id, clip)
    except OSError as error:
        if error.errno in REFUSED:
            raise
        return Entry(clip_id, "broken", f"no clip can be called so: {error.strerror}", source=source)
    count = int(clip.valid.sum())
    status, reason = ("ok" if count == sampling.segments else "short"), clip.reason
    if clip.silent:
        status, reason = "silent", "; ".join(filter(None, ["no sample above the silence threshold", reason]))
    return Entry(clip_id, status, reason, length_of(video), count, source, digest)


def length_of(video: Path | None) -> float:
    """Seconds of a whole video, 0 where its file does not tell."""
    try:
        return 0.0 if video is None else duration(video)
    except (ClipDecodeError, av.FFmpegError, ValueError, ArithmeticError):
        return 0.0


def _run(media: dict[str, Pair], store: Path, sampling: Sampling, workers: int) -> Iterator[Entry]:
    """Entries in the order in which worker processes finish; a file that kills its process is listed as `broken`."""
    waiting = list(media)
    while waiting:
        done: set[str] = set()
        with ProcessPoolExecutor(workers, initializer=begin_worker) as pool:
            try:
                jobs = [pool.submit(prepare_clip, clip, *media[clip], store, sampling) for clip in waiting]
                for job in as_completed(jobs):
                    entry = job.result()
                    done.add(entry.id)
                    yield entry
                return
            except BrokenProcessPool:  # a process died: its clip is among the first unfinished ones
                waiting = [clip for clip in waiting if clip not in done]
                suspects, waiting = waiting[: 2 * workers + 1], waiting[2 * workers + 1 :]
            finally:
                pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the running clips, not for all
        for clip in suspects:
            with ProcessPoolExecutor(1, initializer=begin_worker) as pool:
                try:
                    yield pool.submit(prepare_clip, clip, *media[clip], store, sampling).result()
                except BrokenProcessPool:
                    yield Entry(clip, "broken", "it kills the process that decodes it", source=describe(*media[clip]))


def _kept(store: ClipStore, entries: dict[str, Entry], media: dict[str, Pair], deep: bool) -> set[str]:
    """Clips in the store whose files have not changed, under their own id or one that `--rename` gave them."""
    renamed = {entry.source: entry for entry in entries.values() if entry.id not in media}
    kept = set()
    for clip, files in tqdm(media.items(), desc="check", unit="clip", disable=None if deep and entries else True):
        source = describe(*files)
        entry = entries.get(clip) or renamed.get(source)
        if entry is None or not entry.usable or entry.source != source:
            continue
        try:
            (store.read if deep else store.check)(entry.id)
        except ClipDecodeError:
            continue
        if not deep or store.digest(entry.id) == entry.digest:
            kept.add(clip)
    return kept


@dataclass(frozen=True)
class Part:
    """The clips that one of several processes prepares; which they are depends on their ids alone.

    Args:
        number: 1 to `of`.
        of: number of processes.

    Example:
        >>> parts = [Part(number, 3) for number in (1, 2, 3)]
        >>> [sum(clip in part for part in parts) for clip in ("a", "b", "c")], str(parts[0])
        ([1, 1, 1], '1/3')
    """

    number: int
    of: int

    @classmethod
    def read(cls, text: str) -> Part:
        """The part that a text such as `3/16` means.

        Raises:
            ArgumentError: it means none.
        """
        if (found := re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)) and 1 <= int(found[1]) <= int(found[2]):
            return cls(int(found[1]), int(found[2]))
        raise ArgumentError("shard", text, "k/n, such as 1/16, 2/16 ... 16/16", "Give each process another k.")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def __contains__(self, clip: str) -> bool:
        return int(digest_of(clip.encode())[:8], 16) % self.of == self.number - 1


def _known(store: ClipStore) -> tuple[dict[str, Entry], list[DatasetError]]:
    """Rows of the manifest and of what parts have noted since, later files last, and the damaged rows' errors."""
    entries: dict[str, Entry] = {}
    damaged: list[DatasetError] = []
    parts = sorted(store.parts.glob("[!.]*.csv"), key=lambda path: path.stat().st_mtime_ns)
    for path in (store.manifest_path, *parts):
        if path.is_file():
            found, wrong = recover_manifest(path)
            entries.update(found)
            damaged += wrong
    return entries, damaged


class PrepareJob:
    """One job of a cluster: when it is preempted or out of time, it is queued again and goes on."""

    def __call__(self, settings: dict[str, Any]) -> dict[str, int]:
        """See `prepare`."""
        return prepare(**settings)

    def checkpoint(self, settings: dict[str, Any]) -> Any:
        """What submitit queues again when the time of the job ends."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, settings)


def _submit(settings: dict[str, Any], store: ClipStore, jobs: int, options: dict[str, Any]) -> None:
    """Queue the parts as an array of jobs, and after them the call that merges them."""
    wanted = {
        "job_name": f"prepare-{store.root.name}",
        "time": 24 * 60,
        "cpus_per_task": settings["workers"] or 8,
        "array_parallelism": jobs,
    }
    executor = slurm_executor(store.root / "slurm", wanted, options)
    with later_signals():  # until it is known what is queued
        queued = executor.map_array(
            PrepareJob(), [{**settings, "shard": f"{number}/{jobs}"} for number in range(1, jobs + 1)]
        )
        array = queued[0].job_id.partition("_")[0]
        more = {**options.get("additional_parameters", {}), "dependency": f"afterany:{array}"}
        executor.update_parameters(additional_parameters=more)
        merge = executor.submit(PrepareJob(), settings)
    print(
        f"{jobs} jobs are queued as {array}, and the one that merges them as {merge.job_id}; their output is in "
        f"{store.root / 'slurm'}. What they leave undone, the same command does."
    )


def prepare(
    videos: list[Path] | Path,
    out: Path,
    segments: Count = 10,
    size: Count = 192,
    sample_rate: Count = 32000,
    antialias: bool = True,
    stride: Positive | None = None,
    workers: Count | None = None,
    overwrite: bool = False,
    prefer: Literal["earlier", "later"] | None = None,
    deep: bool = False,
    max_pixels: Count = MAX_PIXELS,
    frames_per_segment: Count = 1,
    frames: Literal["raw", "jpeg", "webp"] = "raw",
    quality: Annotated[int, Range(1, 100)] | None = None,
    shard: str | None = None,
    slurm: bool | dict[str, Any] = False,
    jobs: Count = 16,
    shards: Count | None = None,
) -> dict[str, int]:
    """Turn folders of videos into the store that a training run reads.

    One frame is taken from the middle of every segment and resized; the sound is cut into segments. A file that is
    broken, silent, short or without sound is listed with the reason in manifest.csv and problems.csv, and the others go
    on. After an interruption, run the command again: clips in the store are kept, unless their files have changed.

    Args:
        videos: folder of video files, or several (`--videos '[VIDEOS, WAVES]'`), searched with their subfolders and
            links; a .wav or other audio file with a video's name replaces its sound.
        out: the store's folder.
        segments: segments of one second a clip.
        size: height and width of the frames in pixels; 192 for Swin-V2-L, 224 for CLIP.
        sample_rate: Hz; 32000 for HTS-AT on AudioSet.
        antialias: low-pass before resizing; `false` is what the published numbers were made with.
        stride: seconds from the beginning of a segment to that of the next; `null` is 1, `6` spreads ten segments over
            the minute of a MUSIC-AVQA video.
        workers: processes; `null` is one for each core that this process may use.
        overwrite: replace an existing store.
        prefer: which file is used if several have one name: `earlier` or `later`, in the order of the folders and,
            within them, of names; `null` raises an error that lists them all.
        deep: compare the clips in the store with their digests, and prepare damaged ones again.
        max_pixels: a picture with more is refused before it is decoded; 8K video fits.
        frames_per_segment: evenly spaced over each segment; R(2+1)D-18 takes 8.
        frames: `raw`, or `jpeg` or `webp`, which take a tenth of the room, lose some detail, and are decoded at each
            read.
        quality: of JPEG or WebP pictures, 1 to 100; `null` is 90.
        shard: `k/n` prepares one of n parts, by a process or a machine of its own, with the same folders. The same
            command without it then merges them, and prepares what they left undone.
        slurm: queue the parts and the merging call on a SLURM cluster through submitit, and return. `true` asks for a
            day and 8 processors each; a mapping has further options: '{partition: cpu, time: 600, cpus_per_task: 16}'.
        jobs: number of parts that are queued.
        shards: clips of one tar file, such as 1000, into which all clips are moved once they are prepared; `null` leaves
            each clip in files of its own. Parts leave that to the merging call.

    Returns:
        Number of clips by status, those of the part with `shard`; nothing of jobs that are queued.

    Raises:
        ArgumentError: a number is out of its range, or arguments exclude each other.
        ConfigError: there is no cluster.
        DatasetError: a folder is missing or empty, ids collide, the store was made with other settings, another process
            prepares it, or it cannot be written.
    """
    settings = {name: value for name, value in locals().items() if name not in ("slurm", "jobs")}
    if workers is not None and workers < 1:
        raise ArgumentError("workers", workers, "at least 1", "Choose another value.")
    part = None if shard is None else Part.read(shard)
    if part and (overwrite or slurm is not False):
        name = "overwrite" if overwrite else "slurm"
        raise ArgumentError(name, "true", "false, with a shard", "Leave it out of the calls with --shard.")
    sampling = Sampling(
        segments=segments,
        size=size,
        sample_rate=sample_rate,
        antialias=antialias,
        stride=stride,
        max_pixels=max_pixels,
        frames=frames_per_segment,
    )
    pictures = Pictures(frames, quality)
    media, store = find_media(videos if isinstance(videos, list) else [videos], prefer), ClipStore(out)
    if not (overwrite and (store.root / "store.json").is_file()):
        store.create(sampling, pictures=pictures)  # nothing is written into a folder of other files
    with _alone(store, part):
        if overwrite:
            store.create(sampling, True, pictures)
        if slurm is not False:
            _submit({**settings, "overwrite": False}, store, jobs, {} if slurm is True else slurm)
            return {}
        counts = _prepare(media, store, sampling, workers, prefer, deep, part)
        if shards is not None and part is None:
            _pack(store, shards)
        return counts


def _pack(store: ClipStore, count: int) -> None:
    """Move the store's clips into shards, and say so.

    Raises:
        DatasetError: there is no room, or the files of a clip are damaged.
    """
    try:
        moved = store.pack(read_manifest(store.manifest_path), count)
    except OSError as error:
        if isinstance(error, AVPromptError):
            raise
        raise DatasetError(
            store.root, error, "a folder with room for a further shard", "Free some space and run it again."
        ) from error
    tars = len({place.shard for place in store.places.values()})
    print(f"{store.root / 'shards'}: {moved} clips moved into shards, {len(store.places)} in {tars} tar files")


@contextmanager
def _alone(store: ClipStore, part: Part | None) -> Iterator[None]:
    """Parts are prepared at the same time; nothing else is.

    Raises:
        DatasetError: another process prepares the store, or this part of it.
    """
    own = locked(store.parts / f".{part.number}-of-{part.of}.lock", patience=PATIENCE) if part else nullcontext(True)
    with locked(store.root / ".lock", part is not None, PATIENCE) as ours, own as mine:
        if not (ours and mine):
            raise DatasetError(
                store.root,
                "another process that prepares it",
                "one at a time, or parts (--shard k/n), each once",
                "Wait until it is done; the clips that it has prepared are kept.",
            )
        yield


def _prepare(
    media: Media,
    store: ClipStore,
    sampling: Sampling,
    workers: int | None,
    prefer: str | None,
    deep: bool,
    part: Part | None,
) -> dict[str, int]:
    if workers is None:
        workers = usable_cores()
    path = store.parts / f"{part.number}-of-{part.of}.csv" if part else store.manifest_path
    entries, damaged = _known(store)
    for problem in damaged:
        print(f"a row of the manifest is written again: {problem}")
    clips = {clip: files for clip, files in media.clips.items() if part is None or clip in part}
    kept = _kept(store, entries, clips, deep)
    todo = {clip: files for clip, files in clips.items() if clip not in kept}
    if part:  # the others' rows are theirs to write
        entries = {clip: entry for clip, entry in entries.items() if clip in part}
    before = dict(entries)
    entries.update(
        {clip: Entry(clip, "broken", why) for clip, why in media.unusable.items() if part is None or clip in part}
    )
    try:
        try:
            bar = tqdm(
                _run(todo, store.root, sampling, workers), total=len(todo), desc="prepare", unit="clip", disable=None
            )
            written = time.monotonic()
            for entry in bar:
                entries[entry.id] = entry
                if time.monotonic() - written > PAUSE:
                    write_manifest(path, list(entries.values()))
                    written = time.monotonic()
        finally:
            # if no clip is new, a read-only store is enough
            if part is None:
                store.clear()
            if entries != before or damaged or not path.is_file() or (part is None and store.parts.is_dir()):
                write_manifest(path, list(entries.values()))
                if part is None:
                    write_problems(store.root / "problems.csv", list(entries.values()))
                    shutil.rmtree(store.parts, ignore_errors=True)
    except OSError as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            store.root, error, "a folder with room to write", "Free some space and run it again."
        ) from error
    counts = dict(sorted(Counter(entry.status for entry in entries.values()).items()))
    _tell(media, store, counts, len(kept), prefer, part)
    return counts


def _tell(
    media: Media, store: ClipStore, counts: dict[str, int], kept: int, prefer: str | None, part: Part | None
) -> None:
    """Print what came of the files: of clips, of others with the same name, of links, of files of other kinds."""
    if part:
        print(
            f"{store.root}, part {part}: {counts}, {kept} kept from before; once all parts are done, the same command "
            "without --shard merges them"
        )
        return
    print(f"{store.root}: {counts}, {kept} kept from before, problems in {store.root / 'problems.csv'}")
    if media.passed_over:
        print(
            f"{len(media.passed_over)} ids of several files each, of which the {prefer} one counts: "
            + ", ".join(
                f"{clip} (not {', '.join(map(str, paths))})" for clip, paths in list(media.passed_over.items())[:5]
            )
            + (" ..." if len(media.passed_over) > 5 else "")
        )
    if media.links:
        print(f"{len(media.links)} links that lead nowhere, or folders that cannot be opened:")
        for path, why in media.links[:SHOWN]:
            print(f"  {plain(str(path))}: {plain(why)}")
        if len(media.links) > SHOWN:
            print(f"  and {len(media.links) - SHOWN} more; those with a video's name are in problems.csv")
    if media.others:
        print(
            "files of other kinds, left alone: "
            + ", ".join(f"{count} {ending}" for ending, count in media.others.most_common())
        )
