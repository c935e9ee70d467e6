"""Images and sounds compared with texts: cosines, their scales, and the fusion of both modalities.

image embedding (B, T, E) --{adapter}--+                    +--{adapter}-- audio embedding (B, T, E)
                                       |                    |
                                  cosine * scale       cosine * scale
                                   |   |                    |   |
image texts (K, E) ----{adapter}---+   +------ fusion ------+   +---{adapter}---- audio texts (K, E)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt.encoders.base import without_autocast
from avprompt.errors import ArgumentError
from avprompt.heads.clip_adapter import CLIPAdapter
from avprompt.methods.class_embeddings import ClassEmbeddings
from avprompt.precision import wide
from avprompt.processes import gathered

Fusion = Literal["paper", "sum", "weighted", "mean", "trained"]
#: where a feature adapter can stand
PLACES = ("visual", "visual_texts", "audio", "audio_texts")


def visual_weight(visual: Tensor, audio: Tensor) -> Tensor:
    """The paper's w1 = y_v / (y_v + y_a) (equation 11): logits (..., K) of both modalities -> weight (...) in (0, 1).

    The matching score y of a modality is the probability of its best class ("more certain in determining the
    category"). The paper does not define y; with logits, which may have either sign, the quotient would be meaningless.
    No gradient flows through the weight, which the paper calls a hyperparameter.

    Example:
        >>> visual_weight(torch.tensor([9.0, 0.0]), torch.tensor([0.0, 0.0]))
        tensor(0.6666)
    """
    certain = [wide(scores.detach()).softmax(-1).amax(-1) for scores in (visual, audio)]
    return certain[0] / (certain[0] + certain[1])


def fuse(visual: Tensor, audio: Tensor, rule: Fusion = "paper", weight: Tensor | None = None) -> Tensor:
    """Logits (..., K) of both modalities -> logits (..., K).

    Args:
        visual: of images and texts.
        audio: of sounds and texts.
        rule: `paper`: w1 visual + (1 - w1) audio with `visual_weight`; `sum`: 2 visual + 2 audio (DG-SCT's released
            few-shot code); `weighted`: w1 = visual / (visual + audio) for each class (its pretraining and zero-shot
            code). Where signs differ it is not between 0 and 1, and where the sum is zero it is infinite; `mean`: half
            of each, late fusion without training; `trained`: sigmoid(weight) visual + (1 - sigmoid(weight)) audio.
        weight: scalar, of `trained`; 0 is the mean.

    Example:
        >>> fuse(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]), "sum")
        tensor([8., 4.])
    """
    if rule == "sum":
        return 2 * visual + 2 * audio
    if rule == "weighted":
        share = visual / (visual + audio)
    elif rule in ("mean", "trained"):
        share = 0.5 if rule == "mean" else weight.sigmoid()
    else:
        share = visual_weight(visual, audio).unsqueeze(-1)
    return share * visual + (1 - share) * audio


class Matching(nn.Module):
    """Compares sounds with pictures of a batch (DG-SCT's released code; the paper does not have it).

    Args:
        audio_dim: E_a.
        visual_dim: E_v.
        gather: in training on several processes, compare the clips of all.

    Example:
        >>> Matching(audio_dim=4, visual_dim=6)(torch.rand(3, 10, 6), torch.rand(3, 10, 4)).shape
        torch.Size([3, 3])
    """

    def __init__(self, audio_dim: int, visual_dim: int, gather: bool = True) -> None:
        super().__init__()
        self.gather = gather
        self.audio = nn.Linear(audio_dim, visual_dim)

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Embeddings (B, T, E_v), (B, T, E_a) -> cosines (B, B) of their means over segments, a sound in each row."""
        sounds, pictures = F.normalize(self.audio(audio).mean(1), dim=-1), F.normalize(visual.mean(1), dim=-1)
        if self.gather:
            sounds, pictures = gathered(sounds), gathered(pictures)
        return sounds @ pictures.T


class ModalityTextHead(nn.Module):
    """Compares the embeddings of one modality with its texts.

    Args:
        texts: attached to the classes.
        adapters: `CLIPAdapter` on the embeddings, on the texts; `None` for none.
        log_scale: logarithm of the scale of cosines.
        learned: train the scale; as in CLIP it is then limited to 100.
        exponential: multiply by the scale. `False` multiplies by its logarithm, a defect of DG-SCT's released audio
            branch.

    Example:
        >>> from avprompt.methods import NoPrompts, RandomEmbeddings
        >>> texts = RandomEmbeddings(dim=6)
        >>> texts.attach(["bell", "dog", "violin"], NoPrompts())
        >>> ModalityTextHead(texts, [None, None], torch.tensor(4.6), learned=False)(torch.rand(2, 10, 6)).shape
        torch.Size([2, 10, 3])
    """

    def __init__(
        self,
        texts: ClassEmbeddings,
        adapters: Sequence[CLIPAdapter | None],
        log_scale: Tensor,
        learned: bool,
        exponential: bool = True,
    ) -> None:
        super().__init__()
        self.texts, self.exponential = texts, exponential
        self.adapter, self.text_adapter = (adapter or nn.Identity() for adapter in adapters)
        if learned:
            self.log_scale = nn.Parameter(log_scale.detach().clone())
        else:
            self.register_buffer("log_scale", log_scale.detach().clone(), persistent=False)

    @property
    def scale(self) -> Tensor:
        """The factor of the cosines."""
        if self.training and self.log_scale.requires_grad:
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(100))
        return self.log_scale.exp() if self.exponential else self.log_scale

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, T, E) -> logits (B, T, K), float32."""
        features = F.normalize(wide(self.adapter(embeddings)), dim=-1)
        texts = F.normalize(wide(self.text_adapter(self.texts(features))), dim=-1)
        with without_autocast(features.device):
            return wide(self.scale) * (features.unsqueeze(-2) @ texts.transpose(-1, -2)).squeeze(-2)


class ContrastiveHead(nn.Module):
    """Both modalities with their texts, their fusion, and the comparison of sounds with pictures.

    Args:
        texts: by modality, `visual` and `audio`, attached to the classes; one of them may be missing.
        log_scales: logarithms of the scales of cosines, by modality.
        adapters: places (`PLACES`) of feature adapters.
        adapter_ratio: see `CLIPAdapter`.
        fusion: see `fuse`.
        learned_scales: see `ModalityTextHead`.
        exp_audio_scale: `exponential` of the audio modality, see `ModalityTextHead`.
        matching: whether sounds are also compared with pictures, see `Matching`.
        gather: see `Matching`.

    Raises:
        ArgumentError: there are no texts, or an adapter, the matching or a trained fusion lacks the modality that it
            needs.

    Example:
        >>> from avprompt.methods import NoPrompts, RandomEmbeddings
        >>> texts = {"visual": RandomEmbeddings(dim=6), "audio": RandomEmbeddings(dim=4)}
        >>> for embeddings in texts.values():
        ...     embeddings.attach(["bell", "dog", "violin"], NoPrompts())
        >>> head = ContrastiveHead(texts, dict.fromkeys(texts, torch.tensor(4.6)))
        >>> outputs = head(torch.rand(2, 10, 6), torch.rand(2, 10, 4))
        >>> {name: tuple(value.shape) for name, value in outputs.items()}
        {'logits': (2, 10, 3), 'visual_weight': (2, 10), 'visual_logits': (2, 10, 3), 'audio_logits': (2, 10, 3)}
    """

    def __init__(
        self,
        texts: dict[str, ClassEmbeddings],
        log_scales: dict[str, Tensor],
        adapters: Sequence[str] = (),
        adapter_ratio: float = 0.2,
        fusion: Fusion = "paper",
        learned_scales: bool = False,
        exp_audio_scale: bool = True,
        matching: bool = False,
        gather: bool = True,
    ) -> None:
        super().__init__()
        known = [place for place in PLACES if place.removesuffix("_texts") in texts]
        if not texts or not set(adapters) <= set(known) or len(set(adapters)) != len(adapters):
            raise ArgumentError(
                "adapters",
                list(adapters),
                f"different ones of {known or 'no branch'}",
                "Give visual_texts or audio_texts, and adapters only where there is a branch.",
            )
        if matching and len(texts) < 2:
            raise ArgumentError("objective", "released", "image and audio texts", "Use objective: class.")
        if fusion == "trained" and len(texts) < 2:
            raise ArgumentError("fusion", "trained", "image and audio texts", "Leave out `fusion`.")
        self.fusion = fusion
        self.weight = nn.Parameter(torch.zeros(())) if fusion == "trained" else None

        def branch(side: str) -> ModalityTextHead:
            added = [
                CLIPAdapter(texts[side].dim, adapter_ratio) if place in adapters else None
                for place in (side, f"{side}_texts")
            ]
            return ModalityTextHead(
                texts[side], added, log_scales[side], learned_scales, side == "visual" or exp_audio_scale
            )

        self.branches = nn.ModuleDict({side: branch(side) for side in texts})
        self.matching = Matching(texts["audio"].dim, texts["visual"].dim, gather) if matching else None

    def forward(self, visual: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
        """Embeddings (B, T, E) of each modality that has texts -> outputs.

        Returns:
            `logits` (B, T, K); with both modalities also `visual_logits`, `audio_logits` (B, T, K) and `visual_weight`
            (B, T) in (0, 1), see `visual_weight`; with matching `matching` (B, B) logits, a sound in each row.
        """
        given = {"visual": visual, "audio": audio}
        scores = {side: branch(given[side]) for side, branch in self.branches.items()}
        if len(scores) == 1:
            return {"logits": next(iter(scores.values()))}
        out = {
            "logits": fuse(scores["visual"], scores["audio"], self.fusion, self.weight),
            "visual_weight": visual_weight(scores["visual"], scores["audio"]),
        }
        out |= {f"{side}_logits": logits for side, logits in scores.items()}
        if self.matching is not None:
            with without_autocast(visual.device):
                cosines = self.matching(wide(visual), wide(audio))
            out["matching"] = wide(self.branches["visual"].scale) * cosines
        return out
