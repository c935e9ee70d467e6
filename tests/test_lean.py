"""The autograd functions of adapters: derivatives, and what they keep."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from avprompt.encoders import BlockSpec
from avprompt.methods import lean
from avprompt.methods.dgsct import Bottleneck, ReleasedAdapter

OWN, OTHER = BlockSpec(8, (2, 3), 0), BlockSpec(6, (2, 2), 0)
SETTINGS = {
    "channel": True,
    "spatial": True,
    "alpha": 0.3,
    "beta": 0.05,
    "gamma": None,
    "num_tokens": 2,
    "reduction": 2,
    "groups": 2,
}
VARIANTS = {
    "ave": {},
    "avqa": {"groups": 4, "reduction": 1, "gate": None, "batch_norm": False},
    "ms3": {"gate": "inside_norm", "batch_norm": False, "norm_before": False},
    "no tokens": {"num_tokens": 0},
    "lavish": {"channel": False, "spatial": False},
    "few-shot": {"gamma": 0.1},
    "no channel": {"channel": False},
    "no spatial": {"spatial": False},
    "one group": {"groups": 1},
    "s4": {"prompt_map": "bicubic"},
    "gates alone": {"channel": False, "spatial": False, "gamma": 0.1},
    "channel without a weight": {"alpha": 0.0},
}


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lean.ReadLatent, lambda: (draw(2, 5, 4), draw(2, 3, 4), draw(1))),
        *(
            (function, lambda mean=mean: (draw(3, 4), draw(2, 6, 7), draw(5, 6), draw(5), draw(4, 7), draw(4), mean))
            for function in (lean.ReadMap, lean.ReadMapAssociated)
            for mean in (False, True)
        ),
        *((lean.ReadTokens, lambda mean=mean: (draw(3, 4), draw(2, 5, 4), mean)) for mean in (False, True)),
    ],
)
def test_derivatives(function: type[torch.autograd.Function], inputs: object) -> None:
    def run(*inputs: object) -> tuple[torch.Tensor, ...]:
        found = function.apply(*inputs)
        return tuple(part for part in (found if isinstance(found, tuple) else (found,)) if part is not None)

    assert gradcheck(run, inputs())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gate", [None, "after_norm", "inside_norm"])
@pytest.mark.parametrize(
    ("batch_norm", "norm_before", "relu"), [(True, True, True), (True, False, False), (False, True, True)]
)
def test_derivatives_of_the_bottleneck(
    training: bool, gate: str | None, batch_norm: bool, norm_before: bool, relu: bool
) -> None:
    module = Bottleneck()
    module.add_bottleneck(8, 2, 2, gate, batch_norm, norm_before, relu)
    module.double().train(training)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.5, 0.3)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return module.bottleneck(x)

    assert gradcheck(run, (draw(2, 5, 8), *module.parameters()), fast_mode=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_derivatives_of_an_adapter(name: str, training: bool) -> None:
    """Of what it adds and of the spatial scores, in every parameter and in both modalities' tokens."""
    torch.manual_seed(0)
    adapter = ReleasedAdapter(OWN, OTHER, **{**SETTINGS, **VARIANTS[name]}).double().train(training)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, 0.3, 0.3)

    def run(x: torch.Tensor, other: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part for part in adapter(x, other) if part is not None)

    assert gradcheck(run, (draw(2, 6, 8), draw(2, 4, 6), *adapter.parameters()), fast_mode=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_plain_computation_is_the_same(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, gradients and running statistics, in float64."""
    found = []
    for usable in (True, False):
        monkeypatch.setattr("avprompt.methods.dgsct.usable", lambda *norms, usable=usable: usable)
        torch.manual_seed(0)
        adapter = ReleasedAdapter(OWN, OTHER, **{**SETTINGS, **VARIANTS[name]}).double().train(training)
        for key, parameter in adapter.named_parameters():
            if key.endswith("gate"):
                nn.init.constant_(parameter, 0.5)
        x, other = draw(2, 6, 8), draw(2, 4, 6)
        added, scores = adapter(x, other)
        generator = torch.Generator().manual_seed(1)
        seen = (added * torch.randn(added.shape, generator=generator)).sum() + (0 if scores is None else scores.sum())
        inputs = [x, other, *adapter.parameters()]
        gradients = torch.autograd.grad(seen, inputs, allow_unused=True, materialize_grads=True)
        found.append((added, *gradients, *adapter.buffers()))
    for one, two in zip(*found):
        assert torch.allclose(one.double(), two.double(), rtol=1e-9, atol=1e-10)


def test_an_adapter_keeps_a_third() -> None:
    """Of what autograd keeps of the plain computation, inputs and parameters left aside."""
    sizes = []
    for usable in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("avprompt.methods.dgsct.usable", lambda *norms, usable=usable: usable)
            own, other = BlockSpec(192, (24, 24), 0), BlockSpec(96, (16, 16), 0)
            adapter = ReleasedAdapter(own, other, **{**SETTINGS, "num_tokens": 32, "reduction": 8})
            x, u = torch.randn(2, 576, 192, requires_grad=True), torch.randn(2, 256, 96, requires_grad=True)
            kept, own = {}, (x, u, *adapter.parameters(), *adapter.buffers())
            known = {tensor.untyped_storage().data_ptr() for tensor in own}

            def note(tensor: torch.Tensor, known: set = known, kept: dict = kept) -> torch.Tensor:
                if tensor.untyped_storage().data_ptr() not in known:
                    kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                adapter(x, u)
            sizes.append(sum(storage.nbytes() for storage in kept.values()))
    assert sizes[0] < 0.36 * sizes[1], sizes


@pytest.mark.parametrize(("low", "most"), [(False, 137), (True, 152)])
@pytest.mark.parametrize("associate", [False, True])
def test_an_adapter_makes_few_operations(
    associate: bool, low: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which a GPU launches one by one: there were 190 to 203, and 262 to 284 under autocast."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from trials import Operations

    adapter = ReleasedAdapter(OWN, OTHER, **SETTINGS)
    adapter.map.associate = associate
    x, other = torch.randn(2, 6, 8, requires_grad=True), torch.randn(2, 4, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        x, other = lean.lower(x), lean.lower(other)
        with Operations() as forward:
            added, _ = adapter(x, other)
    grad = torch.ones_like(added)
    with Operations() as backward:
        torch.autograd.backward(added, grad)
    assert 40 < forward.count + backward.count <= most, (forward.names, backward.names)


def test_products_with_a_relu_count_in_the_flops() -> None:
    """Which torch does not count by itself: 2 x 2 x 6 x 8 x (8 + 4) of the tokens, and 2 x 2 x 8 x (8 + 4 + 4)."""
    adapter = ReleasedAdapter(OWN, OTHER, **SETTINGS)
    with FlopCounterMode(display=False) as flops:
        adapter(torch.randn(2, 6, 8), torch.randn(2, 4, 6))
    found = flops.get_flop_counts()["Global"][torch.ops.aten._addmm_activation]
    assert found == 2 * 2 * 6 * 8 * 12 + 2 * 2 * 8 * 16
