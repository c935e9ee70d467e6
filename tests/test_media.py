"""Decoding real files, the prepared store, and what becomes of files that cannot be used."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import av
import numpy as np
import pytest

from avprompt.errors import ClipDecodeError, DatasetError
from avprompt.media.decode import Sampling, decode_clip, duration
from avprompt.media.prepare import prepare
from avprompt.media.readers import StoreReader
from avprompt.media.store import ClipStore, read_manifest

SAMPLING = Sampling(segments=10, size=32, sample_rate=8000)


def write(path: Path, seconds: float = 10, tone: float | None = 440.0, picture: bool = True, rate: int = 8000) -> Path:
    """An mp4 whose picture's brightness and sound's loudness tell the second: second k has brightness 20 k."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"crf": "10", "g": "30"}) if picture else None
        audio = container.add_stream("aac", rate=rate, layout="mono") if tone is not None else None
        if video:
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for k in range(round(seconds * 10)):
                frame = np.full((48, 64, 3), 20 * (k // 10), dtype=np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(video.encode(None))
        if audio:
            time = np.arange(round(seconds * rate)) / rate
            wave = (0.05 * (1 + np.floor(time)) * np.sin(2 * np.pi * tone * time)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def test_frames_and_sound_are_those_of_their_second(tmp_path: Path) -> None:
    clip = decode_clip(write(tmp_path / "a.mp4"), SAMPLING)
    assert clip.frames.shape == (10, 32, 32, 3) and clip.frames.dtype == np.uint8
    assert np.abs(clip.frames.mean((1, 2, 3)) - 20 * np.arange(10)).max() < 4
    loudness = np.abs(clip.audio[:, 1000:-1000]).max(1)
    assert np.abs(loudness - 0.05 * (1 + np.arange(10))).max() < 0.02
    assert clip.audio.shape == (10, 8000) and clip.audio.dtype == np.float32
    assert clip.valid.all() and not clip.silent


def test_windows_start_where_they_should(tmp_path: Path) -> None:
    clip = decode_clip(write(tmp_path / "a.mp4"), Sampling(segments=3, size=16, sample_rate=8000), start=4)
    assert np.abs(clip.frames.mean((1, 2, 3)) - [80, 100, 120]).max() < 4
    assert np.abs(np.abs(clip.audio[:, 1000:-1000]).max(1) - [0.25, 0.3, 0.35]).max() < 0.02


def test_resampling_keeps_length_and_pitch(tmp_path: Path) -> None:
    clip = decode_clip(write(tmp_path / "a.mp4", rate=44100), Sampling(size=16, sample_rate=16000))
    assert clip.audio.shape == (10, 16000)
    spectrum = np.abs(np.fft.rfft(clip.audio[5]))
    assert abs(int(spectrum.argmax()) - 440) <= 1


def test_short_file_is_padded_and_marked(tmp_path: Path) -> None:
    clip = decode_clip(write(tmp_path / "a.mp4", seconds=6), SAMPLING)
    assert clip.valid.tolist() == [True] * 6 + [False] * 4
    assert np.abs(clip.audio[7:]).max() == 0 and 5.5 < clip.duration < 6.5


def test_separate_sound_replaces_the_videos(tmp_path: Path) -> None:
    video, wave = write(tmp_path / "v.mp4", tone=None), write(tmp_path / "w.mp4", tone=1000.0)
    clip = decode_clip(video, SAMPLING, wave=wave)
    assert abs(int(np.abs(np.fft.rfft(clip.audio[5])).argmax()) - 1000) <= 1


def broken_files(folder: Path) -> dict[str, str]:
    """Files that cannot be used, by the status that they must get."""
    write(folder / "mute.mp4", tone=None)
    write(folder / "blind.mp4", picture=False)
    write(folder / "quiet.mp4", tone=0.0)
    write(folder / "brief.mp4", seconds=4)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video")
    whole = write(folder / "cut.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])  # the index at the end is lost
    return {"mute": "no-audio", "blind": "no-video", "quiet": "silent", "brief": "short", "empty": "broken",
            "text": "broken", "cut": "broken"}


def test_prepare_lists_every_problem_and_keeps_the_rest(tmp_path: Path) -> None:
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    expected = broken_files(folder) | {"-starts_with_a_dash": "ok"}
    write(folder / "-starts_with_a_dash.mp4")
    counts = prepare(folder, store, size=32, sample_rate=8000)
    entries = read_manifest(store / "manifest.csv")
    assert {clip: entry.status for clip, entry in entries.items()} == expected
    assert counts == {"broken": 3, "no-audio": 1, "no-video": 1, "ok": 1, "short": 1, "silent": 1}
    with (store / "problems.csv").open() as file:
        problems = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    assert set(problems) == set(expected) - {"-starts_with_a_dash"} and all(problems.values())
    frames, audio, valid = ClipStore(store).read("-starts_with_a_dash")
    assert frames.shape == (10, 32, 32, 3) and audio.shape == (10, 8000) and valid.all()


def test_prepare_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    for name in "abc":
        write(folder / f"{name}.mp4", seconds=10)
    prepare(folder, store, size=32, sample_rate=8000)
    stamps = {name: (store / "clips" / name / "audio.npy").stat().st_mtime_ns for name in "abc"}
    (store / "clips" / "b" / "valid.npy").unlink()  # as if stopped in the middle of b
    (store / "clips" / ".d.partial").mkdir()
    write(folder / "d.mp4")
    prepare(folder, store, size=32, sample_rate=8000)
    for name in "ac":
        assert (store / "clips" / name / "audio.npy").stat().st_mtime_ns == stamps[name]
    assert ClipStore(store).read("b")[2].all() and ClipStore(store).read("d")[2].all()


def test_store_of_other_settings_is_refused(tmp_path: Path) -> None:
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    write(folder / "a.mp4")
    prepare(folder, store, size=32, sample_rate=8000)
    with pytest.raises(DatasetError, match="'size': \\(32, 64\\)"):
        prepare(folder, store, size=64, sample_rate=8000)
    with pytest.raises(DatasetError, match="sample_rate"):
        StoreReader(store, Sampling(size=32, sample_rate=16000))
    prepare(folder, store, size=64, sample_rate=8000, overwrite=True)
    assert ClipStore(store).read("a")[0].shape == (10, 64, 64, 3)
    content = json.loads((store / "store.json").read_text()) | {"format": 99}
    (store / "store.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="format 99"):
        ClipStore(store).sampling()


def test_damaged_store_clip_is_named(tmp_path: Path) -> None:
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    write(folder / "a.mp4")
    prepare(folder, store, size=32, sample_rate=8000)
    (store / "clips" / "a" / "audio.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ClipDecodeError, match="clips/a"):
        ClipStore(store).read("a")


def test_folders_and_ids_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        prepare(tmp_path / "nowhere", tmp_path / "store")
    (tmp_path / "videos" / "x").mkdir(parents=True)
    with pytest.raises(DatasetError, match="no video files"):
        prepare(tmp_path / "videos", tmp_path / "store")
    write(tmp_path / "videos" / "a.mp4", seconds=1)
    write(tmp_path / "videos" / "x" / "a.mp4", seconds=1)
    with pytest.raises(DatasetError, match="one file an id"):
        prepare(tmp_path / "videos", tmp_path / "store")


def test_real_clips(shared: Path) -> None:
    clips = {"clips/nasa_13013.mp4": 13.056, "llp/video/BjCEufrlXm4.mp4": 10.03}
    for name, seconds in clips.items():
        path = shared / "data" / name
        assert duration(path) == pytest.approx(seconds, abs=0.05)
        clip = decode_clip(path, Sampling())
        assert clip.valid.all() and clip.audio.shape == (10, 32000) and clip.frames.std() > 10
    # the narrator pauses around second 4; the dog is silent in second 3 alone, and recorded at full scale without clipping
    nasa = decode_clip(shared / "data/clips/nasa_13013.mp4", Sampling(segments=12))
    assert np.abs(nasa.audio[4]).mean() < 0.5 * np.abs(nasa.audio[5]).mean()
    dog = decode_clip(shared / "data/llp/video/BjCEufrlXm4.mp4", Sampling())
    assert np.abs(dog.audio).max(1).argmin() == 3
    assert (np.abs(dog.audio) > 0.999).mean() < 1e-3
