"""Mettle-like: its formulas written out, what it keeps for the backward pass, and its switches."""

from __future__ import annotations

import pytest
import torch
from small import SEGMENTS, SmallCLIP, SmallHTSAT, SmallSwin, small_clips
from test_avmoe import filled
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from avprompt import AVPromptBackbone
from avprompt.errors import ArgumentError
from avprompt.methods import DGSCT, MettleLike, PromptMethod
from avprompt.methods.mettle_like import Injection, Reader


def test_reader_equals_the_formulas_written_out() -> None:
    reader, x = filled(Reader(12, tokens=3, reduction=4)), torch.randn(2, 10, 12).double()
    keys, values = reader.key(reader.norm(x)), reader.value(reader.norm(x))
    attention = torch.softmax(reader.query(reader.tokens) @ keys.transpose(1, 2) / 3**0.5, dim=-1)
    adapted = reader.up(F.gelu(reader.down(reader.norm_mean(x.mean(1)))))
    expected = reader.tokens + reader.out(attention @ values) + adapted[:, None]
    assert torch.allclose(reader(x), expected, atol=1e-12)


def test_vectors_are_the_mean_over_all_layers() -> None:
    """Those of blocks without a partner too, each projected by its stage's layer."""
    net, batch = (
        AVPromptBackbone(SmallSwin(), SmallHTSAT(), MettleLike(num_tokens=2, reduction=4)).eval(),
        small_clips(),
    )
    method, expected = net.prompts, {}
    with torch.no_grad():
        for name, encoder, x in (("visual", net.visual, batch["frames"]), ("audio", net.audio, batch["audio"])):
            tokens, outputs, paired = encoder.embed(x), [], [pair[name == "audio"] for pair in net.sites]
            index = 0
            for stage in encoder.stages:
                for block in stage.blocks:
                    tokens = block(tokens)
                    readers = getattr(method, name if index in paired else f"{name}_lone")
                    place = paired.index(index) if index in paired else index - sum(i < index for i in paired)
                    project = getattr(method, f"{name}_project")[str(tokens.shape[-1])]
                    outputs.append(project(readers[place](tokens)).mean(1))
                    index += 1
                tokens = stage.merge(tokens) if stage.merge is not None else tokens
            expected[name] = torch.stack(outputs).mean(0).unflatten(0, (-1, SEGMENTS))
        features = net(batch)
    assert len(method.visual_lone) == 2
    assert torch.allclose(features.visual, expected["visual"], atol=1e-5)
    assert torch.allclose(features.audio, expected["audio"], atol=1e-5)


def kept(method: PromptMethod) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left aside."""
    torch.manual_seed(0)
    net, found = AVPromptBackbone(SmallSwin(), SmallHTSAT(), method).train(), {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        features = net(small_clips())
    assert features.visual.requires_grad
    return sum(storage.nbytes() for storage in found.values())


def test_training_keeps_little() -> None:
    """No activation from inside a block, whatever the number of meta-tokens; segmentation keeps less in the layers."""
    guided = kept(DGSCT(num_tokens=4, reduction=4))
    few, many = (kept(MettleLike(num_tokens=count, reduction=4)) for count in (1, 8))
    assert few < 0.1 * guided and many < 0.25 * guided
    assert kept(MettleLike(num_tokens=1, reduction=4, layers="last")) < 0.4 * few


def test_injection_guides_the_earlier_stages() -> None:
    net = AVPromptBackbone(SmallSwin(), SmallHTSAT(), MettleLike(2, 4, layers="last", inject=True)).eval()
    batch = small_clips()
    with torch.no_grad():
        before = net(batch)
        net.prompts.injections[0].gate.fill_(1.0)
        after, deaf = net(batch), net({**batch, "audio": 0 * batch["audio"]})
    assert torch.equal(before.pyramid[0], net(batch, prompted=False).pyramid[0])
    assert not torch.equal(before.pyramid[0], after.pyramid[0]) and torch.equal(before.pyramid[1], after.pyramid[1])
    assert not torch.equal(after.pyramid[0], deaf.pyramid[0])  # sound guides vision


def test_errors() -> None:
    with pytest.raises(ArgumentError, match="inject"):
        AVPromptBackbone(SmallCLIP(), SmallHTSAT(), MettleLike(reduction=4, inject=True))
    with pytest.raises(ArgumentError, match="reduction"):
        AVPromptBackbone(SmallSwin(), SmallHTSAT(), MettleLike(reduction=5))
    for build, name in (
        (lambda: MettleLike(num_tokens=0), "num_tokens"),
        (lambda: MettleLike(layers="first"), "layers"),
        (lambda: Reader(8, 2, 0), "reduction"),
        (lambda: Injection(8, (8, 8), 0), "reduction"),
        (lambda: Injection(8, (8, 8), 3), "reduction"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}:"):
            build()
