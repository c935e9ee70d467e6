"""Loss terms, one function each; they compute in float32 at every training precision.

On several processes a task gives them the outputs and targets of all processes (see `avprompt.tasks.AVPromptTask`,
`gather`), so that their means and comparisons equal those of one process with all clips.

AVE's terms are the four of the released training script (DG-SCT, AVE/main_trans.py), which it sums with weight 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from avprompt.precision import wide

#: target of an item that a cross-entropy leaves out; nothing here selects by a mask, for which a GPU would have to wait
_LEFT_OUT = -100
#: score of what a softmax leaves out: its exponential is zero, and differences of such scores are finite
_NEVER = -1e30


def _binary(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


def cross_entropy_of_probability(probability: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy for networks that return probabilities.

    PyTorch's own function refuses to run under autocast.

    Args:
        probability: in [0, 1], any shape; clamped to [1e-7, 1 - 1e-7].
        target: in [0, 1], same shape.

    Returns:
        Mean over all entries, scalar.

    Example:
        >>> round(float(cross_entropy_of_probability(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]))), 4)
        0.6931
    """
    probability = wide(probability).clamp(1e-7, 1 - 1e-7)
    return -(target * probability.log() + (1 - target) * (-probability).log1p()).mean()


def event_targets(event: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split AVE labels into targets of segments and of clips. A clip has one category or none.

    Args:
        event: (B, T, C + 1) float, one-hot with background last.

    Returns:
        `foreground` (B, T) float, 1 in segments with an event; `category` (B,) long, the event of the clip, 0 where it
        has none; `has_event` (B,) bool. Row 26 of AVE's annotations is a clip without an event.

    Example:
        >>> event_targets(torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]))
        (tensor([[1., 0.]]), tensor([1]), tensor([True]))
    """
    foreground = event[..., :-1].amax(-1)
    category = event[..., :-1].amax(1).argmax(-1)
    return foreground, category, foreground.amax(1) > 0


def segment_relevance(is_event: Tensor, foreground: Tensor) -> Tensor:
    """Binary cross-entropy that tells segments with an event from background.

    Source: the event-relevance term of CMBS (Xia and Zhao, CVPR 2022), as released.

    Args:
        is_event: (B, T) logits.
        foreground: (B, T) in {0, 1}, see `event_targets`.

    Returns:
        Mean over segments, scalar.
    """
    return _binary(wide(is_event), foreground)


def gate_relevance(
    gate: Tensor, foreground: Tensor, form: Literal["probability", "released"] = "probability"
) -> Tensor:
    """Binary cross-entropy that trains the product of both temporal gates to open on events.

    Source: the released training script; the paper does not have this term.

    Args:
        gate: (B, T) in (0, 1), product of both gates.
        foreground: (B, T) in {0, 1}, see `event_targets`.
        form: `probability` treats the gate as the probability that it is. `released` treats it as a logit, as the
            released code does; the loss then cannot fall below 0.313 on event segments and 0.693 on background.

    Returns:
        Mean over segments, scalar.
    """
    gate = wide(gate)
    if form == "released":
        return _binary(gate, foreground)
    return cross_entropy_of_probability(gate, foreground)


def clip_category(scores: Tensor, category: Tensor, has_event: Tensor) -> Tensor:
    """Cross-entropy over event categories, for clips that have one.

    Source: the category term of CMBS, for its event logits and for its pooled segment scores. Clips without an event do
    not count; the released code counts them as class 0 (AVE has one, annotated as class 0).

    Args:
        scores: (B, C) logits.
        category: (B,) long, see `event_targets`.
        has_event: (B,) bool.

    Returns:
        Mean over the clips with an event, scalar; 0 without any.
    """
    category = category.masked_fill(~has_event, _LEFT_OUT)
    total = F.cross_entropy(wide(scores), category, ignore_index=_LEFT_OUT, reduction="sum")
    return total / has_event.sum().clamp(min=1)


def softmax_margin(logits: Tensor, target: Tensor) -> Tensor:
    """Multi-label soft-margin loss of probabilities that are taken for logits, a slip of AVEL's released code.

    It saturates: with 29 categories it cannot fall below 0.680, and an uninformed network has 0.709.

    Args:
        logits: (..., C).
        target: (..., C) one-hot.

    Returns:
        Mean over all entries, scalar.

    Example:
        >>> target = torch.nn.functional.one_hot(torch.tensor([3]), 29).float()
        >>> [round(float(softmax_margin(scale * target, target)), 3) for scale in (0, 100)]
        [0.709, 0.68]
    """
    return _binary(wide(logits).softmax(-1), target)


def pair_similarity(similarity: Tensor, foreground: Tensor) -> Tensor:
    """Pair similarity of PSP (Zhou et al., CVPR 2021, equations 8 and 9): sound and sight agree where the event is.

    Args:
        similarity: (B, T), share of each segment in the clip's similarities.
        foreground: (B, T) in {0, 1}, see `event_targets`.

    Returns:
        Mean squared distance from equal shares of the segments with an event, scalar.

    Example:
        >>> float(pair_similarity(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])))
        0.0
    """
    similarity = wide(similarity)
    return F.mse_loss(similarity, (foreground / foreground.sum(-1, keepdim=True).clamp(min=1)).to(similarity.dtype))


def multi_label(probability: Tensor, target: Tensor, smoothing: float = 1.0) -> Tensor:
    """Binary cross-entropy of weak labels, which name the categories of a whole video.

    Source: AVVP's released training script (`smoothing` 0.9 for visual labels, 1 elsewhere).

    Args:
        probability: (B, C) in [0, 1].
        target: (B, C) in {0, 1}.
        smoothing: s; the target y becomes s y + (1 - s) / 2.

    Returns:
        Mean over videos and categories, scalar.
    """
    return cross_entropy_of_probability(probability, smoothing * target + (1 - smoothing) / 2)


def segment_contrast(similarity: Tensor, temperature: float = 0.2, smoothing: float = 0.1) -> Tensor:
    """Contrast of the segments of a video: a sound belongs to the sight of its own segment.

    Source: MA (Wu and Yang, CVPR 2021), as JoMoLD's released script has it.

    Args:
        similarity: (B, T, T), cosines of each sounding segment (rows) with each seen one.
        temperature: that they are divided by.
        smoothing: weight of the other segments together, inside the logarithm.

    Returns:
        Mean over sounding segments, scalar.

    Example:
        >>> sure, none = 100 * torch.eye(10)[None], torch.zeros(1, 10, 10)
        >>> [round(float(segment_contrast(cosines)), 3) for cosines in (sure, none)]
        [0.105, 2.303]
    """
    shares, count = (wide(similarity) / temperature).softmax(-1), similarity.shape[-1]
    others = smoothing / max(1, count - 1)
    own = shares.diagonal(dim1=1, dim2=2)
    return -((1 - smoothing - others) * own + others * shares.sum(-1)).log().mean()


def token_category(logits: Tensor) -> Tensor:
    """Cross-entropy that trains each class token to predict its own class.

    Source: MGN (Mo and Tian, NeurIPS 2022).

    Args:
        logits: (C, C), the scores of each token's classes in a row.

    Returns:
        Mean over tokens, scalar.
    """
    return F.cross_entropy(wide(logits), torch.arange(len(logits), device=logits.device))


def mask_bce(logits: Tensor, masks: Tensor, annotated: Tensor) -> Tensor:
    """Binary cross-entropy of the pixels of annotated frames.

    Source: AVSBench (Zhou et al., ECCV 2022), whose S4 setting annotates only the first frame of a training video.

    Args:
        logits: (B, T, H, W).
        masks: (B, T, H, W) in {0, 1}.
        annotated: (B, T) bool, frames with a mask.

    Returns:
        Mean over the pixels of annotated frames, scalar; 0 without any.

    Example:
        >>> masks = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]])
        >>> float(mask_bce(20 * (2 * masks - 1), masks, torch.tensor([[True, False]]))) < 1e-6
        True
    """
    logits, masks, annotated = wide(logits), wide(masks), annotated[..., None, None]
    pixels = F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="none")
    count = annotated.sum().clamp(min=1) * logits.shape[-2] * logits.shape[-1]
    return pixels.where(annotated, 0.0).sum() / count


def masked_audio_visual_kl(visual: Tensor, audio: Tensor) -> Tensor:
    """KL divergence between the audio features and the visual features under the predicted mask.

    Source: the released training script of MS3. The softmax is over channels; the audio features are the target,
    through which gradients flow too.

    Args:
        visual: (B, T, stages, C), maps averaged under the predicted mask.
        audio: (B, T, stages, C).

    Returns:
        Sum over clips, segments and channels, mean over stages, scalar.

    Example:
        >>> features = torch.randn(1, 2, 3, 4)
        >>> abs(float(masked_audio_visual_kl(features, features))) < 1e-5
        True
    """
    seen, heard = F.log_softmax(wide(visual), -1), F.softmax(wide(audio), -1)
    return F.kl_div(seen, heard, reduction="sum") / visual.shape[2]


def audio_visual_match(positive: Tensor, negative: Tensor) -> Tensor:
    """Cross-entropy that tells matching pairs of sound and frame from mismatched ones.

    Source: ST-AVQA (Li et al., CVPR 2022).

    Args:
        positive: (N, 2) logits of pairs from the same segment; class 1 is right.
        negative: (N, 2) logits of pairs from different videos; class 0 is right.

    Returns:
        Mean over all pairs, scalar.

    Example:
        >>> sure = torch.tensor([[-20.0, 20.0]])
        >>> float(audio_visual_match(sure, -sure)) < 1e-6
        True
    """
    logits = wide(torch.cat((positive, negative)))
    target = torch.arange(2, device=logits.device).flip(0).repeat_interleave(len(positive))
    return F.cross_entropy(logits, target)


def text_contrast(logits: Tensor, target: Tensor, has_class: Tensor) -> Tensor:
    """Contrastive loss between the items of a batch and the texts of their classes, in both directions.

    Source: DG-SCT, equations 9 and 10 (CLIP's loss); the text of an item is that of its class. Deviation: items of one
    class share their text, so all of them count as positives with equal weight; the equations count them as negatives.

    Args:
        logits: (N, K) of items and classes.
        target: (N,) long, class of each item.
        has_class: (N,) bool; items without a class do not take part.

    Returns:
        The loss of each item, (N,) float32 or wider; 0 for items without a class.
    """
    scores, target = wide(logits), target.masked_fill(~has_class, 0)
    scores = scores[:, target]
    items, texts = (scores.masked_fill(~own, _NEVER) for own in (has_class, has_class[:, None]))
    same = ((target[:, None] == target) & has_class & has_class[:, None]).to(scores.dtype)
    right = same / same.sum(1, keepdim=True).clamp(min=1)
    both = (right * (F.log_softmax(items, 1) + F.log_softmax(texts, 0).T)).sum(1)
    return -both / 2


def audio_clip_contrast(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Contrastive loss between the sounds and the pictures of a batch, in both directions.

    Source: DG-SCT's released few-shot and pretraining scripts; the paper does not have it.

    Args:
        logits: (B, B), a sound in each row and a picture in each column; pairs on the diagonal belong together.

    Returns:
        Two scalars, from sounds to pictures and from pictures to sounds.
    """
    own = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(wide(logits), own), F.cross_entropy(wide(logits).T, own)


def released_weights(
    terms: tuple[Tensor, Tensor, Tensor], epoch: int, form: Literal["epochs", "proportional", "misplaced"]
) -> tuple[Tensor | float, ...]:
    """Weights of the terms in DG-SCT's released few-shot scripts.

    Args:
        terms: losses of the class, from sounds to pictures, and from pictures to sounds, scalars.
        epoch: counted from 1.
        form: `epochs` (AVE): 500 for the class up to epoch 10, then 5; 2 and 1.5. `proportional` (LLP, pretraining):
            the share of each term, L / (epoch + sum) + 1 / epoch, through which gradients flow. `misplaced` (AVE
            classification): the same, but with the parenthesis of the last term as released, L / epoch + sum + 1 /
            epoch.

    Returns:
        Three weights.
    """
    if form == "epochs":
        return (500.0 if epoch <= 10 else 5.0), 2.0, 1.5
    total = torch.stack(terms).sum()
    weights = [term / (epoch + total) + 1 / epoch for term in terms]
    if form == "misplaced":
        weights[2] = terms[2] / epoch + total + 1 / epoch
    return tuple(weights)
