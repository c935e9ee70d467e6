"""`avprompt efficiency`: parameters, FLOPs, seconds and memory of a training step, one line an experiment.

Conventions: FLOPs are those of the forward pass of one clip in training mode, two for a multiplication and an addition,
as `torch.utils.flop_counter` counts them (no elementwise work). Seconds are the best of several steps after a
first one, which pays for page faults and library start-up. Weights are random (`pretrained: none`), clips and the
embeddings of frozen texts are noise: neither changes time or memory. Where nothing is trained a step is the forward pass.
Each experiment runs in a process of its own, so that one's memory does not count for another.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from avprompt.configs import get_nested, sources
from avprompt.errors import ConfigError

if TYPE_CHECKING:
    from avprompt.data_modules import AVDataModule

#: columns of the table: key, heading, divisor, digits
COLUMNS = (
    ("checkpoint", "owned, M", 1e6, 3), ("frozen", "frozen, M", 1e6, 3), ("total", "total, M", 1e6, 3),
    ("forward_gflops_a_clip", "GFLOPs forward a clip", 1, 1), ("forward_s", "forward, s", 1, 3),
    ("backward_s", "backward, s", 1, 3), ("step_s", "step, s", 1, 3), ("peak_gb", "peak, GB", 1, 2),
    ("peak_with_optimizer_gb", "peak with optimizer, GB", 1, 2),
)


def _labels(data: AVDataModule, many: tuple[int, int]) -> dict[str, Any]:
    import torch

    event = torch.zeros(*many, data.num_classes + 1)
    event[..., 0] = 1
    return {"event": event}


def _parsing(data: AVDataModule, many: tuple[int, int]) -> dict[str, Any]:
    import torch

    features = {"video_features": torch.randn(*many, data.video_dim)} if data.video_dim else {}
    return {**features, "labels": torch.eye(data.num_classes)[torch.arange(many[0]) % data.num_classes]}


def _masks(data: AVDataModule, many: tuple[int, int]) -> dict[str, Any]:
    import torch

    masks = (torch.rand(*many, data.mask_size, data.mask_size) > 0.5).float()
    return {"masks": masks, "annotated": torch.ones(many, dtype=torch.bool)}


def _question(data: AVDataModule, many: tuple[int, int]) -> dict[str, Any]:
    import torch

    size = data.sampling.size
    negatives = {"negative_frames": torch.randn(*many, 3, size, size)} if data.negatives != "none" else {}
    return {**negatives, "question": torch.ones(many[0], data.question_length, dtype=torch.long),
            "answer": torch.zeros(many[0], dtype=torch.long)}


def _label(data: AVDataModule, many: tuple[int, int]) -> dict[str, Any]:
    import torch

    return {"label": torch.zeros(many[0], dtype=torch.long)}


#: data module -> what its batches hold besides clips
LABELS: dict[str, Callable[[AVDataModule, tuple[int, int]], dict[str, Any]]] = {
    "AVEDataModule": _labels, "VGGSoundDataModule": _labels, "LLPDataModule": _parsing, "AVSBenchDataModule": _masks,
    "MUSICAVQADataModule": _question, "KineticsSoundsDataModule": _label, "LLPClassificationDataModule": _label,
}


def random_batch(data: AVDataModule, clips: int) -> dict[str, Any]:
    """A training batch of noise with the keys and shapes of the data module's own, on the default device.

    Raises:
        ConfigError: what its batches hold is not known here.
    """
    import torch

    kind, sampling, many = type(data).__name__, data.sampling, (clips, data.segments)
    if kind not in LABELS:
        raise ConfigError("data.class_path", kind, f"one of {', '.join(LABELS)}",
                          "Say in avprompt.reports.efficiency.LABELS what a batch of it holds.")
    return {"id": ["clip"] * clips, "frames": torch.randn(*many, 3, sampling.size, sampling.size),
            "valid": torch.ones(many, dtype=torch.bool), "audio": 0.1 * torch.randn(*many, sampling.samples),
            **LABELS[kind](data, many)}


def _without_text_files(flags: list[str], texts: str) -> list[str]:
    """Flags for a text branch: learned texts on random weights, noise instead of fixed ones."""
    given = [get_nested(content, texts) for _, content in sources(flags)]
    given = [own for own in given if isinstance(own, dict)][-1:]
    kind, tower = (get_nested(given[0] if given else {}, key) or "" for key in ("class_path", "init_args.tower.class_path"))
    if kind.endswith("FixedEmbeddings") and not tower.rpartition(".")[2].startswith("Tiny"):
        return [f"--{texts}", "avprompt.methods.RandomEmbeddings"]
    return [f"--{texts}.init_args.tower.init_args.pretrained", "none"] if tower else []


def measure(config: str, overrides: list[str], device: str, batch: int, steps: int, precision: str) -> dict[str, Any]:
    """Run `steps` training steps on random clips in this process and measure them.

    Returns:
        `forward_s`, `backward_s`, `step_s`, `optimizer_s`, `first_step_s`, `peak_gb` (before the optimizer has its
        state), `peak_with_optimizer_gb`, `forward_gflops_a_clip`, and `trainable`, `frozen`, `total`, `checkpoint`
        parameters.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from avprompt.checkpoints import count_parameters
    from avprompt.cli import parts_of

    flags, encoders = ["--config", config, *overrides], "model.init_args.backbone.init_args"
    for side in ("visual", "audio"):
        given = [get_nested(content, f"{encoders}.{side}.class_path") or get_nested(content, f"{encoders}.{side}")
                 for _, content in sources(flags)]
        if [kind for kind in given if isinstance(kind, str)][-1:] not in (["shared"], ["separate"]):
            flags += [f"--{encoders}.{side}.init_args.pretrained", "none"]
        flags += _without_text_files(flags, f"model.init_args.{side}_texts")
    if any(get_nested(content, "model.init_args.pretrained") for _, content in sources(flags)):
        flags += ["--model.init_args.pretrained", "null"]
    texts = any(get_nested(content, f"model.init_args.{side}_texts") for side in ("visual", "audio")
                for _, content in sources(flags))
    with nullcontext() if texts else torch.device("meta"):  # learned texts look at tokens' values, which meta has not
        model, data = parts_of(flags, meta=not texts)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:  # it does not know CPUs' fused attention
            model.train()(random_batch(data, 1))
    torch.manual_seed(0)
    model = parts_of(flags)[0].to(device).train()
    with torch.no_grad():  # gates and Swin-V2's norms start at zero: open them, so that nothing is skipped
        for name, parameter in model.named_parameters():
            if name.endswith("gate") or (".visual." in name and "norm" in name):
                parameter.fill_(0.5)
    inputs = {key: value.to(device) if torch.is_tensor(value) else value
              for key, value in random_batch(data, batch).items()}
    trained = any(parameter.requires_grad for parameter in model.parameters())  # zero-shot: nothing is
    optimizer = model.configure_optimizers() if trained else None
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    times = []

    def forward_backward() -> tuple[float, float]:
        sync()
        begun = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = model.objective(model(inputs), inputs)
        sync()
        middle = time.perf_counter()
        if trained:
            loss.backward()
        sync()
        return middle - begun, time.perf_counter() - middle

    def peak() -> float:
        bytes_ = torch.cuda.max_memory_allocated() if device == "cuda" else 1024 * resource.getrusage(
            resource.RUSAGE_SELF).ru_maxrss
        return bytes_ / 1e9

    for _ in range(steps + 1):
        model.zero_grad()
        times.append(forward_backward())
    before, best, updated = peak(), min(times[1:], key=sum), 0.0
    if trained:
        optimizer.step()  # makes its state
        sync()
        begun = time.perf_counter()
        optimizer.step()
        sync()
        updated = time.perf_counter() - begun
    return {"forward_s": best[0], "backward_s": best[1], "step_s": sum(best) + updated, "optimizer_s": updated,
            "first_step_s": sum(times[0]), "peak_gb": before, "peak_with_optimizer_gb": peak(),
            "forward_gflops_a_clip": flops.get_total_flops() / 1e9, **count_parameters(model)}


def measured(config: str | Path, overrides: list[str], device: str = "cpu", batch: int = 1, steps: int = 2,
             precision: str = "fp32", environment: dict[str, str] | None = None) -> dict[str, Any]:
    """`measure` in a process of its own.

    Raises:
        ConfigError: that process failed; says how.
    """
    given = json.dumps([str(config), overrides, device, batch, steps, precision])
    done = subprocess.run([sys.executable, "-m", "avprompt.reports.efficiency", given], capture_output=True, text=True,
                          check=False, env={**os.environ, **(environment or {})})
    if done.returncode:
        reason = "\n".join(done.stderr.splitlines()[-3:])
        raise ConfigError(config, f"exit code {done.returncode}: {reason}", "a training step on random clips",
                          "Try `avprompt params --config` with it; with too little memory, a smaller --batch.")
    return json.loads(done.stdout.splitlines()[-1])


def efficiency(configs: list[Path], device: Literal["cpu", "cuda"] = "cpu",
               precision: Literal["fp32", "bf16"] = "fp32", batch: int = 1, steps: int = 2,
               out: Path | None = None) -> None:
    """Measure parameters, GFLOPs, seconds and peak memory of a training step of every experiment, and print a table.

    An experiment that fails is reported in its line, the others proceed; what is measured is written at once, and an
    interrupted command that is called again with the same `out` goes on with what is missing.

    Args:
        configs: experiments; an empty list is every one in experiments/.
        device: where to run.
        precision: fp32, or bf16 autocast.
        batch: clips a step.
        steps: measured after a first one; the best counts.
        out: CSV file of the table, with everything that is measured.

    Raises:
        ConfigError: there is no experiment; `out` was written with other settings; at the end, when experiments failed.
    """
    paths = [Path(path) for path in configs or sorted(Path("experiments").glob("*.yaml"))]
    if not paths:
        raise ConfigError("configs", "none, and no experiments/*.yaml here", "experiments", "Name their files.")
    settings = {"device": device, "precision": precision, "batch": batch, "steps": steps}
    rows: dict[str, dict[str, Any]] = {}
    if out is not None and Path(out).is_file():
        with Path(out).open(newline="", encoding="utf-8") as file:
            rows = {row["experiment"]: row for row in csv.DictReader(file)}
        for name, row in rows.items():
            if {key: row.get(key) for key in settings} != {key: str(value) for key, value in settings.items()}:
                raise ConfigError(out, f"{name}, measured with other settings", str(settings), "Choose another file.")
    failed = {}
    with tqdm(paths, unit="experiment", disable=None) as bar:
        for path in bar:
            bar.set_description(path.stem)
            if path.stem in rows:
                continue
            try:
                rows[path.stem] = {"experiment": path.stem, **settings,
                                   **measured(path, [], device, batch, steps, precision)}
            except ConfigError as error:
                failed[path.stem] = str(error)
                bar.write(f"failed: {error}")
                continue
            if out is not None:
                Path(out).parent.mkdir(parents=True, exist_ok=True)
                with Path(out).open("w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, list(rows[path.stem]))
                    writer.writeheader()
                    writer.writerows(rows.values())
    header = ["experiment", *(heading for _, heading, _, _ in COLUMNS)]
    lines = [[path.stem, *((f"{float(rows[path.stem][key]) / unit:,.{digits}f}" for key, _, unit, digits in COLUMNS)
                           if path.stem in rows else ["failed"] + [""] * (len(COLUMNS) - 1))] for path in paths]
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    for line in [header, ["-" * width for width in widths], *lines]:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths)) + " |")
    print(f"\nA training step on {device}, {precision}, batch {batch}, best of {steps} after the first; GFLOPs: "
          "forward, one clip, two for a multiplication and an addition; each experiment in a process of its own.")
    if failed:
        raise ConfigError("configs", f"{len(failed)} failed experiments: {sorted(failed)}", "all measured",
                          "Mend the cause and call again; with `--out` the others are kept.")


if __name__ == "__main__":
    print(json.dumps(measure(*json.loads(sys.argv[1]))))
