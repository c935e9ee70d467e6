"""PSP (Zhou et al., CVPR 2021): positive sample propagation, by which segments of one modality pass features to
segments of the other one that resemble them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.heads.event_head import EventHead, bilstm, xavier
from avprompt.heads.spatial import AudioGuidedAttention, Variant
from avprompt.precision import recurrent
from avprompt.ranges import Count, NonNegative

WIDTH, DROPOUT = 256, 0.1  # of the released network


def positive_links(similarity: Tensor, threshold: float, renormalise: bool = True) -> Tensor:
    """Similarities (B, T, S), not negative -> shares in each row, without those at most `threshold`.

    The remaining shares of a row sum to 1 with `renormalise`, or are all 0.

    Source: PSP, equations 3 and 4.

    Example:
        >>> positive_links(torch.tensor([[[6.0, 3.0, 1.0], [0.0, 0.0, 0.0]]]), threshold=0.2)[0, 0].tolist()
        [0.6666666865348816, 0.3333333432674408, 0.0]
    """
    shares = similarity / (similarity.sum(-1, keepdim=True) + 1e-8)
    shares = shares * (shares > threshold)
    return shares / (shares.sum(-1, keepdim=True) + 1e-8) if renormalise else shares


class Propagation(nn.Module):
    """The exchange of features between the segments of both modalities.

    Args:
        threshold: smallest share of a link times the number of segments: 0.99 keeps links above the average.
        weak: the network for weak labels, which has no last map and does not renormalise.

    Example:
        >>> seen, heard = Propagation(threshold=0.99)(torch.rand(2, 10, 256), torch.rand(2, 10, 256))
        >>> seen.shape
        torch.Size([2, 10, 256])
    """

    def __init__(self, threshold: float, weak: bool = False) -> None:
        super().__init__()
        self.threshold, self.weak = threshold, weak

        def layer() -> nn.Module:
            return nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU(), nn.Dropout(DROPOUT))

        self.visual_value, self.visual_query, self.audio_key, self.audio_value = (layer() for _ in range(4))
        self.visual_out, self.audio_out = (nn.Identity() if weak else layer() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)  # one for both
        xavier(self)

    def forward(self, audio: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Audio and visual (B, T, 256) -> visual and audio (B, T, 256)."""
        similarity = torch.relu(self.visual_query(visual) @ self.audio_key(audio).transpose(1, 2) / WIDTH**0.5)
        threshold = self.threshold / visual.shape[1]
        to_visual, to_audio = (
            positive_links(x, threshold, not self.weak) for x in (similarity, similarity.transpose(1, 2))
        )
        seen = visual + to_visual @ self.audio_value(audio)
        heard = audio + to_audio @ self.visual_value(visual)
        return self.norm(self.visual_out(seen)), self.norm(self.audio_out(heard))


class PSP(EventHead):
    """PSP's network as released, without the parts that never influence an output: 1,548,657 parameters with VGG-19 and
    VGGish, 1,253,902 for weak labels.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories, background not counted.
        weak: outputs for weak labels, see `EventHead`; the clip's logits are then the mean over time.
        threshold: times the number of segments, the smallest share of a link; `None` is 0.99 (published: 0.099 for ten
            segments), weakly 0.95.
        variant: see `AudioGuidedAttention`.

    Example:
        >>> outputs = PSP(4, 8, num_classes=3)(torch.rand(2, 10, 4), torch.rand(2, 10, 36, 8))
        >>> {name: tuple(value.shape) for name, value in outputs.items()}
        {'segments': (2, 10, 4), 'similarity': (2, 10)}
    """

    def __init__(
        self,
        audio_dim: Count,
        visual_dim: Count,
        num_classes: Count,
        weak: bool = False,
        threshold: NonNegative | None = None,
        variant: Variant = "paper",
    ) -> None:
        super().__init__(audio_dim, visual_dim, num_classes, weak)
        narrow = audio_dim if weak else WIDTH // 2
        self.audio_in = (
            nn.Identity()
            if weak
            else nn.Sequential(nn.Linear(audio_dim, WIDTH, bias=False), nn.Linear(WIDTH, narrow, bias=False))
        )
        self.attention = AudioGuidedAttention(narrow, visual_dim, variant)
        self.visual_in = (
            nn.Linear(visual_dim, WIDTH // 2)
            if weak
            else nn.Sequential(nn.Linear(visual_dim, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH // 2, bias=False))
        )
        self.audio, self.visual = bilstm(narrow, WIDTH // 2), bilstm(WIDTH // 2, WIDTH // 2)
        self.exchange = Propagation((0.95 if weak else 0.99) if threshold is None else threshold, weak)
        self.out = nn.Sequential(
            nn.Linear(WIDTH, 64, bias=False), nn.ReLU(), nn.Linear(64, num_classes + 1, bias=False)
        )
        self.weight = nn.Linear(num_classes + 1, 1, bias=False) if weak else None
        xavier(self.out)

    def forward(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, N, C_v) -> `segments`, see `EventHead`, and `similarity` (B, T).

        `similarity` is the share of each segment in the clip's cosine similarities of sound and sight, those below 0
        counted as 0; the loss `losses.pair_similarity` trains it.
        """
        audio = self.audio_in(audio)
        seen = self.visual_in(self.attention(audio, visual))
        seen, heard = self.exchange(recurrent(self.audio, audio)[0], recurrent(self.visual, seen)[0])
        segments = self.out((seen + heard) / 2)
        if self.weak:
            segments = segments * torch.sigmoid(torch.relu(self.weight(segments)))
            return {"segments": segments, "clip": segments.mean(1)}
        alike = torch.relu(F.cosine_similarity(seen, heard, dim=-1, eps=1e-12))
        return {"segments": segments, "similarity": alike / (alike.sum(-1, keepdim=True) + 1e-8)}
