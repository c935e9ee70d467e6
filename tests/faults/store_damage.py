"""Damage at random places of a prepared store, for the tests here and for long runs by hand."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avprompt.errors import AVPromptError
from avprompt.media.readers import StoreReader

KINDS = (
    "bit",
    "zeros",
    "noise",
    "cut",
    "longer",
    "empty",
    "gone",
    "swapped",
    "nan",
    "loud",
    "flag",
    "shape",
    "pickle",
    "row",
    "settings",
)


@dataclass(frozen=True)
class Damage:
    """What was done to a store.

    Args:
        kind: one of `KINDS`.
        path: the file, or folder.
        clips: ids of the clips that it concerns; empty where it concerns the whole store.
    """

    kind: str
    path: Path
    clips: tuple[str, ...]


def damage_store(store: Path, rng: random.Random, kind: str | None = None) -> Damage:
    """Do one kind of damage at a random place of a store; always one that changes something."""
    store, kind = Path(store), kind or rng.choice(KINDS)
    clips = sorted(path.name for path in (store / "clips").iterdir() if not path.name.startswith("."))
    clip = rng.choice(clips)
    folder = store / "clips" / clip
    path = folder / f"{rng.choice(('frames', 'audio', 'valid'))}.npy"
    if kind == "swapped":
        other = rng.choice([name for name in clips if name != clip])
        aside = store / "aside"
        for source, target in ((folder, aside), (store / "clips" / other, folder), (aside, store / "clips" / other)):
            source.rename(target)
        return Damage(kind, folder, (clip, other))
    if kind in ("row", "settings"):
        path = store / ("manifest.csv" if kind == "row" else "store.json")
        content = bytearray(path.read_bytes())
        place = (
            rng.randrange(content.index(b"\n") + 1, len(content)) if kind == "row" else content.index(b"sampling") + 3
        )
        content[place] ^= 1 << rng.randrange(7)
        path.write_bytes(bytes(content))
        return Damage(kind, path, ())
    if kind in ("nan", "loud"):
        path = folder / "audio.npy"
        audio = np.load(path, allow_pickle=False).astype(np.float32)
        audio[rng.randrange(len(audio)), rng.randrange(audio.shape[1])] = np.nan if kind == "nan" else 1e6
        np.save(path, audio)
    elif kind == "flag":
        path = folder / "valid.npy"
        flags = np.load(path, allow_pickle=False)
        flags[rng.randrange(len(flags))] ^= True
        np.save(path, flags)
    elif kind == "shape":
        np.save(path, np.load(path, allow_pickle=False)[:-1])
    elif kind == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "gone":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        content = path.read_bytes()
        place = rng.randrange(len(content))
        end = min(len(content), place + rng.randrange(1, 4096))
        path.write_bytes(
            {
                "bit": lambda: content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :],
                "zeros": lambda: content[:place] + bytes(end - place) + content[end:],
                "noise": lambda: content[:place] + rng.randbytes(end - place) + content[end:],
                "cut": lambda: content[:place],
                "longer": lambda: content + rng.randbytes(end - place),
            }[kind]()
        )
        if path.read_bytes() == content:  # zeros over zeros
            return damage_store(store, rng, kind)
    return Damage(kind, path, (clip,))


def unnoticed(store: Path, damage: Damage) -> list[str]:
    """What a run and `data verify --deep` should have said about a damaged store and did not; empty is right.

    The clip must be named by the deep check. Reading may pass over what only a digest can tell, and must not fail with
    anything but a typed error.
    """
    try:
        reader = StoreReader(store, None)
    except AVPromptError as error:
        return [] if str(damage.path) in str(error) else [f"{damage}: {error} names another file"]
    missed = []
    for clip in damage.clips:
        problem = reader.inspect(clip) or reader.digest_problem(clip)
        if problem is None or clip not in f"{clip} {problem}":
            missed.append(f"{damage}: {clip} passes --deep")
        try:
            _frames, audio, _valid = reader.read(clip)
        except AVPromptError as error:
            if clip not in str(error):
                missed.append(f"{damage}: {error} does not name {clip}")
        else:
            if not bool(audio.isfinite().all()) or float(audio.abs().max()) > 1:
                missed.append(f"{damage}: {clip} is read with impossible sound")
    return missed if damage.clips else [f"{damage} passes"]


def try_store(whole: Path, scratch: Path, rng: random.Random, kind: str | None = None) -> list[str]:
    """Copy a whole store to `scratch`, damage it once, and say what goes unnoticed."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(whole, scratch)
    return unnoticed(scratch, damage_store(scratch, rng, kind))
