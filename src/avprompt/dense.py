"""Linear maps on the fastest float32 path of the machine, and recurrent layers on one that every machine has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: rows and multiplications from which a 1 x 1 convolution beats a matrix product on a CPU
MIN_ROWS, MIN_WORK = 1024, 1 << 24


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x (..., K), weight (N, K), bias (N,) -> (..., N).

    In float32 on a CPU, PyTorch computes matrix products with MKL, which is slower on processors of other makers than
    Intel, and 1 x 1 convolutions with oneDNN, which is not. Large products are therefore computed as convolutions:
    about twice as fast on an AMD EPYC, and equally fast elsewhere. This needs several threads, because PyTorch does not
    use oneDNN with one. Everything else is `F.linear`.
    """
    rows = x.numel() // x.shape[-1]
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or torch.get_num_threads() == 1
    small = rows < MIN_ROWS or rows * weight.numel() < MIN_WORK
    if plain or small or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    pixels = x.reshape(1, rows, 1, -1).permute(0, 3, 1, 2)
    return F.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(x, self.weight, self.bias)


def adopt(module: nn.Module) -> None:
    """Make every `nn.Linear` of a library's module use `linear`; parameters and names stay."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear


def recurrent(layer: nn.RNNBase, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Any]:
    """What an LSTM or GRU makes of x (B, T, C): output (B, T, H), and its last state; an LSTM may start from a state.

    Under autocast on a CPU it computes in float32: many processors have no bfloat16 for it, and oneDNN fails there.

    >>> output, (hidden, cell) = recurrent(nn.LSTM(4, 8, batch_first=True), torch.zeros(2, 3, 4))
    >>> output.shape, hidden.shape
    (torch.Size([2, 3, 8]), torch.Size([1, 2, 8]))
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            kind = layer.weight_ih_l0.dtype
            return layer(x.to(kind), None if state is None else tuple(part.to(kind) for part in state))
    return layer(x, state)
