"""MUSIC-AVQA's questions (Li et al., CVPR 2022): templates about what is seen and heard in videos of musicians.

A split is a JSON list of questions; several are asked of the same video. What the published files hold besides, and
what happens to it here:

- There are two releases. `json` is what published results, DG-SCT's too, are counted on; `json_update` is the authors'
  later correction.
- In `json` some questions stand twice with two different answers (55 ids in test, 27 in val; none in `json_update`).
  Both are kept, as in every published count: one of the two is always counted wrong.
- The splits share videos: they divide the questions, not the videos (2296 videos of val are in test too).
- `question_deleted` is 0 on every published question and the released code does not look at it. A question with 1 was
  withdrawn by its authors: the data module leaves it out, with a warning.
- Questions end in `?`, in a full-width `？`, or in `?` and a blank.
- A video id of digits alone is a recording; one with letters before them (`va`, `sa`, `vv`, ...) was put together by
  the authors from the picture and the sound of others.
- `anser` is how the files spell it. Some releases lack avqa-train.json: see `Vocabulary`.
- MUSIC-AVQA v2.0 (Liu et al., WACV 2024) adds questions that have no `question_id` or `question_deleted`, or that
  write `templ_values` as a list instead of a string of one. Its files are read where they stand as
  `json/avqa-<split>.json`; a question without an id is called `record N` by its place.
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
from typing import Any, Literal

import torch
from torch import Tensor

from avprompt.errors import AnnotationError, ArgumentError, AVPromptError, DatasetError
from avprompt.media.readers import FolderReader, Published
from avprompt.media.text import is_name, read_lines, read_text
from avprompt.metrics.avqa import TYPES

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
        question_id: as in the file; not unique, see the module. `record N` where the file has none.
        words: of the filled-in question, without its question mark.
        text: the same for people.
        group: `Audio`, `Visual` or `Audio-Visual`, what the question is about.
        kind: `Counting`, `Comparative`, `Location`, `Existential` or `Temporal`.
        answer: one word, or `more than ten`.
        deleted: withdrawn by the authors.
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
    """Whether the authors put the video together from others, instead of finding it."""
    return _GENERATED.fullmatch(video_id) is not None


def tokenise(content: str, values: Sequence[str] = ()) -> tuple[str, ...]:
    """Words of a question as the released code makes them.

    Args:
        content: question, with `<...>` words where the values belong.
        values: of these, in order.

    Raises:
        ArgumentError: no words, or another number of values than of places for them.
    """
    words = content.strip().split(" ")
    words[-1] = words[-1].removesuffix("?").removesuffix("？")
    places = [place for place, word in enumerate(words) if "<" in word]
    if not all(words) or len(places) != len(values):
        raise ArgumentError("question", f"{content!r} with values {list(values)}",
                            "words with single blanks between them, and a value for every <...>", "Correct it.")
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
        raise AnnotationError(where, f"{name} {str(given)[:80]!r}", "a JSON list of strings, or one written as a string",
                              "Correct the record.")
    return values


def _question(path: Path, number: int, record: Any) -> Question:
    where = f"{path}, record {number}"
    if not isinstance(record, dict):
        raise AnnotationError(where, repr(record)[:80], f"an object with {', '.join(FIELDS)}", "Correct the record.")
    question_id, deleted = record.get("question_id"), record.get("question_deleted")
    where = f"{where}, question_id {question_id}"
    if wrong := {name: record.get(name) for name in ("video_id", "question_content", "anser") if not isinstance(record.get(name), str)}:
        raise AnnotationError(where, str(wrong)[:200], f"strings {', '.join(FIELDS)}", "Correct the record.")
    if not (question_id is None or type(question_id) in (int, str)) or deleted not in (None, 0, 1):
        raise AnnotationError(where, f"question_deleted {str(deleted)[:80]}", "a question_id that is a number or a "
                              "string, and question_deleted 0 or 1, or neither", "Correct the record.")
    video, answer = record["video_id"], record["anser"]
    if not is_name(video):
        raise AnnotationError(where, f"video_id {video!r}", "the name of a file", "Correct the record.")
    if not answer:
        raise AnnotationError(where, "an empty anser", "an answer", "Correct the record.")
    kind = tuple(_strings(where, "type", record.get("type")))
    if kind not in TYPES:
        raise AnnotationError(where, f"type {str(record.get('type'))[:80]}", f"one of {[list(pair) for pair in TYPES]}",
                              "Correct the record.")
    try:
        words = tokenise(record["question_content"], _strings(where, "templ_values", record.get("templ_values")))
        "".join((answer, *words, str(question_id))).encode()
    except ArgumentError as error:
        raise AnnotationError(where, error.got, error.expected, "Correct the record.") from error
    except UnicodeEncodeError as error:
        raise AnnotationError(where, error, "characters", "Correct the record: it holds half of one.") from error
    return Question(video, f"record {number}" if question_id is None else str(question_id), words,
                    " ".join(words) + "?", *kind, answer, bool(deleted))


def questions_path(root: Path, release: Release, split: str) -> Path:
    """Where a split's questions are."""
    return Path(root) / release / f"avqa-{split}.json"


def read_questions(path: Path) -> list[Question]:
    """Questions of one file, in its order.

    Raises:
        DatasetError: no such file.
        AnnotationError: not a JSON list, an empty one, or a record breaks the format; names file, record and
            question_id.
    """
    text = read_text(path, "a JSON list of questions",
                     "Download MUSIC-AVQA's annotations, or fix root and release.")
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(path, error, "a JSON list of questions", "Download it again.") from error
    if not isinstance(records, list) or not records:
        raise AnnotationError(path, "an empty list" if records == [] else type(records).__name__,
                              "a JSON list of questions", "Download it again.")
    return [_question(path, number, record) for number, record in enumerate(records, 1)]


def read_splits(root: Path, release: Release = "json") -> dict[str, list[Question]]:
    """Questions of the three splits, deleted ones too.

    A missing avqa-train.json, which not every copy of the dataset has, leaves training without questions, with a
    warning; the others can be evaluated all the same.

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

    The released code numbers both by first appearance in avqa-train.json. ques_vocab.txt and ans_vocab.txt are taken to
    hold the same order and serve where that file is missing.

    Args:
        words: of questions, `<pad>` first.
        answers: of the classifier.
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

    def encode(self, words: Sequence[str], length: int = LENGTH, subject: str = "question",
               error: type[AVPromptError] = ArgumentError) -> Tensor:
        """Indices of a question's words, int64 (length,), padded with 0.

        Args:
            words: of the question.
            length: to pad to.
            subject: whose question it is, for messages.
            error: type of the error.

        Raises:
            AVPromptError: of that type; an unknown word, or more words than fit.
        """
        unknown = [word for word in words if word not in self.word_index or word == PAD]
        if unknown:
            raise error(subject, f"unknown words {unknown} in {' '.join(words)!r}",
                        f"words of the vocabulary ({len(self.words)}, such as {', '.join(self.words[1:8])})",
                        "A model knows the words that it was trained on: use others, or another vocabulary.")
        if len(words) > length:
            raise error(subject, f"{len(words)} words: {' '.join(words)!r}", f"at most question_length {length}",
                        "Shorten the question or raise question_length.")
        indices = [self.word_index[word] for word in words]
        return torch.tensor(indices + [0] * (length - len(words)))

    def encode_answer(self, answer: str, subject: str) -> Tensor:
        """Index of an answer, int64 ().

        Raises:
            AnnotationError: an unknown answer.
        """
        if answer not in self.answer_index:
            raise AnnotationError(subject, f"unknown answer {answer!r}", f"one of {len(self.answers)} answers",
                                  "Use annotations and vocabulary of the same release.")
        return torch.tensor(self.answer_index[answer])

    @classmethod
    def of(cls, questions: Iterable[Question]) -> Vocabulary:
        """By first appearance, as the released code does."""
        words, answers = {PAD: None}, {}
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
        raise AnnotationError(path, f"{len(lines)} lines, {len(set(lines))} different", "each word once (or the whole "
                              "list twice, as published)", "Correct the file.")
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
            raise DatasetError(path, "no such file", "the training questions, which number words and answers",
                               "Download it, or set `vocabulary: files` to read ques_vocab.txt and ans_vocab.txt.")
        return Vocabulary.of(read_questions(path))
    words = _listed(Path(root) / "ques_vocab.txt")
    if words[0] != PAD:
        raise AnnotationError(Path(root) / "ques_vocab.txt", f"{words[0]} first", PAD, "Correct the file.")
    return Vocabulary(words, _listed(Path(root) / "ans_vocab.txt"))


def remarks(splits: dict[str, list[Question]]) -> list[str]:
    """What `avprompt data verify` says about the questions."""
    found = []
    for split, questions in splits.items():
        repeated = sum(count > 1 for count in Counter(question.question_id for question in questions).values())
        for count, what in (
            (repeated, "question_ids more than once, mostly with different answers: all kept"),
            (sum(question.deleted for question in questions), "questions marked as deleted: left out"),
            (sum(len(question.words) > LENGTH for question in questions),
             f"questions of more than {LENGTH} words: raise question_length"),
            (sum(is_generated(question.id) for question in questions),
             "questions about videos that the authors put together from others"),
        ):
            if count:
                found.append(f"split {split} has {count} {what}")
    videos = {split: {question.id for question in questions} for split, questions in splits.items()}
    found += [f"{len(shared)} videos of split {one} are also in split {two}"
              for one, two in (("train", "val"), ("train", "test"), ("val", "test"))
              if (shared := videos[one] & videos[two])]
    return found


PUBLISHED = Published(tuple(f"json/avqa-{split}.json" for split in SPLITS),
                      ("frames/<video_id>/%08d.jpg", "audio_wave/<video_id>.npy"),
                      partial(FolderReader, waves="audio_wave"), read_splits, remarks)
