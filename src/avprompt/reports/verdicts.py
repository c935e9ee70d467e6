"""Rows of a table held against each other: what is tested, what stands beside a figure, and the tests as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from avprompt.reports.outcomes import clip_scores, metric_columns
from avprompt.reports.rendering import Table
from avprompt.reports.significance import ALPHA, MOST_CLIPS, MOST_SEEDS, POWER, Comparison, Row, all_pairs
from avprompt.reports.variants import Variant

#: what a cell of a table says beside its figure
BEST, ALIKE, UNTESTED = "best", "≈ best", "untested"
#: verdicts on a row, as the files have them
WORDS = {BEST: "best", ALIKE: "not told apart from the best", UNTESTED: "untested", "": "told apart from the best"}
#: what the figures of the tests mean
DIFFERENCES = (
    "Difference: the row minus the other one, in percentage points, with its 95 % interval; p is two-sided. "
    "Seeds and clips both count as drawn at random, unless `over` names one of them alone."
)
#: of `pair_rows`
PAIR_COLUMNS = (
    "task",
    "metric",
    "row",
    "against",
    "difference",
    "low",
    "high",
    "standard_error",
    "p",
    "p_holm",
    "p_permutation",
    "over",
    "seeds",
    "clips",
    "verdict",
)


@dataclass
class PairedTests:
    """The tests of one metric among the rows of a task that were measured under the same conditions.

    Args:
        task: of the rows.
        metric: that was tested.
        rows: with their values by seed.
        pairs: every two rows that can be tested, after Holm's correction for their number.
        problems: pair of labels -> why it cannot be tested.

    Example:
        >>> tests = PairedTests("ave", "accuracy", [Row("one", {0: 0.7}), Row("two", {0: 0.6})], [], {})
        >>> tests.verdict("one"), tests.verdict("two")
        ('best', 'untested')
    """

    task: str
    metric: str
    rows: list[Row]
    pairs: list[Comparison]
    problems: dict[tuple[str, str], str]

    @property
    def best(self) -> str:
        """Label of the row with the highest mean."""
        return max(self.rows, key=lambda row: row.mean).label

    def pair(self, label: str) -> Comparison | None:
        """A row against the best one."""
        return next((pair for pair in self.pairs if {pair.first, pair.second} == {label, self.best}), None)

    def verdict(self, label: str) -> str:
        """`BEST`, `ALIKE`, `UNTESTED`, or nothing for a row that is told apart from the best."""
        if label == self.best:
            return BEST
        pair = self.pair(label)
        return UNTESTED if pair is None else "" if pair.apart else ALIKE

    def ordered(self, every: bool) -> list[Comparison]:
        """The pairs, the better row first: with the best one, or all of them."""
        place = {row.label: number for number, row in enumerate(sorted(self.rows, key=lambda row: -row.mean))}
        turned = [pair if place[pair.first] < place[pair.second] else pair.turned() for pair in self.pairs]
        return sorted(
            (pair for pair in turned if every or pair.first == self.best),
            key=lambda pair: (place[pair.first], place[pair.second]),
        )


def row_of(variant: Variant, metric: str) -> Row:
    """A metric of a variant, with its scores by clip where every run kept them."""
    values = {run.seed: run.metrics()[metric] for run in variant.runs if metric in run.metrics()}
    clips = {}
    for run in variant.runs:
        outcomes = run.outcomes
        if metric in run.metrics() and outcomes is not None and metric in metric_columns(outcomes):
            clips[run.seed] = clip_scores(outcomes, metric)
    return Row(variant.label, values, clips if values and len(clips) == len(values) else None)


def paired_tests(variants: list[Variant], metrics: list[str]) -> list[PairedTests]:
    """Test every two rows of one task that were measured on the same clips by the same protocol.

    Partial evaluations are not tested. Groups of one row are left out.
    """
    groups: dict[tuple[str, str], list[Variant]] = {}
    for variant in variants:
        if not variant.setting.part:
            groups.setdefault((variant.setting.data, variant.setting.protocol), []).append(variant)
    made = []
    for group in groups.values():
        for metric in metrics:
            rows = [row for variant in group if (row := row_of(variant, metric)).values]
            if len(rows) > 1:
                made.append(PairedTests(group[0].task, metric, rows, *all_pairs(rows)))
    return made


def headline(variants: list[Variant], metrics: list[str]) -> str:
    """The metric that the task is monitored by."""
    monitors = [run.result.get("monitor", "").removeprefix("val_") for run in variants[0].runs]
    return monitors[0] if monitors[0] in metrics else metrics[0]


def points(value: float) -> str:
    """A p-value or a difference of percentages, short."""
    return "" if math.isnan(value) else f"{100 * value:+.1f}"


def p_text(p: float) -> str:
    """A p-value: two significant digits, never 0.

    Example:
        >>> p_text(0.0312), p_text(0.000004), p_text(1.0)
        ('0.031', '< 0.0001', '1')
    """
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def pairs_table(tests: PairedTests, every: bool) -> Table:
    """The comparisons as a table.

    Args:
        tests: of one metric.
        every: all pairs in place of those with the best row.
    """
    shown = tests.ordered(every)
    rows = [
        [
            pair.first,
            pair.second,
            points(pair.difference),
            f"{points(pair.low)} to {points(pair.high)}",
            p_text(pair.p),
            p_text(pair.adjusted),
            str(pair.seeds),
            str(pair.clips or ""),
            pair.over,
            "told apart" if pair.apart else "not told apart",
        ]
        for pair in shown
    ]
    pairs = "the one pair" if len(tests.pairs) == 1 else f"all {len(tests.pairs)} pairs"
    remarks = [f"Holm's correction counts {pairs} of the {len(tests.rows)} rows."]
    if any(pair.over == "clips" for pair in shown):
        remarks.append(
            "over clips: with one seed in common two networks are compared, not two methods; another seed "
            "may turn the difference round."
        )
    if any(pair.over == "seeds" for pair in shown):
        remarks.append(
            "over seeds: some runs kept no outcomes.csv; other clips are not allowed for. Testing them again writes it."
        )
    remarks += untested(tests, every)
    return Table(
        f"{tests.task}: paired tests of {tests.metric}",
        ["row", "against", "difference", "95 % interval", "p", "p, Holm", "seeds", "clips", "over", "verdict"],
        rows,
        {},
        remarks,
        DIFFERENCES,
    )


def untested(tests: PairedTests, every: bool) -> list[str]:
    """Why pairs cannot be tested, one sentence a reason.

    Args:
        tests: of one metric.
        every: all pairs in place of those with the best row.
    """
    whys: dict[str, list[str]] = {}
    for (one, other), why in tests.problems.items():
        if every or tests.best in (one, other):
            whys.setdefault(why, []).append(
                one if other == tests.best else other if one == tests.best else f"{one} and {other}"
            )
    return [f"untested, {why}: {'; '.join(pairs)}" for why, pairs in whys.items()]


def needed_text(pair: Comparison, what: str, alpha: float) -> str:
    """How many seeds or clips tell a pair apart, and how many there are; or why that cannot be said.

    Args:
        pair: two rows.
        what: `seeds` or `clips`.
        alpha: level of the test.
    """
    if what == "seeds" and pair.seeds < 2:
        return "unknown from one seed"
    if what == "clips" and not pair.clips:
        return "unknown without outcomes"
    if not pair.difference:
        return "no difference was seen"
    number, has = pair.needed(what, alpha=alpha), getattr(pair, what)
    most = MOST_SEEDS if what == "seeds" else MOST_CLIPS
    return f"{number:,} (has {has:,})" if number else f"none up to {most:,} (has {has:,})"


def power_table(tests: PairedTests, every: bool) -> Table:
    """What it takes to tell the rows apart, as a table.

    Args:
        tests: of one metric.
        every: all pairs in place of those with the best row.
    """
    alpha, rows = ALPHA / max(len(tests.pairs), 1), []
    for pair in tests.ordered(every):
        rows.append(
            [
                pair.first,
                pair.second,
                points(pair.difference).lstrip("+"),
                f"{100 * pair.standard_error():.1f}",
                f"{pair.power(pair.seeds, pair.clips, alpha=alpha):.0%}",
                f"{100 * pair.detectable(alpha):.1f}",
                needed_text(pair, "seeds", alpha),
                needed_text(pair, "clips", alpha),
            ]
        )
    return Table(
        f"{tests.task}: power of the tests of {tests.metric}",
        [
            "row",
            "against",
            "difference",
            "standard error",
            "power now",
            "detectable difference",
            "seeds needed, with these clips",
            "clips needed, with these seeds",
        ],
        rows,
        {},
        [
            (
                f"For a probability of {POWER:.0%} at level {ALPHA} / {len(tests.pairs)} (all pairs), if the difference and "
                "the spread that were seen are the true ones. A small difference that was seen by chance asks for "
                "more than it is worth: the detectable difference does not depend on it."
            )
        ],
        DIFFERENCES,
    )


def group_of(tested: Sequence[PairedTests], variant: Variant, metric: str) -> PairedTests | None:
    """The tests that a variant takes part in."""
    return next(
        (
            tests
            for tests in tested
            if tests.task == variant.task
            and tests.metric == metric
            and any(row.label == variant.label for row in tests.rows)
        ),
        None,
    )


def verdict_of(tested: Sequence[PairedTests], variant: Variant, metric: str) -> str:
    """What stands beside a figure, nothing where it is told apart from the best one, or has none to compare with."""
    tests = group_of(tested, variant, metric)
    return "" if tests is None else tests.verdict(variant.label)


def pair_rows(tested: list[PairedTests]) -> list[dict[str, Any]]:
    """One row for each comparison, differences in percent; a pair that was not tested has its reason."""
    made = []
    for tests in tested:
        about = {"task": tests.task, "metric": tests.metric}
        for pair in tests.ordered(every=True):
            numbers = {name: round(100 * getattr(pair, name), 4) for name in ("difference", "low", "high")}
            made.append(
                {
                    **about,
                    "row": pair.first,
                    "against": pair.second,
                    **numbers,
                    "standard_error": round(100 * pair.standard_error(), 4),
                    "p": pair.p,
                    "p_holm": pair.adjusted,
                    "p_permutation": pair.p_permutation,
                    "over": pair.over,
                    "seeds": pair.seeds,
                    "clips": pair.clips,
                    "verdict": "told apart" if pair.apart else "not told apart",
                }
            )
        for (one, other), why in tests.problems.items():
            made.append(
                {
                    **dict.fromkeys(PAIR_COLUMNS, ""),
                    **about,
                    "row": one,
                    "against": other,
                    "verdict": f"untested: {why}",
                }
            )
    return made
