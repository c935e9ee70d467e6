"""A store of many small clips, in files of their own and in shards: how long until the first batch, memory, open files.

    python benchmarks/shards.py [--clips 20000] [--shards 1000] [--workers 2] [--rounds 3] [--batches 200]

Two stores of the same noise are made: T = 2 frames of 64 x 64 and two seconds of sound at 2 kHz a clip. Then processes
of their own, the ways alternating, open a store as a data module does, ask for every clip whether it is there, and read
shuffled batches of eight. `address` reads the shards through an address of fsspec that keeps no copies. Printed are
medians: seconds until the store is open and until the first batch has come (from the moment when the program is imported), clips a second
of wall time over the batches after the first, memory (RSS) of the main process, what each worker has for itself, and the most files that a process
had open. The files read are in the system's cache.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from avprompt.data_modules.base import ClipDataset, collate
from avprompt.media.decode import Clip, Sampling
from avprompt.media.readers import open_reader
from avprompt.media.samplers import ErrorsAsValues, ResumableLoader
from avprompt.media.store import ClipStore, Entry, read_manifest, write_manifest

SAMPLING = Sampling(segments=2, size=64, sample_rate=2000)


def no_labels(item: SimpleNamespace, rng: np.random.Generator) -> dict[str, object]:
    """Nothing is added to a sample."""
    return {}


def write_stores(base: Path, clips: int, count: int) -> None:
    """The stores base/files/store and base/shards/store, the latter with `count` clips a tar file."""
    os.fsync = lambda handle: None  # nothing here has to outlive a power cut
    frames = np.random.default_rng(0).integers(256, size=(64, 64, 64, 3), dtype=np.uint8)
    audio, valid = np.random.default_rng(1).uniform(-1, 1, (2, SAMPLING.samples)).astype(np.float32), np.ones(2, bool)
    store, entries, begun = ClipStore(base / "files" / "store"), {}, time.perf_counter()
    store.create(SAMPLING)
    for number in range(clips):
        clip = Clip(frames[[number % 64, number // 64 % 64]], audio, valid, 2.0)
        name = f"clip_{number:06d}"
        entries[name] = Entry(name, "ok", "", 2.0, 2, f"{name}.mp4 (1 bytes)", store.write(name, clip))
    write_manifest(store.manifest_path, list(entries.values()))
    print(f"written in {time.perf_counter() - begun:.0f} s", flush=True)
    shutil.copytree(store.root, base / "shards" / "store", copy_function=os.link)
    packed, begun = ClipStore(base / "shards" / "store"), time.perf_counter()
    packed.pack(read_manifest(packed.manifest_path), count)
    print(f"packed in {time.perf_counter() - begun:.0f} s", flush=True)
    for root in (store.root, packed.root):
        there = [path for path in root.rglob("*") if path.is_file()]
        print(f"{root}: {len(there):,} files, {sum(path.stat().st_size for path in there) / 1e6:,.0f} MB", flush=True)


def status(process: int, file: str, name: str) -> float:
    """MB of a line of a process's status."""
    line = next(line for line in Path(f"/proc/{process}/{file}").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1e3


def read(base: Path, way: str, workers: int, batches: int) -> dict[str, float]:
    """What one process measures; see above."""
    torch.set_num_threads(1)
    root, address = base / ("files" if way == "files" else "shards"), None
    if way == "address":
        address = f"file://{root / 'store' / 'shards'}"
    begun = time.perf_counter()
    reader = open_reader("store", root, SAMPLING, None, address)
    ids = sorted(reader.entries)
    assert all(reader.problem(clip) is None for clip in ids)
    opened = time.perf_counter() - begun
    dataset = ClipDataset([SimpleNamespace(id=clip) for clip in ids], reader, no_labels, training=True)
    loader = ResumableLoader(ErrorsAsValues(dataset), 8, shuffle=True, num_workers=workers, collate_fn=collate)
    turn = iter(loader)
    next(turn)
    found = {"open": opened, "first": time.perf_counter() - begun, "own": 0.0, "files": 0.0}
    begun, seen = time.perf_counter(), 0
    for number, _ in enumerate(turn):
        seen += 8
        if number % 50 == 0:
            children = [child.pid for child in multiprocessing.active_children()]
            found["files"] = max(found["files"], *(len(os.listdir(f"/proc/{p}/fd")) for p in (os.getpid(), *children)))
            own = [status(child, "smaps_rollup", "Private_Dirty") for child in children]
            found["own"] = max([found["own"], *own])
        if number == batches:
            break
    return {**found, "rate": seen / (time.perf_counter() - begun), "rss": status(os.getpid(), "status", "VmRSS")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--read", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        print(json.dumps(read(Path(given.read[1]), given.read[0], given.workers, given.batches)))
        return
    found: dict[str, list[dict[str, float]]] = {"files": [], "shards": [], "address": []}
    with tempfile.TemporaryDirectory() as place:
        write_stores(Path(place), given.clips, given.shards)
        for _ in range(given.rounds):
            for way, runs in found.items():
                command = [sys.executable, __file__, "--read", way, place]
                command += ["--workers", str(given.workers), "--batches", str(given.batches)]
                runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print("| | open, s | first batch, s | clips/s | RSS, MB | a worker's own, MB | open files |\n" + "|---" * 7 + "|")
    for way, runs in found.items():
        row = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        print(
            f"| {way} | {row['open']:.2f} | {row['first']:.2f} | {row['rate']:,.0f} | {row['rss']:,.0f} | "
            f"{row['own']:,.0f} | {row['files']:.0f} |"
        )


if __name__ == "__main__":
    main()
