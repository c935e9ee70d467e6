r"""MoMA-like: bottleneck adapters on two paths for video, on one for audio, and one that both modalities share.

Not a reproduction. Of MoMA (Wang et al.) the abstract was available: dual-path adaptation over space and time for
video, acoustic-aware adaptation for audio, audio-visual adaptation for both. Its published totals, 16.5 M on ViT-B and
57.7 M on ViT-L, are near nine bottlenecks of an eighth of the width in every block, which is what is built here:

    visual   x += { behind }([ attention over T ]) + { beside }(x)
             x += y + { behind }(y) + { beside }(x),  y = [ attention of the segment ], then y = [ MLP ]
    audio    x += y + { behind }(y),                  y likewise                               [ ] frozen, { } trained
    both     x_m += up softmax(h_m h_n^T / sqrt(h)) h_n,  h = gelu(down x): one bottleneck for both modalities
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.errors import ArgumentError
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.methods.stgcma import Adapter
from avprompt.ranges import Count

#: bottlenecks of a block pair; the visual ones stand behind a frozen branch and beside it
VISUAL, AUDIO = ("time", "space", "mlp"), ("space", "mlp")


class MoMALike(PromptMethod):
    """Nine bottlenecks in every block pair: a reading of MoMA, and not a reproduction (see the module).

    Args:
        reduction: channels over the width of a bottleneck, rounded down.

    Raises:
        ArgumentError: on `attach`, blocks of different width, blocks that cannot attend over time, or a bottleneck
            without channels.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyCLIP
        >>> backbone = AVPromptBackbone(TinyCLIP("none"), "shared", MoMALike())
        >>> sum(p.numel() for p in backbone.prompts.parameters())  # 9 (2 C h + h + C) in four blocks, h = C / 8
        86832
    """

    identity_at_start = True

    def __init__(self, reduction: Count = 8) -> None:
        super().__init__()
        self.reduction = reduction

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        for visual, audio in sites:
            if visual.dim != audio.dim:
                raise ArgumentError(
                    "encoders",
                    f"blocks of {visual.dim} and {audio.dim} channels",
                    "blocks of one width, for the bottleneck that both share",
                    "Use audio: shared.",
                )
            if not (visual.plain or visual.window):
                raise ArgumentError(
                    "visual",
                    "blocks that cannot attend over time",
                    "blocks that can",
                    "Use CLIP or another vision transformer without rotary positions, or Swin.",
                )
            if not 1 <= self.reduction <= visual.dim:
                raise ArgumentError(
                    "reduction", self.reduction, f"1 to {visual.dim}, the channels of a block", "Correct it."
                )

        def adapters() -> nn.ModuleList:
            return nn.ModuleList(Adapter(visual.dim, visual.dim // self.reduction) for visual, _ in sites)

        self.behind, self.beside = (nn.ModuleDict({name: adapters() for name in VISUAL}) for _ in range(2))
        self.audio = nn.ModuleDict({name: adapters() for name in AUDIO})
        self.both = adapters()

    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        series = state.clips(visual).transpose(1, 2)  # (B, N, T, C)
        over_time = visual_block.attend_series(series.flatten(0, 1)).view(series.shape)
        visual = visual + self._paths("time", site, over_time.transpose(1, 2).flatten(0, 1), visual)
        for name, branch in (("space", "attention"), ("mlp", "mlp")):
            seen, heard = getattr(visual_block, branch)(visual), getattr(audio_block, branch)(audio)
            visual = visual + seen + self._paths(name, site, seen, visual)
            audio = audio + heard + self.audio[name][site](heard)
        shared = self.both[site]
        own = shared.lower(visual), shared.lower(audio)
        logits = own[0] @ own[1].transpose(1, 2) * own[0].shape[-1] ** -0.5
        read = (
            torch.softmax(logits, dim=-1).to(own[1].dtype) @ own[1],
            torch.softmax(logits.transpose(1, 2), dim=-1).to(own[0].dtype) @ own[0],
        )
        return visual + shared.up(read[0]), audio + shared.up(read[1])

    def _paths(self, name: str, site: int, branch: Tensor, x: Tensor) -> Tensor:
        """What both paths add at a frozen branch, (B*T, N, C)."""
        return self.behind[name][site](branch) + self.beside[name][site](x)
