"""What the benchmarks of a training step share: a device, a network in training, and what a step does and keeps.

It imports nothing of the suite, so that a process can measure an older checkout, or the network of other people.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Steps(Protocol):
    """How often a step runs for a measurement: `warm` times untimed, then `steps` times."""

    warm: int
    steps: int


class Operations(TorchDispatchMode):
    """Counts the operations that compute something, by name; views, which launch nothing, are left aside."""

    #: what launches nothing either
    IDLE = ("detach", "_unsafe_view", "empty", "new_empty", "empty_like", "empty_strided", "promote_types")

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """Of all of them."""
        return self.names.total()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if not function.is_view and name not in self.IDLE:
            self.names[name] += 1
        return function(*args, **(kwargs or {}))


class Machine:
    """The device under test.

    Args:
        device: `cuda` or `cpu`.
        sizes: how often.
    """

    def __init__(self, device: str, sizes: Steps) -> None:
        self.device, self.sizes, self.cuda = device, sizes, device == "cuda"

    def wait(self) -> None:
        """Until everything that was launched is done."""
        if self.cuda:
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Return memory to the device, and start the peak again."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return
        ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # a container may not have it: the peak is then that of the whole process
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes at the peak since `forget`."""
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        lines = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else []
        found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
        return 1024 * (found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    def seconds(self, step: Callable[[], Any], steps: int, warm: int = 2) -> float:
        """Median over three groups of the seconds a step; within a group the host runs ahead of the device."""
        for _ in range(warm):
            step()
        found, count = [], max(1, steps // 3)
        for _ in range(min(3, steps)):
            self.wait()
            begun = time.perf_counter()
            for _ in range(count):
                step()
            self.wait()
            found.append((time.perf_counter() - begun) / count)
        return statistics.median(found)


class Trial:
    """A network in training on one batch that does not change.

    Args:
        machine: where.
        model: a task of the suite, or any network.
        batch: clips -> inputs.
        loss: (model, inputs) -> loss.
        optimizer: of the network.
        precision: `bf16` autocast or `fp32`.
    """

    def __init__(
        self,
        machine: Machine,
        model: nn.Module,
        batch: Callable[[int], Any],
        loss: Callable[[nn.Module, Any], Tensor],
        optimizer: torch.optim.Optimizer,
        precision: str = "bf16",
    ) -> None:
        self.machine, self.model, self.batch, self.loss = machine, model, batch, loss
        self.optimizer, self.precision, self.inputs = optimizer, precision, None

    def load(self, clips: int) -> None:
        """Make a batch; the same for the same number of clips."""
        self.inputs = None
        self.machine.forget()
        torch.manual_seed(clips)
        self.inputs = moved(self.batch(clips), self.machine.device)

    def autocast(self) -> torch.autocast:
        """What `precision` computes in."""
        return torch.autocast(self.machine.device, torch.bfloat16, enabled=self.precision == "bf16")

    def forward_backward(self) -> Tensor:
        """Gradients of the batch's loss, which is returned."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(self.model, self.inputs)
        loss.backward()
        return loss.detach()

    def step(self) -> Tensor:
        """A training step -> its loss."""
        loss = self.forward_backward()
        self.optimizer.step()
        return loss

    def measure(self, clips: int, **more: Any) -> dict[str, Any]:
        """Milliseconds, clips a second and peak memory of a step; or that it does not fit."""
        found: dict[str, Any] = {"precision": self.precision, "batch": clips, **more}
        try:
            self.load(clips)
            seconds = self.machine.seconds(self.step, self.machine.sizes.steps, self.machine.sizes.warm)
        except torch.OutOfMemoryError as error:
            self.inputs = None
            self.optimizer.zero_grad(set_to_none=True)
            self.machine.forget()
            return {**found, "error": f"out of memory: {str(error).splitlines()[0]}"}
        return {**found, "ms": 1e3 * seconds, "clips_per_s": clips / seconds, "peak_bytes": self.machine.peak()}


def moved(value: Any, device: str) -> Any:
    """Tensors in tuples, lists and dicts on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(moved(part, device) for part in value)
    return {key: moved(part, device) for key, part in value.items()} if isinstance(value, dict) else value


def foreign(machine: Machine, folder: Path) -> Trial:
    """The network in a folder's baseline.py."""
    folder = folder.expanduser().resolve()
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("avprompt_gpu_baseline", folder / "baseline.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    model = module.build().to(machine.device).train()

    def loss(network: nn.Module, inputs: Any) -> Tensor:
        outputs = network(**inputs) if isinstance(inputs, dict) else network(*inputs)
        return (
            module.loss(outputs)
            if hasattr(module, "loss")
            else sum(part.float().square().mean() for part in tensors(outputs) if part.requires_grad)
        )

    return Trial(
        machine,
        model,
        module.batch,
        loss,
        torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-5),
        "fp32",
    )


def tensors(value: Any) -> Iterator[Tensor]:
    """Floating tensors in nested outputs."""
    if isinstance(value, Tensor):
        yield from [value] if value.is_floating_point() else []
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def slope(rows: list[dict[str, Any]]) -> float | None:
    """Bytes a clip: by how much the peak grows from the smallest batch to the largest, by clip."""
    peaks = {row["batch"]: row["peak_bytes"] for row in rows if "peak_bytes" in row}
    low, high = min(peaks, default=0), max(peaks, default=0)
    return None if low == high else (peaks[high] - peaks[low]) / (high - low)
