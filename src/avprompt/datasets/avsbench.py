"""AVSBench's annotations and media (Zhou et al., ECCV 2022): the pixels that sound, in five frames a video.

There are two settings, each with a table of its videos and a folder of extracted frames, masks and audio:

- S4, `Single-source/`: 4932 videos (3452, 740, 740) in 23 categories. One object sounds. In a training video only the
  first frame has a mask.
- MS3, `Multi-sources/`: 424 videos (296, 64, 64). Several objects sound in turn. Every frame has a mask.

The tables are read by the names of their columns: `split`, `name` (without such a column, the first one) and, for S4,
`category` (without such a column, the third one). An S4 video is identified by category and name, because names are
unique only within the folder of their category.

Audio is read from a video's wav file. The published loaders read `wave/<split>/.../AVS.npy` instead, which is a pickled
dictionary. Unpickling runs any code that a file contains, so avprompt never reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avprompt.datasets.base import DatasetInfo, Sample
from avprompt.errors import AnnotationError, ArgumentError, AVPromptError, ClipDecodeError, DatasetError
from avprompt.media.decode import Sampling, decode_audio
from avprompt.media.files import signature
from avprompt.media.readers import ClipReader, Published, Segments, as_frame
from avprompt.media.text import is_name, read_table
from avprompt.media.untrusted import open_picture, read_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Setting = Literal["s4", "ms3"]
SPLITS = ("train", "val", "test")
SECONDS = 5


@dataclass(frozen=True)
class Layout:
    """The places of a setting's files in the dataset's folder.

    Args:
        table: CSV file of its videos.
        folder: folder of all other files.
        frames: pattern of the name of a frame's file.
        masks: pattern of the name of a mask's file.
        audio: pattern of the name of a video's wav file.
        training_masks: number of frames of a training video that have a mask; in other videos every frame has one.
        category: index of the category column in a table that does not name it; `None` where a setting has no
            categories.
    """

    table: str
    folder: str
    frames: str
    masks: str
    audio: str
    training_masks: int = SECONDS
    category: int | None = None


LAYOUTS: dict[str, Layout] = {
    "s4": Layout(
        "Single-source/s4_meta_data.csv",
        "Single-source/s4_data",
        "visual_frames/{split}/{category}/{name}/{name}_{second}.png",
        "gt_masks/{split}/{category}/{name}/{name}_{second}.png",
        "audio_wav/{split}/{category}/{name}.wav",
        training_masks=1,
        category=2,
    ),
    "ms3": Layout(
        "Multi-sources/ms3_meta_data.csv",
        "Multi-sources/ms3_data",
        "visual_frames/{name}/{name}.mp4_{second}.png",
        "gt_masks/{split}/{name}/{name}_{second}.png",
        "audio_wav/{split}/{name}.wav",
    ),
}


@dataclass(frozen=True)
class Video:
    """One video.

    Args:
        name: of its files.
        split: `train`, `val` or `test`.
        category: category of what sounds in it; empty for MS3.

    Example:
        >>> Video("abc", "train", "dog").id, Video("abc", "train").id
        ('dog_abc', 'abc')
    """

    name: str
    split: str
    category: str = ""

    @property
    def id(self) -> str:
        """Its id for the reader: `<category>_<name>`, for MS3 `<name>`."""
        return f"{self.category}_{self.name}" if self.category else self.name


@dataclass(frozen=True)
class Files:
    """The files of one video.

    Args:
        frames: five pictures, in order.
        masks: masks of the first frames, one or five.
        audio: wav file.
    """

    frames: tuple[Path, ...]
    masks: tuple[Path, ...]
    audio: Path


def files(root: Path, setting: Setting, video: Video) -> Files:
    """The paths of a video's files, whether or not they exist."""
    layout = LAYOUTS[setting]
    folder, names = Path(root) / layout.folder, {"split": video.split, "category": video.category, "name": video.name}
    frames, masks = (
        tuple(folder / pattern.format(**names, second=second) for second in range(1, SECONDS + 1))
        for pattern in (layout.frames, layout.masks)
    )
    annotated = layout.training_masks if video.split == "train" else SECONDS
    return Files(frames, masks[:annotated], folder / layout.audio.format(**names))


def read_splits(root: Path, setting: Setting) -> dict[str, list[Video]]:
    """Videos of the three splits, in the table's order.

    Args:
        root: folder that holds `Single-source` and `Multi-sources`.
        setting: `s4` or `ms3`.

    Raises:
        DatasetError: no such table.
        AnnotationError: the table has no column `split`, or a row other than the header's number of fields, an unknown
            split, a name that is none of a file, or the same video as another row; names the line.
    """
    layout = LAYOUTS[setting]
    path = Path(root) / layout.table
    splits: dict[str, list[Video]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for where, row in read_table(path, "AVSBench's table of videos", "Download AVSBench, or fix root.", ("split",)):
        header = list(row)
        columns = {"name": "name" if "name" in row else header[0], "split": "split"}
        if layout.category is not None:
            if "category" not in row and len(header) <= layout.category:
                raise AnnotationError(
                    path, f"columns {header}", "columns name, split and for S4 category", "Correct the first line."
                )
            columns["category"] = "category" if "category" in row else header[layout.category]
        fields = {key: row[column] for key, column in columns.items()}
        if fields["split"] not in splits:
            raise AnnotationError(where, f"split {fields['split']!r}", "train, val or test", "Correct the line.")
        for key in fields.keys() - {"split"}:
            if not is_name(fields[key]):
                raise AnnotationError(where, f"{key} {fields[key]!r}", "the name of a file", "Correct the line.")
        video = Video(**fields)
        if video.id in seen:
            raise AnnotationError(where, f"{video.id} again", "one row a video", "Remove one.")
        seen.add(video.id)
        splits[video.split].append(video)
    return splits


def _pixels(path: Path, error: type[AVPromptError], *modes: str) -> np.ndarray:
    """A picture in its own mode where that is one of `modes`, else in RGB; `error` if it does not decode."""
    try:
        return read_picture(path, *modes)
    except (OSError, ValueError) as problem:
        raise error(path, problem, "a png picture", "Extract the archive again.") from problem


def read_mask(path: Path) -> np.ndarray:
    """Read a mask from a picture of any kind; S4's masks are bilevel, MS3's have a palette.

    Args:
        path: a picture. In modes 1, L and P, every value other than 0 sounds (in a palette, the index, as published).
            In other modes, every pixel that is not black sounds.

    Returns:
        bool (H, W).

    Raises:
        AnnotationError: the file does not decode.
    """
    pixels = _pixels(path, AnnotationError, "1", "L", "P")
    return pixels != 0 if pixels.ndim == 2 else pixels.any(-1)


def read_masks(paths: tuple[Path, ...], size: int) -> tuple[Tensor, Tensor]:
    """Read the masks of a video's first frames.

    Args:
        paths: at most five files.
        size: height and width of the result; masks of another size are resized by nearest neighbour.

    Returns:
        float32 (5, size, size) in {0, 1}, zeros where there is no mask, and bool (5,), True where there is one.

    Raises:
        AnnotationError: a file does not decode.
    """
    masks = torch.zeros(SECONDS, size, size)
    for second, path in enumerate(paths):
        mask = torch.from_numpy(read_mask(path)).float()
        masks[second] = F.interpolate(mask[None, None], (size, size), mode="nearest-exact")[0, 0]
    return masks, torch.arange(SECONDS) < len(paths)


class AVSBenchReader(ClipReader):
    """AVSBench's folders: five png frames and a wav file a video.

    Frames of another size are resized (bicubic) and rounded to whole grey levels; the published code keeps fractions.
    Where a wav file ends early, the sound is zero, and a second of which it covers less than half is marked in `valid`.
    The published `AVS.npy` is a pickle and never read.

    Args:
        root: folder that holds `Single-source` and `Multi-sources`.
        sampling: sizes and rates; five segments of one second, one after the other. `None` is the published one.
        setting: `s4` or `ms3`.

    Raises:
        ArgumentError: other segments.
        DatasetError: the table or one of the folders is not there.
        AnnotationError: the table breaks its format.
    """

    def __init__(self, root: Path, sampling: Sampling | None, setting: Setting) -> None:
        self.root, self.setting = Path(root), setting
        self.sampling = sampling or Sampling(segments=SECONDS, size=224)
        if (self.sampling.segments, self.sampling.seconds, self.sampling.spacing) != (SECONDS, 1, 1):
            raise ArgumentError(
                "segments, stride",
                f"{self.sampling.segments}, {self.sampling.spacing:g}",
                f"{SECONDS}, 1: AVSBench has a frame a second of five",
                "Leave both out.",
            )
        self.videos = {video.id: video for split in read_splits(root, setting).values() for video in split}
        layout = LAYOUTS[setting]
        folder = self.root / layout.folder
        for pattern in (layout.frames, layout.masks, layout.audio):
            if not (needed := folder / pattern.split("/")[0]).is_dir():
                pickles = sorted(folder.glob("wave/**/AVS.npy")) if pattern == layout.audio else []
                raise DatasetError(
                    needed,
                    f"no such folder{f', but {pickles[0]}' if pickles else ''}",
                    f"{layout.folder}/{pattern}",
                    "A pickle may run code and is never read: extract AVSBench's wav files."
                    if pickles
                    else "Extract AVSBench's archive there.",
                )

    def problem(self, clip_id: str) -> str | None:
        if clip_id not in self.videos:
            return f"missing: not in {LAYOUTS[self.setting].table}"
        needed = files(self.root, self.setting, self.videos[clip_id])
        absent = [
            str(path.relative_to(self.root))
            for path in (*needed.frames, *needed.masks, needed.audio)
            if not path.is_file()
        ]
        more = f" and {len(absent) - 2} more" if len(absent) > 2 else ""
        return f"missing: {', '.join(absent[:2])}{more}" if absent else None

    def inspect(self, clip_id: str) -> str | None:
        problem = self.problem(clip_id)
        if problem is None:
            needed = files(self.root, self.setting, self.videos[clip_id])
            try:
                for path in (*needed.frames, *needed.masks):
                    open_picture(path).close()
                self._sound(needed.audio)
            except (ClipDecodeError, OSError, ValueError) as error:
                return f"broken: {error}"
        return problem

    def identity(self, clip_id: str) -> str:
        needed = files(self.root, self.setting, self.videos[clip_id])
        return signature((*needed.frames, needed.audio))

    def read(self, clip_id: str) -> Segments:
        needed = files(self.root, self.setting, self.videos[clip_id])
        return torch.stack([self._picture(path) for path in needed.frames]), *self._sound(needed.audio)

    def _sound(self, path: Path) -> tuple[Tensor, Tensor]:
        try:
            wave, known = decode_audio(path, self.sampling.sample_rate, 0.0, SECONDS * self.sampling.samples)
        except (av.FFmpegError, ValueError, ArithmeticError) as error:
            raise ClipDecodeError(path, error, "sound that decodes", "Extract the archive again.") from error
        valid = torch.from_numpy(known).view(SECONDS, -1).float().mean(1) >= 0.5
        if not valid.any():
            raise ClipDecodeError(path, f"{int(known.sum())} samples", "at least half a second", "Leave the clip out.")
        return torch.from_numpy(wave).view(SECONDS, -1), valid

    def _picture(self, path: Path) -> Tensor:
        return as_frame(_pixels(path, ClipDecodeError), self.sampling)


def example(clips: int, segments: int, num_classes: int, mask_size: int) -> dict[str, Tensor]:
    """`masks` (clips, T, mask_size, mask_size) float32 in {0, 1} and `annotated` (clips, T) bool."""
    masks = (torch.rand(clips, segments, mask_size, mask_size) > 0.5).float()
    return {"masks": masks, "annotated": torch.ones(clips, segments, dtype=torch.bool)}


def plot(sample: Sample, class_names: Sequence[str], spacing: float = 1.0) -> Figure:
    """Frames, what sounds in them (`masks`), and if present `prediction` (T, M, M) bool, with the waveform."""
    from avprompt.plots.overlays import overlay_figure

    return overlay_figure(
        sample["frames"],
        sample["audio"],
        sample.get("masks"),
        sample.get("prediction"),
        sample.get("annotated"),
        sample["id"],
        float(sample.get("start", 0.0)),
        sample.get("valid"),
    )


def class_names(root: Path) -> tuple[str, ...]:
    """A pixel sounds or does not."""
    return ("sounding",)


def _info(setting: Setting) -> DatasetInfo:
    layout = LAYOUTS[setting]
    shown = {"split": "<split>", "category": "<category>", "name": "<name>", "second": "{1..5}"}
    tree = (f"{layout.folder}/{pattern.format(**shown)}" for pattern in (layout.frames, layout.masks, layout.audio))
    return DatasetInfo(
        name=f"AVSBench {setting.upper()}",
        published=Published(
            (layout.table,),
            tuple(tree),
            partial(AVSBenchReader, setting=setting),
            partial(read_splits, setting=setting),
            stored=False,
        ),
        class_names=class_names,
        example=example,
        plot=plot,
    )


INFO: dict[str, DatasetInfo] = {setting: _info(setting) for setting in get_args(Setting)}
