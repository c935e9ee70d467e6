"""Compared runs in TensorBoard: a table of hyper-parameters, curves side by side, bars, and the table as text."""

from __future__ import annotations

import re
import shutil
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Picture
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName, Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter

from avprompt.board import grouped
from avprompt.configs import flatten, get_nested
from avprompt.reports.published import Figure
from avprompt.reports.tables import metrics_of, standard_error
from avprompt.reports.variants import Variant

FOLDER = "compare"
BAR, DIAMOND = "#4c78a8", "#b3261e"


def bars_figure(variants: list[Variant], metric: str) -> Picture:
    """A bar for each variant with standard error and seeds; published figures, measured under other conditions, are
    diamonds."""
    figure = Picture(figsize=(7, 0.9 + 0.34 * len(variants)), layout="constrained")
    axis = figure.add_subplot()
    for place, variant in enumerate(variants):
        values = [100 * value for value in variant.values(metric)]
        if values:
            axis.barh(place, statistics.mean(values), xerr=standard_error(values), color=BAR, height=0.62, capsize=3)
            axis.plot(values, [place] * len(values), ".", color="black", ms=5)
        for other in variant.published.get(metric, []):
            axis.plot(
                other.value,
                place,
                "D",
                color=DIAMOND,
                mfc="white",
                ms=6,
                label="published: other data, encoders or protocol"
                if not axis.get_legend_handles_labels()[0]
                else None,
            )
    axis.set_yticks(
        range(len(variants)), [f"{variant.label} (n={len(variant.runs)})" for variant in variants], parse_math=False
    )
    axis.invert_yaxis()
    axis.set_xlabel(f"{metric}, %, mean ± standard error, dots are seeds")
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper right", frameon=False, fontsize=8)
    return figure


def plugin_summary(tag: str, **content: Any) -> Summary:
    """One of the three messages of the hparams plugin as a summary."""
    data = HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content).SerializeToString()
    about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=data))
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])


def arguments_of(variant: Variant) -> dict[str, Any]:
    """The settings of a variant's network and training under short names."""
    model = variant.runs[0].config["model"]["init_args"]
    prompts = get_nested(model, "backbone.init_args.prompts") or {}
    short = {
        "prompts": (prompts.get("class_path") or "NoPrompts").rpartition(".")[2],
        **{f"prompts.{name}": value for name, value in flatten(prompts.get("init_args") or {}).items()},
        **{
            name.removesuffix(".class_path").replace(".init_args", ""): str(value).rpartition(".")[2]
            if name.endswith(".class_path")
            else value
            for name, value in flatten(
                {name: value for name, value in model.items() if name != "backbone"}, "model."
            ).items()
        },
    }
    return {
        **short,
        "shots": get_nested(variant.runs[0].config, "data.init_args.shots") or "all",
        "max_epochs": get_nested(variant.runs[0].config, "trainer.max_epochs") or 0,
    }


def curves(variant: Variant, tag: str) -> dict[int, list[float]]:
    """Step -> values of a scalar, one for each seed, from the event files of a variant's training runs."""
    found: dict[int, list[float]] = {}
    for run in variant.runs:
        events = EventAccumulator(str((run.trained or run).folder), size_guidance={"scalars": 0})
        events.Reload()
        for known in events.Tags()["scalars"]:
            for event in events.Scalars(known) if grouped(known) == tag else ():
                if event.step:
                    found.setdefault(event.step, []).append(event.value)
    return {step: found[step] for step in sorted(found)}


def write_dashboard(folder: Path, variants: list[Variant], figures: list[Figure], table: str) -> Path:
    """Write variants below a log folder; what an earlier comparison wrote there is replaced.

    The hyper-parameter table has one line for each variant (seeds are averaged); its columns are the settings in which
    the variants of a task differ, and the conditions of the figures. The custom scalars show the mean validation curves
    of all variants in one chart, and mean and standard error of each numbered variant. Pictures show bars, the text is the
    table.

    Args:
        folder: that of `tensorboard --logdir`.
        variants: compared runs.
        figures: what is published.
        table: Markdown, shown as text.

    Returns:
        The folder that was written.
    """
    place = Path(folder) / FOLDER
    shutil.rmtree(place, ignore_errors=True)
    tasks = dict.fromkeys(variant.task for variant in variants)
    of_task = {task: [variant for variant in variants if variant.task == task] for task in tasks}
    shown = {task: metrics_of(mine, figures) for task, mine in of_task.items()}
    given = {id(variant): arguments_of(variant) for variant in variants}
    varied = [
        name
        for name in dict.fromkeys(name for arguments in given.values() for name in arguments)
        if any(
            len({str(given[id(variant)][name]) for variant in mine if name in given[id(variant)]}) > 1
            for mine in of_task.values()
        )
    ]
    infos = [
        HParamInfo(name=name, type=DataType.DATA_TYPE_STRING, differs=name in varied)
        for name in (*varied, "data", "encoders", "protocol", "n")
    ]
    wanted = [
        MetricInfo(name=MetricName(tag=f"{task}/{metric}"), display_name=f"{task} {metric}, %")
        for task in tasks
        for metric in shown[task]
    ]
    layout: dict[str, Any] = {}
    with SummaryWriter(str(place)) as writer:
        writer.file_writer.add_summary(
            plugin_summary(
                metadata.EXPERIMENT_TAG,
                experiment=Experiment(
                    description="variants of `avprompt compare`", hparam_infos=infos, metric_infos=wanted
                ),
            )
        )
        writer.add_text("compare", table)
        for task, mine in of_task.items():
            layout[task] = charts = {"training loss": ["Multiline", [f"^{task}_training/loss$"]]}
            for metric in shown[task]:
                writer.add_figure(f"{task}/{metric}", bars_figure(mine, metric))
                tags = [f"{task}_variants/{metric}/{part}" for part in ("mean", "lower", "upper")]
                charts[f"validation {metric}, %"] = ["Multiline", [f"^{task}_validation/{re.escape(metric)}$"]]
                charts[f"{metric} of variant 1 to {len(mine)}, %"] = ["Margin", tags]
                for number, variant in enumerate(mine, 1):
                    values = [100 * value for value in variant.values(metric)]
                    if values:
                        mean, spread = statistics.mean(values), standard_error(values)
                        for tag, value in zip(tags, (mean, mean - spread, mean + spread)):
                            writer.add_scalar(tag, value, number)
        writer.add_custom_scalars(layout)
    for variant in variants:
        start = SessionStartInfo(group_name=f"{variant.task}: {variant.label}")
        described = {name: given[id(variant)][name] for name in varied if name in given[id(variant)]}
        for name, value in {
            **described,
            "data": variant.setting.data,
            "encoders": variant.setting.encoders,
            "protocol": variant.setting.protocol,
            "n": len(variant.runs),
        }.items():
            start.hparams[name].string_value = str(value)
        with SummaryWriter(str(place / variant.task / re.sub(r"[^\w.+=, -]+", "_", variant.label))) as writer:
            writer.file_writer.add_summary(plugin_summary(metadata.SESSION_START_INFO_TAG, session_start_info=start))
            for step, losses in curves(variant, "train/loss").items():
                writer.add_scalar(f"{variant.task}_training/loss", statistics.mean(losses), step)
            for metric in shown[variant.task]:
                for step, values in curves(variant, f"val/{metric}").items():
                    writer.add_scalar(f"{variant.task}_validation/{metric}", 100 * statistics.mean(values), step)
                if values := variant.values(metric):
                    writer.add_scalar(f"{variant.task}/{metric}", 100 * statistics.mean(values), 0)
            writer.file_writer.add_summary(
                plugin_summary(
                    metadata.SESSION_END_INFO_TAG, session_end_info=SessionEndInfo(status=Status.STATUS_SUCCESS)
                )
            )
    return place
