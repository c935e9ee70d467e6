"""What a training step keeps between forward and backward, without running it: the network lies on the meta device.

    python benchmarks/kept_for_backward.py ave_dgsct ave_mettle_like

For each experiment: GB of tensors that the forward pass of one clip keeps for the backward pass (parameters and buffers
left aside), trained parameters, and the ratio to the first experiment's GB. Fused attention keeps no weights on CPUs and
GPUs; on the meta device it does, and these are left out.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from avprompt.checkpoints import count_parameters
from avprompt.cli import parts_of


class _Fused(torch.autograd.Function):
    """Attention that keeps what fused attention keeps: queries, keys, values, output and one number a row."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = v.new_empty(*torch.broadcast_shapes(q.shape[:-2], v.shape[:-2]), q.shape[-2], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, out.new_empty(out.shape[:-1]))
        return out


def kept(name: str) -> tuple[float, int]:
    """GB that the forward pass of an experiment keeps for one clip, and its trained parameters."""
    model, data = parts_of(["--config", name], meta=True)
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
        with torch.device("meta"), saved_tensors_hooks(note, lambda tensor: tensor):
            model.train()(data.example_batch(1))
    finally:
        F.scaled_dot_product_attention = plain
    return sum(storage.nbytes() for storage in found.values()) / 1e9, count_parameters(model)["trainable"]


def main() -> None:
    """Print a line for each experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", help="names of experiments; the ratio is to the first")
    rows = {name: kept(name) for name in parser.parse_args().experiments}
    first = next(iter(rows.values()))[0]
    for name, (size, trained) in rows.items():
        print(f"{name:24} {size:8.2f} GB  ratio {size / first:6.3f}  {trained:13,} trained")


if __name__ == "__main__":
    main()
