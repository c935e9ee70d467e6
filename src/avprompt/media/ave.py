"""AVE's annotations (Tian et al., ECCV 2018): 4143 events in 4097 ten-second clips, one category each.

What the published files hold besides, and what happens to it here:

- 45 clips stand on two or more rows with different categories: each row is an example of its own.
- 18 clips of the training split stand in the validation (10) or test split (8) too, under another category: reported,
  and dropped from training with `drop_leaked`.
- One row (`VWi2ENBuTbw`, Church bell) lasts from 0 to 0: a clip of background only.
- The split files have no header, and 1030 ids begin with a dash.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from avprompt.errors import AnnotationError, DatasetError

CATEGORIES = (
    "Church bell", "Male speech, man speaking", "Bark", "Fixed-wing aircraft, airplane", "Race car, auto racing",
    "Female speech, woman speaking", "Helicopter", "Violin, fiddle", "Flute", "Ukulele", "Frying (food)", "Truck",
    "Shofar", "Motorcycle", "Acoustic guitar", "Train horn", "Clock", "Banjo", "Goat", "Baby cry, infant cry", "Bus",
    "Chainsaw", "Cat", "Horse", "Toilet flush", "Rodents, rats, mice", "Accordion", "Mandolin",
)
HEADER = "Category&VideoID&Quality&StartTime&EndTime"
SPLITS = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}


@dataclass(frozen=True)
class Event:
    """One annotated event.

    Args:
        id: clip id.
        category: index into the categories.
        start: first second of the event.
        end: second after its last; equal to `start` where there is none.
    """

    id: str
    category: int
    start: int
    end: int

    def label(self, segments: int, num_classes: int) -> Tensor:
        """One-hot (T, C + 1) float32, background last: the event's category for `start <= t < end`."""
        label = torch.zeros(segments, num_classes + 1)
        inside = torch.zeros(segments, dtype=torch.bool)
        inside[self.start:self.end] = True
        label[inside, self.category], label[~inside, num_classes] = 1.0, 1.0
        return label


def read_rows(path: Path, categories: tuple[str, ...], segments: int = 10) -> list[Event]:
    """Rows of Annotations.txt or of a split file (which has no header).

    Raises:
        DatasetError: no such file.
        AnnotationError: a row with other than five fields, an unknown category, or impossible times; names the line.
    """
    if not path.is_file():
        raise DatasetError(path, "no such file", "an annotation file of AVE", "Download AVE's annotations, or fix root.")
    index, events = {name: i for i, name in enumerate(categories)}, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line or (number == 1 and line == HEADER):
            continue
        fields = line.split("&")
        where = f"{path}, line {number}"
        if len(fields) != 5:
            raise AnnotationError(where, line, f"five fields, {HEADER}", "Correct the line.")
        name, clip_id, _, start, end = fields
        if name not in index:
            raise AnnotationError(where, f"category {name!r}", f"one of {len(categories)} categories",
                                  "Give the dataset's own names to `categories`.")
        if not (start.isdigit() and end.isdigit() and int(start) <= int(end) <= segments):
            raise AnnotationError(where, f"{start} to {end}", f"whole seconds, start <= end <= {segments}",
                                  "Correct the line.")
        events.append(Event(clip_id, index[name], int(start), int(end)))
    return events


def read_splits(root: Path, categories: tuple[str, ...] = CATEGORIES, segments: int = 10) -> dict[str, list[Event]]:
    """Events of the three splits, each found in Annotations.txt by clip and category, never by position.

    Raises:
        DatasetError: a file is missing.
        AnnotationError: a file breaks its format, or a split names an event that Annotations.txt does not have.
    """
    root = Path(root)
    known = {(event.id, event.category): event for event in read_rows(root / "Annotations.txt", categories, segments)}
    splits = {}
    for split, name in SPLITS.items():
        splits[split] = read_rows(root / name, categories, segments)
        for event in splits[split]:
            if known.get((event.id, event.category)) != event:
                raise AnnotationError(root / name, f"{event.id} {categories[event.category]} {event.start}-{event.end}",
                                      f"the row of Annotations.txt, {known.get((event.id, event.category))}",
                                      "Use split files and annotations of the same release.")
    return splits


def leaked(splits: dict[str, list[Event]]) -> dict[str, list[str]]:
    """Clip ids of the training split that are also evaluated on: split -> sorted ids."""
    train = {event.id for event in splits["train"]}
    return {split: sorted(train & {event.id for event in splits[split]}) for split in ("val", "test")}
