"""LLP's annotations (Tian et al., ECCV 2020): what is heard and what is seen in each second of ten-second videos.

AVVP_train.csv, AVVP_val_pd.csv and AVVP_test_pd.csv list the videos (`<id>_<start>_<end>`, where the id has 11
characters) and the categories that occur in each. For validation and test videos, AVVP_eval_audio.csv and
AVVP_eval_visual.csv give the seconds in which each category is heard and seen.

The published files have these peculiarities. Targets follow the published evaluation, and `remarks` lists every case.

- Evaluation rows are joined to videos by the whole name. Rows with the name of no validation or test video are ignored:
  10 names among the audio rows and 7 among the visual rows, with missing or extra letters, such as a backtick after
  KvIjsmANkxI_10_20.
- Six audio events end where they start, or before (`9 0`). They are ignored.
- Eight audio rows occur twice. They count once.
- One test video lists its category twice. It counts once.
- 10 of the evaluated videos have no audio event that lasts, and 191 have no visual one. Nothing is heard or seen there.
- In 85 of the evaluated videos, the listed categories are not those of the events. Neither corrects the other.

The authors also published features, a file `<id>.npy` for each video: vggish (10, 128), res152 (80, 2048) of eight
frames a second, r2plus1d_18 (10, 512).

Your own dataset in LLP's format names its categories in `categories.txt` beside the csv files, one a line in the order
of their indices. Without that file the categories are LLP's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avprompt.datasets import ave
from avprompt.datasets.base import DatasetInfo, Sample, curves_of
from avprompt.errors import AnnotationError
from avprompt.media.feature_files import NpyFeatureFiles, NpyFolder
from avprompt.media.readers import FolderReader, Published
from avprompt.media.text import is_name, read_lines, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CATEGORIES = (
    "Speech",
    "Car",
    "Cheering",
    "Dog",
    "Cat",
    "Frying_(food)",
    "Basketball_bounce",
    "Fire_alarm",
    "Chainsaw",
    "Cello",
    "Banjo",
    "Singing",
    "Chicken_rooster",
    "Violin_fiddle",
    "Vacuum_cleaner",
    "Baby_laughter",
    "Accordion",
    "Lawn_mower",
    "Motorcycle",
    "Helicopter",
    "Acoustic_guitar",
    "Telephone_bell_ringing",
    "Baby_cry_infant_cry",
    "Blender",
    "Clapping",
)
SPLITS = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
EVENTS = {"audio": "AVVP_eval_audio.csv", "visual": "AVVP_eval_visual.csv"}
VIDEO_HEADER, EVENT_HEADER = ("filename", "event_labels"), ("filename", "onset", "offset", "event_labels")
NAME = re.compile(r"(.{11})_[0-9]+(\.[0-9]+)?_[0-9]+(\.[0-9]+)?")

Events = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Video:
    """One annotated video.

    Args:
        name: its `filename`.
        labels: categories that occur in it, in the order of its row.
        audio: (category, onset, offset) of every event that is heard, in whole seconds, the offset excluded; `None`
            where events are not annotated (in training).
        visual: the same for every event that is seen.

    Example:
        >>> video = Video("-0A9suni5YA_30_40", (4, 0))
        >>> video.id, video.weak_label(5).tolist()
        ('-0A9suni5YA', [1.0, 0.0, 0.0, 0.0, 1.0])
    """

    name: str
    labels: tuple[int, ...]
    audio: Events | None = None
    visual: Events | None = None

    @property
    def id(self) -> str:
        """The first 11 characters of the name; media files have this name."""
        return self.name[:11]

    def weak_label(self, num_classes: int) -> Tensor:
        """(C,) float32, 1 for each category that occurs."""
        label = torch.zeros(num_classes)
        label[list(self.labels)] = 1.0
        return label


def target(events: Events, segments: int, num_classes: int) -> Tensor:
    """(T, C) float32, 1 where `onset <= t < offset` for an event of the category; an empty event changes nothing."""
    label = torch.zeros(segments, num_classes)
    for category, onset, offset in events:
        label[onset:offset, category] = 1.0
    return label


class Splits(dict[str, list[Video]]):
    """Videos by split. `unmatched` holds names and events of evaluation rows that belong to no video."""

    def __init__(self) -> None:
        super().__init__()
        self.unmatched: dict[str, dict[str, Events]] = {}


def read_categories(root: Path, given: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the categories: `root`/categories.txt where it exists, else those given, else LLP's own 25.

    Raises:
        AnnotationError: the file is empty, names a category twice, or names others than those given.
    """
    path = Path(root) / "categories.txt"
    if not path.is_file():
        return tuple(given) if given else CATEGORIES
    names = ave.read_categories(root)
    if given and tuple(given) != names:
        raise AnnotationError(
            "categories",
            tuple(given),
            f"those of {path}, {names}",
            "Leave `categories` out, or give the same names in the same order.",
        )
    return names


def _rows(path: Path, header: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """File, line and fields of every row."""
    lines = read_lines(path, "an annotation file of LLP", "Download LLP's csv files, or fix root.")
    where, line = lines[0]
    if tuple(line.split("\t")) != header:
        raise AnnotationError(where, repr(line), f"the header, {header} with tabs between", "Correct the file.")
    if len(lines) == 1:
        raise AnnotationError(path, "a header and no row", "an annotation file of LLP", "Download it again.")
    for where, line in lines[1:]:
        fields = line.split("\t")
        if len(fields) != len(header):
            raise AnnotationError(
                where, repr(line), f"{len(header)} fields, {header} with tabs between", "Correct the line."
            )
        yield where, fields


def _category(where: str, name: str, index: dict[str, int]) -> int:
    if name not in index:
        raise AnnotationError(
            where,
            f"category {name!r}",
            f"one of {len(index)} categories",
            "Name the dataset's own in categories.txt beside the csv files.",
        )
    return index[name]


def _read_events(path: Path, index: dict[str, int], segments: int) -> dict[str, Events]:
    events: dict[str, list[tuple[int, int, int]]] = {}
    for where, (name, onset, offset, category) in _rows(path, EVENT_HEADER):
        first, last = whole(onset), whole(offset)
        if first is None or last is None or max(first, last) > segments:
            raise AnnotationError(
                where, f"{onset} to {offset}", f"whole seconds from 0 to {segments}", "Correct the line."
            )
        events.setdefault(name, []).append((_category(where, category, index), first, last))
    return {name: tuple(rows) for name, rows in events.items()}


def read_splits(root: Path, categories: Sequence[str] | None = None, segments: int = 10) -> Splits:
    """Videos of the three splits; those of `val` and `test` have events, joined by the whole name as published.

    Args:
        root: folder of the five csv files.
        categories: names in the order of their indices; `None` is `read_categories(root)`.
        segments: seconds a video.

    Raises:
        DatasetError: a file is missing.
        AnnotationError: a file breaks its format, or two rows name the same video; names the line.
    """
    root = Path(root)
    index = {name: i for i, name in enumerate(read_categories(root, categories))}
    events = {kind: _read_events(root / file, index, segments) for kind, file in EVENTS.items()}
    splits = Splits()
    places: dict[str, str] = {}
    for split, file in SPLITS.items():
        splits[split] = []
        for where, (name, labels) in _rows(root / file, VIDEO_HEADER):
            if not (match := NAME.fullmatch(name)) or not is_name(name):
                raise AnnotationError(
                    where, f"filename {name!r}", "<id of 11 characters>_<start>_<end>", "Correct the line."
                )
            if match[1] in places:
                raise AnnotationError(
                    where, f"{match[1]} again", f"one row a video; see {places[match[1]]}", "Remove one."
                )
            places[match[1]] = where
            found = {} if split == "train" else {kind: events[kind].pop(name, ()) for kind in EVENTS}
            splits[split].append(
                Video(name, tuple(_category(where, label, index) for label in labels.split(",")), **found)
            )
    splits.unmatched = events  # the rows that no video took
    return splits


def _listed(what: str, cases: list[str]) -> list[str]:
    more = f" and {len(cases) - 10} more" if len(cases) > 10 else ""
    return [f"{len(cases)} {what}: {', '.join(cases[:10])}{more}"] if cases else []


def ignored(splits: Splits) -> list[str]:
    """Annotations that do not change any label: a sentence for each kind, which names the cases."""
    lines = []
    for kind, file in EVENTS.items():
        events = {video.name: getattr(video, kind) or () for videos in splits.values() for video in videos}
        every = {**events, **splits.unmatched.get(kind, {})}
        unmatched = [f"{name} ({len(rows)})" for name, rows in splits.unmatched.get(kind, {}).items()]
        empty = [
            f"{name} {onset} to {offset}"
            for name, rows in every.items()
            for _, onset, offset in rows
            if onset >= offset
        ]
        twice = [
            f"{name} {onset} to {offset}"
            for name, rows in every.items()
            for (_, onset, offset), count in Counter(rows).items()
            for _ in range(count - 1)
        ]
        lines += [
            *_listed(f"names in {file} (rows) belong to no validation or test video", unmatched),
            *_listed(f"rows of {file} end no later than they begin", empty),
            *_listed(f"rows of {file} stand there before", twice),
        ]
    repeated = [
        video.name for videos in splits.values() for video in videos if len(set(video.labels)) < len(video.labels)
    ]
    return [*lines, *_listed("videos name a category more than once", repeated)]


def lasting(events: Events) -> set[int]:
    """Categories of the events that are not empty."""
    return {category for category, onset, offset in events if onset < offset}


def remarks(splits: Splits) -> list[str]:
    """Sentences that `avprompt data verify` prints about the annotations."""
    lines = ignored(splits)
    for split in ("val", "test"):
        videos = splits[split]
        for kind in EVENTS:
            silent = [video.name for video in videos if not lasting(getattr(video, kind))]
            lines += _listed(f"videos of split {split} without {kind} events", silent)
        differ = [video.name for video in videos if set(video.labels) != lasting((*video.audio, *video.visual))]
        lines += _listed(f"videos of split {split} whose categories are not those of their events", differ)
    return lines


def _weak_labels(clips: int, num_classes: int) -> Tensor:
    return torch.eye(num_classes)[torch.arange(clips) % num_classes]


def parsing_example(
    clips: int, segments: int, num_classes: int, video_dim: int = 0, taught: bool = False
) -> dict[str, Tensor]:
    """`labels` (clips, C) float32 and, where `video_dim` is not 0, `video_features` (clips, T, video_dim) float32; with
    `taught` also `taught_audio`, `taught_visual` (clips, T, C) float32."""
    features = {"video_features": torch.randn(clips, segments, video_dim)} if video_dim else {}
    labels = _weak_labels(clips, num_classes)
    taught_labels = {f"taught_{kind}": labels.unsqueeze(1).repeat(1, segments, 1) for kind in EVENTS if taught}
    return {**features, **taught_labels, "labels": labels}


def classification_example(
    clips: int, segments: int, num_classes: int, video_dim: int = 0, taught: bool = False
) -> dict[str, Tensor]:
    """`label` (clips,) int64 and `labels` (clips, C) float32."""
    return {"label": torch.arange(clips) % num_classes, "labels": _weak_labels(clips, num_classes)}


def _occurring(sample: Sample, class_names: Sequence[str]) -> list[str]:
    return [class_names[index] for index in sample["labels"].nonzero().flatten().tolist()]


def plot_parsing(sample: Sample, class_names: Sequence[str], spacing: float = 1.0) -> Figure:
    """Frames, waveform, and bars for what is heard and what is seen.

    Annotated are `audio_target` and `visual_target`, predicted `prediction_audio` and `prediction_visual`, (T, C) each,
    where the sample has them. Without targets the title lists its `labels`.
    """
    from avprompt.plots.parsing import parsing_figure

    truth, prediction = (
        tuple(sample[key].bool() for key in keys) if keys[0] in sample else None
        for keys in (("audio_target", "visual_target"), ("prediction_audio", "prediction_visual"))
    )
    title = sample["id"]
    if truth is None and "labels" in sample:
        title += ": " + ", ".join(_occurring(sample, class_names))
    return parsing_figure(
        sample["frames"],
        sample["audio"],
        class_names,
        truth,
        prediction,
        title,
        float(sample.get("start", 0.0)),
        sample.get("valid"),
        curves_of(sample),
    )


def plot_classification(sample: Sample, class_names: Sequence[str], spacing: float = 1.0) -> Figure:
    """Frames and waveform. The title lists what occurs, the answer where it is one of several categories, and, if
    present, the `prediction`, one for the whole clip."""
    from avprompt.plots.parsing import parsing_figure

    title = sample["id"]
    if "labels" in sample:
        occurring = _occurring(sample, class_names)
        title += ": " + ", ".join(occurring)
        if len(occurring) > 1 and "accepted" not in sample:  # else each of them is right
            title += f", answer {class_names[int(sample['label'])]}"
    if "prediction" in sample:
        title += f"; predicted {class_names[int(sample['prediction'].flatten()[0])]}"
    return parsing_figure(
        sample["frames"],
        sample["audio"],
        class_names,
        title=title,
        start=float(sample.get("start", 0.0)),
        valid=sample.get("valid"),
    )


def mean_of_seconds(values: np.ndarray) -> np.ndarray:
    """(8 T, C) of eight frames a second -> their means, (T, C) float32.

    Example:
        >>> mean_of_seconds(np.arange(16.0).reshape(16, 1)).flatten().tolist()
        [3.5, 11.5]
    """
    return values.reshape(-1, 8, values.shape[-1]).mean(1, dtype=np.float32)


def seconds_of_clap(values: np.ndarray) -> np.ndarray:
    """CLAP's tokens of a whole video, (64, C), 2 bands x 32 places of time -> ten seconds, (10, C) float32.

    VALOR++ averages the bands, and resizes the places bicubically to 1024, of which each second has a mean.

    Example:
        >>> seconds_of_clap(np.tile(np.arange(32.0), 2)[:, None]).flatten().astype(float).round(1)[[0, 5, 9]].tolist()
        [1.1, 17.1, 29.9]
    """
    places = torch.from_numpy(np.array(values, dtype=np.float64)).unflatten(0, (2, 32)).mean(0)  # (32, C)
    fine = F.interpolate(places.T[None, :, None], (1, 1024), mode="bicubic")[0, :, 0]
    return F.adaptive_avg_pool1d(fine[None], 10)[0].T.float().numpy()


class VALORFeatures(NpyFeatureFiles):
    """The features that VALOR's authors published, for VALOR++: CLIP's embedding of a frame a second, CLAP's tokens of
    the whole video, and R(2+1)D-18's features, which are HAN's.

    Args:
        folder: of the folders CLIP/features, CLAP/features and feats/r2plus1d_18.
        root: not needed, as the files have the ids of the videos.
        categories: likewise.

    Raises:
        DatasetError: one of the folders is missing.
    """

    visual, audio = "CLIP-L/14", "CLAP"
    shapes = {"visual_features": (10, 768), "audio_features": (10, 768), "video_features": (10, 512)}

    def __init__(self, folder: Path, root: Path, categories: Sequence[str]) -> None:
        super().__init__(
            {
                "visual_features": NpyFolder(Path(folder) / "CLIP" / "features", (10, 768)),
                "audio_features": NpyFolder(Path(folder) / "CLAP" / "features", (64, 768), reduce=seconds_of_clap),
                "video_features": NpyFolder(Path(folder) / "feats" / "r2plus1d_18", (10, 512)),
            }
        )


class LLPFeatures(NpyFeatureFiles):
    """The published features; those of ResNet-152 are averaged over each second.

    Args:
        folder: of the folders vggish, res152 and r2plus1d_18.
        root: not needed, as the files have the ids of the videos.
        categories: likewise.

    Raises:
        DatasetError: one of the folders is missing.
    """

    visual, audio = "ResNet-152", "VGGish"
    shapes = {"visual_features": (10, 2048), "audio_features": (10, 128), "video_features": (10, 512)}

    def __init__(self, folder: Path, root: Path, categories: Sequence[str]) -> None:
        super().__init__(
            {
                "visual_features": NpyFolder(Path(folder) / "res152", (80, 2048), 8, mean_of_seconds),
                "audio_features": NpyFolder(Path(folder) / "vggish", (10, 128)),
                "video_features": NpyFolder(Path(folder) / "r2plus1d_18", (10, 512)),
            }
        )


INFO = DatasetInfo(
    name="LLP",
    published=Published(
        (*SPLITS.values(), *EVENTS.values()),
        ("LLP_dataset/frame/<id>/%08d.jpg", "LLP_dataset/wave/<id>.npy"),
        partial(FolderReader, frames="LLP_dataset/frame", waves="LLP_dataset/wave"),
        read_splits,
        remarks,
    ),
    class_names=read_categories,
    example=parsing_example,
    plot=plot_parsing,
    features=LLPFeatures,
)
#: whose features `published_features` may hold -> their reader
PUBLISHERS = {"HAN": LLPFeatures, "VALOR": VALORFeatures}
#: the same files, with one category a video as the answer
CLASSIFICATION = replace(INFO, example=classification_example, plot=plot_classification, features=None)
