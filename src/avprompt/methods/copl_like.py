"""CoPL-like: prompts of each modality, and prompts that the other modality chooses from a bank.

Not a reproduction. Of CoPL (collaborative prompt learning, ACM Multimedia 2024) the abstract was available: prompts of
a modality, prompts of interaction, a prompt bank that couples both for each instance, and about one hundredth of the
parameters. A published total of 1.7 M with a linear head of 1.6 M leaves 4 to 8 vectors a block on Swin-V2-L; here they
are 8. How the bank is read is this suite's choice.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import BlockSpec, FrozenBlock
from avprompt.errors import ArgumentError
from avprompt.methods.base import PromptMethod, PromptState
from avprompt.ranges import Count


class Bank(nn.Module):
    """The prompts of one modality in one block.

    Args:
        own: block that sees them.
        other: block of the other modality.
        num_tokens: prompts of the modality alone.
        entries: of the bank.
    """

    def __init__(self, own: BlockSpec, other: BlockSpec, num_tokens: int, entries: int) -> None:
        super().__init__()
        self.tokens, self.bank = (
            nn.Parameter(nn.init.normal_(torch.empty(count, own.dim), std=0.02)) for count in (num_tokens, entries)
        )
        self.map = nn.Linear(other.dim, own.dim) if own.dim != other.dim else nn.Identity()

    def forward(self, other: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B*T, M, D) of the other modality -> prompts (B*T, n + 1, C), weights of the entries (B*T, m)."""
        asked = F.layer_norm(self.map(other.mean(1)), (self.bank.shape[-1],))
        weights = torch.softmax(asked @ self.bank.T, dim=-1)
        chosen = (weights.to(self.bank.dtype) @ self.bank).unsqueeze(1)
        return torch.cat((self.tokens.expand(len(other), -1, -1), chosen), dim=1), weights


class CoPLLike(PromptMethod):
    """Prompts of each block pair, one of which the other modality chooses: a reading of CoPL, and not a reproduction
    (see the module).

    As in `VPT`, every token of a block sees its prompts as further keys and values. n of them are the same for all
    segments; one more is the sum of a bank's entries, weighed by a softmax of their products with the mean of the other
    modality's tokens (normed). Blocks without a partner have none. Between blocks of different width a linear map
    brings that mean to the width of the bank, an extension that the published count leaves no room for.

    Args:
        num_tokens: prompts n of a modality alone, of a block.
        entries: of the bank of a modality, of a block.

    Raises:
        ArgumentError: a number below 1.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinySwinV2
        >>> backbone = AVPromptBackbone(TinySwinV2("none"), "shared", CoPLLike())
        >>> sum(p.numel() for p in backbone.prompts.parameters())  # 8 vectors in blocks of width 40, 40, 80, 80
        1920
    """

    def __init__(self, num_tokens: Count = 2, entries: Count = 2) -> None:
        super().__init__()
        for name, value in (("num_tokens", num_tokens), ("entries", entries)):
            if value < 1:
                raise ArgumentError(name, value, "at least 1", "Choose another value.")
        self.num_tokens, self.entries = num_tokens, entries
        self.table_columns = {"bank": tuple(f"entry {place + 1}" for place in range(entries))}

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        for side, modality in enumerate(("visual", "audio")):
            self.add_module(
                modality,
                nn.ModuleList(Bank(site[side], site[1 - side], self.num_tokens, self.entries) for site in sites),
            )

    def step(
        self,
        site: int,
        visual_block: FrozenBlock,
        audio_block: FrozenBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        found = []
        for modality, block, own, other in (
            ("visual", visual_block, visual, audio),
            ("audio", audio_block, audio, visual),
        ):
            prompts, weights = getattr(self, modality)[site](other)
            own = own + block.attention(own, prompts=prompts)
            found.append(own + block.mlp(own))
            if state.wants_maps:
                state.tables[f"bank@{site}_{modality}"] = state.clips(weights)
        return tuple(found)
