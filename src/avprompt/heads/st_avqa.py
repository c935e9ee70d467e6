"""Question answering head of MUSIC-AVQA: ST-AVQA (Li et al., CVPR 2022) as in DG-SCT's released network.

audio (B, T, C_a) ----[MLP]----- sound -------------------------------+--[question attends]--+
                                   | grounds                          |                      +--[fuse]-(x)--> answer
visual tokens (B, T, N, C_v) --[where it sounds, and the mean]-- sight +--[question attends]--+       |
question (B, L) --[LSTM]---------------------------------------------------------------- question ---+

sound and sight of a segment -[match]-> whether they belong together (negatives: frames of another video)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.errors import ArgumentError
from avprompt.precision import recurrent, wide

HEADS, DROPOUT = 4, 0.1  # of the released network


class Grounding(nn.Module):
    """Finds where in the frame the sound comes from, and whether sound and frame belong together.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual tokens.
        width: channels of the following layers; `None` is `visual_dim` (DG-SCT's network). Otherwise visual tokens are
            first projected to it and audio features to a quarter of it, as in STG-CMA with 512.
        project_audio: project audio features to the width by a layer of its own. Without, they are rectified where it
            stands and have that width already, as in STG-CMA's large network.

    Raises:
        ArgumentError: audio features of another width without `project_audio`.

    Example:
        >>> grounding = Grounding(audio_dim=8, visual_dim=12)
        >>> sound = grounding.audio(torch.rand(2, 10, 8))
        >>> sight, where = grounding(sound, torch.rand(2, 10, 16, 12))
        >>> tuple(sight.shape), tuple(where.shape), tuple(grounding.matches(sound, sight).shape)
        ((2, 10, 12), (2, 10, 16), (20, 2))
    """

    def __init__(self, audio_dim: int, visual_dim: int, width: int | None = None, project_audio: bool = True) -> None:
        super().__init__()
        if not project_audio and (width is not None or audio_dim != visual_dim):
            raise ArgumentError(
                "project_audio",
                f"false, with {audio_dim} and {visual_dim} channels and width {width}",
                "encoders of one width, and width null",
                "Set it to true.",
            )
        narrow = () if width is None else (nn.Linear(audio_dim, width // 4),)
        self.narrow = nn.Identity() if width is None else nn.Linear(visual_dim, width)
        self.width = width = width or visual_dim
        inputs = narrow[0].out_features if narrow else audio_dim
        project = (*narrow, nn.Linear(inputs, width)) if project_audio else ()
        self.audio = nn.Sequential(*project, nn.ReLU(), nn.Linear(width, width))
        self.merge = nn.Linear(2 * width, width)
        self.match = nn.Sequential(
            nn.Linear(2 * width, 512),
            nn.ReLU(),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Linear(128, 2),
        )

    def forward(self, sound: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Sound (B, T, C), visual tokens (B, T, N, C_v) -> sight (B, T, C), grounding map (B, T, N) that sums to 1."""
        tokens = self.narrow(tokens)
        direction = F.normalize(tokens, dim=-1)
        weights = wide((direction @ F.normalize(sound, dim=-1).unsqueeze(-1)).squeeze(-1)).softmax(-1)
        grounded = (weights.unsqueeze(2).to(direction.dtype) @ direction).squeeze(2)
        return self.merge(torch.tanh(torch.cat((tokens.mean(2), grounded), dim=-1))), weights

    def matches(self, sound: Tensor, sight: Tensor) -> Tensor:
        """Sound and sight (B, T, C) -> logits (B*T, 2); class 1 means that they belong together."""
        return self.match(torch.cat((sound, sight), dim=-1).flatten(0, 1))


class QuestionEncoder(nn.Module):
    """Encodes a question with an LSTM over its words.

    Args:
        words: size of the vocabulary, padding included.
        width: channels.
    """

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(words, width), nn.LSTM(width, width, batch_first=True)
        self.project = nn.Linear(2 * width, width)

    def forward(self, question: Tensor) -> Tensor:
        """Word indices (B, L), padded with 0; the LSTM reads the padding too, as released -> (B, width)."""
        _, (hidden, cell) = recurrent(self.lstm, torch.tanh(self.words(question)))
        return self.project(torch.tanh(torch.cat((hidden[0], cell[0]), dim=-1)))


class Reader(nn.Module):
    """The question attends to the segments, then a feed-forward block.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, HEADS, DROPOUT, batch_first=True)
        self.linear1, self.linear2, self.norm = nn.Linear(width, width), nn.Linear(width, width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, question: Tensor, segments: Tensor) -> Tensor:
        """Question (B, C), segments (B, T, C) -> the result plus the mean of the segments, (B, C)."""
        read = self.attention(question.unsqueeze(1), segments, segments, need_weights=False)[0].squeeze(1)
        read = self.norm(read + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(read))))))
        return read + segments.mean(1)


class QuestionHead(nn.Module):
    """A baseline that reads the question and nothing else: what the answer's statistics alone give.

    Args:
        num_answers: answers to choose from.
        words: size of the question vocabulary, padding included.
        width: channels.

    Example:
        >>> QuestionHead(num_answers=5, words=9, width=8)(torch.tensor([[1, 2, 0]])).shape
        torch.Size([1, 5])
    """

    def __init__(self, num_answers: int, words: int, width: int = 512) -> None:
        super().__init__()
        self.question, self.answer = QuestionEncoder(words, width), nn.Linear(width, num_answers)

    def forward(self, question: Tensor) -> Tensor:
        """Word indices (B, L) -> logits (B, A)."""
        return self.answer(torch.tanh(self.question(question)))


class STAVQAHead(nn.Module):
    """Spatial grounding, temporal attention by the question, and the answer.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual tokens.
        num_answers: answers to choose from.
        words: size of the question vocabulary, padding included.
        width: see `Grounding`.
        project_audio: see there.

    Example:
        >>> head = STAVQAHead(audio_dim=8, visual_dim=12, num_answers=5, words=9)
        >>> outputs = head(torch.rand(2, 10, 8), torch.rand(2, 10, 16, 12), torch.tensor([[1, 2, 0], [3, 4, 5]]))
        >>> {name: tuple(value.shape) for name, value in outputs.items()}
        {'answer': (2, 5), 'grounding': (2, 10, 16)}
    """

    def __init__(
        self,
        audio_dim: int,
        visual_dim: int,
        num_answers: int,
        words: int,
        width: int | None = None,
        project_audio: bool = True,
    ) -> None:
        super().__init__()
        self.grounding = Grounding(audio_dim, visual_dim, width, project_audio)
        width = self.grounding.width
        self.question = QuestionEncoder(words, width)
        self.audio_reader, self.visual_reader = Reader(width), Reader(width)
        self.fusion, self.answer = nn.Linear(2 * width, width), nn.Linear(width, num_answers)

    def forward(
        self, audio: Tensor, tokens: Tensor, question: Tensor, negative_tokens: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual tokens (B, T, N, C_v), question (B, L), tokens of another video's frames ->
        outputs.

        Returns:
            `answer` (B, A) logits, `grounding` (B, T, N) that sums to 1; with negatives `match_positive` and
            `match_negative` (B*T, 2) logits.
        """
        sound = self.grounding.audio(audio)
        sight, grounding = self.grounding(sound, tokens)
        asked = self.question(question)
        fused = torch.cat((self.audio_reader(asked, sound), self.visual_reader(asked, sight)), dim=-1)
        out = {"answer": self.answer(torch.tanh(self.fusion(torch.tanh(fused)) * asked)), "grounding": grounding}
        if negative_tokens is not None:
            out["match_positive"] = self.grounding.matches(sound, sight)
            out["match_negative"] = self.grounding.matches(sound, self.grounding(sound, negative_tokens)[0])
        return out
