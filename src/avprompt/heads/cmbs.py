"""Event localisation heads of AVE: that of DG-SCT's released network, and baselines on one modality or on late fusion.

The released head is the temporal module of DG-SCT's code, which stands for equations 5 and 7 of its paper (Duan et al.,
NeurIPS 2023), then CMBS (Xia and Zhao, CVPR 2022):

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
TOP = 4  # segments that vote on a clip's category
VIDEO_SCORE_WEIGHT = 0.3

#: names in the authors' checkpoint -> ours, by prefix
RELEASED_KEYS = {
    "temporal_attn.a_fc.": "audio.project.",
    "temporal_attn.v_fc.": "visual.project.",
    "temporal_attn.audio_visual_rnn_layer.audio_rnn.": "audio.rnn.",
    "temporal_attn.audio_visual_rnn_layer.visual_rnn.": "visual.rnn.",
    "temporal_attn.audio_encoder.affine_matrix.": "audio.encoder.project.",
    "temporal_attn.video_encoder.affine_matrix.": "visual.encoder.project.",
    "temporal_attn.audio_encoder.encoder.layers.": "audio.encoder.layers.",
    "temporal_attn.video_encoder.encoder.layers.": "visual.encoder.layers.",
    "temporal_attn.audio_decoder.affine_matrix.": "audio_decoder.project.",
    "temporal_attn.video_decoder.affine_matrix.": "visual_decoder.project.",
    "temporal_attn.audio_decoder.decoder.layers.0.multihead_attn.": "audio_decoder.attention.",
    "temporal_attn.video_decoder.decoder.layers.0.multihead_attn.": "visual_decoder.attention.",
    "temporal_attn.audio_decoder.decoder.layers.0.": "audio_decoder.",
    "temporal_attn.video_decoder.decoder.layers.0.": "visual_decoder.",
    "temporal_attn.audio_gated.0.": "audio.gate.",
    "temporal_attn.video_gated.0.": "visual.gate.",
    "CMBS.audio_cas.": "audio_scores.",
    "CMBS.video_cas.": "visual_scores.",
    "CMBS.localize_module.classifier.": "localize.is_event.",
    "CMBS.localize_module.event_classifier.": "localize.event.",
}
#: patterns of names in that checkpoint that have no influence on its outputs: prototypes of copied layers, a
#: self-attention that is never called, and CMBS's interaction modules, whose result is thrown away
RELEASED_DEAD = (
    r"temporal_attn\.\w+_encoder\.encoder_layer\.",
    r"temporal_attn\.\w+_decoder\.decoder_layer\.",
    r"temporal_attn\.\w+_decoder\.decoder\.layers\.0\.self_attn\.",
    r"CMBS\.(AVInter|VAInter|video_norm|audio_norm)\.",
)


class CrossModalDecoder(nn.Module):
    """One post-norm layer: a modality attends over the other's memory and itself, then a feed-forward block.

    Args:
        inputs: channels of the query.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, DROPOUT, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
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
    """Category scores a segment (B, T, C) -> a clip (B, C): mean of the four highest over time."""
    return scores.topk(min(TOP, scores.shape[1]), dim=1).values.mean(1)


class Localize(nn.Module):
    """Which segments hold the event, and which event it is.

    Args:
        num_classes: event categories, background not counted.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.is_event, self.event = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, num_classes)

    def forward(self, fused: Tensor, gate: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """Fused features (B, T, 256), gate (B, T, 1), clip scores (B, C) -> the head's outputs."""
        event = self.event(fused.amax(1)) + VIDEO_SCORE_WEIGHT * scores
        return {"is_event": self.is_event(fused).squeeze(-1), "event": event, "gate": gate.squeeze(-1),
                "video_scores": scores}


class CMBSHead(nn.Module):
    """Temporal module and CMBS as released, without the parts that never influence an output.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories, background not counted.
        gates: strength gamma of the temporal gates: audio guides video, video guides audio (0.1, 0.1 in the released
            network; 0 switches a direction off).
    """

    def __init__(self, audio_dim: int, visual_dim: int, num_classes: int,
                 gates: tuple[float, float] = (0.1, 0.1)) -> None:
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
    """The same head on one modality alone: its stream and CMBS's classifiers. A baseline, not a published network.

    Args:
        stream: `audio_stream` or `visual_stream` of the right width.
        num_classes: event categories, background not counted.
    """

    def __init__(self, stream: Stream, num_classes: int) -> None:
        super().__init__()
        self.stream, self.scores, self.localize = stream, nn.Linear(WIDTH, num_classes), Localize(num_classes)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """(B, T, C) -> the outputs of `CMBSHead`, `gate` being the one modality's."""
        _, memory, gate = self.stream(features)
        return self.localize(memory, gate, clip_scores(self.scores(memory)))


class LateFusionHead(nn.Module):
    """Two single-modality heads whose logits are averaged (gates are multiplied, as CMBS does). A baseline.

    They are trained together, by the loss of the averaged outputs, and share no weight.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories, background not counted.
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
