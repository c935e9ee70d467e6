"""Loss terms, one function each, in float32 whatever the precision around them.

AVE's are the four of the released training script (DG-SCT, AVE/main_trans.py), which are summed with weight 1.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F


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
    gate = gate.clamp(1e-7, 1 - 1e-7)  # PyTorch's own term refuses to run under autocast
    return -(foreground * gate.log() + (1 - foreground) * (-gate).log1p()).mean()


def clip_category(scores: Tensor, category: Tensor, has_event: Tensor) -> Tensor:
    """Cross-entropy over event categories: logits (B, C), category (B,), has_event (B,) -> scalar.

    Source: the category term of CMBS, for its event logits and for its pooled segment scores. Clips without any event
    have no category and do not count (the released code files them under class 0; AVE has one, annotated as class 0).
    """
    if not has_event.any():
        return scores.float().sum() * 0.0
    return F.cross_entropy(scores.float()[has_event], category[has_event])
