"""What is installed is what is in the tree."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel built from a copy of the tree."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout.split("\n")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    built = subprocess.run([sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"],
                           cwd=copy, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


def test_every_module_and_weight_is_in_the_wheel(wheel: set[str]) -> None:
    for folder, prefix in (("src/avprompt", "avprompt"), ("data_modules", "avprompt/data_modules")):
        found = [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".safetensors", ".csv", ".txt")]
        assert found
        for path in found:
            assert f"{prefix}/{path.relative_to(ROOT / folder)}" in wheel


def test_no_file_is_forgotten_by_the_packages() -> None:
    for folder in (ROOT / "src" / "avprompt").rglob("*.py"):
        assert (Path(folder).parent / "__init__.py").is_file(), f"{folder.parent} is no package"


def test_laion_clap_is_never_imported_whole() -> None:
    """Its package start-up asks a model hub for tokenizers."""
    code = ("import sys, avprompt.tasks, avprompt.data_modules; from avprompt.encoders import TinyHTSAT; TinyHTSAT();"
            "print(sorted(name for name in sys.modules if name.startswith('laion_clap')))")
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "laion_clap.clap_module.htsat" in out
    assert "laion_clap.hook" not in out and "laion_clap.training" not in out
