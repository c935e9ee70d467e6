"""Loss terms against their definitions."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from avprompt import losses


def labels() -> torch.Tensor:
    """Two clips of 4 segments, 3 categories: category 2 in segments 1 and 2, and a clip of background only."""
    event = torch.zeros(2, 4, 4)
    event[0, 1:3, 2] = 1
    event[0, [0, 3], 3] = event[1, :, 3] = 1
    return event


def test_targets() -> None:
    foreground, category, has_event = losses.event_targets(labels())
    assert foreground.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert category.tolist() == [2, 0] and has_event.tolist() == [True, False]


def test_segment_term() -> None:
    logits, foreground = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    expected = -(math.log(1 / (1 + math.exp(-2))) + math.log(1 - 1 / (1 + math.exp(1)))) / 2
    assert torch.isclose(losses.segment_relevance(logits, foreground), torch.tensor(expected))


def test_gate_term_and_its_released_defect() -> None:
    gate, foreground = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert losses.gate_relevance(gate, foreground) < 1e-5  # perfect
    released = losses.gate_relevance(gate, foreground, "released")
    assert torch.isclose(released, torch.tensor((0.3133 + 0.6931) / 2), atol=1e-3)  # its floor
    random = torch.rand(3, 5)
    target = (torch.rand(3, 5) > 0.5).float()
    assert torch.isclose(losses.gate_relevance(random, target), F.binary_cross_entropy(random, target))
    for extreme in (torch.zeros(1, 2), torch.ones(1, 2)):
        extreme.requires_grad_()
        loss = losses.gate_relevance(extreme, torch.tensor([[1.0, 0.0]]))
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(extreme.grad).all()


def test_category_term_ignores_clips_without_an_event() -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    _, category, has_event = losses.event_targets(labels())
    loss = losses.clip_category(scores, category, has_event)
    assert torch.isclose(loss, F.cross_entropy(scores[:1], category[:1]))
    empty = losses.clip_category(scores, category, torch.zeros(2, dtype=torch.bool))
    empty.backward()
    assert empty == 0 and scores.grad.abs().sum() == 0


def test_targets_equal_the_authors_on_every_kind_of_clip() -> None:
    """Their script takes the largest foreground index over time; one category a clip makes that the clip's."""
    generator = torch.Generator().manual_seed(0)
    event = torch.zeros(40, 10, 6)
    for clip in range(40):
        category, first, last = (int(torch.randint(0, n, (), generator=generator)) for n in (5, 11, 11))
        inside = torch.zeros(10, dtype=torch.bool)
        inside[0 if clip == 0 else first : 10 if clip == 0 else last] = True
        event[clip, inside, category], event[clip, ~inside, 5] = 1, 1
    assert (event[..., :5].sum((1, 2)) == 0).any() and (event[..., 5].sum(1) == 0).any()
    foreground, category, has_event = losses.event_targets(event)
    their_foreground, their_categories = event[..., :5].max(-1)
    assert torch.equal(foreground, their_foreground) and torch.equal(category, their_categories.max(-1).values)
    assert torch.equal(has_event, event[..., 5].sum(1) < 10)


def test_released_sum() -> None:
    """The four terms as the authors' script adds them, on clips that all hold an event."""
    event = labels()[:1].repeat(3, 1, 1)
    is_event, gate, scores = torch.randn(3, 4), torch.rand(3, 4), torch.randn(3, 3)
    foreground, category, has_event = losses.event_targets(event)
    bce, cross_entropy = torch.nn.BCEWithLogitsLoss(), torch.nn.CrossEntropyLoss()
    theirs = bce(is_event, foreground) + bce(gate, foreground) + 2 * cross_entropy(scores, category)
    ours = (
        losses.segment_relevance(is_event, foreground)
        + losses.gate_relevance(gate, foreground, "released")
        + 2 * losses.clip_category(scores, category, has_event)
    )
    assert torch.isclose(ours, theirs)


def test_float32_under_mixed_precision() -> None:
    """Every term runs under autocast, gives float32, and equals itself without autocast on the same numbers."""
    generator = torch.Generator().manual_seed(0)
    half, target = torch.randn(2, 3, generator=generator).bfloat16(), torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    terms = {
        "segment": lambda: losses.segment_relevance(half, target),
        "gate": lambda: losses.gate_relevance(half.sigmoid(), target),
        "released gate": lambda: losses.gate_relevance(half.sigmoid(), target, "released"),
        "category": lambda: losses.clip_category(half, torch.tensor([0, 1]), torch.tensor([True, True])),
    }
    for name, term in terms.items():
        plain = term()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert plain.dtype == term().dtype == torch.float32 and torch.equal(plain, term()), name
