"""Features of a frozen pair of encoders, computed once for each clip and kept as memory maps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from avprompt.encoders.base import BlockSpec
from avprompt.errors import DatasetError
from avprompt.files import write_whole
from avprompt.media.decode import Sampling
from avprompt.media.store import digest_of

RECORD, DONE, VALID = "cache.json", "done.npy", "valid.npy"
MODALITIES = ("visual", "audio")
AGAIN = "Compute it again with `avprompt data features`, into another folder or with --overwrite."
Precision = Literal["float16", "bfloat16"]
Pool = Literal["mean", "grid"]


@dataclass(frozen=True)
class CacheRecord:
    """What a cache holds and what it was made from.

    Args:
        encoders: of `visual` and `audio`: class, fingerprint of the weights, input, and a probe, the encoder's answer
            to noise, which tells arguments apart that change no weight.
        specs: of `visual` and `audio`: fields of the last block's `BlockSpec`.
        sampling: fields of the data's `Sampling`.
        pool: `mean` holds one vector a segment, (T, C), `grid` all tokens, (T, N, C).
        precision: dtype of the arrays.
        clips: id -> identity of the clip's media.
    """

    encoders: dict[str, dict[str, Any]]
    specs: dict[str, dict[str, Any]]
    sampling: dict[str, Any]
    pool: Pool
    precision: Precision
    clips: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Digest of everything but the clips: two caches with equal fingerprints hold the same features."""
        made = {name: value for name, value in asdict(self).items() if name != "clips"}
        return digest_of(json.dumps(made, sort_keys=True).encode())

    def spec(self, modality: str) -> BlockSpec:
        """Size and place of a modality's tokens."""
        fields = dict(self.specs[modality])
        return BlockSpec(**{**fields, "grid": tuple(fields["grid"])})

    def shape(self, modality: str) -> tuple[int, ...]:
        """Shape of a clip's features: (T, C) or (T, N, C)."""
        spec, segments = self.spec(modality), self.sampling["segments"]
        return (segments, spec.dim) if self.pool == "mean" else (segments, spec.tokens, spec.dim)

    def bytes(self) -> int:
        """Size of the arrays of all clips."""
        return 2 * len(self.clips) * sum(math.prod(self.shape(modality)) for modality in MODALITIES)

    def differences(self, other: CacheRecord) -> list[str]:
        """Names of what differs between two records, clips left aside."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name}.{key}"
            for name in ("encoders", "specs", "sampling")
            for key in mine[name]
            if mine[name][key] != theirs[name].get(key)
        ] + [name for name in ("pool", "precision") if mine[name] != theirs[name]]


class FeatureCache:
    """A folder of features: `cache.json`, one array for each modality, which segments are valid, which clips are done.

    Args:
        folder: of the cache.

    Raises:
        DatasetError: the folder holds no cache, or one that is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        path = self.folder / RECORD
        try:
            self.record = CacheRecord(**json.loads(path.read_text(encoding="utf-8")))
            self.sampling = Sampling(**self.record.sampling)
            count = len(self.record.clips)
            expected = {name: (count, *self.record.shape(name)) for name in MODALITIES}
            expected |= {"valid": (count, self.record.sampling["segments"]), "done": (count,)}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DatasetError(path, error, "the record of a feature cache", AGAIN) from error
        self.places = {clip_id: place for place, clip_id in enumerate(self.record.clips)}
        self._maps: dict[str, np.memmap] = {}
        for name, shape in expected.items():
            if (found := self._map(name).shape) != shape:
                raise DatasetError(self.folder / f"{name}.npy", f"an array {found}", str(shape), AGAIN)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a worker process maps the files itself

    def _map(self, name: str, mode: str = "r") -> np.memmap:
        if name not in self._maps or mode != "r":
            path = self.folder / f"{name}.npy"
            try:
                self._maps[name] = np.load(path, mmap_mode=mode, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DatasetError(path, error, "an array of a feature cache", AGAIN) from error
        return self._maps[name]

    @classmethod
    def create(cls, folder: str | Path, record: CacheRecord) -> FeatureCache:
        """An empty cache for the clips of a record."""
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).unlink(missing_ok=True)  # from here on there is no cache, until the record stands again
        count = len(record.clips)
        kind = np.float16 if record.precision == "float16" else np.uint16
        arrays = {
            **{name: (kind, record.shape(name)) for name in MODALITIES},
            "valid": (np.bool_, (record.sampling["segments"],)),
            "done": (np.bool_, ()),
        }
        for name, (dtype, shape) in arrays.items():
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (count, *shape)).flush()
        write_whole(folder / RECORD, (json.dumps(asdict(record), indent=1) + "\n").encode())
        return cls(folder)

    @property
    def missing(self) -> list[str]:
        """Ids of the clips whose features are not computed yet."""
        done = self._map("done")
        return [clip_id for clip_id, place in self.places.items() if not done[place]]

    def write(self, ids: Sequence[str], features: Mapping[str, Tensor], valid: Tensor) -> None:
        """Store a batch; a clip counts as done only when its features are on the disk.

        Args:
            ids: B clips.
            features: of `visual` and `audio`, (B, T, C) or (B, T, N, C).
            valid: (B, T) bool.

        Raises:
            DatasetError: a value that the cache's precision cannot hold.
        """
        places = [self.places[clip_id] for clip_id in ids]
        arrays = {"valid": valid.cpu().numpy()}
        for modality in MODALITIES:
            rounded = features[modality].detach().cpu().to(getattr(torch, self.record.precision))
            if not torch.isfinite(rounded).all():
                wrong = [clip_id for clip_id, own in zip(ids, rounded) if not torch.isfinite(own).all()]
                raise DatasetError(
                    wrong[0],
                    f"{modality} features that {self.record.precision} cannot hold",
                    "finite values",
                    "Use --precision bfloat16, which has a wider range.",
                )
            arrays[modality] = (rounded.view(torch.uint16) if rounded.dtype == torch.bfloat16 else rounded).numpy()
        for name, values in arrays.items():
            target = self._map(name, "r+")
            target[places] = values
            target.flush()
        done = self._map("done", "r+")
        done[places] = True
        done.flush()

    def read_item(self, item: Any) -> dict[str, Tensor]:
        """`read` for an annotated item, by its `id`."""
        return self.read(item.id)

    def read(self, clip_id: str) -> dict[str, Tensor]:
        """`visual_features` and `audio_features`, (T, C) or (T, N, C), and `valid` (T,) of a clip.

        Raises:
            DatasetError: the cache does not hold the clip.
        """
        place = self._place(clip_id)
        return {
            "valid": torch.from_numpy(np.array(self._map("valid")[place])),
            **{f"{modality}_features": self._values(modality, place) for modality in MODALITIES},
        }

    def read_visual(self, clip_id: str, rng: np.random.Generator, segments: int) -> Tensor:
        """Visual features of a random decoded one of a clip's T segments, float32: (C,), or (N, C) without tokens
        before the grid.

        Raises:
            DatasetError: the cache does not hold the clip.
        """
        place = self._place(clip_id)
        decoded = np.flatnonzero(self._map("valid")[place])
        values = self._values("visual", place, int(rng.choice(decoded if len(decoded) else segments))).float()
        return values if values.ndim == 1 else values[self.record.spec("visual").prefix :]

    def _place(self, clip_id: str) -> int:
        place = self.places.get(clip_id)
        if place is None or not self._map("done")[place]:
            raise DatasetError(self.folder, f"no features of {clip_id}", "features of every clip", AGAIN)
        return place

    def _values(self, modality: str, place: int, segment: int | slice = slice(None)) -> Tensor:
        """Features of a clip, or of one of its segments."""
        values = torch.from_numpy(np.array(self._map(modality)[place][segment]))
        return values.view(torch.bfloat16) if values.dtype == torch.uint16 else values

    def check(self, sampling: Sampling, clips: Mapping[str, str]) -> None:
        """Whether this cache holds these clips, cut so.

        Args:
            sampling: how the data module cuts clips.
            clips: id -> identity of the clip's media now.

        Raises:
            DatasetError: other sampling, clips without features, or clips whose media changed; names some.
        """
        ours, theirs = sampling.settings, self.sampling.settings
        if wrong := [name for name, value in ours.items() if theirs[name] != value]:
            raise DatasetError(
                self.folder,
                f"features of clips cut with { ({name: theirs[name] for name in wrong}) }",
                f"{ ({name: ours[name] for name in wrong}) }",
                AGAIN,
            )
        unfinished = set(self.missing)
        for what, found in (
            ("no features of", [clip_id for clip_id in clips if clip_id not in self.places or clip_id in unfinished]),
            (
                "features of other media than now for",
                [
                    clip_id
                    for clip_id, identity in clips.items()
                    if self.record.clips.get(clip_id, identity) != identity
                ],
            ),
        ):
            if found:
                some = ", ".join(found[:3])
                raise DatasetError(
                    self.folder,
                    f"{what} {len(found)} of {len(clips)} clips, such as {some}",
                    "features of every clip as it is now",
                    AGAIN,
                )
