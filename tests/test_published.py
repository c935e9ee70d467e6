"""Published figures: every row parses, names its source, and is what the documents say."""

from __future__ import annotations

import copy
import importlib
import inspect
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from avprompt.configs import read_yaml
from avprompt.errors import AnnotationError
from avprompt.reports.published import KINDS, Figure, read_published
from avprompt.sweeps.plan import read_sweep
from avprompt.sweeps.run import SweepRun

FIGURES = read_published()
SHIPPED = (resources.files("avprompt.reports") / "published.csv").read_text(encoding="utf-8")


def find(source: str, **wanted: str) -> dict[str, Figure]:
    """Metric -> figure of the one row of a source that has these fields."""
    found = [
        figure
        for figure in FIGURES
        if figure.source == source and all(getattr(figure, name) == value for name, value in wanted.items())
    ]
    assert len({figure.metric for figure in found}) == len(found) > 0, wanted
    return {figure.metric: figure for figure in found}


def paper(number: int) -> str:
    return f"DG-SCT (NeurIPS 2023), table {number}"


def test_every_figure_is_within_its_units_range() -> None:
    for figure in FIGURES:
        assert figure.kind in KINDS
        if figure.value is not None and figure.unit == "percent":
            assert 20 < figure.value < 95, figure
        assert figure.kind != "figure" or "read by eye" in figure.note, figure


def test_number_of_rows_of_each_table() -> None:
    """Every row of every table: rows that share a source are told apart by method, row, encoders, task and metric."""
    counts = {
        paper(1): 12,
        paper(2): 5 * 10,
        paper(3): 4 * 4,
        paper(4): 6 * 4,
        paper(5): 6 * 11,
        paper(6): 4 * 2,
        paper(7): 5 * 3,
        paper(8): 4 * 9,
        paper(9): 4 * 10,
        "DG-SCT (NeurIPS 2023), figures 4 and 7": 15 * 5 + 7 * 3,
        "AV-STFP poster (BMVC 2025), table 1": 17,
        "AV-STFP poster (BMVC 2025), table 2": 9 * 4,
        "AV-STFP poster (BMVC 2025), table 3": 8,
        "AV-STFP poster (BMVC 2025), ablation of prompts": 8,
        "AV-STFP poster (BMVC 2025), ablation of branches": 9,
    }
    for source, count in counts.items():
        assert sum(figure.source == source for figure in FIGURES) == count, source


def test_known_misprints_are_told() -> None:
    assert "percentage" in find(paper(6), method="DG-SCT")["accuracy"].note
    assert "percentage" in find("AV-STFP poster (BMVC 2025), table 1", method="DG-SCT")["accuracy"].note
    batches = [figure for figure in FIGURES if figure.value == 82.18]
    assert len(batches) == 1 and "mean over 51 batches" in batches[0].note and not batches[0].settings
    lost = [figure for figure in FIGURES if figure.value is None]
    assert len(lost) == 5 and all(figure.kind == "ocr" and "lost" in figure.note for figure in lost)


def test_one_row_is_the_same_in_every_table_that_repeats_it() -> None:
    """Tables 5, 8 and 9 end with the rows of tables 1 to 4."""
    for task, main in (("ave", 1), ("avvp", 2), ("avs_s4", 3), ("avs_ms3", 3), ("avqa", 4)):
        head = find(paper(main), task=task, method="DG-SCT")
        for number, row in ((5, "S+C+T"), (9 if task == "avvp" else 8, "A2V+V2A")):
            for metric, figure in find(paper(number), task=task, row=row).items():
                assert figure.value == head[metric].value and figure.settings == head[metric].settings


def test_values_are_those_of_the_papers_text(shared: Path) -> None:
    """Numbers of a table's row stand in the paper's text in this order."""
    paths = {path.name[:3]: path.read_text(encoding="utf-8") for path in (shared / "seeds").iterdir()}

    def line(text: str, *values: float) -> bool:
        between = r"[^\d\n]{1,12}"  # table rules, blanks, percent signs
        return re.search(between.join(re.escape(f"{value:.1f}") for value in values), text) is not None

    text = paths["001"]
    checked = 0
    for number, keys in ((2, {"task": "avvp"}), (4, {"task": "avqa"})):
        for method in dict.fromkeys(f.method for f in FIGURES if f.source == paper(number)):
            assert line(text, *(f.value for f in find(paper(number), method=method, **keys).values())), method
            checked += 1
    for method in ("AVS", "LAVisH", "LAVisH*", "DG-SCT"):
        values = [f.value for task in ("avs_s4", "avs_ms3") for f in find(paper(3), method=method, task=task).values()]
        assert line(text, *values), method
    for row in ("baseline", "C", "S", "S+C", "T", "S+C+T"):
        values = [
            f.value
            for task in ("ave", "avvp", "avs_s4", "avs_ms3", "avqa")
            for f in find(paper(5), task=task, row=row).values()
        ]
        assert len(values) == 11 and line(text, *values), row
        checked += 1
    for row in ("neither", "A2V", "V2A", "A2V+V2A"):
        values = [
            f.value
            for task in ("ave", "avs_s4", "avs_ms3", "avqa")
            for f in find(paper(8), task=task, row=row).values()
        ]
        assert len(values) == 9 and line(text, *values), row
        assert line(text, *(f.value for f in find(paper(9), row=row).values())), row
        checked += 2
    assert checked == 25
    for figure in FIGURES:  # names of table 1 stand differently in the text: values alone
        if figure.source == paper(1):
            assert f"{figure.value:.1f}" in text
        if figure.source.startswith("AV-STFP") and "OCR" not in figure.note:  # OCR drops some points
            assert re.search(rf"{int(figure.value)}\.?{round(figure.value * 10) % 10}%", paths["002"]), figure


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("task,dataset", "task,data", "line 1"),
        (",71.4,percent", ",about 71,percent", "line 2, value"),
        (",71.4,percent", ",,percent", "line 2, value"),
        (",71.4,percent", ",71.4,furlong", "line 2, unit"),
        ('table 1",table,', 'table 1",hearsay,', "line 2, kind"),
        ('"DG-SCT (NeurIPS 2023), table 1"', "", "line 2, source"),
        ("ave,AVE,test,,AVEL (Audio-Visual),", "ave,AVE,test,,AVEL, (Audio-Visual),", "line 2"),
    ],
)
def test_damaged_file(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in SHIPPED
    (tmp_path / "figures.csv").write_text(SHIPPED.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(AnnotationError, match=f"figures.csv, {message}"):
        read_published(tmp_path / "figures.csv")


#: a network without the module, and rows of the poster's other sweep
OTHERWISE = {("avqa", "S+C+T"), ("ave", "no fusion, both prompts"), ("ave", "AV-STFP")}
FEW_SHOT = ["DG-SCT (NeurIPS 2023), figures 4 and 7"]


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("dgsct_modules", [paper(5)]),
        ("dgsct_directions", [paper(8), paper(9)]),
        ("fewshot_ave", FEW_SHOT),
        ("fewshot_ave_class", FEW_SHOT),
        ("fewshot_llp_class", FEW_SHOT),
        ("avstfp_prompts", ["AV-STFP poster (BMVC 2025), ablation of prompts"]),
        ("avstfp_branches", ["AV-STFP poster (BMVC 2025), ablation of branches"]),
        ("dgsct_hyperparameters", ["DG-SCT (NeurIPS 2023), appendix D, text on figure 8"]),
    ],
)
def test_sweeps_have_the_published_rows(name: str, tables: list[str], tmp_path: Path) -> None:
    """Each row of a published ablation is made by exactly one variant of its sweep, for every task of the table."""
    path = ROOT / "experiments" / "sweeps" / f"{name}.yaml"
    for task in read_yaml(path)["tasks"]:
        for quickstart in (False, True):
            runs, _ = read_sweep(path, [0], tmp_path, task, quickstart)
            configs = {(run.variant, run.axis): config_of(run) for run in runs}
            rows = {
                (figure.method, figure.row): figure
                for figure in FIGURES
                if figure.task == task and figure.settings and figure.source in tables
            }
            assert rows
            for (method, row), figure in rows.items():
                made = [run for run, config in configs.items() if figure.describes(config)]
                assert len(made) == 1 or (task, row) in OTHERWISE, (task, row, made)
                if tables == FEW_SHOT:
                    ((label, (_, shots)),) = made
                    assert (label, f"{shots} shot{'s' * (shots > 1)}") == (method, row)


def config_of(run: SweepRun) -> dict[str, Any]:
    """A run's configuration as the parser makes it: files and flags in their order, then each class's defaults."""
    config: dict[str, Any] = {}
    for content in run.recipe:
        merge(config, content)
    return {part: with_defaults(config[part]) for part in ("model", "data")}


def merge(old: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, str) and isinstance(before, dict):
            value = {"class_path": value}
        if (
            isinstance(value, dict)
            and isinstance(before, dict)
            and value.get("class_path") in (None, before.get("class_path"))
        ):
            merge(before, value)
        else:
            old[key] = copy.deepcopy(value)


def with_defaults(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if not str(node.get("class_path")).startswith("avprompt."):
        return {key: with_defaults(value) for key, value in node.items()}
    module, _, name = node["class_path"].rpartition(".")
    defaults = {
        parameter.name: parameter.default
        for kind in reversed(inspect.getmro(getattr(importlib.import_module(module), name)))
        if "__init__" in vars(kind)
        for parameter in inspect.signature(kind.__init__).parameters.values()
        if parameter.default is not parameter.empty
    }
    given = {key: with_defaults(value) for key, value in (node.get("init_args") or {}).items()}
    return {**node, "init_args": {**defaults, **given}}


def test_classics_have_the_published_rows(tmp_path: Path) -> None:
    """Each row of a head is made by exactly one variant of its sweep, on both sources of features."""
    path = ROOT / "experiments" / "sweeps" / "late_fusion_ave.yaml"
    rows = {
        figure.settings: figure.method
        for figure in FIGURES
        if "head=" in figure.settings and "supervision=full" in figure.settings
    }
    assert len(rows) == 10
    for task in read_yaml(path)["tasks"]:
        runs, _ = read_sweep(path, [0], tmp_path, task)
        configs = {run.variant: config_of(run) for run in runs}
        for settings in rows:
            figure = next(figure for figure in FIGURES if figure.settings == settings)
            made = [name for name, config in configs.items() if figure.describes(config)]
            assert len(made) == 1, (settings, made)
        assert len(configs) == len(rows)


def test_tables_of_runs_are_those_of_published_figures() -> None:
    """A run of each task of event localisation stands in the table that has its published rows."""
    from avprompt.reports.runs import TASKS

    for name in ("ave_psp_vgg19", "ave_avstfp_b16"):
        task = read_yaml(name)["model"]["class_path"].rpartition(".")[2]
        assert TASKS[task] == "ave" in {figure.task for figure in FIGURES}
