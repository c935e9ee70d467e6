"""Dasheng (Dinkel et al., Interspeech 2024; the `dasheng` package's class and weights): a masked audio autoencoder's
encoder, trained on 272,000 hours of speech, music and environmental sound."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from avprompt.encoders.base import (
    AudioInput,
    BlockSpec,
    FeedForward,
    Stage,
    is_path,
    read_weights,
    without_autocast,
)
from avprompt.encoders.plain_vit import PlainAttention, PlainViT, PlainViTBlock
from avprompt.errors import ArgumentError, WeightsError
from avprompt.precision import wide
from avprompt.ranges import Count, Positive

KEY = "audio.init_args.pretrained"
SIZES = {
    "dasheng_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "dasheng_06B": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "dasheng_12B": {"embed_dim": 1536, "depth": 40, "num_heads": 24},
}


class Dasheng(PlainViT):
    """A frozen Dasheng encoder over waveform segments at 16 kHz: patches of 64 mel bands x 4 frames (40 ms), no class
    token.

    The token grid has one row and a column for every 40 ms. Positions of a shorter segment are the first ones of the
    table for 10 s, as in the package. It needs the package `dasheng`: `pip install avprompt[dasheng]`.

    Args:
        model: `dasheng_base` (85 M parameters), `dasheng_06B` or `dasheng_12B`.
        pretrained: `none` (random weights), `zenodo` (the file that the package names, fetched by torch), or a local
            file with its content (`dasheng_base.pt`) or the bare state dict.
        seconds: length of a segment, at most 10.
        segments: see `CLIP`.
        train_norm: see `CLIP`.
        frozen: see `FrozenEncoder`.

    Raises:
        ArgumentError: unknown `model`, a segment too short for a patch or too long for the positions, or the package is
            not installed.
        WeightsError: the file is missing, cannot be fetched, or is of another architecture.

    >>> import torch
    >>> with torch.device("meta"):  # sizes alone; drop this line for a network with weights
    ...     encoder = Dasheng()
    >>> encoder.input, encoder.stages[0].blocks[0].spec.grid
    (AudioInput(sample_rate=16000, seconds=1.0), (1, 25))
    """

    #: arguments of the package's class in place of the model's
    sizes: dict[str, object] = {}
    constants = ("front_end.",)
    library_names = (
        (r"^conv\.", "patch_embed.proj."),
        (r"^(time|freq)_positions$", r"\1_pos_embed"),
        (r"^stages\.0\.", ""),
        (r"\.scale([12])$", r".ls\1.gamma"),
        (r"\.feed_forward\.", ".mlp."),
    )

    def __init__(
        self,
        model: Literal["dasheng_base", "dasheng_06B", "dasheng_12B"] = "dasheng_base",
        pretrained: str = "none",
        seconds: Positive = 1.0,
        segments: Count | None = None,
        train_norm: bool = False,
        frozen: bool = True,
    ) -> None:
        super().__init__(frozen)
        if model not in SIZES:
            raise ArgumentError("model", model, f"one of {', '.join(SIZES)}", "Correct the audio encoder's arguments.")
        self.input = AudioInput(16000, seconds)
        self._take_apart(self._build(model))
        if pretrained != "none" and not self.is_meta():
            self.load_library_weights(read_dasheng_weights(model, pretrained), pretrained)
        self._add_trained(segments, train_norm)
        self.freeze()

    def _build(self, model: str) -> nn.Module:
        library = dasheng_module()
        with torch.device("cpu"):  # torchaudio reads values of its mel bank, which the meta device does not have
            return library.Dasheng(**{**SIZES[model], **self.sizes})

    def _take_apart(self, net: nn.Module) -> None:
        self.front_end, self.init_bn = net.front_end, net.init_bn
        self.conv, self.norm = net.patch_embed.proj, net.norm
        self.time_positions, self.freq_positions = net.time_pos_embed, net.freq_pos_embed
        heard = cast("AudioInput", self.input)
        frames = heard.samples // net.hop_size + 1
        grid = net.patch_embed.grid_size[0], frames // net.patch_stride[1]
        if not 1 <= grid[1] <= net.patch_embed.grid_size[1]:
            raise ArgumentError("seconds", heard.seconds, "more than 0.03 and at most 10", "Choose another.")
        spec = BlockSpec(net.embed_dim, grid, 0)
        self.stages = nn.ModuleList([Stage([_block(block, spec) for block in net.blocks])])
        self.to(torch.get_default_device())

    def position_table(self) -> Tensor:
        columns = self.stages[0].blocks[0].spec.grid[1]
        return (self.time_positions[..., :columns] + self.freq_positions).flatten(2)[0].T

    def stem(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):
            # with a channel of its own a segment's decibels are cut off below its own peak, not the batch's
            mel = self.init_bn(self.front_end(wide(x.flatten(0, 1).unsqueeze(1))))
        return self._begin(self.conv(mel), x.shape[1])


def dasheng_module():
    """The package's module that holds its encoders.

    Raises:
        ArgumentError: it is not installed.
    """
    try:
        from dasheng.pretrained import pretrained
    except ModuleNotFoundError as error:
        raise ArgumentError(
            "audio",
            f"Dasheng, without the package {error.name}",
            "the package dasheng",
            "Install it: pip install avprompt[dasheng]",
        ) from error
    return pretrained


def read_dasheng_weights(model: str, pretrained: str) -> dict[str, Tensor]:
    """The state dict of a local file, or of the one that the package names.

    Raises:
        WeightsError: it is missing, broken, or cannot be fetched.
    """
    if is_path(pretrained):
        return read_weights(pretrained, KEY)
    url = dasheng_module().PRETRAINED_CHECKPOINTS[model]
    if pretrained != "zenodo":
        raise WeightsError(KEY, pretrained, "none, zenodo, or an existing local file", "Correct it.")
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)["model"]
    except OSError as error:  # of the network
        raise WeightsError(
            KEY,
            f"{url} ({error})",
            "a file that can be fetched",
            "On a machine without network, download it elsewhere and give its path.",
        ) from error


def _block(block: nn.Module, spec: BlockSpec) -> PlainViTBlock:
    """The package's block, whose names are timm's, under ours."""
    scales = [getattr(scale, "gamma", None) for scale in (block.ls1, block.ls2)]
    attention = PlainAttention(block.attn.num_heads, block.attn.proj, block.attn.qkv)
    return PlainViTBlock(
        spec, block.norm1, attention, block.norm2, FeedForward(block.mlp.fc1, block.mlp.act, block.mlp.fc2), *scales
    )
