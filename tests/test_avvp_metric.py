"""F-scores of video parsing by hand, by brute force, and under every way of splitting the work."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from avprompt.errors import ArgumentError, ShapeError
from avprompt.metrics.avvp import AVVPFScore

NAMES = ("audio", "visual", "audio_visual", "type", "event")
Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def score(case: Case, size: int | None = None) -> dict[str, float]:
    """The metric over a case in batches of `size` videos."""
    metric, count = AVVPFScore(), len(case[0])
    for first in range(0, count, size or count):
        metric.update(*(part[first : first + (size or count)] for part in case))
    return metric.compute()


# An independent reference: plain Python over lists, written from the description of the published evaluation.


def events_of(row: list[bool]) -> list[set[int]]:
    """Maximal runs as sets of segments."""
    found: list[set[int]] = []
    for second, on in enumerate(row):
        if on and second and row[second - 1]:
            found[-1].add(second)
        elif on:
            found.append({second})
    return found


def count_segments(predicted: list[bool], annotated: list[bool]) -> list[int]:
    pairs = list(zip(predicted, annotated))
    return [pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))]


def count_events(predicted: list[bool], annotated: list[bool]) -> list[int]:
    ours, theirs = events_of(predicted), events_of(annotated)

    def hit(one: set[int], others: list[set[int]]) -> bool:
        return any(len(one & other) / len(one | other) >= 0.5 for other in others)

    return [
        sum(hit(e, theirs) for e in ours),
        sum(not hit(e, theirs) for e in ours),
        sum(not hit(e, ours) for e in theirs),
    ]


def mean_f(counts: list[list[int]]) -> float:
    scores = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in counts if tp + fp or tp + fn]
    return sum(scores) / len(scores) if scores else 1.0


def brute_force(case: Case) -> dict[str, float]:
    totals = {f"{level}_{name}": 0.0 for level in ("segment", "event") for name in NAMES}
    for audio, visual, video, true_audio, true_visual in zip(*(part.tolist() for part in case)):
        classes = range(len(video))
        predicted = {
            name: [[row[c] >= 0.5 and video[c] >= 0.5 for row in rows] for c in classes]
            for name, rows in (("audio", audio), ("visual", visual))
        }
        annotated = {
            name: [[bool(row[c]) for row in rows] for c in classes]
            for name, rows in (("audio", true_audio), ("visual", true_visual))
        }
        for sets in (predicted, annotated):
            sets["audio_visual"] = [[a and v for a, v in zip(*rows)] for rows in zip(sets["audio"], sets["visual"])]
        for level, count in (("segment", count_segments), ("event", count_events)):
            counts = {name: [count(predicted[name][c], annotated[name][c]) for c in classes] for name in predicted}
            scores = {name: mean_f(numbers) for name, numbers in counts.items()}
            scores["type"] = sum(scores.values()) / 3
            pairs = zip(counts["audio"], counts["visual"])
            scores["event"] = mean_f([[a + v for a, v in zip(*pair)] for pair in pairs])
            for name, value in scores.items():
                totals[f"{level}_{name}"] += value
    return {key: 100 * value / len(case[0]) for key, value in totals.items()}


def random_case(videos: int, seed: int, classes: int = 5, share: float = 0.5) -> Case:
    """Probabilities around a noisy version of the truth; about half of the classes do not occur."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    occurs = draw(videos, 1, classes) < 0.6
    targets = [((draw(videos, 10, classes) < share) & occurs).float() for _ in range(2)]
    probs = [(0.6 * target + 0.7 * draw(videos, 10, classes)) for target in targets]
    return (*probs, (0.4 * occurs.squeeze(1) + 0.6 * draw(videos, classes)), *targets)


def one(audio: str, visual: str, true_audio: str, true_visual: str, video: float = 1.0) -> Case:
    """One video of one class, segments as characters: `#` on, `.` off."""
    texts = (audio, visual, true_audio, true_visual)
    parts = [torch.tensor([[character == "#"] for character in text]).float()[None] for text in texts]
    return parts[0], parts[1], torch.tensor([[video]]), parts[2], parts[3]


def test_by_hand() -> None:
    """Heard: seconds 0-3 predicted, 2-5 true; seen: exactly right, seconds 4-7."""
    scores = score(one("####......", "....####..", "..####....", "....####.."))
    # audio: 2 right, 2 wrong, 2 missed; visual: 4 right; both: none predicted, seconds 4 and 5 missed
    assert {name: scores[f"segment_{name}"] for name in NAMES} == pytest.approx(
        {"audio": 50, "visual": 100, "audio_visual": 0, "type": 50, "event": 75}
    )
    # the one audio event overlaps by 2 of 6 seconds: wrong, and missed; pooled 1 right, 1 wrong, 1 missed
    assert {name: scores[f"event_{name}"] for name in NAMES} == pytest.approx(
        {"audio": 0, "visual": 100, "audio_visual": 0, "type": 100 / 3, "event": 50}
    )


@pytest.mark.parametrize(
    ("predicted", "annotated", "expected"),
    [
        ("####......", "##........", 100.0),  # exactly half: an intersection over union of 0.5 is enough
        ("#####.....", "##........", 0.0),
        ("##.##.....", "#####.....", 0.0),  # two events of 2 against one of 5, 0.4 each
        ("###.##....", "######....", 100 * 2 / 3),  # 0.5 and 0.33: one right, one wrong, none missed
        ("##########", "####.#####", 100 * 2 / 3),  # 0.4 and 0.5: one right, the other annotated one missed
        ("#.#.#.#.#.", ".#.#.#.#.#", 0.0),
        (".........#", ".........#", 100.0),  # up to the last second
        ("#........#", "#........#", 100.0),
    ],
)
def test_events_by_hand(predicted: str, annotated: str, expected: float) -> None:
    off = "." * 10
    scores = score(one(predicted, off, annotated, off))
    assert scores["event_audio"] == pytest.approx(expected) and scores["event_visual"] == 100
    swapped = score(one(off, predicted, off, annotated))
    assert swapped["event_visual"] == pytest.approx(expected) and swapped["event_audio"] == 100
    both = score(one(predicted, predicted, annotated, annotated))
    assert both["event_audio_visual"] == both["event_type"] == pytest.approx(expected)


def test_a_category_counts_only_if_the_video_has_it() -> None:
    on, off = "#" * 10, "." * 10
    assert score(one(on, on, on, on, video=0.49))["segment_type"] == 0
    assert score(one(on, on, on, on, video=0.5))["segment_type"] == 100
    assert score(one(on, on, off, off, video=0.49))["event_type"] == 100
    case = one(on, on, on, on)
    assert score((0.5 * case[0], 0.4999 * case[1], *case[2:]))["segment_type"] == pytest.approx(100 / 3)


def test_categories_that_occur_nowhere_do_not_count_and_nothing_is_perfect() -> None:
    """Of 4 categories one is right, one is wrong, one is missed, one is absent: the mean is over three."""
    probs, target = torch.zeros(1, 10, 4), torch.zeros(1, 10, 4)
    probs[..., 0] = target[..., 0] = probs[..., 1] = target[..., 2] = 1
    scores = score((probs, torch.zeros_like(probs), torch.ones(1, 4), target, torch.zeros_like(probs)))
    for level in ("segment", "event"):
        assert scores[f"{level}_audio"] == scores[f"{level}_event"] == pytest.approx(100 / 3)
        assert scores[f"{level}_visual"] == scores[f"{level}_audio_visual"] == 100
        assert scores[f"{level}_type"] == pytest.approx((100 / 3 + 200) / 3)


def adversarial() -> dict[str, Case]:
    zeros, ones, video = torch.zeros(3, 10, 4), torch.ones(3, 10, 4), torch.ones(3, 4)
    comb = torch.zeros(3, 10, 4)
    comb[:, ::2] = 1
    random = random_case(3, 99, classes=4)
    return {
        "no events": (zeros, zeros, video, zeros, zeros),
        "everything on": (ones, ones, video, ones, ones),
        "everything predicted": (ones, ones, video, zeros, zeros),
        "nothing predicted": (zeros, zeros, video, ones, ones),
        "silenced by the video": (ones, ones, 0 * video, ones, comb),
        "one modality": (ones, zeros, video, ones, zeros),
        "never together": (comb, 1 - comb, video, comb, 1 - comb),
        "comb against all": (comb, ones, video, ones, comb),
        "comb against comb": (comb, 1 - comb, video, 1 - comb, comb),
        "at the threshold": (0.5 * ones, 0.5 * comb, 0.5 * video, ones, comb),
        "twice the same video": tuple(part[[0, 0, 1]] for part in random),
        "twice the same class": tuple(part[..., [0, 0, 1, 1]] for part in random),
    }


@pytest.mark.parametrize("name", adversarial())
def test_adversarial_cases_equal_brute_force(name: str) -> None:
    case = adversarial()[name]
    assert score(case) == pytest.approx(brute_force(case), abs=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_random_cases_equal_brute_force_however_they_are_split(seed: int, share: float) -> None:
    case = random_case(13, seed, share=share)
    expected = brute_force(case)
    assert len({round(value, 6) for value in expected.values()}) > 4  # a case that tells the ten apart
    assert list(score(case)) == list(expected)
    for size in (1, 4, 13):
        assert score(case, size) == pytest.approx(expected, abs=1e-9)


def test_other_numbers_of_segments() -> None:
    for segments in (1, 2, 7):
        case = random_case(6, segments)
        cut = tuple(part if part.ndim == 2 else part[:, :segments] for part in case)
        assert score(cut) == pytest.approx(brute_force(cut), abs=1e-9)


def test_merged_pickled_other_types() -> None:
    case = random_case(8, 1)
    whole, first, second = AVVPFScore(), AVVPFScore(), AVVPFScore()
    whole.update(*case)
    first.update(*(part[:3] for part in case))
    second.update(*(part[3:] for part in case))
    first.merge_state(second)
    expected = whole.compute()
    assert pickle.loads(pickle.dumps(first)).compute() == pytest.approx(expected, abs=1e-9)
    assert all(type(value) is float for value in expected.values()) and len(whole.scores[0]) == 8
    for kind in (torch.bool, torch.long, torch.float64):
        assert score((*case[:3], case[3].to(kind), case[4].to(kind))) == expected
    rounded = tuple(part.bfloat16() for part in case)
    assert score(rounded) == pytest.approx(brute_force(tuple(part.float() for part in rounded)), abs=1e-9)
    whole.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert all(value != value for value in AVVPFScore().compute().values())


def test_inputs_stay_as_they_are() -> None:
    case = random_case(2, 5)
    before = [part.clone() for part in case]
    score(case)
    assert all(torch.equal(a, b) for a, b in zip(case, before))


@pytest.mark.parametrize("place", range(5))
def test_misfits(place: int) -> None:
    case = list(random_case(2, 0))
    for wrong in (case[place][:1], case[place][..., :4], case[place][0], case[place][:, :1] if place != 2 else case[0]):
        with pytest.raises(ShapeError, match="num_classes"):
            AVVPFScore().update(*case[:place], wrong, *case[place + 1 :])


@pytest.mark.parametrize("place", range(5))
def test_nan_and_targets_that_are_none(place: int) -> None:
    """A diverged network would score as silence."""
    case = list(random_case(2, 0))
    for value in (float("nan"), 0.5) if place > 2 else (float("nan"),):
        broken = case[place].clone()
        broken[0, 0] = value
        metric = AVVPFScore()
        with pytest.raises(ArgumentError, match="NaN" if place < 3 else "0 and 1"):
            metric.update(*case[:place], broken, *case[place + 1 :])
        assert metric.scores == []
