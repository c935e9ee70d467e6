"""benchmarks/step.py: what a side counts and measures, and a side in its own process."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "step.py"
BASELINE = """
import torch

def build():
    return torch.nn.Linear(4, 2)

def batch(clips):
    return (torch.ones(clips, 4),)
"""
GIVEN = {"device": "cpu", "precision": "fp32", "threads": 1, "set": "", "before": None, "baseline": None}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("step_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_side_counts_and_takes_steps(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{"do": "count"}, *({"do": "step", "batch": batch} for batch in (1, 1, 2))]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(line) + "\n" for line in asked)))
    threads, stream = torch.get_num_threads(), sys.stdout
    try:
        script.serve(SimpleNamespace(**GIVEN, kind="suite", folder=ROOT, experiment="quickstart"))
    finally:
        torch.set_num_threads(threads)
        sys.stdout = stream
    counted, *steps = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert counted["kept_bytes"] > 1e6 and 500 < counted["forward"] < counted["backward"]
    assert [row["loss"] > 0 for row in steps] == [True] * 3 and steps[1]["loss"] != steps[0]["loss"]  # it is updated
    assert all(row["processor_s"] > 0 and row["peak_bytes"] > 1e6 for row in steps)


def test_a_side_in_its_own_process(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "baseline.py").write_text(BASELINE)
    own = script.Side("baseline", tmp_path, "linear", SimpleNamespace(**GIVEN, other=None))
    row = own.ask(do="step", batch=2)
    own.end()
    assert set(row) == {"wall_s", "processor_s", "peak_bytes", "loss"} and own.process.returncode == 0


def test_sides_alternate_and_the_table_has_medians(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made:
        """A side that starts no process; a step takes as many seconds as steps were asked for."""

        def __init__(self, name: str, *rest: Any) -> None:
            self.name, self.asked = name, 0

        def ask(self, batch: int, **what: Any) -> dict[str, Any]:
            self.asked += 1
            return {"wall_s": self.asked, "processor_s": 2.0 * self.asked, "peak_bytes": batch * 10**9, "loss": 1.0}

        def end(self) -> None:
            pass

    monkeypatch.setattr(script, "Side", Made)
    script.main(["made", "--baseline", "elsewhere", "--no-count", "--repeats", "3"])
    *lines, head, _, one, two = capsys.readouterr().out.strip().splitlines()
    rows = [json.loads(line) for line in lines[1:]]
    assert [row["side"] for row in rows] == ["now", "baseline"] * 6
    assert [row["batch"] for row in rows] == [1] * 8 + [2] * 4
    assert [row["warm"] for row in rows] == [True, True, *[False] * 6, True, True, False, False]
    assert head.startswith("| experiment") and one == "| made | now | 3.000 | 6.000 | 1.000 |  |  |  |"
    assert two == "| made | baseline | 3.000 | 6.000 | 1.000 |  |  |  |"
