"""States that are lists of what each batch gave, kept so that sums do not depend on who counted what."""

from __future__ import annotations

import torch
from torch import Tensor


def joined(state: list[Tensor] | Tensor) -> Tensor:
    """A state as one tensor: a list before processes are put together, a tensor after.

    Args:
        state: tensors (N, ...), or scalars, which stand for one entry each.

    Returns:
        (sum of N, ...), or (0,) float64 where nothing was counted.

    Example:
        >>> joined([torch.tensor(1.0), torch.tensor([2.0, 3.0])])
        tensor([1., 2., 3.])
    """
    if isinstance(state, Tensor):
        return state
    return (
        torch.cat([part[None] if part.ndim == 0 else part for part in state])
        if state
        else torch.zeros(0, dtype=torch.float64)
    )
