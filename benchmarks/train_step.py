"""Measure time, peak memory, FLOPs and parameters of a training step of one experiment, or the ratio of two.

    python benchmarks/train_step.py --config ave_dgsct
    python benchmarks/train_step.py --config ave_dgsct --against quickstart
    python benchmarks/train_step.py --config ave_dgsct \\
        --set "--model.backbone.checkpointing=adapters"
    python benchmarks/train_step.py --config ave_avstfp_l14 \\
        --against ave_avstfp_l14 \\
        --set-against "--model.backbone.prompts=avprompt.methods.NoPrompts"

`avprompt.reports.efficiency` documents what is measured and how; `avprompt efficiency` makes a table of many
experiments. On a CPU each experiment runs twice, the second time with an allocator that returns freed memory to the
system at once (`_trimmed`), because glibc's default keeps some gigabytes.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from avprompt.cli.efficiency import measured

# large tensors are returned to the system when they are freed: slower, but the peak then counts only live tensors
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4194304", "MALLOC_TRIM_THRESHOLD_": "4194304"}


def run(config: str, overrides: str, given: argparse.Namespace) -> dict:
    """Measure in a separate process; on a CPU measure memory in a second one."""
    call = (config, shlex.split(overrides), given.device, given.batch, given.steps, given.precision)
    result = measured(*call)
    if given.device == "cpu":
        trimmed = measured(*call, environment=ALLOCATOR)
        result |= {f"{name}_trimmed": trimmed[name] for name in ("peak_gb", "peak_with_optimizer_gb")}
    return result


def main() -> None:
    """Print a table; for two experiments also the ratio of the first to the second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--against", help="another experiment")
    parser.add_argument("--set", default="", help="overrides of --config, as for avprompt fit")
    parser.add_argument("--set-against", default="", help="overrides of --against")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    words = iter(sys.argv[1:])  # argparse takes a value that begins with dashes for a flag of its own
    given = parser.parse_args(
        [f"{word}={next(words, '')}" if word in ("--set", "--set-against") else word for word in words]
    )
    results = [
        run(config, overrides, given)
        for config, overrides in ((given.config, given.set), (given.against, given.set_against))
        if config is not None
    ]
    for name in results[0]:
        values = [result[name] for result in results]
        ratio = f"   ratio {values[0] / values[1]:.3f}" if len(values) == 2 and values[1] else ""
        print(f"{name:<32}" + "".join(f"{value:>18,.2f}" for value in values) + ratio)


if __name__ == "__main__":
    main()
