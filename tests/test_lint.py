"""ruff and mypy over the tree, with the settings of pyproject.toml, and that they can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

COMMANDS = {
    "lint": [sys.executable, "-m", "ruff", "check", "--no-cache", "."],
    "layout": [sys.executable, "-m", "ruff", "format", "--no-cache", "--check", "."],
    "types": [".ci/types"],
}
#: a line that the command refuses, and what it says
WRONG = {
    "lint": ("def show(rows=[]):\n    return rows\n", "B006"),
    "layout": ("rows = [ 1,2 ]\n", "would be reformatted"),
    "types": ("from avprompt.errors import ArgumentError\n\nraise ArgumentError(3)\n", "[call-arg]"),
}


def execute(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_the_tree_passes(name: str) -> None:
    said = execute(COMMANDS[name], ROOT)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_fault_is_found(name: str, tmp_path: Path) -> None:
    """In a tree of one module beside the errors."""
    package = tmp_path / "src" / "avprompt"
    package.mkdir(parents=True)
    for path in ("pyproject.toml", ".ci/types", "src/avprompt/errors.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    (tmp_path / "data_modules").mkdir()
    (package / "__init__.py").touch()
    text, code = WRONG[name]
    (package / "wrong.py").write_text(f'"""One fault."""\n\n{text}', encoding="utf-8")
    said = execute(COMMANDS[name], tmp_path)
    assert (
        said.returncode == 1
        and code in said.stdout
        and "src/avprompt/wrong.py" in said.stdout.replace(f"{tmp_path}/", "")
    ), said.stdout + said.stderr
