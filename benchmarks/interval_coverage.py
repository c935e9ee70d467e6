"""How often the 95 % interval of `avprompt compare` covers the true difference of two simulated methods.

    python benchmarks/interval_coverage.py --trials 400

Each method answers every clip rightly or wrongly: a score decides, the sum of the method's own level, the clip's
difficulty (both methods share it), the method's luck with the clip, with the seed, and with both (all normal with
deviation 1, but for the seed). The true difference is known. The second column is the percentile interval of a bootstrap
that draws seeds with replacement as well as clips.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from scipy import stats

from avprompt.reports.outcomes import ClipScores
from avprompt.reports.significance import Row, bootstrap, compare_rows

SHIFT = 0.5


def row(label: str, right: np.ndarray) -> Row:
    """A row from what is right, bool (S, C)."""
    ids, weights = tuple(map(str, range(right.shape[1]))), np.ones(right.shape[1])
    clips = {seed: ClipScores(ids, own.astype(float), weights) for seed, own in enumerate(right)}
    return Row(label, {seed: own.value for seed, own in clips.items()}, clips)


def coverage(seeds: int, clips: int, between: float, trials: int, rng: np.random.Generator) -> tuple[float, float]:
    """Shares of trials in which the interval of `compare`, and that of drawn seeds, hold the truth."""
    truth = stats.norm.cdf(SHIFT / math.sqrt(3 + between**2)) - 0.5
    ours = drawn = 0
    for _ in range(trials):
        base = rng.standard_normal(clips)
        rows = [
            row(
                name,
                shift
                + base
                + rng.standard_normal(clips)
                + between * rng.standard_normal((seeds, 1))
                + rng.standard_normal((seeds, clips))
                > 0,
            )
            for name, shift in (("one", SHIFT), ("other", 0.0))
        ]
        values = bootstrap(rows, draws=400)
        found = compare_rows(*rows, tuple(values))
        ours += found.low <= truth <= found.high
        weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), 400).T / seeds
        low, high = np.quantile(((values[0] - values[1]) * weights).sum(0), (0.025, 0.975))
        drawn += low <= truth <= high
    return ours / trials, drawn / trials


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    given, rng = parser.parse_args(), np.random.default_rng(0)
    print("| seeds | clips | deviation between seeds | `compare` | seeds drawn too |\n| --- | --- | --- | --- | --- |")
    for between in (0.0, 0.1, 0.3):
        for seeds in (2, 3, 5, 10):
            for clips in (80, 400):
                ours, drawn = coverage(seeds, clips, between, given.trials, rng)
                print(f"| {seeds} | {clips} | {between} | {100 * ours:.1f} | {100 * drawn:.1f} |", flush=True)
