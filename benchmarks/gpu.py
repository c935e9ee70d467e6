"""Prove one GPU: speed, memory, precision and data path of the suite on it, in minutes, without network or data.

    python benchmarks/gpu.py --minutes 8 --out gpu                         # a machine with an NVIDIA card
    python benchmarks/gpu.py --minutes 8 --out gpu --baseline FOLDER       # beside somebody else's network
    python benchmarks/gpu.py --minutes 8 --out trial --device cpu --tiny   # all of it, small, on any machine
    python benchmarks/gpu.py --table gpu                                   # the table of what was measured

Weights are random, clips are noise. Each part runs in a process of its own with a time limit, the most important part
first. Whatever is measured is appended at once to OUT/results.jsonl, one JSON object a line, so that a run that is cut
off still leaves its figures. A part that crashes, hangs or runs out of memory is noted, and the next one begins. With
the same OUT, only the parts that are not done run.

    a-environment   card, driver, versions; the rate of an 8192-cubed bf16 product, which shares are relative to
    a-step          AVE with DG-SCT in bf16 at batch 1, 8, 24, without checkpointing: ms, clips/s, memory a clip
    a-learning      20 steps on one batch: the loss is finite and falls; outputs of batch 1 against float32
    a-checkpointing the other ways of checkpointing, and the largest batch that fits with each
    b-baseline      float32 with TF32 off and on, ours and the network in --baseline
    c-compile       each way of compiling, the seconds to compile apart; the whole step as one CUDA graph
    d-...           the other tasks in bf16, at batch 4 and the largest that fits
    e-profile       one step at batch 8: kernels, the share of time in which the card idles, synchronisations
    f-precision     50 steps in bf16 and in float32 from the same weights: the largest relative gap of the loss
    g-fit           `avprompt fit` from a store on disk: time a step against a-step

FOLDER holds baseline.py with `build()`, which returns a network, and `batch(clips)`, which returns the tuple of its
inputs; a `loss(outputs)` is optional, else the mean square of every output is used. Nothing of it is copied.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import traceback
import typing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from torch import Tensor

from avprompt import AVPromptBackbone
from avprompt.cli import parts_of
from avprompt.reports.efficiency import open_gates, random_weights
from avprompt.signals import handled

sys.path.insert(0, str(Path(__file__).parent))  # where a test loads this file by its path
from trials import Machine, Operations, Trial, foreign, moved, slope

#: kinds of a line of results.jsonl that say how a part ended
DONE, FAILED, LATE, SKIPPED = "done", "failed", "out of time", "not begun"
GB = 1e9


@dataclass(frozen=True)
class Sizes:
    """What is measured, at full size or tiny.

    Args:
        ave: experiment of AVE.
        others: experiments of part d, by name.
        overrides: flags of every part but two of part a.
        batches: batch sizes of part a; the second one is that of most parts.
        other_batch: of part d, which takes the largest alone in tiny.
        warm: steps before those that are timed.
        steps: timed steps.
        product: rows of the square matrices whose product gives the attained rate.
        learning: steps on one batch.
        gap: steps in bf16 and float32.
        most: largest batch to try where memory does not end it; `None` on a GPU.
        fit: training clips of part g.
    """

    ave: str = "ave_dgsct"
    others: tuple[tuple[str, str], ...] = (
        ("d-avvp", "avvp_dgsct"),
        ("d-s4", "avs_s4_dgsct"),
        ("d-ms3", "avs_ms3_dgsct"),
        ("d-avqa", "avqa_dgsct"),
        ("d-fewshot", "fewshot_ave_dgsct"),
        ("d-avstfp", "ave_avstfp_l14"),
    )
    overrides: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1, 8, 24)
    other_batch: int = 4
    warm: int = 2
    steps: int = 12
    product: int = 8192
    learning: int = 20
    gap: int = 50
    most: int | None = None
    fit: int = 240


FULL = Sizes()
TINY = Sizes(
    "quickstart",
    (
        ("d-avvp", "avvp_quickstart"),
        ("d-s4", "avs_s4_quickstart"),
        ("d-ms3", "avs_ms3_quickstart"),
        ("d-avqa", "avqa_quickstart"),
        ("d-fewshot", "fewshot_ave_quickstart"),
        ("d-avstfp", "ave_avstfp_quickstart"),
    ),
    ("--model.backbone.prompts", "avprompt.methods.NoPrompts"),
    batches=(1, 2),
    other_batch=1,
    warm=0,
    steps=1,
    product=256,
    learning=2,
    gap=2,
    most=2,
    fit=6,
)
#: seconds that a part may take when the whole may take 8 minutes
LIMITS = {
    "a-environment": 60,
    "a-step": 100,
    "a-learning": 60,
    "a-checkpointing": 100,
    "b-baseline": 90,
    "c-compile": 120,
    "d": 60,
    "e-profile": 60,
    "f-precision": 80,
    "g-fit": 90,
}


def trial(machine: Machine, experiment: str, precision: str = "bf16", overrides: Sequence[str] | None = None) -> Trial:
    """An experiment in training with random weights, its gates open; by default with the overrides of the sizes."""
    flags = list(machine.sizes.overrides if overrides is None else overrides)
    model, data = parts_of(random_weights(experiment, flags))
    open_gates(model)
    model = model.to(machine.device).train()
    optimizer = model.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    return Trial(
        machine,
        model,
        data.example_batch,
        lambda task, inputs: task.total_loss(task(inputs), inputs)[0],
        optimizer,
        precision,
    )


def choices(argument: str) -> tuple[Any, ...]:
    """Values that the backbone of this checkout takes for an argument; none where it has no such argument."""
    hint = typing.get_type_hints(AVPromptBackbone.__init__).get(argument)
    return () if hint is None else (False, True) if hint is bool else typing.get_args(hint)


def flops_of(one: Trial) -> int:
    """FLOPs of a training step of one clip, forward and backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    one.load(1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused ones are not all counted
        one.forward_backward()
    return counter.get_total_flops()


def largest(one: Trial, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A measurement at the largest batch that fits, found from the slope of the memory of smaller ones."""
    machine, each = one.machine, slope(rows)
    if machine.sizes.most is not None:
        return one.measure(machine.sizes.most, largest=True, **more)
    if each is None:
        return {"batch": None, "error": "no memory a clip to search with", **more}
    known = max((row for row in rows if "peak_bytes" in row), key=lambda row: row["batch"])
    room = 0.94 * torch.cuda.get_device_properties(0).total_memory - known["peak_bytes"]
    clips, found = max(known["batch"] + 1, known["batch"] + int(room / each)), {}
    for _ in range(6):
        try:
            found = one.measure(clips, largest=True, **more)
        except RuntimeError as error:  # some kernels count elements in 32 bits
            found = {"precision": one.precision, "batch": clips, "error": str(error).splitlines()[0], **more}
        if "error" not in found or clips <= known["batch"]:
            break
        clips = max(known["batch"], int(0.9 * clips))
    return found


# --- the parts

Write = Callable[..., None]


def environment(machine: Machine, given: argparse.Namespace, write: Write) -> None:
    """Card, driver, versions, and the rate of a large product."""
    import lightning
    import timm

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "timm": timm.__version__,
        "cores": os.cpu_count(),
        "device": platform.processor() or platform.machine(),
    }
    if machine.cuda:
        properties = torch.cuda.get_device_properties(0)
        asked = "--query-gpu=driver_version,power.limit,clocks.max.sm"
        driver = subprocess.run(
            ["nvidia-smi", asked, "--format=csv,noheader"], capture_output=True, text=True, check=False
        )
        found |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver.stdout.strip() or driver.stderr.strip(),
        }
    write(kind="environment", **found)
    size = machine.sizes.product
    for kind in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(size, size, device=machine.device, dtype=kind) for _ in range(2))
        seconds = machine.seconds(partial(torch.matmul, a, b), 30 if machine.cuda else 3, warm=3)
        write(kind="rate", dtype=str(kind).removeprefix("torch."), size=size, flops_per_s=2 * size**3 / seconds)


def steps(machine: Machine, given: argparse.Namespace, write: Write) -> None:
    """AVE in bf16 without checkpointing."""
    mode = choices("checkpointing")[0]
    one = trial(machine, machine.sizes.ave, overrides=[])
    flops, rows = flops_of(one), []
    write(kind="flops", experiment=machine.sizes.ave, flops_a_clip=flops)
    for clips in machine.sizes.batches:
        rows.append(one.measure(clips, kind="step", experiment=machine.sizes.ave, checkpointing=mode))
        write(**rows[-1])
    write(kind="memory", experiment=machine.sizes.ave, checkpointing=mode, precision="bf16", bytes_a_clip=slope(rows))
    if machine.sizes is FULL:
        write(**largest(one, rows, kind="step", experiment=machine.sizes.ave, checkpointing=mode))


def learning(machine: Machine, given: argparse.Namespace, write: Write) -> None:
    """Whether it learns, and how far bf16 is from float32."""
    one = trial(machine, machine.sizes.ave)
    one.model.eval()
    one.load(1)
    outputs = {}
    with torch.no_grad():
        for precision in ("fp32", "bf16"):
            one.precision = precision
            with one.autocast():
                outputs[precision] = {
                    name: value.float()
                    for name, value in one.model(one.inputs).items()
                    if isinstance(value, Tensor) and value.is_floating_point()
                }
    write(
        kind="outputs",
        experiment=machine.sizes.ave,
        relative_error={
            name: float((outputs["bf16"][name] - exact).norm() / exact.norm())
            for name, exact in outputs["fp32"].items()
            if float(exact.norm()) > 0
        },
    )
    one.model.train()
    one.load(machine.sizes.batches[1])
    losses = torch.stack([one.step() for _ in range(machine.sizes.learning)]).tolist()
    part = max(1, len(losses) // 4)
    write(
        kind="learning",
        experiment=machine.sizes.ave,
        batch=machine.sizes.batches[1],
        losses=losses,
        finite=bool(torch.tensor(losses).isfinite().all()),
        falls=statistics.mean(losses[-part:]) < statistics.mean(losses[:part]),
    )


def checkpointing(machine: Machine, given: argparse.Namespace, write: Write) -> None:
    """The other ways of checkpointing."""
    name = machine.sizes.ave
    one = trial(machine, name, overrides=[])
    for mode in choices("checkpointing")[1:]:
        one.model.backbone.checkpointing = mode
        rows = []
        for clips in machine.sizes.batches if machine.sizes is FULL else ():
            rows.append(one.measure(clips, kind="step", experiment=name, checkpointing=mode))
            write(**rows[-1])
        write(kind="memory", experiment=name, checkpointing=mode, precision="bf16", bytes_a_clip=slope(rows))
        write(**largest(one, rows, kind="step", experiment=name, checkpointing=mode))


def baseline(machine: Machine, given: argparse.Namespace, write: Write) -> None:
    """Ours and another network in float32, TF32 off and on."""
    makers: dict[str, Callable[[], Trial]] = {}
    if given.baseline is not None:
        makers["baseline"] = lambda: foreign(machine, Path(given.baseline))
    makers[machine.sizes.ave] = lambda: trial(machine, machine.sizes.ave, "fp32")
    for name, make in makers.items():
        one = make()
        for tf32 in (False, True) if machine.cuda else (False,):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            rows = []
            for clips in machine.sizes.batches[:2]:
                rows.append(
                    one.measure(
                        clips, kind="step", experiment=name, checkpointing=choices("checkpointing")[0], tf32=tf32
                    )
                )
                write(**rows[-1])
            write(
                kind="memory",
                experiment=name,
                precision="fp32",
                tf32=tf32,
                bytes_a_clip=slope(rows),
                checkpointing=choices("checkpointing")[0],
            )
        del one
        machine.forget()


def compiling(machine: Machine, given: argparse.Namespace, write: Write) -> None:
    """Each way of compiling, and the whole step as one CUDA graph."""
    name, clips = machine.sizes.ave, machine.sizes.batches[1]
    more = {"kind": "compile", "experiment": name, "precision": "bf16", "batch": clips}
    if machine.cuda:
        one = trial(machine, name)
        one.load(clips)
        try:
            write(**more, compile="CUDA graph", **graphed(one))
        except (RuntimeError, AssertionError) as error:
            write(**more, compile="CUDA graph", error=f"{type(error).__name__}: {str(error).splitlines()[0]}")
        del one
    ways = choices("compile") or ("none", "torch.compile")
    for way in ways:
        torch.compiler.reset()
        torch._dynamo.config.suppress_errors = False
        one = trial(
            machine,
            name,
            "bf16",
            [*machine.sizes.overrides, *(["--model.backbone.compile", str(way)] if choices("compile") else [])],
        )
        if way == "torch.compile":
            one.model.backbone.compile()
        try:
            one.load(clips)
            begun = time.perf_counter()
            one.step()
            machine.wait()
            first = time.perf_counter() - begun
            write(
                **more,
                compile=way,
                first_step_s=first,
                **{key: value for key, value in one.measure(clips).items() if key not in more},
            )
        except Exception as error:  # compilers raise all kinds of errors
            write(**more, compile=way, error=f"{type(error).__name__}: {str(error).splitlines()[0]}")
        del one
        machine.forget()


def graphed(one: Trial) -> dict[str, Any]:
    """The step of a fixed batch, captured once and replayed; the optimizer's update stays outside."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            one.forward_backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    one.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph), one.autocast():
        loss = one.loss(one.model, one.inputs)
        loss.backward()

    def step() -> None:
        graph.replay()
        one.optimizer.step()

    seconds = one.machine.seconds(step, one.machine.sizes.steps)
    clips = len(one.inputs["id"])
    return {"ms": 1e3 * seconds, "clips_per_s": clips / seconds, "finite": bool(loss.isfinite())}


def other(name: str) -> Callable[[Machine, argparse.Namespace, Write], None]:
    """Part d for one experiment."""

    def measure(machine: Machine, given: argparse.Namespace, write: Write) -> None:
        sizes, experiment = machine.sizes, dict(machine.sizes.others)[name]
        more = {"kind": "step", "experiment": experiment, "checkpointing": choices("checkpointing")[0]}
        one, rows = trial(machine, experiment), []
        if sizes is FULL:
            write(kind="flops", experiment=experiment, flops_a_clip=flops_of(one))
            for clips in (1, sizes.other_batch):
                rows.append(one.measure(clips, **more))
                write(**rows[-1])
            write(**{**more, "kind": "memory"}, precision="bf16", bytes_a_clip=slope(rows))
        write(**largest(one, rows, **more))

    return measure


def profile(machine: Machine, given: argparse.Namespace, write: Write) -> None:
    """Kernels, idle time and synchronisations of one step."""
    name, clips = machine.sizes.ave, machine.sizes.batches[1]
    one = trial(machine, name)
    one.load(clips)
    for _ in range(3 if machine.cuda else 1):
        one.step()
    machine.wait()
    with Operations() as counted:
        one.forward_backward()
    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")
    syncs = {name: count for name, count in counted.names.items() if name in waiting}
    found = {"operations": counted.count, "casts": counted.names["_to_copy"], "synchronising": syncs}
    if machine.cuda:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            one.step()
        torch.cuda.set_sync_debug_mode("default")
        places: dict[str, int] = {}
        for warning in said:
            if "synchroniz" in str(warning.message):
                place = f"{Path(warning.filename).name}:{warning.lineno}"
                places[place] = places.get(place, 0) + 1
        found |= {"synchronisations": sum(places.values()), "synchronisation_places": places} | timeline(one)
    write(kind="profile", experiment=name, precision="bf16", batch=clips, **found)


def timeline(one: Trial) -> dict[str, Any]:
    """What the card did during a step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        one.step()
        one.machine.wait()
    kernels = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    busy, reached = 0.0, spans[0][0] if spans else 0.0
    for start, end in spans:
        busy, reached = busy + max(0.0, end - max(start, reached)), max(reached, end)
    whole = reached - spans[0][0] if spans else 0.0
    totals: dict[str, float] = {}
    for event in kernels:
        totals[event.name[:80]] = totals.get(event.name[:80], 0.0) + event.time_range.elapsed_us()
    top = sorted(totals.items(), key=lambda item: -item[1])[:15]
    return {
        "kernels": len(kernels),
        "busy_ms": busy / 1e3,
        "span_ms": whole / 1e3,
        "idle_share": 1 - busy / whole if whole else None,
        "top_kernels_ms": {name: us / 1e3 for name, us in top},
    }


def precision(machine: Machine, given: argparse.Namespace, write: Write) -> None:
    """The loss of training in bf16 and in float32 from the same weights, on the same batches, without dropout."""
    name, clips, count = machine.sizes.ave, machine.sizes.batches[1], machine.sizes.gap
    losses, start = {}, None
    for kind in ("fp32", "bf16"):
        one = trial(machine, name, kind)
        state = {key: value.detach().clone() for key, value in one.model.state_dict().items()}
        start = start or copy.deepcopy(state)
        one.model.load_state_dict(start)
        for module in one.model.modules():  # dropout draws other numbers in another precision
            for chance in ("p", "drop_prob", "dropout"):
                if isinstance(getattr(module, chance, None), float):
                    setattr(module, chance, 0.0)
        found = []
        for number in range(count):
            torch.manual_seed(1000 + number % 10)
            one.inputs = moved(one.batch(clips), machine.device)
            found.append(one.step())
        losses[kind] = torch.stack(found).tolist()
        write(kind="losses", experiment=name, precision=kind, batch=clips, losses=losses[kind])
        del one
        machine.forget()
    gaps = [abs(a - b) / abs(b) for a, b in zip(losses["bf16"], losses["fp32"])]
    write(kind="gap", experiment=name, batch=clips, steps=count, largest_relative_gap=max(gaps))


class StepTimes(Callback):
    """Writes the second at which each training batch ends.

    Args:
        file: to write, one number a line.
    """

    def __init__(self, file: str) -> None:
        self.file, self.ends = Path(file), []

    def on_train_batch_end(self, *_: Any) -> None:
        """Note it; the host may be ahead of the device by some launches, not by batches."""
        self.ends.append(time.perf_counter())

    def on_train_end(self, *_: Any) -> None:
        """Write."""
        self.file.write_text("\n".join(map(str, self.ends)))


def fit(machine: Machine, given: argparse.Namespace, write: Write) -> None:
    """`avprompt fit` on a store of noise: does the loader keep up?"""
    from loader import write_store  # beside this file

    from avprompt.cli import run
    from avprompt.datasets.ave import HEADER, SPLITS

    name, clips = machine.sizes.ave, machine.sizes.batches[1]
    folder = Path(given.out).resolve() / "fit"
    _, data = parts_of(random_weights(name, []), meta=True)
    categories = data.class_names[: data.num_classes]
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"train": machine.sizes.fit, "val": clips, "test": clips}
    begun = time.perf_counter()
    items = write_store(folder / "store", data.sampling, sum(counts.values()))
    rows = [f"{categories[number % len(categories)]}&{item.id}&good&2&8" for number, item in enumerate(items)]
    (folder / "Annotations.txt").write_text("\n".join([HEADER, *rows]) + "\n")
    for split, count in counts.items():
        (folder / SPLITS[split]).write_text("\n".join(rows[:count]) + "\n")
        rows = rows[count:]
    write(kind="store", clips=len(items), seconds=time.perf_counter() - begun)
    sys.path.insert(0, str(Path(__file__).parent))
    times = folder / "times.txt"
    begun = time.perf_counter()
    workers = min(4, (os.cpu_count() or 1) - 1) if machine.cuda else 0
    run(
        [
            "fit",
            *random_weights(name, []),
            "--data.root",
            str(folder),
            "--data.batch_size",
            str(clips),
            "--data.num_workers",
            str(workers),
            "--trainer.max_epochs",
            "1",
            "--trainer.num_sanity_val_steps",
            "0",
            "--trainer.logger.save_dir",
            str(folder / "runs"),
            "--trainer.enable_progress_bar",
            "false",
            "--trainer.callbacks+",
            json.dumps({"class_path": "gpu.StepTimes", "init_args": {"file": str(times)}}),
        ]
    )
    ends = [float(line) for line in times.read_text().split()]
    settled = ends[len(ends) // 3 :]  # the first steps wait for workers to start and kernels to load
    each = (settled[-1] - settled[0]) / (len(settled) - 1)
    write(
        kind="fit",
        experiment=name,
        batch=clips,
        workers=workers,
        steps=len(ends),
        ms=1e3 * each,
        clips_per_s=clips / each,
        whole_s=time.perf_counter() - begun,
    )


PARTS: dict[str, Callable[[Machine, argparse.Namespace, Write], None]] = {
    "a-environment": environment,
    "a-step": steps,
    "a-learning": learning,
    "a-checkpointing": checkpointing,
    "b-baseline": baseline,
    "c-compile": compiling,
    **{name: other(name) for name, _ in FULL.others},
    "e-profile": profile,
    "f-precision": precision,
    "g-fit": fit,
}


# --- one process a part


def append(file: Path, record: dict[str, Any]) -> None:
    """Add a line, and wait until it is on the disk."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def read(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a results.jsonl."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):  # the machine went down in the middle of a line
            found.append(json.loads(line))
    return found


def work(name: str, given: argparse.Namespace, file: Path) -> None:
    """The process of a part."""
    os.setsid()  # so that whatever it starts ends with it
    log = (Path(given.out) / f"{name}.log").open("w")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    if given.tiny:
        torch.set_num_threads(1)
        torch.compiler.set_stance("force_eager")  # compilers take minutes
    try:
        PARTS[name](
            Machine(given.device, TINY if given.tiny else FULL),
            given,
            lambda **record: append(file, {"part": name, **record}),
        )
    except BaseException:
        traceback.print_exc(file=log)
        log.flush()
        os._exit(1)
    log.flush()
    os._exit(0)  # at once: a profiler or a loader may not end by itself


def end(process: Any) -> None:
    """Kill a part and what it has started."""
    if process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()


def measure_all(given: argparse.Namespace) -> int:
    """Run every part that is not done; the number of parts that are not done afterwards."""
    folder = Path(given.out)
    folder.mkdir(parents=True, exist_ok=True)
    file, begun, wrong = folder / "results.jsonl", time.monotonic(), 0
    done = {row["part"] for row in read(file) if row.get("status") == DONE}
    parts_of(random_weights((TINY if given.tiny else FULL).ave, []), meta=True)
    # what that imported is inherited: nothing here has touched the card or started threads
    context = multiprocessing.get_context("fork")
    for name in PARTS:
        if name in done or (given.only and not any(name.startswith(part) for part in given.only.split(","))):
            continue
        left = 60 * given.minutes - (time.monotonic() - begun)
        limit = min(
            left, LIMITS.get(name, LIMITS["d"]) * max(1.0, given.minutes / 8) if given.limit is None else given.limit
        )
        if limit < 5:
            append(file, {"part": name, "status": SKIPPED, "seconds": 0.0})
            wrong += 1
            continue
        before = sum(os.times()[2:4])
        start, process = time.monotonic(), context.Process(target=work, args=(name, given, file))

        def stop(number: int, _: Any, process: Any = process) -> None:
            end(process)
            raise SystemExit(128 + number)

        with handled(stop):
            process.start()
            process.join(limit)
        late = process.is_alive()
        end(process)
        busy = sum(os.times()[2:4]) - before
        status = LATE if late else DONE if process.exitcode == 0 else FAILED
        log, said = folder / f"{name}.log", ""
        if status == FAILED:
            said = "".join(log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else [])[:300]
        append(
            file,
            {
                "part": name,
                "status": status,
                "seconds": round(time.monotonic() - start, 1),
                "processor_s": round(busy, 1),
                **({"code": process.exitcode, "reason": said} if status == FAILED else {}),
            },
        )
        wrong += status != DONE
        print(f"{name:16} {status} after {time.monotonic() - start:.0f} s {said[:100]}", flush=True)
    return wrong


# --- the table


def table(folder: Path) -> str:
    """What was measured, as Markdown."""
    rows = read(folder / "results.jsonl")
    of = lambda kind: [row for row in rows if row.get("kind") == kind]  # noqa: E731
    rates = {row["dtype"]: row["flops_per_s"] for row in of("rate")}
    flops = {row["experiment"]: row["flops_a_clip"] for row in of("flops")}
    key = lambda row: (row["experiment"], row["precision"], row.get("checkpointing"), row.get("tf32"))  # noqa: E731
    memory = {key(row): row["bytes_a_clip"] for row in of("memory")}
    text = []
    for row in of("environment"):
        text += [
            f"{row['device']}, driver {row.get('driver', 'none')}, torch {row['torch']}, CUDA {row.get('cuda')}, "
            f"Python {row['python']}, {row['cores']} cores. Attained: "
            + ", ".join(f"{rate / 1e12:.1f} TFLOP/s in {name}" for name, rate in rates.items())
            + ".",
            "",
        ]
    lines = [
        [
            "experiment",
            "precision",
            "checkpointing",
            "batch",
            "ms a step",
            "clips/s",
            "peak, GB",
            "GB a clip",
            "share of attained rate",
        ]
    ]
    for row in of("step"):
        shown = f"{row['precision']}{', TF32' if row.get('tf32') else ''}"
        line = [
            row["experiment"],
            shown,
            str(row.get("checkpointing", "")),
            str(row["batch"]) + (" (largest)" if row.get("largest") else ""),
        ]
        if "error" in row:
            lines.append([*line, row["error"].partition(":")[0], "", "", "", ""])
            continue
        share = flops.get(row["experiment"], 0) * row["clips_per_s"] / rates.get("bfloat16", float("inf"))
        each = memory.get(key(row))
        lines.append(
            [
                *line,
                f"{row['ms']:.1f}",
                f"{row['clips_per_s']:.2f}",
                f"{row['peak_bytes'] / GB:.2f}",
                "" if each is None else f"{each / GB:.2f}",
                f"{100 * share:.1f} %" if share and row["precision"] == "bf16" else "",
            ]
        )
    text += [f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]]]
    ours = [row for row in of("step") if row["part"] in ("a-step", "a-checkpointing") and "ms" in row]
    theirs = [row for row in of("step") if row["experiment"] == "baseline" and not row.get("tf32") and "ms" in row]
    if ours and theirs:
        best, other = (max(part, key=lambda row: row["clips_per_s"]) for part in (ours, theirs))
        least = min(
            each for (name, kind, *_), each in memory.items() if name == best["experiment"] and kind == "bf16" and each
        )
        faster = best["clips_per_s"] / other["clips_per_s"]
        text += [
            "",
            (
                f"Against the baseline in float32: {faster:.1f} times its clips a second, "
                f"{least / memory[key(other)]:.2f} of its memory a clip."
            ),
        ]
    text.append("")
    for row in of("compile"):
        text.append(
            f"- compile {row['compile']}, batch {row['batch']}: "
            + (
                row["error"]
                if "error" in row
                else (
                    f"{row['ms']:.1f} ms a step"
                    + (f", the first after {row['first_step_s']:.1f} s" if "first_step_s" in row else "")
                )
            )
        )
    for row in of("learning"):
        first, last = row["losses"][0], row["losses"][-1]
        text.append(
            f"- {len(row['losses'])} steps on one batch: loss {first:.4f} to {last:.4f}, "
            f"{'finite' if row['finite'] else 'NOT FINITE'}, {'falling' if row['falls'] else 'NOT FALLING'}"
        )
    for row in of("outputs"):
        text.append(
            "- bf16 against float32, batch 1, relative error: "
            + ", ".join(f"{name} {value:.1e}" for name, value in row["relative_error"].items())
        )
    for row in of("gap"):
        text.append(
            f"- {row['steps']} steps in bf16 and float32: largest relative gap of the loss "
            f"{row['largest_relative_gap']:.1e}"
        )
    for row in of("profile"):
        text.append(
            f"- forward and backward at batch {row['batch']}: {row['operations']:,} operations, "
            f"{row['casts']:,} of them casts"
            + (
                f"; {row['kernels']:,} kernels, {100 * row['idle_share']:.0f} % idle, "
                f"{row['synchronisations']} synchronisations"
                if "kernels" in row
                else f"; {sum(row['synchronising'].values())} that would synchronise"
            )
        )
    for row in of("fit"):
        alone = [step["ms"] for step in ours if step["batch"] == row["batch"]]
        text.append(
            f"- avprompt fit, batch {row['batch']}, {row['workers']} workers: {row['ms']:.1f} ms a step"
            + (f", {row['ms'] / alone[0]:.2f} times a-step" if alone else "")
        )
    states = {row["part"]: row for row in rows if "status" in row}
    bad = [
        f"{name}: {row['status']}" + (f" ({row['reason']})" if row.get("reason") else "")
        for name, row in states.items()
        if row["status"] != DONE
    ]
    return "\n".join(
        [
            *text,
            "",
            f"Parts done: {sum(row['status'] == DONE for row in states.values())} of {len(PARTS)}."
            + (f" Not done: {'; '.join(bad)}." if bad else ""),
        ]
    )


def main(args: list[str] | None = None) -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder of the results; continued if it has some")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny networks, few steps: proves this script")
    parser.add_argument("--baseline", help="folder of another network, see above")
    parser.add_argument("--only", help="parts, by the beginnings of their names: a,c,d-s4")
    parser.add_argument("--limit", type=float, help="seconds for each part, instead of its own limit")
    parser.add_argument("--table", type=Path, metavar="OUT", help="print the table of a folder, measure nothing")
    given = parser.parse_args(args)
    sys.argv[1:] = []  # none of the words of avprompt's own command line
    if given.table is not None:
        print(table(given.table))
        return
    if given.out is None:
        parser.error("--out says where the results go")
    wrong = measure_all(given)
    print(table(Path(given.out)))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
