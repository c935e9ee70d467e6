"""Compare uint8 frames with frames that the workers normalise to float32: clips a second, and bytes in a batch.

    python benchmarks/loader.py [--size 64 --sample_rate 16000] [--clips 64] [--batch 8] [--workers 2] [--rounds 5]
    python benchmarks/loader.py --workers 4 --step 0.1    # does the loader keep up with steps of 0.1 s?
    python benchmarks/loader.py --starts --clips 8        # what a worker costs before its first clip

Both loaders read the same store of random noise. The second one divides by 255 and normalises in the workers; the suite
itself normalises on the device. First, clips a second of processor time of one process, which other programs on the
machine do not change: reading alone, and with stacking into batches. After one warm-up epoch of each, epochs of the two
alternate, and the medians of clips a second are printed. With `--normalise`, uint8 batches are normalised in the main
process, as an encoder on the CPU does. With `--step`, how long a consumer waits, and the memory that each worker has
for itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from avprompt.data_modules.base import ClipDataset, collate, no_labels
from avprompt.media.decode import Clip, Sampling
from avprompt.media.readers import StoreReader
from avprompt.media.samplers import ErrorsAsValues, ResumableLoader
from avprompt.media.store import ClipStore, Entry, write_manifest

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


class Normalised(Dataset):
    """Samples with float32 frames, which the workers normalise.

    Args:
        dataset: with uint8 frames.
    """

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        return {**sample, "frames": (sample["frames"].float().div_(255) - MEAN) / STD}


class Clock(Dataset):
    """Seconds of processor time that a worker has used when it is asked for a sample, and its memory in MB.

    Args:
        dataset: that it has with it.
    """

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[float, float]:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return time.process_time(), sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1e3


def write_store(root: Path, sampling: Sampling, clips: int) -> list[SimpleNamespace]:
    """A store of random noise, and an item for each clip."""
    rng, store, entries = np.random.default_rng(0), ClipStore(root), {}
    store.create(sampling)
    for number in range(clips):
        clip = f"{number:06d}"
        store.write(
            clip,
            Clip(
                rng.integers(256, size=(sampling.segments, sampling.size, sampling.size, 3), dtype=np.uint8),
                rng.uniform(-1, 1, (sampling.segments, sampling.samples)).astype(np.float32),
                np.ones(sampling.segments, bool),
                sampling.duration,
            ),
        )
        entries[clip] = Entry(clip, "ok", "", sampling.duration, sampling.segments, "noise")
    write_manifest(store.manifest_path, list(entries.values()))
    return [SimpleNamespace(id=clip) for clip in entries]


def by_processor(dataset: ClipDataset, batch: int) -> dict[str, float]:
    """Clips a second of processor time: read, and read and stacked; the best of three passes."""

    def rate(work: Callable[[list[int]], object]) -> float:
        found = []
        for _ in range(3):
            begun = time.process_time()
            for first in range(0, len(dataset) - batch + 1, batch):
                work(list(range(first, first + batch)))
            found.append((len(dataset) // batch * batch) / (time.process_time() - begun))
        return max(found)

    return {
        "read": rate(lambda places: [dataset[place] for place in places]),
        "read and stacked": rate(lambda places: collate([dataset[place] for place in places])),
    }


def waiting(loader: ResumableLoader, seconds: float) -> float:
    """Share of the time in which a consumer that takes `seconds` a batch waits for the loader, its start left aside."""
    batches, waited, begun = iter(loader), 0.0, None
    next(batches)
    begun = time.perf_counter()
    while True:
        time.sleep(seconds)
        asked = time.perf_counter()
        if next(batches, None) is None:
            return waited / (asked - begun)
        waited += time.perf_counter() - asked


def own_memory() -> list[float]:
    """MB that each worker process has for itself, where the system says so."""
    found = []
    for child in multiprocessing.active_children():
        path = Path(f"/proc/{child.pid}/smaps_rollup")
        lines = path.read_text().splitlines() if path.exists() else []
        found += [int(line.split()[1]) / 1e3 for line in lines if line.startswith(("Private_Dirty",))]
    return found


def epoch(loader: ResumableLoader, normalise: bool) -> float:
    """Clips a second of one pass."""
    begun, count = time.perf_counter(), 0
    for batch in loader:
        count += len(batch["id"])
        if normalise and batch["frames"].dtype == torch.uint8:
            (batch["frames"] / 255 - MEAN) / STD
    return count / (time.perf_counter() - begun)


def main() -> None:
    """Print the bytes in a batch, the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--sample_rate", type=int, default=32000)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--normalise", action="store_true")
    parser.add_argument("--step", type=float, help="seconds that a consumer takes for a batch")
    parser.add_argument("--starts", action="store_true", help="what a worker costs that is forked, or spawned")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sampling = Sampling(size=given.size, sample_rate=given.sample_rate)
    with tempfile.TemporaryDirectory() as folder:
        items = write_store(Path(folder), sampling, given.clips)
        dataset = ClipDataset(items, StoreReader(Path(folder), sampling), no_labels, training=True)
        for name, rate in by_processor(dataset, given.batch).items():
            print(f"{name:<17} {rate:8.1f} clips a second of processor time")
        loaders = {
            name: ResumableLoader(
                ErrorsAsValues(data), given.batch, shuffle=True, num_workers=given.workers, collate_fn=collate
            )
            for name, data in (("uint8", dataset), ("float32", Normalised(dataset)))
        }
        if given.starts:
            for way in ("fork", "spawn"):
                loader = DataLoader(Clock(dataset), batch_size=None, num_workers=1, multiprocessing_context=way)
                used, memory = next(iter(loader))
                print(f"{way}: {used:.2f} s of processor time until a worker reads, {memory:.0f} MB of its own")
            return
        if given.step is not None:
            share, memory = waiting(loaders["uint8"], given.step), []
            for _, _ in zip(loaders["uint8"], range(2)):
                memory = own_memory() or memory
            print(
                f"a consumer of {given.step:g} s a batch waits {100 * share:.1f} % of the time; workers have "
                + ", ".join(f"{size:.0f}" for size in memory)
                + " MB of their own"
            )
            return
        batches = {name: next(iter(loader)) for name, loader in loaders.items()}
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for turn in range(given.rounds + 1):
            for name, loader in loaders.items():
                rate = epoch(loader, given.normalise)
                rates[name] += [rate] if turn else []
    print(
        f"{given.clips} clips of {given.size} x {given.size}, batch {given.batch}, {given.workers} workers, "
        f"{given.rounds} epochs each"
    )
    for name, found in rates.items():
        frames = batches[name]["frames"].nbytes
        whole = sum(value.nbytes for value in batches[name].values() if isinstance(value, torch.Tensor))
        print(
            f"{name:<8} {statistics.median(found):8.1f} clips/s  ({min(found):.1f} to {max(found):.1f})   "
            f"{frames / 1e6:7.2f} MB of frames, {whole / 1e6:7.2f} MB a batch"
        )
    print(f"ratio    {statistics.median(rates['uint8']) / statistics.median(rates['float32']):8.2f}")


if __name__ == "__main__":
    main()
