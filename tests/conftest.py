"""Shared fixtures: no network, few threads, a small synthetic dataset made once."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports a hub client
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has a core

from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

matplotlib.use("agg")
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def pytest_configure() -> None:
    """A shell's background job, which the test run may be, ignores Ctrl-C, and so would every process that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not walk through it a second at a time, which libraries
    ask it to (statsmodels with every correction of p)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """No run leaves its signal handlers behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are called in-process: what pytest was called with is none of theirs."""
    monkeypatch.setattr("sys.argv", ["avprompt"])
    torch.manual_seed(0)


@pytest.fixture
def narrow_vggish(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGGish with few channels: 128 come out, and its 72 million parameters are not built."""
    monkeypatch.setattr("avprompt.encoders.vggish.CHANNELS", ((2,), (2,), (2, 2), (2, 2)))
    monkeypatch.setattr("avprompt.encoders.vggish.WIDTHS", (8, 8, 128))


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a synthetic dataset, prepared for the tiny encoders; the processes of a test run share it."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.getbasetemp()

    def make(kind: str, counts: dict[str, int], store: bool = True, **options: Any) -> Path:
        from avprompt.media.prepare import prepare
        from avprompt.synthetic import SYNTHETIC_DATASETS

        root = base / "-".join(("dataset", kind, *map(str, options.values())))
        with (base / f"{root.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / "made").exists():
                shutil.rmtree(root, ignore_errors=True)
                assert SYNTHETIC_DATASETS[kind](root, workers=1, **options) == counts
                if store:
                    prepare(root / "videos", root / "store", size=64, sample_rate=16000, workers=1)
                (root / "made").touch()
        return root

    return make


@pytest.fixture(scope="session")
def ave_root(make: Callable[..., Path]) -> Path:
    """40 clips in AVE's layout."""
    return make("ave", {"train": 24, "val": 8, "test": 8}, videos=40, seed=7)


@pytest.fixture(scope="session")
def ave_features(ave_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published features for `ave_root`: the memory maps alone, those of the further clips zero."""
    import numpy as np

    folder, rng = tmp_path_factory.mktemp("features"), np.random.default_rng(0)
    rows = len((ave_root / "Annotations.txt").read_text(encoding="utf-8").splitlines()) - 1
    for suffix, count in (("", rows), ("_noisy", 178)):
        for name, shape, kind in (("visual", (10, 7, 7, 512), np.float16), ("audio", (10, 128), np.float32)):
            made = np.lib.format.open_memmap(
                folder / f"{name}_feature{suffix}.{np.dtype(kind).name}.npy", "w+", kind, (count, *shape)
            )
            if not suffix:
                made[:] = np.maximum(rng.standard_normal(shape), 0)
    return folder


def npy_features(folder: Path, ids: set[str], shapes: dict[str, tuple[int, ...]]) -> Path:
    """Published features in folders of files, zeros, which take no room."""
    import numpy as np

    for name, shape in shapes.items():
        (folder / name).mkdir(parents=True)
        for clip_id in ids:
            np.lib.format.open_memmap(folder / name / f"{clip_id}.npy", "w+", np.float32, shape)
    return folder


@pytest.fixture(scope="session")
def llp_features(llp_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published features for `llp_root`."""
    from avprompt.datasets import llp

    ids = {video.id for videos in llp.read_splits(llp_root, llp.read_categories(llp_root)).values() for video in videos}
    return npy_features(
        tmp_path_factory.mktemp("llp_features"),
        ids,
        {"vggish": (10, 128), "res152": (80, 2048), "r2plus1d_18": (10, 512)},
    )


@pytest.fixture(scope="session")
def valor_features(llp_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VALOR's published features for `llp_root`."""
    from avprompt.datasets import llp

    ids = {video.id for videos in llp.read_splits(llp_root, llp.read_categories(llp_root)).values() for video in videos}
    return npy_features(
        tmp_path_factory.mktemp("valor_features"),
        ids,
        {"CLIP/features": (10, 768), "CLAP/features": (64, 768), "feats/r2plus1d_18": (10, 512)},
    )


@pytest.fixture(scope="session")
def llp_taught(llp_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of segments that others gave the training videos of `llp_root`: as if each event lasted."""
    import numpy as np

    from avprompt.datasets import llp

    folder, names = tmp_path_factory.mktemp("taught"), llp.read_categories(llp_root)
    for kind in llp.EVENTS:
        (folder / kind).mkdir()
        for video in llp.read_splits(llp_root, names)["train"]:
            label = video.weak_label(len(names)).numpy().astype(np.int64)
            np.save(folder / kind / f"{video.id}.npy", np.tile(label, (10, 1)))
    return folder


@pytest.fixture(scope="session")
def avqa_features(avqa_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published features for `avqa_root`."""
    from avprompt.datasets import music_avqa

    ids = {question.id for questions in music_avqa.read_splits(avqa_root).values() for question in questions}
    return npy_features(
        tmp_path_factory.mktemp("avqa_features"), ids, {"vggish": (60, 128), "res18_14x14": (60, 512, 14, 14)}
    )


@pytest.fixture(scope="session")
def llp_root(make: Callable[..., Path]) -> Path:
    """40 videos in LLP's layout."""
    return make("llp", {"train": 24, "val": 8, "test": 8}, videos=40, seed=7)


@pytest.fixture(scope="session")
def avs_roots(make: Callable[..., Path]) -> dict[str, Path]:
    """25 videos in AVSBench's layout for each setting."""
    return {
        setting: make(
            "avsbench",
            {"train": 15, "val": 5, "test": 5},
            store=False,
            setting=setting,
            videos=25,
            seed=5,
            classes=5,
            objects=2,
        )
        for setting in ("s4", "ms3")
    }


@pytest.fixture(scope="session")
def avqa_root(make: Callable[..., Path]) -> Path:
    """20 videos and 80 questions in MUSIC-AVQA's layout."""
    return make("music_avqa", {"train": 48, "val": 16, "test": 16}, videos=20, seed=5)


@pytest.fixture(scope="session")
def vggsound_root(make: Callable[..., Path]) -> Path:
    """25 videos of five categories in VGG-Sound's layout."""
    return make("vggsound", {"train": 15, "val": 5, "test": 5}, videos=25, seed=7)


@pytest.fixture(scope="session")
def ks_root(make: Callable[..., Path]) -> Path:
    """40 clips in Kinetics-Sounds' layout."""
    return make("kinetics_sounds", {"train": 24, "val": 8, "test": 8}, videos=40, seed=7)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real annotations and clips, where they are at hand."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the real annotation files and clips are not on this machine")
    return SHARED
