"""Seconds, peak memory, FLOPs and parameters of a training step, of one experiment or of two as a ratio.

    python benchmarks/train_step.py --config experiments/ave_dgsct.yaml
    python benchmarks/train_step.py --config experiments/ave_dgsct.yaml --against experiments/quickstart.yaml
    python benchmarks/train_step.py --config experiments/ave_dgsct.yaml \\
        --set "--model.init_args.backbone.init_args.checkpointing true"

Each experiment runs in a process of its own, so that one's memory does not count for the other. Weights are random
(`pretrained: none`): they change neither time nor memory. The first step is shown apart: it pays for page faults and
library start-up.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

# large tensors go back to the system when they are freed; otherwise peak memory measures the allocator's habits
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4194304", "MALLOC_TRIM_THRESHOLD_": "4194304"}


def measure(config: str, overrides: list[str], device: str, batch: int, steps: int, precision: str) -> dict:
    """Run `steps` training steps on random clips and measure them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from avprompt import configs
    from avprompt.callbacks.report import count_parameters
    from avprompt.cli import model_of

    bare = []
    for side in ("visual", "audio"):
        bare += [f"--model.init_args.backbone.init_args.{side}.init_args.pretrained", "none"]
    given = configs.dig(configs.read_yaml(Path(config)), "data.init_args") or {}
    segments, size = given.get("segments", 10), given.get("image_size", 192)
    samples = given.get("sample_rate", 32000)

    def clips(count: int) -> dict:
        event = torch.zeros(count, segments, 29 if not given.get("categories") else len(given["categories"]) + 1)
        event[..., 0] = 1
        return {"id": ["clip"] * count, "frames": torch.randn(count, segments, 3, size, size),
                "audio": 0.1 * torch.randn(count, segments, samples), "event": event}

    with torch.device("meta"):
        model = model_of(["--config", config, *overrides, *bare], meta=True)
        with FlopCounterMode(display=False) as flops:
            model.train()(clips(1))
    forward = flops.get_total_flops()
    torch.manual_seed(0)
    model = model_of(["--config", config, *overrides, *bare]).to(device).train()
    with torch.no_grad():  # gates and Swin-V2's norms start at zero: open them, so that nothing is skipped
        for name, parameter in model.named_parameters():
            if name.endswith("gate") or (".visual." in name and "norm" in name):
                parameter.fill_(0.5)
    inputs = {key: value.to(device) if hasattr(value, "to") else value for key, value in clips(batch).items()}
    optimizer = model.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    times = []
    for _ in range(steps + 1):
        sync()
        begun = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.stack(list(model.losses(model(inputs), inputs).values())).sum()
        sync()
        middle = time.perf_counter()
        loss.backward()
        sync()
        end = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        sync()
        times.append((middle - begun, end - middle, time.perf_counter() - end))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resource.getrusage(
        resource.RUSAGE_SELF).ru_maxrss * 1024
    best = min(times[1:], key=lambda t: t[0] + t[1])
    return {"forward_s": best[0], "backward_s": best[1], "optimizer_s": best[2], "first_step_s": sum(times[0]),
            "peak_gb": peak / 1e9, "forward_gflops_a_clip": forward / 1e9, **count_parameters(model)}


def main() -> None:
    """Print a table, or with two experiments the ratio of the first to the second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--against", help="another experiment")
    parser.add_argument("--set", default="", help="overrides of --config, as for avprompt fit")
    parser.add_argument("--set-against", default="", help="overrides of --against")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measure(given.config, given.set.split(), given.device, given.batch, given.steps,
                                 given.precision)))
        return
    results = []
    for config, overrides in ((given.config, given.set), (given.against, given.set_against)):
        if config is not None:
            command = [sys.executable, __file__, "--worker", "--config", config, f"--set={overrides}", "--device",
                       given.device, "--precision", given.precision, "--batch", str(given.batch), "--steps",
                       str(given.steps)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **ALLOCATOR})
            results.append(json.loads(done.stdout.splitlines()[-1]))
    for name in results[0]:
        values = [result[name] for result in results]
        ratio = f"   ratio {values[0] / values[1]:.3f}" if len(values) == 2 and values[1] else ""
        print(f"{name:<22}" + "".join(f"{value:>18,.2f}" for value in values) + ratio)


if __name__ == "__main__":
    main()
