"""Typed errors. Each names the argument or file, what it got, what it expected, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class AVPromptError(Exception):
    """Base of every error that avprompt raises on bad input.

    Args:
        subject: the argument, YAML key or file at fault.
        got: what was found there.
        expected: what would have been right.
        hint: what the user can do next.
    """

    def __init__(self, subject: str | Path, got: object, expected: str, hint: str) -> None:
        self.subject, self.got, self.expected, self.hint = str(subject), got, expected, hint
        super().__init__(f"{subject}: got {got}; expected {expected}. {hint}")

    def __reduce__(self) -> tuple:  # worker processes of a DataLoader pickle their errors
        return type(self), (self.subject, self.got, self.expected, self.hint)


def did_you_mean(word: object, names: Iterable[str]) -> str:
    """A question that suggests names that are spelt alike, with a space behind it; empty where there are none.

    Example:
        >>> did_you_mean("quickstrat", ["quickstart", "ave_dgsct"])
        'Did you mean quickstart? '
    """
    alike = difflib.get_close_matches(str(word), list(names), 3)
    return f"Did you mean {' or '.join(alike)}? " if alike else ""


class ArgumentError(AVPromptError, ValueError):
    """An argument has an impossible value or contradicts another one."""


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is none of an argument's choices, so that it does not act as one of them.

    Raises:
        ArgumentError: names the argument and its choices.
    """
    choices = tuple(choices)
    if value not in choices:
        raise ArgumentError(name, value, f"one of {', '.join(choices)}", did_you_mean(value, choices) + "Correct it.")


class ConfigError(AVPromptError, ValueError):
    """A YAML file or a command line says something that would be ignored or overridden."""


class ShapeError(AVPromptError, ValueError):
    """A tensor has the wrong shape or dtype."""


class WeightsError(AVPromptError, FileNotFoundError):
    """Pretrained encoder weights are missing or have the wrong format."""


class DatasetError(AVPromptError, FileNotFoundError):
    """A dataset's folder or some of its clips are missing."""


class AnnotationError(AVPromptError, ValueError):
    """An annotation file breaks its own format."""


class ClipDecodeError(AVPromptError, RuntimeError):
    """A media file cannot be turned into frames and waveform."""


class CheckpointError(AVPromptError, RuntimeError):
    """A checkpoint is truncated, foreign, or belongs to another model or other frozen encoders."""


class NonFiniteLossError(AVPromptError, FloatingPointError):
    """A loss term or its gradient became NaN or infinite."""


class WriteError(AVPromptError, OSError):
    """A file cannot be written: the disk is full, or its folder is read-only."""
