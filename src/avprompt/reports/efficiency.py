"""Parameters, FLOPs, seconds and memory of a training step, and a table of them.

Conventions: FLOPs are those of the forward pass of one clip in training mode; a multiplication and an addition count as
two, as in `torch.utils.flop_counter`, and elementwise work does not count. Seconds are the best of several steps after
a first one, which pays for page faults and library start-up. Weights are random (`pretrained: none`), clips and the
embeddings of frozen texts are noise: neither changes time or memory. Where nothing is trained, a step is the forward
pass. Each experiment needs a process of its own, so that the memory of one does not count for another.
"""

from __future__ import annotations

import csv
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from avprompt.configs import get_nested, is_spec, read_arguments, spec_of
from avprompt.errors import ConfigError

if TYPE_CHECKING:
    from lightning import LightningDataModule as AVDataModule
    from lightning import LightningModule

#: flags, and whether to build on the meta device -> task and data module
Build = Callable[[list[str], bool], "tuple[LightningModule, AVDataModule]"]
#: columns of the table: key, heading, divisor, digits; those that an experiment has not are left out
COLUMNS = (
    ("trainable", "trained, M", 1e6, 3),
    ("checkpoint", "in checkpoints, M", 1e6, 3),
    ("frozen", "frozen, M", 1e6, 3),
    ("total", "total, M", 1e6, 3),
    ("forward_gflops_a_clip", "GFLOPs forward a clip", 1, 1),
    ("kept_gb", "kept for backward a clip, GB", 1, 3),
    ("forward_s", "forward, s", 1, 3),
    ("backward_s", "backward, s", 1, 3),
    ("step_s", "step, s", 1, 3),
    ("peak_gb", "peak, GB", 1, 2),
    ("peak_with_optimizer_gb", "peak with optimizer, GB", 1, 2),
)
#: columns that ratios are shown of
RATIOS = ("trainable", "forward_gflops_a_clip", "kept_gb", "step_s", "peak_with_optimizer_gb")


def _without_text_files(flags: list[str], texts: str) -> list[str]:
    """Flags for a text branch: learned texts on random weights, noise instead of fixed ones."""
    given = get_nested(read_arguments(flags).content, f"model.init_args.{texts}")
    kind, tower = (get_nested(given, key) or "" for key in ("class_path", "init_args.tower.class_path"))
    if kind.endswith("FixedEmbeddings") and not tower.rpartition(".")[2].startswith("Tiny"):
        return [f"--model.{texts}", "avprompt.methods.RandomEmbeddings"]
    return [f"--model.{texts}.tower.pretrained", "none"] if tower else []


def random_weights(config: str, overrides: list[str]) -> list[str]:
    """Flags with which an experiment needs no file of weights: `pretrained: none`, noise for embeddings of fixed texts.

    Args:
        config: name or file of the experiment.
        overrides: flags behind it.

    Example:
        >>> random_weights("quickstart", [])[2:]
        ['--model.backbone.visual.pretrained', 'none', '--model.backbone.audio.pretrained', 'none']
    """
    flags = ["--config", str(config), *overrides]
    arguments = read_arguments(flags).content["model"]["init_args"]
    for side in ("visual", "audio"):
        if is_spec(spec_of(get_nested(arguments, f"backbone.init_args.{side}"))):  # not `shared`, nor published files
            flags += [f"--model.backbone.{side}.pretrained", "none"]
        flags += _without_text_files(flags, f"{side}_texts")
    if arguments.get("pretrained"):
        flags += ["--model.pretrained", "null"]
    return flags


def open_gates(model: LightningModule) -> None:
    """Set gates and the visual encoder's norms, which start at zero in DG-SCT and Swin-V2, to 0.5.

    Otherwise half of a network would multiply by zero, and hide what is wrong in it.
    """
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate") or (".visual." in name and "norm" in name):
                parameter.fill_(0.5)


@contextmanager
def _for_counting(build: Build, flags: list[str]) -> Iterator[tuple[LightningModule, AVDataModule]]:
    """Task and data module on the meta device, or on the CPU with learned texts, whose tower reads values of tokens."""
    import torch

    arguments = read_arguments(flags).content["model"]["init_args"]
    texts = arguments.get("visual_texts") or arguments.get("audio_texts")
    with nullcontext() if texts else torch.device("meta"):
        yield build(flags, not texts)


def _forward_gflops(model: LightningModule, data: AVDataModule) -> float:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # the counter does not know the fused attention of CPUs
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        model.train()(data.example_batch(1))
    return flops.get_total_flops() / 1e9


def counted(build: Build, config: str, overrides: list[str]) -> dict[str, Any]:
    """What can be known of a training step without running it.

    Args:
        build: see `measure`.
        config: file of the experiment.
        overrides: flags behind it.

    Returns:
        `forward_gflops_a_clip`, `kept_gb` (what the forward pass of one clip keeps for the backward pass, in float32),
        and `trainable`, `frozen`, `total`, `checkpoint` parameters.

    Raises:
        ConfigError: the network needs values where the meta device has none.
    """
    from avprompt.checkpoints import count_parameters
    from avprompt.reports.kept import kept_bytes

    try:
        with _for_counting(build, random_weights(config, overrides)) as (model, data):
            kept, _ = kept_bytes(model, lambda: model.train()(data.example_batch(1)))
            return {
                "forward_gflops_a_clip": _forward_gflops(model, data),
                "kept_gb": kept / 1e9,
                **count_parameters(model),
            }
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):  # another fault than a value that the meta device does not have
            raise
        raise ConfigError(
            config,
            str(error).splitlines()[0],
            "a network that can be counted without values",
            "Measure it on a device: --device cpu.",
        ) from error


def measure(
    build: Build, config: str, overrides: list[str], device: str, batch: int, steps: int, precision: str
) -> dict[str, Any]:
    """Run `steps` training steps on random clips in this process and measure them.

    Args:
        build: makes the task and the data module of an experiment.
        config: file of the experiment.
        overrides: flags behind it.
        device: `cpu` or `cuda`.
        batch: clips in a step.
        steps: measured after a first one; the best counts.
        precision: `fp32`, or `bf16` autocast.

    Returns:
        `forward_s`, `backward_s`, `step_s`, `optimizer_s`, `first_step_s`, `peak_gb` (before the optimizer has its
        state), `peak_with_optimizer_gb`, `forward_gflops_a_clip`, and `trainable`, `frozen`, `total`, `checkpoint`
        parameters.
    """
    import torch

    from avprompt.checkpoints import count_parameters

    flags = random_weights(config, overrides)
    with _for_counting(build, flags) as (model, data):
        gflops = _forward_gflops(model, data)
    torch.manual_seed(0)
    model = build(flags, False)[0].to(device).train()
    open_gates(model)
    inputs = {
        key: value.to(device) if torch.is_tensor(value) else value for key, value in data.example_batch(batch).items()
    }
    trained = any(parameter.requires_grad for parameter in model.parameters())  # zero-shot: nothing is
    optimizer = model.configure_optimizers() if trained else None
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    times = []

    def forward_backward() -> tuple[float, float]:
        sync()
        begun = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = model.total_loss(model(inputs), inputs)
        sync()
        middle = time.perf_counter()
        if trained:
            loss.backward()
        sync()
        return middle - begun, time.perf_counter() - middle

    def peak() -> float:
        bytes_ = (
            torch.cuda.max_memory_allocated()
            if device == "cuda"
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
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
    return {
        "forward_s": best[0],
        "backward_s": best[1],
        "step_s": sum(best) + updated,
        "optimizer_s": updated,
        "first_step_s": sum(times[0]),
        "peak_gb": before,
        "peak_with_optimizer_gb": peak(),
        "forward_gflops_a_clip": gflops,
        **count_parameters(model),
    }


def compare_steps(
    paths: list[Path],
    settings: dict[str, Any],
    measured: Callable[[Path], dict[str, Any]],
    out: Path | None = None,
    against: str | None = None,
) -> None:
    """Measure experiments and print a table; what is in `out` is kept, and what is measured is written there at once.

    Args:
        paths: files of the experiments.
        settings: of the measurements, by name: device, precision, batch, steps.
        measured: measures one experiment, see `measure`.
        out: CSV file of the table, with everything that is measured.
        against: name of one of the experiments, to which the table has ratios.

    Raises:
        ConfigError: `against` is not among the experiments; `out` was written with other settings; at the end, some
            experiments failed.
    """
    if against is not None and against not in [path.stem for path in paths]:
        raise ConfigError("against", against, "the name of one of the experiments", "Add it, or choose another.")
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
                rows[path.stem] = {"experiment": path.stem, **settings, **measured(path)}
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
    columns = [column for column in COLUMNS if any(column[0] in row for row in rows.values())]
    base = rows.get(against, {})
    ratios = [column for column in columns if column[0] in RATIOS and float(base.get(column[0], 0))]
    header = [
        "experiment",
        *(heading for _, heading, _, _ in columns),
        *(f"{heading.partition(',')[0]}, ratio" for _, heading, _, _ in ratios),
    ]
    lines = [
        [
            path.stem,
            *(
                (
                    *(f"{float(rows[path.stem][key]) / unit:,.{digits}f}" for key, _, unit, digits in columns),
                    *(f"{float(rows[path.stem][key]) / float(base[key]):.3f}" for key, *_ in ratios),
                )
                if path.stem in rows
                else ["failed"] + [""] * (len(header) - 2)
            ),
        ]
        for path in paths
    ]
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    for line in [header, ["-" * width for width in widths], *lines]:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths)) + " |")
    note = (
        (
            "\nCounted on the meta device, nothing ran: GFLOPs of the forward pass of one clip, a multiplication and an "
            "addition are two; kept: what it keeps for the backward pass, in float32."
        )
        if settings["device"] == "meta"
        else (
            "\nA training step on {device}, {precision}, batch {batch}, best of {steps} after the first; GFLOPs: "
            "forward, one clip, a multiplication and an addition are two; each experiment in its own process."
        )
    )
    print(note.format(**settings))
    if failed:
        raise ConfigError(
            "configs",
            f"{len(failed)} failed experiments: {sorted(failed)}",
            "all measured",
            "Correct the cause and call again; with `--out` the others are kept.",
        )
