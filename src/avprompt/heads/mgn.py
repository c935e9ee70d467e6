"""Parsing head of AVVP, as in DG-SCT's released network: a temporal gate, then MGN (Mo and Tian, NeurIPS 2022).

    audio  (B, T, C_a) -[Linear]-+--------------------------------[grouping, audio tokens]- audio events -+
                                 +-[temporal gate]-+                     (seeded by vision)               |
    visual (B, T, C_v) -[Linear]------------------(x)-[fusion]-+-[grouping, visual tokens]- visual events -+-[grouping]
    r2plus1d (B, T, 512) -[Linear]-----------------------------+                                            video events

Grouping gathers T segments into one token for each class; the share of a segment in a class says when the class occurs.
"""

from __future__ import annotations

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.errors import ShapeError
from avprompt.heads.temporal import TemporalGate
from avprompt.precision import wide

WIDTH, HEADS, TEMPORAL_WIDTH, DROP_PATH = 128, 8, 64, 0.1  # of the released network
DEPTH = {"audio": 3, "visual": 3, "both": 6}


class CrossAttention(nn.Module):
    """Multi-head attention with separate projections of queries, keys and values.

    Args:
        dim: channels.
        heads: number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Queries (B, N, C), keys (B, S, C) -> (B, N, C)."""
        q, k, v = self.split(self.query(queries)), self.split(self.key(keys)), self.split(self.value(keys))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Assignment(CrossAttention):
    """Distributes every segment over the groups: the softmax runs over groups, not over segments.

    Args:
        dim: channels.
        hard: each segment goes to one group (straight-through estimator), with Gumbel noise in training.
    """

    def __init__(self, dim: int, hard: bool) -> None:
        super().__init__(dim, heads=1)
        self.hard = hard

    def forward(self, groups: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Groups (B, G, C), segments (B, S, C) -> gathered (B, G, C), soft assignment (B, G, S) that sums to 1 over
        G."""
        logits = self.query(groups) @ self.key(segments).transpose(1, 2) * groups.shape[-1] ** -0.5
        soft = wide(logits).softmax(1)
        shares = soft
        if self.hard:
            shares = (
                F.gumbel_softmax(wide(logits), hard=True, dim=1)
                if self.training
                else (F.one_hot(soft.argmax(1), soft.shape[1]).transpose(1, 2) - soft.detach() + soft)
            )
        # the 1 in the denominator keeps groups small that received next to nothing
        shares = shares / (shares.sum(-1, keepdim=True) + 1)
        return self.proj(shares.to(segments.dtype) @ self.value(segments)), soft


class GroupingBlock(nn.Module):
    """Group tokens attend to the segments, then gather them.

    Args:
        groups: number of group tokens G, in and out.
        hard: see `Assignment`.
    """

    def __init__(self, groups: int, hard: bool) -> None:
        super().__init__()
        self.norm_tokens, self.norm_mixed, self.norm_x = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.mix = Mlp(groups, WIDTH // 2, groups)
        self.look, self.norm_look = CrossAttention(WIDTH, HEADS), nn.LayerNorm(WIDTH)
        self.mlp_look = Mlp(WIDTH, 4 * WIDTH)
        self.norm_seen, self.norm_new = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.assign, self.mlp = Assignment(WIDTH, hard), Mlp(WIDTH, 4 * WIDTH)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Segments (B, S, C), tokens (B, G, C) -> groups (B, G, C), soft assignment (B, G, S)."""
        tokens, x = self.norm_tokens(tokens), self.norm_x(x)
        groups = self.norm_mixed(self.mix(tokens.transpose(1, 2)).transpose(1, 2))
        groups = groups + self.look(groups, x)
        groups = self.norm_seen(groups + self.mlp_look(self.norm_look(groups)))
        gathered, soft = self.assign(groups, x)
        groups = gathered + groups
        return groups + self.mlp(self.norm_new(groups)), soft


class ClassAwareGrouping(nn.Module):
    """Transformer over segments and class tokens together, then one group for each class.

    Args:
        depth: transformer layers.
        classes: number of class tokens.
        segments: number T of segments of the other modality that seed the grouping; 0 for none.
    """

    def __init__(self, depth: int, classes: int, segments: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(WIDTH, HEADS, 4.0, qkv_bias=True, drop_path=DROP_PATH, norm_layer=nn.LayerNorm) for _ in range(depth)
        )
        # as released, segments of the other modality are the seeds, with hard grouping
        self.seed = GroupingBlock(segments, hard=True) if segments else None
        self.group = GroupingBlock(classes, hard=False)

    def forward(self, x: Tensor, tokens: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Segments (B, S, C), class tokens (B, G, C) -> groups (B, G, C), soft assignment (B, G, S)."""
        both = torch.cat((x, tokens), dim=1)
        for block in self.blocks:
            both = block(both)
        x, tokens = both.split((x.shape[1], tokens.shape[1]), dim=1)
        if self.seed is not None:
            x, _ = self.seed(x, other)
        return self.group(x, tokens)


class MGNHead(nn.Module):
    """Multi-modal grouping network behind DG-SCT's temporal gate as released, without parts that never influence an
    output.

    Args:
        audio_dim: channels of the audio features.
        visual_dim: channels of the visual features.
        num_classes: event categories.
        segments: number T of segments; token mixing is sized by it.
        video_dim: channels of the r2plus1d features; 0 is a network without them (the published one has 512).
        gates: strength gamma of the temporal gates: audio guides video, video guides audio (0.05 in the released
            network; 0 leaves a direction out).
        gate_audio: let vision gate audio. The released code computes this gate and overwrites it (false).

    Example:
        >>> head = MGNHead(audio_dim=8, visual_dim=12, num_classes=4, segments=10, video_dim=0)
        >>> outputs = head(torch.rand(2, 10, 8), torch.rand(2, 10, 12))
        >>> tuple(outputs["audio_prob"].shape), tuple(outputs["video_prob"].shape)
        ((2, 10, 4), (2, 4))
    """

    def __init__(
        self,
        audio_dim: int,
        visual_dim: int,
        num_classes: int,
        segments: int = 10,
        video_dim: int = 512,
        gates: tuple[float, float] = (0.05, 0.05),
        gate_audio: bool = False,
    ) -> None:
        super().__init__()
        self.gamma_a2v, self.gamma_v2a = gates
        self.audio_project, self.visual_project = nn.Linear(audio_dim, WIDTH), nn.Linear(visual_dim, WIDTH)
        self.video_project = nn.Linear(video_dim, WIDTH) if video_dim else None
        self.fusion = nn.Linear(2 * WIDTH if video_dim else WIDTH, WIDTH)
        self.audio_tokens, self.visual_tokens = (nn.Parameter(torch.zeros(num_classes, WIDTH)) for _ in range(2))
        self.audio_grouping = ClassAwareGrouping(DEPTH["audio"], num_classes, segments)
        self.visual_grouping = ClassAwareGrouping(DEPTH["visual"], num_classes)
        self.joint_grouping = ClassAwareGrouping(DEPTH["both"], num_classes)
        self.audio_score, self.visual_score, self.joint_score = (nn.Linear(WIDTH, 1) for _ in range(3))
        self.token_class = nn.Linear(WIDTH, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        # as released, the gates keep torch's own initialisation
        self.audio_gate = TemporalGate(WIDTH, WIDTH, TEMPORAL_WIDTH) if self.gamma_a2v else None
        self.visual_gate = TemporalGate(WIDTH, WIDTH, TEMPORAL_WIDTH) if gate_audio and self.gamma_v2a else None

    def forward(self, audio: Tensor, visual: Tensor, video: Tensor | None = None) -> dict[str, Tensor]:
        """Audio (B, T, C_a), visual (B, T, C_v), r2plus1d features (B, T, 512) where the network has them -> outputs.

        Returns:
            `audio_prob`, `visual_prob` (B, T, C): probability in the clip times the weight of the segment in (1, 2), as
            released. `audio_video_prob`, `visual_video_prob`, `video_prob` (B, C): probability in the clip, in (0, 1),
            by audio, by vision, by both. `audio_token_logits`, `visual_token_logits` (C, C): predicted class of each
            token.

        Raises:
            ShapeError: the network needs r2plus1d features, and `video_features` are missing or have another shape.
        """
        expected = None if self.video_project is None else (*visual.shape[:2], self.video_project.in_features)
        if expected is not None and (video is None or tuple(video.shape) != expected):
            raise ShapeError(
                "video_features",
                None if video is None else tuple(video.shape),
                f"{expected}",
                "Give the data module `features`, or build the head with video_dim 0.",
            )
        sound, sight = self.audio_project(audio), self.visual_project(visual)
        gates = [
            gate(x)[2] if gate is not None else 0.0 for gate, x in ((self.audio_gate, sound), (self.visual_gate, sight))
        ]
        sight, sound = sight * (1 + self.gamma_a2v * gates[0]), sound * (1 + self.gamma_v2a * gates[1])
        if self.video_project is not None:
            sight = torch.cat((sight, self.video_project(video)), dim=-1)
        sight = self.fusion(sight)
        tokens = [t.expand(len(sight), -1, -1) for t in (self.audio_tokens, self.visual_tokens)]
        seen, seen_when = self.visual_grouping(sight, tokens[1])
        heard, heard_when = self.audio_grouping(sound, tokens[0], sight)
        both, _ = self.joint_grouping(heard, seen)
        out = {"video_prob": self._clip(self.joint_score, both)}
        for name, score, groups, when in (
            ("audio", self.audio_score, heard, heard_when),
            ("visual", self.visual_score, seen, seen_when),
        ):
            clip = self._clip(score, groups)
            out[f"{name}_video_prob"] = clip
            out[f"{name}_prob"] = clip.unsqueeze(1) * (1 + when.softmax(-1)).transpose(1, 2)
        return {
            **out,
            "audio_token_logits": self.token_class(self.audio_tokens),
            "visual_token_logits": self.token_class(self.visual_tokens),
        }

    @staticmethod
    def _clip(score: nn.Linear, groups: Tensor) -> Tensor:
        return torch.sigmoid(wide(score(groups).squeeze(-1)))
