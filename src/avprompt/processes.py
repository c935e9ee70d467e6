"""Several processes that train one network: what they hand to each other, and how they end together.

Rule of the suite: a collective stands only where every process reaches it, equally often and in the same order.
Training steps do (every process has as many batches), steps of evaluation do not, and neither does what handles an
exception.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, distributed

from avprompt.errors import AVPromptError, ConfigError

#: in the store that all processes share: how many failed, what the first of them says, how many have read it
_CLAIMS, _FAILURE, _ENDED = "avprompt/claims", "avprompt/failure", "avprompt/ended"


def world() -> int:
    """Number of processes that work together, 1 where there is no process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if world() > 1 else 0


def check_strategy(strategy: str | None) -> None:
    """Refuse what would split a network between processes, or pickle it.

    Args:
        strategy: name or class path of a Lightning strategy.

    Raises:
        ConfigError: neither one device nor `ddp`.

    Example:
        >>> check_strategy("ddp")
    """
    name = str(strategy or "auto").rpartition(".")[2]
    if name not in (
        "auto",
        "ddp",
        "ddp_find_unused_parameters_true",
        "ddp_find_unused_parameters_false",
        "DDPStrategy",
        "SingleDeviceStrategy",
    ):
        raise ConfigError(
            "trainer.strategy",
            strategy,
            "auto or ddp",
            "A checkpoint holds the trainable state of a whole network, as every process of ddp has it; strategies "
            "that split networks (fsdp, deepspeed, model_parallel) would write parts of it. Encoders are frozen and "
            "have neither gradients nor optimizer states: if memory is short, lower batch_size, or set "
            "`checkpointing: all` for the backbone.",
        )


# --- one loss over the clips of all processes


class _Gather(torch.autograd.Function):
    """Concatenate along dimension 0; each process computes the same loss of the result."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.place, ctx.world = rank(), world()
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(ctx.world)]
        distributed.all_gather(parts, own.detach().contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # each process holds the whole gradient, so nothing is sent; DDP will divide by the number of processes
        return gradient.chunk(ctx.world)[ctx.place] * ctx.world


def gathered(own: Tensor) -> Tensor:
    """The entries of all processes, in their order, with gradients: (B, ...) -> (k B, ...) on k processes.

    It communicates only where gradients are recorded, as DDP does: in training, where every process has as many
    batches, each of B clips. Elsewhere, and on one process, it returns what it was given.

    Every process must compute the same loss of the result. Its gradients, which DDP averages over processes, are then
    those of one process with all clips.

    Args:
        own: any type, the same shape in every process.

    Example:
        >>> gathered(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if world() == 1 or not torch.is_grad_enabled():
        return own
    return _Gather.apply(own)


def gathered_objects(own: Any) -> list[Any]:
    """Plain data of every process, in their order; a collective. `[own]` on one process."""
    if world() == 1:
        return [own]
    found: list[Any] = [None] * world()
    distributed.all_gather_object(found, own)
    return found


class AllClips(Mapping[str, Any]):
    """Named entries of a batch, or the outputs for it, over the clips of all processes (see `gathered`).

    An entry is gathered when it is first read, so what no loss reads is not sent.

    Args:
        own: of this process; tensors have the clips along dimension 0, or a multiple of them.
        common: names of entries that have no clips along dimension 0 and stay as they are.
    """

    def __init__(self, own: Mapping[str, Any], common: tuple[str, ...] = ()) -> None:
        self.own, self.found = own, {name: own[name] for name in common if name in own}

    def __getitem__(self, name: str) -> Any:
        if name not in self.found:
            value = self.own[name]
            self.found[name] = (
                gathered(value)
                if torch.is_tensor(value)
                else [entry for part in gathered_objects(value) for entry in part]
            )
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.own)

    def __len__(self) -> int:
        return len(self.own)


# --- a failure of one process ends all


class Stopped(SystemExit):
    """The end of a run that a signal stopped; the exit code is 128 + signal, as shells have it.

    Args:
        number: of the signal.
        agreed: whether all processes stop at the same place, so that none has to be told.
    """

    def __init__(self, number: int, agreed: bool = False) -> None:
        super().__init__(128 + number)
        self.number, self.agreed = number, agreed


class Together:
    """Ends all processes when one fails: the others may wait in a collective that it will never reach.

    A failing process calls `claim`, saves what only one may save, and then `tell`; a thread of every other process
    looks into their common store twice a second and ends its process with the same exit code. The first process prints
    the message. On one process nothing of this does anything. See `together`.

    Args:
        grace: seconds that a process is given to end by itself once the first one, and the store with it, is gone.
    """

    def __init__(self, grace: float = 10.0) -> None:
        self.grace = grace
        self.first: bool | None = None
        self.told = False
        self.stopped: threading.Event | None = None

    def watch(self) -> None:
        """Begin to look; may come before the process group is there, and more than once."""
        if self.stopped is None:
            self.stopped = threading.Event()
            threading.Thread(target=self._watch, args=(self.stopped,), name="avprompt-together", daemon=True).start()

    def stop(self) -> None:
        """This process is done: the end of another one no longer concerns it."""
        if self.stopped is not None:
            self.stopped.set()
            self.stopped = None

    @property
    def failing(self) -> bool:
        """Whether this process is about to end by an error: it must not wait for others any more."""
        return self.first is not None

    def claim(self) -> bool:
        """Whether this process is the first to fail; the answer stays."""
        if world() == 1:
            return True
        if self.first is None:
            try:
                self.first = _connection().add(_CLAIMS, 1) == 1
            except RuntimeError:  # the first process is gone, so it has failed before
                self.first = False
        return self.first

    def tell(self, error: BaseException) -> None:
        """Tell the others why this process fails; where another one has failed before, end as that one wishes."""
        if world() == 1 or self.told:
            return
        self.told = True
        self.stop()
        if isinstance(error, Stopped) and error.agreed:
            return
        if not self.claim():
            self._end(self._wait(60.0))
        connection = _connection()
        connection.set(
            _FAILURE,
            json.dumps({"rank": rank(), "code": exit_code(error), "message": f"{type(error).__name__}: {error}"}),
        )
        if rank() == 0:  # the store ends with this process: the others must have read it before
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and connection.add(_ENDED, 0) < world() - 1:
                time.sleep(0.05)

    def leave(self, code: int) -> NoReturn:
        """End this process; without the group's farewell where there are others, which may wait for nobody."""
        if world() == 1:
            sys.exit(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _watch(self, stopped: threading.Event) -> None:
        connection = None
        while not stopped.wait(0.5):
            if world() == 1:
                continue  # not there yet
            try:
                connection = _connection() if connection is None else connection
                failure = _failure(connection)
            except RuntimeError:
                failure = None
                if stopped.wait(self.grace):
                    return
                self._end(None)
            if failure is not None and not stopped.is_set():
                self._end(failure)

    def _wait(self, seconds: float) -> dict[str, Any] | None:
        """What the first process to fail says, once it does."""
        deadline = time.monotonic() + seconds
        try:
            connection = _connection()
            while (failure := _failure(connection)) is None and time.monotonic() < deadline:
                time.sleep(0.1)
            return failure
        except RuntimeError:  # the store is gone, and with it what it said
            return None

    def _end(self, failure: dict[str, Any] | None) -> NoReturn:
        if failure is not None:
            with contextlib.suppress(RuntimeError):
                _connection().add(_ENDED, 1)
            if rank() == 0:
                print(
                    f"avprompt: process {failure['rank']} failed, and all end with it: {failure['message']}",
                    file=sys.stderr,
                )
        self.leave(1 if failure is None else failure["code"])


def exit_code(error: BaseException) -> int:
    """Exit code of a run that ends by an error: 2 for bad input, 130 and 143 for signals, else 1.

    Example:
        >>> exit_code(KeyboardInterrupt())
        130
    """
    # Lightning's SIGTERMException is a SystemExit that says nothing
    signals = {"KeyboardInterrupt": 130, "SIGTERMException": 143}
    if isinstance(error, Stopped):
        return 128 + error.number
    return signals.get(type(error).__name__, 2 if isinstance(error, AVPromptError) else 1)


def _connection() -> distributed.Store:
    """A new connection to the common store, because a waiting call may block an existing one."""
    return distributed.distributed_c10d._get_default_store().clone()


def _failure(connection: distributed.Store) -> dict[str, Any] | None:
    return json.loads(connection.get(_FAILURE)) if connection.check([_FAILURE]) else None


#: of this process
together = Together()
