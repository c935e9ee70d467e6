"""The precision in which parts compute that cannot, or should not, compute in the one that autocast chooses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def wide(x: Tensor) -> Tensor:
    """`x` in float32 at least: norms, softmax and losses compute so. A float64 network stays in float64.

    >>> wide(torch.zeros(1, dtype=torch.bfloat16)).dtype, wide(torch.zeros(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of products where autocast is on, else `None`; the meta device knows no autocast.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     product_dtype(torch.device("cpu"))
    torch.bfloat16
    """
    on = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


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
