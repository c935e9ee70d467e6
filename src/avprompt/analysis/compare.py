"""`avprompt compare`: one table over the result.json files of finished runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from avprompt.errors import DatasetError

COLUMNS = ("run", "metric", "value", "trainable", "total", "seed", "epochs", "seconds")


def read_results(folders: list[Path]) -> list[dict[str, Any]]:
    """One row a metric of every result.json found below the folders.

    Raises:
        DatasetError: there is none.
    """
    rows = []
    for folder in map(Path, folders):
        for path in sorted(folder.rglob("result.json")):
            result = json.loads(path.read_text(encoding="utf-8"))
            shown = {name: value for name, value in result["metrics"].items() if name.startswith(("test_", "best_"))}
            rows += [{"run": str(path.parent), "metric": name, "value": value,
                      "trainable": result["parameters"]["trainable"], "total": result["parameters"]["total"],
                      "seed": result["seed"], "epochs": result["epochs"], "seconds": result["wall_s"]}
                     for name, value in shown.items()]
    if not rows:
        raise DatasetError(", ".join(map(str, folders)), "no result.json with results", "folders of finished runs",
                           "Run `avprompt fit` and `avprompt test` first.")
    return rows


def compare(folders: list[Path], csv_file: Path | None = None) -> None:
    """Print a table of finished runs: metric, parameters, seed, epochs, seconds.

    Args:
        folders: searched through for result.json.
        csv_file: also write the table there.

    Raises:
        DatasetError: no result in any folder.
    """
    rows = read_results(folders)
    cells = [[f"{row[c]:,}" if c in ("trainable", "total") else f"{row[c]:.4f}" if isinstance(row[c], float) else
              str(row[c]) for c in COLUMNS] for row in rows]
    widths = [max(len(line[i]) for line in [list(COLUMNS), *cells]) for i in range(len(COLUMNS))]
    for line in [list(COLUMNS), ["-" * width for width in widths], *cells]:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths)) + " |")
    if csv_file is not None:
        with Path(csv_file).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
