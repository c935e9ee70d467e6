"""benchmarks/cards.py: what it reckons from the figures of `avprompt efficiency`."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def cards() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cards", ROOT / "benchmarks" / "cards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: 901 GFLOPs a clip, 2.5 GB fixed without the workspace: 1 GB of parameters, and 1.5 GB for the trained ones
ROW = {"total": "250e6", "trainable": "125e6", "kept_gb": "3.75", "forward_gflops_a_clip": "901"}


def test_a_card_takes_what_fits_beside_what_is_fixed(cards: ModuleType) -> None:
    assert cards.fixed(ROW) == pytest.approx(4.0)
    assert [cards.batch(ROW, memory) for memory in (3, 4, 24, 40, 80)] == [0, 0, 5, 9, 20]
    assert cards.hours(1000, 3600 * 400 / 3, 1) == pytest.approx(1000)  # 3 TFLOP a clip at 0.4 TFLOP/s
    (line,) = cards.experiments({"ave_dgsct": ROW, "fewshot_ave_dgsct": ROW})  # shots are not a published split
    assert line[0] == "`ave_dgsct`, 3,339 clips" and line[-3:] == ["2.3", "1.2", "0.4"]


def test_a_table_costs_what_its_runs_cost(cards: ModuleType) -> None:
    """Seven variants, two seeds, of as many epochs as the experiment has; what is not known is said to be so."""
    ave, avvp, *_ = cards.tables(["dgsct_modules"], {"ave_dgsct": ROW}, 2)
    epochs = cards.read_yaml("ave_dgsct")["trainer"]["max_epochs"]
    assert ave[:2] == ["`dgsct_modules`, ave", "14"]
    assert ave[-1] == f"{14 * epochs * cards.hours(901, 3339, 989):.1f}"
    assert avvp[-1] == "not known"
