"""Features that tasks read: `AVFeatures`, and `FeatureSource`, the interface of modules that compute or store them."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from torch import Tensor, nn

from avprompt.encoders.base import BlockSpec
from avprompt.errors import ArgumentError

Modality = Literal["visual", "audio"]


@dataclass
class AVFeatures:
    """Features of B clips of T segments.

    Args:
        visual: (B, T, C_v), one vector a segment.
        audio: (B, T, C_a).
        visual_tokens: (B, T, N_v, C_v), after the final norm.
        audio_tokens: (B, T, N_a, C_a).
        pyramid: visual tokens (B, T, N, C) at the end of each stage, before merging; the last after the final norm.
        maps: attention maps by name, (B, T, rows, columns), where asked for.
        tables: numbers by name, (B, T, K), such as the weights of a router, where asked for.
        losses: auxiliary losses of the prompt method, scalars; `balance@3` is the loss `balance` of block pair 3.
    """

    visual: Tensor
    audio: Tensor
    visual_tokens: Tensor
    audio_tokens: Tensor
    pyramid: list[Tensor]
    maps: dict[str, Tensor] = field(default_factory=dict)
    tables: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)

    def select(self, clips: Sequence[int]) -> AVFeatures:
        """The features of the clips at these places of the batch, which may repeat; losses stay those of the whole
        batch.

        Example:
            >>> import torch
            >>> one = torch.arange(2.0).view(2, 1, 1)
            >>> AVFeatures(one, one, one[..., None], one[..., None], []).select([1, 0, 1]).visual.flatten().tolist()
            [1.0, 0.0, 1.0]
        """

        def pick(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: pick(entry) for name, entry in value.items()}
            return [pick(entry) for entry in value] if isinstance(value, list) else value[clips]

        chosen = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return AVFeatures(**{name: value if name == "losses" else pick(value) for name, value in chosen.items()})


class FeatureSource(nn.Module, abc.ABC):
    """A module that turns a batch into `AVFeatures`: a backbone of two encoders, or precomputed features.

    A task uses only this interface. A source defines `visual_dim` and `audio_dim` and implements `forward`; it
    overrides the other members that it supports. A member that it does not support raises an `ArgumentError` with its
    name.

    Attributes:
        visual_dim: channels C_v of `AVFeatures.visual`.
        audio_dim: channels C_a of `AVFeatures.audio`.
        batch_keys: entries of the batch that `forward` reads.
        prompts: the prompt method inside, `None` where there is none. Text branches may share its parameters.
        temporal_gates: strength gamma of a head's temporal gates: of audio on video and of video on audio; 0 is off.

    Example:
        >>> import torch
        >>> class Stored(FeatureSource):
        ...     visual_dim, audio_dim, batch_keys = 8, 4, ("visual_features", "audio_features")
        ...     def forward(self, batch, prompted=True, maps=False):
        ...         visual, audio = batch["visual_features"], batch["audio_features"]
        ...         return AVFeatures(visual, audio, visual[:, :, None], audio[:, :, None], [])
        >>> from avprompt.tasks import AVELinear
        >>> task = AVELinear(Stored(), num_classes=3)
        >>> task({"visual_features": torch.rand(2, 10, 8), "audio_features": torch.rand(2, 10, 4)})["logits"].shape
        torch.Size([2, 10, 4])
        >>> Stored().visual_spec  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        avprompt.errors.ArgumentError: backbone: got Stored; expected a source of visual tokens on a grid. ...
    """

    visual_dim: int
    audio_dim: int
    batch_keys: tuple[str, ...] = ()
    temporal_gates: tuple[float, float] = (0.0, 0.0)

    def __init__(self) -> None:
        super().__init__()
        self.prompts: nn.Module | None = None

    @abc.abstractmethod
    def forward(self, batch: dict[str, Any], prompted: bool = True, maps: bool = False) -> AVFeatures:
        """A batch (flat dict) -> features.

        Args:
            batch: see `batch_keys`.
            prompted: `False` gives those without the method's own parts, without a graph. Parameters of the encoders
                that the method trained stay as they are.
            maps: also fill `AVFeatures.maps` and `AVFeatures.tables`.
        """

    def _lacks(self, what: str) -> ArgumentError:
        return ArgumentError("backbone", type(self).__name__, f"a source of {what}", "Use AVPromptBackbone.")

    @property
    def stochastic(self) -> bool:
        """Whether equal inputs may give different features, as encoders in train mode do."""
        return False

    @property
    def visual_spec(self) -> BlockSpec:
        """Grid and prefix of `AVFeatures.visual_tokens`.

        Raises:
            ArgumentError: the source has no tokens on a grid.
        """
        raise self._lacks("visual tokens on a grid")

    @property
    def pyramid_specs(self) -> list[BlockSpec]:
        """Channels, grid and prefix of each entry of `AVFeatures.pyramid`.

        Raises:
            ArgumentError: the source has no pyramid.
        """
        raise self._lacks("a pyramid of visual tokens")

    def fit_frames(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) of any size -> those that `forward` takes, bicubic without low-pass.

        Raises:
            ArgumentError: the source takes no frames.
        """
        raise self._lacks("features of frames")

    def plain_visual_tokens(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) -> tokens (B, T, N_v, C_v) of the plain frozen visual encoder, without a graph.

        Raises:
            ArgumentError: the source has no encoder.
        """
        raise self._lacks("features of frames")

    def project(self, modality: Modality, features: Tensor) -> Tensor:
        """Vectors (..., C) of a modality -> embeddings (..., E) in the space of its texts.

        Raises:
            ArgumentError: that modality shares no space with texts.
        """
        raise self._lacks(f"{modality} embeddings in the space of texts")

    def log_scale(self, modality: Modality) -> Tensor | None:
        """Logarithm of the scale of cosines with texts that the encoder was trained with, scalar; `None`: not known.

        Raises:
            ArgumentError: that modality shares no space with texts.
        """
        raise self._lacks(f"{modality} embeddings in the space of texts")


class ForeignSource(FeatureSource):
    """Any module with `forward(batch) -> AVFeatures`, `visual_dim` and `audio_dim` as a source of features.

    Args:
        module: such a module; it stands in checkpoints under its own names behind `module.`.

    Raises:
        ArgumentError: it lacks one of the three.

    Example:
        >>> import torch
        >>> class Mine(nn.Module):
        ...     visual_dim, audio_dim = 8, 4
        ...     def forward(self, batch):
        ...         return AVFeatures(batch["v"], batch["a"], batch["v"][:, :, None], batch["a"][:, :, None], [])
        >>> source = ForeignSource(Mine())
        >>> source({"v": torch.zeros(1, 2, 8), "a": torch.zeros(1, 2, 4)}).visual.shape
        torch.Size([1, 2, 8])
    """

    def __init__(self, module: Any) -> None:  # no declared class, so that no configuration builds one
        super().__init__()
        if missing := [name for name in ("forward", "visual_dim", "audio_dim") if not hasattr(module, name)]:
            raise ArgumentError(
                "backbone",
                type(module).__name__,
                f"a source of features, with {', '.join(missing)}",
                "Give an AVPromptBackbone, or a module that says its widths and reads a batch.",
            )
        self.module, self.visual_dim, self.audio_dim = module, module.visual_dim, module.audio_dim

    def forward(self, batch: dict[str, Any], prompted: bool = True, maps: bool = False) -> AVFeatures:
        """What the module makes of the batch; it knows neither prompts nor maps."""
        return self.module(batch)
