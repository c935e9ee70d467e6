"""AVE's annotations (Tian et al., ECCV 2018): 4143 events in 4097 ten-second clips, each event of one category.

The published files have these peculiarities:

- 45 clips have two or more rows with different categories. Each row becomes an example. A second row with the same clip
  and category is an error.
- 18 clips of the training split are also in the validation split (10) or the test split (8), under another category.
  They are reported, and `drop_leaked` removes them from training.
- One event (`VWi2ENBuTbw`, Church bell) lasts from 0 to 0. Its clip is background only.
- The split files have no header, and 1030 ids start with a dash.
- The third field is `good` in every row and is not used.

The authors also published features, of which row i belongs to row i of Annotations.txt:

- visual_feature.h5: `avadataset` (4143, 10, 7, 7, 512), VGG-19's last pooling layer, the mean over 16 frames a second.
- audio_feature.h5: `avadataset` (4143, 10, 128), VGGish.
- visual_feature_noisy.h5 and audio_feature_noisy.h5: the same of 178 further clips without any event, which only the
  weakly supervised setting trains on.

Your own dataset in AVE's format names its categories in `categories.txt` beside Annotations.txt, one a line in the
order of their indices. Without that file the categories are AVE's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avprompt.datasets import events
from avprompt.datasets.base import DatasetInfo
from avprompt.errors import AnnotationError
from avprompt.media.feature_files import FeatureFiles, h5_rows
from avprompt.media.readers import FolderReader, Published
from avprompt.media.text import is_name, read_lines, whole

CATEGORIES = (
    "Church bell",
    "Male speech, man speaking",
    "Bark",
    "Fixed-wing aircraft, airplane",
    "Race car, auto racing",
    "Female speech, woman speaking",
    "Helicopter",
    "Violin, fiddle",
    "Flute",
    "Ukulele",
    "Frying (food)",
    "Truck",
    "Shofar",
    "Motorcycle",
    "Acoustic guitar",
    "Train horn",
    "Clock",
    "Banjo",
    "Goat",
    "Baby cry, infant cry",
    "Bus",
    "Chainsaw",
    "Cat",
    "Horse",
    "Toilet flush",
    "Rodents, rats, mice",
    "Accordion",
    "Mandolin",
)
HEADER = "Category&VideoID&Quality&StartTime&EndTime"
#: ids of the further clips without any event begin so, and their number
BACKGROUND, EXTRA = "background_", 178
SPLITS = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}


@dataclass(frozen=True)
class Event:
    """One annotated event.

    Args:
        id: clip id.
        category: index into the categories.
        start: first second of the event.
        end: the second after its last one; equal to `start` where the event has no duration.

    Example:
        >>> Event("clip", category=1, start=1, end=2).label(segments=2, num_classes=2).tolist()
        [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """

    id: str
    category: int
    start: int
    end: int

    def label(self, segments: int, num_classes: int) -> Tensor:
        """One-hot (T, C + 1) float32, background last: the event's category for `start <= t < end`."""
        seconds = torch.arange(segments)
        return events.one_hot((self.start <= seconds) & (seconds < self.end), self.category, num_classes)


def read_categories(root: Path) -> tuple[str, ...]:
    """Names of the categories: `root`/categories.txt where it exists, else AVE's own 28.

    Raises:
        AnnotationError: the file is empty or names a category twice.
    """
    path = Path(root) / "categories.txt"
    if not path.is_file():
        return CATEGORIES
    names = tuple(line for _, line in read_lines(path, "one category a line", "Correct the path."))
    if len(set(names)) < len(names):
        raise AnnotationError(path, names, "one category a line, each once", "Correct the file.")
    return names


def _numbered_rows(path: Path, categories: tuple[str, ...], segments: int) -> list[tuple[str, Event]]:
    """`read_rows`, with the file and line of every row for messages."""
    index, rows, seen = {name: i for i, name in enumerate(categories)}, [], set()
    lines = read_lines(path, "an annotation file of AVE", "Download AVE's annotations, or fix root.")
    for where, line in lines[1:] if lines[0][1] == HEADER else lines:
        fields = line.split("&")
        if len(fields) != 5:
            raise AnnotationError(where, line, f"five fields, {HEADER}", "Correct the line.")
        name, clip_id, _, start, end = fields
        if name not in index:
            raise AnnotationError(
                where,
                f"category {name!r}",
                f"one of {len(categories)} categories",
                "Name the dataset's own in categories.txt beside Annotations.txt.",
            )
        if not is_name(clip_id):
            raise AnnotationError(where, f"clip id {clip_id!r}", "the name of a file", "Correct the line.")
        first, last = whole(start), whole(end)
        if first is None or last is None or not first <= last <= segments:
            raise AnnotationError(
                where, f"{start} to {end}", f"whole seconds, start <= end <= {segments}", "Correct the line."
            )
        if (clip_id, name) in seen:
            raise AnnotationError(where, f"{name} of {clip_id} again", "one row a clip and category", "Remove one.")
        seen.add((clip_id, name))
        rows.append((where, Event(clip_id, index[name], first, last)))
    if not rows:
        raise AnnotationError(path, "a header and no row", "an annotation file of AVE", "Download it again.")
    return rows


def read_rows(path: Path, categories: tuple[str, ...], segments: int = 10) -> list[Event]:
    """Rows of Annotations.txt or of a split file (which has no header).

    Raises:
        DatasetError: no such file.
        AnnotationError: a row with other than five fields, an unknown category, an impossible id or times, or the same
            clip and category as another row; names the line.
    """
    return [event for _, event in _numbered_rows(Path(path), categories, segments)]


def read_splits(root: Path, categories: tuple[str, ...] | None = None, segments: int = 10) -> dict[str, list[Event]]:
    """Events of the three splits. Each is looked up in Annotations.txt by clip and category, not by its position.

    Args:
        root: folder of Annotations.txt and the split files.
        categories: names in the order of their indices; `None` is `read_categories(root)`.
        segments: seconds a clip.

    Raises:
        DatasetError: a file is missing.
        AnnotationError: a file breaks its format, a split names an event that Annotations.txt does not have, or
            categories.txt names other categories than `categories`.
    """
    root = Path(root)
    named = read_categories(root)
    categories = named if categories is None else categories
    if (root / "categories.txt").is_file() and named != categories:
        raise AnnotationError(
            "categories",
            categories,
            f"those of {root / 'categories.txt'}, {named}",
            "Leave `categories` out, or give the same names in the same order.",
        )
    known = {(event.id, event.category): event for event in read_rows(root / "Annotations.txt", categories, segments)}
    splits: dict[str, list[Event]] = {}
    for split, name in SPLITS.items():
        splits[split] = []
        for where, event in _numbered_rows(root / name, categories, segments):
            if known.get((event.id, event.category)) != event:
                raise AnnotationError(
                    where,
                    f"{event.id} {categories[event.category]} {event.start}-{event.end}",
                    f"the row of Annotations.txt, {known.get((event.id, event.category))}",
                    "Use split files and annotations of the same release.",
                )
            splits[split].append(event)
    return splits


def leaked(splits: dict[str, list[Event]]) -> dict[str, list[str]]:
    """Clip ids of the training split that are also evaluated on: split -> sorted ids."""
    train = {event.id for event in splits["train"]}
    return {split: sorted(train & {event.id for event in splits[split]}) for split in ("val", "test")}


def remarks(splits: dict[str, list[Event]]) -> list[str]:
    """Sentences that `avprompt data verify` prints about the annotations."""
    return [
        f"{len(ids)} training clips are also in split {split}: {', '.join(ids)}"
        for split, ids in leaked(splits).items()
        if ids
    ]


class H5Features(FeatureFiles):
    """The published features, read by the row of Annotations.txt, because 45 clips have several rows.

    Args:
        folder: of visual_feature.h5 and audio_feature.h5.
        root: folder of Annotations.txt.
        categories: names in the order of their indices.

    Raises:
        DatasetError: a file is missing or other than published, see `h5_rows`.
    """

    visual, audio = "VGG-19", "VGGish"
    shapes = {"visual_features": (10, 49, 512), "audio_features": (10, 128)}

    def __init__(self, folder: Path, root: Path, categories: Sequence[str]) -> None:
        rows = read_rows(Path(root) / "Annotations.txt", tuple(categories))
        self.rows = {(event.id, event.category): row for row, event in enumerate(rows)}
        self.known, self.folder, self.num_classes = {event.id for event in rows}, Path(folder), len(categories)
        self.maps = self._open("", len(rows))
        self.extra: tuple[np.memmap, np.memmap] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "maps": None, "extra": None}  # a worker process maps the files itself

    def _open(self, suffix: str, count: int) -> tuple[np.memmap, np.memmap]:
        return (
            h5_rows(self.folder / f"visual_feature{suffix}.h5", "avadataset", count, (10, 7, 7, 512), np.float16),
            h5_rows(self.folder / f"audio_feature{suffix}.h5", "avadataset", count, (10, 128), np.float32),
        )

    def background(self) -> list[Event]:
        """The further clips without any event, of the category after the last.

        Raises:
            DatasetError: their features are missing or other than published.
        """
        self.extra = self._open("_noisy", EXTRA)
        return [Event(f"{BACKGROUND}{row:03d}", self.num_classes, 0, 0) for row in range(EXTRA)]

    def problem(self, clip_id: str) -> str | None:
        return None if clip_id in self.known or clip_id.startswith(BACKGROUND) else "missing: not in Annotations.txt"

    def ids(self) -> set[str]:
        return set(self.known)

    def read_item(self, item: Event) -> dict[str, Tensor]:
        if item.category == self.num_classes:
            if self.extra is None:
                self.extra = self._open("_noisy", EXTRA)
            maps, row = self.extra, int(item.id.removeprefix(BACKGROUND))
        else:
            if self.maps is None:
                self.maps = self._open("", len(self.rows))
            maps, row = self.maps, self.rows[item.id, item.category]
        visual, audio = (torch.from_numpy(values[row].astype(np.float32)) for values in maps)
        return {
            "visual_features": visual.reshape(self.shapes["visual_features"]),
            "audio_features": audio,
            "valid": torch.ones(10, dtype=torch.bool),
        }


INFO = DatasetInfo(
    name="AVE",
    published=Published(
        ("Annotations.txt", *SPLITS.values()),
        ("frames/<VideoID>/%08d.jpg", "wave/<VideoID>.npy"),
        FolderReader,
        read_splits,
        remarks,
    ),
    class_names=read_categories,
    example=events.example,
    plot=events.plot,
    features=H5Features,
)
