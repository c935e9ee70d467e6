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


def test_notebooks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in one process, each without the other's names: what they import is imported once."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    whole = nbformat.v4.new_notebook()
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        parameters = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        assert len(parameters) == (path.stem in SMALLER)
        for cell in parameters:
            cell.source = SMALLER[path.stem]
        whole.cells += [*cells, nbformat.v4.new_code_cell("%reset -f")]
    NotebookClient(whole, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [part for cell in whole.cells for part in cell.get("outputs", []) if "image/png" in part.get("data", {})]
    assert len(pictures) == len(NOTEBOOKS)


def test_notebooks_are_stored_without_outputs() -> None:
    """What they print differs between machines; a diff shows what somebody wrote."""
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None), path
