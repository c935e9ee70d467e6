"""Shared fixtures: no network, few threads, a small synthetic dataset made once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports a hub client
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has a core

from pathlib import Path  # noqa: E402

import matplotlib  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

matplotlib.use("agg")
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def pytest_configure() -> None:
    """A shell's background job, which the test run may be, ignores Ctrl-C, and so would every process that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="session")
def ave_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic dataset of 40 clips in AVE's layout, prepared for the tiny encoders."""
    from avprompt.media.prepare import prepare
    from avprompt.synthetic.ave import synthesize

    root = tmp_path_factory.mktemp("world")
    synthesize(root, videos=40, seed=7)
    prepare(root / "videos", root / "store", size=64, sample_rate=16000)
    return root


@pytest.fixture(scope="session")
def ave_features(ave_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published features for `ave_root`: the memory maps alone, those of the further clips zero."""
    import numpy as np

    folder, rng = tmp_path_factory.mktemp("features"), np.random.default_rng(0)
    rows = len((ave_root / "Annotations.txt").read_text(encoding="utf-8").splitlines()) - 1
    for suffix, count in (("", rows), ("_noisy", 178)):
        for name, shape, kind in (("visual", (10, 7, 7, 512), np.float16), ("audio", (10, 128), np.float32)):
            made = np.lib.format.open_memmap(folder / f"{name}_feature{suffix}.{np.dtype(kind).name}.npy", "w+", kind,
                                             (count, *shape))
            if not suffix:
                made[:] = np.maximum(rng.standard_normal(shape), 0)
    return folder


def npy_features(folder: Path, ids: set[str], shapes: dict[str, tuple[int, ...]]) -> Path:
    """Published features in folders of files, zeros, which take no room."""
    import numpy as np

    for name, shape in shapes.items():
        (folder / name).mkdir()
        for clip_id in ids:
            np.lib.format.open_memmap(folder / name / f"{clip_id}.npy", "w+", np.float32, shape)
    return folder


@pytest.fixture(scope="session")
def llp_features(llp_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published features for `llp_root`."""
    from avprompt.datasets import llp

    ids = {video.id for videos in llp.read_splits(llp_root, llp.read_categories(llp_root)).values() for video in videos}
    return npy_features(tmp_path_factory.mktemp("llp_features"), ids, {
        "vggish": (10, 128), "res152": (80, 2048), "r2plus1d_18": (10, 512)})


@pytest.fixture(scope="session")
def avqa_features(avqa_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published features for `avqa_root`."""
    from avprompt.datasets import music_avqa

    ids = {question.id for questions in music_avqa.read_splits(avqa_root).values() for question in questions}
    return npy_features(tmp_path_factory.mktemp("avqa_features"), ids, {
        "vggish": (60, 128), "res18_14x14": (60, 512, 14, 14)})


@pytest.fixture(scope="session")
def llp_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic dataset in LLP's layout, 40 videos, prepared for the tiny encoders."""
    from avprompt.media.prepare import prepare
    from avprompt.synthetic.llp import synthesize

    root = tmp_path_factory.mktemp("llp")
    assert synthesize(root, videos=40, seed=7) == {"train": 24, "val": 8, "test": 8}
    prepare(root / "videos", root / "store", size=64, sample_rate=16000)
    return root


@pytest.fixture(scope="session")
def avs_roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The synthetic dataset in AVSBench's layout, 25 videos for each setting."""
    from avprompt.synthetic.avsbench import synthesize

    roots = {setting: tmp_path_factory.mktemp(setting) for setting in ("s4", "ms3")}
    for setting, root in roots.items():
        counts = synthesize(root, setting, videos=25, seed=5, classes=5, silent_objects=1, workers=1)
        assert counts == {"train": 15, "val": 5, "test": 5}
    return roots


@pytest.fixture(scope="session")
def avqa_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic dataset in MUSIC-AVQA's layout, 20 videos and 80 questions, prepared for the tiny encoders."""
    from avprompt.media.prepare import prepare
    from avprompt.synthetic.music_avqa import synthesize

    root = tmp_path_factory.mktemp("music_avqa")
    assert synthesize(root, videos=20, seed=5) == {"train": 48, "val": 16, "test": 16}
    prepare(root / "videos", root / "store", size=64, sample_rate=16000)
    return root


@pytest.fixture(scope="session")
def vggsound_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic dataset in VGG-Sound's layout, 25 videos of five categories, prepared for the tiny encoders."""
    from avprompt.media.prepare import prepare
    from avprompt.synthetic.vggsound import synthesize

    root = tmp_path_factory.mktemp("vggsound")
    assert synthesize(root, videos=25, seed=7) == {"train": 15, "val": 5, "test": 5}
    prepare(root / "videos", root / "store", size=64, sample_rate=16000)
    return root


@pytest.fixture(scope="session")
def ks_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic dataset in Kinetics-Sounds' layout, 40 clips, prepared for the tiny encoders."""
    from avprompt.media.prepare import prepare
    from avprompt.synthetic.kinetics_sounds import synthesize

    root = tmp_path_factory.mktemp("kinetics_sounds")
    assert synthesize(root, videos=40, seed=7) == {"train": 24, "val": 8, "test": 8}
    prepare(root / "videos", root / "store", size=64, sample_rate=16000)
    return root


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real annotations and clips, where they are at hand."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the real annotation files and clips are not on this machine")
    return SHARED
