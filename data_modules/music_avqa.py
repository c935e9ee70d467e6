"""MUSIC-AVQA: questions about what is seen and heard in videos of musicians."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from avprompt.data_modules.base import AVDataModule, ClipDataset, Normalise, Sample, VideoWindows
from avprompt.datasets import music_avqa
from avprompt.errors import AnnotationError, ArgumentError, ClipDecodeError, DatasetError
from avprompt.media.decode import Sampling
from avprompt.plots.cards import question_figure


class AskedWindows(VideoWindows):
    """One's own videos, each window with the same question.

    Args:
        folder: see `VideoWindows`.
        sampling: see `VideoWindows`.
        normalise: see `VideoWindows`.
        asked: the question's entries of a sample.
    """

    def __init__(self, folder: Path, sampling: Sampling, normalise: Normalise, asked: Sample) -> None:
        super().__init__(folder, sampling, normalise)
        self.asked = asked

    def __getitem__(self, index: int) -> Sample:
        return {**super().__getitem__(index), **self.asked}


class MUSICAVQADataModule(AVDataModule):
    """MUSIC-AVQA from its published questions (`root`/`release`/avqa-{train,val,test}.json).

    Each question is an item; many share a video, and evaluation takes them video by video. Adds `question` (B, L) int64,
    padded with 0; `question_text`, `question_type` (such as `["Audio", "Counting"]`) and `question_id`, lists of B
    strings; `answer` (B,) int64; and with `negatives` in training `negative_frames` (B, T, 3, H, W) float32, normalised. One's own videos have `question`
    and `question_text` alone. See `avprompt.datasets.music_avqa` for what the published files hold besides, and
    `AVDataModule` for every other argument.

    Attributes:
        class_names: possible answers.
        vocabulary_size: number of words of questions, `<pad>` included.

    Args:
        release: `json`, what published results are counted on, or `json_update`, the authors' later correction.
        vocabulary: what numbers words and answers: `train`, their first appearance in avqa-train.json, as published, or
            `files`, ques_vocab.txt and ans_vocab.txt in `root`, where that file is missing.
        question_length: words to which questions are padded; a longer one is an error. The longest published has 14.
        negatives: `other_video` adds T frames that do not belong to the sound: each from a random segment of a random
            other video of the split.
        negatives_in_evaluation: add them to validation and test too, always the same ones.
        group_by_video: questions of a video follow each other in training too, as in evaluation: a batch then holds fewer videos,
            and each is encoded once. As released, training mixes all questions.
        question: asked of every video of `predict_root`.
        stride: see `AVDataModule`. MUSIC-AVQA's videos last 60 s and nothing published says how they become ten
            segments of one second: here every sixth second is one.
        options: see `AVDataModule`.

    Raises:
        ArgumentError: `predict_root` without a question, or a question with unknown words.
        DatasetError: from `setup`, when the vocabulary's files are missing; until then sizes are the published ones.
        AnnotationError: one of them breaks its format; from `setup`, also a question or answer that it does not know.
    """

    published = music_avqa.PUBLISHED

    def __init__(
        self,
        root: Path,
        release: Literal["json", "json_update"] = "json",
        vocabulary: Literal["train", "files"] = "train",
        question_length: int = music_avqa.LENGTH,
        negatives: Literal["none", "other_video"] = "none",
        negatives_in_evaluation: bool = False,
        group_by_video: bool = False,
        question: str | None = None,
        stride: float | None = 6.0,
        **options: Any,
    ) -> None:
        super().__init__(root, stride=stride, **options)
        for name, value, choices in (("release", release, ("json", "json_update")),
                                     ("vocabulary", vocabulary, ("train", "files")),
                                     ("negatives", negatives, ("none", "other_video"))):
            if value not in choices:
                raise ArgumentError(name, value, f"one of {', '.join(choices)}", "Correct the argument.")
        if question_length < 1:
            raise ArgumentError("question_length", question_length, "at least 1", "Choose another value.")
        if negatives_in_evaluation and negatives == "none":
            raise ArgumentError("negatives_in_evaluation", "true with negatives: none", "negatives to add",
                                "Set `negatives: other_video`.")
        self.release, self.question_length = release, question_length
        self.negatives, self.negatives_in_evaluation, self.group_by_video = negatives, negatives_in_evaluation, group_by_video
        # read here, not in `setup`: the model is sized by it before any data is looked at
        self.vocabulary, self.class_names, self.unread = None, (), None
        self.num_classes, self.vocabulary_size = music_avqa.ANSWERS, music_avqa.WORDS
        try:
            self.vocabulary = music_avqa.read_vocabulary(self.root, release, vocabulary)
        except DatasetError as error:
            self.unread = error  # the published sizes will do for `avprompt params`; `setup` raises this
        else:
            self.class_names = self.vocabulary.answers
            self.num_classes, self.vocabulary_size = len(self.class_names), len(self.vocabulary.words)
        if question is None and self.predict_root is not None:
            raise ArgumentError("question", "none", "a question to ask of the videos of predict_root",
                                "For instance `question: How many instruments are sounding in the video?`.")
        self.asked: Sample = {}
        if question is not None and self.unread is None:
            words = music_avqa.tokenise(question)
            self.asked = {"question": self.vocabulary.encode(words, question_length), "question_text": question}

    def read_annotations(self) -> dict[str, list[music_avqa.Question]]:
        splits = music_avqa.read_splits(self.root, self.release)
        for split, questions in splits.items():
            path = music_avqa.questions_path(self.root, self.release, split)
            splits[split] = [question for question in questions if not question.deleted]
            if len(splits[split]) < len(questions):
                warnings.warn(f"{path}: {len(questions) - len(splits[split])} questions marked as deleted are left out",
                              stacklevel=2)
            for question in splits[split]:
                subject = f"{path}, question_id {question.question_id}"
                self.vocabulary.encode(question.words, self.question_length, subject, AnnotationError)
                self.vocabulary.encode_answer(question.answer, subject)
            if split != "train":
                first = {question.id: place for place, question in reversed(list(enumerate(splits[split])))}
                splits[split].sort(key=lambda question: first[question.id])
        return splits

    def annotate(self, item: music_avqa.Question, rng: np.random.Generator) -> Sample:
        return {"question": self.vocabulary.encode(item.words, self.question_length), "question_text": item.text,
                "question_type": item.type, "question_id": item.question_id,
                "answer": self.vocabulary.encode_answer(item.answer, item.question_id)}

    def groups(self, split: str) -> list[str] | None:
        """The video of every question; other splits than training hold them in that order."""
        return self.datasets[split].ids if self.group_by_video and split == "train" else None

    def setup(self, stage: str) -> None:
        """See `AVDataModule.setup`.

        Raises:
            DatasetError: also where the vocabulary's files are missing, or negatives are asked for and a split has a single video.
        """
        if self.unread is not None:
            raise self.unread
        if stage == "predict" and self.predict_root is not None:
            self.datasets["predict"] = AskedWindows(self.predict_root, self.sampling, self.normalise, self.asked)
            return
        super().setup(stage)
        for split, data in self.datasets.items():
            if (self.negatives != "none" and isinstance(data, ClipDataset)
                    and (data.training or self.negatives_in_evaluation)):
                videos = sorted(set(data.ids))
                if len(videos) < 2:
                    raise DatasetError(self.root, f"one video in split {split}", "two or more, for negatives",
                                       "Set `negatives: none`.")
                data.annotate = partial(self._with_negatives, data, videos)

    def _with_negatives(self, data: ClipDataset, videos: list[str], item: music_avqa.Question,
                        rng: np.random.Generator) -> Sample:
        others = [video for video in videos if video != item.id]
        chosen = rng.integers(len(others), size=self.sampling.segments)
        frames = torch.stack([self._negative(data, others, int(place), rng) for place in chosen])
        return {**self.annotate(item, rng), "negative_frames": self.normalise(frames)}

    @staticmethod
    def _negative(data: ClipDataset, others: list[str], place: int, rng: np.random.Generator) -> Tensor:
        """A random frame of video `place`; in its place the next one that decodes, where clips may be substituted.

        Such a video counts as corrupt when its own turn comes, as it does in every epoch.
        """
        for offset in range(len(others)):
            video = others[(place + offset) % len(others)]
            try:
                decoded = np.flatnonzero(data.reader.valid(video).numpy())
                return data.reader.frame(video, int(rng.choice(decoded)))
            except ClipDecodeError as error:
                if not data.substitute:
                    raise
                warnings.warn(f"another video gives negative frames in place of {video}: {error}", stacklevel=2)
        raise ClipDecodeError(data.items[0].id, "no other video of the split decodes", "readable videos",
                              "Run `avprompt data verify`.")

    def plot(self, sample: dict[str, Any]) -> Figure:
        """The question's card: frames, waveform, annotated answer; if present, `prediction` () and `map_grounding`."""
        answers = {key: self.class_names[int(sample[key])] for key in ("answer", "prediction") if key in sample}
        return question_figure(self.normalise.undo(sample["frames"]), sample["audio"], sample["question_text"],
                               **answers, grounding=sample.get("map_grounding"), title=sample["id"],
                               start=float(sample.get("start", 0.0)), valid=sample.get("valid"),
                               stride=self.sampling.spacing)
