"""Tests of differences: worked by hand, by enumeration, and by what they cover on data whose truth is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from avprompt.reports.outcomes import ClipScores
from avprompt.reports.significance import (
    Comparison,
    Row,
    all_pairs,
    bootstrap,
    comparable,
    compare_rows,
    degrees,
    holm,
    permutation,
)


def row(label: str, scores: np.ndarray, weights: np.ndarray | None = None, first: int = 0) -> Row:
    """A row from the scores (S, C) of its seeds."""
    ids = tuple(f"clip{number:05d}" for number in range(scores.shape[1]))
    weights = np.ones(scores.shape[1]) if weights is None else weights
    clips = {first + seed: ClipScores(ids, own * weights, weights) for seed, own in enumerate(scores)}
    return Row(label, {seed: own.value for seed, own in clips.items()}, clips)


def pair(one: Row, other: Row) -> Comparison:
    return all_pairs([one, other])[0][0]


def test_permutation_by_enumeration() -> None:
    """Every way to change the places within pairs; differences of 0 change nothing."""
    rng = np.random.default_rng(0)
    for count in (2, 3, 7, 10):
        values = rng.normal(0.5, 1, count)
        sums = [abs(np.dot(signs, values)) for signs in itertools.product((1, -1), repeat=count)]
        expected = np.mean([total >= abs(values.sum()) - 1e-12 for total in sums])
        assert permutation(values) == pytest.approx(expected)
        assert permutation(np.r_[values, np.zeros(3)]) == pytest.approx(expected)
    assert permutation(np.zeros(4)) == permutation(np.array([0.3])) == 1
    # too many to enumerate: close to the normal distribution
    many = np.r_[np.ones(60), -np.ones(40)]
    assert permutation(many) == pytest.approx(2 * stats.norm.sf(1.9), abs=0.01)


def test_holm_on_a_worked_example() -> None:
    """Holm (1979): 0.005 is compared with 0.05/4, 0.01 with 0.05/3, 0.03 with 0.05/2, and there it stops."""
    base = Comparison("a", "b", 0.1, 0.0, 0.2, 0.0, 0.0, "clips", 1, 9, 0.0, 1.0, 0.0)
    made = holm([replace(base, p=p) for p in (0.01, 0.04, 0.03, 0.005)])
    assert [pair.adjusted for pair in made] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [pair.apart for pair in made] == [True, False, False, True]
    assert holm([]) == []


def test_difference_worked_by_hand() -> None:
    """Three seeds on four clips. Differences of the seeds: 1/2, 1/4, 3/4. Their variance is 1/16; the clips alone make
    it 1/18 (the differences of clips vary by 2/9 around their seeds' means, over 4), so it is taken as it is."""
    one = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1.0]])
    other = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    found = pair(row("one", one), row("other", other))
    assert found.difference == pytest.approx(0.5) and (found.seeds, found.clips) == (3, 4)
    assert found.p_permutation == 0.25 and found.over == "seeds and clips"
    covariance = np.cov(one - other) / 4
    own = np.trace(covariance) / 3
    common = max(0.0, (covariance.sum() - np.trace(covariance)) / 6)
    seeds, clips = max(np.var([0.5, 0.25, 0.75], ddof=1), own - common) / 3, common
    freedom = (seeds + clips) ** 2 / (seeds**2 / 2 + clips**2 / 3)
    assert found.standard_error() == pytest.approx(math.sqrt(seeds + clips), rel=0.05)  # the bootstrap's part is drawn
    assert found.p == pytest.approx(2 * stats.t.sf(0.5 / math.sqrt(seeds + clips), freedom), rel=0.15)
    assert found.high - found.difference == pytest.approx(found.difference - found.low)
    # without outcomes it is the paired t-test
    alone = pair(Row("one", {0: 0.75, 1: 0.5, 2: 1.0}), Row("other", {0: 0.25, 1: 0.25, 2: 0.25}))
    expected = stats.ttest_rel([0.75, 0.5, 1.0], [0.25] * 3)
    assert alone.p == pytest.approx(expected.pvalue) and alone.over == "seeds" and alone.clips == 0
    interval = expected.confidence_interval(0.95)
    assert (alone.low, alone.high) == pytest.approx((interval.low, interval.high))


def test_bootstrap_has_the_variance_of_means() -> None:
    """Of a ratio too, and the same clips are drawn for all rows and seeds."""
    rng = np.random.default_rng(1)
    scores = (rng.random((2, 300)) < 0.6).astype(float)
    one, other = row("one", scores), row("other", 1 - scores)
    drawn = bootstrap([one, other, Row("none", {0: 0.5})], draws=4000)
    assert drawn[2] is None and drawn[0].shape == (2, 4000)
    assert np.allclose(drawn[0] + drawn[1], 1)
    assert drawn[0].std(1) == pytest.approx(scores.std(1) / math.sqrt(300), rel=0.05)
    weights = rng.integers(1, 9, 300).astype(float)
    (ratio,) = bootstrap([row("one", scores, weights)], draws=4000)
    linear = weights * (scores - (scores @ weights / weights.sum())[:, None]) / weights.mean()
    assert ratio.std(1) == pytest.approx(linear.std(1) / math.sqrt(300), rel=0.06)


@pytest.mark.parametrize(("seeds", "clips", "between"), [(3, 60, 0.0), (3, 60, 0.4), (5, 200, 0.2), (1, 60, 0.0)])
def test_interval_covers_the_truth(seeds: int, clips: int, between: float) -> None:
    """Two methods, right or wrong by chance: each has its own good and bad clips, and its own luck with a seed.

    With one seed the truth is that of the two networks. Three seeds and more cover at least 93 of 100 times.
    """
    rng, covered, trials = np.random.default_rng(5), 0, 250 if seeds > 1 else 100
    for _ in range(trials):
        base = rng.standard_normal(clips)
        latent = [
            shift
            + base
            + rng.standard_normal(clips)
            + between * rng.standard_normal((seeds, 1))
            + rng.standard_normal((seeds, clips))
            for shift in (0.5, 0.0)
        ]
        one, other = (row(name, (own > 0).astype(float)) for name, own in zip(("one", "other"), latent))
        found = compare_rows(one, other, tuple(bootstrap([one, other], draws=300)))
        truth = stats.norm.cdf(0.5 / math.sqrt(3 + between**2)) - 0.5
        covered += found.low <= truth <= found.high
    assert 0.915 <= covered / trials <= 1


def test_equal_rows_are_not_told_apart() -> None:
    """All alike: in at most one of twenty tables is any row told apart from the best."""
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(30):
        base = rng.standard_normal(80)
        rows = [
            row(str(place), ((base + rng.standard_normal(80) + rng.standard_normal((3, 80))) > 0).astype(float))
            for place in range(4)
        ]
        wrong += any(pair.apart for pair in all_pairs(rows)[0])
    assert wrong <= 3


def test_identical_rows_and_rows_that_differ_everywhere() -> None:
    scores = (np.random.default_rng(0).random((3, 50)) < 0.5).astype(float)
    same = pair(row("one", scores), row("other", scores))
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1) and not same.apart
    apart = pair(row("one", np.ones((1, 50))), row("other", np.zeros((1, 50))))
    assert apart.over == "clips" and (apart.low, apart.high) == (1, 1) and apart.p < 0.001 and apart.apart


def test_what_cannot_be_compared() -> None:
    scores = np.ones((2, 5))
    assert comparable(row("one", scores), row("other", scores, first=2)) == "no seed in common"
    assert comparable(row("one", scores), row("other", np.ones((2, 6)))) == "other clips"
    assert comparable(row("one", scores), Row("other", {0: 0.5})) == "one seed in common, and no outcomes.csv"
    assert comparable(row("one", scores), Row("other", {0: 0.5, 1: 0.5})) == ""
    pairs, problems = all_pairs([row("one", scores), Row("two", {0: 0.5, 1: 0.4}), row("three", scores, first=2)])
    assert [(pair.first, pair.second) for pair in pairs] == [("one", "two")]
    assert problems == {("one", "three"): "no seed in common", ("two", "three"): "no seed in common"}


def test_power() -> None:
    """Against simulation, and that the numbers which are said to be needed are needed."""
    rng = np.random.default_rng(3)
    made = Comparison("a", "b", 0.04, 0, 0, 0, 0, "seeds and clips", 4, 100, 0.0004, 0.04, 0.05)
    told = []
    for _ in range(3000):
        cells = rng.normal(0, math.sqrt(0.05 / 100), 4) + rng.normal(0, 0.02, 4) + rng.normal(0, 0.02) + 0.04
        parts = (0.0004 + 0.05 / 100) / 4, 0.04 / 100
        spread = np.var(cells, ddof=1) / 4
        freedom = degrees((spread, parts[1]), 4, 100)
        told.append(abs(cells.mean()) / math.sqrt(spread + parts[1]) > stats.t.isf(0.025, freedom))
    assert made.power(4, 100) == pytest.approx(np.mean(told), abs=0.05)
    steadier = replace(made, seed_variance=0.0002)
    needed = steadier.needed("clips")
    assert steadier.power(4, needed) >= 0.8 > steadier.power(4, needed - 1)
    assert made.needed("clips") is None  # the seeds alone are too few
    assert made.needed("seeds") is None  # the clips alone are too few
    richer = replace(made, clips=1000)
    count = richer.needed("seeds")
    assert richer.power(count, 1000) >= 0.8 > richer.power(count - 1, 1000)
    assert richer.power(4, 1000, richer.detectable()) == pytest.approx(0.8, abs=1e-3)
    one_seed = replace(made, over="clips", seeds=1, seed_variance=0.0, cell_variance=0.0)
    assert one_seed.needed("seeds") is None and one_seed.needed("clips") > 100
    assert degrees((1.0, 0.0), 5, 0) == 4 and math.isinf(degrees((0.0, 0.0), 5, 9))
