"""What is installed is what is in the tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    built = subprocess.run(
        [sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"],
        cwd=copy,
        check=False,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(built_wheel: Path) -> set[str]:
    """Names of the files in the wheel."""
    return set(zipfile.ZipFile(built_wheel).namelist())


def test_every_module_and_weight_is_in_the_wheel(wheel: set[str]) -> None:
    for folder, prefix in (("src/avprompt", "avprompt"), ("data_modules", "avprompt/data_modules")):
        found = [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".safetensors", ".csv", ".txt")]
        assert found
        for path in found:
            assert f"{prefix}/{path.relative_to(ROOT / folder)}" in wheel


def test_every_experiment_and_fragment_is_in_the_wheel(wheel: set[str]) -> None:
    for folder in ("experiments", "lightning_configs"):
        found = {f"avprompt/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.yaml")}
        assert found and found == {name for name in wheel if name.startswith(f"avprompt/{folder}/")}


def test_installed_package_works_in_an_empty_folder(built_wheel: Path, tmp_path: Path) -> None:
    """Names of experiments, fragments and sweeps need no source tree; nothing is written."""
    place, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(built_wheel).extractall(place)
    empty.mkdir()

    def shell(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "avprompt", *args],
            cwd=empty,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(place)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert shell("experiments", "ave_dgsct_released", "--show").startswith("# AVE with DG-SCT")
    table = json.loads(shell("params", "--config", "ave_dgsct", "--trainer", "cpu", "--json").splitlines()[-1])
    assert table["trainable"] == 196_420_503 and not list(empty.iterdir())
    code = (
        "from avprompt import configs, sweeps; from avprompt.sweeps.plan import read_sweep; from pathlib import Path;"
        "file = configs.find_file('dgsct_modules', places=(configs.EXPERIMENTS / 'sweeps',));"
        "print(len(read_sweep(file, [0], Path('out'))[0]), file)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=empty,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(place)},
    ).stdout
    assert said.startswith("7 ") and str(place) in said


def test_no_file_is_forgotten_by_the_packages() -> None:
    for folder in (ROOT / "src" / "avprompt").rglob("*.py"):
        assert (Path(folder).parent / "__init__.py").is_file(), f"{folder.parent} is no package"


def test_laion_clap_is_never_imported_whole() -> None:
    """Its package start-up asks a model hub for tokenizers."""
    code = (
        "import sys, avprompt.tasks, avprompt.data_modules; from avprompt.encoders import TinyHTSAT; TinyHTSAT();"
        "print(sorted(name for name in sys.modules if name.startswith('laion_clap')))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "laion_clap.clap_module.htsat" in out
    assert "laion_clap.hook" not in out and "laion_clap.training" not in out
