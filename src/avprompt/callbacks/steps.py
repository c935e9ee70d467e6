"""What a training step costs: seconds, and the memory of its tensors."""

from __future__ import annotations

import statistics
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: steps whose median counts: the last ones of a training
KEPT = 1000


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive while operations run, and their largest sum.

    It sees what operations return, in forward and backward passes alike; scratch space inside of an operation is not
    seen. Tensors that share a storage count once.

    Args:
        present: tensors that are there already.

    Example:
        >>> x = torch.zeros(256)
        >>> with LiveTensors([x]) as live:
        ...     y = (x + 1).sum()  # x + 1 is gone when its sum is there
        >>> live.now, live.peak
        (1028, 2052)
    """

    def __init__(self, present: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}
        for tensor in present:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it returns."""
        outputs = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                self._add(leaf)
        return outputs


class StepMeter(Callback):
    """Measures training steps: the median of their seconds, and once the memory that one takes.

    A step is a batch: forward pass, backward pass and update, without waiting for data. The first step of a training
    is left out, as is the one whose memory is measured. `measured` is what result.json holds under `step`:

    - `n`: steps whose median counts, at most the last 1000;
    - `wall_s`: median of the seconds on the clock;
    - `processor_s`: median of the seconds that all threads of the process had a processor, which other work on the
      machine does not add to; `None` on a GPU;
    - `memory_bytes`: most bytes alive at once in the first step after an update: weights, gradients, the optimizer's
      state, the batch, and what the passes keep. On a GPU it is what PyTorch's allocator held at most; on a CPU it is
      counted from the tensors, without the memory of Python, of libraries and of scratch space, so that it is the
      same each time; `None` there for compiled networks and for several processes, which cannot be counted so.

    Each is `None` where too few steps ran. Of several processes the first is measured.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> meter = StepMeter()
        >>> trainer = Trainer(accelerator="cpu", default_root_dir=tempfile.mkdtemp(), logger=False, max_steps=5,
        ...                   limit_val_batches=0, enable_progress_bar=False, enable_checkpointing=False,
        ...                   enable_model_summary=False, callbacks=[meter])
        >>> trainer.fit(BoringModel())
        >>> meter.measured["n"], 512 < meter.measured["memory_bytes"] < 5000
        (3, True)
    """

    def __init__(self) -> None:
        self.walls: deque[float] = deque(maxlen=KEPT)
        self.processors: deque[float] = deque(maxlen=KEPT)
        self.memory: int | None = None
        #: most bytes of a GPU before its count began anew
        self.before = 0
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._warm, self._counting, self._done = False, False, False
        self._live: LiveTensors | None = None
        self._begun: tuple[float, float] | None = None
        self._updates = 0

    @property
    def measured(self) -> dict[str, float | None]:
        """What was measured so far, see above."""
        self._collect(wait=True)
        middle = [round(statistics.median(own), 6) if own else None for own in (self.walls, self.processors)]
        return {
            "n": len(self.walls),
            "wall_s": middle[0],
            "processor_s": middle[1],
            "memory_bytes": self.memory if self._done else None,
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the next step: it pays for what happens once."""
        self._warm = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to measure."""
        self._updates = trainer.global_step
        self._counting = not self._done and self._updates > 0
        cuda = pl_module.device.type == "cuda"
        if self._counting and cuda:
            self.before = max(self.before, torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
        elif self._counting and trainer.world_size == 1 and not is_compiled():
            self._live = LiveTensors(tensors_of(pl_module, trainer.optimizers, batch))
            self._live.__enter__()
        elif self._warm and cuda:
            events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            events[0].record()
            self._events.append(events)
        elif self._warm:
            self._begun = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note what the step took."""
        cuda = pl_module.device.type == "cuda"
        if self._counting:
            live = self._leave()
            found = torch.cuda.max_memory_allocated() if cuda else None if live is None else live.peak
            self.memory = None if found is None else max(found, self.memory or 0)
            self._done, self._counting = trainer.global_step > self._updates, False
        elif self._events and cuda:
            self._events[-1][1].record()
            self._collect()
        elif self._begun is not None:
            self.walls.append(time.perf_counter() - self._begun[0])
            self.processors.append(time.process_time() - self._begun[1])
        self._begun, self._warm = None, True

    def _collect(self, wait: bool = False) -> None:
        """Read the seconds of a GPU's steps that are over; the GPU is not waited for but at the end."""
        if wait and self._events:
            torch.cuda.synchronize()
        while self._events and self._events[0][1].query():
            begun, ended = self._events.popleft()
            self.walls.append(begun.elapsed_time(ended) / 1000)

    def _leave(self) -> LiveTensors | None:
        live, self._live = self._live, None
        if live is not None:
            live.__exit__(None, None, None)
        return live

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop to count, as the step ended early."""
        self._leave()
        self._counting = False
        if self._events:
            self._events.pop()


def is_compiled() -> bool:
    """Whether `torch.compile` has made something in this process; what it made ignores `LiveTensors`."""
    found = sys.modules.get("torch._dynamo.utils")
    return found is not None and bool(found.counters["frames"])


def tensors_of(model: torch.nn.Module, optimizers: Iterable[torch.optim.Optimizer], batch: Any) -> Iterator[Any]:
    """What is alive before a step: weights, buffers, gradients, the optimizers' state and the batch."""
    yield from model.parameters()
    yield from model.buffers()
    yield from (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    for optimizer in optimizers:
        yield from (one for one in tree_leaves(list(optimizer.state.values())) if isinstance(one, torch.Tensor))
    yield from (one for one in tree_leaves(batch) if isinstance(one, torch.Tensor))
