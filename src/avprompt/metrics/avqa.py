"""Accuracy of audio-visual question answering."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from avprompt.errors import ArgumentError, ShapeError

#: (group, kind) of every question, in the order of the published tables
TYPES = (
    ("Audio", "Counting"),
    ("Audio", "Comparative"),
    ("Visual", "Counting"),
    ("Visual", "Location"),
    ("Audio-Visual", "Existential"),
    ("Audio-Visual", "Counting"),
    ("Audio-Visual", "Location"),
    ("Audio-Visual", "Comparative"),
    ("Audio-Visual", "Temporal"),
)
#: group of questions -> what published tables call its accuracy
GROUPS = {"Audio": "AQ", "Visual": "VQ", "Audio-Visual": "AVQ"}
_PLACE = {pair: place for place, pair in enumerate(TYPES)}


def _place(question_type: str | Sequence[str]) -> int:
    try:
        pair = tuple(json.loads(question_type) if isinstance(question_type, str) else question_type)
        return _PLACE[pair]
    except (ValueError, TypeError, KeyError) as error:
        raise ArgumentError(
            "question_type",
            repr(question_type),
            f"one of {[json.dumps(t) for t in TYPES]}",
            "Hand on the batch's `question_type`.",
        ) from error


#: every figure that the metric may give
METRICS = (*GROUPS.values(), "average", *(" ".join(pair) for pair in TYPES))


def metric_names(question_type: str | Sequence[str]) -> tuple[str, ...]:
    """The figures of `AVQAAccuracy` in which a question of this type counts.

    Raises:
        ArgumentError: an unknown type.

    Example:
        >>> metric_names('["Audio", "Counting"]')
        ('AQ', 'average', 'Audio Counting')
    """
    group, kind = TYPES[_place(question_type)]
    return GROUPS[group], "average", f"{group} {kind}"


class AVQAAccuracy(Metric):
    """Share of questions whose best answer is right, in percent; higher is better.

    As published, there is a figure for each kind of question; `AQ`, `VQ` and `AVQ` are over all questions of a group,
    and `average` over all questions (not the mean of the other figures). Counts of several devices are summed.

    Example:
        >>> metric = AVQAAccuracy()
        >>> metric.update(torch.eye(3)[:2], torch.tensor([0, 2]), ['["Audio", "Counting"]'] * 2)
        >>> metric.compute()
        {'AQ': 50.0, 'average': 50.0, 'Audio Counting': 50.0}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        for name in ("right", "total"):
            self.add_state(name, torch.zeros(len(TYPES), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, answer: Tensor, question_type: Sequence[str | Sequence[str]]) -> None:
        """Count a batch.

        Args:
            logits: (B, A).
            answer: (B,) long in [0, A).
            question_type: B strings of the dataset, such as `["Audio", "Counting"]`, or (group, kind) pairs.

        Raises:
            ShapeError: the three shapes do not match.
            ArgumentError: a logit is NaN, an answer is not below A, or a type of question is unknown.
        """
        if logits.ndim != 2 or answer.shape != logits.shape[:1] or len(question_type) != len(logits):
            raise ShapeError(
                "logits, answer, question_type",
                f"{tuple(logits.shape)}, {tuple(answer.shape)}, {len(question_type)}",
                "(B, A), (B,), B of them",
                "Hand on the batch's own entries.",
            )
        if answer.is_floating_point() or answer.is_complex() or answer.dtype == torch.bool:
            raise ShapeError("answer", answer.dtype, "indices, long", "Hand on the batch's `answer`.")
        if logits.isnan().any():
            raise ArgumentError("logits", "NaN", "logits", "Look at the loss: has training diverged?")
        if ((answer < 0) | (answer >= logits.shape[1])).any():
            raise ArgumentError(
                "answer", answer.tolist(), f"indices below {logits.shape[1]}", "Check the task's number of answers."
            )
        places = torch.tensor([_place(kind) for kind in question_type], dtype=torch.long, device=self.total.device)
        right = (logits.argmax(-1) == answer).long().to(self.right.device)
        self.right.index_add_(0, places, right)
        self.total.index_add_(0, places, torch.ones_like(right))

    def compute(self) -> dict[str, float]:
        """Percent by `AQ`, `VQ`, `AVQ`, `average` and kind (`Audio Counting`, ...), without kinds that were not
        asked."""
        right, total = self._sums(self.right), self._sums(self.total)
        return {name: 100 * right[name] / count for name, count in total.items() if count}

    def counts(self) -> dict[str, int]:
        """Numbers of questions with the keys of `compute`, also summed over devices."""
        with self.sync_context():
            return {name: count for name, count in self._sums(self.total).items() if count}

    @staticmethod
    def _sums(state: Tensor) -> dict[str, int]:
        numbers = state.tolist()
        sums = {
            short: sum(number for (group, _), number in zip(TYPES, numbers) if group == name)
            for name, short in GROUPS.items()
        }
        return {**sums, "average": sum(numbers), **{" ".join(pair): n for pair, n in zip(TYPES, numbers)}}
