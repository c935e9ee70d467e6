"""Compared runs in TensorBoard: a table of hyper-parameters, curves side by side, bars, and the table as text."""

from __future__ import annotations

import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure as Picture
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName, Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter

from avprompt.configs import flatten, get_nested
from avprompt.reports.published import Figure

if TYPE_CHECKING:
    from avprompt.reports.compare import Line

FOLDER = "compare"
BAR, DIAMOND = "#4c78a8", "#b3261e"


def bars_figure(lines: list[Line], metric: str) -> Picture:
    """A bar a line with its spread and seeds; published figures as diamonds, measured otherwise."""
    figure = Picture(figsize=(7, 0.9 + 0.34 * len(lines)), layout="constrained")
    axis = figure.add_subplot()
    for place, line in enumerate(lines):
        values = [100 * value for value in line.values(metric)]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0
            axis.barh(place, statistics.mean(values), xerr=spread, color=BAR, height=0.62, capsize=3)
            axis.plot(values, [place] * len(values), ".", color="black", ms=5)
        for other in line.published.get(metric, []):
            axis.plot(other.value, place, "D", color=DIAMOND, mfc="white", ms=6,
                      label="published: other data, encoders or protocol" if not axis.get_legend_handles_labels()[0]
                      else None)
    axis.set_yticks(range(len(lines)), [f"{line.label} (n={len(line.runs)})" for line in lines], parse_math=False)
    axis.invert_yaxis()
    axis.set_xlabel(f"{metric}, %, mean ± standard deviation, dots are seeds")
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper right", frameon=False, fontsize=8)
    return figure


def plugin_summary(tag: str, **content: Any) -> Summary:
    """One of the hparams plugin's three messages as a summary."""
    data = HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content).SerializeToString()
    about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=data))
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])


def arguments_of(line: Line) -> dict[str, Any]:
    """A line's network and training in short names."""
    model = line.runs[0].config["model"]["init_args"]
    prompts = get_nested(model, "backbone.init_args.prompts") or {}
    short = {"prompts": (prompts.get("class_path") or "NoPrompts").rpartition(".")[2],
             **{f"prompts.{name}": value for name, value in flatten(prompts.get("init_args") or {}).items()},
             **flatten({name: value for name, value in model.items() if name != "backbone"}, "model.")}
    return {**short, "shots": get_nested(line.runs[0].config, "data.init_args.shots") or "all",
            "max_epochs": get_nested(line.runs[0].config, "trainer.max_epochs") or 0}


def curves(line: Line, tag: str) -> dict[int, list[float]]:
    """Step -> values of a scalar in the event files of a line's training runs, one a seed."""
    found: dict[int, list[float]] = {}
    for run in line.runs:
        events = EventAccumulator(str((run.trained or run).folder), size_guidance={"scalars": 0})
        events.Reload()
        if tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                if event.step:  # at step 0 the hyper-parameters stand, with no figure yet or with the best one
                    found.setdefault(event.step, []).append(event.value)
    return {step: found[step] for step in sorted(found)}


def write_dashboard(folder: Path, lines: list[Line], metrics_of: Callable[[list[Line], list[Figure]], list[str]],
                    figures: list[Figure], table: str) -> Path:
    """Write lines below a log folder, replacing what an earlier comparison wrote there; returns the place.

    The hyper-parameter table has one line for each of ours (seeds are averaged), its columns are what the lines of a
    task differ in, and where they were measured. The custom scalars show the mean validation curves of all lines in
    one chart, and mean and spread over the numbers of the rows; pictures show bars, the text is the table.

    Args:
        folder: that of `tensorboard --logdir`.
        lines: compared runs.
        metrics_of: lines of one task and the published figures -> the metrics to show.
        figures: what is published.
        table: Markdown, shown as text.
    """
    place = Path(folder) / FOLDER
    shutil.rmtree(place, ignore_errors=True)
    tasks = dict.fromkeys(line.task for line in lines)
    of_task = {task: [line for line in lines if line.task == task] for task in tasks}
    shown = {task: metrics_of(mine, figures) for task, mine in of_task.items()}
    given = {id(line): arguments_of(line) for line in lines}
    varied = [name for name in dict.fromkeys(name for arguments in given.values() for name in arguments)
              if any(len({str(given[id(line)][name]) for line in mine if name in given[id(line)]}) > 1
                     for mine in of_task.values())]
    infos = [HParamInfo(name=name, type=DataType.DATA_TYPE_STRING, differs=name in varied)
             for name in (*varied, "data", "encoders", "protocol", "n")]
    wanted = [MetricInfo(name=MetricName(tag=f"{task}/{metric}"), display_name=f"{task} {metric}, %")
              for task in tasks for metric in shown[task]]
    layout: dict[str, Any] = {}
    with SummaryWriter(str(place)) as writer:
        writer.file_writer.add_summary(plugin_summary(metadata.EXPERIMENT_TAG, experiment=Experiment(
            description="rows of `avprompt compare`", hparam_infos=infos, metric_infos=wanted)))
        writer.add_text("compare", table)
        for task, mine in of_task.items():
            layout[task] = charts = {"training loss": ["Multiline", [f"^{task}_training/loss$"]]}
            for metric in shown[task]:
                writer.add_figure(f"{task}/{metric}", bars_figure(mine, metric))
                tags = [f"{task}_rows/{metric}/{part}" for part in ("mean", "lower", "upper")]
                charts[f"validation {metric}, %"] = ["Multiline", [f"^{task}_validation/{re.escape(metric)}$"]]
                charts[f"{metric} of row 1 to {len(mine)}, %"] = ["Margin", tags]
                for number, line in enumerate(mine, 1):
                    values = [100 * value for value in line.values(metric)]
                    if values:
                        mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
                        for tag, value in zip(tags, (mean, mean - spread, mean + spread)):
                            writer.add_scalar(tag, value, number)
        writer.add_custom_scalars(layout)
    for line in lines:
        start = SessionStartInfo(group_name=f"{line.task}: {line.label}")
        described = {name: given[id(line)][name] for name in varied if name in given[id(line)]}
        for name, value in {**described, "data": line.setting.data, "encoders": line.setting.encoders,
                            "protocol": line.setting.protocol, "n": len(line.runs)}.items():
            start.hparams[name].string_value = str(value)
        with SummaryWriter(str(place / line.task / re.sub(r"[^\w.+=, -]+", "_", line.label))) as writer:
            writer.file_writer.add_summary(plugin_summary(metadata.SESSION_START_INFO_TAG, session_start_info=start))
            for step, losses in curves(line, "train_loss_epoch").items():
                writer.add_scalar(f"{line.task}_training/loss", statistics.mean(losses), step)
            for metric in shown[line.task]:
                for step, values in curves(line, f"val_{metric}").items():
                    writer.add_scalar(f"{line.task}_validation/{metric}", 100 * statistics.mean(values), step)
                if values := line.values(metric):
                    writer.add_scalar(f"{line.task}/{metric}", 100 * statistics.mean(values), 0)
            writer.file_writer.add_summary(plugin_summary(
                metadata.SESSION_END_INFO_TAG, session_end_info=SessionEndInfo(status=Status.STATUS_SUCCESS)))
    return place
