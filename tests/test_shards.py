"""Stores whose clips lie in tar files: read in any order as those of files, from a disk or an address."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avprompt.data_modules.base import ClipDataset, collate
from avprompt.errors import ClipDecodeError, DatasetError
from avprompt.media import prepare as preparing
from avprompt.media import shards as sharding
from avprompt.media.decode import Clip, Sampling
from avprompt.media.pictures import Pictures
from avprompt.media.readers import StoreReader, open_reader
from avprompt.media.samplers import ErrorsAsValues, ResumableLoader
from avprompt.media.shards import key_of
from avprompt.media.store import ClipStore, Entry, digest_of, read_manifest, write_manifest

IDS = ("a", "-b", "c c", "d.e", "圆盘", "f" * 251, "g")
SAMPLING = Sampling(segments=3, size=8, sample_rate=50)


def write_store(root: Path, form: str, ids: tuple[str, ...] = IDS, seed: int = 0) -> Path:
    rng, store = np.random.default_rng(seed), ClipStore(root)
    store.create(SAMPLING, pictures=Pictures(form))
    entries = read_manifest(store.manifest_path) if store.manifest_path.is_file() else {}
    for name in ids:
        clip = Clip(
            rng.integers(0, 256, (3, 8, 8, 3), np.uint8),
            rng.uniform(-1, 1, (3, 50)).astype(np.float32),
            np.array([True, True, len(name) > 1]),
            3.0,
        )
        entries[name] = Entry(name, "ok", "", 3.0, 3, f"{name}.mp4", store.write(name, clip))
    write_manifest(store.manifest_path, list(entries.values()))
    return root


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of files, and one of the same clips in shards of three."""
    base = tmp_path_factory.mktemp("shards")
    write_store(base / "files", request.param)
    shutil.copytree(base / "files", base / "shards")
    preparing._pack(ClipStore(base / "shards"), 3)
    return base / "files", base / "shards"


def test_clips_are_the_same(stores: tuple[Path, Path]) -> None:
    files, packed = (StoreReader(store, SAMPLING) for store in stores)
    assert sorted(path.name for path in stores[1].glob("shards/*")) == ["000000.tar", "000001.tar", "000002.tar"]
    assert not list((stores[1] / "clips").iterdir()) and packed.ids() == files.ids() == set(IDS)
    assert packed.store.ids() == set(IDS)
    for clip in IDS:
        for ours, theirs in zip(packed.read(clip), files.read(clip)):
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype and ours.is_contiguous()
        assert torch.equal(packed.valid(clip), files.valid(clip))
        assert all(torch.equal(packed.frame(clip, place), files.frame(clip, place)) for place in range(3))
        assert packed.problem(clip) is packed.inspect(clip) is packed.digest_problem(clip) is None
        assert packed.identity(clip) == files.identity(clip)
    assert packed.problem("x").startswith("missing")


def test_other_programs_read_them(stores: tuple[Path, Path]) -> None:
    """They are WebDataset's files: one sample a clip, with its three arrays."""
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(map(str, stores[1].glob("shards/*.tar")))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    store, keys = ClipStore(stores[0]), {key_of(clip, digest_of(clip.encode())): clip for clip in IDS}
    assert {sample["__key__"] for sample in samples} == set(keys)
    for sample in samples:
        _, audio, valid = store.read(keys[sample["__key__"]])
        assert np.array_equal(sample["audio.npy"], audio) and np.array_equal(sample["valid.npy"], valid)
        assert sample["frames.npy"].dtype == np.uint8


def batches(reader: StoreReader, start: int = 0, workers: int = 0, **options: int) -> list[dict]:
    dataset = ClipDataset([SimpleNamespace(id=clip) for clip in IDS], reader, lambda item, rng: {}, training=True)
    loader = ResumableLoader(
        ErrorsAsValues(dataset), 2, shuffle=True, num_workers=workers, collate_fn=collate, **options
    )
    if start:
        loader.load_state_dict({**loader.state_dict(), "consumed": start})
    return list(loader)


def same(ours: list[dict], theirs: list[dict]) -> bool:
    return len(ours) == len(theirs) and all(
        a["id"] == b["id"] and all(torch.equal(a[key], b[key]) for key in ("frames", "audio", "valid"))
        for a, b in zip(ours, theirs)
    )


def test_order_and_resuming_are_those_of_files(stores: tuple[Path, Path]) -> None:
    files, packed = (StoreReader(store, SAMPLING) for store in stores)
    whole = batches(files)
    assert len(whole) == 4 and same(batches(packed), whole) and same(batches(packed, workers=2), whole)
    assert same(batches(packed, start=2), whole[2:])
    for rank in (0, 1):
        two = [batches(reader, rank=rank, world=2, training=False) for reader in (packed, files)]
        assert same(*two)
    seen = [
        clip for rank in (0, 1) for batch in batches(packed, rank=rank, world=2, training=False) for clip in batch["id"]
    ]
    assert sorted(seen) == sorted(IDS)


def test_an_address(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """The tar files lie elsewhere; the folder of the store has the manifest and the places alone."""
    import fsspec

    root, memory = tmp_path / "data", fsspec.filesystem("memory")
    shutil.copytree(stores[1], root / "store", ignore=shutil.ignore_patterns("shards"))
    memory.put(f"{stores[1]}/shards/", "/bucket/clips/", recursive=True)
    whole = batches(StoreReader(stores[0], SAMPLING))
    for address in ("memory://bucket/clips", f"simplecache::file://{stores[1]}/shards", str(stores[1] / "shards/")):
        reader = open_reader("store", root, SAMPLING, None, address)
        assert same(batches(reader), whole)
        assert torch.equal(reader.frame("a", 2), StoreReader(stores[0], None).frame("a", 2))
    reader = open_reader("store", root, SAMPLING, None, "nosuchprotocol://x")
    with pytest.raises(DatasetError, match="nosuchprotocol://x/000000.tar.*Check the address"):
        reader.read("a")
    reader = open_reader("store", root, SAMPLING, None)
    with pytest.raises(ClipDecodeError, match="000000.tar, a: .*the tar file"):
        reader.read("a")
    assert reader.inspect("a").startswith("broken")


def test_damage_is_named(stores: tuple[Path, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(stores[1], store)
    place = ClipStore(store).places["g"]
    path = store / "shards" / place.shard
    whole = path.read_bytes()
    for position, value in ((place.start + 20, b"x"), (place.start + 512 + 4, b"x"), (place.start + 700, b"\xfe\xfd")):
        path.write_bytes(whole[:position] + value + whole[position + len(value) :])
        reader = StoreReader(store, SAMPLING)
        assert "g" in (reader.inspect("g") or reader.digest_problem("g"))
        assert reader.digest_problem("a") is None
    path.write_bytes(whole[: place.start + 600])
    with pytest.raises(ClipDecodeError, match=f"{place.shard}, g: .*ends before"):
        StoreReader(store, SAMPLING).read("g")
    table = store / "shards.csv"
    table.write_text(table.read_text().replace(",000000.tar,0,", ",000000.tar,1,"))
    with pytest.raises(DatasetError, match="shards.csv, line .*not as it was written"):
        StoreReader(store, SAMPLING).read("g")


def test_packing_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at any write, it is repeated; at no moment a clip is lost."""
    files, store = write_store(tmp_path / "files", "raw"), write_store(tmp_path / "store", "raw")
    expected = [StoreReader(files, None).read(clip) for clip in IDS]

    def whole() -> bool:
        reader = StoreReader(store, None)
        return all(torch.equal(a, b) for clip, clips in zip(IDS, expected) for a, b in zip(reader.read(clip), clips))

    class Stop(BaseException):
        """As a signal that ends the process."""

    for stop in range(12):
        countdown = iter(range(stop))
        with monkeypatch.context() as patch:
            for module, name in ((sharding, "write_whole"), (sharding, "sync_folder"), (os, "replace")):

                def counted(
                    *arguments: object, real: object = getattr(module, name), left: Iterator[int] = countdown
                ) -> object:
                    if next(left, None) is None:
                        raise Stop
                    return real(*arguments)

                patch.setattr(module, name, counted)
            if stop % 2:  # before the clips' own files are removed
                patch.setattr(ClipStore, "remove", lambda self, clip: None)
            with contextlib.suppress(Stop):
                ClipStore(store).pack(read_manifest(store / "manifest.csv"), 3)
        assert whole()
    preparing._pack(ClipStore(store), 3)
    assert whole() and not list((store / "clips").iterdir())

    def full(*_: object) -> Iterator[None]:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_store(store, "raw", ("new",))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DatasetError, match="No space left.*room for a further shard"):
            preparing._pack(ClipStore(store), 3)
    assert whole() and not list(store.glob("shards/.*"))


def test_a_clip_that_was_prepared_again(tmp_path: Path) -> None:
    """Files are newer than shards; the next packing moves them, and other ids stay as they are."""
    store = write_store(tmp_path / "store", "raw")
    preparing._pack(ClipStore(store), 100)
    old = StoreReader(store, None).read("a")[0]
    write_store(store, "raw", ("a", "new"), seed=1)
    new = StoreReader(store, None).read("a")[0]
    assert not torch.equal(old, new)
    assert ClipStore(store).pack(read_manifest(store / "manifest.csv"), 100) == 2
    reader = StoreReader(store, None)
    assert torch.equal(reader.read("a")[0], new) and reader.store.places["a"].shard == "000001.tar"
    assert all(reader.digest_problem(clip) is None for clip in (*IDS, "new"))
    reader.store.rename({"a": "renamed"})
    assert torch.equal(StoreReader(store, None).read("renamed")[0], new)
    (store / "clips" / "loose").mkdir()
    ClipStore(store).create(SAMPLING, overwrite=True)
    assert sorted(path.name for path in store.iterdir()) == ["store.json"]
