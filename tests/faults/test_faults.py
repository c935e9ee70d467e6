"""A short form of benchmarks/faults.py."""

from __future__ import annotations

import subprocess
import sys

from conftest import ROOT


def test_a_quarter_of_a_minute_of_faults() -> None:
    """Kills, signals, full disks and damaged stores at random moments and places: no promise is broken."""
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--minutes", "0.25"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.stdout.count("| 0 |") >= 5
