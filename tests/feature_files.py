"""Features in the format of the published files, of noise, for a synthetic dataset."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def write_h5(path: Path, shape: tuple[int, ...], seed: int = 0, key: str = "avadataset") -> None:
    """`key` float64 of `shape`, not negative and mostly zero, as behind a ReLU; one drawn row, which is scaled."""
    rng = np.random.default_rng(seed)
    row = np.maximum(rng.standard_normal(shape[1:]), 0).astype(np.float32)
    with h5py.File(path, "w") as file:
        made = file.create_dataset(key, shape, np.float64)
        for place in range(shape[0]):
            made[place] = row * (1 + 0.25 * (place % 7))


def write_ave(root: Path, folder: Path, background: bool = False) -> Path:
    """The two files of AVE, a row for each row of root/Annotations.txt; with `background` also the further clips."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = len((root / "Annotations.txt").read_text(encoding="utf-8").splitlines()) - 1
    for suffix, count in (("", rows), *((("_noisy", 178),) if background else ())):
        write_h5(folder / f"visual_feature{suffix}.h5", (count, 10, 7, 7, 512))
        write_h5(folder / f"audio_feature{suffix}.h5", (count, 10, 128), seed=1)
    return folder


def write_npy(folder: Path, ids: list[str], shapes: dict[str, tuple[int, ...]]) -> Path:
    """A folder of float32 `<id>.npy` for each shape."""
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        values = np.maximum(rng.standard_normal(shape), 0).astype(np.float32)
        for place, clip_id in enumerate(ids):
            np.save(folder / name / f"{clip_id}.npy", values * (1 + place))
    return folder


def write_llp(folder: Path, ids: list[str]) -> Path:
    """The three folders of LLP."""
    return write_npy(folder, ids, {"vggish": (10, 128), "res152": (80, 2048), "r2plus1d_18": (10, 512)})


def write_music_avqa(folder: Path, ids: list[str]) -> Path:
    """The two folders of MUSIC-AVQA that the authors' network reads."""
    return write_npy(folder, ids, {"vggish": (60, 128), "res18_14x14": (60, 512, 14, 14)})
