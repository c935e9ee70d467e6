"""No damage to a prepared store passes `data verify --deep`, and none ends a run with anything but a typed error."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from store_damage import KINDS, try_store

from avprompt.media.decode import Clip, Sampling
from avprompt.media.pictures import Pictures
from avprompt.media.store import ClipStore, Entry, write_manifest


@pytest.fixture(scope="module", params=["raw", "jpeg", "webp"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four small clips."""
    rng, store = np.random.default_rng(0), ClipStore(tmp_path_factory.mktemp("damage") / "store")
    sampling = Sampling(segments=4, size=8, sample_rate=200)
    store.create(sampling, pictures=Pictures(request.param))
    entries = []
    for name in ("-a", "b", "c c", "d" * 251):
        clip = Clip(
            rng.integers(0, 256, (4, 8, 8, 3), np.uint8),
            rng.uniform(-1, 1, (4, 200)).astype(np.float32),
            np.array([True, True, True, False]),
            3.0,
        )
        entries.append(Entry(name, "short", "3 s of 4 s", 3.0, 3, f"{name}.mp4 (9 bytes)", store.write(name, clip)))
    write_manifest(store.manifest_path, entries)
    return store.root


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_noticed_and_named(whole: Path, tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    assert [line for _ in range(8) for line in try_store(whole, tmp_path / "store", rng, kind)] == []
