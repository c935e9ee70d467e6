"""Files, folders and names as people have them: streams, links, hidden files, other downloaders, disks that refuse."""

from __future__ import annotations

import csv
import errno
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import FPS, HEIGHT, RATE, WIDTH, loudness, write_video, write_wave

from avprompt.cli import run
from avprompt.data_modules.base import VideoWindows
from avprompt.datasets import naming
from avprompt.datasets.verify import verify
from avprompt.errors import ArgumentError, ClipDecodeError, DatasetError
from avprompt.files import write_whole
from avprompt.media import prepare as preparing
from avprompt.media import store as storing
from avprompt.media.decode import Sampling, decode_audio, decode_clip, decode_frames, duration, resize
from avprompt.media.files import listed, natural, walk
from avprompt.media.prepare import find_media, prepare
from avprompt.media.store import ClipStore, Entry, read_manifest, write_manifest

SAMPLING = Sampling(segments=10, size=32, sample_rate=RATE)


def stream(container: av.container.OutputContainer, tone: float, default: bool) -> av.AudioStream:
    added = container.add_stream("aac", rate=RATE, layout="mono")
    added.disposition = av.stream.Disposition.default if default else av.stream.Disposition(0)
    return added


# --- streams ---------------------------------------------------------------------------------------------------------


def test_the_default_sound_track_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [stream(container, 300, False), stream(container, 1000, True)]
        for added, tone in zip(streams, (300.0, 1000.0)):
            frame = av.AudioFrame.from_ndarray(loudness(4, tone)[None], format="fltp", layout="mono")
            frame.sample_rate = RATE
            container.mux(added.encode(frame))
            container.mux(added.encode(None))
    wave, known = decode_audio(path, RATE, 0.0, 4 * RATE)
    assert abs(int(np.abs(np.fft.rfft(wave)).argmax()) / 4 - 1000) < 2 and known.all()


@pytest.mark.parametrize("channels", [8, 9, 16, 64])
def test_many_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    wave = loudness(2, 440.0)
    parts = np.stack([wave * (1 if place == channels - 1 else 0) for place in range(channels)])
    heard, _ = decode_audio(write_wave(tmp_path / "a.wav", parts), RATE, 0.0, 2 * RATE)
    assert np.abs(heard - wave / channels).max() < 1e-3 and np.abs(heard).max() > 0.05 / channels


def test_more_channels_than_ffmpeg_resamples(tmp_path: Path) -> None:
    with pytest.raises(ClipDecodeError, match="65 channels of sound; expected at most 64"):
        decode_audio(write_wave(tmp_path / "a.wav", np.zeros((65, RATE))), RATE, 0.0, RATE)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_picture_that_begins_late_is_not_valid_before(tmp_path: Path, ending: str) -> None:
    path = write_video(tmp_path / f"a.{ending}", times=[3.2 + k / FPS for k in range(68)])
    clip = decode_clip(path, SAMPLING)
    assert clip.valid.tolist() == [False] * 3 + [True] * 7
    assert clip.reason == "no picture in seconds 0-3, 7 of 10 valid"


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_one_still_picture_lasts_as_long_as_the_sound(tmp_path: Path, ending: str) -> None:
    clip = decode_clip(write_video(tmp_path / f"a.{ending}", times=[0.0]), SAMPLING)
    assert clip.valid.all() and clip.duration == pytest.approx(10, abs=0.2)
    brief = decode_clip(write_video(tmp_path / f"b.{ending}", times=[0.0], seconds=4), SAMPLING)
    assert brief.valid.tolist() == [True] * 4 + [False] * 6


def shown(path: Path, matrix: tuple[float, ...]) -> np.ndarray:
    """A picture whose upper left quarter is white, in a file with this display matrix."""
    content = bytearray(write_video(path, seconds=1, corner=True).read_bytes())
    place = content.find(b"tkhd") + 44
    a, b, c, d = (round(value * (1 << 16)) for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return decode_frames(path, np.array([0.0]))[0][0]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), "1000"),
        ((-1, 0, 0, 1), "0100"),
        ((1, 0, 0, -1), "0010"),
        ((-1, 0, 0, -1), "0001"),
        ((0, 1, -1, 0), "0100"),
        ((0, -1, 1, 0), "0010"),
        ((0, 1, 1, 0), "1000"),
        ((0, -1, -1, 0), "0001"),
    ],
)
def test_pictures_are_turned_and_mirrored_as_the_file_says(
    tmp_path: Path, matrix: tuple[int, ...], expected: str
) -> None:
    picture = shown(tmp_path / "a.mp4", matrix)
    assert picture.shape == ((WIDTH, HEIGHT, 3) if matrix[0] == 0 else (HEIGHT, WIDTH, 3))
    assert "".join("01"[int(picture[y, x].mean() > 125)] for y in (4, -4) for x in (4, -4)) == expected


@pytest.mark.parametrize("degrees", [30, 135, 300])
def test_pictures_are_turned_by_any_angle(tmp_path: Path, degrees: int) -> None:
    """Clockwise about the middle, in a frame of the same size."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    picture = shown(tmp_path / "a.mp4", (cos, sin, -sin, cos))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        x, y = x * HEIGHT / 6, y * HEIGHT / 6
        value = picture[round(HEIGHT / 2 + x * sin + y * cos), round(WIDTH / 2 + x * cos - y * sin)].mean()
        assert (value > 200) == (x < 0 and y < 0) and (value > 200 or value < 30)


def test_a_file_that_claims_days_is_asked_for_its_last_second(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", seconds=12)
    content = bytearray(path.read_bytes())
    place = content.find(b"\x44\x89\x88") + 3  # the header's duration in milliseconds
    content[place : place + 8] = struct.pack(">d", 2e9)
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert container.duration / av.time_base > 10**6
    assert duration(path) == pytest.approx(12, abs=0.2)
    windows = VideoWindows(tmp_path, SAMPLING)
    assert 2 <= len(windows) <= 3 and int(windows[0]["valid"].sum()) == 10


def test_limits(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", seconds=4)
    with pytest.raises(ClipDecodeError, match=f"a picture of {WIDTH} x {HEIGHT} pixels; .*raise max_pixels"):
        decode_clip(tmp_path / "a.mp4", Sampling(size=32, max_pixels=WIDTH * HEIGHT - 1))
    with pytest.warns(UserWarning, match="0.0 hours; expected at most 0.001 hours"), pytest.raises(DatasetError):
        VideoWindows(tmp_path, Sampling(size=32, max_hours=0.001))
    assert prepare(tmp_path, tmp_path / "store", size=32, max_pixels=1000) == {"broken": 1}
    assert "max_pixels" in read_manifest(tmp_path / "store" / "manifest.csv")["a"].reason
    # limits decide nothing about how clips look: the same store goes on with others
    assert prepare(tmp_path, tmp_path / "store", size=32) == {"short": 1}


def test_shrinking_channel_by_channel_changes_nothing() -> None:
    import torch
    from torch.nn import functional as F

    picture = np.random.default_rng(0).integers(0, 256, (57, 83, 3), np.uint8)
    for antialias in (False, True):
        whole = (
            F.interpolate(
                torch.from_numpy(picture).permute(2, 0, 1)[None].float(), (20, 20), mode="bicubic", antialias=antialias
            )[0]
            .round()
            .clamp(0, 255)
            .byte()
            .permute(1, 2, 0)
            .numpy()
        )
        assert np.array_equal(resize(picture, 20, antialias), whole)


# --- folders and names -----------------------------------------------------------------------------------------------


def test_numbers_count_as_numbers(tmp_path: Path) -> None:
    for name in ("10.jpg", "9.jpg", "1.JPG", "frame_2.jpg", "frame_10.jpg", "._1.jpg", "2.png"):
        (tmp_path / name).touch()
    assert [path.name for path in listed(tmp_path, ".jpg")] == [
        "1.JPG",
        "9.jpg",
        "10.jpg",
        "frame_2.jpg",
        "frame_10.jpg",
    ]
    assert natural(Path("a" + "9" * 5000)) > natural(Path("a1"))


def test_links_are_followed_once(tmp_path: Path) -> None:
    for folder in ("videos", "disk/more"):
        (tmp_path / folder).mkdir(parents=True)
    for path in ("videos/a.mp4", "disk/more/b.mp4", "disk/more/._b.mp4", "disk/.hidden.mp4"):
        (tmp_path / path).write_bytes(path.encode())
    (tmp_path / "videos" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "again").symlink_to(tmp_path / "disk" / "more")
    (tmp_path / "videos" / "c.mp4").symlink_to(tmp_path / "disk" / "more" / "b.mp4")
    (tmp_path / "videos" / "gone.mp4").symlink_to(tmp_path / "unplugged.mp4")
    (tmp_path / "videos" / ".snapshots").mkdir()
    (tmp_path / "videos" / ".snapshots" / "d.mp4").touch()
    media = find_media([tmp_path / "videos"])
    assert [path.name for path in walk(tmp_path / "videos")] == ["a.mp4", "b.mp4", "c.mp4"]
    assert set(media.clips) == {"a", "b"}  # c.mp4 is b.mp4
    assert list(media.unusable) == ["gone"] and "which is not there" in media.unusable["gone"]
    assert [path.name for path, _ in media.links] == ["gone.mp4"] and media.others == {"hidden": 3}


def test_same_names_are_counted_and_listed_at_once(tmp_path: Path) -> None:
    for folder in ("train", "replacement"):
        (tmp_path / folder).mkdir()
        for name in "abc":
            (tmp_path / folder / f"{name}.mp4").write_bytes(f"{folder} {name}".encode())
    (tmp_path / "train" / "d.mp4").touch()
    for name in ("c.wav", "c.flac"):  # a sound may share an id with a video, not with another sound
        (tmp_path / "train" / name).write_bytes(name.encode())
    folders = [tmp_path / "train", tmp_path / "replacement"]
    with pytest.raises(DatasetError) as error:
        find_media(folders)
    assert all(
        str(tmp_path / folder / f"{name}.mp4") in str(error.value)
        for folder in ("train", "replacement")
        for name in "abc"
    )
    assert all(str(tmp_path / "train" / f"c.{ending}") in str(error.value) for ending in ("wav", "flac"))
    assert "4 ids of several files each" in str(error.value) and "--prefer later" in str(error.value)
    for prefer, folder in (("later", "replacement"), ("earlier", "train")):
        media = find_media(folders, prefer)
        assert [media.clips[name][0].parent.name for name in "abcd"] == [folder] * 3 + ["train"]
        assert set(media.passed_over) == set("abc") and all(
            path.parent.name != folder or path.suffix in (".wav", ".flac")
            for paths in media.passed_over.values()
            for path in paths
        )


def test_one_bad_name_costs_nobody_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    video = write_video(tmp_path / "v.mp4", seconds=10)
    names = {"n" * 251: "ok", "null": "ok", "圆盘 \u0e01": "ok", "a,b\"c'": "ok", "$x_1^2$": "ok"}
    for name in names:
        shutil.copy(video, folder / f"{name}.mp4")
    for odd in (b"line\nbreak.mp4", b"latin\xe9.mp4", b"cr\r.mp4"):
        shutil.copy(video, os.path.join(os.fsencode(folder), odd))
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    for ending in "abcdefghijk":
        (folder / f"notes.{ending}").touch()
    assert prepare(folder, store, size=16, sample_rate=RATE, workers=1) == {"broken": 4, "ok": 5}
    said = capsys.readouterr().out
    assert "files of other kinds, left alone: " in said and all(f"1 .{ending}" in said for ending in "abcdefghijk")
    assert "2 links that lead nowhere" in said and f"gone.txt: a link to {tmp_path}/nowhere.txt" in said
    entries = read_manifest(store / "manifest.csv")
    assert {clip: entries[clip].status for clip in names} == names
    assert {"line\\nbreak", "latin\\udce9", "cr\\r", "gone"} == {c for c, e in entries.items() if e.status == "broken"}
    with (store / "problems.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert all(ClipStore(store).digest(clip) == entries[clip].digest for clip in names)


def test_a_decoder_that_breaks_in_a_new_way_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in "ab":
        write_video(folder / f"{name}.mp4", seconds=1)

    def strange(video: Path, *args: object, **options: object) -> object:
        if video.stem == "a":
            raise KeyError("nobody expects this")
        return decode_clip(video, *args, **options)

    monkeypatch.setattr(preparing, "decode_clip", strange)
    assert prepare(folder, tmp_path / "store", size=16) == {"broken": 1, "short": 1}
    assert read_manifest(tmp_path / "store" / "manifest.csv")["a"].reason == "KeyError: 'nobody expects this'"


def test_reasons_say_which_seconds_lack_what(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v" / "a.mp4", seconds=6, delay=2)
    write_video(tmp_path / "v" / "late.mp4", seconds=10, delay=2.4)
    prepare(tmp_path / "v", tmp_path / "s", size=16, sample_rate=RATE, workers=1)
    entries = read_manifest(tmp_path / "s/manifest.csv")
    assert entries["a"].reason == (
        "no picture in seconds 6-8, no sound in seconds 0-2, no picture or sound in seconds 8-10, 4 of 10 valid"
    )
    assert entries["late"].reason == "no sound in seconds 0-2, 8 of 10 valid"
    # the length is that of the whole video, also where a clip holds less
    prepare(tmp_path / "v", tmp_path / "short", segments=3, size=16, sample_rate=RATE, workers=1)
    found = {clip: entry.seconds for clip, entry in read_manifest(tmp_path / "short/manifest.csv").items()}
    assert found == pytest.approx({"a": 8, "late": 12.4}, abs=0.2)


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        ("{id}", "lack the times"),
        ("trim_{id}_{start:06d}_{end:06d}", "'trim_' before"),
        ("{id}_{start}_{end}", "written in another way"),
        ("{id}_{start}000_{end}000", "written in another way"),
        ("Some title [{id}]", "other text around"),
        ("{id}-{start}.0-{end}.0", "written in another way"),
        ("{id}_{start:06d}_{end:06d}.f137", "'.f137' after"),
    ],
)
def test_names_of_other_downloaders(pattern: str, rule: str) -> None:
    videos = {f"{place:05d}-a_Bcd": (place % 7, place % 7 + 10) for place in range(20)}
    meant = {
        pattern.format(id=video, start=start, end=end): f"{video}_{start:06d}_{end:06d}"
        for video, (start, end) in videos.items()
    }
    found = naming.likely(meant, set(meant.values()) | {"of_another_video_000001_000011"})
    assert found.names == meant and rule in found.rule


def test_names_that_fit_several_ids_are_left_alone() -> None:
    assert naming.likely(["abcdefghijk"], ["abcdefghijk_000001_000011", "abcdefghijk_000020_000030"]) is None
    assert naming.likely(["abcdefghijk_3_13"], ["abcdefghijk_000001_000011", "abcdefghijk_000003_000013"]).names == {
        "abcdefghijk_3_13": "abcdefghijk_000003_000013"
    }
    assert naming.likely(["x", "y"], ["a", "b"]) is None


def test_rename(ks_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, mirror = tmp_path / "ks", tmp_path / "mirror"
    mirror.mkdir()
    root.mkdir()
    for path in ks_root.iterdir():
        if path.is_file():
            shutil.copy(path, root)
    for path in (ks_root / "videos").iterdir():
        (mirror / f"{path.stem[:-14]}.mp4").symlink_to(path)
    prepare(mirror, root / "store", size=64, sample_rate=16000)
    assert not verify(root, "kinetics_sounds")
    out = capsys.readouterr().out
    ids = sorted(path.stem for path in (ks_root / "videos").iterdir())
    assert f"Only 0 of {len(ids)} annotated clips" in out and ", ".join(ids[:3]) in out and ids[0][:-14] in out
    assert "--rename true" in out
    os.replace(root / "store/clips" / ids[0][:-14], root / "store/clips" / ids[0])  # as if stopped in the middle
    assert verify(root, "kinetics_sounds", rename=True) and verify(root, "kinetics_sounds", deep=True)
    # the video files still have their own names, and are not decoded again
    capsys.readouterr()
    prepare(mirror, root / "store", size=64, sample_rate=16000)
    assert f"{len(ids)} kept from before" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="no clip whose other name"):
        verify(root, "kinetics_sounds", rename=True)


# --- the store -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of three videos and their store."""
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    for name in "abc":
        write_video(folder / f"{name}.mp4")
    prepare(folder, store, size=16, sample_rate=RATE)
    return folder, store


def test_damaged_clips_are_made_anew(small: tuple[Path, Path]) -> None:
    folder, store = small
    before = {name: ClipStore(store).digest(name) for name in "abc"}
    frames = store / "clips" / "b" / "frames.npy"
    content = bytearray(frames.read_bytes())
    content[-1] ^= 1
    frames.write_bytes(content)
    stamps = {name: (store / "clips" / name / "frames.npy").stat().st_mtime_ns for name in "abc"}
    prepare(folder, store, size=16, sample_rate=RATE)
    assert ClipStore(store).digest("b") != before["b"]
    prepare(folder, store, size=16, sample_rate=RATE, deep=True)
    assert {name: ClipStore(store).digest(name) for name in "abc"} == before
    assert [name for name in "abc" if (store / "clips" / name / "frames.npy").stat().st_mtime_ns != stamps[name]] == [
        "b"
    ]


def test_a_full_disk_keeps_what_was_there(small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, store = small
    manifest = (store / "manifest.csv").read_bytes()
    write_video(folder / "d.mp4")

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storing, "write_file", full)
    monkeypatch.setattr("avprompt.files.write_file", full)
    with pytest.raises(DatasetError, match="No space left.*a folder with room"):
        prepare(folder, store, size=16, sample_rate=RATE)
    assert (store / "manifest.csv").read_bytes() == manifest
    assert sorted(os.listdir(store / "clips")) == ["a", "b", "c"] and not list(store.glob(".*partial"))


def test_read_only_roots(
    small: tuple[Path, Path], ave_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What needs to be written is printed instead; what needs not is left."""
    folder, store = small

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(storing, "write_file", refuse)
    monkeypatch.setattr("avprompt.files.write_file", refuse)
    assert prepare(folder, store, size=16, sample_rate=RATE) == {"ok": 3}
    assert verify(ave_root) and "verify.csv cannot be written (Read-only" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="Read-only.*--out"):
        prepare(folder, folder.parent / "other", size=16)


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`~` in flags, after `=`, in lists and in YAML files: one mechanism."""
    from avprompt import configs

    home = tmp_path / "home"
    (home / "videos").mkdir(parents=True)
    write_video(home / "videos" / "a.mp4", seconds=1)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    for flags in (
        ["--videos", "~/videos", "--out", "~/store"],
        ["--videos=~/videos", "--out=~/store2"],
        ["--videos", "[~/videos]", "--out", "~/store3"],
    ):
        run(["data", "prepare", *flags, "--size", "16"])
    assert sorted(os.listdir(home)) == ["store", "store2", "store3", "videos"] and os.listdir(tmp_path) == ["home"]
    (tmp_path / "a.yaml").write_text("data: {init_args: {root: ~/AVE, other: ~, text: 'a ~/b'}}\nlist: [~/x]\n")
    assert configs.read_yaml(tmp_path / "a.yaml") == {
        "data": {"init_args": {"root": str(home / "AVE"), "other": None, "text": "a ~/b"}},
        "list": [str(home / "x")],
    }


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """SIGKILL leaves no chance to end them: they watch."""
    code = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from avprompt.media.workers import begin_worker
if __name__ == "__main__":
    with ProcessPoolExecutor(2, initializer=begin_worker) as pool:
        print(*{pool.submit(os.getpid).result() for _ in range(50)} | {p for p in pool._processes}, flush=True)
        [pool.submit(time.sleep, 600) for _ in range(2)]
        time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert workers and all(alive(worker) for worker in workers)
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while any(alive(worker) for worker in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(alive(worker) for worker in workers)


def alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_manifests_are_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.csv"
    entries = [Entry(f"c{place}", "ok", digest="x") for place in range(3)]
    write_manifest(path, entries)
    whole = path.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(path, entries[:1])
    assert path.read_bytes() == whole and os.listdir(tmp_path) == ["manifest.csv"]
    monkeypatch.undo()
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_hand_in_the_manifest_is_noticed(small: tuple[Path, Path]) -> None:
    _, store = small
    text = (store / "manifest.csv").read_text()
    for damage in (text.replace("b,ok,", "b,broken,"), text.replace("b,ok", "b,OK"), text.replace(",10,", ",9,", 1)):
        (store / "manifest.csv").write_text(damage)
        with pytest.raises(DatasetError, match="manifest.csv, line .*not as it was written"):
            read_manifest(store / "manifest.csv")


@pytest.mark.parametrize("damage", [b"\xff", b'"', b"\0", b"\n"])
def test_a_damaged_manifest_costs_its_damaged_rows_alone(small: tuple[Path, Path], damage: bytes) -> None:
    folder, store = small
    whole = (store / "manifest.csv").read_bytes()
    stamps = {name: (store / "clips" / name / "audio.npy").stat().st_mtime_ns for name in "abc"}
    (store / "manifest.csv").write_bytes(whole.replace(b"b.mp4", b"b.m" + damage + b"4"))
    prepare(folder, store, size=16, sample_rate=RATE)
    assert (store / "manifest.csv").read_bytes() == whole
    assert {name for name in "ac" if (store / "clips" / name / "audio.npy").stat().st_mtime_ns == stamps[name]} >= {"a"}


def test_pictures_of_names_in_any_script(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from avprompt.plots.legible import legible

    figure = Figure()
    figure.suptitle("圆盘 \u0e01\U000e0041 é $x", parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        legible(figure).savefig(tmp_path / "a.png")
    shown = figure._suptitle.get_text()
    assert "é $x" in shown and "\\U000e0041" in shown


def test_an_unknown_choice_names_the_argument(tmp_path: Path, ave_root: Path) -> None:
    with pytest.raises(ArgumentError, match="rename: got true; expected clips in a store"):
        folders = tmp_path / "f"
        folders.mkdir()
        for name in ("Annotations.txt", "categories.txt", "trainSet.txt", "valSet.txt", "testSet.txt"):
            shutil.copy(ave_root / name, folders)
        for name in ("frames", "wave"):
            (folders / name).mkdir()
        verify(folders, layout="folders", rename=True)
