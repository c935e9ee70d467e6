"""Toy methods, one for each point of the contract of prompt methods; the conformance suite runs them like the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from avprompt.features import AVFeatures
from avprompt.methods import PromptMethod, PromptState


class PlainStep(PromptMethod):
    """Steps that run both blocks as they are."""

    def step(
        self, site: int, visual_block: Any, audio_block: Any, visual: Tensor, audio: Tensor, state: PromptState
    ) -> tuple[Tensor, Tensor]:
        return visual_block(visual), audio_block(audio)


class SideNetwork(PlainStep):
    """`gradient = "method"`: a ladder beside the encoders reads every block pair; only `pool` shows what it learned.

    It never says `state.frozen()`: the backbone keeps the frozen blocks free of a graph by itself, also behind tokens that
    the method has changed.
    """

    gradient = "method"
    identity_at_start = True

    def attach(self, sites: list, lone: Mapping[str, list]) -> None:
        super().attach(sites, lone)
        self.down = nn.ModuleDict(
            {
                side: nn.ModuleList(nn.Linear(site[place].dim, 6) for site in sites)
                for place, side in enumerate(("visual", "audio"))
            }
        )
        self.start = nn.Parameter(torch.randn(6))
        self.up = nn.ModuleDict({side: nn.Linear(6, spec.dim) for side, spec in zip(("visual", "audio"), self.last)})

    def begin(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        state.memory["ladder"] = self.start.expand(len(visual), -1)
        return visual + 0 * self.start.sum(), audio

    def step(
        self, site: int, visual_block: Any, audio_block: Any, visual: Tensor, audio: Tensor, state: PromptState
    ) -> tuple[Tensor, Tensor]:
        visual, audio = super().step(site, visual_block, audio_block, visual, audio, state)
        seen = sum(self.down[side][site](x.mean(1)) for side, x in (("visual", visual), ("audio", audio)))
        state.memory["ladder"] = torch.tanh(state.memory["ladder"] + seen)
        return visual, audio

    def pool(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        plain = super().pool(visual, audio, state)
        return tuple(x + self.up[side](state.memory["ladder"]) for side, x in zip(("visual", "audio"), plain))


class AuxiliaryLoss(PromptMethod):
    """A scale a block pair, and a loss that draws it to one; it also depends on what flows through."""

    identity_at_start = True

    def attach(self, sites: list, lone: Mapping[str, list]) -> None:
        super().attach(sites, lone)
        self.scale = nn.ParameterList(nn.Parameter(torch.ones(2)) for _ in sites)

    def step(
        self, site: int, visual_block: Any, audio_block: Any, visual: Tensor, audio: Tensor, state: PromptState
    ) -> tuple[Tensor, Tensor]:
        visual, audio = visual_block(visual) * self.scale[site][0], audio_block(audio) * self.scale[site][1]
        state.losses[f"draw@{site}"] = (self.scale[site] - 2).square().sum() + 1e-3 * visual.square().mean()
        return visual, audio


class LowRank(nn.Module):
    """A low-rank map behind a gate that is zero at the start."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * self.up(self.down(x))


class EditedLayers(PromptMethod):
    """Low-rank changes of every linear layer of both blocks, zero at the start."""

    layers = {
        "q": ("dim", "dim"),
        "k": ("dim", "dim"),
        "v": ("dim", "dim"),
        "proj": ("dim", "dim"),
        "fc1": ("dim", "hidden"),
        "fc2": ("hidden", "dim"),
    }

    identity_at_start = True

    def attach(self, sites: list, lone: Mapping[str, list]) -> None:
        super().attach(sites, lone)
        self.low = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleDict(
                    {name: LowRank(getattr(spec, i), getattr(spec, o)) for name, (i, o) in self.layers.items()}
                )
                for spec in site
            )
            for site in sites
        )

    def step(
        self, site: int, visual_block: Any, audio_block: Any, visual: Tensor, audio: Tensor, state: PromptState
    ) -> tuple[Tensor, Tensor]:
        done = []
        for block, x, low in ((visual_block, visual, self.low[site][0]), (audio_block, audio, self.low[site][1])):
            x = x + block.attention(x, {name: low[name] for name in ("q", "k", "v", "proj")})
            done.append(x + block.mlp(x, {name: low[name] for name in ("fc1", "fc2")}))
        return done[0], done[1]


class LoneShift(PlainStep):
    """Changes the blocks that have no partner, and nothing else."""

    identity_at_start = True

    def attach(self, sites: list, lone: Mapping[str, list]) -> None:
        super().attach(sites, lone)
        self.shift = nn.ModuleDict(
            {
                side: nn.ParameterList(nn.Parameter(torch.zeros(spec.dim)) for spec in specs)
                for side, specs in lone.items()
            }
        )

    def lone(self, modality: str, index: int, block: Any, tokens: Tensor, state: PromptState) -> Tensor:
        return block(tokens) + self.shift[modality][index]


class OwnOutputs(PlainStep):
    """Names of its own for maps and tables, an input of its own, and tokens, vectors and pyramid written anew."""

    extra_inputs = ("audio", "weights")
    identity_at_start = True

    def attach(self, sites: list, lone: Mapping[str, list]) -> None:
        super().attach(sites, lone)
        self.scale = nn.Parameter(torch.ones(4))

    @property
    def widths(self) -> tuple[int, int]:
        visual, audio = super().widths
        return 2 * visual, audio + 1

    def end(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        state.memory["energy"] = state.inputs["audio"].square().mean(-1).flatten()
        return visual * self.scale[0], audio * self.scale[1]

    def pool(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        v, a = super().pool(visual, audio, state)
        if state.wants_maps:
            first = visual[:, self.last[0].prefix :].norm(dim=-1).unflatten(1, self.last[0].grid)
            state.maps["saliency"] = state.clips(first)
            state.tables["router"] = state.clips(torch.stack((v.norm(dim=-1), a.norm(dim=-1)), 1).softmax(1))
        weights = state.inputs["weights"].flatten().unsqueeze(1)
        return (
            torch.cat((v, weights * v), 1) * self.scale[2],
            torch.cat((a, state.memory["energy"].unsqueeze(1)), 1) * self.scale[3],
        )

    def finish(self, features: AVFeatures, state: PromptState) -> AVFeatures:
        return replace(features, pyramid=[2 * stage for stage in features.pyramid])
