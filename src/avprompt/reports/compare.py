"""`avprompt compare`: finished runs as one table a task, seeds grouped, beside what is published.

Runs whose settings are the same but for the seed are one line. Every figure carries a mark, a letter that stands for
data, encoders and protocol: only figures with the same mark were measured alike.
"""

from __future__ import annotations

import csv
import hashlib
import html
import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avprompt.configs import flatten, get_nested
from avprompt.errors import DatasetError
from avprompt.reports.published import Figure, read_published

COLUMNS = ("run", "metric", "value", "trainable", "total", "seed", "epochs", "seconds")
#: what two runs of one line may differ in
FREE = ("seed_everything", "ckpt_path", "verbose", "weights_only", "trainer.logger", "trainer.accelerator",
        "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.default_root_dir",
        "trainer.log_every_n_steps", "data.init_args.seed", "data.init_args.root", "data.init_args.num_workers",
        "data.init_args.pin_memory", "data.init_args.predict_root")
DATASETS = {"AVEDataModule": "AVE", "LLPDataModule": "LLP", "AVSBenchDataModule": "AVSBench",
            "MUSICAVQADataModule": "MUSIC-AVQA", "KineticsSoundsDataModule": "Kinetics-Sounds",
            "VGGSoundDataModule": "VGG-Sound", "LLPClassificationDataModule": "LLP"}
#: names of encoders in published tables
ENCODERS = {"SwinV2 swinv2_large_window12_192 (ms_in22k)": "Swin-V2-L", "HTSAT": "HTS-AT",
            "CLIP ViT-B-32 (openai)": "CLIP ViT-B/32", "CLIP ViT-B-16 (openai)": "CLIP ViT-B/16",
            "CLIP ViT-L-14 (openai)": "CLIP ViT-L/14", "CLAPAudio tiny (630k-audioset-fusion-best)": "CLAP HTS-AT"}
#: tasks whose class has another name
TASKS = {"AVELinear": "ave", "AVQAGrounding": "avqa_grounding"}
TRAIN_MODE = ", in train mode as released"
GENERATED = re.compile(r"(\w+_)?world\d{9}|llp\d{8}")  # ids of clips of worlds written before manifests said so


@dataclass(frozen=True)
class Setting:
    """What makes figures comparable.

    Args:
        data: dataset and number of clips.
        encoders: both, with their weights.
        protocol: how the checkpoint was selected and the metric counted.
    """

    data: str
    encoders: str
    protocol: str

    def __str__(self) -> str:
        return "; ".join(part for part in (self.data, self.encoders, self.protocol) if part)


@dataclass
class Run:
    """One result.json.

    Args:
        folder: where it lies.
        result: its content.
        manifest: manifest.json beside it, empty where there is none.
        trained: the run that made its checkpoint, itself where it trained.
    """

    folder: Path
    result: dict[str, Any]
    manifest: dict[str, Any]
    trained: Run | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that made the network: that of the run that trained it, where that is known."""
        return (self.trained or self).result["config"]

    @property
    def tested(self) -> bool:
        """Whether it holds figures of the test split."""
        return any(name.startswith("test_") for name in self.result["metrics"])

    def metrics(self) -> dict[str, float]:
        """Figures without their stage, losses left out: of the test split, or else the best of the selection split."""
        prefix = "test_" if self.tested else "best_val_"
        return {name.removeprefix(prefix): value for name, value in self.result["metrics"].items()
                if name.startswith(prefix) and not name.endswith("_loss") and value is not None}


@dataclass
class Line:
    """Runs that differ in their seeds alone.

    Args:
        task: as our experiments begin.
        label: name of the row.
        setting: of its figures.
        runs: one a seed.
        published: the same row as others report it, by metric.
        place: of that row among all published ones, for the order.
        remarks: what a reader must know.
    """

    task: str
    label: str
    setting: Setting
    runs: list[Run]
    published: dict[str, list[Figure]] = field(default_factory=dict)
    place: int | None = None
    remarks: list[str] = field(default_factory=list)

    def values(self, metric: str) -> list[float]:
        """In [0, 1], one a seed."""
        return [run.metrics()[metric] for run in self.runs if metric in run.metrics()]

    def mean(self, read: Callable[[Run], float | None]) -> float | None:
        """Of a figure of the training runs; `None` where not every run has it."""
        values = [read(run.trained or run) for run in self.runs]
        return None if None in values else statistics.mean(values)


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Every result.json below the folders that holds figures; a test knows the run that trained its checkpoint.

    Raises:
        DatasetError: there is none, or one is no result of a run.
    """
    folders, runs = [Path(folder) for folder in folders], []
    for path in sorted({path.resolve(): path for folder in folders for path in folder.rglob("result.json")}.values()):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            result["metrics"], result["parameters"]["trainable"], result["config"]["model"]["class_path"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DatasetError(path, f"no result of a run ({error})", "a file that `avprompt fit` or `test` wrote",
                               "Remove it or run again.") from error
        manifest = path.with_name("manifest.json")
        runs.append(Run(path.parent, result,
                        json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}))
    fits = [run for run in runs if any(name.startswith("train_") for name in run.result["metrics"])]
    for run in runs:
        checkpoint = run.result["config"].get("ckpt_path")
        if run.tested and checkpoint:
            origin = Path(checkpoint).parent.parent
            # the folder may have been moved with everything below it: two names are as good as a path
            found = [fit for fit in fits if fit.folder.resolve() == origin.resolve()] or [
                fit for fit in fits if fit.folder.resolve().parts[-2:] == origin.parts[-2:]
                and fit.folder.resolve().parent.parent == run.folder.resolve().parent.parent]
            run.trained = found[0] if len(found) == 1 else None
    if not any(run.metrics() for run in runs):
        raise DatasetError(", ".join(map(str, folders)) or "folders", "no result.json with results",
                           "folders of finished runs", "Run `avprompt fit` and `avprompt test` first.")
    return runs


def read_results(folders: list[Path]) -> list[dict[str, Any]]:
    """One row a metric of every result.json found below the folders.

    Raises:
        DatasetError: there is none.
    """
    return [{"run": str(run.folder), "metric": name, "value": value, "trainable": run.result["parameters"]["trainable"],
             "total": run.result["parameters"]["total"], "seed": run.result["seed"], "epochs": run.result["epochs"],
             "seconds": run.result["wall_s"]}
            for run in read_runs(folders) for name, value in run.result["metrics"].items()
            if name.startswith(("test_", "best_"))]


def task_of(run: Run) -> str:
    """A run's task as our experiments begin: ave, avvp, avs_s4, fewshot_ave_class, zeroshot_ave ..."""
    name = run.config["model"]["class_path"].rpartition(".")[2]
    if name == "AVS":
        return f"avs_{get_nested(run.config, 'data.init_args.setting')}"
    if name != "Contrastive":
        return TASKS.get(name, name.lower())
    stage = "zeroshot" if untrained(run) else "fewshot" if shots_of(run) else "pretrain"
    kind = run.result["config"]["data"]["class_path"].rpartition(".")[2]
    level = "_class" if get_nested(run.config, "model.init_args.level") == "video" else ""
    return f"{stage}_{DATASETS.get(kind, kind).lower().replace('-', '')}{level}"


def shots_of(run: Run) -> int | None:
    """Clips of each category that the run was trained on, `None` for all or for none."""
    return None if untrained(run) else get_nested(run.config, "data.init_args.shots")


def untrained(run: Run) -> bool:
    """Whether the run tests the network as it is built, without a checkpoint of a training on its data."""
    return run.tested and run.trained is None and not run.result["config"].get("ckpt_path")


def encoder_name(encoder: Any) -> str:
    """An encoder as published tables name it, or its class, model and weights."""
    if isinstance(encoder, str):
        return encoder
    arguments = encoder.get("init_args") or {}
    weights, model = str(arguments.get("pretrained", "none")), arguments.get("model")
    weights = "random weights" if weights == "none" else Path(weights).stem if "/" in weights else weights
    kind = " ".join(filter(None, (encoder["class_path"].rpartition(".")[2], model)))
    name = ENCODERS.get(f"{kind} ({weights})") or (ENCODERS.get(kind) if weights not in ("random weights",) else None)
    name = name or f"{kind} ({weights})"
    return name + (", trained" if arguments.get("frozen") is False else "") + (
        TRAIN_MODE if arguments.get("released_mode") else "")


def is_generated(run: Run, ids: list[str]) -> bool:
    """Whether a run's data are a generated world: scenes.jsonl lies in its root, or its clips are named like one's."""
    root = Path(run.manifest.get("root") or get_nested(run.result["config"], "data.init_args.root") or ".")
    # a relative root is below the folder that the run was started in, one of those above its own
    return bool(ids) and all(GENERATED.fullmatch(clip) for clip in ids) or any(
        (start / root / "scenes.jsonl").is_file() for start in (Path.cwd(), *run.folder.resolve().parents))


def setting_of(run: Run) -> Setting:
    """Data, encoders and protocol of a run's figures."""
    config, measured = run.config, run.result["config"]
    arguments = measured["data"].get("init_args") or {}
    split = "test" if run.tested else arguments.get("validation_split", "val")
    kind = measured["data"]["class_path"].rpartition(".")[2]
    name = DATASETS.get(kind, kind) + (f" {arguments['setting'].upper()}" if "setting" in arguments else "")
    ids = (run.manifest.get("ids") or {}).get(split) or []
    generated = run.manifest.get("generated", is_generated(run, ids))
    counts = run.result["clips"].get(split) or {"used": len(ids), "missing": 0}
    number = f"{counts['used']}" + (f" of {counts['used'] + counts['missing']}" if counts["missing"] else "")
    unit = "questions" if kind == "MUSICAVQADataModule" else "clips"
    data = f"generated world in the layout of {name}" if generated else name
    backbone = get_nested(config, "model.init_args.backbone.init_args") or {}
    visual, audio = (encoder_name(backbone.get(side, "?")) for side in ("visual", "audio"))
    encoders = f"{visual} for both" if audio == "shared" else f"{visual} + {visual if audio == 'separate' else audio}"
    released = get_nested(measured, "model.init_args.protocol") == "released"
    selection = get_nested(config, "data.init_args.validation_split") or "val"
    protocol = "not trained on these data" if untrained(run) else f"selected on {selection}"
    protocol += ", metric as released" if released else ""
    if get_nested(measured, "model.init_args.level") == "segment" and not get_nested(measured, "model.init_args.background"):
        protocol += ", background counts as wrong"
    if "label_policy" in arguments:
        protocol += f", answer among several categories: {arguments['label_policy']}"
    if not run.tested:
        protocol += f", measured on {selection}"
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:6]
    return Setting(f"{data}, {number} {split} {unit}|{digest}", encoders, protocol)


def sizes_of(figures: list[Figure]) -> dict[str, int]:
    """Dataset -> clips of its test split."""
    return {figure.dataset: int(figure.value) for figure in figures if figure.metric == "test_clips"}


def published_setting(figure: Figure, sizes: dict[str, int]) -> Setting:
    """Data, encoders and protocol of a published figure."""
    unit = "questions" if figure.task == "avqa" else "clips"
    known = figure.split == "test" and figure.dataset in sizes
    size = f", {sizes[figure.dataset]} test {unit}" if known else f", {figure.split} split"
    encoders = figure.visual if not figure.audio else figure.audio.replace(" (shared)", " for both") if (
        figure.shared) else f"{figure.visual} + {figure.audio}"
    protocol = f"selected on {figure.selection}" if figure.selection else "selection not stated"
    if figure.selection and figure.task.startswith(("ave", "avs")) and figure.method == "DG-SCT":
        protocol += ", metric as released"
    return Setting(f"{figure.dataset}{size}", encoders, f"published, {protocol}")


def label_of(run: Run) -> str:
    """The name of a run's row: that of its experiment without the seed, and its shots."""
    name = re.sub(r"(-shots\d+)?(-seed\d+)?$", "", str((run.trained or run).result["experiment"]))
    shots = shots_of(run)
    return name + (f", {shots} shot{'s' * (shots > 1)}" if shots else "")


def gather(runs: list[Run], figures: list[Figure]) -> list[Line]:
    """Group runs into lines, find the published row of each, and put the lines in published order."""
    used = {id(run.trained) for run in runs if run.trained is not None}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.metrics() and id(run) not in used:
            fixed = {name: value for name, value in flatten(run.config).items()
                     if not any(name == free or name.startswith(f"{free}.") for free in FREE)}
            key = json.dumps([fixed, setting_of(run).data, setting_of(run).protocol], sort_keys=True)
            groups.setdefault(key, []).append(run)
    lines = []
    for group in groups.values():
        newest: dict[Any, Run] = {}
        for run in sorted(group, key=lambda run: (run.folder / "result.json").stat().st_mtime):
            newest[(run.trained or run).result["seed"]] = run
        task, labels = task_of(group[0]), [label_of(run) for run in group]
        line = Line(task, labels[0], setting_of(group[0]), [newest[seed] for seed in sorted(newest, key=str)])
        if len(newest) < len(group):
            line.remarks.append(f"{line.label}: left out, older than another run with the same seed: "
                                f"{len(group) - len(newest)}")
        if len(set(labels)) > 1:
            line.remarks.append(f"{line.label}: the same settings as {sorted(set(labels[1:]) - {line.label})}")
        match(line, figures)
        lines.append(line)
    name_data(lines)
    names = Counter((line.task, line.label) for line in lines)
    for task, label in [name for name, count in names.items() if count > 1]:
        same = [line for line in lines if (line.task, line.label) == (task, label)]
        for number, line in enumerate(same, 1):
            line.label = f"{label} #{number}"
            line.remarks.append(f"{line.label} is {line.runs[0].folder}")
    order = {task: number for number, task in enumerate(dict.fromkeys(figure.task for figure in figures))}
    made = {id(line): min((run.folder / "result.json").stat().st_mtime for run in line.runs) for line in lines}
    return sorted(lines, key=lambda line: (order.get(line.task, len(order)), line.task, line.place is None,
                                           line.place or made[id(line)]))


def match(line: Line, figures: list[Figure]) -> None:
    """Find a line's row among what is published: the most specific settings that its configuration has."""
    config = line.runs[0].config
    found = [(place, figure) for place, figure in enumerate(figures)
             if figure.task == line.task and figure.describes(config)]
    alike = [(place, figure) for place, figure in found
             if published_setting(figure, {}).encoders == line.setting.encoders]
    found = alike or found
    if not found:
        return
    most = max(len(figure.settings.split()) for _, figure in found)
    found = [(place, figure) for place, figure in found if len(figure.settings.split()) == most]
    line.place = found[-1][0]
    for _, figure in found:
        if figure.value is not None and figure.unit == "percent":
            line.published.setdefault(figure.metric, []).append(figure)


def name_data(lines: list[Line]) -> None:
    """Drop the fingerprint of a line's clips where all lines with the same data have the same, else show it."""
    clips = {line.setting.data for line in lines}
    for line in lines:
        name, _, digest = line.setting.data.partition("|")
        several = sum(other.startswith(f"{name}|") for other in clips) > 1
        shown = f"{name} (ids {digest})" if several else name
        line.setting = Setting(shown, line.setting.encoders, line.setting.protocol)


@dataclass
class Table:
    """One task's table, ready to be written in any format.

    Args:
        task: as our experiments begin.
        header: of the columns.
        rows: of texts.
        marks: letter -> what it stands for.
        remarks: sentences below.
    """

    task: str
    header: list[str]
    rows: list[list[str]]
    marks: dict[str, str]
    remarks: list[str]


def letter(number: int) -> str:
    """a, b, ... z, aa, ab ..."""
    return ("" if number < 26 else letter(number // 26 - 1)) + chr(ord("a") + number % 26)


def metrics_of(lines: list[Line], figures: list[Figure]) -> list[str]:
    """The columns of a task's table: what publications report of it and the runs have, else all the runs have."""
    measured = dict.fromkeys(metric for line in lines for run in line.runs for metric in run.metrics())
    reported = dict.fromkeys(figure.metric for figure in figures if figure.task == lines[0].task)
    return [metric for metric in reported if metric in measured] or list(measured)


def tables(lines: list[Line], figures: list[Figure]) -> list[Table]:
    """One table a task: ours beside the published figure, parameters, seconds and memory."""
    sizes = sizes_of(figures)
    built = []
    for task in dict.fromkeys(line.task for line in lines):
        mine = [line for line in lines if line.task == task]
        metrics, seen, rows = metrics_of(mine, figures), {}, []

        def mark(setting: Setting, seen: dict[str, str] = seen) -> str:
            return f"[{seen.setdefault(str(setting), letter(len(seen)))}]"

        parameters = any(figure.trainable for line in mine for found in line.published.values() for figure in found)
        for line in mine:
            cells = [line.label, str(len(line.runs))]
            for metric in metrics:
                values = [100 * value for value in line.values(metric)]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread} {mark(line.setting)}" if values else "")
                cited: dict[str, None] = {}
                for figure in line.published.get(metric, []):
                    cited[f"{number(figure)} {mark(published_setting(figure, sizes))}"] = None
                cells.append(" / ".join(cited))
            first = line.runs[0].result["parameters"]
            cells += [f"{first['trainable']:,}"] + ([" / ".join(dict.fromkeys(
                figure.trainable for found in line.published.values() for figure in found if figure.trainable))]
                if parameters else []) + [f"{first['total']:,}"]
            seconds, peak = line.mean(lambda run: run.result["wall_s"]), line.mean(
                lambda run: run.result["peak_memory_bytes"])
            trained = all(run.trained or not run.tested for run in line.runs)
            cells += [f"{seconds:,.0f}" if trained and seconds is not None else "",
                      f"{peak / 1e9:.2f}" if trained and peak is not None else ""]
            rows.append(cells)
        header = ["row", "n", *(name for metric in metrics for name in (f"{metric}, %", "published")), "trainable",
                  *(["published"] if parameters else []), "total", "fit, s", "peak, GB"]
        built.append(Table(task, header, rows, {mark: text for text, mark in seen.items()},
                           [remark for line in mine for remark in line.remarks] + citations(mine, metrics)))
    return built


def citations(lines: list[Line], metrics: list[str]) -> list[str]:
    """Where the published figures of a table come from, and what is known about them; a sentence a source."""
    rows: dict[str, list[str]] = {}
    for line in lines:
        cited: dict[tuple[str, str], dict[str, list[str]]] = {}
        for metric in metrics:
            for figure in line.published.get(metric, []):
                notes = cited.setdefault((figure.source, figure.row), {})
                for note in filter(None, figure.note.split("; ")):
                    notes.setdefault(note, []).append(metric)
                notes.setdefault("", []).append(metric)
        for (source, row), notes in cited.items():
            everywhere = notes.pop("")
            told = "; ".join(note if about == everywhere else f"{', '.join(about)}: {note}"
                             for note, about in notes.items())
            rows.setdefault(f"{source}" + (f" ({told})" if told else ""), []).append(
                line.label + (f" = {row}" if row and row != line.label else ""))
    return [f"published: {', '.join(labels)}: {source}" for source, labels in rows.items()]


def number(figure: Figure) -> str:
    """A published percentage with the digits that it is printed with."""
    return f"{figure.value:.2f}".removesuffix("0")


CAUTION = "Figures with different marks were not measured alike. Mean ± standard deviation over n seeds."


def drop_empty(table: Table) -> Table:
    """Without the columns that are empty in every row."""
    kept = [i for i in range(len(table.header)) if any(row[i] for row in table.rows)]
    return Table(table.task, [table.header[i] for i in kept], [[row[i] for i in kept] for row in table.rows],
                 table.marks, table.remarks)


def markdown(tables_: list[Table]) -> str:
    """Pipe tables with footnotes."""
    parts = []
    for table in tables_:
        widths = [max(len(row[i]) for row in [table.header, *table.rows]) for i in range(len(table.header))]
        lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths)) + " |"
                 for row in [table.header, ["-" * width for width in widths], *table.rows]]
        notes = [f"- [{mark}] {text}" for mark, text in table.marks.items()] + [f"- {text}" for text in table.remarks]
        parts.append("\n".join([f"## {table.task}", "", *lines, "", CAUTION, "", *notes]))
    return "\n\n".join(parts) + "\n"


TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
       "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}


def latex(tables_: list[Table]) -> str:
    """One `table` environment a task, marks as superscripts; needs no package."""
    def text(words: str) -> str:
        escaped = "".join(TEX.get(character, character) for character in words)
        return re.sub(r" \[([a-z]+)\]", r"\\textsuperscript{\1}", escaped)

    parts = []
    for table in tables_:
        rows = [" & ".join(map(text, row)) + r" \\" for row in [table.header, *table.rows]]
        notes = [rf"\textsuperscript{{{mark}}} {text(note)}." for mark, note in table.marks.items()]
        notes += [f"{text(note)}." for note in table.remarks]
        parts.append("\n".join([
            r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", r"\hline",
            rows[0], r"\hline", *rows[1:], r"\hline", r"\end{tabular}",
            rf"\caption{{{text(table.task)}. {text(CAUTION)}", *notes, "}", r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


STYLE = """body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color:
#222 } .scroll { overflow-x: auto } table { border-collapse: collapse; margin: .6rem 0 }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { cursor: pointer; background: #f3f3f3; border-bottom: 2px solid #999 } th::after { content: " \\2195"; color: #aaa }
td:first-child, th:first-child { text-align: left; position: sticky; left: 0; background: #fff }
th:first-child { background: #f3f3f3 } tr:hover td { background: #f6faff } sup { color: #b3261e }
.published { color: #555; font-style: italic } ul { color: #444; font-size: .9rem }"""
SCRIPT = """for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex, up = head.dataset.up = head.dataset.up == 1 ?
  0 : 1; const value = row => { const text = row.cells[column].textContent, number = parseFloat(text.replaceAll(",",
  ""));
    return [text == "" ? 2 : isNaN(number) ? 1 : 0, isNaN(number) ? text : number]; };
  [...body.rows].sort((a, b) => { const [x, y] = [value(a), value(b)];
    if (x[0] != y[0] && (x[0] == 2 || y[0] == 2)) return x[0] - y[0];
    const order = x[0] != y[0] ? x[0] - y[0] : x[1] < y[1] ? -1 : x[1] > y[1] ? 1 : 0;
    return up == 1 ? order : -order; }).forEach(row => body.append(row));
};"""


def html_page(tables_: list[Table]) -> str:
    """One page without any other file; a click on a heading sorts."""
    def text(words: str) -> str:
        return re.sub(r" \[([a-z]+)\]", r"<sup>\1</sup>", html.escape(words))

    parts = []
    for table in tables_:
        kinds = [' class="published"' if name == "published" else "" for name in table.header]
        head = "".join(f"<th>{text(name)}</th>" for name in table.header)
        rows = "\n".join("<tr>" + "".join(f"<td{kind}>{text(cell)}</td>" for kind, cell in zip(kinds, row)) + "</tr>"
                         for row in table.rows)
        notes = [f"<li><sup>{mark}</sup> {html.escape(note)}</li>" for mark, note in table.marks.items()]
        notes += [f"<li>{html.escape(note)}</li>" for note in table.remarks]
        parts += [f"<h2>{html.escape(table.task)}</h2>",
                  f"<div class=scroll><table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>",
                  f"<p>{html.escape(CAUTION)}</p>", "<ul>", *notes, "</ul>"]
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>avprompt compare</title>\n'
            f"<style>\n{STYLE}\n</style></head>\n<body>\n<h1>avprompt compare</h1>\n" + "\n".join(parts)
            + f"\n<script>\n{SCRIPT}\n</script></body></html>\n")


def long_rows(lines: list[Line], figures: list[Figure]) -> list[dict[str, Any]]:
    """One row a line and metric, all metrics: for spreadsheets and plots."""
    sizes = sizes_of(figures)
    rows = []
    for line in lines:
        for metric in dict.fromkeys(metric for run in line.runs for metric in run.metrics()):
            values, cited = [100 * value for value in line.values(metric)], line.published.get(metric, [])
            rows.append({
                "task": line.task, "row": line.label, "metric": metric, "mean": round(statistics.mean(values), 4),
                "std": round(statistics.stdev(values), 4) if len(values) > 1 else "", "n": len(values),
                "seeds": " ".join(str((run.trained or run).result["seed"]) for run in line.runs),
                "values": " ".join(f"{value:.4f}" for value in values), "data": line.setting.data,
                "encoders": line.setting.encoders, "protocol": line.setting.protocol,
                "published": " / ".join(dict.fromkeys(number(figure) for figure in cited)),
                "published_setting": " / ".join(dict.fromkeys(str(published_setting(f, sizes)) for f in cited)),
                "published_source": " / ".join(dict.fromkeys(figure.source for figure in cited)),
                "trainable": line.runs[0].result["parameters"]["trainable"],
                "total": line.runs[0].result["parameters"]["total"],
                "fit_seconds": line.mean(lambda run: run.result["wall_s"]),
                "peak_memory_bytes": line.mean(lambda run: run.result["peak_memory_bytes"])})
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows of equal keys to a file with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def compare(folders: list[Path], csv_file: Path | None = None, out: Path | None = None,
            tensorboard: Path | None = None) -> None:
    """Print finished runs as one table a task: seeds grouped, beside what is published, parameters, time and memory.

    Runs whose settings are the same but for the seed are one line. Lines of an ablation that is published stand in its
    order. Every figure has a mark that stands for data, encoders and protocol, explained below the table.

    Args:
        folders: searched through for result.json.
        csv_file: also write there, run by run, metric, parameters, seed, epochs and seconds.
        out: also write there compare.csv (all metrics), compare.md, compare.tex and compare.html.
        tensorboard: also write there, for `tensorboard --logdir`, hyper-parameters, curves and bars of all lines.

    Raises:
        DatasetError: no result in any folder.
    """
    figures, runs = read_published(), read_runs(folders)
    lines = gather(runs, figures)
    built = [drop_empty(table) for table in tables(lines, figures)]
    print(markdown(built))
    if csv_file is not None:
        write_csv(Path(csv_file), read_results(folders))
    if out is not None:
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        write_csv(out / "compare.csv", long_rows(lines, figures))
        for name, write in (("md", markdown), ("tex", latex), ("html", html_page)):
            (out / f"compare.{name}").write_text(write(built), encoding="utf-8")
    if tensorboard is not None:
        from avprompt.reports.dashboard import write_dashboard

        place = write_dashboard(Path(tensorboard), lines, metrics_of, figures, markdown(built))
        print(f"the comparison alone: tensorboard --logdir {place}")
