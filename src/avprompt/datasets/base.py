"""Description of a dataset in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from avprompt.media.readers import Published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: one clip without a batch dimension: `id`, `frames`, `audio`, `valid`, labels, and what a model predicted
Sample = Mapping[str, Any]


def curves_of(sample: Sample) -> dict[str, Tensor]:
    """The probabilities of each segment that a sample holds, by name; those of a whole clip are left out.

    Example:
        >>> import torch
        >>> curves_of({"frames": torch.zeros(2, 3, 4, 4), "probability_event": torch.rand(2, 5),
        ...            "probability_answer": torch.rand(7)}).keys()
        dict_keys(['event'])
    """
    count = len(sample["frames"])
    return {
        name.removeprefix("probability_"): value
        for name, value in sample.items()
        if name.startswith("probability_")
        and value.shape[:1] == (count,)
        and (value.ndim > 1 or abs(float(value.sum()) - 1) > 1e-4)
    }  # else it is of the clip's categories


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset's description: data modules, `avprompt data verify` and the reports read it.

    Args:
        name: as papers print it.
        published: the annotation files and the folders of extracted media, and what reads them.
        class_names: the dataset's folder -> names of the classes in the order of their indices.
        example: labels of a batch of noise, with the keys, shapes and dtypes of a training batch; called with
            `clips`, `segments`, `num_classes` and the other `sizes` of the dataset's data module.
        plot: (sample, class names, seconds from the start of a segment to the start of the next) -> a picture of the
            sample with its labels and, if present, its predictions.
        unit: what an item of a split is: `clips` or `questions`.
        features: (folder of the features, the dataset's folder, class names) -> reader of the features that the authors
            published; `None` where they published none.

    Example:
        >>> from avprompt.datasets.registry import DATASETS
        >>> info = DATASETS["ave"]
        >>> info.name, info.unit, info.published.files[0]
        ('AVE', 'clips', 'Annotations.txt')
        >>> {key: tuple(value.shape) for key, value in info.example(clips=2, segments=10, num_classes=28).items()}
        {'event': (2, 10, 29), 'category': (2,)}
    """

    name: str
    published: Published
    class_names: Callable[[Path], Sequence[str]]
    example: Callable[..., dict[str, Tensor]]
    plot: Callable[[Sample, Sequence[str], float], Figure]
    unit: str = "clips"
    features: type[Any] | None = None
