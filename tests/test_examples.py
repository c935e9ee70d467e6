"""The notebooks of examples/ run from the first cell to the last, offline, in an empty folder, and are stored clean."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
#: notebook -> what the test puts in place of its cell of parameters
SMALLER = {"read_an_ablation": "VIDEOS, EPOCHS, SEEDS = 20, 1, (0,)"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    book = nbformat.read(path, as_version=4)
    parameters = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == (path.stem in SMALLER)
    for cell in parameters:
        cell.source = SMALLER[path.stem]
    NotebookClient(book, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any("image/png" in part.get("data", {}) for cell in book.cells for part in cell.get("outputs", []))


def test_notebooks_are_stored_without_outputs() -> None:
    """What they print differs between machines; a diff shows what somebody wrote."""
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None), path
