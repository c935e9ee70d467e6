"""benchmarks/gpu.py on the CPU: all parts run, finished ones survive an interruption, and one that fails costs itself
alone."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"
BASELINE = """
import torch

def build():
    return torch.nn.Linear(4, 2)

def batch(clips):
    return (torch.ones(clips, 4),)
"""


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def states(out: Path) -> dict[str, str]:
    return {row["part"]: row["status"] for row in lines(out) if "status" in row}


def test_all_parts_run_and_the_table_has_them(tmp_path: Path) -> None:
    (tmp_path / "baseline.py").write_text(BASELINE)
    out = tmp_path / "out"
    run = subprocess.run(
        [
            sys.executable,
            SCRIPT,
            "--device",
            "cpu",
            "--tiny",
            "--minutes",
            "14",
            "--limit",
            "600",
            "--out",
            out,
            "--baseline",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=850,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(states(out)) == 15 and set(states(out).values()) == {"done"}
    rows = lines(out)
    assert {row["kind"] for row in rows if "kind" in row} == {
        "environment",
        "rate",
        "flops",
        "step",
        "memory",
        "outputs",
        "learning",
        "compile",
        "profile",
        "losses",
        "gap",
        "store",
        "fit",
    }
    assert not [row for row in rows if "error" in row]
    assert {row["experiment"] for row in rows if row.get("kind") == "step"} == {
        "quickstart",
        "baseline",
        "avvp_quickstart",
        "avs_s4_quickstart",
        "avs_ms3_quickstart",
        "avqa_quickstart",
        "fewshot_ave_quickstart",
        "ave_avstfp_quickstart",
    }
    assert next(row for row in rows if row.get("kind") == "learning")["finite"]
    assert "| quickstart | bf16 |" in run.stdout and "Parts done: 15 of 15." in run.stdout


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, whose parts do nothing but end in different ways."""
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_script", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "parts_of", lambda *_, **__: None)
    monkeypatch.setattr(
        module,
        "PARTS",
        {
            "good": lambda machine, given, write: write(kind="rate", dtype="bfloat16", flops_per_s=1e12),
            "crash": lambda machine, given, write: (write(kind="first"), os.abort()),
            "error": lambda machine, given, write: write(1 / 0),
            "hang": lambda machine, given, write: (write(kind="second"), time.sleep(600)),
            "last": lambda machine, given, write: write(kind="third"),
        },
    )
    return module


def test_a_part_that_crashes_or_hangs_costs_itself_alone(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--device", "cpu", "--tiny", "--limit", "6", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        script.main(command)
    assert stopped.value.code == 1 and states(tmp_path) == {
        "good": "done",
        "crash": "failed",
        "error": "failed",
        "hang": "out of time",
        "last": "done",
    }
    assert {"first", "second", "third"} <= {row.get("kind") for row in lines(tmp_path)}  # what was measured before
    assert "error: failed (ZeroDivisionError: division by zero)" in capsys.readouterr().out
    before = len(lines(tmp_path))
    with pytest.raises(SystemExit):
        script.main([*command, "--minutes", "0.01"])  # what is done is not done again, and no time is left for the rest
    assert states(tmp_path) == {
        "good": "done",
        "last": "done",
        **dict.fromkeys(("crash", "error", "hang"), "not begun"),
    }
    assert len(lines(tmp_path)) == before + 3


def test_what_is_done_survives_an_interruption(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()

    def interrupt() -> None:
        while not (tmp_path / "hang.log").exists():
            if ended.wait(0.1):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=interrupt, daemon=True)
    killer.start()
    try:
        with pytest.raises(SystemExit) as stopped:
            script.main(["--device", "cpu", "--tiny", "--only", "good,hang", "--limit", "60", "--out", str(tmp_path)])
    finally:
        ended.set()
        killer.join()
    assert stopped.value.code == 128 + signal.SIGTERM and states(tmp_path) == {"good": "done"}
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"part": "ha')  # the machine went down
    script.main(["--table", str(tmp_path)])
    assert "Parts done: 1 of 5." in capsys.readouterr().out
