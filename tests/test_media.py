"""Decoding real files, the prepared store, and what becomes of files that cannot be used."""

from __future__ import annotations

import csv
import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media_files import RATE, loudness, turn, write_video, write_wave

from avprompt.errors import ArgumentError, ClipDecodeError, DatasetError
from avprompt.media import decode
from avprompt.media import prepare as preparing
from avprompt.media.decode import Clip, Sampling, decode_clip, duration
from avprompt.media.prepare import prepare
from avprompt.media.readers import StoreReader
from avprompt.media.store import ClipStore, Entry, read_manifest, write_manifest

SAMPLING = Sampling(segments=10, size=32, sample_rate=RATE)


def shades(clip: Clip) -> list[int]:
    """The number that each frame's brightness stands for."""
    return (clip.frames.mean((1, 2, 3)) / 8).round().astype(int).tolist()


def loud(clip: Clip) -> list[float]:
    """The amplitude of each segment, away from its ends."""
    edge = clip.audio.shape[1] // 8
    return np.abs(clip.audio[:, edge:-edge]).max(1)


def test_frames_and_sound_are_those_of_their_second(tmp_path: Path) -> None:
    clip = decode_clip(write_video(tmp_path / "a.mp4"), SAMPLING)
    assert clip.frames.shape == (10, 32, 32, 3) and clip.frames.dtype == np.uint8
    assert clip.audio.shape == (10, 8000) and clip.audio.dtype == np.float32
    assert shades(clip) == list(range(10))
    assert loud(clip) == pytest.approx(0.05 * (1 + np.arange(10)), abs=0.02)
    assert clip.valid.all() and not clip.silent and clip.duration == 10


def test_nearest_frame_where_frames_come_irregularly(tmp_path: Path) -> None:
    clip = decode_clip(write_video(tmp_path / "a.mp4", times=[0, 1.4, 1.7, 5.2, 9.5]), SAMPLING)
    #      0.5 1.5 2.5 3.5 4.5 5.5 6.5 7.5 8.5 9.5: 3.5 lies nearer to 5.2 than 1.7 by 0.1, 7.5 nearer to 9.5 than 5.2
    assert shades(clip) == [0, 1, 2, 3, 3, 3, 3, 4, 4, 4]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("start", [1.0, 4.0, 17.3, 24.0])
def test_windows_equal_the_same_seconds_of_the_whole(tmp_path: Path, ending: str, start: float) -> None:
    """Later windows are sought, not decoded from the beginning; nothing may shift by that."""
    path = write_video(tmp_path / f"a.{ending}", seconds=30)
    whole = decode_clip(path, Sampling(segments=30, size=32, sample_rate=RATE))
    window = decode_clip(path, Sampling(segments=5, size=32, sample_rate=RATE), start=start)
    assert shades(window) == [int(start + k + 0.5) for k in range(5)]
    expected = whole.audio.flatten()[round(start * RATE) :][: 5 * RATE]
    assert np.abs(window.audio.flatten() - expected).max() < 1e-3 and np.abs(expected).max() > 0.09


def test_segments_apart(tmp_path: Path) -> None:
    """Every third second of a clip is the second that a clip of all seconds has there."""
    path = write_video(tmp_path / "a.mp4", seconds=30)
    whole = decode_clip(path, Sampling(segments=30, size=32, sample_rate=RATE))
    apart = decode_clip(path, Sampling(segments=10, size=32, sample_rate=RATE, stride=3))
    assert np.array_equal(apart.frames, whole.frames[::3]) and apart.valid.all()
    assert np.array_equal(apart.audio, whole.audio[::3])
    assert (apart.duration, Sampling(stride=3).period) == (28, 30)
    with pytest.raises(ArgumentError, match="stride"):
        Sampling(stride=0)


def test_several_frames_a_segment(tmp_path: Path) -> None:
    """Those nearest to the middles of its equal parts, in order, in the store and in folders of pictures too."""
    from PIL import Image

    from avprompt.media.augment import RandAugment
    from avprompt.media.readers import FolderReader

    (tmp_path / "videos").mkdir()
    path = write_video(tmp_path / "videos" / "a.mp4", seconds=3, times=[0.1 * k for k in range(30)])
    four = Sampling(segments=3, size=32, sample_rate=RATE, frames=4)
    clip = decode_clip(path, four)
    #      0.125 0.375 0.625 0.875 of each second
    expected = [[10 * second + part for part in (1, 4, 6, 9)] for second in range(3)]
    assert clip.frames.shape == (3, 4, 32, 32, 3) and clip.valid.all()
    assert (clip.frames.mean((2, 3, 4)) / 8).round().astype(int).tolist() == expected
    overlapping = decode_clip(path, Sampling(segments=3, size=32, sample_rate=RATE, frames=4, stride=0.5))
    assert np.array_equal(overlapping.frames[::2], clip.frames[:2])
    prepare(tmp_path / "videos", tmp_path / "store", 3, 32, RATE, workers=1, frames_per_segment=4)
    reader = StoreReader(tmp_path / "store", four)
    frames = reader.read("a")[0]
    assert torch.equal(frames, torch.from_numpy(clip.frames).movedim(-1, -3))
    assert torch.equal(reader.frame("a", 1), frames[1]) and reader.inspect("a") is None
    with pytest.raises(DatasetError, match=r"'frames': \(4, 1\).*frames_per_segment"):
        StoreReader(tmp_path / "store", Sampling(segments=3, size=32, sample_rate=RATE))
    (tmp_path / "frames" / "a").mkdir(parents=True)
    (tmp_path / "wave").mkdir()
    np.save(tmp_path / "wave" / "a.npy", clip.audio)
    for place, picture in enumerate(clip.frames.reshape(-1, 32, 32, 3), 1):
        Image.fromarray(picture).save(tmp_path / "frames" / "a" / f"{place:08d}.jpg", quality=100, subsampling=0)
    folders = FolderReader(tmp_path, four)
    read = folders.read("a")[0]
    assert read.shape == frames.shape and (read.int() - frames.int()).abs().max() < 4
    assert torch.equal(folders.frame("a", 2), read[2])
    assert RandAugment(32)(frames, seed=0).shape == frames.shape


def test_resampling_keeps_length_and_pitch(tmp_path: Path) -> None:
    clip = decode_clip(write_video(tmp_path / "a.mp4", rate=44100), Sampling(size=16, sample_rate=16000))
    assert clip.audio.shape == (10, 16000)
    spectrum = np.abs(np.fft.rfft(clip.audio[5]))
    assert abs(int(spectrum.argmax()) - 440) <= 1
    assert loud(clip) == pytest.approx(0.05 * (1 + np.arange(10)), abs=0.02)


def test_short_file_is_padded_and_marked(tmp_path: Path) -> None:
    clip = decode_clip(write_video(tmp_path / "a.mp4", seconds=6), SAMPLING)
    assert clip.valid.tolist() == [True] * 6 + [False] * 4 and shades(clip) == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]
    assert np.abs(clip.audio[7:]).max() == 0 and clip.duration == pytest.approx(6, abs=0.2)


def test_separate_sound_replaces_the_videos(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", tone=2000.0)
    wave = write_wave(tmp_path / "v.wav", loudness(10, 1000.0, 22050)[None], 22050)
    clip = decode_clip(video, SAMPLING, wave=wave)
    assert abs(int(np.abs(np.fft.rfft(clip.audio[5])).argmax()) - 1000) <= 1


def test_channels_are_averaged(tmp_path: Path) -> None:
    """FFmpeg's own downmix makes two equal channels louder by the square root of two."""
    video, wave = write_video(tmp_path / "v.mp4", tone=None), loudness(10, 440.0)
    equal = decode_clip(video, SAMPLING, wave=write_wave(tmp_path / "equal.wav", np.stack([wave, wave])))
    one = decode_clip(video, SAMPLING, wave=write_wave(tmp_path / "one.wav", np.stack([wave, 0 * wave])))
    assert np.abs(equal.audio.flatten() - wave).max() < 1e-3
    assert np.abs(one.audio.flatten() - wave / 2).max() < 1e-3


def test_sound_that_begins_later_stays_in_step(tmp_path: Path) -> None:
    clip = decode_clip(write_video(tmp_path / "a.mp4", delay=3.25), SAMPLING)
    assert not np.abs(clip.audio.flatten()[: 3 * RATE]).max() > 1e-3
    punctual = decode_clip(write_video(tmp_path / "b.mp4"), SAMPLING).audio.flatten()
    late = clip.audio.flatten()[round(3.25 * RATE) :]
    assert np.abs(late - punctual[: len(late)])[RATE // 4 :].max() < 0.01
    assert clip.valid.tolist() == [False] * 3 + [True] * 7
    assert clip.reason == "no sound in seconds 0-3, 7 of 10 valid"


def test_pictures_are_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", corner=True)
    turn(path)
    frame = decode_clip(path, SAMPLING).frames[0]
    assert frame[:15, 17:].mean() > 240 and frame[:, :15].mean() < 15 and frame[17:].mean() < 15


def test_length_of_a_file_that_does_not_say(tmp_path: Path) -> None:
    assert duration(write_video(tmp_path / "a.mkv", seconds=23, live="1")) == pytest.approx(23, abs=0.2)
    assert duration(write_video(tmp_path / "b.mp4", seconds=7)) == pytest.approx(7, abs=0.2)


def test_unusable_files_say_why(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", movflags="faststart").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 7 // 10])
    write_video(tmp_path / "song.mp4", cover=True)
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 320000, b"WAVE", b"fmt ", 16, 3, 1, RATE, 4 * RATE, 4, 32, b"data", 320000
    )
    (tmp_path / "nan.wav").write_bytes(header + np.full(80000, np.nan, "<f4").tobytes())
    for name, wave, reason in (
        ("cut.mp4", None, "truncated: its video says 10.0 s and ends at"),
        ("song.mp4", None, "no video stream"),
        ("whole.mp4", "nan.wav", "NaN"),
        ("absent.mp4", None, "no such file"),
    ):
        with pytest.raises(ClipDecodeError, match=reason):
            decode_clip(tmp_path / name, SAMPLING, wave=wave and tmp_path / wave)
    with pytest.raises(ClipDecodeError, match="from second 30 on"):
        decode_clip(tmp_path / "whole.mp4", SAMPLING, start=30)


def test_damage_in_the_middle_costs_what_it_damages(tmp_path: Path) -> None:
    """A packet that does not decode is passed over, as a player does."""
    path = write_video(tmp_path / "a.mkv", seconds=10)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = os.urandom(400)
    path.write_bytes(content)
    clip = decode_clip(path, SAMPLING)
    assert clip.valid[:3].all() and clip.valid[-2:].all() and shades(clip)[-1] == 9


def test_impossible_sampling() -> None:
    with pytest.raises(ArgumentError, match="sample_rate: got 0"):
        Sampling(sample_rate=0)


def broken_files(folder: Path) -> dict[str, str]:
    """Files that cannot be used, or not wholly, by the status that they must get."""
    write_video(folder / "mute.mp4", tone=None)
    write_video(folder / "blind.mp4", picture=False)
    write_video(folder / "quiet.mp4", tone=0.0)
    write_video(folder / "brief.mp4", seconds=4)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video")
    whole = write_video(folder / "cut.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])  # the index at the end is lost
    write_wave(folder / "lonely.wav", loudness(10, 440.0)[None])
    return {
        "mute": "no-audio",
        "blind": "no-video",
        "quiet": "silent",
        "brief": "short",
        "empty": "broken",
        "text": "broken",
        "cut": "broken",
        "lonely": "no-video",
    }


def test_prepare_lists_every_problem_and_keeps_the_rest(tmp_path: Path) -> None:
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    expected = broken_files(folder) | {"-starts_with_a_dash": "ok", "paired": "ok"}
    write_video(folder / "-starts_with_a_dash.mp4")
    write_video(folder / "paired.mp4", tone=None)
    (tmp_path / "waves").mkdir()
    write_wave(tmp_path / "waves" / "paired.wav", loudness(10, 1000.0)[None])
    (folder / "._paired.mp4").write_bytes(b"what some file systems leave beside a file")
    counts = prepare([folder, tmp_path / "waves"], store, size=32, sample_rate=RATE)
    entries = read_manifest(store / "manifest.csv")
    assert {clip: entry.status for clip, entry in entries.items()} == expected
    assert counts == {"broken": 3, "no-audio": 1, "no-video": 2, "ok": 2, "short": 1, "silent": 1}
    with (store / "problems.csv").open() as file:
        problems = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    assert set(problems) == set(expected) - {"-starts_with_a_dash", "paired"} and all(problems.values())
    assert set(os.listdir(store / "clips")) == {"-starts_with_a_dash", "paired", "quiet", "brief"}
    frames, audio, valid = ClipStore(store).read("-starts_with_a_dash")
    direct = decode_clip(folder / "-starts_with_a_dash.mp4", SAMPLING)
    assert np.array_equal(frames, direct.frames.transpose(0, 3, 1, 2)) and valid.all()
    assert audio.dtype == np.int16 and np.abs(audio / 2**15 - direct.audio).max() <= 2**-16
    assert entries["brief"].valid == 4 and entries["brief"].seconds == pytest.approx(4, abs=0.2)


def test_prepare_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    for name in "abc":
        write_video(folder / f"{name}.mp4")
    prepare(folder, store, size=32, sample_rate=RATE)
    stamps = {name: (store / "clips" / name / "audio.npy").stat().st_mtime_ns for name in "abc"}
    (store / "clips" / "b" / "valid.npy").unlink()  # as if stopped in the middle of b
    (store / "clips" / ".d.partial").mkdir()
    write_video(folder / "d.mp4")
    write_wave(folder / "c.wav", loudness(10, 1000.0)[None])  # c has got another sound since
    prepare(folder, store, size=32, sample_rate=RATE)
    again = {name for name in "abc" if (store / "clips" / name / "audio.npy").stat().st_mtime_ns != stamps[name]}
    assert again == {"b", "c"} and ClipStore(store).read("d")[2].all()
    assert abs(int(np.abs(np.fft.rfft(ClipStore(store).read("c")[1][5])).argmax()) - 1000) <= 1


def test_a_video_that_became_bad_leaves_no_clip_behind(tmp_path: Path) -> None:
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    write_video(folder / "a.mp4")
    prepare(folder, store, size=32, sample_rate=RATE)
    (folder / "a.mp4").write_bytes(b"")
    assert prepare(folder, store, size=32, sample_rate=RATE) == {"broken": 1} and "a" not in ClipStore(store)


def test_a_file_that_kills_its_process_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    for name in "abcdefgh":
        write_video(folder / f"{name}.mp4", seconds=1)

    def deadly(video: Path, sampling: Sampling, wave: Path | None = None) -> Clip:
        if video.stem == "c":
            os._exit(139)  # as a decoder that is killed by the system
        return decode_clip(video, sampling, wave=wave)

    monkeypatch.setattr(preparing, "decode_clip", deadly)  # worker processes are forks
    counts = prepare(folder, store, size=32, sample_rate=RATE)
    assert counts == {"broken": 1, "short": 7}
    assert "kills the process" in read_manifest(store / "manifest.csv")["c"].reason


def test_an_interruption_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    for name in "abc":
        write_video(folder / f"{name}.mp4")
    clips = iter(preparing._run({c: (folder / f"{c}.mp4", None) for c in "ab"}, store, SAMPLING, 1))

    def interrupted(*_: object) -> object:
        yield next(clips)
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, store, size=32, sample_rate=RATE)
    assert list(read_manifest(store / "manifest.csv")) == ["a"]


def test_store_of_other_settings_is_refused(tmp_path: Path) -> None:
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    write_video(folder / "a.mp4")
    prepare(folder, store, size=32, sample_rate=RATE)
    with pytest.raises(DatasetError, match="'size': \\(32, 64\\)"):
        prepare(folder, store, size=64, sample_rate=RATE)
    with pytest.raises(DatasetError, match="sample_rate"):
        StoreReader(store, Sampling(size=32, sample_rate=16000))
    prepare(folder, store, size=64, sample_rate=RATE, overwrite=True)
    assert ClipStore(store).read("a")[0].shape == (10, 3, 64, 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 99}', "format 99"),
        ('{"format": 4, "sampling": {"fps": 3}, "check": ""}', "not as they were written"),
        ('{"form', "Unterminated"),
        ("[]", "store.json"),
    ],
)
def test_foreign_stores_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(DatasetError, match=message) as error:
        ClipStore(tmp_path).sampling()
    assert "avprompt data prepare" in str(error.value)


def test_a_folder_that_is_no_store_is_never_emptied(tmp_path: Path) -> None:
    folder, precious = tmp_path / "videos", tmp_path / "home"
    folder.mkdir()
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    write_video(folder / "a.mp4", seconds=1)
    with pytest.raises(DatasetError, match="nothing in this one was touched"):
        prepare(folder, precious, overwrite=True)
    assert os.listdir(precious) == ["thesis.tex"]
    with pytest.raises(DatasetError, match="no store.json"):
        StoreReader(precious, SAMPLING)


@pytest.mark.parametrize("seconds", [3, 5])
def test_frames_that_nothing_needs_are_not_decoded(
    seconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are chosen stay the same, bit for bit, also where the last one stands for seconds behind the end."""
    path, rng = tmp_path / "a.mp4", np.random.default_rng(0)
    picture = rng.integers(256, size=(48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3", "threads": "1", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(75):
            moved = np.roll(picture, number, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode(None))
    times = np.arange(seconds) + 0.5

    def decoded() -> tuple[list[np.ndarray], int]:
        with decode.Reader(path, "video") as reader:
            return decode.decode_frames(path, times)[0], len(list(reader.frames(0.0, times)))

    some, fewer = decoded()
    monkeypatch.setattr(decode, "WINDOW", np.inf)
    all_, count = decoded()
    assert count == 75 and 30 < fewer < 65 and np.array_equal(np.stack(some), np.stack(all_))


def test_sixteen_bit_sound_is_kept_exactly(tmp_path: Path) -> None:
    store, sampling = ClipStore(tmp_path), Sampling(segments=1, size=4, sample_rate=6)
    store.create(sampling)
    exact = np.array([[-(2**15), -1, 0, 1, 2**15 - 1, 1234]]) / np.float32(2**15)
    for audio, back in ((exact, exact), (np.full((1, 6), 1.0), np.full((1, 6), 1 - 2.0**-15))):
        frames = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
        store.write("a", Clip(frames, audio.astype(np.float32), np.ones(1, bool), 1.0))
        write_manifest(store.manifest_path, [Entry("a", "ok")])
        frames, read, _ = StoreReader(tmp_path, sampling).read("a")
        assert read.dtype == torch.float32 and torch.equal(read, torch.from_numpy(back.astype(np.float32)))
        assert frames.is_contiguous() and frames[0, 2, 1, 3] == 3 * (4 + 3) + 2
        assert torch.equal(StoreReader(tmp_path, sampling).frame("a", 0), frames[0])


def test_damaged_store_clip_is_named(tmp_path: Path) -> None:
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    write_video(folder / "a.mp4")
    prepare(folder, store, size=32, sample_rate=RATE)
    reader = StoreReader(store, SAMPLING)
    assert reader.inspect("a") is None
    whole = (store / "clips" / "a" / "audio.npy").read_bytes()
    for damage in (b"\x93NUMPY", whole[:5000]):
        (store / "clips" / "a" / "audio.npy").write_bytes(damage)
        with pytest.raises(ClipDecodeError, match="clips/a/audio.npy: .*--deep true"):
            reader.read("a")
        assert reader.problem("a") is None and reader.inspect("a").startswith("broken")
    np.save(store / "clips" / "a" / "audio.npy", np.zeros((9, RATE), np.float32))
    with pytest.raises(ClipDecodeError, match=r"float32 \(9, 8000\); expected .*\(10, 8000\)"):
        reader.read("a")
    (store / "manifest.csv").write_text("id,status\na,ok\n")
    with pytest.raises(DatasetError, match="columns"):
        read_manifest(store / "manifest.csv")


def test_folders_and_ids_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        prepare(tmp_path / "nowhere", tmp_path / "store")
    (tmp_path / "videos" / "x").mkdir(parents=True)
    with pytest.raises(DatasetError, match="no video files"):
        prepare(tmp_path / "videos", tmp_path / "store")
    write_video(tmp_path / "videos" / "a.mp4", seconds=1)
    with pytest.raises(ArgumentError, match="workers: got 0"):
        prepare(tmp_path / "videos", tmp_path / "store", workers=0)
    write_video(tmp_path / "videos" / "x" / "a.mp4", seconds=1)
    with pytest.raises(DatasetError, match="(?s)1 ids of several files each.*a: .*a.mp4, .*a.mp4.*one file an id"):
        prepare(tmp_path / "videos", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_real_clips(shared: Path) -> None:
    clips = {"clips/nasa_13013.mp4": 13.056, "llp/video/BjCEufrlXm4.mp4": 10.03}
    for name, seconds in clips.items():
        path = shared / "data" / name
        assert duration(path) == pytest.approx(seconds, abs=0.05)
        clip = decode_clip(path, Sampling())
        assert clip.valid.all() and clip.audio.shape == (10, 32000) and clip.frames.std() > 10
    # the narrator pauses around second 4; the dog is silent in second 3 alone, and recorded at full scale unclipped
    nasa = decode_clip(shared / "data/clips/nasa_13013.mp4", Sampling(segments=12))
    assert np.abs(nasa.audio[4]).mean() < 0.5 * np.abs(nasa.audio[5]).mean()
    dog = decode_clip(shared / "data/llp/video/BjCEufrlXm4.mp4", Sampling())
    assert np.abs(dog.audio).max(1).argmin() == 3
    assert (np.abs(dog.audio) > 0.999).mean() < 1e-3
