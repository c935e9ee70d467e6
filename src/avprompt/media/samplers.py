"""Data order that a resumed run continues exactly: a function of seed and epoch, counted as batches are consumed."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from avprompt.errors import ArgumentError, AVPromptError, CheckpointError


def mixed(seed: int, epoch: int) -> int:
    """One seed for an epoch of a run."""
    return seed * 1_000_003 + epoch


class EpochOrder(Sampler[int]):
    """Permutation of a dataset that depends on (seed, epoch) alone; what belongs together stays together.

    Lightning calls `set_epoch` on a loader's `sampler` and on its batch sampler's `sampler`, not on the batch sampler.

    Args:
        size: clips in the dataset.
        seed: of the order.
        shuffle: `False` keeps the dataset's order in every epoch.
        rank: of this process.
        world: number of processes; the order is padded with its first clips so that every process has as many.
        groups: name of every clip's group; clips of a group follow each other, and groups are shuffled. `None`: each
            clip is one.
    """

    def __init__(self, size: int, seed: int, shuffle: bool, rank: int = 0, world: int = 1,
                 groups: Sequence[str] | None = None) -> None:
        self.size, self.seed, self.shuffle, self.rank, self.world = size, seed, shuffle, rank, world
        members: dict[str | int, list[int]] = {}
        for place, name in enumerate(range(size) if groups is None else groups):
            members.setdefault(name, []).append(place)
        self.groups, self.epoch = list(members.values()), 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = range(len(self.groups))
        if self.shuffle:
            generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
            order = torch.randperm(len(self.groups), generator=generator).tolist()
        clips = itertools.cycle(place for group in order for place in self.groups[group])
        # a process has its share in one piece: dealt out in turn, a group would be at every process
        return itertools.islice(clips, self.rank * len(self), (self.rank + 1) * len(self))

    def __len__(self) -> int:
        return -(-self.size // self.world)


class ResumableBatches(Sampler[list[int]]):
    """Batches of an `EpochOrder`; the first pass may begin at another batch than the first.

    Args:
        sampler: the order.
        batch_size: clips a batch; the last one may be smaller.
    """

    def __init__(self, sampler: EpochOrder, batch_size: int) -> None:
        self.sampler, self.batch_size, self.start = sampler, batch_size, 0

    def __iter__(self) -> Iterator[list[int]]:
        order, start = list(self.sampler), self.start
        self.start = 0
        for first in range(start * self.batch_size, len(order), self.batch_size):
            yield order[first:first + self.batch_size]

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)


class ErrorsAsValues(Dataset):
    """A dataset whose typed errors are values: torch would turn an error of a worker process into text.

    Args:
        dataset: any map-style dataset.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Tell the dataset, if it wants to know."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except AVPromptError as error:
            return error


#: what torch says where a batch does not fit into shared memory, and where the system ended a worker
_NO_ROOM = ("shared memory", "Bus error", "unable to write to file", "No space left on device", "shm", "/torch_")


class ClipLoader(DataLoader):
    """DataLoader over a `ErrorsAsValues` dataset that raises the error which its `collate_fn` hands on.

    Iterating raises `ArgumentError` where workers have too little memory, shared or other, to hand batches over.
    """

    def __iter__(self) -> Iterator[Any]:
        try:
            for batch in super().__iter__():
                if isinstance(batch, AVPromptError):
                    raise batch
                yield batch
        except (RuntimeError, OSError) as error:
            if isinstance(error, AVPromptError) or self.num_workers == 0:
                raise
            if any(text in str(error) for text in _NO_ROOM):
                raise ArgumentError(
                    "num_workers", f"{self.num_workers}, and {_shared_memory()}: a batch does not fit",
                    "room for two batches a worker", "Give the container more (docker run --shm-size 8g, Kubernetes: an "
                    "emptyDir of medium Memory at /dev/shm), use smaller batches, or set num_workers to 0.") from error
            if "killed by signal" in str(error):
                raise ArgumentError("num_workers", f"{self.num_workers}, of which the system ended one ({error})",
                                    "memory for each worker", "Use fewer workers or smaller batches.") from error
            raise


def _shared_memory() -> str:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return "shared memory that is full"
    disk = shutil.disk_usage(folder)
    return f"{disk.total / 2**20:,.0f} MiB of shared memory in {folder}, {disk.free / 2**20:,.0f} MiB of it free"


class ResumableLoader(ClipLoader):
    """DataLoader whose position can be saved and restored in the middle of an epoch, with any number of workers.

    Lightning stores `state_dict` in the loop's state. Batches are counted when they are handed out, not when a worker
    fetches them. The loader draws from a generator of its own, set anew by (seed, epoch): otherwise every pass would
    take a number from the global stream and shift dropout, and a resumed run would seed its workers otherwise.

    Processes share an epoch by `rank` and `world`, so Lightning must not put its own sampler in:
    `use_distributed_sampler: false`, which the command line sets.

    Args:
        dataset: anything with `__len__` and `__getitem__`.
        batch_size: clips a batch.
        seed: of the order.
        shuffle: new order every epoch.
        rank: of this process.
        world: number of processes.
        groups: see `EpochOrder`.
        options: further arguments of `DataLoader`, such as `num_workers` and `collate_fn`.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int = 0, shuffle: bool = False, rank: int = 0,
                 world: int = 1, groups: Sequence[str] | None = None, **options: Any) -> None:
        order = EpochOrder(len(dataset), seed, shuffle, rank, world, groups)
        super().__init__(dataset, batch_sampler=ResumableBatches(order, batch_size),
                         generator=torch.Generator().manual_seed(seed), **options)
        self.consumed, self.restored = 0, {}

    @property
    def order(self) -> EpochOrder:
        """Order of the clips."""
        return self.batch_sampler.sampler

    def __iter__(self) -> Iterator[Any]:
        self.consumed = self.batch_sampler.start = self._start()
        self.generator.manual_seed(mixed(self.order.seed, self.order.epoch))
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.order.epoch)
        for batch in super().__iter__():
            self.consumed += 1
            yield batch
        self.consumed = 0

    def _start(self) -> int:
        state, self.restored = self.restored, {}
        # at the end of an epoch a trainer may save before or after it counts the epoch: only its number tells
        if not state.get("consumed") or state["epoch"] != self.order.epoch:
            return 0
        differ = {name: (state.get(name), ours) for name, ours in self._identity().items() if state.get(name) != ours}
        if differ:
            raise CheckpointError("position in the training data", f"(then, now) {differ}",
                                  f"the same settings, to go on after batch {state['consumed']} of an epoch",
                                  "Resume with the run's own settings, or from a checkpoint at the end of an epoch.")
        return state["consumed"]

    def _identity(self) -> dict[str, int]:
        return {"epoch": self.order.epoch, "clips": self.order.size, "groups": len(self.order.groups),
                "batch_size": self.batch_sampler.batch_size, "seed": self.order.seed, "processes": self.order.world}

    def state_dict(self) -> dict[str, int]:
        """Batches handed out in the epoch under way, and what decides which they were."""
        return self.restored or {"consumed": self.consumed, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass, if it is through the same epoch, begin after the batches already handed out.

        That pass raises `CheckpointError` where it would go through other batches.
        """
        self.restored = dict(state)
