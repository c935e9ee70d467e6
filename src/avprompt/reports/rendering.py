"""Tables as Markdown, LaTeX, HTML and CSV."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: what the figures of a table mean
CAUTION = (
    "Figures with different marks were not measured alike. Mean ± standard error over n seeds. (best): the "
    "highest mean among rows that were measured alike; (≈ best): not told apart from it by the paired test after "
    "Holm's correction; (untested): no test is possible; neither: told apart from the best."
)


@dataclass
class Table:
    """The table of one task as texts, ready to be written in any format.

    Args:
        task: as names of our experiments begin.
        header: of the columns.
        rows: of texts.
        marks: letter -> the conditions that it stands for.
        remarks: sentences below the table.
        caution: what its figures mean; the same text stands once below all tables.

    Example:
        >>> Table("ave", ["variant", "n"], [["all", "3"]], {}, []).task
        'ave'
    """

    task: str
    header: list[str]
    rows: list[list[str]]
    marks: dict[str, str]
    remarks: list[str]
    caution: str = CAUTION


def cautions(tables_: list[Table]) -> list[str]:
    """What the figures of tables mean, each text once."""
    return list(dict.fromkeys(table.caution for table in tables_))


def markdown(tables_: list[Table]) -> str:
    """Tables as Markdown with footnotes.

    Example:
        >>> print(markdown([Table("ave", ["variant", "n"], [["all", "3"]], {}, [])]).splitlines()[2])
        | variant | n |
    """
    parts = []
    for table in tables_:
        widths = [max(len(row[i]) for row in [table.header, *table.rows]) for i in range(len(table.header))]
        lines = [
            "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths)) + " |"
            for row in [table.header, ["-" * width for width in widths], *table.rows]
        ]
        notes = [f"- [{mark}] {text}" for mark, text in table.marks.items()] + [f"- {text}" for text in table.remarks]
        parts.append("\n".join([f"## {table.task}", "", *lines, *([""] if notes else []), *notes]))
    return "\n\n".join([*parts, *cautions(tables_)]) + "\n"


TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "<": "$<$",
    ">": "$>$",
}


def latex(tables_: list[Table]) -> str:
    """One `table` environment for each task, with marks as superscripts; no package is needed."""

    def text(words: str) -> str:
        escaped = "".join(TEX.get(character, character) for character in words)
        return re.sub(r" \[([a-z]+)\]", r"\\textsuperscript{\1}", escaped)

    parts = []
    for table in tables_:
        rows = [" & ".join(map(text, row)) + r" \\" for row in [table.header, *table.rows]]
        notes = [rf"\textsuperscript{{{mark}}} {text(note)}." for mark, note in table.marks.items()]
        notes += [f"{text(note)}." for note in table.remarks]
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
                    r"\hline",
                    rows[0],
                    r"\hline",
                    *rows[1:],
                    r"\hline",
                    r"\end{tabular}",
                    rf"\caption{{{text(table.task)}. {text(table.caution)}",
                    *notes,
                    "}",
                    r"\end{table}",
                ]
            )
        )
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
    """One page that needs no other file; a click on a heading sorts by its column."""

    def text(words: str) -> str:
        return re.sub(r" \[([a-z]+)\]", r"<sup>\1</sup>", html.escape(words))

    parts = []
    for table in tables_:
        kinds = [' class="published"' if name == "published" else "" for name in table.header]
        head = "".join(f"<th>{text(name)}</th>" for name in table.header)
        rows = "\n".join(
            "<tr>" + "".join(f"<td{kind}>{text(cell)}</td>" for kind, cell in zip(kinds, row)) + "</tr>"
            for row in table.rows
        )
        notes = [f"<li><sup>{mark}</sup> {html.escape(note)}</li>" for mark, note in table.marks.items()]
        notes += [f"<li>{html.escape(note)}</li>" for note in table.remarks]
        parts += [
            f"<h2>{html.escape(table.task)}</h2>",
            f"<div class=scroll><table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>",
            "<ul>",
            *notes,
            "</ul>",
        ]
    parts += [f"<p>{html.escape(caution)}</p>" for caution in cautions(tables_)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>avprompt compare</title>\n'
        f"<style>\n{STYLE}\n</style></head>\n<body>\n<h1>avprompt compare</h1>\n"
        + "\n".join(parts)
        + f"\n<script>\n{SCRIPT}\n</script></body></html>\n"
    )


def write_csv(path: Path, rows: list[dict[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows with equal keys below a header, that of `columns` where there may be no row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns or rows[0]))
        writer.writeheader()
        writer.writerows(rows)
