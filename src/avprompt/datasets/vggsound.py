"""VGG-Sound(40K)'s annotations (VGGSound-AVEL; Zhou et al., CPSP, TPAMI 2022): ten-second videos of 141 categories.

The annotations are two files that their authors hand out and avprompt does not ship:

- VggsoundAVEL40kCategories.txt names the categories, one a line in the order of their indices.
- vggsound-avel40k_labels.csv has a row for each video, with the columns `split` (`train`, `test` or a word that begins
  with `val`), `category`, `video_id` (a whole number) and `label`, a list of ten numbers, 1 for each second in which
  the category is both seen and heard and else 0. Other columns are not used.

Media files are named by the video's number with six digits. The two files were not available when this was written: the
format is what DG-SCT's released loader reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from avprompt.datasets import events
from avprompt.datasets.base import DatasetInfo
from avprompt.errors import AnnotationError
from avprompt.media.readers import FolderReader, Published
from avprompt.media.text import read_lines, read_table, whole

CATEGORY_FILE, LABEL_FILE = "VggsoundAVEL40kCategories.txt", "vggsound-avel40k_labels.csv"
COLUMNS = ("split", "category", "video_id", "label")
SPLITS = ("train", "val", "test")
CATEGORIES = 141  # of VGG-Sound(40K); their names are in its file only


@dataclass(frozen=True)
class Video:
    """One annotated video.

    Args:
        id: its number, six digits.
        category: index into the categories.
        active: for each second, whether the category is both seen and heard.
    """

    id: str
    category: int
    active: tuple[bool, ...]

    def label(self, segments: int, num_classes: int) -> Tensor:
        """One-hot (T, C + 1) float32, background last: the video's category where it is active."""
        return events.one_hot(torch.tensor(self.active), self.category, num_classes)


def read_categories(path: Path) -> tuple[str, ...]:
    """Names of the categories, one a line in the order of their indices.

    Raises:
        DatasetError: no such file.
        AnnotationError: the file is empty or names a category twice.
    """
    names = tuple(
        line
        for _, line in read_lines(
            path,
            "the names of the categories, one a line",
            "Ask the authors of VGGSound-AVEL or DG-SCT for it, or correct `category_file`.",
        )
    )
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise AnnotationError(path, f"{twice} more than once", "one category a line, each once", "Correct the file.")
    return names


def _active(where: str, text: str, segments: int) -> tuple[bool, ...]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not (
        isinstance(values, list)
        and len(values) == segments
        and all(type(value) is int and value in (0, 1) for value in values)
    ):
        raise AnnotationError(
            where, f"label {text!r}", f"a list of {segments} numbers, each 0 or 1", "Correct the line."
        )
    return tuple(map(bool, values))


def read_splits(path: Path, categories: Sequence[str], segments: int = 10) -> dict[str, list[Video]]:
    """Videos of the three splits in the file's order; `val` is empty where the file has none.

    Args:
        path: the csv file.
        categories: names in the order of their indices.
        segments: seconds a video.

    Raises:
        DatasetError: no such file.
        AnnotationError: a column is missing, or a row has too few or too many fields, an unknown split or category, an
            impossible number or label, or the number of another row; names the line.
    """
    index = {name: number for number, name in enumerate(categories)}
    splits: dict[str, list[Video]] = {split: [] for split in SPLITS}
    places: dict[str, str] = {}
    for where, row in read_table(
        path,
        "the labels of VGG-Sound(40K)",
        "Ask the authors of VGGSound-AVEL or DG-SCT for it, or correct `label_file`.",
        COLUMNS,
    ):
        split = "val" if row["split"].startswith("val") else row["split"]
        if split not in splits:
            raise AnnotationError(
                where, f"split {split!r}", "train, test, or a word that begins with val", "Correct the line."
            )
        if row["category"] not in index:
            raise AnnotationError(
                where,
                f"category {row['category']!r}",
                f"one of {len(index)} categories",
                "Use the category file of the same release.",
            )
        number = whole(row["video_id"])
        if number is None:
            raise AnnotationError(where, f"video_id {row['video_id']!r}", "a whole number", "Correct the line.")
        clip = f"{number:06d}"
        if clip in places:
            raise AnnotationError(
                where, f"video_id {row['video_id']} again", f"one row a video; see {places[clip]}", "Remove one."
            )
        places[clip] = where
        splits[split].append(Video(clip, index[row["category"]], _active(where, row["label"], segments)))
    return splits


def remarks(splits: dict[str, list[Video]]) -> list[str]:
    """Sentences that `avprompt data verify` prints about the annotations."""
    lines = (
        []
        if splits["val"]
        else ["no validation rows: `validation_split: test` selects on the test split, the released procedure"]
    )
    for split, videos in splits.items():
        if empty := [video.id for video in videos if not any(video.active)]:
            more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
            lines.append(
                f"{len(empty)} videos of split {split} are background from beginning to end: "
                f"{', '.join(empty[:10])}{more}"
            )
    return lines


def _published_splits(root: Path) -> dict[str, list[Video]]:
    return read_splits(root / LABEL_FILE, read_categories(root / CATEGORY_FILE))


INFO = DatasetInfo(
    name="VGG-Sound",
    published=Published(
        (CATEGORY_FILE, LABEL_FILE), ("frames/%06d/%08d.jpg", "wave/%06d.npy"), FolderReader, _published_splits, remarks
    ),
    class_names=lambda root: read_categories(root / CATEGORY_FILE),
    example=events.example,
    plot=events.plot,
)
