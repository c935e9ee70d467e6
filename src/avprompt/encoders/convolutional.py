"""Networks that give maps of features and have no blocks to prompt: ResNet, VGG and R(2+1)D (torchvision), PVT-v2
(timm)."""

from __future__ import annotations

import abc
from typing import Literal

import torch
from torch import Tensor, nn

from avprompt.encoders.base import BlockSpec, FrozenEncoder, VisualInput, is_path, read_weights
from avprompt.errors import ArgumentError, WeightsError, check_choice
from avprompt.ranges import Count, Dropout

#: colours that ImageNet and Kinetics networks are trained with
COLOURS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "kinetics": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
}
Colours = Literal["imagenet", "kinetics"]


def torchvision_weights(model: str, pretrained: str) -> dict[str, Tensor]:
    """The state dict of a local file, or of a tag such as `IMAGENET1K_V1`, which torchvision fetches.

    Raises:
        WeightsError: no such tag, it cannot be fetched, or the file is missing or broken.
    """
    from torchvision.models import get_model_weights

    if is_path(pretrained):
        return read_weights(pretrained, "visual.pretrained")
    tags = get_model_weights(model).__members__
    if pretrained not in tags:
        raise WeightsError(
            "visual.pretrained",
            pretrained,
            f"none, a local file, or a tag of {model}: {', '.join(sorted(tags))}",
            "Correct the tag, or give the path of a file.",
        )
    try:
        return tags[pretrained].get_state_dict(progress=False, check_hash=True)
    except (RuntimeError, OSError) as error:
        raise WeightsError(
            "visual.pretrained",
            f"{pretrained} ({error})",
            f"a torchvision tag of {model} that can be fetched",
            f"On a machine without network, download {tags[pretrained].url} elsewhere and give the file's path.",
        ) from error


class MapEncoder(FrozenEncoder):
    """A visual network whose features are maps; its last map stands for the tokens of other encoders.

    Attributes:
        specs: size of each map, finest first.

    Example:
        >>> encoder: MapEncoder = ResNet("resnet18", img_size=32)
        >>> [tuple(tokens.shape) for tokens in encoder.maps(torch.zeros(1, 2, 3, 32, 32))]
        [(2, 64, 64), (2, 16, 128), (2, 4, 256), (2, 1, 512)]
    """

    specs: list[BlockSpec]

    def _finish(self, size: int, colours: Colours, channels: list[int], strides: list[int], frames: int = 1) -> None:
        """Note sizes, and freeze; subclasses call it at the end of their construction."""
        if size < strides[-1] or size % strides[-1]:
            raise ArgumentError("img_size", size, f"a multiple of {strides[-1]}", "Choose another size.")
        if frames < 1:
            raise ArgumentError("frames", frames, "at least 1", "Correct it.")
        self.input = VisualInput(size, size, *COLOURS[colours], "bilinear", frames)
        self.stages = nn.ModuleList()
        self.specs = [
            BlockSpec(dim, (size // stride, size // stride), number)
            for number, (dim, stride) in enumerate(zip(channels, strides))
        ]
        self.freeze()

    @property
    def last_spec(self) -> BlockSpec:
        """Size of the last map."""
        return self.specs[-1]

    @abc.abstractmethod
    def segments_to_maps(self, x: Tensor) -> list[Tensor]:
        """Normalised frames (N, 3, H, W) or (N, F, 3, H, W) -> maps (N, C, rows, columns), as `specs` says."""

    def maps(self, frames: Tensor) -> list[Tensor]:
        """Frames (B, T, 3, H, W) or (B, T, F, 3, H, W), uint8, or floating and normalised -> each map's tokens (B*T,
        rows * columns, C)."""
        maps = self.segments_to_maps(self.normalise(frames).flatten(0, 1))
        return [x.flatten(2).transpose(1, 2) for x in maps]

    def stem(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1]

    def finalize(self, tokens: Tensor) -> Tensor:
        return tokens


class PictureEncoder(MapEncoder):
    """A network of pictures; where a segment has several frames, its maps are the mean over theirs."""

    @abc.abstractmethod
    def pictures_to_maps(self, x: Tensor) -> list[Tensor]:
        """Normalised pictures (N, 3, H, W) -> maps (N, C, rows, columns)."""

    def segments_to_maps(self, x: Tensor) -> list[Tensor]:
        if x.ndim == 4:
            return self.pictures_to_maps(x)
        return [own.unflatten(0, x.shape[:2]).mean(1) for own in self.pictures_to_maps(x.flatten(0, 1))]


class ResNet(PictureEncoder):
    """ResNet without its classifier: four maps at a 4th to a 32nd of the size.

    Args:
        model: `resnet18`, `resnet50` or `resnet152`.
        pretrained: `none` (random weights), a torchvision tag such as `IMAGENET1K_V1`, or a local file.
        img_size: height and width of frames.
        last_stride: 1 keeps the last stage at a 16th of the size, as ST-AVQA's ResNet-18 does.
        pooled: the last map averaged over its positions: one vector a frame.
        colours: that frames are normalised with; ST-AVQA's released script has those of Kinetics.
        frozen: see `FrozenEncoder`.
        frames: of a segment, over which features are averaged; LLP's published features are means over 8.

    Raises:
        ArgumentError: another architecture, stride or size.
        WeightsError: no such tag, or a file that is missing or of another network.

    Example:
        >>> with torch.device("meta"):
        ...     encoder = ResNet("resnet50")
        >>> [(spec.dim, spec.grid) for spec in encoder.specs]
        [(256, (56, 56)), (512, (28, 28)), (1024, (14, 14)), (2048, (7, 7))]
    """

    unused_weights = ("fc.",)

    def __init__(
        self,
        model: Literal["resnet18", "resnet50", "resnet152"] = "resnet50",
        pretrained: str = "none",
        img_size: Count = 224,
        last_stride: Literal[1, 2] = 2,
        pooled: bool = False,
        colours: Colours = "imagenet",
        frozen: bool = True,
        frames: Count = 1,
    ) -> None:
        from torchvision import models

        super().__init__(frozen)
        check_choice("model", model, ("resnet18", "resnet50", "resnet152"))
        if last_stride not in (1, 2):
            raise ArgumentError("last_stride", last_stride, "1 or 2", "Correct it.")
        net = getattr(models, model)()
        for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(net, name))
        first = self.layer4[0]
        if last_stride == 1:
            for layer in (first.conv1, first.conv2, first.downsample[0]):
                layer.stride = (1, 1)
        self.pooled = pooled
        if pretrained != "none" and not self.is_meta():
            self.load_library_weights(torchvision_weights(model, pretrained), pretrained)
        channels = [list(layer.children())[-1] for layer in (self.layer1, self.layer2, self.layer3, self.layer4)]
        channels = [(block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels for block in channels]
        self._finish(img_size, colours, channels, [4, 8, 16, 16 * last_stride], frames)
        if pooled:
            self.specs[-1] = BlockSpec(channels[-1], (1, 1), 3)

    def pictures_to_maps(self, x: Tensor) -> list[Tensor]:
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return [*maps[:-1], maps[-1].mean((2, 3), keepdim=True)] if self.pooled else maps


class VGG(PictureEncoder):
    """The convolutions of VGG-19 up to the fifth max-pool: 7 x 7 positions of 512 channels, all at least 0.

    AVE's published features are of this layer, but computed with Keras, whose weights and colours are others: those
    made here have their form and not their numbers.

    Args:
        pretrained: `none` (random weights), torchvision's `IMAGENET1K_V1`, or a local file.
        img_size: height and width of frames.
        frozen: see `FrozenEncoder`.
        frames: of a segment, over which features are averaged; AVE's published features are means over 16.

    Raises:
        ArgumentError: another size than a multiple of 32.
        WeightsError: no such tag, or a file that is missing or of another network.

    Example:
        >>> with torch.device("meta"):
        ...     encoder = VGG()
        >>> sum(parameter.numel() for parameter in encoder.parameters()), encoder.specs[-1].grid
        (20024384, (7, 7))
    """

    unused_weights = ("classifier.",)

    def __init__(self, pretrained: str = "none", img_size: Count = 224, frozen: bool = True, frames: Count = 1) -> None:
        from torchvision import models

        super().__init__(frozen)
        self.features = models.vgg19().features
        if pretrained != "none" and not self.is_meta():
            self.load_library_weights(torchvision_weights("vgg19", pretrained), pretrained)
        self._finish(img_size, "imagenet", [512], [32], frames)

    def pictures_to_maps(self, x: Tensor) -> list[Tensor]:
        return [self.features(x)]


class R2Plus1D(MapEncoder):
    """R(2+1)D-18 (Tran et al., CVPR 2018) without its classifier: one vector of 512 channels from the frames of a
    segment.

    LLP's published features `r2plus1d_18` are of this network with torchvision's weights of Kinetics-400, from eight
    frames of each second, at 112 x 112 pixels.

    Args:
        pretrained: `none` (random weights), torchvision's `KINETICS400_V1`, or a local file.
        img_size: height and width of frames.
        frames: of a segment.
        frozen: see `FrozenEncoder`.

    Raises:
        ArgumentError: another size than a multiple of 16, or no frame.
        WeightsError: no such tag, or a file that is missing or of another network.

    Example:
        >>> with torch.device("meta"):  # sizes alone; drop this line for a network with weights
        ...     encoder = R2Plus1D()
        >>> encoder(torch.zeros(1, 10, 8, 3, 112, 112, device="meta")).shape, encoder.input.segment
        (torch.Size([10, 1, 512]), (8, 3, 112, 112))
    """

    unused_weights = ("fc.",)
    library_names = ((r"^first\.", "stem."),)

    def __init__(self, pretrained: str = "none", img_size: Count = 112, frames: Count = 8, frozen: bool = True) -> None:
        from torchvision.models.video import r2plus1d_18

        super().__init__(frozen)
        net = r2plus1d_18()
        self.first = net.stem
        for name in ("layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(net, name))
        if pretrained != "none" and not self.is_meta():
            self.load_library_weights(torchvision_weights("r2plus1d_18", pretrained), pretrained)
        self._finish(img_size, "kinetics", [512], [16], frames)
        self.specs = [BlockSpec(512, (1, 1), 0)]

    def segments_to_maps(self, x: Tensor) -> list[Tensor]:
        x = x.transpose(1, 2) if x.ndim == 5 else x.unsqueeze(2)  # (N, 3, F, H, W)
        for layer in (self.first, self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return [x.mean(2).mean((2, 3), keepdim=True)]


class PVT(PictureEncoder):
    """Pyramid Vision Transformer v2 without its classifier: four maps at a 4th to a 32nd of the size.

    Args:
        model: `pvt_v2_b0` to `pvt_v2_b5`; AVSBench has the last.
        pretrained: `none` (random weights), a timm tag such as `in1k`, or a local file, timm's or the authors'.
        img_size: height and width of frames.
        drop_path: rate of stochastic depth of the last block, in training; it grows from 0.
        frozen: see `FrozenEncoder`.

    Raises:
        ArgumentError: another architecture or size.
        WeightsError: the tag cannot be fetched, or a file that is missing or of another network.

    Example:
        >>> with torch.device("meta"):
        ...     encoder = PVT()
        >>> sum(p.numel() for p in encoder.parameters()), [spec.dim for spec in encoder.specs]
        (81443008, [64, 128, 320, 512])
    """

    unused_weights = ("head.",)
    library_names = ((r"^pyramid\.", "stages."),)

    def __init__(
        self,
        model: str = "pvt_v2_b5",
        pretrained: str = "none",
        img_size: Count = 224,
        drop_path: Dropout = 0.0,
        frozen: bool = True,
    ) -> None:
        from timm.models import pvt_v2

        from avprompt.encoders.timm_library import build_timm, timm_weights

        super().__init__(frozen)
        check_choice("model", model, tuple(f"pvt_v2_b{number}" for number in range(6)))
        net = build_timm(model, (pvt_v2.PyramidVisionTransformerV2,), drop_path_rate=drop_path)
        self.patch_embed, self.pyramid = net.patch_embed, net.stages
        if pretrained != "none" and not self.is_meta():
            weights = pvt_v2.checkpoint_filter_fn(timm_weights(model, pretrained), net)
            self.load_library_weights(weights, pretrained)
        channels = [info["num_chs"] for info in net.feature_info]
        self._finish(img_size, "imagenet", channels, [4, 8, 16, 32])

    def pictures_to_maps(self, x: Tensor) -> list[Tensor]:
        x, maps = self.patch_embed(x), []
        for stage in self.pyramid:
            x = stage(x)
            maps.append(x)
        return maps
