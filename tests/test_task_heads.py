"""Heads of parsing, segmentation and question answering: their functions, switches, and that no part of them is dead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avprompt import losses
from avprompt.encoders.base import BlockSpec
from avprompt.errors import ArgumentError, ShapeError
from avprompt.heads.avs_decoder import TPAVI, AVSDecoder
from avprompt.heads.mgn import Assignment, MGNHead
from avprompt.heads.st_avqa import STAVQAHead

AUDIO, VISUAL, CLASSES, SEGMENTS = 24, 40, 5, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_alive(head: nn.Module, outputs: dict[str, Tensor], dead: tuple[str, ...] = ()) -> None:
    """A gradient for every parameter, from a scalar that is flat in no output."""
    generator = torch.Generator().manual_seed(3)
    sum((value * torch.randn(value.shape, generator=generator)).sum() for value in outputs.values()).backward()
    for name, parameter in head.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert moved is not (name in dead), name


def enliven(head: nn.Module) -> nn.Module:
    """Open what starts at zero, so that nothing behind it is hidden."""
    with torch.no_grad():
        for parameter in head.parameters():
            if not parameter.any():
                parameter.copy_(0.3 * draw(*parameter.shape, seed=9))
    return head


# --- video parsing


def mgn(**options: object) -> MGNHead:
    return enliven(MGNHead(AUDIO, VISUAL, CLASSES, SEGMENTS, **{"video_dim": 16, **options})).eval()


def clips(count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return draw(count, SEGMENTS, AUDIO), draw(count, SEGMENTS, VISUAL, seed=1), draw(count, SEGMENTS, 16, seed=2)


@pytest.mark.parametrize("options", [{}, {"video_dim": 0}, {"gate_audio": True}, {"gates": (0.0, 0.0)}])
def test_parsing_head_has_no_dead_parameter(options: dict[str, object]) -> None:
    head = mgn(**options)
    audio, visual, video = clips()
    outputs = head(audio, visual, None if head.video_project is None else video)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "video_prob": (2, 5),
        "audio_video_prob": (2, 5),
        "audio_prob": (2, 4, 5),
        "visual_video_prob": (2, 5),
        "visual_prob": (2, 4, 5),
        "audio_token_logits": (5, 5),
        "visual_token_logits": (5, 5),
    }
    assert_alive(head, outputs)


def test_a_segments_probability_is_the_clips_weighed() -> None:
    """As released: between once and twice the clip's; over the segments the weights add up to T + 1."""
    outputs = mgn()(*clips())
    for name in ("audio", "visual"):
        weights = outputs[f"{name}_prob"] / outputs[f"{name}_video_prob"].unsqueeze(1)
        assert ((weights > 1) & (weights < 2)).all()
        assert torch.allclose(weights.sum(1), torch.tensor(SEGMENTS + 1.0), atol=1e-4)


def test_parsing_head_needs_the_features_it_was_built_for() -> None:
    audio, visual, video = clips()
    for given in (None, video[..., :8]):
        with pytest.raises(ShapeError, match="video_features.*video_dim 0"):
            mgn()(audio, visual, given)


def test_gates_of_parsing_open_in_their_own_direction() -> None:
    """Sound gates sight; sight gates sound only where asked for, which the released network overwrites."""
    audio, visual, video = clips()
    for options, moves in (({}, False), ({"gate_audio": True}, True)):
        head = mgn(**options)
        before = head(audio, visual, video)["audio_token_logits"]
        assert (head.visual_gate is not None) is moves and head.audio_gate is not None
        assert torch.equal(before, head(audio, visual, video)["audio_token_logits"])
    quiet = mgn(gates=(0.0, 0.0))
    assert quiet.audio_gate is None and quiet.visual_gate is None


def test_hard_assignment_gives_each_segment_to_one_group() -> None:
    torch.manual_seed(0)
    assign = Assignment(8, hard=True).eval()
    assign.value.weight.data.copy_(torch.eye(8))
    assign.proj.weight.data.copy_(torch.eye(8))
    for part in (assign.value, assign.proj):
        part.bias.data.zero_()
    groups, segments = draw(1, 3, 8), torch.eye(8)[:6].unsqueeze(0)
    gathered, soft = assign(groups, segments)
    assert torch.allclose(soft.sum(1), torch.ones(1, 6))
    owner = soft.argmax(1)[0]
    counts = torch.bincount(owner, minlength=3)
    # a group of n segments holds each with weight 1 / (n + 1)
    expected = F.one_hot(owner, 3).T / (counts[:, None] + 1)
    assert torch.allclose(gathered[0, :, :6], expected, atol=1e-6)
    assert torch.equal(assign(groups, segments)[0], gathered)
    noisy = {tuple(assign.train()(groups, segments)[0].flatten().tolist()) for _ in range(8)}
    assert len(noisy) > 1  # Gumbel noise in training


# --- segmentation

STAGES = [BlockSpec(16, (8, 8), 0), BlockSpec(24, (4, 4), 1)]


def pyramid(count: int = 2, seed: int = 0) -> list[Tensor]:
    return [draw(count, SEGMENTS, spec.tokens, spec.dim, seed=seed + k) for k, spec in enumerate(STAGES)]


def decoder(**options: object) -> AVSDecoder:
    torch.manual_seed(0)
    return enliven(AVSDecoder(AUDIO, STAGES, **{"mask_size": 32, "width": 16, **options})).eval()


def test_linear_interaction_is_the_quadratic_one() -> None:
    """Every position of every segment with every other: the square matrix that is never built."""
    torch.manual_seed(0)
    module = enliven(TPAVI(16)).double().eval()
    x, sound = draw(2, 3, 6, 16).double(), draw(2, 3, 128, seed=1).double()
    with torch.no_grad():
        aligned = module.align(sound)
        theta = module.query(x).flatten(1, 2)
        phi = module.key(aligned)[:, :, None].expand(-1, -1, 6, -1).flatten(1, 2)
        square = theta @ phi.transpose(1, 2) / (3 * 6)
        y = module.expand(square @ module.value(x).flatten(1, 2))
        expected = module.norm(module.bn(y.flatten(0, 1)).view_as(x) + x)
        found, audio = module(x, sound)
    assert torch.allclose(found, expected, atol=1e-12) and torch.equal(audio, aligned)


def test_untrained_interaction_adds_nothing() -> None:
    module, x = TPAVI(16).eval(), draw(2, 3, 6, 16)
    assert torch.allclose(module(x, draw(2, 3, 128))[0], F.layer_norm(x, (16,)), atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"gates": (0.0, 0.1)}, {"gates": (0.1, 0.0)}, {"gates": (0.0, 0.0)}, {"rectified": False}]
)
def test_decoder_has_no_dead_parameter(options: dict[str, object]) -> None:
    head = decoder(matching=True, **options)
    outputs = head(draw(2, SEGMENTS, AUDIO, seed=5), pyramid())
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "masks": (2, SEGMENTS, 32, 32),
        "matched_visual": (2, SEGMENTS, 2, 16),
        "matched_audio": (2, SEGMENTS, 2, 16),
    }
    assert_alive(head, outputs)


def test_decoder_reads_sound_and_every_stage() -> None:
    head, sound = decoder(), draw(2, SEGMENTS, AUDIO, seed=5)
    base = head(sound, pyramid())["masks"]
    assert set(head(sound, pyramid())) == {"masks"}
    assert not torch.allclose(base, head(sound + 1, pyramid())["masks"])
    for stage in range(2):
        maps = pyramid()
        maps[stage] = maps[stage] + draw(*maps[stage].shape, seed=8)
        assert not torch.allclose(base, head(sound, maps)["masks"])
    assert not torch.allclose(base, decoder(rectified=False)(sound, pyramid())["masks"])


def test_clips_of_a_batch_do_not_meet_in_the_decoder() -> None:
    head, sound, maps = decoder(), draw(3, SEGMENTS, AUDIO, seed=5), pyramid(3)
    whole = head(sound, maps)["masks"]
    alone = head(sound[1:2], [m[1:2] for m in maps])["masks"]
    assert torch.allclose(whole[1:2], alone, atol=1e-5)


@pytest.mark.parametrize("options", [{"mask_size": 20}, {"width": 12}])
def test_impossible_decoders(options: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        decoder(**options)


def test_mask_terms() -> None:
    logits, masks = draw(2, 3, 4, 4), (draw(2, 3, 4, 4, seed=1) > 0).float()
    annotated = torch.tensor([[True, False, False], [True, True, False]])
    expected = torch.stack(
        [F.binary_cross_entropy(logits[b, t].sigmoid(), masks[b, t]) for b, t in ((0, 0), (1, 0), (1, 1))]
    ).mean()
    assert torch.isclose(losses.mask_bce(logits, masks, annotated), expected, atol=1e-6)
    visual, audio = draw(2, 3, 4, 8), draw(2, 3, 4, 8, seed=1)
    by_stage = [
        F.kl_div(
            visual[:, :, k].flatten(0, 1).softmax(-1).log(), audio[:, :, k].flatten(0, 1).softmax(-1), reduction="sum"
        )
        for k in range(4)
    ]
    assert torch.isclose(losses.masked_audio_visual_kl(visual, audio), sum(by_stage) / 4, rtol=1e-5)
    assert losses.masked_audio_visual_kl(audio, audio) < 1e-5


# --- question answering


def avqa() -> STAVQAHead:
    torch.manual_seed(0)
    return STAVQAHead(AUDIO, VISUAL, num_answers=7, words=9).eval()


def asked(count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return (
        draw(count, SEGMENTS, AUDIO),
        draw(count, SEGMENTS, 6, VISUAL, seed=1),
        torch.arange(1, 1 + 5 * count).view(count, 5) % 9,
    )


def test_question_head_has_no_dead_parameter() -> None:
    head, (sound, tokens, question) = avqa(), asked()
    outputs = head(sound, tokens, question, draw(*tokens.shape, seed=4))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "answer": (2, 7),
        "grounding": (2, SEGMENTS, 6),
        "match_positive": (8, 2),
        "match_negative": (8, 2),
    }
    assert_alive(head, {name: value for name, value in outputs.items() if name != "grounding"})


def test_grounding_points_where_it_sounds() -> None:
    """The map is highest where a token points the way the sound does."""
    head, (sound, tokens, question) = avqa(), asked()
    direction = head.grounding.audio(sound)
    tokens = tokens.clone()
    tokens[:, :, 3] = 2 * direction
    grounding = head(sound, tokens, question)["grounding"]
    assert torch.allclose(grounding.sum(-1), torch.ones(2, SEGMENTS)) and (grounding.argmax(-1) == 3).all()


def test_answers_depend_on_question_sound_and_sight() -> None:
    head, (sound, tokens, question) = avqa(), asked()
    base = head(sound, tokens, question)
    assert set(base) == {"answer", "grounding"}
    others = (head(sound, tokens, question.flip(1)), head(-sound, tokens, question), head(sound, -tokens, question))
    for other in others:
        assert not torch.allclose(base["answer"], other["answer"], atol=1e-5)


def test_match_term_is_cross_entropy_over_both_kinds() -> None:
    positive, negative = draw(6, 2), draw(6, 2, seed=1)
    interleaved = torch.stack((positive, negative), 1).flatten(0, 1)  # as the released script orders them
    expected = F.cross_entropy(interleaved, torch.tensor([1, 0]).repeat(6))
    assert torch.isclose(losses.audio_visual_match(positive, negative), expected)
    sure = torch.tensor([[-9.0, 9.0]])
    assert losses.audio_visual_match(sure, -sure) < 1e-6


def test_weak_label_terms() -> None:
    probability, target = torch.tensor([[0.9, 0.2]]), torch.tensor([[1.0, 0.0]])
    assert torch.isclose(losses.multi_label(probability, target), F.binary_cross_entropy(probability, target))
    smooth = losses.multi_label(probability, target, 0.9)
    assert torch.isclose(smooth, F.binary_cross_entropy(probability, torch.tensor([[0.95, 0.05]])))
    assert torch.isfinite(losses.multi_label(torch.tensor([[0.0, 1.0]]), target))
    logits = draw(4, 4)
    assert torch.isclose(losses.token_category(logits), F.cross_entropy(logits, torch.arange(4)))


def test_heads_run_in_bfloat16() -> None:
    audio, visual, video = clips()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = {
            **mgn().train()(audio, visual, video),
            **decoder(matching=True).train()(draw(2, SEGMENTS, AUDIO), pyramid()),
            **avqa().train()(*asked()),
        }
    assert all(torch.isfinite(value.float()).all() for value in outputs.values())
