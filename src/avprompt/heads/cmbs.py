"""Event localisation heads of AVE: that of DG-SCT's released network, and baselines on one modality or with late
fusion.

The released head is the temporal module of DG-SCT's code, which implements equations 5 and 7 of its paper (Duan et al.,
NeurIPS 2023) in its own way, followed by CMBS (Xia and Zhao, CVPR 2022):

    audio (B, T, C_a) -[Linear]-[BiLSTM]-+-[encoder]-- a_mem --> gate g_a
                                         +--[decoder over v_mem]--> A * (1 + gamma g_v) --+
                                                                                          +-- mean -- event per segment
                                         +--[decoder over a_mem]--> V * (1 + gamma g_a) --+          and per clip
    visual (B, T, C_v) -[Linear]-[BiLSTM]-+-[encoder]-- v_mem --> gate g_v
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.heads.temporal import DROPOUT, HEADS, HIDDEN, TemporalGate

WIDTH = 256  # of the released network
TOP = 4  # segments that decide the category of a clip
VIDEO_SCORE_WEIGHT = 0.3


class CrossModalDecoder(nn.Module):
    """One post-norm layer: a modality attends to the memory of the other one and to itself, then a feed-forward block.

    Args:
        inputs: channels of the query.
        hidden: channels of the feed-forward block.
    """

    def __init__(self, inputs: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, DROPOUT, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """Query (B, T, inputs), memory (B, T, 256) -> (B, T, 256)."""
        x = self.project(query)
        both = torch.cat((memory, x), dim=1)
        x = self.norm1(x + self.dropout(self.attention(x, both, both, need_weights=False)[0]))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class Stream(TemporalGate):
    """One modality over time: projection, then its temporal gate.

    Args:
        inputs: channels of the backbone's features.
        hidden: channels of the projection.
        rnn: channels of the BiLSTM, both directions together.
        activated: ReLU and dropout after the projection (released: visual yes, audio no).
    """

    def __init__(self, inputs: int, hidden: int, rnn: int, activated: bool) -> None:
        project = nn.Linear(inputs, hidden)
        super().__init__(hidden, rnn, WIDTH)
        self.project = project
        self.activation = nn.Sequential(nn.ReLU(), nn.Dropout(0.2)) if activated else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, inputs) -> BiLSTM output (B, T, rnn), memory (B, T, 256), gate (B, T, 1) in (0, 1)."""
        return super().forward(self.activation(self.project(x)))


def audio_stream(inputs: int) -> Stream:
    """The released audio branch."""
    return Stream(inputs, hidden=128, rnn=256, activated=False)


def visual_stream(inputs: int) -> Stream:
    """The released visual branch."""
    return Stream(inputs, hidden=512, rnn=512, activated=True)


def clip_scores(scores: Tensor) -> Tensor:
    """Category scores of segments (B, T, C) -> of clips (B, C), the mean of the four highest over time.

    Example:
        >>> clip_scores(torch.arange(5.0).view(1, 5, 1))
        tensor([[2.5000]])
    """
    return scores.topk(min(TOP, scores.shape[1]), dim=1).values.mean(1)


class Localize(nn.Module):
    """Classifiers: which segments have the event, and which event it is.

    Args:
        num_classes: event categories, background not counted.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.is_event, self.event = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, num_classes)

    def forward(self, fused: Tensor, gate: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """Fused features (B, T, 256), gate (B, T, 1), clip scores (B, C) -> the head's outputs."""
        event = self.event(fused.amax(1)) + VIDEO_SCORE_WEIGHT * scores
        return {
            "is_event": self.is_event(fused).squeeze(-1),
            "event": event,
            "gate": gate.squeeze(-1),
            "video_scores": scores,
        }


class CMBSHead(nn.Module):
    """The temporal module and CMBS as released, without the parts that never influence an output.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories, background not counted.
        gates: strength gamma of the temporal gates: audio guides video, video guides audio (0.1, 0.1 in the released
            network; 0 switches a direction off).

    Example:
        >>> outputs = CMBSHead(audio_dim=8, visual_dim=12, num_classes=3)(torch.rand(2, 10, 8), torch.rand(2, 10, 12))
        >>> {name: tuple(value.shape) for name, value in outputs.items()}
        {'is_event': (2, 10), 'event': (2, 3), 'gate': (2, 10), 'video_scores': (2, 3)}
    """

    def __init__(
        self, audio_dim: int, visual_dim: int, num_classes: int, gates: tuple[float, float] = (0.1, 0.1)
    ) -> None:
        super().__init__()
        self.gamma_a2v, self.gamma_v2a = gates
        self.audio, self.visual = audio_stream(audio_dim), visual_stream(visual_dim)
        self.audio_decoder, self.visual_decoder = CrossModalDecoder(256), CrossModalDecoder(512)
        self.audio_scores, self.visual_scores = nn.Linear(WIDTH, num_classes), nn.Linear(WIDTH, num_classes)
        self.localize = Localize(num_classes)

    def forward(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, C_v) -> named outputs.

        Returns:
            `is_event` (B, T) logits, `event` (B, C) logits, `gate` (B, T) in (0, 1), `video_scores` (B, C) logits.
        """
        audio_hidden, audio_memory, audio_gate = self.audio(audio)
        visual_hidden, visual_memory, visual_gate = self.visual(visual)
        visual = self.visual_decoder(visual_hidden, audio_memory) * (1 + self.gamma_a2v * audio_gate)
        audio = self.audio_decoder(audio_hidden, visual_memory) * (1 + self.gamma_v2a * visual_gate)
        scores = (clip_scores(self.visual_scores(visual)) + clip_scores(self.audio_scores(audio))) / 2
        return self.localize((visual + audio) / 2, audio_gate * visual_gate, scores)


class SingleHead(nn.Module):
    """A baseline on one modality, which is no published network: the stream of that modality and the classifiers of
    CMBS.

    Args:
        stream: `audio_stream` or `visual_stream` with the channels of the features.
        num_classes: event categories, background not counted.

    Example:
        >>> SingleHead(audio_stream(8), num_classes=3)(torch.rand(2, 10, 8))["event"].shape
        torch.Size([2, 3])
    """

    def __init__(self, stream: Stream, num_classes: int) -> None:
        super().__init__()
        self.stream, self.scores, self.localize = stream, nn.Linear(WIDTH, num_classes), Localize(num_classes)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Features (B, T, C) -> the outputs of `CMBSHead`; `gate` is that of this modality."""
        _, memory, gate = self.stream(features)
        return self.localize(memory, gate, clip_scores(self.scores(memory)))


class LateFusionHead(nn.Module):
    """A baseline: two heads on one modality each, whose logits are averaged and whose gates are multiplied as in CMBS.

    Both are trained together, by the loss of the averaged outputs, and share no weight.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories, background not counted.

    Example:
        >>> LateFusionHead(8, 12, num_classes=3)(torch.rand(2, 10, 8), torch.rand(2, 10, 12))["is_event"].shape
        torch.Size([2, 10])
    """

    def __init__(self, audio_dim: int, visual_dim: int, num_classes: int) -> None:
        super().__init__()
        self.audio = SingleHead(audio_stream(audio_dim), num_classes)
        self.visual = SingleHead(visual_stream(visual_dim), num_classes)

    def forward(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, C_v) -> the outputs of `CMBSHead`."""
        a, v = self.audio(audio), self.visual(visual)
        fused = {name: (a[name] + v[name]) / 2 for name in a}
        return {**fused, "gate": a["gate"] * v["gate"]}
