"""Published figures as data: all tables and plots that runs are compared with.

`published.csv` has one figure in each line. Where print and fact are known to differ (a percentage printed as millions,
a mean over batches, a character that OCR lost), the `note` says so; values and parameters are kept as printed.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from avprompt.configs import get_nested
from avprompt.errors import AnnotationError

KINDS = {
    "table": "typed from a table",
    "text": "stated in words, or printed in a figure",
    "comment": "stated in a comment of the authors' scripts",
    "figure": "read off a plot by eye",
    "ocr": "typed from a poster that was read by OCR",
    "rerun": "measured again by others with the authors' code",
    "cited": "as other documents cite it; the publication itself was not at hand",
}
UNITS = ("percent", "GFLOPs", "count")
MISSING = "lost"  # word in the note of a figure without a value


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Args:
        task: as names of our experiments begin: ave, avvp, avs_s4, avs_ms3, avqa, avar, fewshot_ave, zeroshot_ave ...
        dataset: by its published name.
        split: that it was measured on; `all` for facts about a dataset.
        selection: split that the checkpoint was selected on, empty where that is not known.
        method: as printed.
        row: of an ablation, or number of shots; empty elsewhere.
        settings: of our configuration that make the same variant: the class of the prompt method, then `argument=value`
            of it, of the task, of the backbone or of the data module, separated by blanks. A class stands for an object
            of it, `none` for no value; a list has no blanks. Empty where we have no such variant.
        visual: visual encoder, empty where that is not known.
        audio: audio encoder; followed by `(shared)` where it is the visual one.
        metric: as our tasks name it, without the name of the stage.
        value: as printed; `None` where it cannot be read.
        unit: one of `UNITS`.
        trainable: trained parameters as printed, empty where none are printed.
        total: all parameters as printed, likewise.
        source: document and table.
        kind: one of `KINDS`.
        note: what else a reader must know.

    Example:
        >>> headline = next(f for f in read_published() if f.task == "ave" and f.method == "DG-SCT" and not f.row)
        >>> headline.metric, headline.value
        ('accuracy', 82.2)
    """

    task: str
    dataset: str
    split: str
    selection: str
    method: str
    row: str
    settings: str
    visual: str
    audio: str
    metric: str
    value: float | None
    unit: str
    trainable: str
    total: str
    source: str
    kind: str
    note: str

    @property
    def shared(self) -> bool:
        """Whether one encoder serves both modalities."""
        return self.audio.endswith("(shared)")

    def describes(self, config: dict[str, Any]) -> bool:
        """Whether the configuration of a run (`model`, `data`) has the settings of this figure."""
        if not self.settings:
            return False
        arguments = get_nested(config, "model.init_args") or {}
        backbone = get_nested(arguments, "backbone.init_args") or {}
        prompts = backbone.get("prompts") or {}
        name, *settings = self.settings.split()
        if (prompts.get("class_path") or "avprompt.methods.NoPrompts").rpartition(".")[2] != name:
            return False
        if self.shared != (backbone.get("audio") == "shared"):
            return False
        for setting in settings:
            path, _, wanted = setting.partition("=")
            found = [
                get_nested(place, path)
                for place in (prompts.get("init_args"), arguments, backbone, get_nested(config, "data.init_args"))
            ]
            texts = {
                str(value["class_path"].rpartition(".")[2] if isinstance(value, dict) else value)
                .lower()
                .replace(" ", "")
                for value in found
                if value is not None
            }
            if wanted.lower() not in (texts or {"none"}):
                return False
        return True


def read_published(path: Path | None = None) -> list[Figure]:
    """Every published figure, in published order.

    Args:
        path: a file in the format of the shipped one; `None` is that one.

    Raises:
        AnnotationError: another header, a value that is no number, an unknown unit or kind, or a figure without its
            task, dataset, method, metric or source; names file and line.
    """
    shipped = resources.files("avprompt.reports") / "published.csv"
    content = (shipped if path is None else Path(path)).read_text(encoding="utf-8")
    name, columns = "published.csv" if path is None else str(path), [field.name for field in fields(Figure)]
    reader = csv.DictReader(content.splitlines(), strict=True)
    if reader.fieldnames != columns:
        raise AnnotationError(f"{name}, line 1", reader.fieldnames, f"the columns {columns}", "Restore the header.")
    figures = []
    for line in reader:
        place = f"{name}, line {reader.line_num}"
        if None in line or None in line.values():
            raise AnnotationError(place, "another number of columns", f"{len(columns)}", "Quote texts with commas.")
        for column in ("task", "dataset", "split", "method", "metric", "source"):
            if not line[column].strip():
                raise AnnotationError(f"{place}, {column}", "nothing", "a value", "Say where the figure comes from.")
        for column, allowed in (("unit", UNITS), ("kind", tuple(KINDS))):
            if line[column] not in allowed:
                raise AnnotationError(f"{place}, {column}", line[column], f"one of {allowed}", "Correct it.")
        try:
            value = float(line["value"]) if line["value"] or MISSING not in line["note"] else None
        except ValueError:
            raise AnnotationError(
                f"{place}, value",
                line["value"] or "nothing",
                f"a number, or none and a note that it is {MISSING}",
                "Type it as printed.",
            ) from None
        row: dict[str, Any] = {**line, "value": value}
        figures.append(Figure(**row))
    return figures
