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

import torch
from trials import Operations  # beside this file

from avprompt.checkpoints import count_parameters
from avprompt.cli import parts_of
from avprompt.reports.kept import kept_bytes


def kept(name: str, overrides: list[str]) -> tuple[float, int, int, int]:
    """GB kept for one clip, operations forward and backward, and trained parameters of an experiment."""
    model, data = parts_of(["--config", name, *overrides], meta=True)
    with torch.device("meta"), Operations() as forward:
        size, outputs = kept_bytes(model, lambda: model.train()(data.example_batch(1)))
    with torch.device("meta"), Operations() as backward:
        sum(value.sum() for value in outputs.values() if torch.is_tensor(value) and value.requires_grad).backward()
    return size / 1e9, forward.count, backward.count, count_parameters(model)["trainable"]


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
        print(
            f"{name:24} {size:8.3f} GB  ratio {size / first:6.3f}  {forward:6,} operations forward "
            f"{backward:6,} backward  {trained:13,} trained"
        )


if __name__ == "__main__":
    main()
