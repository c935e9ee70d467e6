"""`outcomes.csv` of a run as a table, and the metrics that follow from it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avprompt.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd

#: of a run's folder
FILE = "outcomes.csv"
#: in front of the name of a metric: the column with the weights of its scores
WEIGHT = "weight:"
#: the columns after this one are scores and weights
LAST = "decoded"


def read_outcomes(path: Path) -> pd.DataFrame:
    """The table as a data frame: scores and weights as numbers, NaN where a unit does not count; all else as text.

    Args:
        path: an `outcomes.csv`.

    Raises:
        DatasetError: there is no such file, or it is no table of outcomes.
    """
    import pandas as pd

    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            header = next(csv.reader(file), [])
        if "id" not in header or LAST not in header:
            raise DatasetError(
                path,
                f"the columns {header}",
                f"id, ..., {LAST}, and a column for each metric",
                "Test the checkpoint again, which writes the file.",
            )
        numbers = dict.fromkeys(header[header.index(LAST) + 1 :], float)
        names = dict.fromkeys(header[: header.index(LAST) + 1], str)
        return pd.read_csv(
            path,
            dtype={**names, **numbers},
            keep_default_na=False,
            float_precision="round_trip",
            na_values={key: [""] for key in numbers},
        )
    except (OSError, ValueError) as error:
        raise DatasetError(
            path,
            str(error),
            "a table of outcomes as `avprompt test` writes it",
            "Test the checkpoint again, which writes the file.",
        ) from error


def metric_columns(table: pd.DataFrame) -> list[str]:
    """Names of the metrics of a table.

    Example:
        >>> import pandas
        >>> metric_columns(pandas.DataFrame(columns=["id", "decoded", "accuracy", "weight:accuracy"]))
        ['accuracy']
    """
    columns = list(table.columns)
    return [name for name in columns[columns.index(LAST) + 1 :] if not name.startswith(WEIGHT)]


@dataclass(frozen=True)
class ClipScores:
    """A metric of one run, clip by clip; the metric is `sum(sums) / sum(weights)`.

    Args:
        ids: of C clips, sorted.
        sums: (C,) float64, weighted sum of the scores of a clip's units.
        weights: (C,) float64, sum of their weights.

    Example:
        >>> ClipScores(("a", "b"), np.array([1.0, 2.0]), np.array([2.0, 2.0])).value
        0.75
    """

    ids: tuple[str, ...]
    sums: np.ndarray
    weights: np.ndarray

    @property
    def value(self) -> float:
        """The metric in [0, 1]."""
        return float(self.sums.sum() / self.weights.sum())


def clip_scores(table: pd.DataFrame, metric: str) -> ClipScores:
    """A metric's scores, the units of a clip put together; clips in which no unit counts are left out.

    Args:
        table: of `read_outcomes`.
        metric: one of `metric_columns`.
    """
    counted = table[table[metric].notna()]
    weights = counted[WEIGHT + metric] if WEIGHT + metric in counted else counted[metric] * 0 + 1
    groups = weights.groupby(counted["id"].to_numpy()).sum()
    sums = (weights * counted[metric]).groupby(counted["id"].to_numpy()).sum()
    return ClipScores(tuple(groups.index), sums.to_numpy(), groups.to_numpy())
