"""What a training step keeps between forward and backward, and its operations, without running it: on the meta device.

    python benchmarks/kept_for_backward.py ave_dgsct ave_mettle_like

    python benchmarks/kept_for_backward.py ave_dgsct \\
        --set "--model.backbone.checkpointing=adapters"

For each experiment: GB of tensors that the forward pass of one clip keeps for the backward pass (parameters and buffers
left aside), operations of the forward and of the backward pass that compute something (views left aside), trained
parameters, and the ratio to the first experiment's GB. Fused attention keeps no weights on CPUs and GPUs; on the meta
device it does, and these are left out. What is computed again counts in the backward pass.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from avprompt.checkpoints import count_parameters
from avprompt.cli import parts_of


class _Fused(torch.autograd.Function):
    """Attention that keeps what fused attention keeps: queries, keys, values, output and one number a row."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = v.new_empty(*torch.broadcast_shapes(q.shape[:-2], v.shape[:-2]), q.shape[-2], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, out.new_empty(out.shape[:-1]))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(own) for own in ctx.saved_tensors[:3])


class Operations(TorchDispatchMode):
    """Counts the operations that compute something; views, which launch nothing, are left aside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view and function.overloadpacket.__name__ not in (
            "detach", "_unsafe_view", "empty", "new_empty", "empty_like")
        return function(*args, **(kwargs or {}))


def kept(name: str, overrides: list[str]) -> tuple[float, int, int, int]:
    """GB kept for one clip, operations forward and backward, and trained parameters of an experiment."""
    model, data = parts_of(["--config", name, *overrides], meta=True)
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage  # keeps it alive, so that its address is not used again
        return tensor

    plain, F.scaled_dot_product_attention = F.scaled_dot_product_attention, (
        lambda q, k, v, *arguments, **options: _Fused.apply(q, k, v))
    try:
        with torch.device("meta"), Operations() as forward, saved_tensors_hooks(note, lambda tensor: tensor):
            outputs = model.train()(data.example_batch(1))
        with torch.device("meta"), Operations() as backward:
            sum(value.sum() for value in outputs.values() if torch.is_tensor(value) and value.requires_grad).backward()
    finally:
        F.scaled_dot_product_attention = plain
    size = sum(storage.nbytes() for storage in found.values()) / 1e9
    return size, forward.count, backward.count, count_parameters(model)["trainable"]


def main() -> None:
    """Print a line for each experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", help="names of experiments; the ratio is to the first")
    parser.add_argument("--set", default="", help="overrides, as for avprompt fit")
    words = iter(sys.argv[1:])  # argparse takes a value that begins with dashes for a flag of its own
    given = parser.parse_args([f"{word}={next(words, '')}" if word == "--set" else word for word in words])
    rows = {name: kept(name, shlex.split(given.set)) for name in given.experiments}
    first = next(iter(rows.values()))[0]
    for name, (size, forward, backward, trained) in rows.items():
        print(f"{name:24} {size:8.3f} GB  ratio {size / first:6.3f}  {forward:6,} operations forward "
              f"{backward:6,} backward  {trained:13,} trained")


if __name__ == "__main__":
    main()
