"""The import graph: the contracts of setup.cfg hold, and the tool that checks them can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm  # noqa: F401
from conftest import ROOT

from avprompt.cli.optional_packages import WithoutExtras

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
        shutil.copytree(
            source,
            tmp_path / target,
            dirs_exist_ok=True,
            ignore=lambda folder, names: [
                name
                for name in names
                if not name.endswith(".py")
                and (Path(folder, name).is_file() or name in ("__pycache__", "data_modules"))
            ],
        )
    return tmp_path


def lint(tree: Path) -> subprocess.CompletedProcess:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--config", str(ROOT / "setup.cfg")],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )


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
    assert not [
        path for folder in folders for path in folder.rglob("*.py") if path.stem in ("utils", "helpers", "common")
    ]


def test_a_command_imports_what_it_uses(tmp_path: Path) -> None:
    """Counted, not timed: these packages are for pictures, for other loggers, or for metrics that no task has."""
    heavy = (
        "scipy",
        "matplotlib",
        "transformers",
        "wandb",
        "numba",
        "sklearn",
        "pandas",
        "librosa.filters",
        "requests",
    )
    program = (
        "import sys; from avprompt.cli import main; main(['params', '--config', 'ave_dgsct']); "
        f"print([name for name in {heavy} if name in sys.modules])\n"
        "import torchmetrics, matplotlib.figure, scipy.signal; print(torchmetrics.utilities.imports._SCIPY_AVAILABLE)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "AVPROMPT_FULL_IMPORTS": ""},
    ).stdout.splitlines()
    assert found[-2] == "[]"
    assert "met" in found[-1]  # once torchmetrics is imported, its extras are what they are
    assert "188,538,816" in found[3]


def test_extras_are_absent_only_while_their_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = WithoutExtras()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert finder.find_spec("wandb") is None
    monkeypatch.setattr(sys.modules["timm"].__spec__, "_initializing", True, raising=False)
    with pytest.raises(ModuleNotFoundError, match="AVPROMPT_FULL_IMPORTS=1"):
        finder.find_spec("wandb")
    assert finder.find_spec("scipy") is None
