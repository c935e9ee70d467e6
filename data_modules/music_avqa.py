"""MUSIC-AVQA: questions about what is seen and heard in videos of musicians."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from avprompt.data_modules.base import AVDataModule, ClipDataset, Sample, VideoWindows
from avprompt.datasets import music_avqa
from avprompt.errors import AnnotationError, ArgumentError, ClipDecodeError, DatasetError
from avprompt.feature_cache import FeatureCache
from avprompt.media.decode import Sampling
from avprompt.media.feature_files import NpyFeatureFiles
from avprompt.ranges import Count, Positive


class AskedWindows(VideoWindows):
    """A user's own videos, with the same question about each window.

    Args:
        folder: see `VideoWindows`.
        sampling: see `VideoWindows`.
        asked: the question's entries of a sample.
    """

    def __init__(self, folder: Path, sampling: Sampling, asked: Sample) -> None:
        super().__init__(folder, sampling)
        self.asked = asked

    def __getitem__(self, index: int) -> Sample:
        return {**super().__getitem__(index), **self.asked}


class MUSICAVQADataModule(AVDataModule):
    """MUSIC-AVQA from its published questions, `root`/`release`/avqa-{train,val,test}.json.

    Each question is an item. Many questions share a video, and evaluation takes them video by video. Batches have
    `question` (B, L) int64, padded with 0; `question_text`, `question_type` (such as `["Audio", "Counting"]`) and
    `question_id`, lists of B strings; `answer` (B,) int64; and with `negatives`, in training, `negative_frames` uint8
    (B, T, 3, H, W), or with `published_features` or `feature_cache` `negative_features` (B, T, N, C). A user's own
    videos have `question` and `question_text` only. `avprompt.datasets.music_avqa` describes the published files;
    `AVDataModule` describes the other arguments.

    Attributes:
        class_names: the possible answers.
        vocabulary_size: number of words in questions, including `<pad>`.

    Args:
        root: folder of annotations and media.
        release: `json`, on which published results are computed, or `json_update`, the authors' later correction.
        vocabulary: source of the indices of words and answers. `train`: their first appearance in avqa-train.json, as
            published. `files`: ques_vocab.txt and ans_vocab.txt in `root`, for copies without avqa-train.json.
        question_length: number L of words to which questions are padded; a longer question is an error. The longest
            published question has 14.
        negatives: `other_video` adds T frames that do not belong to the audio. Each comes from a random segment of a
            random other video of the split.
        negatives_in_evaluation: add negatives to validation and test too, always the same ones.
        group_by_video: in training, let the questions of a video follow each other, as in evaluation. A batch then
            holds fewer videos, and each is encoded once. The released code mixes all questions.
        question: the question about every video of `predict_root`.
        stride: see `AVDataModule`. The videos last 60 s, and no publication says how they become ten segments of one
            second. The default takes every sixth second.
        options: see `AVDataModule`.

    Raises:
        ArgumentError: `predict_root` without a question, or a question with unknown words.
        DatasetError: from `setup`, when files of the vocabulary are missing (before, sizes are the published ones).
        AnnotationError: such a file breaks its format; from `setup`, also a question or answer with unknown words.

    Example:
        >>> data = MUSICAVQADataModule(Path("data/music_avqa"), negatives="other_video")
        >>> data.num_classes, data.vocabulary_size, data.sampling.duration
        (42, 93, 55.0)
    """

    info = music_avqa.INFO

    def __init__(
        self,
        root: Path,
        release: Literal["json", "json_update"] = "json",
        vocabulary: Literal["train", "files"] = "train",
        question_length: Count = music_avqa.LENGTH,
        negatives: Literal["none", "other_video"] = "none",
        negatives_in_evaluation: bool = False,
        group_by_video: bool = False,
        question: str | None = None,
        stride: Positive | None = 6.0,
        **options: Any,
    ) -> None:
        super().__init__(root, stride=stride, **options)
        for name, value, choices in (
            ("release", release, ("json", "json_update")),
            ("vocabulary", vocabulary, ("train", "files")),
            ("negatives", negatives, ("none", "other_video")),
        ):
            if value not in choices:
                raise ArgumentError(name, value, f"one of {', '.join(choices)}", "Correct the argument.")
        if question_length < 1:
            raise ArgumentError("question_length", question_length, "at least 1", "Choose another value.")
        if negatives_in_evaluation and negatives == "none":
            raise ArgumentError(
                "negatives_in_evaluation",
                "true with negatives: none",
                "negatives to add",
                "Set `negatives: other_video`.",
            )
        self.release, self.question_length = release, question_length
        self.negatives, self.negatives_in_evaluation = negatives, negatives_in_evaluation
        self.group_by_video = group_by_video
        # read before `setup`: the model is built with these sizes before any data are read
        self.vocabulary, self.class_names, self.unread = None, (), None
        self.num_classes, self.vocabulary_size = music_avqa.ANSWERS, music_avqa.WORDS
        try:
            self.vocabulary = music_avqa.read_vocabulary(self.root, release, vocabulary)
        except DatasetError as error:
            self.unread = error  # `avprompt params` needs only the published sizes; `setup` raises the error
        else:
            self.class_names = self.vocabulary.answers
            self.num_classes, self.vocabulary_size = len(self.class_names), len(self.vocabulary.words)
        if question is None and self.predict_root is not None:
            self._refuse_silence()
        self.asked: Sample = {}
        if question is not None and self.unread is None:
            self.ask(question)

    def ask(self, question: str) -> None:
        """Ask this about every video of `predict_root`.

        Raises:
            ArgumentError: there is no word in it, it is too long, or has words that the published questions have not.
            DatasetError: the files of the vocabulary are missing.
        """
        if self.unread is not None:
            raise self.unread
        words = music_avqa.tokenise(question)
        self.asked = {"question": self.vocabulary.encode(words, self.question_length), "question_text": question}

    @staticmethod
    def _refuse_silence() -> None:
        raise ArgumentError(
            "question",
            "none",
            "a question to ask of the videos of predict_root",
            "For instance `question: How many instruments are sounding in the video?`.",
        )

    @property
    def sizes(self) -> dict[str, Any]:
        size, several = self.sampling.size, self.sampling.pictures[1:]
        negative = () if self.negatives == "none" else (*several, 3, size, size)
        return {**super().sizes, "question_length": self.question_length, "negative": negative}

    def read_annotations(self) -> dict[str, list[music_avqa.Question]]:
        splits = music_avqa.read_splits(self.root, self.release)
        for split, questions in splits.items():
            path = music_avqa.questions_path(self.root, self.release, split)
            splits[split] = [question for question in questions if not question.deleted]
            if len(splits[split]) < len(questions):
                warnings.warn(
                    f"{path}: {len(questions) - len(splits[split])} questions marked as deleted are left out",
                    stacklevel=2,
                )
            for question in splits[split]:
                subject = f"{path}, question_id {question.question_id}"
                self.vocabulary.encode(question.words, self.question_length, subject, AnnotationError)
                self.vocabulary.encode_answer(question.answer, subject)
            if split != "train":
                first = {question.id: place for place, question in reversed(list(enumerate(splits[split])))}
                splits[split].sort(key=lambda question: first[question.id])
        return splits

    def annotate(self, item: music_avqa.Question, rng: np.random.Generator) -> Sample:
        return {
            "question": self.vocabulary.encode(item.words, self.question_length),
            "question_text": item.text,
            "question_type": item.type,
            "question_id": item.question_id,
            "answer": self.vocabulary.encode_answer(item.answer, item.question_id),
        }

    def groups(self, split: str) -> list[str] | None:
        """The video of each question, in training; the other splits are already in that order."""
        return self.datasets[split].ids if self.group_by_video and split == "train" else None

    def setup(self, stage: str) -> None:
        """See `AVDataModule.setup`.

        Raises:
            ArgumentError: videos to predict, and no `question`.
            DatasetError: also where files of the vocabulary are missing, or where negatives are asked for and a split
                has a single video.
        """
        if self.unread is not None:
            raise self.unread
        if stage == "predict" and self.predict_root is not None:
            if not self.asked:
                self._refuse_silence()
            self.datasets["predict"] = AskedWindows(self.predict_root, self.sampling, self.asked)
            return
        super().setup(stage)
        for split, data in self.datasets.items():
            if (
                self.negatives != "none"
                and isinstance(data, ClipDataset)
                and (data.training or self.negatives_in_evaluation)
            ):
                videos = sorted(set(data.ids))
                if len(videos) < 2:
                    raise DatasetError(
                        self.root, f"one video in split {split}", "two or more, for negatives", "Set `negatives: none`."
                    )
                data.annotate = partial(self._with_negatives, data, videos)

    def _with_negatives(
        self, data: ClipDataset, videos: list[str], item: music_avqa.Question, rng: np.random.Generator
    ) -> Sample:
        others = [video for video in videos if video != item.id]
        chosen = rng.integers(len(others), size=self.sampling.segments)
        if data.features is not None:
            source = cast(FeatureCache | NpyFeatureFiles, data.features)
            features = [source.read_visual(others[place], rng, self.sampling.segments) for place in chosen]
            return {**self.annotate(item, rng), "negative_features": torch.stack(features)}
        frames = torch.stack([self._negative(data, others, int(place), rng) for place in chosen])
        return {**self.annotate(item, rng), "negative_frames": frames}

    @staticmethod
    def _negative(data: ClipDataset, others: list[str], place: int, rng: np.random.Generator) -> Tensor:
        """A random frame of video `place`, or of the next one that decodes where clips may be substituted.

        A video that does not decode counts as corrupt when its own questions are read, which happens in every epoch.
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
        raise ClipDecodeError(
            data.items[0].id, "no other video of the split decodes", "readable videos", "Run `avprompt data verify`."
        )
