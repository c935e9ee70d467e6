"""Segmentation head of AVSBench, as in DG-SCT's released network.

    stage k of the visual encoder -[Linear, resize]-> map k --(x)--[TPAVI]--> map k -----+
                                                              |        |                 v
    audio (B, T, C_a) -[Linear]- sound --[temporal gates]-----+--(x)---+    top down: [fuse, x2] ... [fuse, x2] -> mask

TPAVI (Zhou et al., ECCV 2022) with dot-product attention has no softmax, and the sound is the same at every position.
Therefore the product over all pairs of positions can be computed exactly without ever building their square matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import BlockSpec
from avprompt.errors import ArgumentError
from avprompt.heads.temporal import TemporalGate
from avprompt.precision import wide

SOUND = 128  # channels of the sound in the released network
#: channels of the stages of AVSBench's encoder, and the dilations of its convolutions
AVSBENCH, DILATIONS = (64, 128, 320, 512), (3, 6, 12, 18)


class TPAVI(nn.Module):
    """Temporal pixel-wise audio-visual interaction (TPAVI), computed exactly at cost T*H*W instead of (T*H*W)^2.

    Args:
        width: channels C of the maps.

    Example:
        >>> maps, sound = TPAVI(16)(torch.rand(2, 5, 49, 16), torch.rand(2, 5, 128))
        >>> tuple(maps.shape), tuple(sound.shape)
        ((2, 5, 49, 16), (2, 5, 16))
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.align = nn.Linear(SOUND, width)
        self.query, self.key, self.value = (nn.Linear(width, width // 2) for _ in range(3))
        self.expand, self.bn, self.norm = nn.Linear(width // 2, width), nn.BatchNorm1d(width), nn.LayerNorm(width)
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, T, N, C), sound (B, T, 128) -> maps (B, T, N, C), sound in their channels (B, T, C)."""
        sound = self.align(sound)
        # theta (phi^T g): phi is the same at all N positions of a segment, so g is summed over them first
        values = self.value(x).sum(2)
        kernel = self.key(sound).transpose(1, 2) @ values / (x.shape[1] * x.shape[2])
        y = self.expand(self.query(x) @ kernel.unsqueeze(1))
        y = self.bn(y.flatten(0, 2)).view_as(x)
        return self.norm(y + x), sound


class Level(nn.Module):
    """One scale of the decoder: projection, resizing, temporal gates in both directions, TPAVI.

    Args:
        spec: the encoder's last block of the stage.
        size: height and width of the resized map.
        width: its channels C.
        gates: strength of the temporal gates: audio guides video, video guides audio; 0 leaves one out.
        narrow: channels before dilated convolutions that follow the resizing; 0 has none.
        project: project the stage to these channels; otherwise the convolutions read it as it is.
    """

    def __init__(
        self, spec: BlockSpec, size: int, width: int, gates: tuple[float, float], narrow: int = 0, project: bool = True
    ) -> None:
        super().__init__()
        self.grid, self.prefix, self.size, (self.a2v, self.v2a) = spec.grid, spec.prefix, size, gates
        self.project, self.tpavi = nn.Linear(spec.dim, narrow or width) if project else nn.Identity(), TPAVI(width)
        self.dilated = nn.ModuleList(
            nn.Conv2d(narrow, width, 3, padding=wide, dilation=wide) for wide in (DILATIONS if narrow else ())
        )
        for convolution in self.dilated:
            nn.init.normal_(convolution.weight, std=0.01)
        self.audio_gate = TemporalGate(SOUND, width, width) if self.a2v else None
        self.pooled = nn.Linear(width, width) if self.v2a else None
        self.visual_gate = TemporalGate(width, 2 * width, width) if self.v2a else None
        self.dropout = nn.Dropout(0.2)

    def resize(self, tokens: Tensor) -> Tensor:
        """(B, T, N, C) -> (B, T, size, size, C)."""
        maps = self.project(tokens[:, :, self.prefix :]).flatten(0, 1).transpose(1, 2).unflatten(2, self.grid)
        if self.grid != (self.size, self.size):
            maps = F.interpolate(wide(maps), (self.size, self.size), mode="bicubic").to(maps.dtype)
        maps = sum(convolution(maps) for convolution in self.dilated) if self.dilated else maps
        return maps.permute(0, 2, 3, 1).unflatten(0, tokens.shape[:2])

    def gate(self, maps: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, T, h, w, C), sound (B, T, 128) -> gated maps, and the gate (B, T, 1) by which vision guides
        audio."""
        opened = maps.new_zeros(*maps.shape[:2], 1)
        if self.visual_gate is not None:
            opened = self.visual_gate(self.dropout(F.relu(self.pooled(maps.mean((2, 3))))))[2]
        if self.audio_gate is not None:
            maps = maps * (1 + self.a2v * self.audio_gate(sound)[2])[..., None, None]
        return maps, opened

    def interact(self, maps: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, T, h, w, C), sound (B, T, 128) -> maps (B*T, C, h, w), sound (B, T, C)."""
        maps, sound = self.tpavi(maps.flatten(2, 3), sound)
        return maps.flatten(0, 1).transpose(1, 2).unflatten(2, (self.size, self.size)), sound


class ResidualUnit(nn.Module):
    """Two 3 x 3 convolutions after ReLUs, and a residual connection.

    Args:
        width: channels C.
        rectified: take the residual after the first ReLU, which is the effect of the in-place ReLU of the released
            code.
    """

    def __init__(self, width: int, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B*T, C, h, w) -> the same shape."""
        activated = F.relu(x)
        return self.conv2(F.relu(self.conv1(activated))) + (activated if self.rectified else x)


class Fusion(nn.Module):
    """Adds a finer map to the coarser one, refines the sum, and doubles its size.

    Args:
        width: channels C.
        skip: whether there is a coarser map.
        rectified: see `ResidualUnit`.
    """

    def __init__(self, width: int, skip: bool, rectified: bool) -> None:
        super().__init__()
        self.skip, self.refine = ResidualUnit(width, rectified) if skip else None, ResidualUnit(width, rectified)

    def forward(self, own: Tensor, above: Tensor | None) -> Tensor:
        """Map of this scale (B*T, C, h, w), coarser map of the same shape or `None` -> (B*T, C, 2h, 2w)."""
        x = own if above is None else above + self.skip(own)
        return F.interpolate(self.refine(x), scale_factor=2, mode="bilinear", align_corners=True)


class AVSDecoder(nn.Module):
    """Decoder over the stages of the visual encoder, guided by pooled audio; as released, without unused parts.

    Args:
        audio_dim: channels of the audio features.
        stages: the last block of each visual stage, finest first.
        mask_size: height and width of the masks; the finest map is a quarter of it.
        gates: strength gamma of the temporal gates: audio guides video, video guides audio (0.05 in the released
            network).
        matching: also return what the loss of MS3 compares.
        width: channels C of the maps, from which all other widths follow.
        rectified: see `ResidualUnit`; it also rectifies the maps that the loss of MS3 compares, as released.
        dilated: project the stages to AVSBench's 64, 128, 320 and 512 channels (for a width of 256) and sum four
            dilated convolutions, as LAVISH and STG-CMA do; otherwise project to the width at once (DG-SCT).
        project: `False` is AVSBench's own decoder: the dilated convolutions read the stages as they are, and TPAVI the
            sound, which must have 128 channels.

    Raises:
        ArgumentError: the mask size is no multiple of what the stages need, the width no multiple of 8, more than four
            stages with `dilated`, or `project: false` without `dilated` or with other sound.

    Example:
        >>> stages = [BlockSpec(8, (8, 8), 0), BlockSpec(16, (4, 4), 1)]
        >>> head = AVSDecoder(audio_dim=6, stages=stages, mask_size=32, width=16)
        >>> head(torch.rand(1, 5, 6), [torch.rand(1, 5, 64, 8), torch.rand(1, 5, 16, 16)])["masks"].shape
        torch.Size([1, 5, 32, 32])
    """

    def __init__(
        self,
        audio_dim: int,
        stages: list[BlockSpec],
        mask_size: int = 224,
        gates: tuple[float, float] = (0.05, 0.05),
        matching: bool = False,
        width: int = 256,
        rectified: bool = True,
        dilated: bool = False,
        project: bool = True,
    ) -> None:
        super().__init__()
        if not project and (not dilated or audio_dim != SOUND):
            raise ArgumentError(
                "project",
                f"false, with {audio_dim} channels of sound and dilated: {dilated}",
                f"{SOUND} channels and dilated: true",
                "Set it to true.",
            )
        if dilated and len(stages) > len(AVSBENCH):
            raise ArgumentError(
                "dilated", f"true, with {len(stages)} stages", f"at most {len(AVSBENCH)}", "Set it to false."
            )
        narrow = [channels * width // 256 for channels in AVSBENCH] if dilated else [0] * len(stages)
        narrow = narrow if project else [spec.dim for spec in stages]
        step = 4 * 2 ** (len(stages) - 1)
        if mask_size % step:
            raise ArgumentError(
                "mask_size", mask_size, f"a multiple of {step}, for {len(stages)} stages", "Choose another mask_size."
            )
        if width % 8:
            raise ArgumentError("width", width, "a multiple of 8", "Choose another width.")
        self.gates, self.matching, self.rectified = gates, matching, rectified
        self.audio_project = nn.Linear(audio_dim, SOUND) if project else nn.Identity()
        self.levels = nn.ModuleList(
            Level(spec, mask_size // (4 * 2**k), width, gates, channels, project)
            for k, (spec, channels) in enumerate(zip(stages, narrow))
        )
        self.fusions = nn.ModuleList(Fusion(width, k + 1 < len(stages), rectified) for k in range(len(stages)))
        self.output = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(width // 2, width // 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 8, 1, 1),
        )

    def forward(self, audio: Tensor, pyramid: list[Tensor]) -> dict[str, Tensor]:
        """Audio (B, T, C_a), tokens of each visual stage (B, T, N, C) -> outputs.

        Returns:
            `masks` (B, T, mask_size, mask_size) logits; with `matching` also `matched_visual` and `matched_audio`
            (B, T, stages, C): maps averaged under the predicted mask, and sound in their channels.
        """
        sound = self.audio_project(audio)
        gated = [level.gate(level.resize(tokens), sound) for level, tokens in zip(self.levels, pyramid, strict=True)]
        opened = torch.stack([gate for _, gate in gated]).mean(0)
        sound = sound * (1 + self.gates[1] * opened)
        maps, sounds = zip(*(level.interact(m, sound) for level, (m, _) in zip(self.levels, gated)))
        x = None
        for fusion, own in zip(reversed(self.fusions), reversed(maps)):
            x = fusion(own, x)
        masks = self.output(x)
        out = {"masks": masks.squeeze(1).unflatten(0, audio.shape[:2])}
        if self.matching:
            seen = [
                (F.relu(m) if self.rectified else m) * torch.sigmoid(F.adaptive_avg_pool2d(masks, m.shape[-2:]))
                for m in maps
            ]
            out["matched_visual"] = torch.stack([m.mean((2, 3)) for m in seen], 1).unflatten(0, audio.shape[:2])
            out["matched_audio"] = torch.stack(sounds, 2)
        return out
