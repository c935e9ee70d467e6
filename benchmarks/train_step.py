"""Seconds, peak memory, FLOPs and parameters of a training step, of one experiment or of two as a ratio.

    python benchmarks/train_step.py --config experiments/ave_dgsct.yaml
    python benchmarks/train_step.py --config experiments/ave_dgsct.yaml --against experiments/quickstart.yaml
    python benchmarks/train_step.py --config experiments/ave_dgsct.yaml \\
        --set "--model.init_args.backbone.init_args.checkpointing true"

Each experiment runs in a process of its own, so that one's memory does not count for the other; on a CPU in two, the second
with an allocator that gives memory back at once (`_trimmed`), as glibc's own keeps some gigabytes. Weights are random
(`pretrained: none`): they change neither time nor memory. The first step is shown apart: it pays for page faults and
library start-up. FLOPs are those of the forward pass of one clip, two for a multiplication and an addition, without LSTMs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avprompt.data_modules import AVDataModule

# with these, large tensors go back to the system when they are freed: slower, and the peak is that of the tensors alone
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4194304", "MALLOC_TRIM_THRESHOLD_": "4194304"}


def random_batch(data: AVDataModule, clips: int) -> dict[str, Any]:
    """A training batch of noise with the keys and shapes of the data module's own."""
    import torch

    sampling, many = data.sampling, (clips, data.segments)
    frames = (*many, 3, sampling.size, sampling.size)
    batch = {"id": ["clip"] * clips, "frames": torch.randn(frames), "valid": torch.ones(many, dtype=torch.bool),
             "audio": 0.1 * torch.randn(*many, sampling.samples)}
    kind = type(data).__name__
    if kind == "AVEDataModule":
        event = torch.zeros(*many, data.num_classes + 1)
        event[..., 0] = 1
        return {**batch, "event": event}
    if kind == "LLPDataModule":
        batch |= {"video_features": torch.randn(*many, data.video_dim)} if data.video_dim else {}
        return {**batch, "labels": torch.eye(data.num_classes)[:clips]}
    if kind == "AVSBenchDataModule":
        masks = (torch.rand(*many, data.mask_size, data.mask_size) > 0.5).float()
        return {**batch, "masks": masks, "annotated": torch.ones(many, dtype=torch.bool)}
    if kind == "MUSICAVQADataModule":
        batch |= {"negative_frames": torch.randn(frames)} if data.negatives != "none" else {}
        return {**batch, "question": torch.ones(clips, data.question_length, dtype=torch.long),
                "answer": torch.zeros(clips, dtype=torch.long)}
    raise SystemExit(f"{kind}: say here what a batch of it looks like")


def measure(config: str, overrides: list[str], device: str, batch: int, steps: int, precision: str) -> dict:
    """Run `steps` training steps on random clips and measure them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from avprompt.callbacks.report import count_parameters
    from avprompt.cli import parts_of

    bare = []
    for side in ("visual", "audio"):
        bare += [f"--model.init_args.backbone.init_args.{side}.init_args.pretrained", "none"]
    flags = ["--config", config, *overrides, *bare]
    with torch.device("meta"):
        model, data = parts_of(flags, meta=True)
        with FlopCounterMode(display=False) as flops:
            model.train()(random_batch(data, 1))
    forward = flops.get_total_flops()
    torch.manual_seed(0)
    model = parts_of(flags)[0].to(device).train()
    with torch.no_grad():  # gates and Swin-V2's norms start at zero: open them, so that nothing is skipped
        for name, parameter in model.named_parameters():
            if name.endswith("gate") or (".visual." in name and "norm" in name):
                parameter.fill_(0.5)
    inputs = {key: value.to(device) if hasattr(value, "to") else value for key, value in random_batch(data, batch).items()}
    optimizer = model.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    times = []

    def forward_backward() -> tuple[float, float]:
        sync()
        begun = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.stack(list(model.losses(model(inputs), inputs).values())).sum()
        sync()
        middle = time.perf_counter()
        loss.backward()
        sync()
        return middle - begun, time.perf_counter() - middle

    def peak() -> float:
        bytes_ = torch.cuda.max_memory_allocated() if device == "cuda" else 1024 * resource.getrusage(
            resource.RUSAGE_SELF).ru_maxrss
        return bytes_ / 1e9

    for _ in range(steps + 1):
        optimizer.zero_grad()
        times.append(forward_backward())
    before, begun = peak(), time.perf_counter()
    optimizer.step()
    sync()
    best = min(times[1:], key=sum)
    return {"forward_s": best[0], "backward_s": best[1], "optimizer_s": time.perf_counter() - begun,
            "first_step_s": sum(times[0]), "peak_gb": before, "peak_with_optimizer_gb": peak(),
            "forward_gflops_a_clip": forward / 1e9, **count_parameters(model)}


def run(config: str, overrides: str, given: argparse.Namespace) -> dict:
    """Measure in a process of its own; on a CPU once more for memory."""
    command = [sys.executable, __file__, "--worker", "--config", config, f"--set={overrides}", "--device", given.device,
               "--precision", given.precision, "--batch", str(given.batch), "--steps", str(given.steps)]

    def worker(**environment: str) -> dict:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment})
        return json.loads(done.stdout.splitlines()[-1])

    result = worker()
    if given.device == "cpu":
        trimmed = worker(**ALLOCATOR)
        result |= {f"{name}_trimmed": trimmed[name] for name in ("peak_gb", "peak_with_optimizer_gb")}
    return result


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
    results = [run(config, overrides, given) for config, overrides in (
        (given.config, given.set), (given.against, given.set_against)) if config is not None]
    for name in results[0]:
        values = [result[name] for result in results]
        ratio = f"   ratio {values[0] / values[1]:.3f}" if len(values) == 2 and values[1] else ""
        print(f"{name:<32}" + "".join(f"{value:>18,.2f}" for value in values) + ratio)


if __name__ == "__main__":
    main()
