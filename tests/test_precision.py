"""Recurrent layers where a CPU computes in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avprompt.precision import recurrent


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_compute_in_float32(kind: type[nn.RNNBase]) -> None:
    """Where the processor lacks bfloat16, oneDNN's recurrent layers fail."""
    layer, x = kind(4, 8, batch_first=True), torch.randn(2, 3, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = recurrent(layer, x)
    assert output.dtype is torch.float32 and torch.equal(output, layer(x.float())[0])
    assert torch.equal(recurrent(layer.double(), x.double())[0], layer(x.double())[0])
