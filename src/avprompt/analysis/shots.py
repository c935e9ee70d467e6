"""Accuracy over shots (or any other argument that a sweep varies), beside published points that were measured alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import colormaps
from matplotlib.figure import Figure as Picture

from avprompt.analysis.compare import Run, encoder_name, is_generated
from avprompt.analysis.published import Figure, read_published
from avprompt.configs import dig

if TYPE_CHECKING:
    from avprompt.sweep import Cell

#: data module and level of a run -> task and dataset as published
PUBLISHED = {("AVEDataModule", "segment"): ("ave", "AVE"), ("AVEDataModule", "video"): ("ave_class", "AVE"),
             ("LLPClassificationDataModule", "video"): ("llp_class", "LLP")}
#: what the published plots call "CLIP ViT" and "CLAP HTS-AT" is, in the authors' released scripts
ENCODERS = {"CLIP ViT": "CLIP ViT-B-32 (openai)", "CLAP HTS-AT": "CLAPAudio tiny (630k-audioset-fusion-best)"}


def published_points(run: Run, method: str, figures: list[Figure]) -> dict[int | None, float]:
    """Shots (`None`: zero-shot) -> published accuracy of a method in percent, for a run on the same data and encoders.

    Empty for generated data, an incomplete test split, or other encoders. How the checkpoint was selected may differ:
    of most published points that is not known.

    Args:
        run: of the method.
        method: as published, which is also the row's name.
        figures: all that are published.
    """
    config = run.config
    kind = config["data"]["class_path"].rpartition(".")[2]
    task, dataset = PUBLISHED.get((kind, dig(config, "model.init_args.level")), (None, None))
    sizes = {figure.dataset: figure.value for figure in figures if figure.metric == "test_clips"}
    counts, ids = run.result["clips"].get("test") or {}, (run.manifest.get("ids") or {}).get("test") or []
    if task is None or run.manifest.get("generated", is_generated(run, ids)) or counts.get("used") != sizes[dataset]:
        return {}
    backbone = dig(config, "model.init_args.backbone.init_args") or {}
    names = {side: encoder_name(backbone[side]).removesuffix(", in train mode as released")
             for side in ("visual", "audio")}
    return {int(figure.row.split()[0]) if "fewshot" in figure.task else None: figure.value for figure in figures
            if figure.task in (f"fewshot_{task}", f"zeroshot_{task}") and figure.method == method
            and all(not getattr(figure, side) or ENCODERS[getattr(figure, side)] == names[side] for side in names)
            and (figure.row == "zero-shot" or "shot" in figure.row)}


def shots_figure(lines: list[dict[str, Any]], axis: str, metric: str,
                 published: dict[str, dict[int | None, float]]) -> Picture:
    """A line a row with its spread over seeds; rows without the argument are horizontal; published points are hollow.

    Args:
        lines: of `avprompt.sweep.condense`.
        axis: name of the argument.
        metric: of the figures.
        published: row -> `published_points`.
    """
    values = [value for value in dict.fromkeys(line[axis] for line in lines) if value != ""]
    scaled = all(isinstance(value, (int, float)) and value > 0 for value in values)
    rows = {row: {line[axis]: line for line in lines if line["row"] == row and line["n"]}
            for row in dict.fromkeys(line["row"] for line in lines)}
    curves = [row for row, mine in rows.items() if set(mine) - {""}]

    def place(value: Any, row: str) -> float:
        beside = 0.05 * (curves.index(row) - (len(curves) - 1) / 2)  # so that spreads do not hide each other
        return value * 2 ** beside if scaled else values.index(value) + beside

    figure = Picture(figsize=(7.5, 4.6), layout="constrained")
    panel, handles = figure.add_subplot(), []
    for number, (row, mine) in enumerate(rows.items()):
        look, known = {"color": colormaps["tab10"](number % 10)}, published.get(row, {})
        hollow = {**look, "marker": "D", "mfc": "white", "ms": 6, "ls": "none", "zorder": 3}
        if "" in mine:
            mean, spread = mine[""]["mean"], mine[""]["std"] or 0.0
            handles.append(panel.axhline(mean, **look, ls="--", label=f"{row}, zero-shot"))
            panel.axhspan(mean - spread, mean + spread, **look, alpha=0.12, lw=0)
            if None in known:
                panel.plot([0.01], [known[None]], **hollow, transform=panel.get_yaxis_transform())
        if row in curves:
            drawn = [value for value in values if value in mine]
            handles.append(panel.errorbar(
                [place(value, row) for value in drawn], [mine[value]["mean"] for value in drawn],
                yerr=[mine[value]["std"] or 0.0 for value in drawn], **look, marker="o", ms=5, capsize=3, label=row))
            cited = [value for value in drawn if value in known]
            panel.plot([place(value, row) for value in cited], [known[value] for value in cited], **hollow)
    if any(published.values()):
        handles += panel.plot([], [], "D", color="black", mfc="white", ms=6, label="published (other selection)")
    if scaled:
        panel.set_xscale("log", base=2)
        panel.minorticks_off()
    panel.set_xticks(values if scaled else range(len(values)), [str(value) for value in values])
    panel.set_xlabel(axis)
    panel.set_ylabel(f"{metric}, %, mean ± standard deviation")
    panel.grid(color="#dddddd")
    panel.set_axisbelow(True)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def write_plot(cells: list[Cell], lines: list[dict[str, Any]], metric: str, out: Path) -> Path:
    """Draw a sweep with an axis to out/<axis>.png; returns the file.

    Args:
        cells: of the sweep.
        lines: of `avprompt.sweep.condense`.
        metric: of the figures.
        out: folder of the sweep.
    """
    axis, figures, published = next(cell.axis[0] for cell in cells if cell.axis), read_published(), {}
    for cell in cells:
        if axis == "shots" and cell.row not in published and cell.outcome("test") is not None:
            published[cell.row] = published_points(run_of(cell), cell.row, figures)
    path = out / f"{axis}.png"
    shots_figure(lines, axis, metric, published).savefig(path, dpi=130)
    return path


def run_of(cell: Cell) -> Run:
    """A finished cell's test, which knows the run that trained its checkpoint."""
    fit, folder = cell.outcome("fit"), cell.folder / "test"
    manifest = folder / "manifest.json"
    return Run(folder, cell.outcome("test") or {},
               json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {},
               Run(cell.folder / "fit", fit, {}) if fit else None)
