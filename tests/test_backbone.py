"""The walk: pairing, checkpointing, shapes, errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from small import SEGMENTS, SmallHTSAT, SmallSwin, small_clips

from avprompt import AVPromptBackbone
from avprompt.backbone import pair_blocks, spread
from avprompt.encoders import BlockSpec
from avprompt.errors import ArgumentError, ShapeError
from avprompt.methods import DGSCT, DGSCTPaper, NoPrompts, PromptMethod
from avprompt.methods.base import mean_or_class_token


def test_partners_are_spread_evenly_and_end_together() -> None:
    assert spread(18, 6) == [2, 5, 8, 11, 14, 17]
    swin_l, htsat = [2, 2, 18, 2], [2, 2, 6, 2]
    sites = pair_blocks(swin_l, htsat)
    assert sites == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (6, 4),
        (9, 5),
        (12, 6),
        (15, 7),
        (18, 8),
        (21, 9),
        (22, 10),
        (23, 11),
    ]
    assert pair_blocks([12], [2, 2, 6, 2]) == [(i, i) for i in range(12)]
    assert pair_blocks([24], [2, 2, 6, 2]) == [(2 * i + 1, i) for i in range(12)]


def backbone(
    checkpointing: str = "none", method: Callable[..., PromptMethod] = partial(DGSCT, num_tokens=4, reduction=4)
) -> AVPromptBackbone:
    torch.manual_seed(0)
    net = AVPromptBackbone(SmallSwin(), SmallHTSAT(), method(), checkpointing=checkpointing)
    for name, parameter in net.prompts.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.5)
    return net


def test_features() -> None:
    net, batch = backbone(), small_clips()
    features = net(batch, maps=True)
    assert features.visual.shape == (2, SEGMENTS, 32) and features.audio.shape == (2, SEGMENTS, 32)
    assert [tuple(p.shape) for p in features.pyramid] == [(2, SEGMENTS, 64, 16), (2, SEGMENTS, 16, 32)]
    assert features.maps["visual"].shape == features.maps["audio"].shape == (2, SEGMENTS, 4, 4)
    assert torch.allclose(features.maps["visual"].sum((-1, -2)), torch.ones(2, SEGMENTS))
    weighed = (features.maps["visual"].flatten(2).unsqueeze(-1) * features.visual_tokens).sum(2)
    assert torch.allclose(weighed, features.visual, atol=1e-5)


def test_unprompted_pass_is_the_frozen_network_without_a_graph() -> None:
    net, batch = backbone(), small_clips()
    features = net(batch, prompted=False)
    assert not features.visual.requires_grad
    assert torch.equal(features.visual_tokens.flatten(0, 1), net.visual(batch["frames"]))
    assert torch.equal(features.audio_tokens.flatten(0, 1), net.audio(batch["audio"]))
    assert not torch.allclose(features.visual_tokens, net(batch).visual_tokens)


@pytest.mark.parametrize("method", [partial(DGSCT, num_tokens=4, reduction=4), DGSCTPaper])
def test_checkpointing_changes_nothing(method: Callable) -> None:
    results = []
    for checkpointing in ("none", "adapters", "all"):
        net, batch = backbone(checkpointing, method), small_clips()
        net.train()
        features = net(batch)
        (features.visual.square().sum() + features.audio.square().sum()).backward()
        results.append((features, net))
    plain, first = results[0]
    for recomputed, second in results[1:]:
        assert torch.equal(plain.visual, recomputed.visual) and torch.equal(plain.audio, recomputed.audio)
        for (name, p), q in zip(first.prompts.named_parameters(), second.prompts.parameters()):
            assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6), name
        for (name, p), q in zip(first.named_buffers(), second.buffers()):
            assert torch.equal(p, q), f"{name}: a batch was counted twice"


def test_checkpointing_keeps_less() -> None:
    """`adapters` keeps less than `none`, `all` less than `adapters`; both say no to what they cannot do."""
    sizes = {}
    for checkpointing in ("none", "adapters", "all"):
        net, kept = backbone(checkpointing).train(), {}
        own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}

        def note(tensor: torch.Tensor, kept: dict = kept, own: set = own) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            net(small_clips())
        sizes[checkpointing] = sum(storage.nbytes() for storage in kept.values())
    assert sizes["all"] < sizes["adapters"] < 0.8 * sizes["none"], sizes
    with pytest.raises(ArgumentError, match="checkpointing: got True"):
        AVPromptBackbone(SmallSwin(), SmallHTSAT(), checkpointing=True)
    with pytest.raises(ArgumentError, match="adapters, with NoPrompts"):
        AVPromptBackbone(SmallSwin(), SmallHTSAT(), checkpointing="adapters")


def test_errors() -> None:
    batch = small_clips()
    with pytest.raises(ShapeError, match="clips B, segments T"):
        backbone()({**batch, "audio": batch["audio"][:, :2]})

    class OneStage(SmallHTSAT):
        def _build(self, front_end, **sizes):
            return super()._build(front_end)

        def _take_apart(self, net, final_norm):
            super()._take_apart(net, final_norm)
            self.stages[0].merge = None
            self.stages = self.stages[:1]

    with pytest.raises(ArgumentError, match="pairing: even"):
        AVPromptBackbone(SmallSwin(), OneStage(), NoPrompts(), pairing="stages")
    even = AVPromptBackbone(SmallSwin(), OneStage(), NoPrompts())
    assert even.sites == [(2, 0), (5, 1)]
    assert even(batch).audio.shape == (2, SEGMENTS, 16)


@pytest.mark.parametrize(
    ("prefix", "class_token", "expected"), [(0, True, 2.5), (1, True, 0.0), (5, True, 0.0), (4, False, 6.5)]
)
def test_pooling_by_class_token_or_mean_over_the_grid(prefix: int, class_token: bool, expected: float) -> None:
    """Registers are no part of the picture, and no class token."""
    spec = BlockSpec(3, (2, 3), 0, prefix, class_token=class_token)
    tokens = torch.arange(float(spec.tokens)).view(1, -1, 1).expand(2, -1, 3)
    assert torch.equal(mean_or_class_token(tokens, spec), torch.full((2, 3), expected))
