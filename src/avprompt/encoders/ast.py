"""The Audio Spectrogram Transformer (Gong et al., Interspeech 2021; transformers' class and weights)."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from avprompt.encoders.base import BlockSpec, FeedForward, Stage, read_weights
from avprompt.encoders.fbank import Fbank
from avprompt.encoders.plain_vit import PlainAttention, PlainViT, PlainViTBlock, resize_positions
from avprompt.errors import ArgumentError, WeightsError
from avprompt.ranges import Count

#: AST's front end for AudioSet; one second fills 98 frames, for ten seconds it is `frames=1024, seconds=10`
AST_FBANK = Fbank(mel_bins=128, frames=98, mean=-4.2677393, std=4.5689974, fill="before")
#: mel bands and frames that the published weights have positions for
PUBLISHED = (128, 1024)
KEY = "audio.init_args.pretrained"


class ASTransformer(PlainViT):
    """A frozen Audio Spectrogram Transformer: overlapping 16 x 16 patches of a log-mel spectrogram, a class token and
    DeiT's distillation token.

    Positions for another number of frames follow AST's published code: the centre of the table is cut out along an
    axis on which the spectrogram is shorter, and the table is stretched bilinearly along one on which it is longer.
    AST's own classifier reads the mean of the first two tokens; a method's `pool` decides what is read here.

    Args:
        pretrained: `none` (random weights), a tag of the Hugging Face hub such as
            `MIT/ast-finetuned-audioset-10-10-0.4593` (fetched by transformers), or a local file or folder with what
            lies there (`model.safetensors` or `pytorch_model.bin`, in the naming of any version of transformers).
        stride: rows and columns between two patches, 10 in the best published weights; 12, 14 or 16 in others.
        fbank: settings of the spectrogram; the default is AST's for a segment of one second at 16 kHz.
        segments: see `CLIP`.
        train_norm: see `CLIP`.
        frozen: see `FrozenEncoder`.

    Raises:
        ArgumentError: a spectrogram smaller than a patch.
        WeightsError: the tag cannot be fetched, or the file is missing or of another architecture or stride.

    >>> import torch
    >>> with torch.device("meta"):  # sizes alone; drop this line for a network with weights
    ...     encoder = ASTransformer()
    >>> encoder.input, encoder.stages[0].blocks[0].spec.grid  # mel x time
    (AudioInput(sample_rate=16000, seconds=1.0), (12, 9))
    """

    #: arguments of transformers' configuration
    sizes: dict[str, object] = {}
    library_names = (
        (r"^conv\.", "embeddings.patch_embeddings.projection."),
        (r"^class_embedding$", "embeddings.cls_token"),
        (r"^registers$", "embeddings.distillation_token"),
        (r"^positions$", "embeddings.position_embeddings"),
        (r"^norm\.", "layernorm."),
        (r"^stages\.0\.blocks\.", "layers."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"\.attn\.", ".attention."),
        (r"\.feed_forward\.", ".mlp."),
    )

    def __init__(
        self,
        pretrained: str = "none",
        stride: Count = 10,
        fbank: Fbank = AST_FBANK,
        segments: Count | None = None,
        train_norm: bool = False,
        frozen: bool = True,
    ) -> None:
        super().__init__(frozen)
        self.fbank, self.input = fbank, fbank.input
        net = self._build(stride)
        if pretrained != "none" and not next(net.parameters()).is_meta:
            net = self._load(net, pretrained)
        self._take_apart(net)
        self._add_trained(segments, train_norm)
        self.freeze()

    def _build(self, stride: int) -> nn.Module:
        from transformers import ASTConfig, ASTModel  # takes seconds: only where it is asked for

        return ASTModel(
            ASTConfig(
                frequency_stride=stride,
                time_stride=stride,
                num_mel_bins=PUBLISHED[0],
                max_length=PUBLISHED[1],
                **self.sizes,
            )
        )

    def _load(self, net: nn.Module, pretrained: str) -> nn.Module:
        """The library's network with weights: transformers itself translates names of older versions."""
        from transformers import logging

        hub, weights = is_hub_name(pretrained), None
        if not hub:
            path = Path(pretrained)
            files = [path / name for name in ("model.safetensors", "pytorch_model.bin")] if path.is_dir() else [path]
            weights = read_weights(next((file for file in files if file.is_file()), files[0]), KEY)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # its report of what is unexpected, which is told below
        try:
            loaded, found = type(net).from_pretrained(
                pretrained if hub else None, config=net.config, state_dict=weights, output_loading_info=True
            )
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                KEY,
                f"{pretrained} ({error})",
                f"weights of an AST of stride {net.config.time_stride}",
                "Check `stride`. On a machine without network, download the files elsewhere and give their path.",
            ) from error
        finally:
            logging.set_verbosity(verbosity)
        missing = sorted(found["missing_keys"])
        unknown = sorted(key for key in found["unexpected_keys"] if not key.startswith("classifier."))
        if missing or unknown or found["mismatched_keys"]:
            raise WeightsError(
                KEY,
                f"{pretrained}: missing {missing[:5]}, unknown {unknown[:5]}",
                "the tensors of transformers' AST",
                "Check that the file belongs to this architecture.",
            )
        return loaded

    def _take_apart(self, net: nn.Module) -> None:
        start, config = net.embeddings, net.config
        self.conv, self.norm = start.patch_embeddings.projection, net.layernorm
        self.class_embedding, self.registers = start.cls_token, start.distillation_token
        self.positions = start.position_embeddings
        (height, width), (down, right) = self.conv.kernel_size, self.conv.stride
        have, grid = (
            ((bins - height) // down + 1, (frames - width) // right + 1)
            for bins, frames in (PUBLISHED, (self.fbank.mel_bins, self.fbank.frames))
        )
        if min(grid) < 1:
            raise ArgumentError(
                "fbank",
                f"{self.fbank.mel_bins} x {self.fbank.frames}",
                f"at least {height} x {width}, a patch",
                "Choose more mel_bins or frames.",
            )
        if grid != have:
            self.positions = nn.Parameter(resize_positions(self.position_table().detach(), 2, have, grid))
        spec = BlockSpec(config.hidden_size, grid, 0, prefix=2)
        self.stages = nn.ModuleList([Stage([_block(layer, spec, config.num_attention_heads) for layer in net.layers])])

    def stem(self, x: Tensor) -> Tensor:
        return self._begin(self.conv(self.fbank(x.flatten(0, 1))), x.shape[1])


def is_hub_name(pretrained: str) -> bool:
    """Whether it is `owner/name` of the Hugging Face hub, and neither there on the disk nor a weights file's name."""
    local = Path(pretrained).exists() or Path(pretrained).suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
    return not local and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", pretrained) is not None


def _block(layer: nn.Module, spec: BlockSpec, heads: int) -> PlainViTBlock:
    """transformers' block under our names."""
    attn, mlp = layer.attention, layer.mlp
    attention = PlainAttention(heads, attn.o_proj, None, attn.q_proj, attn.k_proj, attn.v_proj)
    return PlainViTBlock(
        spec, layer.layernorm_before, attention, layer.layernorm_after, FeedForward(mlp.fc1, mlp.activation_fn, mlp.fc2)
    )
