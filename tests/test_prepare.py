"""Preparation in parts, on a cluster, and with encoded frames."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import RATE, write_video
from PIL import Image
from test_sweep import cluster  # noqa: F401

from avprompt.errors import ArgumentError, ClipDecodeError, ConfigError, DatasetError
from avprompt.files import locked
from avprompt.media import prepare as preparing
from avprompt.media.decode import Clip, Sampling
from avprompt.media.pictures import Pictures
from avprompt.media.prepare import Part, PrepareJob, prepare
from avprompt.media.readers import StoreReader
from avprompt.media.store import ClipStore, Entry, read_manifest, write_manifest

SETTINGS = {"segments": 2, "size": 16, "sample_rate": RATE}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven files, of which one is broken and one link leads nowhere."""
    folder = tmp_path_factory.mktemp("videos")
    for name in "abcdef":
        write_video(folder / f"{name}.mp4", seconds=2)
    (folder / "f.mp4").write_bytes(b"no video")
    (folder / "gone.mp4").symlink_to(folder / "unplugged.mp4")
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Clips are decoded in this process; the ids of those that were."""
    decoded = []

    def run(media: dict, store: Path, sampling: Sampling, workers: int) -> Iterator[Entry]:
        for clip, files in media.items():
            decoded.append(clip)
            yield preparing.prepare_clip(clip, *files, store, sampling)

    monkeypatch.setattr(preparing, "_run", run)
    return decoded


def content(store: Path) -> dict[str, bytes]:
    """What a store holds, without locks."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


def test_parts_make_the_same_store(
    videos: Path, here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, store = tmp_path / "whole", tmp_path / "store"
    counts = prepare(videos, whole, **SETTINGS)
    assert counts == {"broken": 2, "ok": 5}
    parts = {shard: [clip for clip in "abcdef" if clip in Part.read(shard)] for shard in ("1/2", "2/2")}
    assert sorted(sum(parts.values(), [])) == list("abcdef") and all(len(part) > 1 for part in parts.values())

    monkeypatch.setattr(preparing, "PAUSE", -1)  # rows are written after every clip

    def killed(*arguments: object) -> Iterator[Entry]:
        yield next(clips(*arguments))
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        clips = preparing._run
        patch.setattr(preparing, "_run", killed)
        with pytest.raises(SystemExit):
            prepare(videos, store, shard="1/2", **SETTINGS)
    assert not (store / "manifest.csv").exists()
    here.clear()
    one = prepare(videos, store, shard="1/2", **SETTINGS)
    assert sorted(here) == parts["1/2"][1:]  # what was done before is kept
    two = prepare(videos, store, shard="2/2", **SETTINGS)
    assert {status: one.get(status, 0) + two.get(status, 0) for status in counts} == counts
    assert "the same command without --shard merges them" in capsys.readouterr().out
    here.clear()
    assert prepare(videos, store, **SETTINGS) == counts and here == ["f"]  # a broken one is always tried again
    assert content(store) == content(whole)


def test_merging_does_what_parts_left_undone(videos: Path, here: list[str], tmp_path: Path) -> None:
    """Other numbers of parts and damage in between change nothing."""
    whole, store = tmp_path / "whole", tmp_path / "store"
    prepare(videos, whole, **SETTINGS)
    for shard in ("1/2", "3/3"):
        prepare(videos, store, shard=shard, **SETTINGS)
    (path,) = store.glob("parts/1-of-2.csv")
    path.write_bytes(path.read_bytes()[:-5])
    here.clear()
    prepare(videos, store, **SETTINGS)
    assert content(store) == content(whole) and set(here) < set("abcdef")


def test_one_at_a_time(videos: Path, here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "PATIENCE", 0.1)
    store = tmp_path / "store"
    ClipStore(store).create(Sampling(**SETTINGS))
    with locked(store / ".lock", shared=True), locked(store / "parts" / ".1-of-2.lock"):  # the part 1/2, elsewhere
        prepare(videos, store, shard="2/2", **SETTINGS)
        for shard in ("1/2", None):
            with pytest.raises(DatasetError, match="another process that prepares it"):
                prepare(videos, store, shard=shard, **SETTINGS)
    prepare(videos, store, **SETTINGS)
    assert len(read_manifest(store / "manifest.csv")) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "0/2"}, "shard: got 0/2; expected k/n"),
        ({"shard": "3/2"}, "shard: got 3/2"),
        ({"shard": "1"}, "shard: got 1;"),
        ({"shard": "1/2", "overwrite": True}, "overwrite: got true; expected false, with a shard"),
        ({"shard": "1/2", "slurm": True}, "slurm: got true; expected false, with a shard"),
        ({"frames": "gif"}, "frames: got gif"),
        ({"quality": 90}, "quality: got 90; expected none, for raw frames"),
        ({"frames": "jpeg", "quality": 101}, "quality: got 101"),
    ],
)
def test_arguments_that_exclude_each_other(videos: Path, options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        prepare(videos, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_jobs_of_a_cluster(
    videos: Path,
    here: list[str],
    cluster: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two parts as an array and the merging call after them; here they are run as the cluster would run them."""
    from submitit.core.utils import DelayedSubmission

    monkeypatch.setenv("SLURM_NEVER", "1")
    whole, store = tmp_path / "whole", tmp_path / "store"
    counts = prepare(videos, whole, **SETTINGS)
    made = prepare(videos, store, slurm={"partition": "cpu", "time": 90}, jobs=2, workers=3, **SETTINGS)
    assert made == {} and "queued as 7, and the one that merges them as 7" in capsys.readouterr().out
    array, merge = (cluster / "ledger.sbatch").read_text().split("#!/bin/bash\n")[1:]
    for line in ("partition=cpu", "time=90", "cpus-per-task=3", "job-name=prepare-store"):
        assert f"#SBATCH --{line}\n" in array and f"#SBATCH --{line}\n" in merge
    assert "--array=0-1%2\n" in array and "--dependency" not in array
    assert "--dependency=afterany:7\n" in merge and "--array" not in merge
    queued = [DelayedSubmission.load(path) for path in sorted((store / "slurm").glob("*submitted.pkl"))]
    shards = {submission.args[0]["shard"]: submission for submission in queued}
    assert set(shards) == {"1/2", "2/2", None}
    again = PrepareJob().checkpoint(shards["1/2"].args[0])  # what submitit asks for at the end of a job's time
    assert isinstance(again.function, PrepareJob) and again.args == shards["1/2"].args
    assert sum(sum(shards[shard].result().values()) for shard in ("1/2", "2/2")) == 7
    assert shards[None].result() == counts
    ours = {name: value for name, value in content(store).items() if not name.startswith("slurm")}
    assert ours == content(whole)


def test_no_cluster(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"the extra `slurm`"):
        prepare(videos, tmp_path / "store", slurm=True, **SETTINGS)


# --- encoded frames --------------------------------------------------------------------------------------------------


def clip_of(size: int, count: int = 3) -> Clip:
    """Smooth frames, which encode well."""
    y, x = np.mgrid[:size, :size]
    frames = np.stack([np.stack([x * k + y, 2 * y, 0 * x + 40 * k], -1) % 256 for k in range(1, count + 1)])
    return Clip(frames.astype(np.uint8), np.zeros((count, 8), np.float32), np.ones(count, bool), float(count))


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_encoded_frames(form: str, tmp_path: Path) -> None:
    clip, sampling = clip_of(40), Sampling(segments=3, size=40, sample_rate=8)
    sizes, errors = [], []
    for quality in (30, 95):
        store = ClipStore(tmp_path / f"{quality}")
        store.create(sampling, pictures=Pictures(form, quality))
        write_manifest(store.manifest_path, [Entry("a", "ok", digest=store.write("a", clip))])
        reader = StoreReader(store.root, sampling)
        frames, _, _ = reader.read("a")
        assert frames.dtype == torch.uint8 and frames.shape == (3, 3, 40, 40) and frames.is_contiguous()
        assert all(torch.equal(reader.frame("a", place), frames[place]) for place in range(3))
        assert reader.inspect("a") is None and reader.digest_problem("a") is None
        errors.append(np.abs(frames.permute(0, 2, 3, 1).numpy() - clip.frames.astype(float)).mean())
        sizes.append((store.root / "clips/a/frames.npy").stat().st_size)
        held = np.load(store.root / "clips/a/frames.npy", allow_pickle=False)
        pictures = store.pictures().split(held, 3)
        for picture, frame in zip(pictures, frames):  # whatever reads pictures reads these, as the same pixels
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), frame.permute(1, 2, 0).numpy())
    assert sizes[0] < sizes[1] and errors[0] > errors[1] and errors[1] < 6
    with pytest.raises(DatasetError, match="'quality': \\(95, 90\\)"):
        ClipStore(tmp_path / "95").create(sampling, pictures=Pictures(form))


def test_a_picture_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    sampling, store = Sampling(segments=1, size=8, sample_rate=8), ClipStore(tmp_path)
    store.create(sampling, pictures=Pictures("jpeg"))
    store.write("a", clip_of(8, 1))
    write_manifest(store.manifest_path, [Entry("a", "ok")])
    path = tmp_path / "clips/a/frames.npy"
    for size, message in ((16, "16 x 16 pixels, not 8 x 8"), (8, None)):
        held = Pictures("jpeg").encode(clip_of(size, 1).frames)
        if message is None:  # a header that claims gigabytes
            content = held.tobytes()
            place = content.index(b"\xff\xc0") + 5
            held = np.frombuffer(content[:place] + b"\xff\xdc\xff\xdc" + content[place + 4 :], np.uint8)
            message = "65500 x 65500|bomb"
        np.save(path, held)
        for read in (StoreReader(tmp_path, sampling).read, lambda clip: StoreReader(tmp_path, sampling).frame(clip, 0)):
            with pytest.raises(ClipDecodeError, match=f"clips/a/frames.npy: .*({message})"):
                read("a")
    np.save(path, np.zeros(3, np.uint8))
    assert "where 1 pictures should be" in StoreReader(tmp_path, sampling).inspect("a")
