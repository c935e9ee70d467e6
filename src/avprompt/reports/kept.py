"""What a forward pass keeps for the backward pass. It imports torch alone, so that benchmarks can load it by its path
where an older version of the suite is what runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F


def kept_bytes(model: torch.nn.Module, forward: Callable[[], Any]) -> tuple[int, Any]:
    """What a forward pass keeps for the backward pass, parameters and buffers aside; works on the meta device.

    Fused attention keeps no weights on CPUs and GPUs; on the meta device it does, so that they are left out here.

    Args:
        model: whose parameters and buffers do not count.
        forward: runs it.

    Returns:
        Bytes of the distinct storages, and what `forward` returned.

    Example:
        >>> import torch
        >>> layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> kept_bytes(layers, lambda: layers(torch.zeros(2, 4)))[0]  # the input, and what the ReLU gave, in float32
        96
    """

    class Fused(torch.autograd.Function):
        """Keeps what fused attention keeps: queries, keys, values, output and one number a row."""

        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = v.new_empty(*torch.broadcast_shapes(q.shape[:-2], v.shape[:-2]), q.shape[-2], v.shape[-1])
            if not out.is_meta:
                out.zero_()
            ctx.save_for_backward(q, k, v, out, out.new_empty(out.shape[:-1]))
            return out

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.zeros_like(own) for own in ctx.saved_tensors[:3])

    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage  # keeps it alive, so that its address is not used again
        return tensor

    plain, F.scaled_dot_product_attention = (
        F.scaled_dot_product_attention,
        (lambda q, k, v, *arguments, **options: Fused.apply(q, k, v)),
    )
    try:
        with saved_tensors_hooks(note, lambda tensor: tensor):
            outputs = forward()
    finally:
        F.scaled_dot_product_attention = plain
    return sum(storage.nbytes() for storage in found.values()), outputs
