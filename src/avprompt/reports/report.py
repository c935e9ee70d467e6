"""`avprompt report RUN`: one HTML page about a run, from the files of its folder alone."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from avprompt.board import grouped
from avprompt.configs import EXPERIMENTS, flatten, get_nested, is_spec, load_class, parameters, read_yaml
from avprompt.errors import DatasetError
from avprompt.files import write_whole
from avprompt.reports.outcomes import FILE, ClipScores, clip_scores, metric_columns, read_outcomes
from avprompt.reports.runs import Run, read_runs
from avprompt.reports.significance import DRAWS, Row, bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: of the page: clips at each end of the list, pictures, classes of a confusion matrix
CLIPS, PICTURES, CLASSES = 8, 12, 60
#: settings that say where and how, not what
FREE = (
    "seed_everything",
    "ckpt_path",
    "verbose",
    "weights_only",
    "return_predictions",
    "trainer.logger",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
)
OKABE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
DASHES = ("-", "--", ":", "-.")


def report(run: Path, out: Path | None = None) -> None:
    """Write a page about a run: curves, metrics with intervals, classes, low and high clips, pictures, settings.

    It reads the files of the run's folder and needs neither data nor weights. What a run lacks, the page names, with
    the command that makes it.

    Args:
        run: folder of a finished fit or test.
        out: the page; by default report.html in the run's folder.

    Raises:
        DatasetError: the folder holds no finished run.
    """
    run = Path(run)
    target = run / "report.html" if out is None else Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, page(run, target.parent).encode())
    print(f"{target}: open it in a browser")


def page(folder: Path, beside: Path) -> str:
    """The page's HTML.

    Args:
        folder: of the run.
        beside: folder of the page, which links to pictures are relative to.

    Raises:
        DatasetError: the folder holds no finished run.
    """
    from avprompt.pages.rendering import inline_svg, render

    run, lacking = run_of(folder), []
    trained = run.trained or (None if run.tested else run)
    outcomes = read_outcomes(folder / FILE) if (folder / FILE).is_file() else None
    if outcomes is None:
        lacking.append(f"No {FILE}: no intervals, classes or single clips. `avprompt test` writes it.")
    if trained is None and run.tested:
        lacking.append("The run that trained the checkpoint was not found where its path says: no curves.")
    curves = {} if trained is None else curves_of(trained.folder)
    if trained is not None and not curves:
        lacking.append(f"No curves: {trained.folder} has neither TensorBoard's events nor metrics.csv.")
    pictures = pictures_of(folder, beside)
    if not pictures:
        lacking.append("No pictures: `avprompt visualize --ckpt_path ...` draws clips, and `--features` the features.")
    experiment = run.result["experiment"]
    shipped = EXPERIMENTS / f"{(trained or run).result['experiment']}.yaml"
    changes = differences((trained or run).result["config"], read_yaml(shipped)) if shipped.is_file() else None
    if changes is None:
        lacking.append(
            f"{(trained or run).result['experiment']} is no experiment that ships: all settings that are set are listed."
        )
        changes = [
            (name, "", value)
            for name, value in flatten((trained or run).result["config"]).items()
            if not name.startswith(FREE) and get_nested((trained or run).result["config"], name) not in (None, [], {})
        ]
    metrics = metric_rows(run, outcomes)
    classes, matrix = class_rows(outcomes) if outcomes is not None else ([], None)
    low, high, measured = extremes(run, outcomes, folder, beside) if outcomes is not None else ([], [], "")
    return render(
        "report.html",
        title=experiment,
        run=str(folder),
        task=run.result["task"],
        kind="test split" if run.tested else "validation split, best epoch",
        metrics=metrics,
        curves=inline_svg(curves_figure(curves)) if curves else "",
        classes=classes,
        headers=list(classes[0]) if classes else [],
        matrix=inline_svg(matrix) if matrix is not None else "",
        low=low,
        high=high,
        measured=measured,
        pictures=pictures,
        lacking=lacking,
        changes=[(name, shown(before), shown(after)) for name, before, after in changes],
        shipped=shipped.stem if shipped.is_file() else "",
        environment=environment(run, trained),
    )


def run_of(folder: Path) -> Run:
    """The finished run of a folder, with the one that trained its checkpoint.

    Raises:
        DatasetError: there is none.
    """
    if not (folder / "result.json").is_file():
        raise DatasetError(
            folder,
            "no result.json",
            "the folder of a finished `avprompt fit` or `avprompt test`",
            "Name a folder such as runs/quickstart/version_0.",
        )
    try:
        checkpoint = get_nested(json.loads((folder / "result.json").read_text(encoding="utf-8")), "config.ckpt_path")
    except json.JSONDecodeError as error:
        raise DatasetError(
            folder / "result.json", f"no JSON ({error})", "the file that a run wrote", "Run it again."
        ) from error
    origin = [Path(checkpoint).parent.parent] if checkpoint else []
    runs = read_runs([folder, *(place for place in origin if (place / "result.json").is_file())])
    return next(run for run in runs if run.folder.resolve() == folder.resolve())


# --- metrics


def interval(scores: ClipScores, draws: int = DRAWS, seed: int = 0) -> tuple[float, float] | None:
    """95% interval of a metric, percentiles of a bootstrap over clips; `None` for fewer than two clips.

    It says how the figure depends on the choice of the clips, not on the seed of the training.

    Example:
        >>> low, high = interval(ClipScores(("a", "b", "c"), np.array([1.0, 0.0, 1.0]), np.ones(3)))
        >>> 0 <= low < 2 / 3 < high <= 1
        True
    """
    if len(scores.ids) < 2:
        return None
    (values,) = bootstrap([Row("", {0: 0.0}, {0: scores})], draws, seed)
    low, high = np.nanpercentile(values, (2.5, 97.5))  # a draw in which nothing counts has no value
    return float(low), float(high)


def metric_rows(run: Run, outcomes: pd.DataFrame | None) -> list[dict[str, Any]]:
    """A row for each metric: value and interval in percent, and number of clips."""
    monitor = str(run.result["monitor"]).removeprefix("val_")
    known = [] if outcomes is None else metric_columns(outcomes)
    rows = []
    for name, value in sorted(run.metrics().items(), key=lambda item: item[0] != monitor):
        scores = clip_scores(outcomes, name) if name in known else None
        found = interval(scores) if scores is not None and len(scores.ids) else None
        rows.append(
            {
                "metric": name,
                "value": f"{100 * value:.1f}",
                "interval": "" if found is None else f"{100 * found[0]:.1f} to {100 * found[1]:.1f}",
                "clips": "" if scores is None else str(len(scores.ids)),
                "monitor": name == monitor,
            }
        )
    return rows


# --- curves


def curves_of(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Scalars by epoch or step from TensorBoard's events or metrics.csv of a training run."""
    if any(folder.glob("events.out.tfevents.*")):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        return {
            grouped(tag): [(event.step, event.value) for event in events.Scalars(tag) if event.step]
            for tag in events.Tags()["scalars"]
            if kind_of(grouped(tag)) is not None
        }
    import csv

    found: dict[str, list[tuple[float, float]]] = {}
    for path in sorted(folder.glob("metrics*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for tag, value in row.items():
                    if value and tag not in ("step", "epoch") and kind_of(grouped(tag)) is not None:
                        found.setdefault(grouped(tag), []).append((float(row["step"]), float(value)))
    return found


def kind_of(tag: str) -> str | None:
    """Which panel a scalar is drawn in: `loss`, `terms` or `metric`; `None` for none.

    Example:
        >>> [kind_of(tag) for tag in ("train/loss", "train/gate", "val/accuracy", "train/loss_step", "rate/Adam")]
        ['loss', 'terms', 'metric', None, None]
    """
    if tag in ("train/loss", "val/loss"):
        return "loss"
    if tag.startswith("train/") and tag not in ("train/loss_step", "train/epoch") and "@" not in tag:
        return "terms"
    return "metric" if tag.startswith("val/") else None


def curves_figure(curves: dict[str, list[tuple[float, float]]]) -> Figure:
    """Losses, their terms, and metrics of the validation split over training steps."""
    from matplotlib.figure import Figure

    panels = {
        kind: {tag: points for tag, points in curves.items() if kind_of(tag) == kind and points}
        for kind in ("loss", "terms", "metric")
    }
    panels = {kind: found for kind, found in panels.items() if found}
    figure = Figure(figsize=(4.6 * max(1, len(panels)), 3.3), layout="constrained")
    titles = {"loss": "loss", "terms": "training, terms of the loss", "metric": "validation, %"}
    for axis, (kind, found) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels.items()):
        for place, (tag, points) in enumerate(sorted(found.items())):
            steps, values = zip(*points)
            values = tuple(100 * value for value in values) if kind == "metric" else values
            axis.plot(
                steps,
                values,
                color=OKABE[place % len(OKABE)],
                lw=1.6,
                ls=DASHES[place // len(OKABE) % len(DASHES)],
                marker="o" if len(points) < 30 else None,
                ms=3,
                label=tag.partition("/")[2] if kind != "loss" else tag.replace("/", " "),
            )
        axis.set_title(titles[kind], fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.grid(color="#e3e3e3", lw=0.6)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=7.5, frameon=False, ncols=1 + (len(found) > 6))
    return figure


# --- classes


def class_rows(outcomes: pd.DataFrame) -> tuple[list[dict[str, str]], Figure | None]:
    """A row for each category, and the confusion matrix where a unit has one category; neither where there are none."""
    rows: list[dict[str, str]] = []
    if {"predicted", "annotated"} <= set(outcomes.columns):
        pairs = [pair for pair in zip(outcomes["annotated"], outcomes["predicted"]) if all(pair)]
        if any(", " in truth for truth, _ in pairs):  # one of several categories: no matrix
            return rows, None
        truths, predictions = Counter(truth for truth, _ in pairs), Counter(found for _, found in pairs)
        right = Counter(truth for truth, found in pairs if truth == found)
        mistakes = Counter(pair for pair in pairs if pair[0] != pair[1])
        names = sorted({*truths, *predictions}, key=lambda name: (name == "background", name))
        for name in names:
            often = max(((count, found) for (truth, found), count in mistakes.items() if truth == name), default=None)
            rows.append(
                {
                    "category": name,
                    "annotated": str(truths[name]),
                    "predicted": str(predictions[name]),
                    **scores_of(right[name], truths[name], predictions[name]),
                    "most often taken for": f"{often[1]} ({often[0]})" if often else "",
                }
            )
        return rows, confusion_figure(pairs, names) if 1 < len(names) <= CLASSES else None
    for side in ("audio", "visual"):
        if {f"predicted_{side}", f"annotated_{side}"} <= set(outcomes.columns):
            sets = [
                (set(truth.split(";")) - {""}, set(found.split(";")) - {""})
                for truth, found in zip(outcomes[f"annotated_{side}"], outcomes[f"predicted_{side}"])
            ]
            for name in sorted(set().union(*(truth | found for truth, found in sets))):
                annotated, predicted = (sum(name in side for side in one) for one in zip(*sets))
                rows.append(
                    {
                        "category": f"{name}, {'heard' if side == 'audio' else 'seen'}",
                        "annotated": str(annotated),
                        "predicted": str(predicted),
                        **scores_of(sum(name in truth & found for truth, found in sets), annotated, predicted),
                    }
                )
    return rows, None


def scores_of(right: int, truths: int, found: int) -> dict[str, str]:
    """Recall, precision and F1 in percent, as texts.

    Example:
        >>> scores_of(1, 2, 1)
        {'recall, %': '50.0', 'precision, %': '100.0', 'F1, %': '66.7'}
    """
    return {
        "recall, %": f"{100 * right / truths:.1f}" if truths else "",
        "precision, %": f"{100 * right / found:.1f}" if found else "",
        "F1, %": f"{200 * right / (truths + found):.1f}" if truths + found else "",
    }


def confusion_figure(pairs: list[tuple[str, str]], names: list[str]) -> Figure:
    """Annotated categories down, predicted ones across, in percent of each row; the numbers where there is room."""
    from matplotlib.figure import Figure

    place = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for truth, found in pairs:
        counts[place[truth], place[found]] += 1
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.0, 0.36 * len(names) + 2.2)
    figure = Figure(figsize=(side + 1.4, side), layout="constrained")
    axis = figure.add_subplot()
    picture = axis.imshow(shares, cmap="viridis", vmin=0, vmax=100, aspect="equal")
    axis.set_xticks(
        range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8, parse_math=False
    )
    axis.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    axis.set_xlabel("predicted", fontsize=9)
    axis.set_ylabel("annotated", fontsize=9)
    if len(names) <= 32:
        for row, column in zip(*np.nonzero(counts)):
            axis.text(
                column,
                row,
                f"{counts[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if shares[row, column] < 55 else "black",
            )
    figure.colorbar(picture, ax=axis, label="% of the annotated; numbers are units", shrink=0.8)
    return figure


# --- clips


def extremes(run: Run, outcomes: pd.DataFrame, folder: Path, beside: Path) -> tuple[list[dict], list[dict], str]:
    """The clips with the least and the greatest mean score, and the metric that it is of."""
    known = metric_columns(outcomes)
    monitor = str(run.result["monitor"]).removeprefix("val_")
    metric = monitor if monitor in known else next(iter(known), "")
    if not metric:
        return [], [], ""
    scores = clip_scores(outcomes, metric)
    means = scores.sums / np.maximum(scores.weights, 1e-12)
    order = np.lexsort((np.array(scores.ids), means))
    # a clip is told in one row, so that the rows of its units are counted
    groups = dict(list(outcomes.groupby("id", sort=False)))

    def row(index: int) -> dict[str, Any]:
        clip = scores.ids[index]
        places = (folder / kind / f"{clip}.png" for kind in ("pictures", "features/clips"))
        picture = next((path for path in places if path.is_file()), None)
        return {
            "id": clip,
            "score": f"{100 * means[index]:.1f}",
            "picture": address(picture, beside) if picture else "",
            **{kind: counted(groups[clip], kind) for kind in ("annotated", "predicted")},
            "question": next((text for text in groups[clip].get("question", []) if text), ""),
        }

    few = min(CLIPS, len(order) // 2) or len(order)
    return [row(index) for index in order[:few]], [row(index) for index in order[::-1][:few]], metric


def counted(units: pd.DataFrame, kind: str) -> str:
    """What is annotated or predicted in a clip's units, with the numbers of units."""
    texts = [
        f"{name.removeprefix(kind).strip('_') or ''} {text}".strip()
        for name in units.columns
        if name == kind or name in (f"{kind}_audio", f"{kind}_visual")
        for text in units[name]
        if text
    ]
    found = Counter(texts)
    return ", ".join(f"{text} ×{count}" if len(units) > 1 else text for text, count in found.most_common(4)) + (
        ", …" if len(found) > 4 else ""
    )


def address(path: Path, beside: Path) -> str:
    """A file's address in a page of folder `beside`."""
    import os

    return quote(Path(os.path.relpath(path.resolve(), beside.resolve())).as_posix())


def pictures_of(folder: Path, beside: Path) -> list[dict[str, str]]:
    """The first pictures below a run's folder, those of features first."""
    paths = [
        *sorted((folder / "features").glob("*.png")),
        *sorted((folder / "features" / "clips").glob("*.png")),
        *sorted((folder / "pictures").glob("*.png")),
    ]
    return [
        {"name": str(path.relative_to(folder).with_suffix("")), "address": address(path, beside)}
        for path in paths[:PICTURES]
    ]


# --- settings


def differences(
    config: Any, shipped: Any, path: str = "", known: dict[str, Any] | None = None
) -> list[tuple[str, Any, Any]]:
    """Settings of a run that are neither an experiment's nor a class's default: path, what was expected, what it is.

    Args:
        config: the run's, defaults included.
        shipped: the experiment, which leaves defaults out.
        path: of both.
        known: the defaults at this place.

    Example:
        >>> differences({"seed_everything": 0, "data": {"init_args": {"batch_size": 4}}},
        ...             {"data": {"init_args": {"batch_size": 2}}})
        [('data.batch_size', 2, 4)]
    """
    found: list[tuple[str, Any, Any]] = []
    for name, value in config.items():
        place = f"{path}{name}"
        if place.startswith(FREE) or name in ("_class_path", "dict_kwargs"):
            continue
        given = isinstance(shipped, dict) and name in shipped
        before = shipped[name] if given else (known or {}).get(name, inspect.Parameter.empty)
        if isinstance(value, dict) and is_spec(value):
            other = before if isinstance(before, dict) else {}
            if given and other.get("class_path") not in (None, value["class_path"]):
                found.append((place, other["class_path"], value["class_path"]))
                other = {}
            elif not given and before is not inspect.Parameter.empty:
                found.append((place, before, value["class_path"]))
            found += differences(
                value.get("init_args") or {}, other.get("init_args") or {}, f"{place}.", defaults(value["class_path"])
            )
        elif (isinstance(value, dict) and name == "init_args") or (
            isinstance(value, dict) and isinstance(before, dict)
        ):
            found += differences(
                value,
                before if isinstance(before, dict) else {},
                path if name == "init_args" else f"{place}.",
                known if name == "init_args" else None,
            )
        elif isinstance(value, dict) and name == "trainer":
            found += differences(
                value, before if isinstance(before, dict) else {}, f"{place}.", defaults("lightning.pytorch.Trainer")
            )
        elif plain(before) and not alike(before, value):
            found.append((place, before, value))
    return found


def plain(value: Any) -> bool:
    """Whether a default can be compared with what a configuration says: objects cannot.

    Example:
        >>> plain((0.9, 0.999)), plain(Path()), plain(inspect.Parameter.empty)
        (True, False, False)
    """
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))


def alike(one: Any, other: Any) -> bool:
    """Whether two settings mean the same: a tuple is a list, 0 is 0.0, and a missing entry is null.

    Example:
        >>> alike((0.9, 1), [0.9, 1.0]), alike(True, 1), alike({"a": None}, {})
        (True, False, True)
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return all(alike(one.get(key), other.get(key)) for key in {**one, **other})
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def defaults(class_path: str) -> dict[str, Any]:
    """Default of each argument of a class.

    Example:
        >>> defaults("avprompt.tasks.AVE")["modality"]
        'both'
    """
    from avprompt.errors import AVPromptError

    try:
        load_class(class_path)
        return {
            name: own.default
            for name, own in parameters(class_path).items()
            if own.default is not inspect.Parameter.empty
        }
    except (AVPromptError, ImportError, AttributeError):  # a class of the user's, in a file that is not here
        return {}


def shown(value: Any) -> str:
    """A setting as text.

    Example:
        >>> shown(None), shown([1, 2]), shown(True)
        ('null', '[1, 2]', 'true')
    """
    if isinstance(value, dict) and is_spec(value):
        return str(value["class_path"])
    return value if isinstance(value, str) else json.dumps(value, default=str)


def environment(run: Run, trained: Run | None) -> list[tuple[str, str]]:
    """What it ran on: names and values."""
    result, fit = run.result, (trained or run).result
    counts = result["parameters"]
    return [
        ("experiment", result["experiment"]),
        ("folder", str(run.folder)),
        *([("trained by", str(trained.folder))] if trained is not None and trained is not run else []),
        ("checkpoint", str(result["config"].get("ckpt_path") or "")),
        ("seed", str(fit["seed"])),
        ("epochs", str(fit["epochs"])),
        ("source", str(result["git"])),
        ("device", result["device"]),
        ("trained parameters", f"{counts['trainable']:,} of {counts['total']:,}"),
        ("seconds of training" if not run.tested or trained else "seconds", f"{fit['wall_s']:,.0f}"),
        ("peak memory", f"{fit['peak_memory_bytes'] / 1e9:.2f} GB"),
        *(
            (f"clips, {split}", ", ".join(f"{count} {what}" for what, count in own.items()))
            for split, own in result["clips"].items()
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in result["versions"].items())),
    ]
