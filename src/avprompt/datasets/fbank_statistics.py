"""Mean and standard deviation of the spectrograms of a training split."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from avprompt.encoders.fbank import Fbank
from avprompt.errors import AVPromptError, ClipDecodeError, DatasetError
from avprompt.media.readers import ClipReader
from avprompt.media.samplers import ErrorsAsValues


@dataclass(frozen=True)
class Statistics:
    """Statistics of filter bank features.

    Args:
        mean: of all features.
        std: population standard deviation of all features.
        clips: number of measured clips.
        segments: number of their segments that were decoded.
        corrupt: number of clips that did not decode and were left out.
    """

    mean: float
    std: float
    clips: int
    segments: int
    corrupt: int


class _Moments(Dataset):
    """For each clip: decoded segments, number of features, their sum and their sum of squares, float64 (4,)."""

    def __init__(self, ids: list[str], reader: ClipReader, fbank: Fbank) -> None:
        self.ids, self.reader, self.fbank = ids, reader, fbank

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        _, audio, valid = self.reader.read(self.ids[index])
        features = self.fbank.raw(audio[valid]).double()
        return torch.tensor([len(features), features.numel(), features.sum(), features.square().sum()]).double()


def fbank_statistics(
    ids: list[str], reader: ClipReader, fbank: Fbank, skip_corrupt: bool = False, workers: int = 0
) -> Statistics:
    """Mean and standard deviation of the features of clips, without normalisation and padding.

    One pass over the clips, in float64. A clip that is listed twice counts once.

    Args:
        ids: of the clips.
        reader: reads them.
        fbank: settings of the filter bank; its `mean` and `std` are not used.
        skip_corrupt: leave out clips that do not decode, with a warning.
        workers: number of processes that read.

    Raises:
        ClipDecodeError: a clip does not decode and `skip_corrupt` is `False`.
        ShapeError: segments are shorter than a window of the filter bank.
        DatasetError: no segment was decoded.
    """
    ids, total, corrupt = list(dict.fromkeys(ids)), torch.zeros(4, dtype=torch.float64), 0
    loader = DataLoader(ErrorsAsValues(_Moments(ids, reader, fbank)), batch_size=None, num_workers=workers)
    for moments in tqdm(loader, desc="stats", unit="clip", disable=None):
        if isinstance(moments, ClipDecodeError) and skip_corrupt:
            warnings.warn(f"left out: {moments}", stacklevel=2)
            corrupt += 1
        elif isinstance(moments, AVPromptError):
            raise moments
        else:
            total += moments
    segments, count, first, second = total.tolist()
    if not count:
        raise DatasetError(
            "train", f"{len(ids)} clips without a decoded segment", "sound to measure", "Run `avprompt data verify`."
        )
    mean = first / count
    return Statistics(mean, math.sqrt(max(0.0, second / count - mean**2)), len(ids) - corrupt, int(segments), corrupt)
