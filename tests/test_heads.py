"""The event localisation head: the authors' function, its switches, and the baselines beside it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

import pytest
import torch
from conftest import SHARED
from torch import Tensor, nn

from avprompt import losses
from avprompt.convert.heads import CMBS
from avprompt.heads.cmbs import CMBSHead, LateFusionHead, SingleHead, audio_stream, clip_scores, visual_stream

AUDIO, VISUAL, CLASSES = 24, 40, 5

#: kind -> head, and which features it takes
HEADS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "both": (lambda: CMBSHead(AUDIO, VISUAL, CLASSES), ("audio", "visual")),
    "both, gates off": (lambda: CMBSHead(AUDIO, VISUAL, CLASSES, (0.0, 0.0)), ("audio", "visual")),
    "audio": (lambda: SingleHead(audio_stream(AUDIO), CLASSES), ("audio",)),
    "visual": (lambda: SingleHead(visual_stream(VISUAL), CLASSES), ("visual",)),
    "late": (lambda: LateFusionHead(AUDIO, VISUAL, CLASSES), ("audio", "visual")),
}


def features(clips: int = 2, segments: int = 10, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "audio": torch.randn(clips, segments, AUDIO, generator=generator),
        "visual": torch.randn(clips, segments, VISUAL, generator=generator),
    }


def build(kind: str) -> tuple[nn.Module, Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    """A head in eval mode and a call of it on features."""
    make, takes = HEADS[kind]
    head = make().eval()
    return head, lambda given: head(*(given[name] for name in takes))


def released_name(name: str) -> str:
    """The authors' name of one of our parameters."""
    ours = max((ours for ours in CMBS.prefixes.values() if name.startswith(ours)), key=len)
    theirs = {ours: theirs for theirs, ours in CMBS.prefixes.items()}[ours]
    return theirs + name.removeprefix(ours)


def draw(name: str, shape: torch.Size) -> Tensor:
    """Weight seeded by the authors' name, no path dead."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if numbers.ndim > 1:
        return numbers / shape[-1] ** 0.5
    return 1 + 0.1 * numbers if ".norm" in name and name.endswith("weight") else 0.1 * numbers


#: output -> (distance of the elements listed, elements): what the authors' `TemporalAttention` and `CMBS` gave in eval mode,
#: float32, on the features and with the weights (by `draw`) of `test_outputs_equal_the_authors`
AUTHORS = {
    "is_event": (3, [-1.073068, -1.025276, -1.276374, -0.839182, -1.121569, -0.667224, -0.158362]),
    "event": (7, [-0.415738, -0.5044, 0.901184, 1.097563, -0.15096, -0.893961, -0.407601, 1.409921]),
    "gate": (3, [0.252684, 0.251979, 0.24515, 0.223723, 0.244299, 0.183912, 0.359647]),
    "video_scores": (7, [-0.445629, 1.222228, 0.512393, 0.956787, -0.862395, 0.77847, 0.087219, 0.564289]),
}


@pytest.mark.parametrize("graph", [True, False], ids=["with graph", "fused inference path"])
def test_outputs_equal_the_authors(graph: bool) -> None:
    head = CMBSHead(768, 1536, 28).eval()
    head.load_state_dict({name: draw(released_name(name), value.shape) for name, value in head.state_dict().items()})
    generator = torch.Generator().manual_seed(0)
    audio, visual = (torch.randn(2, 10, dim, generator=generator) for dim in (768, 1536))
    with torch.set_grad_enabled(graph):
        outputs = head(audio, visual)
    for name, (distance, values) in AUTHORS.items():
        assert (outputs[name].flatten()[::distance] - torch.tensor(values)).abs().max() < 1e-5, name


def test_every_released_key_has_one_place() -> None:
    path = SHARED / "parity" / "keys_ave.txt"
    if not path.is_file():
        pytest.skip("the list of the released checkpoint's keys is not on this machine")
    released = {}
    for line in path.read_text().splitlines():
        name, shape, _ = line.split("\t")
        if name.startswith(("temporal_attn.", "CMBS.")):
            released[name] = tuple(int(size) for size in re.findall(r"\d+", shape))
    dead = {name for name in released if any(re.match(pattern, name) for pattern in CMBS.dead)}
    ours = {released_name(name): tuple(p.shape) for name, p in CMBSHead(768, 1536, 28).named_parameters()}
    assert ours == {name: shape for name, shape in released.items() if name not in dead}
    for pattern in CMBS.dead[:-1]:  # the last one is outside of the head
        assert any(re.match(pattern, name) for name in released), pattern


@pytest.mark.parametrize(("gates", "moved"), [((0.1, 0.0), "audio"), ((0.0, 0.1), "visual"), ((0.0, 0.0), None)])
def test_each_gate_guides_the_other_modality_and_can_be_switched_off(
    gates: tuple[float, float], moved: str | None
) -> None:
    """The gate output itself depends on both gates whatever their strength."""
    for name in ("audio", "visual"):
        head, given = CMBSHead(AUDIO, VISUAL, CLASSES, gates).eval(), features()
        with torch.no_grad():
            before = head(**given)
            getattr(head, name).gate.bias += 2
            after = head(**given)
        assert (after["gate"] > before["gate"]).all()
        for output in ("is_event", "event", "video_scores"):
            assert torch.equal(after[output], before[output]) == (name != moved), (name, output)


def test_the_strength_of_a_gate_is_gamma_times_its_sigmoid() -> None:
    """Audio gate at 1, visual gate at 0: the visual branch is scaled by 1 + gamma, the audio branch by 1."""
    head, given = CMBSHead(AUDIO, VISUAL, CLASSES, (0.5, 0.5)).eval(), features()
    seen: dict[str, Tensor] = {}
    for name in ("audio", "visual"):
        getattr(head, f"{name}_decoder").register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        getattr(head, f"{name}_scores").register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({f"{name} gated": inputs[0]})
        )
        gate = getattr(head, name).gate
        nn.init.zeros_(gate.weight)
        nn.init.constant_(gate.bias, 50.0 if name == "audio" else -50.0)
    head(**given)
    assert torch.allclose(seen["visual gated"], 1.5 * seen["visual"]) and torch.allclose(
        seen["audio gated"], seen["audio"]
    )


def test_clip_scores_by_hand() -> None:
    scores = torch.tensor([[[1.0, 0.0], [5.0, 0.0], [2.0, -8.0], [3.0, 4.0], [0.0, 4.0], [4.0, 0.0]]])
    assert clip_scores(scores).tolist() == [[(5 + 4 + 3 + 2) / 4, 2.0]]
    assert clip_scores(scores[:, :2]).tolist() == [[3.0, 0.0]]  # fewer segments than votes


@pytest.mark.parametrize("kind", HEADS)
def test_outputs_of_every_head(kind: str) -> None:
    _, run = build(kind)
    for clips, segments in ((2, 10), (1, 3), (1, 1)):
        outputs = run(features(clips, segments))
        shapes = {name: tuple(value.shape) for name, value in outputs.items()}
        assert shapes == {
            "is_event": (clips, segments),
            "event": (clips, CLASSES),
            "gate": (clips, segments),
            "video_scores": (clips, CLASSES),
        }
        assert ((outputs["gate"] > 0) & (outputs["gate"] < 1)).all()


@pytest.mark.parametrize("kind", HEADS)
def test_every_parameter_learns(kind: str) -> None:
    """Under the four losses, in train mode, with a foreground and a background segment."""
    torch.manual_seed(1)
    head, run = build(kind)
    head.train()
    event = torch.zeros(2, 10, CLASSES + 1)
    event[0, :4, 1] = event[1, 3:, 2] = event[0, 4:, -1] = event[1, :3, -1] = 1
    foreground, category, has_event = losses.event_targets(event)
    outputs = run(features())
    terms = (
        losses.segment_relevance(outputs["is_event"], foreground),
        losses.gate_relevance(outputs["gate"], foreground),
        losses.clip_category(outputs["event"], category, has_event),
        losses.clip_category(outputs["video_scores"], category, has_event),
    )
    torch.stack(terms).sum().backward()
    dead = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


@pytest.mark.parametrize("kind", HEADS)
def test_clips_do_not_influence_each_other(kind: str) -> None:
    _, run = build(kind)
    with torch.no_grad():
        given = features(3)
        whole = run(given)
        single = [run({name: value[clip : clip + 1] for name, value in given.items()}) for clip in range(3)]
    for name, value in whole.items():
        assert torch.allclose(value, torch.cat([part[name] for part in single]), atol=1e-5), name


@pytest.mark.parametrize("kind", HEADS)
def test_mixed_precision(kind: str) -> None:
    """Finite and close in bfloat16; the gate stays in float32, where its loss can tell 0.999 from 1."""
    _, run = build(kind)
    with torch.no_grad():
        exact = run(features())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = run(features())
    assert mixed["gate"].dtype == torch.float32
    for name, value in exact.items():
        assert torch.allclose(mixed[name].float(), value, atol=0.1), name


def test_one_modality_has_the_same_temporal_model_as_in_both() -> None:
    both, late = CMBSHead(AUDIO, VISUAL, CLASSES), LateFusionHead(AUDIO, VISUAL, CLASSES)
    for name, stream in (("audio", audio_stream(AUDIO)), ("visual", visual_stream(VISUAL))):
        head = SingleHead(stream, CLASSES)
        for other in (getattr(both, name), getattr(late, name).stream):
            assert {k: v.shape for k, v in head.stream.state_dict().items()} == {
                k: v.shape for k, v in other.state_dict().items()
            }


def test_late_fusion_averages_two_single_heads() -> None:
    head, given = LateFusionHead(AUDIO, VISUAL, CLASSES).eval(), features()
    with torch.no_grad():
        outputs, audio, visual = head(**given), head.audio(given["audio"]), head.visual(given["visual"])
    for name in ("is_event", "event", "video_scores"):
        assert torch.allclose(outputs[name], (audio[name] + visual[name]) / 2)
    assert torch.allclose(outputs["gate"], audio["gate"] * visual["gate"])


def test_dropout_is_the_released() -> None:
    """0.2 behind the activated visual projection and nowhere else; 0.1 in attention and feed-forward blocks."""
    head = CMBSHead(AUDIO, VISUAL, CLASSES)
    rates = {name: module.p for name, module in head.named_modules() if isinstance(module, nn.Dropout)}
    assert rates.pop("visual.activation.1") == 0.2 and set(rates.values()) == {0.1}
    attention = {module.dropout for module in head.modules() if isinstance(module, nn.MultiheadAttention)}
    assert attention == {0.1} and isinstance(head.audio.activation, nn.Identity)
    given = features()
    head.train()
    assert not torch.equal(head(**given)["is_event"], head(**given)["is_event"])
