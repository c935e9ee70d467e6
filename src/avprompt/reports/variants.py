"""Runs grouped into variants: the same settings but for the seed, beside the published row with the same settings."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from avprompt.configs import EXPERIMENTS, flatten
from avprompt.reports.published import Figure
from avprompt.reports.runs import Run, shots_of, task_of
from avprompt.reports.settings import Setting, encoders_of, method_of, published_setting, setting_of

#: settings in which runs of one variant may differ
FREE = (
    "seed_everything",
    "ckpt_path",
    "verbose",
    "weights_only",
    "trainer.logger",
    "trainer.accelerator",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.default_root_dir",
    "trainer.log_every_n_steps",
    "data.init_args.seed",
    "data.init_args.root",
    "data.init_args.num_workers",
    "data.init_args.pin_memory",
    "data.init_args.predict_root",
)


#: names of the experiments that ship
SHIPPED = frozenset(path.stem for path in EXPERIMENTS.glob("*.yaml"))


@dataclass
class Variant:
    """Runs that differ in their seeds alone.

    Args:
        task: as names of our experiments begin.
        label: name of the variant.
        setting: conditions of its figures.
        runs: one for each seed.
        published: metric -> published figures of the same variant.
        place: of these among all published ones, which orders the table.
        remarks: sentences below the table.
    """

    task: str
    label: str
    setting: Setting
    runs: list[Run]
    published: dict[str, list[Figure]] = field(default_factory=dict)
    place: int | None = None
    remarks: list[str] = field(default_factory=list)

    def values(self, metric: str) -> list[float]:
        """A metric of each seed, in [0, 1]."""
        return [run.metrics()[metric] for run in self.runs if metric in run.metrics()]

    def mean(self, read: Callable[[Run], float | None]) -> float | None:
        """Mean over seeds of a number that `read` takes from the training run; `None` where one lacks it."""
        values = [read(run.trained or run) for run in self.runs]
        return None if None in values else statistics.mean(values)


def label_of(run: Run) -> str:
    """The name of a run's variant: its method and encoders, or the name that a sweep's variant or a configuration of
    your own has; and its shots."""
    given = str((run.trained or run).result["experiment"])
    name = re.sub(r"(-(shots|clips|steps)\d+)?(-seed\d+)?$", "", given)
    if given in SHIPPED:
        name = f"{method_of(run.config)}, {encoders_of(run.config)}"
    shots, budget = shots_of(run), re.search(r"-(clips|steps)(\d+)-seed\d+$", given)
    name += f", {budget[2]} {budget[1]}" if budget else ""
    return name + (f", {shots} shot{'s' * (shots > 1)}" if shots else "")


def gather(runs: list[Run], figures: list[Figure]) -> list[Variant]:
    """Group runs into variants, find the published figures of each, and sort the variants as published."""
    used = {id(run.trained) for run in runs if run.trained is not None}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.metrics() and id(run) not in used:
            fixed = {
                name: value
                for name, value in flatten(run.config).items()
                if not any(name == free or name.startswith(f"{free}.") for free in FREE)
            }
            key = json.dumps([fixed, setting_of(run).data, setting_of(run).protocol], sort_keys=True)
            groups.setdefault(key, []).append(run)
    variants = []
    for group in groups.values():
        newest: dict[Any, Run] = {}
        for run in sorted(group, key=lambda run: (run.folder / "result.json").stat().st_mtime):
            newest[run.seed] = run
        task, labels = task_of(group[0]), [label_of(run) for run in group]
        variant = Variant(task, labels[0], setting_of(group[0]), [newest[seed] for seed in sorted(newest, key=str)])
        if len(newest) < len(group):
            variant.remarks.append(
                f"{variant.label}: left out, older than another run with the same seed: {len(group) - len(newest)}"
            )
        if len(set(labels)) > 1:
            variant.remarks.append(f"{variant.label}: the same settings as {sorted(set(labels[1:]) - {variant.label})}")
        match(variant, figures)
        variants.append(variant)
    name_data(variants)
    for task, label in repeated(variants):
        for variant in variants:
            if (variant.task, variant.label) == (task, label):
                given = (variant.runs[0].trained or variant.runs[0]).result["experiment"]
                told = ", ".join([given] * (given in SHIPPED) + [variant.setting.part] * bool(variant.setting.part))
                variant.label = f"{label} ({told})" if told else label
    for task, label in repeated(variants):
        same = [variant for variant in variants if (variant.task, variant.label) == (task, label)]
        for number, variant in enumerate(same, 1):
            variant.label = f"{label} #{number}"
            variant.remarks.append(f"{variant.label} is {variant.runs[0].folder}")
    order = {task: number for number, task in enumerate(dict.fromkeys(figure.task for figure in figures))}
    made = {
        id(variant): min((run.folder / "result.json").stat().st_mtime for run in variant.runs) for variant in variants
    }
    return sorted(
        variants,
        key=lambda variant: (
            order.get(variant.task, len(order)),
            variant.task,
            variant.place is None,
            variant.place or made[id(variant)],
        ),
    )


def repeated(variants: list[Variant]) -> list[tuple[str, str]]:
    """Task and label of several variants."""
    return [name for name, count in Counter((variant.task, variant.label) for variant in variants).items() if count > 1]


def match(variant: Variant, figures: list[Figure]) -> None:
    """Find the published figures of a variant: those with the most specific settings that its configuration has."""
    config = variant.runs[0].config
    found = [
        (place, figure)
        for place, figure in enumerate(figures)
        if figure.task == variant.task and figure.describes(config)
    ]
    alike = [
        (place, figure) for place, figure in found if published_setting(figure, {}).encoders == variant.setting.encoders
    ]
    found = alike or found
    if not found:
        return
    most = max(len(figure.settings.split()) for _, figure in found)
    found = [(place, figure) for place, figure in found if len(figure.settings.split()) == most]
    variant.place = found[-1][0]
    for _, figure in found:
        if figure.value is not None and figure.unit == "percent":
            variant.published.setdefault(figure.metric, []).append(figure)


def name_data(variants: list[Variant]) -> None:
    """Show the fingerprint of the clips where variants on the same data were measured on different clips."""
    clips = {variant.setting.data for variant in variants}
    for variant in variants:
        name, _, digest = variant.setting.data.partition("|")
        several = sum(other.startswith(f"{name}|") for other in clips) > 1
        shown = f"{name} (ids {digest})" if several else name
        variant.setting = replace(variant.setting, data=shown)
