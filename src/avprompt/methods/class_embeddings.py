"""Text branches: they turn class names into embeddings, with which images or sounds are compared."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from avprompt.encoders.text import CLIP_TEMPLATE, CLIPText, TextTower, class_embeddings, class_texts
from avprompt.methods.base import PromptMethod
from avprompt.ranges import Count


class ClassEmbeddings(nn.Module, abc.ABC):
    """One embedding a class. A branch is built without knowing the classes; the task that has them calls `attach`.

    Attributes:
        dim: width E of the embeddings, known from `attach` on.
        logit_scale: logarithm of the tower's factor on cosines, known from `attach` on; `None` if it is unknown.

    Example:
        >>> from avprompt.methods import NoPrompts
        >>> class OneHot(ClassEmbeddings):
        ...     def attach(self, names, prompts):
        ...         self.dim, self.logit_scale, self.texts = len(names), None, torch.eye(len(names))
        ...     def forward(self, features):
        ...         return self.texts
        >>> branch = OneHot()
        >>> branch.attach(["bell", "dog"], NoPrompts())
        >>> branch(torch.rand(1, 10, 2))
        tensor([[1., 0.],
                [0., 1.]])
    """

    dim: int
    logit_scale: Tensor | None

    @abc.abstractmethod
    def attach(self, names: Sequence[str], prompts: PromptMethod) -> None:
        """Build the branch for these class names; the task calls this once.

        Args:
            names: names of K classes; empty if they are unknown (`avprompt params` without the dataset's files).
            prompts: the method of the image and audio encoders, for branches that are coupled to it.
        """

    @abc.abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Normalised embeddings (B, T, E) -> texts (K, E), or (B, 1 or T, K, E) if they depend on the embeddings.

        The texts are not normalised.
        """


class FixedEmbeddings(ClassEmbeddings):
    """Embeddings of sentences from a template, computed once by a frozen tower: zero-shot CLIP and CLAP.

    Args:
        tower: function that builds the text tower, called only if the embeddings are not in `cache`; `None` if they
            are.
        template: sentence with one `{}` for the name.
        spaces: write underscores of names as spaces, see `class_texts`.
        cache: file of the embeddings, see `class_embeddings`; every list of classes needs its own.

    Raises:
        WeightsError: from `attach`, see `class_embeddings`.

    Example:
        >>> from avprompt.encoders import TinyCLIPText
        >>> from avprompt.methods import NoPrompts
        >>> texts = FixedEmbeddings(lambda: TinyCLIPText("none"), "a photo of a {}.")
        >>> texts.attach(["red disc", "star"], NoPrompts())
        >>> texts(torch.rand(1, 10, 64)).shape, len(list(texts.parameters()))
        (torch.Size([2, 64]), 0)
    """

    def __init__(
        self,
        tower: Callable[[], TextTower] | None = None,
        template: str = CLIP_TEMPLATE,
        spaces: bool = True,
        cache: Path | None = None,
    ) -> None:
        super().__init__()
        self.tower, self.template, self.spaces, self.cache = tower, template, spaces, cache
        self.register_buffer("embeddings", None, persistent=False)

    def attach(self, names: Sequence[str], prompts: PromptMethod) -> None:
        texts, build = class_texts(names, self.template, self.spaces), self.tower and functools.cache(self.tower)
        if (not names or on_meta()) and build:
            self.embeddings = torch.zeros(len(names), build().dim)
        else:
            self.embeddings = class_embeddings(build, texts, self.cache)
        self.dim = self.embeddings.shape[-1]
        self._found = getattr(build(), "logit_scale", None) if build and build.cache_info().currsize else None

    @property
    def logit_scale(self) -> Tensor | None:
        """The tower's scale; the tower is built for it if the embeddings came from the cache."""
        if self._found is None and self.tower is not None:
            self._found = getattr(self.tower(), "logit_scale", None)
        return self._found

    def forward(self, features: Tensor) -> Tensor:
        return self.embeddings


class RandomEmbeddings(ClassEmbeddings):
    """Random embeddings in place of frozen texts: a step takes as long, and no files of a tower are needed.

    Args:
        dim: width E.

    Example:
        >>> from avprompt.methods import NoPrompts
        >>> texts = RandomEmbeddings(dim=64)
        >>> texts.attach(["bell", "dog"], NoPrompts())
        >>> texts(torch.rand(1, 10, 64)).shape
        torch.Size([2, 64])
    """

    def __init__(self, dim: Count = 512) -> None:
        super().__init__()
        self.dim, self.logit_scale = dim, torch.tensor(1 / 0.07).log()

    def attach(self, names: Sequence[str], prompts: PromptMethod) -> None:
        self.register_buffer("embeddings", torch.randn(len(names), self.dim), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.embeddings


class ContextEmbeddings(ClassEmbeddings):
    """Sentences in which learned vectors replace some tokens; CLIP's frozen tower runs in every step.

    Args:
        tower: CLIP's text tower.
    """

    def __init__(self, tower: CLIPText) -> None:
        super().__init__()
        self.tower = tower
        for name in ("ids", "end", "places"):  # they depend on the classes and are not saved in a checkpoint
            self.register_buffer(name, None, persistent=False)

    @property
    def dim(self) -> int:  # type: ignore[override]  # read only here: the tower has it
        return self.tower.dim

    @property
    def logit_scale(self) -> Tensor:
        return self.tower.logit_scale

    def place(self, texts: Sequence[str], places: Sequence[Sequence[int]]) -> None:
        """Set K sentences, and for each the positions of the n tokens that learned vectors replace."""
        if on_meta() or not texts:
            self.ids = torch.zeros(len(texts), self.tower.context_length, dtype=torch.long)
            self.end, self.span = self.ids.argmax(-1), (self.tower.context_length - 1,) * 2
        else:
            ids = self.tower.tokenize(texts)
            self.end = ids.argmax(-1)  # the end token has the highest id
            self.span = int(self.end.min()), int(self.end.max())
            self.ids = ids[:, : self.span[1] + 1]
        self.places = torch.tensor([list(own) for own in places], dtype=torch.long)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without the begin and end tokens."""
        return (self.tower.tokenize(texts).argmax(-1) - 1).tolist() if texts and not on_meta() else [1] * len(texts)

    def words(self, text: str) -> Tensor:
        """Embeddings (n, W) of a text's tokens."""
        ids = self.tower.tokenize([text])[0]
        return self.tower.embed(ids[1 : int(ids.argmax())]).detach()

    def splice(self, context: Tensor) -> Tensor:
        """Learned vectors (n, W), (K, n, W) or (M, 1 or K, n, W) -> embedded sentences (K, L, W) or (M, K, L, W)."""
        embedded = self.tower.embed(self.ids)
        if context.ndim == 4:
            embedded = embedded.expand(len(context), -1, -1, -1)
        context = context.to(embedded.dtype).expand(*embedded.shape[:-2], -1, -1)
        places = self.places[..., None].expand(context.shape)
        return embedded.scatter(-2, places, context)


def on_meta() -> bool:
    """Whether modules are being built without weights, to be counted."""
    return torch.get_default_device().type == "meta"
