"""CMBS (Xia and Zhao, CVPR 2022) as its authors released it, before DG-SCT took its temporal part."""

from __future__ import annotations

from torch import Tensor, nn

from avprompt.heads.cmbs import TOP, VIDEO_SCORE_WEIGHT, WIDTH, CrossModalDecoder, clip_scores
from avprompt.heads.event_head import EventHead
from avprompt.heads.spatial import HIDDEN, SelfAndAudioAttention
from avprompt.heads.temporal import Interaction, TemporalEncoder, TemporalGate
from avprompt.precision import wide
from avprompt.ranges import Count

GATE, WEAK_GATE, WEAK_SCORE = 0.1, 0.2, 0.5  # alpha, alpha and gamma of the released configurations


class CMBSAlone(EventHead):
    """CMBS's network as released, without the parts that never influence an output: 9,200,473 parameters with VGG-19
    and VGGish, 9,395,518 for weak labels.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories, background not counted.
        weak: outputs for weak labels, see `EventHead`.
        double_sigmoid: with `weak`, score the gate, a probability, as a logit, as the released test does: every segment
            then counts as an event, and background can only be the clip's category.

    Example:
        >>> import torch
        >>> outputs = CMBSAlone(4, 8, num_classes=3)(torch.rand(2, 10, 4), torch.rand(2, 10, 36, 8))
        >>> {name: tuple(value.shape) for name, value in outputs.items()}
        {'is_event': (2, 10), 'event': (2, 3), 'gate': (2, 10), 'video_scores': (2, 3)}
    """

    def __init__(
        self, audio_dim: Count, visual_dim: Count, num_classes: Count, weak: bool = False, double_sigmoid: bool = False
    ) -> None:
        super().__init__(audio_dim, visual_dim, num_classes, weak)
        self.double_sigmoid = double_sigmoid
        self.project = nn.Sequential(nn.Linear(visual_dim, HIDDEN), nn.ReLU(), nn.Dropout(0.1 if weak else 0.2))
        self.attention = SelfAndAudioAttention(audio_dim, 0.5 if weak else 0.4)
        if weak:
            self.audio, self.visual = (TemporalEncoder(dim, WIDTH, 2048) for dim in (audio_dim, HIDDEN))
            self.audio_gate, self.visual_gate = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)
            self.out = nn.Linear(WIDTH, num_classes + 1, bias=False)
        else:
            self.audio = TemporalGate(audio_dim, WIDTH, WIDTH)
            self.visual = TemporalGate(HIDDEN, HIDDEN, WIDTH)
            self.is_event, self.event = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, num_classes)
        inputs = (audio_dim, HIDDEN) if weak else (WIDTH, HIDDEN)
        self.audio_decoder, self.visual_decoder = (CrossModalDecoder(dim) for dim in inputs)
        self.audio_scores, self.visual_scores = (nn.Linear(WIDTH, num_classes + weak) for _ in range(2))
        self.visual_interaction, self.audio_interaction = (
            Interaction(WIDTH, heads=2 if weak else 4, dropout=0.2) for _ in range(2)
        )

    def forward(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, N, C_v) -> `is_event` and `event`, see `EventHead`.

        Without `weak` also `gate` (B, T) in (0, 1), the product of the gates of both modalities, and `video_scores`
        (B, C) logits of the category, which both have loss terms of their own.
        """
        visual = self.attention(audio, self.project(visual))
        return self._weakly(audio, visual) if self.weak else self._fully(audio, visual)

    def _fully(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        audio_hidden, audio_memory, audio_gate = self.audio(audio)
        visual_hidden, visual_memory, visual_gate = self.visual(visual)
        visual = self.visual_decoder(visual_hidden, audio_memory) * (1 + GATE * audio_gate)
        audio = self.audio_decoder(audio_hidden, visual_memory) * (1 + GATE * visual_gate)
        scores = (clip_scores(self.visual_scores(visual)) + clip_scores(self.audio_scores(audio))) / 2
        fused = self._fused(audio, visual)
        event = self.event(fused.amax(1)) + VIDEO_SCORE_WEIGHT * scores
        return {
            "is_event": self.is_event(fused).squeeze(-1),
            "event": event,
            "gate": (audio_gate * visual_gate).squeeze(-1),
            "video_scores": scores,
        }

    def _weakly(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        audio_memory, visual_memory = self.audio(audio), self.visual(visual)
        # as released, a modality is gated by its own memory
        visual_gate = wide(self.visual_gate(visual_memory)).sigmoid()
        audio_gate = wide(self.audio_gate(audio_memory)).sigmoid()
        visual = self.visual_decoder(visual, audio_memory) * (1 - WEAK_GATE + WEAK_GATE * visual_gate)
        audio = self.audio_decoder(audio, visual_memory) * (1 - WEAK_GATE + WEAK_GATE * audio_gate)
        support = self.visual_scores(visual).sigmoid() + self.audio_scores(audio).sigmoid()
        scores = WEAK_SCORE * support * self.out(self._fused(audio, visual))
        event = scores.topk(min(TOP, scores.shape[1]), dim=1).values.mean(1)
        gate = ((visual_gate + audio_gate) / 2).squeeze(-1)
        return {
            "is_event": gate if self.double_sigmoid else gate.logit(1e-6),
            "event": event,
            "clip": (gate.unsqueeze(-1) * event.unsqueeze(1)).amax(1),
        }

    def _fused(self, audio: Tensor, visual: Tensor) -> Tensor:
        visual = self.visual_interaction(visual, audio)
        return (visual + self.audio_interaction(audio, visual)) / 2
