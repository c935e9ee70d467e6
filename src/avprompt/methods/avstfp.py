r"""AV-STFP: temporal, spatial and fusion prompts for one frozen CLIP that sees and hears (Wang et al., BMVC 2025).

At every block pair, for the tokens x_m of each modality m, with the frozen projections of the pair's own block(s):

    temporal   x_m += gate * attention over the T segments at each token, beside learned keys and values
    spatial    x_m +=        attention over the tokens of a segment, beside learned tokens
    fusion     x_m += gate * attention over the tokens of both modalities, beside learned tokens
    MLP        x_m +=        the frozen MLP, once for both modalities where they share it

Prompts are keys and values only: as queries they would give outputs that nothing uses. The paper's text was not
available. The sizes follow from the parameter counts of its poster; the arguments below name every other choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from avprompt.encoders import PlainViTBlock
from avprompt.encoders.base import BlockSpec
from avprompt.errors import ArgumentError
from avprompt.methods.base import Gradient, PromptMethod, PromptState
from avprompt.ranges import Count, Natural

STEPS = ("temporal", "spatial", "fusion", "mlp")


class AVSTFP(PromptMethod):
    """Temporal, spatial and fusion prompts.

    With all three off, it is the variant without prompts of the published ablation: frozen blocks, and what the
    encoders train themselves (temporal embeddings, final norm). A step whose prompts are off is left out, except the
    spatial one, which is the block's own attention. A gate for each attention head is not offered, because the bias of
    the output projection would bypass it.

    Args:
        temporal: temporal prompts.
        spatial: spatial prompts.
        fusion: fusion prompts.
        visual: whether the visual side has temporal and spatial prompts.
        audio: whether the audio side has them.
        num_temporal: l_t, key-value pairs of each modality and block.
        num_spatial: l_s, vectors of each modality and block.
        num_fusion: n_f, vectors of each block.
        gate: scalar gate of the temporal and the fusion step for each block and modality: `zero_scalar` starts at zero,
            so that both steps have no effect at first; `none` follows the poster literally.
        temporal_space: temporal prompts are keys and values (`projected`), or tokens that go through the frozen
            projections (`input`).
        temporal_positions: temporal attention at `all` token positions or at the `class` token alone.
        spatial_kind: spatial prompts are tokens, or `kv`: half of them keys, half values.
        fusion_kind: `joint`, all tokens of both modalities and the prompts in one attention; `cross`, each modality
            reads the other and half of the prompts; `bottleneck`, the prompts read both modalities, each modality
            reads them alone.
        fusion_layout: `separate` step, or `merged` into the spatial one: a single attention over everything, ungated.
        prompt_norm: spatial and fusion prompts, and temporal ones of `input`, go through the block's first norm.
        order: of the four steps.
        layers: indices of the block pairs with prompts; `None` is all.
        init: `normal`, standard deviation 0.02; `zero_values`, the same with temporal values zero; `xavier`, uniform.
        pooling: feature of a segment: the `class` token, or the mean of the grid's tokens (question answering).

    Raises:
        ArgumentError: settings that contradict each other; on `attach`, blocks without projections that prompts can
            use, or of different width.

    Example:
        >>> from avprompt import AVPromptBackbone
        >>> from avprompt.encoders import TinyCLIP
        >>> backbone = AVPromptBackbone(TinyCLIP("none"), "shared", AVSTFP(num_spatial=4))
        >>> backbone.prompts.spatial_audio.shape, backbone.prompts.fusion_prompts.shape  # one set for each block pair
        (torch.Size([4, 4, 96]), torch.Size([4, 2, 96]))
    """

    def __init__(
        self,
        temporal: bool = True,
        spatial: bool = True,
        fusion: bool = True,
        visual: bool = True,
        audio: bool = True,
        num_temporal: Count = 2,
        num_spatial: Count = 10,
        num_fusion: Count = 2,
        gate: Literal["zero_scalar", "none"] = "zero_scalar",
        temporal_space: Literal["projected", "input"] = "projected",
        temporal_positions: Literal["all", "class"] = "all",
        spatial_kind: Literal["token", "kv"] = "token",
        fusion_kind: Literal["joint", "cross", "bottleneck"] = "joint",
        fusion_layout: Literal["separate", "merged"] = "separate",
        prompt_norm: bool = True,
        order: tuple[str, str, str, str] = STEPS,
        layers: list[Natural] | None = None,
        init: Literal["normal", "zero_values", "xavier"] = "normal",
        pooling: Literal["class", "mean"] = "class",
    ) -> None:
        super().__init__()
        for name, count in (("num_temporal", num_temporal), ("num_spatial", num_spatial), ("num_fusion", num_fusion)):
            if count < 1:
                raise ArgumentError(name, count, "at least 1", f"Switch {name.removeprefix('num_')} off instead.")
        if sorted(order) != sorted(STEPS):
            raise ArgumentError("order", list(order), f"each of {', '.join(STEPS)} once", "Correct the order.")
        if (spatial_kind == "kv" and num_spatial % 2) or (fusion_kind == "cross" and num_fusion % 2):
            raise ArgumentError(
                "num_spatial, num_fusion",
                f"{num_spatial}, {num_fusion}",
                "even numbers where halves are keys and values (kv) or modalities (cross)",
                "Add one.",
            )
        if fusion_layout == "merged" and fusion_kind != "joint":
            raise ArgumentError(
                "fusion_layout",
                f"merged with fusion_kind {fusion_kind}",
                "fusion_kind joint",
                "Only joint attention can be merged with the spatial one.",
            )
        if not (visual or audio) and (temporal or spatial):
            raise ArgumentError(
                "visual, audio",
                "both false",
                "one side with temporal or spatial prompts",
                "Switch temporal and spatial off instead.",
            )
        sides = tuple(name for name, on in (("visual", visual), ("audio", audio)) if on)
        self.sides = {"temporal": sides if temporal else (), "spatial": sides if spatial else ()}
        self.fusion, self.merged, self.gated = fusion, fusion and fusion_layout == "merged", gate != "none"
        self.num_temporal, self.num_spatial, self.num_fusion = num_temporal, num_spatial, num_fusion
        self.temporal_space, self.class_only = temporal_space, temporal_positions == "class"
        self.spatial_kind, self.fusion_kind, self.prompt_norm = spatial_kind, fusion_kind, prompt_norm
        self.order, self.layers, self.init, self.pooling = tuple(order), layers, init, pooling

    @property
    def gradient(self) -> Gradient:  # type: ignore[override]  # read only here: it follows from the rest
        """`encoder` where there is a prompt to train, else `none`."""
        return "encoder" if self.fusion or self.sides["temporal"] or self.sides["spatial"] else "none"

    @property
    def identity_at_start(self) -> bool:
        added = self.sides["spatial"] or self.merged or (not self.gated and (self.sides["temporal"] or self.fusion))
        return self.order.index("spatial") < self.order.index("mlp") and not (added and self.layers != [])

    def attach(self, sites: list[tuple[BlockSpec, BlockSpec]], lone: Mapping[str, list[BlockSpec]]) -> None:
        super().attach(sites, lone)
        if not all(spec.plain for site in sites for spec in site):
            raise ArgumentError(
                "prompts",
                "AVSTFP",
                "encoders of plain transformer blocks on both sides",
                "Use avprompt.encoders.CLIP, with audio: shared or avprompt.encoders.ViTSpectrogram.",
            )
        widths = {spec.dim for site in sites for spec in site}
        if len(widths) > 1 and self.fusion:
            raise ArgumentError(
                "prompts.fusion",
                f"widths {sorted(widths)}",
                "one width in both encoders",
                "Set fusion: false, or choose encoders of equal width.",
            )
        layers = range(len(sites)) if self.layers is None else self.layers
        if len(set(layers)) != len(layers) or not set(layers) <= set(range(len(sites))):
            raise ArgumentError("layers", self.layers, f"different indices from 0 to {len(sites) - 1}", "Correct them.")
        self.places = {site: place for place, site in enumerate(layers)}
        dims = {"visual": sites[0][0].dim, "audio": sites[0][1].dim}
        for side in self.sides["temporal"]:
            self._add(f"temporal_keys_{side}", self.num_temporal, dims[side])
            self._add(f"temporal_values_{side}", self.num_temporal, dims[side], zero=self.init == "zero_values")
            self._add_gate(f"temporal_{side}_gate")
        for side in self.sides["spatial"]:
            self._add(f"spatial_{side}", self.num_spatial, dims[side])
        if self.fusion:
            self._add("fusion_prompts", self.num_fusion, dims["visual"])
            for side in () if self.merged else dims:
                self._add_gate(f"fusion_{side}_gate")

    def _add(self, name: str, count: int, dim: int, zero: bool = False) -> None:
        prompts = torch.zeros(len(self.places), count, dim)
        for site in () if zero else prompts:
            nn.init.xavier_uniform_(site) if self.init == "xavier" else nn.init.normal_(site, std=0.02)
        self.register_parameter(name, nn.Parameter(prompts))

    def _add_gate(self, name: str) -> None:
        self.register_parameter(name, nn.Parameter(torch.zeros(len(self.places))) if self.gated else None)

    def step(
        self,
        site: int,
        visual_block: PlainViTBlock,
        audio_block: PlainViTBlock,
        visual: Tensor,
        audio: Tensor,
        state: PromptState,
    ) -> tuple[Tensor, Tensor]:
        blocks, place = (visual_block, audio_block), self.places.get(site)
        for name in self.order:
            visual, audio = getattr(self, f"_{name}")(place, blocks, (visual, audio), state)
        return visual, audio

    def _temporal(
        self, place: int | None, blocks: tuple[PlainViTBlock, ...], tokens: tuple[Tensor, ...], state: PromptState
    ) -> tuple[Tensor, ...]:
        out = []
        for side, block, x in zip(("visual", "audio"), blocks, tokens):
            if place is None or side not in self.sides["temporal"]:
                out.append(x)
                continue
            keys, values = (getattr(self, f"temporal_{kind}_{side}")[place] for kind in ("keys", "values"))
            if self.temporal_space == "input":
                keys, values = block.project(self._norm(block, keys))[0], block.project(self._norm(block, values))[1]
            own = x[:, :1] if self.class_only else x
            series = own.unflatten(0, (-1, state.segments)).transpose(1, 2)  # (B, N, T, C)
            read = block.attend(block.norm1(series.flatten(0, 1)), None, keys, values)
            added = self._gate(f"temporal_{side}_gate", place, read.view(series.shape).transpose(1, 2).flatten(0, 1))
            out.append(torch.cat((own + added, x[:, 1:]), dim=1) if self.class_only else x + added)
        return tuple(out)

    def _spatial(
        self, place: int | None, blocks: tuple[PlainViTBlock, ...], tokens: tuple[Tensor, ...], state: PromptState
    ) -> tuple[Tensor, ...]:
        if self.merged and place is not None:

            def prompts(block: PlainViTBlock) -> tuple[Tensor, ...]:
                extra = [self._spatial_prompts(place, side, block) for side in self.sides["spatial"]]
                return tuple(torch.cat(parts) for parts in zip(*extra, self._fusion_prompts(place, block)))

            return tuple(x + read for x, read in zip(tokens, self._joint(blocks, tokens, prompts)))
        return tuple(
            x + block.attend(block.norm1(x), None, *(self._spatial_prompts(place, side, block) or ()))
            for x, block, side in zip(tokens, blocks, ("visual", "audio"))
        )

    def _fusion(
        self, place: int | None, blocks: tuple[PlainViTBlock, ...], tokens: tuple[Tensor, ...], state: PromptState
    ) -> tuple[Tensor, ...]:
        if not self.fusion or self.merged or place is None:
            return tokens
        read = getattr(self, f"_{self.fusion_kind}_fusion")(place, blocks, tokens)
        return tuple(
            x + self._gate(f"fusion_{side}_gate", place, y) for side, x, y in zip(("visual", "audio"), tokens, read)
        )

    def _mlp(
        self, place: int | None, blocks: tuple[PlainViTBlock, ...], tokens: tuple[Tensor, ...], state: PromptState
    ) -> tuple[Tensor, ...]:
        if blocks[0].attn is not blocks[1].attn:
            return tuple(x + block.mlp(x) for x, block in zip(tokens, blocks))
        x = torch.cat(tokens, dim=1)
        return (x + blocks[0].mlp(x)).split([y.shape[1] for y in tokens], dim=1)

    def _spatial_prompts(self, place: int | None, side: str, block: PlainViTBlock) -> tuple[Tensor, ...] | None:
        """Keys and values (P, C) of a side's spatial prompts; `None` without."""
        if place is None or side not in self.sides["spatial"]:
            return None
        prompts = getattr(self, f"spatial_{side}")[place]
        return prompts.chunk(2) if self.spatial_kind == "kv" else block.project(self._norm(block, prompts))

    def _fusion_prompts(self, place: int, block: PlainViTBlock) -> tuple[Tensor, Tensor]:
        return block.project(self._norm(block, self.fusion_prompts[place]))

    def _joint(
        self,
        blocks: tuple[PlainViTBlock, ...],
        tokens: tuple[Tensor, ...],
        prompts: Callable[[PlainViTBlock], tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        """All tokens attend over all tokens and the prompts; with two towers, each side through its own projections."""
        if blocks[0].attn is blocks[1].attn:
            x = blocks[0].norm1(torch.cat(tokens, dim=1))
            return blocks[0].attend(x, None, *prompts(blocks[0])).split([y.shape[1] for y in tokens], dim=1)
        return tuple(
            block.attend(block.norm1(x), block.norm1(torch.cat(tokens, dim=1)), *prompts(block))
            for x, block in zip(tokens, blocks)
        )

    def _joint_fusion(
        self, place: int, blocks: tuple[PlainViTBlock, ...], tokens: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        return self._joint(blocks, tokens, lambda block: self._fusion_prompts(place, block))

    def _cross_fusion(
        self, place: int, blocks: tuple[PlainViTBlock, ...], tokens: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        prompts = self.fusion_prompts[place].chunk(2)
        return tuple(
            block.attend(block.norm1(x), block.norm1(other), *block.project(self._norm(block, own)))
            for x, other, block, own in zip(tokens, tokens[::-1], blocks, prompts)
        )

    def _bottleneck_fusion(
        self, place: int, blocks: tuple[PlainViTBlock, ...], tokens: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        first = blocks[0]
        prompts = self.fusion_prompts[place].expand(len(tokens[0]), -1, -1).to(tokens[0].dtype)
        everything = first.norm1(torch.cat((prompts, *tokens), dim=1))
        prompts = prompts + first.attend(self._norm(first, prompts), everything)
        return tuple(block.attend(block.norm1(x), self._norm(block, prompts)) for x, block in zip(tokens, blocks))

    def _norm(self, block: PlainViTBlock, prompts: Tensor) -> Tensor:
        return block.norm1(prompts) if self.prompt_norm else prompts

    def _gate(self, name: str, place: int, x: Tensor) -> Tensor:
        gate = getattr(self, name)
        return x if gate is None else gate[place] * x

    def pool(self, visual: Tensor, audio: Tensor, state: PromptState) -> tuple[Tensor, Tensor]:
        """Class token or mean over the grid, by `pooling`."""
        if self.pooling == "mean":
            return tuple(x[:, spec.prefix :].mean(1) for x, spec in zip((visual, audio), self.last))
        return super().pool(visual, audio, state)
