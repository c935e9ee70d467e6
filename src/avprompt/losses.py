"""Loss terms, one function each, in float32 whatever the precision around them.

AVE's are the four of the released training script (DG-SCT, AVE/main_trans.py), which are summed with weight 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy_of_probability(probability: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, where a network gives probabilities: both of one shape, in [0, 1] -> scalar.

    Clamped to [1e-7, 1 - 1e-7]. PyTorch's own term refuses to run under autocast.
    """
    probability = probability.float().clamp(1e-7, 1 - 1e-7)
    return -(target * probability.log() + (1 - target) * (-probability).log1p()).mean()


def event_targets(event: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split AVE labels (B, T, C + 1), one-hot with background last; a clip has one category or none.

    Returns:
        `foreground` (B, T) float, 1 where an event is on; `category` (B,) long, the clip's event, 0 where it has none;
        `has_event` (B,) bool. Row 26 of AVE's annotations is a clip without one.
    """
    foreground = event[..., :-1].amax(-1)
    category = event[..., :-1].amax(1).argmax(-1)
    return foreground, category, foreground.amax(1) > 0


def segment_relevance(is_event: Tensor, foreground: Tensor) -> Tensor:
    """Binary cross-entropy of event or not, per segment: logits (B, T), targets (B, T) in {0, 1} -> scalar.

    Source: the event-relevance term of CMBS (Xia and Zhao, CVPR 2022), as released.
    """
    return F.binary_cross_entropy_with_logits(is_event.float(), foreground)


def gate_relevance(gate: Tensor, foreground: Tensor,
                   form: Literal["probability", "released"] = "probability") -> Tensor:
    """Binary cross-entropy of the product of both temporal gates: gate (B, T) in (0, 1), targets (B, T) -> scalar.

    Source: released training script; the paper does not have it. The released code takes this probability for a logit
    (`form="released"`), so that its loss can fall no lower than 0.313 on event segments and 0.693 on background;
    `probability` is what the term says.
    """
    gate = gate.float()
    if form == "released":
        return F.binary_cross_entropy_with_logits(gate, foreground)
    return cross_entropy_of_probability(gate, foreground)


def clip_category(scores: Tensor, category: Tensor, has_event: Tensor) -> Tensor:
    """Cross-entropy over event categories: logits (B, C), category (B,), has_event (B,) -> scalar.

    Source: the category term of CMBS, for its event logits and for its pooled segment scores. Clips without any event
    have no category and do not count (the released code files them under class 0; AVE has one, annotated as class 0).
    """
    if not has_event.any():
        return scores.float().sum() * 0.0
    return F.cross_entropy(scores.float()[has_event], category[has_event])


def multi_label(probability: Tensor, target: Tensor, smoothing: float = 1.0) -> Tensor:
    """Binary cross-entropy of weak labels: probabilities and targets (B, C) -> scalar.

    With `smoothing` s below 1 the target is s y + (1 - s) / 2. Source: AVVP's released training script (s = 0.9 for what is
    seen, 1 elsewhere).
    """
    return cross_entropy_of_probability(probability, smoothing * target + (1 - smoothing) / 2)


def token_category(logits: Tensor) -> Tensor:
    """Each class token is to take itself for its class: logits (C, C) -> scalar. Source: MGN (Mo and Tian, 2022)."""
    return F.cross_entropy(logits.float(), torch.arange(len(logits), device=logits.device))


def mask_bce(logits: Tensor, masks: Tensor, annotated: Tensor) -> Tensor:
    """Binary cross-entropy a pixel over the annotated frames: logits, masks (B, T, H, W), annotated (B, T) -> scalar.

    Source: AVSBench (Zhou et al., ECCV 2022), whose S4 training knows the first mask alone.
    """
    return F.binary_cross_entropy_with_logits(logits[annotated].float(), masks[annotated].float())


def masked_audio_visual_kl(visual: Tensor, audio: Tensor) -> Tensor:
    """KL divergence of what is seen under the mask from the sound: both (B, T, stages, C) -> scalar.

    Summed over clips, segments and channels, averaged over stages, as in MS3's released training script: the softmax is
    over channels, the sound is the target and gets a gradient too.
    """
    seen, heard = F.log_softmax(visual.float(), -1), F.softmax(audio.float(), -1)
    return F.kl_div(seen, heard, reduction="sum") / visual.shape[2]


def audio_visual_match(positive: Tensor, negative: Tensor) -> Tensor:
    """Do sound and frame belong together: logits (N, 2) of pairs that do and of pairs that do not -> scalar.

    Source: ST-AVQA (Li et al., CVPR 2022).
    """
    logits = torch.cat((positive, negative)).float()
    target = torch.arange(2, device=logits.device).flip(0).repeat_interleave(len(positive))
    return F.cross_entropy(logits, target)


def text_contrast(logits: Tensor, target: Tensor, has_class: Tensor) -> Tensor:
    """Contrast within a batch, both directions: logits (N, K) of items and classes, target (N,) -> loss of each (N,).

    Source: DG-SCT, equations 9 and 10 (CLIP's loss); an item's text is that of its class. Deviation: items of one class
    share their text, so that all of them are right for each other, in equal parts; the equations count them as wrong.
    Items without a class (`has_class` (N,) false) take no part, their loss is 0.
    """
    target, found = target[has_class], logits.new_zeros(len(logits), dtype=torch.float32)
    scores = logits[has_class].float()[:, target]
    same = (target[:, None] == target).float()
    right = same / same.sum(1, keepdim=True)
    both = (right * (F.log_softmax(scores, 1) + F.log_softmax(scores, 0).T)).sum(1)
    return found.masked_scatter(has_class, -both / 2)


def audio_clip_contrast(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Which picture belongs to a sound, which sound to a picture: logits (B, B), a sound in each row -> two scalars.

    Source: DG-SCT's released few-shot and pretraining scripts; the paper does not have it.
    """
    own = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits.float(), own), F.cross_entropy(logits.float().T, own)


def released_weights(terms: tuple[Tensor, Tensor, Tensor], epoch: int,
                     form: Literal["epochs", "proportional", "misplaced"]) -> tuple[Tensor | float, ...]:
    """Weights of class, sound-to-picture and picture-to-sound terms in DG-SCT's scripts, `epoch` counted from 1.

    `epochs` (AVE): 500 for the class up to epoch 10, then 5; 2 and 1.5. `proportional` (LLP, pretraining): each term's
    own share, L / (epoch + sum) + 1 / epoch, with gradient. `misplaced` (AVE classification) is that with the last
    one's parenthesis as released: L / epoch + sum + 1 / epoch.
    """
    if form == "epochs":
        return (500.0 if epoch <= 10 else 5.0), 2.0, 1.5
    total = torch.stack(terms).sum()
    weights = [term / (epoch + total) + 1 / epoch for term in terms]
    if form == "misplaced":
        weights[2] = terms[2] / epoch + total + 1 / epoch
    return tuple(weights)
