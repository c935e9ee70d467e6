"""Ranges of the numbers that a user can give, declared beside the type of the argument and checked in one place.

`reduction: Count = 8` says that a reduction is a whole number from 1 on. The command line reads the annotation and
refuses other values before anything is built, with the name of the flag; `tests/test_ranges.py` finds arguments without
one.
"""

from __future__ import annotations

import functools
import inspect
import math
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from avprompt.errors import ArgumentError


@dataclass(frozen=True)
class Range:
    """The values that a number may have; none of them is NaN.

    Args:
        low: the smallest.
        high: the largest; infinity includes no infinite value.
        above: whether `low` itself is excluded.
        below: whether `high` itself is excluded.

    Example:
        >>> 0.5 in Range(0, 1), 2 in Range(0, 1), float("nan") in Range()
        (True, False, False)
        >>> print(Range(0, above=True), Range(0, 1, below=True), Range(1), Range(), sep="; ")
        above 0; at least 0 and below 1; at least 1; a finite number
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (value > self.low if self.above else value >= self.low)
            and (value < self.high if self.below else value <= self.high)
        )

    def __str__(self) -> str:
        low = "" if math.isinf(self.low) else f"{'above' if self.above else 'at least'} {self.low:g}"
        high = "" if math.isinf(self.high) else f"{'below' if self.below else 'at most'} {self.high:g}"
        return " and ".join(filter(None, (low, high))) or "a finite number"


#: how many, or how large: 1, 2, 3 ...
Count = Annotated[int, Range(1)]
#: of TCP
Port = Annotated[int, Range(1, 65535)]
#: 0, 1, 2 ...
Natural = Annotated[int, Range(0)]
#: any whole number
Integer = Annotated[int, Range()]
#: learning rates, temperatures, scales, seconds
Positive = Annotated[float, Range(0, above=True)]
#: weights of losses
NonNegative = Annotated[float, Range(0)]
#: parts of a whole, probabilities that may be certain
Share = Annotated[float, Range(0, 1)]
#: dropout, stochastic depth: with 1 nothing is left
Dropout = Annotated[float, Range(0, 1, below=True)]
#: any finite number
Number = Annotated[float, Range()]

#: numbers of classes that are not ours, by the package and the argument
FOREIGN: dict[str, dict[str, Range]] = {
    "torch.optim": {
        "lr": Range(0, above=True),
        "weight_decay": Range(0),
        "eps": Range(0),
        "momentum": Range(0),
        "gamma": Range(0),
        "step_size": Range(1),
        "T_max": Range(1),
        "T_0": Range(1),
        "T_mult": Range(1),
        "eta_min": Range(0),
        "factor": Range(0),
        "patience": Range(0),
        "total_iters": Range(1),
        "start_factor": Range(0, 1, above=True),
        "end_factor": Range(0, 1),
    },
    "lightning": {
        "max_epochs": Range(-1),
        "min_epochs": Range(0),
        "max_steps": Range(-1),
        "min_steps": Range(0),
        "limit_train_batches": Range(0),
        "limit_val_batches": Range(0),
        "limit_test_batches": Range(0),
        "limit_predict_batches": Range(0),
        "overfit_batches": Range(0),
        "val_check_interval": Range(0, above=True),
        "check_val_every_n_epoch": Range(1),
        "num_sanity_val_steps": Range(-1),
        "log_every_n_steps": Range(0),
        "accumulate_grad_batches": Range(1),
        "gradient_clip_val": Range(0),
        "num_nodes": Range(1),
        "reload_dataloaders_every_n_epochs": Range(0),
    },
}


def ranges(hint: Any) -> Iterator[Range]:
    """The ranges in a type hint.

    Example:
        >>> [str(found) for found in ranges(Count | None)]
        ['at least 1']
    """
    if get_origin(hint) is Annotated:
        yield from (part for part in hint.__metadata__ if isinstance(part, Range))
        yield from ranges(hint.__origin__)
    else:
        for part in get_args(hint):
            yield from ranges(part)


def outside(value: Any, hint: Any) -> tuple[Any, str] | None:
    """The first number in a value that its type hint does not allow, and what it allows.

    Example:
        >>> outside([0.5, 2], list[Share]), outside(None, Count | None), outside("a photo of a", Count | str)
        ((2, 'at least 0 and at most 1'), None, None)
    """
    if isinstance(value, (list, tuple, dict)):
        kinds = (dict,) if isinstance(value, dict) else (list, tuple)
        inner = [
            argument
            for part in (hint, *get_args(hint))
            if get_origin(part) in kinds
            for argument in get_args(part)[-1 if kinds == (dict,) else 0 :]
            if argument is not ...
        ]
        values = value.values() if isinstance(value, dict) else value
        return (
            next((found for one in values for found in [outside(one, Union[tuple(inner)])] if found), None)  # noqa: UP007
            if inner
            else None
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    parts = (hint,) if get_origin(hint) is Annotated else get_args(hint)
    allowed = [found for part in parts if get_origin(part) is Annotated for found in ranges(part)]
    if not allowed or any(value in found for found in allowed):
        return None
    return value, " or ".join(dict.fromkeys(map(str, allowed)))


@functools.cache
def hints(kind: Callable[..., Any]) -> dict[str, Any]:
    """Type hints, with their ranges, of the arguments of a function, or of a class and its parents."""
    package = next((name for name in FOREIGN if (kind.__module__ or "").startswith(f"{name}.")), None)
    if package is not None:
        return {name: Annotated[float, found] for name, found in FOREIGN[package].items()}
    if not inspect.isclass(kind):
        return typing.get_type_hints(kind, include_extras=True)
    found: dict[str, Any] = {}
    for owner in inspect.getmro(kind):
        if "__init__" in vars(owner) and owner.__module__.startswith("avprompt."):
            found = {**typing.get_type_hints(vars(owner)["__init__"], include_extras=True), **found}
    return found


def check_ranges(kind: Callable[..., Any], arguments: dict[str, Any], prefix: str) -> None:
    """Refuse numbers outside of the ranges that a class or function declares.

    Args:
        kind: class or function.
        arguments: its arguments by name.
        prefix: of their flags, such as `--data.`.

    Raises:
        ArgumentError: names the flag, the value and the range.

    Example:
        >>> from avprompt.tasks import AVVP
        >>> check_ranges(AVVP, {"smoothing": 2}, "--model.")
        Traceback (most recent call last):
            ...
        avprompt.errors.ArgumentError: --model.smoothing: got 2; expected at least 0 and at most 1. Correct it.
    """
    declared = hints(kind)
    for name, value in arguments.items():
        found = outside(value, declared[name]) if name in declared else None
        if found is not None:
            raise ArgumentError(f"{prefix}{name}", found[0], found[1], "Correct it.")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command that refuses numbers outside of the ranges that it declares, with the name of the flag."""

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        check_ranges(function, inspect.signature(function).bind(*args, **options).arguments, "--")
        return function(*args, **options)

    return called
