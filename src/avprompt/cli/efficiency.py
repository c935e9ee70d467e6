"""`avprompt efficiency`, and the process in which it measures an experiment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from avprompt.configs import EXPERIMENTS, find_file
from avprompt.errors import ConfigError
from avprompt.ranges import Count
from avprompt.reports.efficiency import compare_steps, counted, measure


def measured(
    config: str | Path,
    overrides: list[str],
    device: str = "cpu",
    batch: int = 1,
    steps: int = 2,
    precision: str = "fp32",
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """`avprompt.reports.efficiency.measure` in a process of its own.

    Raises:
        ConfigError: that process failed; the message says how.
    """
    given = json.dumps([str(config), overrides, device, batch, steps, precision])
    done = subprocess.run(
        [sys.executable, "-m", "avprompt.cli.efficiency", given],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        reason = "\n".join(done.stderr.splitlines()[-3:])
        raise ConfigError(
            config,
            f"exit code {done.returncode}: {reason}",
            "a training step on random clips",
            "Try `avprompt params --config` with it; with too little memory, a smaller --batch.",
        )
    return json.loads(done.stdout.splitlines()[-1])


def efficiency(
    configs: list[Path],
    device: Literal["cpu", "cuda", "meta"] | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    batch: Count = 1,
    steps: Count = 2,
    out: Path | None = None,
    all: bool = False,
    against: str | None = None,
) -> None:  # a flag's name
    """Measure parameters, GFLOPs, seconds and peak memory of a training step of each experiment, and print a table.

    An experiment that fails is reported in its line, and the others proceed. What is measured is written at once: an
    interrupted command that is called again with the same `out` resumes with what is missing.

    Args:
        configs: names or files of experiments.
        device: where to run; `meta` runs nothing, and counts parameters, GFLOPs and what the forward pass keeps for
            the backward pass. `null` is `meta` with `all`, else `cpu`.
        precision: fp32, or bf16 autocast.
        batch: clips in a step.
        steps: measured after a first one; the best counts.
        out: CSV file of the table, with everything that is measured.
        all: every experiment that ships.
        against: name of one of the experiments: the table has ratios to it.

    Raises:
        ConfigError: no experiment has this name; `out` was written with other settings; at the end, some experiments
            failed.
    """
    paths = [find_file(path, subject="configs") for path in configs]
    if all or not paths:
        paths = [*paths, *(path for path in sorted(EXPERIMENTS.glob("*.yaml")) if path not in paths)]
    device = device or ("meta" if all else "cpu")
    if device == "meta":
        from avprompt.cli import parts_of

        compare_steps(paths, {"device": "meta"}, lambda path: counted(parts_of, str(path), []), out, against)
        return
    compare_steps(
        paths,
        {"device": device, "precision": precision, "batch": batch, "steps": steps},
        lambda path: measured(path, [], device, batch, steps, precision),
        out,
        against,
    )


if __name__ == "__main__":
    from avprompt.cli import parts_of

    print(json.dumps(measure(parts_of, *json.loads(sys.argv[1]))))
