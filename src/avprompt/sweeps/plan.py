"""What a sweep runs: the sweep file -> its runs."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from avprompt.configs import SUFFIXES, find_file, flatten, load_yaml, sources
from avprompt.errors import ConfigError
from avprompt.sweeps.run import SweepRun

KEYS, TASK_KEYS = {"experiment", "metric"}, {"experiment", "quickstart", "metric"}
VARIANT_KEYS = {"flags", "tasks", "experiment", "quickstart", "zero_shot", "at"}
PREFIX = "--model.backbone.prompts"
#: what a budget may count -> the flags that give a run this much of it, `{}`, and validate it as often, every `{every}`
BUDGETS = {
    "clips": ["--data.train_clips={}"],
    "steps": [
        "--trainer.max_steps={}",
        "--trainer.max_epochs=-1",
        "--trainer.check_val_every_n_epoch=null",
        "--trainer.val_check_interval={every}",
    ],
}
HINT = "Sweeps that ship are in experiments/sweeps/ of the source tree, and in the installed package."


def read_sweep(
    path: Path, seeds: list[int], out: Path, task: str | None = None, quickstart: bool = False
) -> tuple[list[SweepRun], str]:
    """Read a sweep file: its runs, and the metric that the table shows.

    The file has `experiment` (a name as for `--config`, or a path from its folder), `metric`, and `variants` (name ->
    list of flags, as on a command line). Besides:

    - `tasks` (name -> `experiment`, `metric`, and `quickstart`, the experiment on the synthetic dataset) instead of the
      first two.
    - `axis`, one flag and the list of its values: every variant runs with each of them.
    - `budget` (`clips` or `steps`, and the list of numbers) instead of `axis`, for learning curves: every variant trains
      on each number of clips, the smaller ones among the larger ones, with the epochs of the experiment; or for each
      number of steps, which starts anew each time, and validates after every common divisor of the numbers.
    - `vary` (flag -> list of values) instead of `axis`: each value is one more variant, named as in `alpha=0.1`, that
      changes this flag alone.
    - A variant may be a mapping: `flags`; `tasks`, where not all of them have it; its own `experiment` and
      `quickstart`;
      `zero_shot: true`, where nothing is trained (it is tested once for each seed, without the axis); `at`, which adds
      flags to `experiment` for some values of the axis.
    - An experiment may be a list: the file, then the flags that belong to it.
    - In flags `prompts.X=1` stands for the argument X of the prompt method, and `prompts=X` for its class in
      `avprompt.methods`. YAML files may lie beside the sweep or be fragments that ship; `--config=FILE` lays one over
      the experiment.

    Args:
        path: of the file.
        seeds: of the runs.
        out: folder of the runs.
        task: one of the file's tasks; `None` is the first.
        quickstart: take the experiments on the synthetic dataset.

    Returns:
        All runs, seed by seed, and the name of the metric.

    Raises:
        ConfigError: the file is missing, has other keys, or does not have this task.
    """
    content = load_yaml(path)
    ways = {"axis", "vary", "budget"}
    keys = set(content) - {"variants", *ways} if isinstance(content, dict) else set()
    if keys not in (KEYS, {"tasks"}) or not isinstance(content.get("variants"), dict) or len(ways & set(content)) > 1:
        raise ConfigError(
            path,
            content,
            "the keys experiment and metric, or tasks; variants; one of axis, budget and vary, or none",
            HINT,
        )
    tasks = content.get("tasks", {})
    if "tasks" not in content:
        if task is not None or quickstart:
            raise ConfigError(
                f"{path}: --task, --quickstart",
                task or "quickstart",
                "none: the file has one experiment",
                "Leave them out.",
            )
        chosen = content
    else:
        for name, keys in tasks.items() if isinstance(tasks, dict) else [("tasks", tasks)]:
            if not isinstance(keys, dict) or set(keys) != TASK_KEYS:
                raise ConfigError(f"{path}: {name}", keys, f"the keys {sorted(TASK_KEYS)}", HINT)
        task = next(iter(tasks)) if task is None else task
        if task not in tasks:
            raise ConfigError(
                f"{path}: --task", task, f"one of {', '.join(tasks)}", "The published table has no other."
            )
        chosen = tasks[task]
    flag, values = read_axis(path, content.get("axis"))
    counted, numbers = read_budget(path, content.get("budget"))
    values, axis = values or numbers, counted or flag.rpartition(".")[2]
    varied = read_vary(path, content.get("vary", {}), content["variants"])
    variants = {**content["variants"], **{name: [f"{flag}={value}"] for name, (flag, value) in varied.items()}}
    which, made = "quickstart" if quickstart else "experiment", []
    for name, entry in variants.items():
        where, entry = f"{path}: {name}", entry if isinstance(entry, dict) else {"flags": entry or []}
        if not set(entry) <= VARIANT_KEYS or not set(entry.get("tasks", [])) <= set(tasks):
            raise ConfigError(
                where, entry, f"flags, or some of {sorted(VARIANT_KEYS)}, flags and tasks of this file", HINT
            )
        at, zero_shot = entry.get("at", {}), entry.get("zero_shot", False)
        if (
            not isinstance(at, dict)
            or not set(at) <= set(values)
            or zero_shot not in (False, True)
            or (at and zero_shot)
        ):
            raise ConfigError(
                where,
                f"at {at}, zero_shot {zero_shot}",
                f"flags at some of {values or 'an axis'}, or zero_shot true",
                HINT,
            )
        if task not in entry.get("tasks", [task]):
            continue
        config, own = read_experiment(where, entry.get(which, chosen[which]), path.parent)
        flags = own + read_flags(where, entry.get("flags", []), path.parent)
        for value in [None] if zero_shot or not values else values:
            more = (
                []
                if value is None
                else [f"{flag}={value}"]
                if flag
                else [own.format(value, every=math.gcd(*numbers)) for own in BUDGETS[counted]]
            )
            more += [] if quickstart else read_flags(where, at.get(value, []), path.parent)
            point = None if value is None else (axis, value)
            last = sources(["--config", str(config), *flags])[-1][1] if name in varied else {}
            alone = (next(iter(flatten(last))), varied[name][1]) if name in varied else None
            made.append((str(name), point, config, flags + more, zero_shot, alone))
    runs = [
        SweepRun(
            name,
            seed,
            config,
            flags,
            out / "-".join([name, *([f"{point[0]}{point[1]}"] if point else []), f"seed{seed}"]),
            point,
            zero_shot,
            alone,
        )
        for seed in seeds
        for name, point, config, flags, zero_shot, alone in made
    ]
    check_names(path, runs)
    return runs, chosen["metric"]


def check_names(path: Path, runs: list[SweepRun]) -> None:
    """See that every run has a folder of its own, right below the sweep's.

    Raises:
        ConfigError: a name leads elsewhere or is too long for a file system, or two are the same.
    """
    taken: dict[str, SweepRun] = {}
    for run in runs:
        name = run.folder.name
        values = [run.variant, *map(str, run.axis or ())]
        unsafe = any(re.search(r"[/\\\x00-\x1f]", value) for value in values)
        if unsafe or name.startswith(".") or len(name.encode()) > 200:
            raise ConfigError(
                f"{path}: variants",
                repr(run.name),
                "a name that a folder may have: no slashes, no dot in front, at most 200 bytes",
                "Rename the variant.",
            )
        other = taken.setdefault(name.casefold(), run)
        if other is not run:
            raise ConfigError(
                f"{path}: variants",
                f"{other.name!r} and {run.name!r}, which would share the folder {name}",
                "names that differ, not only as number and text or in upper and lower case",
                "Rename one.",
            )


def read_axis(path: Path, entry: Any) -> tuple[str, list[Any]]:
    """The flag that every variant runs through and its values, none where there is no axis.

    Raises:
        ConfigError: the entry is not one flag with a list of different values.
    """
    if entry is None:
        return "", []
    flag, values = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (None, None)
    if (
        not str(flag).startswith("--")
        or not isinstance(values, list)
        or not values
        or None in values
        or len(set(map(str, values))) < len(values)
    ):
        raise ConfigError(f"{path}: axis", entry, "one flag and the list of its values", HINT)
    return flag, values


def read_budget(path: Path, entry: Any) -> tuple[str, list[int]]:
    """What a learning curve counts and the numbers of it, none where there is no budget.

    Raises:
        ConfigError: the entry is not `clips` or `steps` with a list of different positive numbers.
    """
    if entry is None:
        return "", []
    kind, numbers = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (None, None)
    if (
        kind not in BUDGETS
        or not isinstance(numbers, list)
        or not numbers
        or len(set(numbers)) < len(numbers)
        or any(type(number) is not int or number < 1 for number in numbers)
    ):
        raise ConfigError(
            f"{path}: budget",
            entry,
            f"one of {', '.join(BUDGETS)} with a list of positive numbers",
            "Such as `budget: {clips: [30, 60, 120, 240]}`.",
        )
    return kind, numbers


def read_vary(path: Path, entry: Any, variants: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Variants that change one argument alone: name -> flag and value.

    Raises:
        ConfigError: an entry without a list of values, or a name that occurs twice.
    """
    if not isinstance(entry, dict) or not all(
        isinstance(values, list) and values and all(isinstance(value, (bool, int, float, str)) for value in values)
        for values in entry.values()
    ):
        raise ConfigError(f"{path}: vary", entry, "flags, such as prompts.alpha, with lists of values", HINT)
    made = [
        (f"{str(flag).rpartition('.')[2]}={value}", (flag, value)) for flag, values in entry.items() for value in values
    ]
    names = [*variants, *(name for name, _ in made)]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"{path}: vary",
            sorted({str(name) for name in names if names.count(name) > 1}),
            "names that no other variant has",
            "Give each value once, and other names in variants.",
        )
    return dict(made)


def read_experiment(where: str, entry: Any, folder: Path) -> tuple[Path, list[str]]:
    """The file of an experiment, and the flags that belong to it.

    Raises:
        ConfigError: there is no such file.
    """
    name, *flags = entry if isinstance(entry, list) and entry else [entry]
    config = find_file(str(name), folder if "/" in str(name) else None, f"{where}: experiment").resolve()
    return config, read_flags(where, flags, folder)


def read_flags(where: str, entry: Any, folder: Path) -> list[str]:
    """Flags as the command line takes them: `prompts` written out, YAML files beside the sweep with their full path.

    Raises:
        ConfigError: the entry is no list of flags with values, or names a missing `--config`.
    """
    if not isinstance(entry, list) or not all(
        isinstance(flag, str) and re.match(r"(--|prompts(?=[.=])).*=", flag) for flag in entry
    ):
        raise ConfigError(where, entry, "a list of flags with values, such as --trainer.max_epochs=3", HINT)
    flags = []
    for flag in entry:
        name, _, value = flag.partition("=")
        if value.endswith(SUFFIXES) or name == "--config":
            value = str(find_file(value, folder, where).resolve())
        if name == "prompts":
            name, value = PREFIX, f"avprompt.methods.{value}"
        elif name.startswith("prompts."):
            name = f"{PREFIX}.{name.removeprefix('prompts.')}"
        flags.append(f"{name}={value}")
    return flags
