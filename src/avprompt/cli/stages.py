"""Stages of one run in one process, `python -m avprompt.cli.stages '[["fit", ...], ["test", ...]]'`: what a process
imports before it computes takes longer than to test a small network."""

from __future__ import annotations

import json
import sys

from avprompt.cli import main


def stages(commands: list[list[str]]) -> None:
    """Run command lines one after the other; a failure ends the process with its exit code.

    Args:
        commands: words after `avprompt` of each.

    >>> stages([["--version"], ["--version"]])  # doctest: +ELLIPSIS
    0...
    0...
    """
    for command in commands:
        main(command)


if __name__ == "__main__":
    stages(json.loads(sys.argv[1]))
