"""Whether two rows of a table differ: a paired test over seeds and clips, and what it would take to tell them apart.

A figure varies for two reasons: another seed trains another network, and another test split has other clips. Rows are
compared on the same seeds and the same clips. The difference of two rows is the mean over seeds; its variance has the
part of the seeds, estimated from how far the differences of single seeds lie apart, and the part of the clips, which a
bootstrap estimates that draws clips with replacement, each with its units, for all rows and seeds at once (a seed is a
block). This is the analysis of Obuchowski and Rockette (Communications in Statistics, 1995) with seeds as readers and
clips as cases, and Student's t in place of the normal distribution, because seeds are few (Hillis, Statistics in
Medicine, 2007). Drawing seeds with replacement, too, would be too sure of itself: three seeds have ten such draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avprompt.reports.outcomes import ClipScores

#: level of the tests, and what `power` asks for
ALPHA, POWER = 0.05, 0.8
#: draws of the bootstrap and of permutations that are too many to count
DRAWS, PERMUTATIONS = 2000, 9999
#: largest numbers that `needed` tries
MOST_SEEDS, MOST_CLIPS = 1000, 10_000_000


@dataclass(frozen=True)
class Row:
    """A metric of one row, seed by seed.

    Args:
        label: of the row.
        values: seed -> metric in [0, 1].
        clips: seed -> its scores by clip; `None` where a run kept no outcomes.
    """

    label: str
    values: dict[Any, float]
    clips: dict[Any, ClipScores] | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return sum(self.values.values()) / len(self.values)


@dataclass(frozen=True)
class Comparison:
    """Two rows held against each other; differences are those of the first minus the second, in [-1, 1].

    Args:
        first: label.
        second: label.
        difference: mean over the common seeds.
        low: lower end of the 95 % interval.
        high: upper end.
        p: two-sided probability of a difference at least as large where there is none.
        p_permutation: the same from the exact permutation of signs: of seeds, or with one seed of clips, where more
            than 2^13 permutations are sampled. With S seeds it is at least 2 / 2^S.
        over: what varies in the test: `seeds and clips`; `clips`, where there is one seed: then the two networks
            are compared, not the methods; `seeds`, where runs kept no outcomes.
        seeds: number S of common seeds.
        clips: number C of clips, 0 without outcomes.
        seed_variance: of the difference between seeds, on infinitely many clips.
        clip_variance: of the difference between clips, for infinitely many seeds.
        cell_variance: what is left for a single seed and clip.
        adjusted: p after Holm's correction, see `holm`; NaN before it.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    p_permutation: float
    over: str
    seeds: int
    clips: int
    seed_variance: float
    clip_variance: float
    cell_variance: float
    adjusted: float = math.nan

    @property
    def apart(self) -> bool:
        """Whether the rows are told apart, after Holm's correction."""
        return self.adjusted < ALPHA

    def turned(self) -> Comparison:
        """The second row against the first."""
        return replace(
            self, first=self.second, second=self.first, difference=-self.difference, low=-self.high, high=-self.low
        )

    def standard_error(self, seeds: int | None = None, clips: int | None = None) -> float:
        """Of the difference, with other numbers of seeds and clips if these are given."""
        return math.sqrt(sum(self._parts(seeds or self.seeds, clips or self.clips)))

    def _parts(self, seeds: int, clips: int) -> tuple[float, float]:
        cell = self.cell_variance / (seeds * clips) if clips else 0.0
        return self.seed_variance / seeds + cell, self.clip_variance / clips if clips else 0.0

    def power(self, seeds: int, clips: int, difference: float | None = None, alpha: float = ALPHA) -> float:
        """Probability to tell the rows apart with these numbers, if the difference seen (or another) is the true one.

        Args:
            seeds: of each row; with one seed the clips alone vary.
            clips: of the test split.
            difference: `None` is the one that was seen.
            alpha: level of the test; `ALPHA` over the number of comparisons for Holm's correction.
        """
        from scipy.stats import nct, t

        parts = self._parts(seeds, clips)
        error = math.sqrt(sum(parts))
        shift = abs(self.difference if difference is None else difference)
        if error == 0:
            return float(shift > 0)
        freedom = degrees(parts, seeds, clips)
        limit = float(t.isf(alpha / 2, freedom))
        # the other tail of a shifted distribution, and values that scipy cannot tell from 0, add nothing
        return float(np.nan_to_num(nct.sf(limit, freedom, shift / error)))

    def needed(self, what: str, difference: float | None = None, alpha: float = ALPHA) -> int | None:
        """Least number of `seeds` or `clips`, the other one as it is, with which `power` reaches `POWER`.

        Returns:
            The number; `None` where not even `MOST_SEEDS` or `MOST_CLIPS` reach it, or where that cannot be known.
        """
        if (what == "seeds" and self.seeds < 2) or (what == "clips" and not self.clips):
            return None

        def reached(number: int) -> bool:
            sizes = (number, self.clips) if what == "seeds" else (self.seeds, number)
            return self.power(*sizes, difference, alpha) >= POWER

        low, most = 1, MOST_SEEDS if what == "seeds" else MOST_CLIPS
        high = 2
        while not reached(high):
            low, high = high, 2 * high
            if low >= most:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if reached(middle) else (middle, high)
        return high

    def detectable(self, alpha: float = ALPHA) -> float:
        """Least true difference that the present seeds and clips tell apart with probability `POWER`."""
        from scipy.optimize import brentq

        error = self.standard_error()
        if error == 0:
            return 0.0
        high = error
        while self.power(self.seeds, self.clips, high, alpha) < POWER:
            high *= 2
        return float(
            brentq(lambda size: self.power(self.seeds, self.clips, size, alpha) - POWER, 0, high, xtol=1e-6 * error)
        )


def degrees(parts: tuple[float, float], seeds: int, clips: int) -> float:
    """Degrees of freedom of a sum of two variances, that of seeds and that of clips (Satterthwaite).

    Example:
        >>> degrees((1.0, 0.0), 5, 400), round(degrees((1.0, 1.0), 5, 400), 2)
        (4.0, 15.84)
    """
    terms = [part**2 / (number - 1) for part, number in zip(parts, (seeds, clips)) if part > 0]
    return sum(parts) ** 2 / sum(terms) if terms else math.inf


def bootstrap(rows: Sequence[Row], draws: int = DRAWS, seed: int = 0) -> list[np.ndarray | None]:
    """The metric of every row and seed on `draws` test splits whose clips are drawn with replacement from the given
    one; the same splits for all rows and seeds.

    Args:
        rows: on the same clips.
        draws: number B.
        seed: of the draws.

    Returns:
        For each row (S, B) float64, seeds in the order of `Row.values`; `None` for a row without outcomes.

    Example:
        >>> clips = ClipScores(("a", "b"), np.array([1.0, 0.0]), np.array([1.0, 1.0]))
        >>> values, = bootstrap([Row("one", {0: 0.5}, {0: clips})], draws=8)
        >>> values.shape, sorted({float(value) for value in values.flat})
        ((1, 8), [0.0, 0.5, 1.0])
    """
    scored = [row for row in rows if row.clips]
    if not scored:
        return [None for _ in rows]
    count = len(next(iter(scored[0].clips.values())).ids)
    rng, found = np.random.default_rng(seed), [np.empty((len(row.values), draws)) for row in scored]
    sums, weights = (
        np.concatenate([[getattr(row.clips[seed], name) for seed in row.values] for row in scored])
        for name in ("sums", "weights")
    )
    block = max(1, 4_000_000 // count)
    for first in range(0, draws, block):
        size = min(block, draws - first)
        places = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(places.ravel(), minlength=size * count).reshape(size, count).astype(float)
        with np.errstate(invalid="ignore"):  # a draw in which nothing counts
            values = (times @ sums.T / (times @ weights.T)).T
        for mine, part in zip(found, np.split(values, np.cumsum([len(row.values) for row in scored])[:-1])):
            mine[:, first : first + size] = part
    drawn = iter(found)
    return [next(drawn) if row.clips else None for row in rows]


def compare_rows(first: Row, second: Row, drawn: tuple[np.ndarray | None, np.ndarray | None]) -> Comparison:
    """Test the difference of two rows.

    Args:
        first: a row.
        second: another one, on the same clips, with at least one seed in common.
        drawn: of `bootstrap` for both.
    """
    from scipy.stats import t

    common = [seed for seed in first.values if seed in second.values]
    differences = np.array([first.values[seed] - second.values[seed] for seed in common])
    mean, count, clips = float(differences.mean()), len(common), 0
    spread = float(differences.var(ddof=1)) if count > 1 else 0.0
    one = common_noise = 0.0
    scored = drawn[0] is not None and drawn[1] is not None
    if scored:
        clips = len(next(iter(first.clips.values())).ids)
        places = [[list(row.values).index(seed) for seed in common] for row in (first, second)]
        shifts = drawn[0][places[0]] - drawn[1][places[1]]
        shifts = shifts[:, ~np.isnan(shifts).any(0)]
        # draws with replacement vary less than clips do, by (C - 1) / C
        noise = np.atleast_2d(np.cov(shifts)) * clips / max(clips - 1, 1)
        one = float(np.trace(noise)) / count
        common_noise = max(0.0, (float(noise.sum()) - count * one) / (count * (count - 1))) if count > 1 else one
    own = max(0.0, one - common_noise)
    # seeds cannot lie closer together than the clips alone make them
    spread = max(spread, own)
    made = Comparison(
        first.label,
        second.label,
        mean,
        math.nan,
        math.nan,
        math.nan,
        permutation(differences if count > 1 or not scored else clip_differences(first, second, common[0])),
        ("seeds and clips" if scored else "seeds") if count > 1 else "clips",
        count,
        clips,
        max(0.0, spread - own),
        common_noise * clips,
        own * clips,
    )
    parts = made._parts(count, clips)
    error = math.sqrt(sum(parts))
    if count == 1:
        # the clips alone: percentiles of the draws, and the permutation of clips
        low, high = np.quantile(shifts[0], [ALPHA / 2, 1 - ALPHA / 2])
        return replace(made, low=float(low), high=float(high), p=made.p_permutation)
    if error == 0:  # equal in every clip, or by the same amount in every seed of runs without outcomes
        return replace(made, low=mean, high=mean, p=1.0 if mean == 0 else made.p_permutation)
    freedom = degrees(parts, count, clips)
    half = float(t.isf(ALPHA / 2, freedom)) * error
    return replace(made, low=mean - half, high=mean + half, p=float(2 * t.sf(abs(mean) / error, freedom)))


def clip_differences(first: Row, second: Row, seed: Any) -> np.ndarray:
    """What each clip adds to the difference of two rows with one seed, (C,)."""
    one, other = first.clips[seed], second.clips[seed]
    return one.sums / one.weights.sum() - other.sums / other.weights.sum()


def permutation(differences: np.ndarray) -> float:
    """Two-sided p of the mean of paired differences: both rows of a pair change places, in every way if there are few.

    Args:
        differences: (N,), of seeds or of clips.

    Example:
        >>> permutation(np.array([3.0, 2.0, 1.0]))
        0.25
    """
    from scipy.stats import permutation_test

    moved = differences[differences != 0]  # the others change nothing when they change places
    if not len(moved):
        return 1.0
    if len(moved) == 1:
        return 1.0
    found = permutation_test(
        (moved,),
        lambda values, axis: values.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=max(1, 4_000_000 // len(moved)),
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def comparable(first: Row, second: Row) -> str:
    """Why two rows cannot be tested, empty if they can."""
    common = [seed for seed in first.values if seed in second.values]
    if not common:
        return "no seed in common"
    if first.clips and second.clips:
        kept = [(row.clips[seed].ids, row.clips[seed].weights) for row in (first, second) for seed in row.values]
        if any(ids != kept[0][0] for ids, _ in kept):
            return "other clips"
    elif len(common) < 2:
        return "one seed in common, and no outcomes.csv"
    return ""


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """All comparisons of one table and metric with `adjusted`: p after Holm's correction for their number.

    Every pair counts, also where only those with the best row are shown: which row is best is seen in the same figures.

    Example:
        >>> pair = Comparison("a", "b", 0.1, 0.0, 0.2, 0.01, 0.01, "clips", 1, 9, 0.0, 1.0, 0.0)
        >>> [round(made.adjusted, 3) for made in holm([pair, replace(pair, p=0.04), replace(pair, p=0.03)])]
        [0.03, 0.06, 0.06]
    """
    if not comparisons:
        return []
    from statsmodels.stats.multitest import multipletests

    _, adjusted, *_ = multipletests([pair.p for pair in comparisons], ALPHA, "holm")
    return [replace(pair, adjusted=float(p)) for pair, p in zip(comparisons, adjusted)]


def all_pairs(rows: Sequence[Row]) -> tuple[list[Comparison], dict[tuple[str, str], str]]:
    """Test every two rows of a table that can be tested.

    Args:
        rows: a metric of each, under the same conditions.

    Returns:
        Their comparisons after Holm's correction, and for the other pairs of labels why not.
    """
    problems = {
        (one.label, other.label): why
        for place, one in enumerate(rows)
        for other in rows[place + 1 :]
        if (why := comparable(one, other))
    }
    same = [row for row in rows if row.clips]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in same:
        groups.setdefault(next(iter(row.clips.values())).ids, []).append(row)
    drawn = {row.label: values for mine in groups.values() for row, values in zip(mine, bootstrap(mine))}
    made = [
        compare_rows(one, other, (drawn.get(one.label), drawn.get(other.label)))
        for place, one in enumerate(rows)
        for other in rows[place + 1 :]
        if (one.label, other.label) not in problems
    ]
    return holm(made), problems
