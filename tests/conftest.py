"""Shared fixtures: no network, few threads, a small generated world made once."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports a hub client
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from pathlib import Path  # noqa: E402

import matplotlib  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

matplotlib.use("agg")
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are called in-process: what pytest was called with is none of theirs."""
    monkeypatch.setattr("sys.argv", ["avprompt"])
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated world of 40 clips in AVE's layout, prepared for the tiny encoders."""
    from avprompt.media.prepare import prepare
    from avprompt.synth.ave import synthesize

    root = tmp_path_factory.mktemp("world")
    synthesize(root, videos=40, seed=7)
    prepare(root / "videos", root / "store", size=64, sample_rate=16000)
    return root


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real annotations and clips, where they are at hand."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the real annotation files and clips are not on this machine")
    return SHARED
