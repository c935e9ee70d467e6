"""What a store of JPEG or WebP frames costs and gives: room, quality and decoding, beside raw frames in the same run.

    python benchmarks/frame_storage.py [VIDEO ...] [--size 224] [--synthetic 8] [--rounds 5]

Each video is decoded as `avprompt data prepare` does. Without videos, clips of the synthetic dataset of AVE are made. For each
form: kilobytes of frames a clip and their ratio to raw ones; the peak signal-to-noise ratio against raw frames; clips a
second of processor time that one core encodes, reads from a store, and decodes with torchvision and with Pillow (the
best of the rounds, which alternate between the forms). The files read are in the system's cache.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from avprompt.media.decode import Clip, Sampling, decode_clip
from avprompt.media.pictures import Pictures
from avprompt.media.readers import StoreReader
from avprompt.media.store import ClipStore, Entry, write_manifest

FORMS = [Pictures(), *(Pictures("jpeg", q) for q in (75, 90, 95)), *(Pictures("webp", q) for q in (75, 90))]


def with_pillow(pictures: Pictures, held: np.ndarray, segments: int) -> np.ndarray:
    """Frames (T, 3, H, W) as Pillow decodes them."""
    frames = [np.asarray(Image.open(io.BytesIO(picture))) for picture in pictures.split(held, segments)]
    return np.ascontiguousarray(np.stack(frames).transpose(0, 3, 1, 2))


def seconds(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measure(clips: list[Clip], size: int, rounds: int) -> None:
    """Print a row for each form."""
    segments, count = len(clips[0].frames), len(clips)
    sampling = Sampling(segments=segments, size=size, sample_rate=16000)
    readers, held, best = [], [], [dict.fromkeys(("encode", "read", "torchvision", "pillow"), np.inf) for _ in FORMS]
    with tempfile.TemporaryDirectory() as place:
        for number, pictures in enumerate(FORMS):
            store = ClipStore(Path(place) / str(number))
            store.create(sampling, pictures=pictures)
            names = [f"{clip:04d}" for clip in range(count)]
            entries = [Entry(name, "ok", digest=store.write(name, clip)) for name, clip in zip(names, clips)]
            write_manifest(store.manifest_path, entries)
            readers.append(StoreReader(store.root, sampling))
            held.append([pictures.encode(clip.frames) for clip in clips])
        for _ in range(rounds):
            for pictures, reader, arrays, found in zip(FORMS, readers, held, best):
                ways: dict[str, Callable[[], object]] = {
                    "encode": lambda: [pictures.encode(clip.frames) for clip in clips],  # noqa: B023
                    "read": lambda: [reader.read(name) for name in names],  # noqa: B023
                }
                if pictures.format != "raw":
                    ways["torchvision"] = lambda: [pictures.decode(a, (segments, 3, size, size)) for a in arrays]  # noqa: B023
                    ways["pillow"] = lambda: [with_pillow(pictures, a, segments) for a in arrays]  # noqa: B023
                for name, work in ways.items():
                    found[name] = min(found[name], seconds(work))
        raw = sum(array.nbytes for array in held[0])
        print(
            "| frames | kB a clip | of raw | PSNR, dB | encode | read | decode: torchvision | Pillow |\n"
            + "|---" * 8
            + "|"
        )
        for pictures, reader, arrays, found in zip(FORMS, readers, held, best):
            room = sum(array.nbytes for array in arrays)
            shown = [reader.read(name)[0].permute(0, 2, 3, 1).numpy().astype(np.float64) for name in names]
            wrong = np.mean([np.square(ours - clip.frames).mean() for ours, clip in zip(shown, clips)])
            if pictures.format != "raw":
                same = [with_pillow(pictures, a, segments) for a in arrays]
                assert all(np.array_equal(a.transpose(0, 2, 3, 1), b) for a, b in zip(same, shown)), "they differ"
            rates = [f"{count / found[name]:,.0f}" if np.isfinite(found[name]) else "" for name in found]
            print(
                f"| {pictures.format} {pictures.quality or ''} | {room / count / 1e3:,.0f} | {room / raw:.3f} | "
                f"{10 * np.log10(255**2 / wrong) if wrong else np.inf:.1f} | {' | '.join(rates)} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--synthetic", type=int, default=8, help="clips that are made where no video is given")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sampling = Sampling(size=given.size, sample_rate=16000)
    with tempfile.TemporaryDirectory() as place:
        if not given.videos:
            from avprompt.synthetic import SYNTHETIC_DATASETS

            SYNTHETIC_DATASETS["ave"](Path(place), videos=max(40, given.synthetic), seed=0, workers=1)
            given.videos = sorted((Path(place) / "videos").glob("*.mp4"))[: given.synthetic]
        clips = [decode_clip(path, sampling) for path in given.videos]
    print(f"{len(clips)} clips of {sampling.segments} frames, {given.size} x {given.size}; clips a second of one core")
    measure(clips, given.size, given.rounds)


if __name__ == "__main__":
    main()
