"""Bound scenes: what is heard says which of what is seen counts, and neither says it alone; the older world stays."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avprompt.datasets import ave as ave_layout
from avprompt.datasets.music_avqa import questions_path, read_questions
from avprompt.errors import ArgumentError
from avprompt.synthetic import SYNTHETIC_DATASETS, ave, llp, scenes
from avprompt.synthetic.bound import (
    BINDINGS,
    CONTOURS,
    FORMANTS,
    BoundObject,
    BoundScene,
    BoundSettings,
    BoundSound,
    chance,
    draw_bound,
    event_scene,
    render_sound,
    turns,
)
from avprompt.synthetic.kinetics_sounds import action_scene
from avprompt.synthetic.music_avqa import bound_candidates, bound_scene

#: layout, its arguments -> SHA-256 (its beginning) of all files but media, as the older world wrote them
OLDER = {
    ("ave", None): "be54fb8aa0a19f62",
    ("llp", None): "696114151271a5c6",
    ("avsbench", "s4"): "825c5e0d3650d013",
    ("avsbench", "ms3"): "85c797df70a72c0b",
    ("music_avqa", None): "460f5e0cb976aa79",
    ("kinetics_sounds", None): "f468ad670a9ac9d2",
    ("vggsound", None): "26ac5bedeed46bdb",
}


class NoMedia:
    """In the place of a pool of processes: it makes the folders of annotations, and no media."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __enter__(self) -> NoMedia:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def map(self, write: Callable, jobs: Iterable, chunksize: int = 1) -> list[None]:
        for path, *_ in jobs:
            for folder in ("Single-source", "Multi-sources"):
                (path.parents[1] / folder).mkdir(exist_ok=True)
        return []


@pytest.fixture
def no_media(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ave, "ProcessPoolExecutor", NoMedia)


def digest(root: Path) -> str:
    made = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        made.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return made.hexdigest()[:16]


@pytest.mark.parametrize("layout, setting", OLDER)
def test_the_older_world_stays_as_it_was(layout: str, setting: str | None, no_media: None, tmp_path: Path) -> None:
    SYNTHETIC_DATASETS[layout](tmp_path, videos=40, seed=7, **({"setting": setting} if setting else {}))
    assert digest(tmp_path) == OLDER[layout, setting]


def test_the_older_world_looks_and_sounds_as_it_did() -> None:
    scene = scenes.draw_scene(np.random.default_rng([7, 3]), scenes.Settings())
    frames = hashlib.sha256(b"".join(frame.tobytes() for frame in scene.frames(2))).hexdigest()[:16]
    wave = scene.audio()
    assert frames == "3c8df5d8a323f546"
    assert wave.std() == pytest.approx(0.117107, abs=1e-5) and np.abs(np.fft.rfft(wave)).argmax() == 50204


def drawn(binding: str, count: int = 2500, **options: Any) -> list[BoundScene]:
    """Scenes as AVE's layout has them."""
    settings = BoundSettings(binding, **options)
    return [ave.clip_scene(0, index, settings) for index in range(count)]


def information(pairs: list[tuple[Any, int]]) -> float:
    """Mutual information in bits, corrected for the number of pairs (Miller and Madow)."""
    both, left, right = Counter(pairs), Counter(x for x, _ in pairs), Counter(y for _, y in pairs)
    found = sum(n / len(pairs) * np.log2(n * len(pairs) / (left[x] * right[y])) for (x, y), n in both.items())
    return found - (len(both) - len(left) - len(right) + 1) / (2 * len(pairs) * np.log(2))


@pytest.mark.parametrize("binding", ["a2v", "time"])
def test_sound_tells_nothing_about_the_label(binding: str) -> None:
    found = drawn(binding, offscreen_sounds=1)
    labels = [scene.events()[0][0] for scene in found]
    for describe in (lambda s: (s.contour, s.pitch), lambda s: s.timbre, lambda s: int(s.level * 50)):
        for place in range(2):
            heard = [describe(scene.sounds[place]) for scene in found]
            assert abs(information(list(zip(heard, labels)))) < 0.01
            assert information(list(zip(heard, heard))) > 1  # the estimate does find what is there
    assert information(list(zip([tuple(s.timbre for s in scene.sounds) for scene in found], labels))) < 0.05


def test_sight_tells_nothing_about_the_label_of_a_sound() -> None:
    found = drawn("v2a", objects=2)
    labels = [scene.events()[0][0] for scene in found]
    for describe in (lambda o: o.shape, lambda o: (o.colour, o.size), lambda o: o.texture):
        assert abs(information([(describe(scene.objects[0]), label) for scene, label in zip(found, labels)])) < 0.01


@pytest.mark.parametrize("binding", BINDINGS)
def test_one_alone_guesses_among_what_is_there(binding: str) -> None:
    """The best of all rules for which object is meant, from one modality alone, is right one time in the number."""
    found = drawn(binding, 2000)
    if binding == "v2a":
        crowd = [[(s.contour, s.level, s.timbre) for s in scene.sounds] for scene in found]
    else:
        crowd = [[(o.shape, o.radius, o.position[0], o.colour, o.texture) for o in scene.objects] for scene in found]
    labels = [scene.events()[0][0] for scene in found]
    expected = chance(found[0])["audio" if binding == "v2a" else "visual"]
    for column in range(1, len(crowd[0][0])):
        for best in (min, max):
            right = np.mean(
                [best(those, key=lambda one: one[column])[0] == label for those, label in zip(crowd, labels)]
            )
            assert right == pytest.approx(expected, abs=0.04), (column, best)
    places = [[those.index(next(one for one in those if one[0] == label)) for those, label in zip(crowd, labels)]]
    if binding != "v2a":  # of sounds the order is not heard
        assert np.bincount(places[0]) / len(found) == pytest.approx(expected, abs=0.04)
    assert all(len({one[0] for one in those}) == len(those) for those in crowd)


@pytest.mark.parametrize("binding", BINDINGS)
def test_both_together_tell_the_label(binding: str) -> None:
    for index, scene in enumerate(drawn(binding, 200)):
        ((thing, sound, start, end),) = scene.pairs()
        assert scene.events() == [(index % 8, start, end)]
        assert (thing.colour, thing.size) == (sound.timbre, sound.pitch)
        assert len({o.colour for o in scene.objects}) == len(scene.objects)
        assert (start, end) == (0, 10) if binding != "time" else 2 <= end - start <= 8 and end - start != 5
        assert chance(scene)["both"] == 1


def test_the_sounding_object_changes() -> None:
    settings = BoundSettings("time")
    for index in range(60):
        one, two = action_scene(0, index, settings).pairs()
        assert one[3] == two[2] and one[0] is not two[0]
        longer = max((one, two), key=lambda pair: pair[3] - pair[2])
        assert longer[0].shape == index % 8
    ends = Counter(event_scene(np.random.default_rng(index), settings, 0).events()[0][2] == 10 for index in range(200))
    assert 60 < ends[True] < 140
    assert all(first[1] == second[0] for first, second in (turns(np.random.default_rng(i), 5, 1) for i in range(9)))


def test_the_oracle_s_scenes_are_the_same_without_the_others() -> None:
    plain, alone = (
        drawn(binding, 16, offscreen_sounds=1, objects=2, alone=alone)
        for binding, alone in (("a2v", False), ("a2v", True))
    )
    for scene, oracle in zip(plain, alone):
        assert oracle.events() == scene.events() and oracle.objects == scene.objects
        shown = oracle.shown()
        assert [(o.colour, s.timbre) for o, s, *_ in shown.pairs()] == [
            (o.colour, s.timbre) for o, s, *_ in scene.pairs()
        ]
        assert len(shown.objects) == len(shown.sounds) == 1
    assert (plain[0].frames(1)[0] != alone[0].frames(1)[0]).any()


def test_masks_cover_the_sounding_object_alone() -> None:
    quiet = BoundObject(1, 0, 1, 0, 14.0, (30.0, 50.0))
    loud, settings = BoundObject(0, 3, 1, 0, 14.0, (66.0, 50.0)), BoundSettings("a2v", noise=0)
    scene = BoundScene(0, (loud, quiet), (BoundSound(0, 3, 1, 0.2, 2, 5),), settings, 5)
    assert not scene.mask(1.5).any() and abs(scene.mask(2.5).sum() - np.pi * 14**2) < 60
    rows, columns = np.nonzero(scene.mask(2.5))
    assert (columns.mean(), rows.mean()) == pytest.approx((66, 50), abs=1)
    assert [int(v) for v in scene.frames(3)[10][50, 66]] == list(scenes.COLOURS[3])


def spectrum(contour: int, timbre: int, pitch: int) -> np.ndarray:
    wave = render_sound(BoundSound(contour, timbre, pitch, 0.2), 16000, np.random.default_rng(contour))
    return np.abs(np.fft.rfft(wave)) ** 2  # one bin a hertz


@pytest.mark.parametrize("contour", range(len(CONTOURS)))
def test_a_sound_has_the_band_of_its_timbre_and_the_pitch_of_its_size(contour: int) -> None:
    for timbre in range(len(FORMANTS)):
        power = spectrum(contour, timbre, timbre % 2)
        assert abs(np.argmax(power[100:300]) + 100 - (240, 120)[timbre % 2]) < 12
        band = power[400:]
        nearest = [band[int(f / 1.25) - 400 : int(f * 1.25) - 400].sum() for f in FORMANTS]
        assert np.argmax(nearest) == timbre and nearest[timbre] > 0.7 * band.sum()


def test_a_seed_fixes_pictures_and_sound() -> None:
    one, again, other = (event_scene(np.random.default_rng(seed), BoundSettings("time"), 3) for seed in (5, 5, 6))
    assert one == again != other
    for kind in ("frames", "audio"):
        made, repeated, another = (np.asarray(getattr(scene, kind)(2)) for scene in (one, again, other))
        assert np.array_equal(made, repeated) and not np.array_equal(made, another)
    assert one.frames(1)[0].dtype == np.uint8 and one.audio().dtype == np.float32 and np.abs(one.audio()).max() < 1


def test_rooms_and_walls_are_heard_and_seen() -> None:
    quiet, loud = (event_scene(np.random.default_rng(2), BoundSettings("a2v", noise=noise), 1) for noise in (0.0, 1.0))
    assert quiet.frames(1)[0].std() < loud.frames(1)[0].std()
    assert not np.array_equal(quiet.audio(1), loud.audio(1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"binding": "both"}, "binding"),
        ({"binding": "a2v", "objects": 7}, "objects: got 7"),
        ({"binding": "a2v", "objects": 0}, "objects: got 0"),
        ({"binding": "a2v", "noise": 1.5}, "noise: got 1.5"),
        ({"binding": "a2v", "classes": 9}, "classes: got 9"),
        ({"binding": "a2v", "classes": 2}, "classes: got 2"),
        ({"binding": "v2a", "classes": 2}, "classes: got 2"),
        ({"binding": "time", "objects": 6}, "objects, offscreen_sounds"),
        ({"binding": "v2a", "objects": 3, "offscreen_sounds": 4}, "objects, offscreen_sounds"),
    ],
)
def test_impossible_scenes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        BoundSettings(**options)
    if options["binding"] != "both":
        with pytest.raises(ArgumentError, match=message):
            SYNTHETIC_DATASETS["ave"](Path("nowhere"), **options)


@pytest.mark.parametrize(
    "layout, options, message",
    [
        ("ave", {"alone": True}, "alone"),
        ("ave", {"objects": 0}, "objects"),
        ("llp", {"objects": 2}, "objects"),
        ("llp", {"offscreen_sounds": 0}, "offscreen_sounds"),
        ("music_avqa", {"alone": True}, "alone"),
        ("music_avqa", {"binding": "a2v", "objects": 4}, "objects: got 4"),
        ("avsbench", {"binding": "time"}, "binding"),
        ("avsbench", {"binding": "a2v", "setting": "ms3"}, "binding"),
        ("avsbench", {"offscreen_sounds": 1}, "offscreen"),
        ("vggsound", {"binding": "v2a", "categories": ["disc", "star", "ring"]}, "categories"),
        ("kinetics_sounds", {"binding": "time", "objects": 1}, "objects: got 1"),
    ],
)
def test_arguments_that_would_say_nothing(layout: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        SYNTHETIC_DATASETS[layout](tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


CASES = [
    (layout, binding) for layout in ("ave", "llp", "music_avqa", "kinetics_sounds", "vggsound") for binding in BINDINGS
] + [("avsbench", binding) for binding in BINDINGS]


@pytest.mark.parametrize("layout, binding", CASES)
def test_every_layout_says_what_its_scenes_say(layout: str, binding: str, no_media: None, tmp_path: Path) -> None:
    setting = {"setting": "ms3" if binding == "time" else "s4"} if layout == "avsbench" else {}
    SYNTHETIC_DATASETS[layout](tmp_path, videos=60, binding=binding, **setting)
    made = [json.loads(line) for line in (tmp_path / "scenes.jsonl").read_text().splitlines()]
    assert len(made) == 60 and {len(scene["objects"]) for scene in made} == {1 if binding == "v2a" else 3}
    assert {len(scene["sounds"]) for scene in made} == {3 if binding == "v2a" else 2 if binding == "time" else 1}
    names = CONTOURS if binding == "v2a" else scenes.CATEGORIES
    if layout == "ave":
        splits = ave_layout.read_splits(tmp_path, names)
        assert sum(map(len, splits.values())) == 60
        for event in splits["test"]:
            scene = ave.clip_scene(0, int(event.id[8:]), BoundSettings(binding))
            assert scene.events() == [(event.category, event.start, event.end)]
    elif layout == "llp":
        settings = BoundSettings(binding)
        for line in (tmp_path / "AVVP_eval_audio.csv").read_text().splitlines()[1:]:
            name, start, end, label = line.split("\t")
            scene = llp.parsing_scene(0, int(name[6:11]), settings)
            assert (names.index(label), int(start), int(end)) in scene.events()
    elif layout == "music_avqa":
        asked = read_questions(questions_path(tmp_path, "json", "train"))
        assert {question.group for question in asked} > {"Audio-Visual"}
    elif setting != {"setting": "ms3"}:  # whose table has no categories
        assert any(name in path.read_text() for path in tmp_path.rglob("*.csv") for name in names[:8])


def test_questions_follow_from_a_bound_scene() -> None:
    settings = BoundSettings("time")
    scene = bound_scene(np.random.default_rng(4), settings)
    (first, *_), (second, *_) = scene.pairs()
    answers = {(question, values): answer for _, _, question, values, answer in bound_candidates(scene)}
    comes_in = "What is the <TH> instrument that comes in?"
    assert [answers[comes_in, (place,)] for place in ("first", "second")] == [
        scenes.CATEGORIES[first.shape],
        scenes.CATEGORIES[second.shape],
    ]
    assert (
        sum(
            answer == "yes"
            for (question, _), answer in answers.items()
            if question == "Is the <FL> sound coming from the <LR> instrument?"
        )
        == 2
    )
    columns = sorted(thing.position[0] for thing in scene.objects)
    assert columns == pytest.approx([16, 48, 80], abs=2)


def test_s4_masks_its_sounding_object(tmp_path: Path) -> None:
    counts = SYNTHETIC_DATASETS["avsbench"](tmp_path, "s4", videos=15, classes=3, binding="a2v", noise=0, workers=1)
    assert counts == {"train": 9, "val": 3, "test": 3}
    settings = BoundSettings("a2v", noise=0, classes=3)
    masks = [path for path in sorted(tmp_path.rglob("*_1.png")) if "masks" in path.as_posix()][:4]
    assert len(masks) == 4
    for path in masks:
        scene = draw_bound(
            np.random.default_rng([0, int(path.stem.split("_")[0][-6:])]),
            settings,
            int(path.stem.split("_")[0][-6:]) % 3,
            seconds=5,
        )
        mask = np.asarray(Image.open(path).convert("L")) > 0
        assert mask.mean() == pytest.approx(scene.mask(0.5).mean(), abs=0.02) and mask.any()
