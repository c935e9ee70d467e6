"""Synthetic dataset in MUSIC-AVQA's layout: real mp4 files with sound, and questions in the wording of the dataset.

A scene shows one to three objects side by side (left, middle, right) and plays one or two sounds, whose objects may or
may not be in view. Two objects may have the same category. Of two sounds, one is about twice as loud as the other, and
they lie in different bands. The words of the questions have these meanings:

- an object *sounds* if a sound of its category is heard while it is in view (where both exist, they overlap for at
  least two seconds), and it *comes in* at the first second of the overlap;
- it is *always playing* if it sounds as long as it is in view;
- a *voiceover* is a sound whose object is never in view;
- the instrument on the left of another is the next one on that side.

Audio questions follow from the sound alone and visual questions from the picture alone; audio-visual questions need
both. A question is asked only if it has exactly one answer. Bound scenes (see `bound`) are asked fewer kinds of
questions, in which what sounds must be bound to what is seen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from avprompt.datasets.music_avqa import SPLITS, TYPES, Question, Vocabulary, questions_path, read_questions, tokenise
from avprompt.errors import ArgumentError
from avprompt.ranges import Count, Natural, Share
from avprompt.synthetic.ave import refuse_without_binding, write_dataset
from avprompt.synthetic.bound import CONTOURS, Binding, BoundObject, BoundScene, BoundSettings, draw_bound, turns
from avprompt.synthetic.scenes import CATEGORIES, COLOURS, SECONDS, SIZE, Scene, Settings, Sound, Thing, draw_interval

COLUMNS = {"left": SIZE / 6, "middle": SIZE / 2, "right": 5 * SIZE / 6}
NUMBERS = ("zero", "one", "two", "three")
QUIET, LOUD = (0.11, 0.13), (0.23, 0.26)
MOST_QUESTIONS = 8
KINDS = tuple(dict.fromkeys(kind for _, kind in TYPES))

#: group, kind, question as the files write it, its values, answer
Asked = tuple[str, str, str, tuple[str, ...], str]


def _touching(rng: np.random.Generator, span: tuple[int, int]) -> tuple[int, int]:
    """A random interval that overlaps `span` by at least two seconds; in four cases of ten it covers all of `span`."""
    if rng.random() < 0.4:
        return draw_interval(rng, span)
    while True:
        start, end = draw_interval(rng)
        if min(end, span[1]) - max(start, span[0]) >= 2:
            return start, end


def draw_scene(rng: np.random.Generator, classes: int = 8, noise: float = 0.3) -> Scene:
    """Draw a scene of one to three objects and one or two sounds."""
    settings = Settings(classes, noise=noise)
    order = [int(category) for category in rng.permutation(classes)]
    seen = order[: int(rng.choice(3, p=(0.2, 0.4, 0.4))) + 1]
    if len(seen) > 1 and rng.random() < 0.3:
        seen[1] = seen[0]
    spans = {category: (0, SECONDS) if rng.random() < 0.5 else draw_interval(rng) for category in order}
    things = []
    for category, column in zip(seen, rng.permutation(list(COLUMNS.values()))):
        position = float(column + rng.uniform(-2, 2)), float(rng.uniform(settings.radius[1], SIZE - settings.radius[1]))
        things.append(
            Thing(
                category,
                int(rng.integers(len(COLOURS))),
                float(rng.uniform(*settings.radius)),
                position,
                (0.0, float(rng.uniform(-6, 6))),
                *spans[category],
            )
        )
    heard: list[int] = []
    for _ in range(2 if rng.random() < 0.7 else 1):
        free = [category for category in order if all(category % 4 != other % 4 for other in heard)]
        inside, outside = ([c for c in free if (c in seen) is wanted] for wanted in (True, False))
        heard.append(int(rng.choice(inside if inside and (rng.random() < 0.75 or not outside) else outside)))
    levels = rng.permutation([rng.uniform(*QUIET), rng.uniform(*LOUD)])
    sounds = [
        Sound(
            category,
            float(rng.uniform(0.94, 1.06)),
            float(level),
            *(_touching(rng, spans[category]) if category in seen else draw_interval(rng)),
        )
        for category, level in zip(heard, levels)
    ]
    return Scene(int(rng.integers(2**31)), things, sounds, noise)


def clip_scene(seed: int, index: int, classes: int, noise: float) -> Scene:
    """Scene number `index` of a dataset; it does not depend on what else is generated."""
    return draw_scene(np.random.default_rng([seed, index]), classes, noise)


#: both have a position
Part = TypeVar("Part", Thing, BoundObject)


def _place(thing: Thing | BoundObject) -> str:
    return min(COLUMNS, key=lambda name: abs(COLUMNS[name] - thing.position[0]))


def _beside(things: list[Part], thing: Part, side: str) -> list[Part]:
    """The neighbour of `thing` on one side, as a list of one or no object; `things` are ordered from left to right."""
    place = things.index(thing)
    return things[max(place - 1, 0) : place] if side == "left" else things[place + 1 : place + 2]


def _ends(values: dict[int, int]) -> dict[str, int]:
    """`first` and `last` -> the key with the smallest and the largest value, if it is unique."""
    found = {"first": min(values.values(), default=0), "last": max(values.values(), default=0)}
    return {
        name: keys[0]
        for name, value in found.items()
        if len(keys := [key for key in values if values[key] == value]) == 1
    }


def ask(group: str, kind: str, question: str, answer: bool | int | str, *values: str) -> Asked:
    """A question with its answer in words."""
    if not isinstance(answer, str):
        answer = ("no", "yes")[answer] if isinstance(answer, bool) else NUMBERS[answer]
    return group, kind, question, values, answer


def bound_scene(rng: np.random.Generator, settings: BoundSettings) -> BoundScene:
    """Draw a bound scene of up to three objects side by side. One of them sounds, half of the time from beginning to
    end; with `time` two of them sound, one after the other."""
    if settings.binding == "time":
        spans = turns(rng)
    else:
        spans = [(0, SECONDS) if rng.random() < 0.5 else draw_interval(rng)]
    columns = [float(c + rng.uniform(-2, 2)) for c in rng.permutation(list(COLUMNS.values()))]
    return draw_bound(rng, settings, None, spans, columns=columns)


def bound_candidates(scene: BoundScene) -> Iterator[Asked]:
    """Questions with one answer in a bound scene: of its objects (with `v2a`: its sounds) the shape (the contour) is
    the name, and only an object whose sound is heard is *sounding*. What a scene does not show is not asked about."""
    scene = scene.shown()
    names = CONTOURS if scene.settings.binding == "v2a" else CATEGORIES
    pairs = scene.pairs()
    sounding = {"first": pairs[0][0], "last": pairs[-1][0]}
    for ordinal, (thing, sound, *_) in zip(("first", "second"), pairs):
        yield ask(
            "Audio-Visual",
            "Temporal",
            "What is the <TH> instrument that comes in?",
            names[scene.label(thing, sound)],
            ordinal,
        )
    if scene.settings.binding == "v2a":
        heard = {sound.contour for sound in scene.sounds}
        for contour in scene.settings.labels:
            yield ask("Audio", "Counting", "Is there a <Object> sound?", contour in heard, names[contour])
        return
    things = sorted(scene.objects, key=lambda thing: thing.position[0])
    for end, thing in sounding.items():
        yield ask("Audio-Visual", "Location", "Where is the <FL> sounding instrument?", _place(thing), end)
        for other in things:
            yield ask(
                "Audio-Visual",
                "Location",
                "Is the <FL> sound coming from the <LR> instrument?",
                other is thing,
                end,
                _place(other),
            )
        for side in ("left", "right"):
            for beside in _beside(things, thing, side):
                yield ask(
                    "Audio-Visual",
                    "Location",
                    "What is the <LR> instrument of the <FL> sounding instrument?",
                    names[beside.shape],
                    side,
                    end,
                )
    throughout = [thing for thing, sound, *_ in pairs if (sound.start, sound.end) == (0, scene.seconds)]
    for thing in things:
        yield ask(
            "Audio-Visual",
            "Existential",
            "Is the <Object> in the video always playing?",
            any(thing is one for one in throughout),
            names[thing.shape],
        )
        yield ask("Visual", "Counting", "Is there a <Object> in the entire video?", True, names[thing.shape])
    for absent in sorted(set(scene.settings.labels) - {thing.shape for thing in things}):
        yield ask("Visual", "Counting", "Is there a <Object> in the entire video?", False, names[absent])
    if len(things) > 1:
        for end, place in (("leftest", 0), ("rightest", -1)):
            yield ask(
                "Visual",
                "Location",
                "What kind of instrument is the <LRer> instrument? ",
                names[things[place].shape],
                end,
            )


def candidates(scene: Scene, rng: np.random.Generator, classes: int = 8) -> Iterator[Asked]:
    """Questions with one answer in a scene; `rng` draws the objects that are absent, and the order of two names."""
    things, sounds = sorted(scene.things, key=lambda t: t.position[0]), {s.category: s for s in scene.sounds}
    seen, heard = list(dict.fromkeys(t.category for t in things)), list(sounds)
    alone = {c: t for t in things if (c := t.category) in seen and sum(c == o.category for o in things) == 1}
    sounding = [t for t in things if t.category in sounds]
    onsets = {t.category: max(t.start, sounds[t.category].start) for t in sounding}
    # two objects of one category stand at two places, so that neither is the first
    first_and_last = {end: c for end, c in _ends(onsets).items() if c in alone}

    def pair(one: int, two: int) -> tuple[str, ...]:
        return tuple(CATEGORIES[c] for c in rng.permutation([one, two]))

    unseen, unheard = ([c for c in range(classes) if c not in known] for known in (seen, heard))
    present, absent, loud, mute = (int(rng.choice(known)) for known in (seen, unseen, heard, unheard))

    yield ask("Audio", "Counting", "How many musical instruments were heard throughout the video?", len(heard))
    yield ask("Audio", "Counting", "Is there a <Object> sound?", True, CATEGORIES[loud])
    yield ask("Audio", "Counting", "Is there a <Object> sound?", False, CATEGORIES[mute])
    yield ask("Audio", "Counting", "Are there <Object> and <Object> sound? ", False, *pair(loud, mute))
    if len(heard) == 2:
        names, (one, two) = [CATEGORIES[c] for c in heard], scene.sounds
        yield ask("Audio", "Counting", "Are there <Object> and <Object> sound? ", True, *pair(*heard))
        for order in (1, -1):
            yield ask(
                "Audio",
                "Comparative",
                "Is the <Object> louder than the <Object>?",
                order * (one.level - two.level) > 0,
                *names[::order],
            )
            longer = (one.end - one.start) - (two.end - two.start)
            if abs(longer) >= 2:
                yield ask(
                    "Audio",
                    "Comparative",
                    "Is the <Object> playing longer than the <Object>?",
                    order * longer > 0,
                    *names[::order],
                )

    for category in (present, absent):
        number = sum(t.category == category for t in things)
        yield ask("Visual", "Counting", "How many <Object> are in the entire video?", number, CATEGORIES[category])
        yield ask("Visual", "Counting", "Is there a <Object> in the entire video?", number > 0, CATEGORIES[category])
    yield ask("Visual", "Counting", "How many types of musical instruments appeared in the entire video?", len(seen))
    yield ask(
        "Visual", "Counting", "Are there <Object> and <Object> instruments in the video?", False, *pair(present, absent)
    )
    if len(seen) > 1:
        yield ask(
            "Visual",
            "Counting",
            "Are there <Object> and <Object> instruments in the video?",
            True,
            *pair(*rng.choice(seen, 2, replace=False)),
        )
        for end, place in (("leftest", 0), ("rightest", -1)):
            yield ask(
                "Visual",
                "Location",
                "What kind of instrument is the <LRer> instrument? ",
                CATEGORIES[things[place].category],
                end,
            )
    if len(things) == 1:
        yield ask("Visual", "Location", "What kind of musical instrument is it?", CATEGORIES[seen[0]])

    for side in ("left", "right"):
        for category, thing in alone.items():
            for beside in _beside(things, thing, side):
                yield ask(
                    "Visual",
                    "Location",
                    "What is the instrument on the <LR> of <Object>?",
                    CATEGORIES[beside.category],
                    side,
                    CATEGORIES[category],
                )
        # of two objects only one has a neighbour on that side, which answers the question without sound
        for end, category in first_and_last.items() if len(things) > 2 else ():
            for beside in _beside(things, alone[category], side):
                yield ask(
                    "Audio-Visual",
                    "Location",
                    "What is the <LR> instrument of the <FL> sounding instrument?",
                    CATEGORIES[beside.category],
                    side,
                    end,
                )

    for category in (c for c in alone if c in sounds):
        thing, sound = alone[category], sounds[category]
        yield ask(
            "Audio-Visual",
            "Existential",
            "Is the <Object> in the video always playing?",
            sound.start <= thing.start and thing.end <= sound.end,
            CATEGORIES[category],
        )
    yield ask("Audio-Visual", "Existential", "Is there a voiceover?", any(c not in seen for c in heard))
    if len(things) == len(heard) == 1:
        yield ask("Audio-Visual", "Existential", "Is this sound from the instrument in the video?", seen == heard)

    yield ask("Audio-Visual", "Counting", "How many instruments are sounding in the video?", len(sounding))
    yield ask("Audio-Visual", "Counting", "How many types of musical instruments sound in the video?", len(onsets))
    yield ask(
        "Audio-Visual",
        "Counting",
        "How many instruments in the video did not sound from beginning to end?",
        len(things) - len(sounding),
    )
    for category in seen:
        yield ask(
            "Audio-Visual",
            "Counting",
            "How many sounding <Object> in the video？",
            sum(t.category == category for t in sounding),
            CATEGORIES[category],
        )

    if len(heard) == 2:
        by_level = sorted(heard, key=lambda c: sounds[c].level)
        for end, category in (("lowest", by_level[0]), ("loudest", by_level[1])):
            if category in alone:
                yield ask("Audio-Visual", "Location", "Where is the <LL> instrument?", _place(alone[category]), end)
        for end, category in _ends({c: s.start for c, s in sounds.items()}).items():
            for thing in things:
                yield ask(
                    "Audio-Visual",
                    "Location",
                    "Is the <FL> sound coming from the <LR> instrument?",
                    thing.category == category,
                    end,
                    _place(thing),
                )
        if "first" in first_and_last:
            yield ask(
                "Audio-Visual",
                "Temporal",
                "What is the <TH> instrument that comes in?",
                CATEGORIES[first_and_last["first"]],
                "first",
            )
            if len(onsets) == 2:
                yield ask(
                    "Audio-Visual",
                    "Temporal",
                    "What is the <TH> instrument that comes in?",
                    CATEGORIES[_ends(onsets)["last"]],
                    "second",
                )
    if len(things) > 1:
        for end, category in first_and_last.items():
            yield ask(
                "Audio-Visual", "Temporal", "Where is the <FL> sounding instrument?", _place(alone[category]), end
            )

    levels = [sounds[t.category].level if t in sounding else 0.0 for t in things]
    for first, second in ((o, t) for o in range(len(things)) for t in range(len(things)) if levels[o] != levels[t]):
        yield ask(
            "Audio-Visual",
            "Comparative",
            "Is the instrument on the <LR> louder than the instrument on the <LR>?",
            levels[first] > levels[second],
            _place(things[first]),
            _place(things[second]),
        )


def questions(
    scenes: Mapping[str, Scene | BoundScene],
    per_video: int = 4,
    seed: int = 0,
    classes: int = 8,
    kinds: Sequence[str] = KINDS,
) -> dict[str, list[dict]]:
    """Questions about the scenes of a dataset, as records of avqa-<split>.json by split.

    In every split the videos take turns. Each receives the kind of question that has been asked least so far, and among
    those the wording and answer that occurred least, so that kinds, and answers to each wording, become about equally
    frequent. Validation and test use only words and answers of the training questions. Six tenths of the videos are for
    training, a fifth each for validation and test. With few `kinds`, a video may get fewer questions than `per_video`.

    Raises:
        ArgumentError: too few training questions for that, or a split without any question.
    """
    ids = list(scenes)
    found: dict[str, list[dict]] = {}
    known: Vocabulary | None = None
    for split, places in zip(SPLITS, ((0, 1, 2), (3,), (4,))):
        open_questions = {
            video: [
                asked
                for scene in (scenes[video],)
                for asked in (
                    bound_candidates(scene)
                    if isinstance(scene, BoundScene)
                    else candidates(scene, np.random.default_rng([seed, place, 1]), classes)
                )
                if asked[1] in kinds
            ]
            for place, video in enumerate(ids)
            if place % 5 in places
        }
        order = np.random.default_rng([seed, places[0], 2])
        counts: Counter[Any] = Counter()
        chosen: list[tuple[str, Asked]] = []
        for _ in range(per_video):
            for video, left in open_questions.items():
                if not left:
                    continue
                usable = [
                    asked
                    for asked in left
                    if known is None
                    or (asked[-1] in known.answer_index and set(tokenise(asked[2], asked[3])) <= set(known.words))
                ]
                if not usable:
                    raise ArgumentError(
                        "videos, questions_per_video",
                        f"{len(ids)}, {per_video}",
                        "training questions with all words of the other splits",
                        "Ask for more.",
                    )
                ranks = [(counts[a[:2]], counts[a[2], a[-1]], order.random()) for a in usable]
                asked = usable[ranks.index(min(ranks))]
                left.remove(asked)
                counts.update((asked[:2], (asked[2], asked[-1])))
                chosen.append((video, asked))
        if not chosen:
            raise ArgumentError(
                "videos, kinds",
                f"{len(ids)}, {list(kinds)}",
                f"a question for split {split}",
                "Ask for more videos or kinds.",
            )
        found[split] = [
            {
                "video_id": video,
                "question_id": len(found) * len(ids) * per_video + number,
                "type": json.dumps([group, kind]),
                "question_content": question,
                "templ_values": json.dumps(values),
                "question_deleted": 0,
                "anser": answer,
            }
            for number, (video, (group, kind, question, values, answer)) in enumerate(chosen)
        ]
        if split == "train":
            known = Vocabulary.of(
                Question(video, "", tokenise(asked[2], asked[3]), "", *asked[:2], asked[-1]) for video, asked in chosen
            )
    return found


def synthesize(
    root: Path,
    videos: Count = 400,
    questions_per_video: Count = 4,
    seed: Natural = 0,
    classes: Count = 8,
    binding: Binding = "none",
    objects: Count | None = None,
    offscreen_sounds: Natural | None = None,
    noise: Share = 0.3,
    alone: bool = False,
    kinds: Sequence[str] = KINDS,
    workers: Count = 2,
) -> dict[str, int]:
    """Write a synthetic dataset in MUSIC-AVQA's layout.

    `root` gets videos/<id>.mp4 (ten seconds each, picture and sound: `stride: null`), json/avqa-{train,val,test}.json,
    ques_vocab.txt and ans_vocab.txt, categories.txt, and scenes.jsonl with the full description of each scene. Six
    tenths of the videos are for training, a fifth each for validation and test. The same arguments give the same
    dataset.

    Args:
        root: folder to write.
        videos: number of videos.
        questions_per_video: number of questions about every video, all different.
        seed: of the dataset.
        classes: categories in use, 4 to 8.
        binding: `none`, or how sound and sight must be bound: `a2v`, `v2a`, `time`, see `synthetic.bound`.
        objects: with a binding, objects in view, at most 3; `None` is 3, with `v2a` 1.
        offscreen_sounds: with a binding, sounds whose object is not in view; `None` is 0, with `v2a` 2.
        noise: visual clutter and background noise, 0 to 1.
        alone: with a binding, show and play what belongs together and nothing else, for an oracle's row.
        kinds: kinds of questions to ask, in every group that has them.
        workers: processes.

    Returns:
        Number of questions by split.

    Raises:
        ArgumentError: too few videos, or a number is out of its range.
        DatasetError: `root` holds another synthetic dataset.
    """
    for name, value, least, most in (
        ("videos", videos, 10, 10**8 - 1),
        ("classes", classes, 4, len(CATEGORIES)),
        ("questions_per_video", questions_per_video, 1, MOST_QUESTIONS),
    ):
        if not least <= value <= most:
            raise ArgumentError(name, value, f"{least} to {most}", "Choose another number.")
    if not kinds or not set(kinds) <= set(KINDS):
        raise ArgumentError("kinds", list(kinds), f"some of {', '.join(KINDS)}", "Correct the argument.")
    root = Path(root)
    names, scenes = CATEGORIES[:classes], {}
    if binding == "none":
        refuse_without_binding(objects=objects, offscreen_sounds=offscreen_sounds, alone=alone)
    else:
        settings = BoundSettings(binding, objects, offscreen_sounds, noise, classes, alone)
        names = settings.names
        if settings.objects > len(COLUMNS):
            raise ArgumentError("objects", settings.objects, f"at most {len(COLUMNS)}, side by side", "Lower it.")
    for index in range(videos):
        scenes[f"{index + 1:08d}"] = (
            clip_scene(seed, index, classes, noise)
            if binding == "none"
            else bound_scene(np.random.default_rng([seed, index]), settings)
        )
    records = questions(scenes, questions_per_video, seed, classes, kinds)
    write_dataset(root, scenes, workers)
    (root / "json").mkdir(exist_ok=True)
    for split, asked in records.items():
        questions_path(root, "json", split).write_text(json.dumps(asked, indent=1), encoding="utf-8")
    vocabulary = Vocabulary.of(read_questions(questions_path(root, "json", "train")))
    for name, words in (
        ("ques_vocab.txt", vocabulary.words),
        ("ans_vocab.txt", vocabulary.answers),
        ("categories.txt", names),
    ):
        (root / name).write_text("\n".join(words) + "\n", encoding="utf-8")
    counts = {split: len(asked) for split, asked in records.items()}
    print(f"{root}: {videos} videos of {SECONDS} s, questions {counts}")
    return counts
