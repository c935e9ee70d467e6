"""MUSIC-AVQA's questions (Li et al., CVPR 2022): filled-in templates about videos of musicians.

A split is a JSON list of questions; many questions share a video. The published files have these peculiarities:

- There are two releases. Published results, including DG-SCT's, are computed on `json`. `json_update` is the authors'
  later correction.
- In `json` some questions occur twice with two different answers (55 ids in test, 27 in val; none in `json_update`).
  Both are kept, as in every published result: one of the two always counts as wrong.
- The splits divide the questions, not the videos: 2296 videos of val are also in test.
- `question_deleted` is 0 in every published question, and the released code does not read it. The data module leaves
  questions with 1 out, with a warning, because their authors withdrew them.
- Questions end in `?`, in a full-width `？`, or in `?` and a blank.
- A video id of digits is a recording. An id that starts with letters (`va`, `sa`, `vv`, ...) is a video that the
  authors composed from the picture and the audio of others.
- `anser` is the files' own spelling. Some releases lack avqa-train.json; see `Vocabulary`.
- MUSIC-AVQA v2.0 (Liu et al., WACV 2024) adds questions without `question_id` or `question_deleted`, and questions
  whose `templ_values` is a list instead of a string that holds one. Its files are read from `json/avqa-<split>.json`. A
  question without an id is called `record N` by its position.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from avprompt.datasets.base import DatasetInfo, Sample
from avprompt.errors import AnnotationError, ArgumentError, AVPromptError, DatasetError
from avprompt.media.feature_files import NpyFeatureFiles, NpyFolder
from avprompt.media.readers import FolderReader, Published
from avprompt.media.text import is_name, read_lines, read_text
from avprompt.metrics.avqa import TYPES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Release = Literal["json", "json_update"]
SPLITS = ("train", "val", "test")
PAD = "<pad>"
#: words of the longest published question, to which all are padded
LENGTH = 14
#: words, padding included, and answers of the published vocabularies
WORDS, ANSWERS = 93, 42
FIELDS = ("video_id", "type", "question_content", "anser")
_GENERATED = re.compile(r"(va|sa|vv|eva|esa|evv)\d+")


@dataclass(frozen=True)
class Question:
    """One question and its answer.

    Args:
        id: of the video.
        question_id: as in the file, `record N` where the file has none; not unique, see the module's docstring.
        words: of the filled-in question, without its question mark.
        text: the filled-in question.
        group: modality of the question, `Audio`, `Visual` or `Audio-Visual`.
        kind: `Counting`, `Comparative`, `Location`, `Existential` or `Temporal`.
        answer: one word, or `more than ten`.
        deleted: whether the authors withdrew it.

    Example:
        >>> Question("1", "7", ("Is", "it", "loud"), "Is it loud?", "Audio", "Existential", "yes").type
        '["Audio", "Existential"]'
    """

    id: str
    question_id: str
    words: tuple[str, ...]
    text: str
    group: str
    kind: str
    answer: str
    deleted: bool = False

    @property
    def type(self) -> str:
        """Group and kind as the files write them, for instance `["Audio", "Counting"]`."""
        return json.dumps([self.group, self.kind])


def is_generated(video_id: str) -> bool:
    """Whether the authors composed the video from the picture and the audio of other videos."""
    return _GENERATED.fullmatch(video_id) is not None


def tokenise(content: str, values: Sequence[str] = ()) -> tuple[str, ...]:
    """Words of a question, split as in the released code.

    Args:
        content: the question, with a word `<...>` in the place of each value.
        values: the values, in order.

    Raises:
        ArgumentError: there are no words, or the number of values is not the number of places.

    Example:
        >>> tokenise("How many <Object> are there?", ["violins"])
        ('How', 'many', 'violins', 'are', 'there')
    """
    words = content.strip().split(" ")
    words[-1] = words[-1].removesuffix("?").removesuffix("？")
    places = [place for place, word in enumerate(words) if "<" in word]
    if not all(words) or len(places) != len(values):
        raise ArgumentError(
            "question",
            f"{content!r} with values {list(values)}",
            "words with single blanks between them, and a value for every <...>",
            "Correct it.",
        )
    for place, value in zip(places, values):
        words[place] = value
    return tuple(words)


def _strings(where: str, name: str, given: Any) -> list[str]:
    """A list of strings, or the JSON text of one; nothing is an empty one."""
    try:
        values = json.loads(given) if isinstance(given, str) and given else given or []
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise AnnotationError(
            where,
            f"{name} {str(given)[:80]!r}",
            "a JSON list of strings, or one written as a string",
            "Correct the record.",
        )
    return values


def _question(path: Path, number: int, record: Any) -> Question:
    where = f"{path}, record {number}"
    if not isinstance(record, dict):
        raise AnnotationError(where, repr(record)[:80], f"an object with {', '.join(FIELDS)}", "Correct the record.")
    question_id, deleted = record.get("question_id"), record.get("question_deleted")
    where = f"{where}, question_id {question_id}"
    if wrong := {
        name: record.get(name)
        for name in ("video_id", "question_content", "anser")
        if not isinstance(record.get(name), str)
    }:
        raise AnnotationError(where, str(wrong)[:200], f"strings {', '.join(FIELDS)}", "Correct the record.")
    if not (question_id is None or type(question_id) in (int, str)) or deleted not in (None, 0, 1):
        raise AnnotationError(
            where,
            f"question_deleted {str(deleted)[:80]}",
            "a question_id that is a number or a string, and question_deleted 0 or 1, or neither",
            "Correct the record.",
        )
    video, answer = record["video_id"], record["anser"]
    if not is_name(video):
        raise AnnotationError(where, f"video_id {video!r}", "the name of a file", "Correct the record.")
    if not answer:
        raise AnnotationError(where, "an empty anser", "an answer", "Correct the record.")
    kind = tuple(_strings(where, "type", record.get("type")))
    if kind not in TYPES:
        raise AnnotationError(
            where,
            f"type {str(record.get('type'))[:80]}",
            f"one of {[list(pair) for pair in TYPES]}",
            "Correct the record.",
        )
    try:
        words = tokenise(record["question_content"], _strings(where, "templ_values", record.get("templ_values")))
        "".join((answer, *words, str(question_id))).encode()
    except ArgumentError as error:
        raise AnnotationError(where, error.got, error.expected, "Correct the record.") from error
    except UnicodeEncodeError as error:
        raise AnnotationError(where, error, "characters", "Correct the record: it holds half of one.") from error
    return Question(
        video,
        f"record {number}" if question_id is None else str(question_id),
        words,
        " ".join(words) + "?",
        *kind,
        answer,
        bool(deleted),
    )


def questions_path(root: Path, release: Release, split: str) -> Path:
    """The file of a split's questions."""
    return Path(root) / release / f"avqa-{split}.json"


def read_questions(path: Path) -> list[Question]:
    """Questions of one file, in its order.

    Raises:
        DatasetError: no such file.
        AnnotationError: not a JSON list, an empty one, or a record breaks the format; names file, record and
            question_id.
    """
    text = read_text(path, "a JSON list of questions", "Download MUSIC-AVQA's annotations, or fix root and release.")
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(path, error, "a JSON list of questions", "Download it again.") from error
    if not isinstance(records, list) or not records:
        raise AnnotationError(
            path,
            "an empty list" if records == [] else type(records).__name__,
            "a JSON list of questions",
            "Download it again.",
        )
    return [_question(path, number, record) for number, record in enumerate(records, 1)]


def read_splits(root: Path, release: Release = "json") -> dict[str, list[Question]]:
    """Questions of the three splits, including deleted ones.

    Not every copy of the dataset has avqa-train.json. Without it, training has no questions, with a warning; evaluation
    works.

    Args:
        root: folder of the releases' folders.
        release: `json` as published, or `json_update`.

    Raises:
        DatasetError: avqa-val.json or avqa-test.json is missing.
        AnnotationError: a file breaks its format.
    """
    paths = {split: questions_path(root, release, split) for split in SPLITS}
    if not paths["train"].is_file():
        warnings.warn(f"{paths['train']} is missing: no questions to train on", stacklevel=2)
        return {"train": [], **{split: read_questions(paths[split]) for split in ("val", "test")}}
    return {split: read_questions(path) for split, path in paths.items()}


@dataclass(frozen=True)
class Vocabulary:
    """Words of questions and possible answers, in the order of their indices.

    The released code numbers both by first appearance in avqa-train.json. ques_vocab.txt and ans_vocab.txt are assumed
    to have the same order, for copies of the dataset without that file.

    Args:
        words: words of questions, `<pad>` first.
        answers: the classes of the answer classifier.

    Example:
        >>> vocabulary = Vocabulary(("<pad>", "Is", "it", "loud"), ("yes", "no"))
        >>> vocabulary.encode(("Is", "it", "loud"), length=5).tolist()
        [1, 2, 3, 0, 0]
    """

    words: tuple[str, ...]
    answers: tuple[str, ...]

    @cached_property
    def word_index(self) -> dict[str, int]:
        """Word -> index."""
        return {word: index for index, word in enumerate(self.words)}

    @cached_property
    def answer_index(self) -> dict[str, int]:
        """Answer -> index."""
        return {answer: index for index, answer in enumerate(self.answers)}

    def encode(
        self,
        words: Sequence[str],
        length: int = LENGTH,
        subject: str = "question",
        error: type[AVPromptError] = ArgumentError,
    ) -> Tensor:
        """Indices of a question's words, int64 (length,), padded with 0.

        Args:
            words: words of the question.
            length: number of words after padding.
            subject: where the question comes from, for messages.
            error: type of the error that is raised.

        Raises:
            AVPromptError: of type `error`: an unknown word, or more than `length` words.
        """
        unknown = [word for word in words if word not in self.word_index or word == PAD]
        if unknown:
            raise error(
                subject,
                f"unknown words {unknown} in {' '.join(words)!r}",
                f"words of the vocabulary ({len(self.words)}, such as {', '.join(self.words[1:8])})",
                "A model knows the words that it was trained on: use others, or another vocabulary.",
            )
        if len(words) > length:
            raise error(
                subject,
                f"{len(words)} words: {' '.join(words)!r}",
                f"at most question_length {length}",
                "Shorten the question or raise question_length.",
            )
        indices = [self.word_index[word] for word in words]
        return torch.tensor(indices + [0] * (length - len(words)))

    def encode_answer(self, answer: str, subject: str) -> Tensor:
        """Index of an answer, int64 ().

        Raises:
            AnnotationError: the answer is unknown.
        """
        if answer not in self.answer_index:
            raise AnnotationError(
                subject,
                f"unknown answer {answer!r}",
                f"one of {len(self.answers)} answers",
                "Use annotations and vocabulary of the same release.",
            )
        return torch.tensor(self.answer_index[answer])

    @classmethod
    def of(cls, questions: Iterable[Question]) -> Vocabulary:
        """Number words and answers by their first appearance, as the released code does."""
        words: dict[str, None] = {PAD: None}
        answers: dict[str, None] = {}
        for question in questions:
            words.update(dict.fromkeys(question.words))
            answers[question.answer] = None
        return cls(tuple(words), tuple(answers))


def _listed(path: Path) -> tuple[str, ...]:
    lines = [line for _, line in read_lines(path, "one word a line", "Download it, or use `vocabulary: train`.")]
    half = len(lines) // 2
    # the published ques_vocab.txt is its own list twice
    unique = lines[:half] if lines[:half] == lines[half:] else lines
    if len(set(unique)) < len(unique):
        raise AnnotationError(
            path,
            f"{len(lines)} lines, {len(set(lines))} different",
            "each word once (or the whole list twice, as published)",
            "Correct the file.",
        )
    return tuple(unique)


def read_vocabulary(root: Path, release: Release = "json", source: Literal["train", "files"] = "train") -> Vocabulary:
    """The vocabulary, from the training questions or from ques_vocab.txt and ans_vocab.txt in `root`.

    Raises:
        DatasetError: a file is missing.
        AnnotationError: a file breaks its format.
    """
    if source == "train":
        path = questions_path(root, release, "train")
        if not path.is_file():
            raise DatasetError(
                path,
                "no such file",
                "the training questions, which number words and answers",
                "Download it, or set `vocabulary: files` to read ques_vocab.txt and ans_vocab.txt.",
            )
        return Vocabulary.of(read_questions(path))
    words = _listed(Path(root) / "ques_vocab.txt")
    if words[0] != PAD:
        raise AnnotationError(Path(root) / "ques_vocab.txt", f"{words[0]} first", PAD, "Correct the file.")
    return Vocabulary(words, _listed(Path(root) / "ans_vocab.txt"))


def remarks(splits: dict[str, list[Question]]) -> list[str]:
    """Sentences that `avprompt data verify` prints about the questions."""
    found = []
    for split, questions in splits.items():
        repeated = sum(count > 1 for count in Counter(question.question_id for question in questions).values())
        for count, what in (
            (repeated, "question_ids more than once, mostly with different answers: all kept"),
            (sum(question.deleted for question in questions), "questions marked as deleted: left out"),
            (
                sum(len(question.words) > LENGTH for question in questions),
                f"questions of more than {LENGTH} words: raise question_length",
            ),
            (
                sum(is_generated(question.id) for question in questions),
                "questions about videos that the authors put together from others",
            ),
        ):
            if count:
                found.append(f"split {split} has {count} {what}")
    videos = {split: {question.id for question in questions} for split, questions in splits.items()}
    found += [
        f"{len(shared)} videos of split {one} are also in split {two}"
        for one, two in (("train", "val"), ("train", "test"), ("val", "test"))
        if (shared := videos[one] & videos[two])
    ]
    return found


def example(
    clips: int, segments: int, num_classes: int, question_length: int = LENGTH, negative: tuple[int, ...] = ()
) -> dict[str, Tensor]:
    """`question` (clips, question_length) and `answer` (clips,), both int64, and where `negative`, the shape of a
    segment's frames, is given, `negative_frames` (clips, T, *negative) uint8."""
    shape = clips, segments, *negative
    negatives = {"negative_frames": torch.randint(256, shape, dtype=torch.uint8)} if negative else {}
    return {
        **negatives,
        "question": torch.ones(clips, question_length, dtype=torch.long),
        "answer": torch.zeros(clips, dtype=torch.long),
    }


def plot(sample: Sample, class_names: Sequence[str], spacing: float = 1.0) -> Figure:
    """The question's card: frames, waveform, the annotated `answer` () and, if present, `prediction` () and
    `map_grounding` (T, rows, columns)."""
    from avprompt.plots.cards import question_figure

    answers = {key: class_names[int(sample[key])] for key in ("answer", "prediction") if key in sample}
    return question_figure(
        sample["frames"],
        sample["audio"],
        sample["question_text"],
        **answers,
        grounding=sample.get("map_grounding"),
        title=sample["id"],
        start=float(sample.get("start", 0.0)),
        valid=sample.get("valid"),
        stride=spacing,
    )


def every_sixth(values: np.ndarray) -> np.ndarray:
    """One row a second of 60 s -> every sixth, as the authors' loader takes them.

    Example:
        >>> every_sixth(np.arange(60)).tolist()
        [0, 6, 12, 18, 24, 30, 36, 42, 48, 54]
    """
    return values[::6]


def every_sixth_grid(values: np.ndarray) -> np.ndarray:
    """(60, C, H, W), one map a second -> every sixth as positions, (10, H W, C)."""
    chosen = every_sixth(values)
    return np.moveaxis(chosen.reshape(len(chosen), chosen.shape[1], -1), 1, 2)


class MUSICAVQAFeatures(NpyFeatureFiles):
    """The features of the authors' network, which their scripts extract: every sixth second of 60.

    Args:
        folder: of the folders vggish, (60, 128) a video, and res18_14x14, (60, 512, 14, 14).
        root: not needed, as the files have the ids of the videos.
        answers: likewise.

    Raises:
        DatasetError: one of the folders is missing.
    """

    visual, audio = "ResNet-18", "VGGish"
    shapes = {"visual_features": (10, 196, 512), "audio_features": (10, 128)}

    def __init__(self, folder: Path, root: Path, answers: Sequence[str]) -> None:
        super().__init__(
            {
                "visual_features": NpyFolder(Path(folder) / "res18_14x14", (60, 512, 14, 14), 6, every_sixth_grid),
                "audio_features": NpyFolder(Path(folder) / "vggish", (60, 128), 6, every_sixth),
            }
        )


INFO = DatasetInfo(
    name="MUSIC-AVQA",
    published=Published(
        tuple(f"json/avqa-{split}.json" for split in SPLITS),
        ("frames/<video_id>/%08d.jpg", "audio_wave/<video_id>.npy"),
        partial(FolderReader, waves="audio_wave"),
        read_splits,
        remarks,
    ),
    class_names=lambda root: read_vocabulary(root).answers,
    example=example,
    plot=plot,
    unit="questions",
    features=MUSICAVQAFeatures,
)
