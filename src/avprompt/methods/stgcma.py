r"""STG-CMA: frozen attention used over space and over time, and bottleneck adapters that exchange (Wang et al., 2024).

At every block pair, for the tokens x_m of each modality m, with the frozen blocks [ ] and adapters { } of three kinds:

    temporal   x_m += { up gelu down } [ attention over the T segments at each token ]
    spatial    y_m  = [ attention of the segment ];   x_m += y_m + { up (h_m + gate_m softmax(h_m h_n^T) h_n) }
    MLP        y_m  = [ MLP ];                        x_m += y_m + { up (h_m + gate_m softmax(h_m h_n^T) h_n) }

with h_m = gelu(down y_m), h_n that of the other modality. In Swin, the spatial exchange stays within the attention's
windows, and the temporal step runs in every other block with a learned bias for each distance in time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.errors import ArgumentError, ShapeError
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.ranges import Count, Dropout, Positive


class Adapter(nn.Module):
    """Bottleneck whose upper half is zero at the start.

    Args:
        dim: channels C.
        hidden: channels h between the two maps.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def lower(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., h)."""
        return F.gelu(self.down(x))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.up(self.lower(x))


class TimeBias(nn.Module):
    """A learned bias of attention for each head and distance in time.

    Args:
        segments: T.
        heads: of the attention.
    """

    def __init__(self, segments: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2 * segments - 1, heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        place = torch.arange(segments)
        self.register_buffer("index", place[:, None] - place + segments - 1, persistent=False)

    def forward(self) -> Tensor:
        """(heads, T, T)."""
        return self.table[self.index].permute(2, 0, 1)


class STGCMA(PromptMethod):
    """Temporal, spatial and MLP adapters in every block pair, of which the last two exchange.

    On towers of different width both modalities get the hidden width of the visual one, and where their grids differ,
    they exchange over all tokens: an extension that is not the authors'. In blocks with windows the temporal step
    stands in every other block pair of a stage, as in their Swin, and learns its own biases; elsewhere give the encoder
    `segments`, whose temporal embedding is the authors' in CLIP.

    Args:
        ratio: hidden width of an adapter over that of the visual tokens, rounded down; a list has one for each stage.
        temporal: temporal adapters and the step that they belong to.
        spatial: spatial adapters.
        mlp: MLP adapters.
        exchange: whether spatial and MLP adapters exchange; off, each adapts its own modality alone.
        segments: T, for the biases of time in blocks with windows.
        drop_path: rate of stochastic depth of the temporal step in the last block pair; it grows from 0.

    Raises:
        ArgumentError: all adapters are off; on `attach`, blocks that cannot attend over time, a width of less than one,
            or another number of ratios than stages.
        ShapeError: other than `segments` segments, in blocks with windows.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyCLIP
        >>> backbone = AVPromptBackbone(TinyCLIP("none"), "shared", STGCMA(ratio=0.25))
        >>> backbone.prompts.visual_spatial[0].down.weight.shape, len(backbone.prompts.audio_temporal)
        (torch.Size([24, 96]), 4)
    """

    identity_at_start = True

    def __init__(
        self,
        ratio: Positive | list[Positive] = 0.03125,
        temporal: bool = True,
        spatial: bool = True,
        mlp: bool = True,
        exchange: bool = True,
        segments: Count = 10,
        drop_path: Dropout = 0.2,
    ) -> None:
        super().__init__()
        if not (temporal or spatial or mlp):
            raise ArgumentError("temporal, spatial, mlp", "all false", "one of them", "Use avprompt.methods.NoPrompts.")
        self.kinds = tuple(name for name, on in (("temporal", temporal), ("spatial", spatial), ("mlp", mlp)) if on)
        self.exchange = exchange and (spatial or mlp)
        self.ratio, self.segments, self.drop_path = ratio, segments, drop_path

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        widths = self._widths([visual for visual, _ in sites])
        self.times = [] if "temporal" not in self.kinds else self._places(sites)
        for name in self.kinds:
            for side, modality in enumerate(("visual", "audio")):
                self.add_module(
                    f"{modality}_{name}",
                    nn.ModuleList(
                        Adapter(site[side].dim, width)
                        for place, (site, width) in enumerate(zip(sites, widths))
                        if name != "temporal" or place in self.times
                    ),
                )
        for side, modality in enumerate(("visual", "audio")):
            biased = [sites[place][side] for place in self.times]
            self.add_module(
                f"{modality}_time_bias",
                nn.ModuleList(TimeBias(self.segments, spec.heads) if spec.window else nn.Identity() for spec in biased),
            )
            if self.exchange:
                self.register_parameter(f"{modality}_gate", nn.Parameter(torch.zeros(len(sites))))
        last = max(1, len(sites) - 1)
        self.drops = nn.ModuleList(DropPath(self.drop_path * place / last) for place in self.times)

    def _widths(self, specs: list[BlockSpec]) -> list[int]:
        """Hidden width of the adapters of each block pair."""
        stages = sorted({spec.stage for spec in specs})
        ratios = [self.ratio] * len(stages) if isinstance(self.ratio, (int, float)) else list(self.ratio)
        if len(ratios) != len(stages):
            raise ArgumentError("ratio", self.ratio, f"a number, or {len(stages)}, one for each stage", "Correct it.")
        widths = [int(spec.dim * ratios[stages.index(spec.stage)]) for spec in specs]
        if min(widths) < 1:
            raise ArgumentError("ratio", self.ratio, "adapters at least one channel wide", "Choose a larger one.")
        return widths

    @staticmethod
    def _places(sites: list[tuple[BlockSpec, BlockSpec]]) -> list[int]:
        """Block pairs with a temporal step: every other one of a stage where there are windows, else all."""
        places, stages = [], [visual.stage for visual, _ in sites]
        for place, site in enumerate(sites):
            if not all(spec.plain or spec.window for spec in site):
                raise ArgumentError(
                    "temporal",
                    True,
                    "blocks that can attend over time in both encoders",
                    "Use CLIP, Swin or HTS-AT, or set temporal: false.",
                )
            if not any(spec.window for spec in site) or (place - stages.index(stages[place])) % 2 == 0:
                places.append(place)
        return places

    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        if site in self.times:
            place = self.times.index(site)
            visual = visual + self._over_time("visual", place, visual_block, visual, state)
            audio = audio + self._over_time("audio", place, audio_block, audio, state)
        windows = visual_block if self._aligned(visual_block.spec, audio_block.spec) else None
        read = visual_block.attention(visual), audio_block.attention(audio)
        added = self._adapt("spatial", site, read, windows)
        visual, audio = visual + read[0] + added[0], audio + read[1] + added[1]
        read = visual_block.mlp(visual), audio_block.mlp(audio)
        added = self._adapt("mlp", site, read, None)
        return visual + read[0] + added[0], audio + read[1] + added[1]

    @staticmethod
    def _aligned(visual: BlockSpec, audio: BlockSpec) -> bool:
        """Whether both cut one grid into the same windows."""
        return bool(visual.window) and (visual.window, visual.grid) == (audio.window, audio.grid)

    def _over_time(self, modality: str, place: int, block: FrozenBlock, x: Tensor, state: PromptState) -> Tensor:
        """What the temporal step adds (B*T, N, C)."""
        module, bias = getattr(self, f"{modality}_time_bias")[place], None
        if isinstance(module, TimeBias):
            if state.segments != self.segments:
                raise ShapeError(
                    "frames, audio",
                    f"{state.segments} segments",
                    f"{self.segments}",
                    "Make the method's `segments` the data module's.",
                )
            bias = module()
        series = state.clips(x).transpose(1, 2)  # (B, N, T, C)
        read = block.attend_series(series.flatten(0, 1), bias)
        added = self.drops[place](getattr(self, f"{modality}_temporal")[place](read))
        return added.view(series.shape).transpose(1, 2).flatten(0, 1)

    def _adapt(
        self, kind: str, site: int, read: Sequence[Tensor], windows: FrozenBlock | None
    ) -> Sequence[Tensor | int]:
        """What the adapters of a kind add to both modalities (B*T, N, C); 0 where they are off."""
        if kind not in self.kinds:
            return 0, 0
        adapters = [getattr(self, f"{modality}_{kind}")[site] for modality in ("visual", "audio")]
        hidden = [adapter.lower(x) for adapter, x in zip(adapters, read)]
        if self.exchange:
            cut = hidden if windows is None else [windows.to_windows(h) for h in hidden]
            logits = cut[0] @ cut[1].transpose(-1, -2)
            seen = [
                torch.softmax(logits, dim=-1).to(cut[1].dtype) @ cut[1],
                torch.softmax(logits.transpose(-1, -2), dim=-1).to(cut[0].dtype) @ cut[0],
            ]
            seen = seen if windows is None else [windows.from_windows(h) for h in seen]
            gates = self.visual_gate[site], self.audio_gate[site]
            hidden = [own + gate * other for own, gate, other in zip(hidden, gates, seen)]
        return [adapter.up(h) for adapter, h in zip(adapters, hidden)]
