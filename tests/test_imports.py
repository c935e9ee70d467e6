"""The import graph: the contracts of setup.cfg hold, and the tool that checks them can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

#: module -> a line that breaks a contract, and the name of the contract
BREACHES = {
    "methods/none.py": ("from avprompt.tasks import AVE", "Imports point down only"),
    "encoders/base.py": ("def late():\n    from avprompt.methods import NoPrompts", "Imports point down only"),
    "tasks/ave.py": ("from avprompt.datasets import ave", "No task knows a dataset"),
    "data_modules/base.py": ("import avprompt.tasks.base", "Imports point down only"),
    "reports/runs.py": ("from avprompt.reports import compare", "No cycle"),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The package as the wheel holds it, with data_modules inside."""
    for source, target in ((ROOT / "src" / "avprompt", "avprompt"), (ROOT / "data_modules", "avprompt/data_modules")):
        shutil.copytree(source, tmp_path / target, dirs_exist_ok=True,
                        ignore=lambda folder, names: [name for name in names if not name.endswith(".py") and (
                            Path(folder, name).is_file() or name in ("__pycache__", "data_modules"))])
    return tmp_path


def lint(tree: Path) -> subprocess.CompletedProcess:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run([sys.executable, "-c", command, "--no-cache", "--config", str(ROOT / "setup.cfg")], cwd=tree,
                          capture_output=True, text=True, check=False)


def test_imports_point_down(tree: Path) -> None:
    found = lint(tree)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 broken" in found.stdout


@pytest.mark.parametrize("module", BREACHES)
def test_a_breach_is_found(module: str, tree: Path) -> None:
    line, contract = BREACHES[module]
    path = tree / "avprompt" / module
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    found = lint(tree)
    assert found.returncode == 1
    assert any(contract in line and "BROKEN" in line for line in found.stdout.splitlines()), found.stdout


def test_there_is_no_module_of_odds_and_ends() -> None:
    folders = (ROOT / "src", ROOT / "data_modules", ROOT / "tests", ROOT / "benchmarks")
    assert not [path for folder in folders for path in folder.rglob("*.py")
                if path.stem in ("utils", "helpers", "common")]
