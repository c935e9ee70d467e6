"""Kinetics-Sounds: the clips of Kinetics-400 (Kay et al., 2017) whose action is heard as well as seen (Arandjelovic and
Zisserman, ICCV 2017). A clip has ten seconds and one label.

The annotations are Kinetics' own csv files, one for each split, with a header and the columns `label`, `youtube_id`,
`time_start`, `time_end` and `split` in any order; other columns are ignored. The validation file is `validate.csv`
(DeepMind) or `val.csv`. Rows of other classes are left out and counted. A clip's id is the name of its media file,
`<youtube_id>_<time_start>_<time_end>` with six digits for each time, as the common downloaders write it
(`-3B32lodo2M_000059_000069`).

Papers disagree about the classes. avprompt ships the 32 classes that benchmarks on Kinetics-400 use
(kinetics_sounds_32.txt). For 31 or 34 classes, write a text file with one name a line in the order of their indices:
`classes.txt` beside the csv files, or any file that the data module's `classes` names.

The published files have these peculiarities:

- ActivityNet's copy of `test.csv` has no labels, which is an error. The labelled file comes with copies of the media.
- No video is in two splits. In your own files, such videos are reported.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from avprompt.datasets.base import DatasetInfo, Sample
from avprompt.errors import AnnotationError, DatasetError
from avprompt.media.readers import FolderReader, Published
from avprompt.media.text import is_name, read_lines, read_table, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHIPPED = Path(__file__).with_name("kinetics_sounds_32.txt")
COLUMNS = ("label", "youtube_id", "time_start", "time_end")
SPLITS = {"train": ("train.csv",), "val": ("val.csv", "validate.csv"), "test": ("test.csv",)}


@dataclass(frozen=True)
class Action:
    """One annotated clip.

    Args:
        video: YouTube's id of the video that it was cut from.
        start: second of the video at which it begins.
        end: second at which it ends.
        label: index into the classes.
    """

    video: str
    start: int
    end: int
    label: int

    @property
    def id(self) -> str:
        """Name of its media file, without ending."""
        return f"{self.video}_{self.start:06d}_{self.end:06d}"


class Splits(dict[str, list[Action]]):
    """Clips by split; `others` counts rows of other classes, `strays` clips whose `split` column says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.others: dict[str, int] = {}
        self.strays: dict[str, int] = {}


def read_classes(root: Path, given: Path | Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the classes in the order of their indices.

    Args:
        root: the dataset's folder.
        given: a file with one name a line, or the names. `None` is `root`/classes.txt where it exists, else the
            shipped classes.

    Raises:
        DatasetError: there is no such file.
        AnnotationError: there are no names, or a name occurs twice.
    """
    where = _source(root, given)
    names = given if isinstance(given, Sequence) else []
    if isinstance(where, Path):
        lines = read_lines(where, "a text file of class names, one a line", "Correct `classes`.")
        names = [line.strip() for _, line in lines if line.strip()]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if not names or repeated:
        raise AnnotationError(
            where,
            f"{repeated} more than once" if repeated else "nothing",
            "names of classes, each once",
            "Correct the list.",
        )
    return tuple(names)


def _source(root: Path, given: Path | Sequence[str] | None) -> Path | str:
    """The source of the classes: a file, or the argument itself."""
    if given is None:
        own = Path(root) / "classes.txt"
        return own if own.is_file() else SHIPPED
    return Path(given) if isinstance(given, (str, Path)) else "classes"


def _find(root: Path, split: str) -> Path:
    found = [root / name for name in SPLITS[split] if (root / name).is_file()]
    if not found:
        raise DatasetError(
            root / SPLITS[split][0],
            "no such file",
            "a csv file of Kinetics' annotations",
            "Download Kinetics' annotations, or fix root. Where there are no labelled test clips, the "
            "validation file's rows may stand in test.csv too.",
        )
    if len(found) > 1:
        raise AnnotationError(root, f"{found[0].name} and {found[1].name}", "one file a split", "Remove one.")
    return found[0]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Place and fields of every row."""
    for where, row in read_table(path, "a csv file of Kinetics' annotations", "Correct root."):
        if absent := [column for column in COLUMNS if column not in row]:
            raise AnnotationError(
                path,
                f"columns {list(row)}",
                f"a header with {', '.join(COLUMNS)}",
                "Some copies of test.csv have no labels: take the one that comes with the videos."
                if absent == ["label"]
                else "Correct the first line.",
            )
        yield where, row


def _action(where: str, row: dict[str, str], label: int) -> Action:
    video, start, end = row["youtube_id"], row["time_start"], row["time_end"]
    if not is_name(video):
        raise AnnotationError(where, f"youtube_id {video!r}", "what a file can be named by", "Correct the line.")
    first, last = whole(start), whole(end)
    if first is None or last is None or first >= last:
        raise AnnotationError(where, f"{start} to {end}", "whole seconds, time_start < time_end", "Correct the line.")
    return Action(video, first, last, label)


def read_splits(root: Path, classes: Path | Sequence[str] | None = None) -> Splits:
    """Clips of the given classes in the three splits, in the files' order.

    Args:
        root: folder of the csv files.
        classes: see `read_classes`.

    Raises:
        DatasetError: a file is missing.
        AnnotationError: a file breaks its format, a split names a clip twice (the line is named), or a class is in none
            of the files.
    """
    root = Path(root)
    names = read_classes(root, classes)
    index, splits, labels = {name: i for i, name in enumerate(names)}, Splits(), set()
    for split in SPLITS:
        kept: dict[str, tuple[str, Action]] = {}
        splits.others[split] = splits.strays[split] = 0
        for where, row in _rows(_find(root, split)):
            labels.add(row["label"])
            if row["label"] not in index:
                splits.others[split] += 1
                continue
            action = _action(where, row, index[row["label"]])
            if action.id in kept:
                raise AnnotationError(
                    where, f"{action.id} again", f"one row a clip; see {kept[action.id][0]}", "Remove one."
                )
            kept[action.id] = where, action
            splits.strays[split] += not row.get("split", split).startswith(split)  # `validate` is `val`
        splits[split] = [action for _, action in kept.values()]
    if unknown := [name for name in names if name not in labels]:
        close = {name: difflib.get_close_matches(name, labels, 1) for name in unknown}
        raise AnnotationError(
            _source(root, classes),
            f"{unknown}, in none of the csv files",
            f"names among their {len(labels)} labels",
            f"Did you mean {', '.join(repr(match) for (match,) in filter(None, close.values()))}?"
            if any(close.values())
            else "Correct the list of classes.",
        )
    return splits


def shared_videos(splits: Splits) -> dict[str, list[str]]:
    """YouTube ids of training clips that are also evaluated on: split -> sorted ids."""
    train = {action.video for action in splits["train"]}
    return {split: sorted(train & {action.video for action in splits[split]}) for split in ("val", "test")}


def remarks(splits: Splits) -> list[str]:
    """Sentences that `avprompt data verify` prints about the annotations."""
    lines = [
        f"{count} rows of split {split} are of other classes and left out"
        for split, count in splits.others.items()
        if count
    ]
    lines += [
        f"{count} clips of split {split} say another split in their own column"
        for split, count in splits.strays.items()
        if count
    ]
    lines += [
        f"{len(ids)} videos of training clips are also in split {split}: {', '.join(ids[:10])}"
        + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
        for split, ids in shared_videos(splits).items()
        if ids
    ]
    return lines


def example(clips: int, segments: int, num_classes: int) -> dict[str, Tensor]:
    """`label` (clips,) int64."""
    return {"label": torch.arange(clips) % num_classes}


def plot(sample: Sample, class_names: Sequence[str], spacing: float = 1.0) -> Figure:
    """Frames, waveform, the annotated action `label` () and, if present, the `prediction` ()."""
    from avprompt.plots.cards import question_figure

    actions = {
        name: class_names[int(sample[key])]
        for name, key in (("answer", "label"), ("prediction", "prediction"))
        if key in sample
    }
    return question_figure(
        sample["frames"],
        sample["audio"],
        sample["id"],
        **actions,
        start=float(sample.get("start", 0.0)),
        valid=sample.get("valid"),
        stride=spacing,
    )


INFO = DatasetInfo(
    name="Kinetics-Sounds",
    published=Published(
        ("train.csv", "val.csv (or validate.csv)", "test.csv", "classes.txt (32 classes without it)"),
        ("frames/<youtube_id>_<start>_<end>/%08d.jpg", "wave/<youtube_id>_<start>_<end>.npy"),
        FolderReader,
        read_splits,
        remarks,
    ),
    class_names=read_classes,
    example=example,
    plot=plot,
)
