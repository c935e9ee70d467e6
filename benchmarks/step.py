"""Compare a training step of this checkout with an older one, and with somebody else's network, alternating in one run.

    python benchmarks/step.py ave_dgsct --before FOLDER                        # an older checkout of this repository
    python benchmarks/step.py ave_dgsct --baseline FOLDER --batches 1,2        # another network, see benchmarks/gpu.py
    python benchmarks/step.py ave_dgsct avvp_dgsct --before FOLDER --count     # nothing runs: the meta device
    python benchmarks/step.py quickstart --before FOLDER --threads 1           # tiny
    python benchmarks/step.py quickstart --other "--model.backbone.compile=regions"  # this checkout, other arguments

`git worktree add FOLDER COMMIT` or `git archive COMMIT | tar x -C FOLDER` makes an older checkout. Each side is a
process of its own, which builds its network once and takes a step when it is asked to, one after the other in turn, the
first of each untimed; a step is forward, backward and update. Weights are random, clips are noise. For each side:

    seconds         median of the steps, of wall and of processor time; the latter says more on a busy machine
    GB a clip       the slope of the peak of memory between the smallest and the largest batch
    kept            GB that the forward pass of a clip keeps for the backward pass, counted on the meta device
    operations      that compute something, forward and backward, likewise

On a CPU the peak counts what the allocator keeps, so that the processes run with one that returns memory at once. Every
measurement is printed as a line of JSON when it is there; a table of all follows.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # where a test loads this file by its path
from trials import Machine, Operations, Trial, foreign, slope, tensors

ROOT = Path(__file__).resolve().parents[1]
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4194304", "MALLOC_TRIM_THRESHOLD_": "4194304"}
GB = 1e9


# --- one side, in its own process


def module_at(name: str, path: Path, package: bool = False) -> ModuleType:
    """A module from its file, under a name."""
    folders = [str(path.parent)] if package else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def suite(folder: Path, experiment: str, overrides: list[str], meta: bool) -> tuple[nn.Module, Callable[[int], Any]]:
    """The task of an experiment of a checkout with random weights, and how it makes a batch of so many clips."""
    sys.path.insert(0, str(folder / "src"))
    import avprompt

    if folder / "src" not in Path(avprompt.__file__).parents:
        raise SystemExit(f"{folder}: got avprompt from {avprompt.__file__}, expected one in src/")
    if importlib.util.find_spec("avprompt.data_modules") is None:  # an archive has no link to it
        module_at("avprompt.data_modules", folder / "data_modules" / "__init__.py", package=True)
    from avprompt.cli import parts_of

    if importlib.util.find_spec("avprompt.reports") is not None:
        from avprompt.reports.efficiency import random_weights

        model, data = parts_of(random_weights(experiment, overrides), meta=meta)
        return model, data.example_batch
    from avprompt.analysis import efficiency  # a checkout from before the layout of today
    from avprompt.configs import dig, sources

    flags, encoders = ["--config", str(folder / "experiments" / f"{experiment}.yaml"), *overrides], "model.init_args"
    encoders += ".backbone.init_args"
    for side in ("visual", "audio"):
        found = [dig(content, f"{encoders}.{side}") for _, content in sources(flags)]
        if [own for own in found if own is not None][-1:] not in (["shared"], ["separate"]):
            flags += [f"--{encoders}.{side}.init_args.pretrained", "none"]
        flags += efficiency._without_text_files(flags, f"model.init_args.{side}_texts")
    if any(dig(content, "model.init_args.pretrained") for _, content in sources(flags)):
        flags += ["--model.pretrained", "null"]
    model, data = parts_of(flags, meta=meta)
    return model, lambda clips: efficiency.random_batch(data, clips)


def whole_loss(model: nn.Module, inputs: Any) -> Tensor:
    """The sum of a task's losses, in any version of the suite."""
    outputs = model(inputs)
    if hasattr(model, "total_loss"):
        return model.total_loss(outputs, inputs)[0]
    return torch.stack(list(model.losses(outputs, inputs).values())).sum()


def side(given: argparse.Namespace, meta: bool) -> Trial:
    """The network of this process in training."""
    machine = Machine("meta" if meta else given.device, SimpleNamespace(warm=0, steps=1))
    folder = Path(given.folder).resolve()
    if given.kind == "baseline":
        with torch.device("meta") if meta else contextlib.nullcontext():
            one = foreign(machine, folder)
        one.precision = given.precision
        return one
    torch.manual_seed(0)
    with torch.device("meta") if meta else contextlib.nullcontext():
        model, batch = suite(folder, given.experiment, shlex.split(given.set), meta)
    with torch.no_grad():  # what starts at zero would hide half of the network
        for name, parameter in model.named_parameters():
            if name.endswith("gate") or (".visual." in name and "norm" in name):
                parameter.fill_(0.5)
    model = model.to(machine.device).train()
    optimizer = None
    if any(parameter.requires_grad for parameter in model.parameters()) and not meta:
        optimizer = model.configure_optimizers()
        optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    return Trial(machine, model, batch, whole_loss, optimizer, given.precision)


def counts(given: argparse.Namespace) -> dict[str, Any]:
    """What a step of one clip keeps and does, on the meta device."""
    kept_bytes = module_at("kept", ROOT / "src" / "avprompt" / "reports" / "kept.py").kept_bytes
    one = side(given, meta=True)
    with torch.device("meta"):
        inputs = one.batch(1)
        with Operations() as forward:
            size, outputs = kept_bytes(
                one.model, lambda: one.model(*inputs) if isinstance(inputs, tuple) else one.model(inputs)
            )
        with Operations() as backward:
            sum(own.sum() for own in tensors(outputs) if own.requires_grad).backward()
    return {"kept_bytes": size, "forward": forward.count, "backward": backward.count}


def serve(given: argparse.Namespace) -> None:
    """Take steps as they are asked for on standard input, a line of JSON each; answers go to standard output."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not an answer
    torch.set_num_threads(given.threads)
    one: Trial | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "count":
            answer = counts(given)
        else:
            one = one or side(given, meta=False)
            if one.inputs is None or asked["batch"] != len(next(tensors(one.inputs))):
                one.load(asked["batch"])
            one.machine.forget()
            wall, processor = time.perf_counter(), time.process_time()
            loss = one.step()
            one.machine.wait()
            answer = {
                "wall_s": time.perf_counter() - wall,
                "processor_s": time.process_time() - processor,
                "peak_bytes": one.machine.peak(),
                "loss": float(loss),
            }
        print(json.dumps(answer), file=answers, flush=True)


# --- all sides


class Side:
    """A process that measures one side.

    Args:
        name: `now`, `other`, `before` or `baseline`.
        folder: checkout, or folder of baseline.py.
        experiment: name of the experiment.
        given: the command line.
    """

    def __init__(self, name: str, folder: Path, experiment: str, given: argparse.Namespace) -> None:
        self.name = name
        kind = "baseline" if name == "baseline" else "suite"
        command = [sys.executable, __file__, "--serve", "--kind", kind, "--folder", folder, "--experiment", experiment]
        for key in ("device", "precision", "threads"):
            command.append(f"--{key}={getattr(given, key)}")
        command.append(f"--set={given.set} {given.other if name == 'other' else ''}")
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(ALLOCATOR if given.device == "cpu" else {})},
        )

    def ask(self, **what: Any) -> dict[str, Any]:
        """Send a request, wait for its answer."""
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: the process ended, see above")
        return json.loads(line)

    def end(self) -> None:
        """Of the process."""
        self.process.stdin.close()
        self.process.wait()


def measure(experiment: str, given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All that is measured of an experiment, by side."""
    folders = {"now": ROOT, "other": given.other and ROOT, "before": given.before, "baseline": given.baseline}
    sides = [Side(name, folder, experiment, given) for name, folder in folders.items() if folder is not None]
    found: dict[str, dict[str, Any]] = {own.name: {"rows": []} for own in sides}
    batches = [int(size) for size in given.batches.split(",")]

    def note(own: Side, **values: Any) -> None:
        print(json.dumps({"experiment": experiment, "side": own.name, **values}), flush=True)

    try:
        if not given.no_count:
            for own in sides:
                found[own.name] |= own.ask(do="count")
                note(own, **{key: value for key, value in found[own.name].items() if key != "rows"})
        for clips in () if given.count else batches:
            for turn in range(given.repeats + 1 if clips == batches[0] else 2):
                for own in sides:
                    row = {"batch": clips, "warm": turn == 0, **own.ask(do="step", batch=clips)}
                    note(own, load=os.getloadavg()[0], **row)
                    found[own.name]["rows"].append(row)
    finally:
        for own in sides:
            own.end()
    return found


def table(results: dict[str, dict[str, dict[str, Any]]], first: int) -> str:
    """Medians and ratios to the side that is not this checkout, as Markdown."""
    head = [
        "experiment",
        "side",
        "wall, s",
        "processor, s",
        "GB a clip",
        "kept a clip, GB",
        "operations forward",
        "backward",
    ]
    lines = [head, ["---"] * len(head)]
    for experiment, sides in results.items():
        for name, own in sides.items():
            timed = [row for row in own["rows"] if row["batch"] == first and not row["warm"]]
            each = slope([row for row in own["rows"] if not row["warm"]])
            lines.append(
                [
                    experiment,
                    name,
                    *(
                        f"{statistics.median(row[key] for row in timed):.3f}" if timed else ""
                        for key in ("wall_s", "processor_s")
                    ),
                    "" if each is None else f"{each / GB:.3f}",
                    f"{own['kept_bytes'] / GB:.3f}" if "kept_bytes" in own else "",
                    *(f"{own[key]:,}" if key in own else "" for key in ("forward", "backward")),
                ]
            )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(args: list[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help="names of experiments")
    parser.add_argument("--before", type=Path, help="an older checkout of this repository")
    parser.add_argument("--baseline", type=Path, help="folder of another network's baseline.py, see benchmarks/gpu.py")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batches", default="1,2", help="times are of the first, memory is between them")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--count", action="store_true", help="count on the meta device alone")
    parser.add_argument("--no-count", action="store_true", help="run alone")
    parser.add_argument("--set", default="", help="overrides, as for avprompt fit, of every checkout")
    parser.add_argument("--other", help="more overrides, of one more side of this checkout")
    for name in ("--serve", "--kind", "--folder", "--experiment"):  # of a side's own process
        parser.add_argument(name, help=argparse.SUPPRESS, **({"action": "store_true"} if name == "--serve" else {}))
    words = iter(sys.argv[1:] if args is None else args)  # argparse takes a value that begins with dashes for a flag
    given = parser.parse_args([f"{word}={next(words, '')}" if word in ("--set", "--other") else word for word in words])
    sys.argv[1:] = []  # none of the words of avprompt's own command line
    if given.serve:
        serve(given)
        return
    if not given.experiments:
        parser.error("name an experiment")
    print(
        json.dumps(
            {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
            | {"cores": os.cpu_count(), "threads": given.threads, "precision": given.precision}
        ),
        flush=True,
    )
    results = {experiment: measure(experiment, given) for experiment in given.experiments}
    print(table(results, int(given.batches.split(",")[0])))


if __name__ == "__main__":
    main()
