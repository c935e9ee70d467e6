"""Loaders whose order depends on seed and epoch alone, so that a resumed run continues exactly where it stopped."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from avprompt.errors import ArgumentError, AVPromptError, CheckpointError


def mixed(seed: int, epoch: int) -> int:
    """The seed of an epoch of a run."""
    return seed * 1_000_003 + epoch


class EpochOrder(Sampler[int]):
    """A permutation of a dataset that depends on (seed, epoch) alone and keeps groups of clips together.

    Lightning calls `set_epoch` on a loader's `sampler` and on the `sampler` of its batch sampler, not on the batch
    sampler itself.

    Args:
        size: number of clips in the dataset.
        seed: of the order.
        shuffle: `False` keeps the order of the dataset in every epoch.
        groups: name of each clip's group. Groups are shuffled, and the clips of a group follow each other. `None` makes
            each clip a group of its own.

    Example:
        >>> order = EpochOrder(6, seed=0, shuffle=True, groups=["a", "a", "b", "b", "c", "c"])
        >>> order.set_epoch(1)
        >>> list(order) == list(order), sorted(order)
        (True, [0, 1, 2, 3, 4, 5])
    """

    def __init__(self, size: int, seed: int, shuffle: bool, groups: Sequence[str] | None = None) -> None:
        self.size, self.seed, self.shuffle = size, seed, shuffle
        members: dict[str | int, list[int]] = {}
        names: Sequence[str | int] = range(size) if groups is None else groups
        for place, name in enumerate(names):
            members.setdefault(name, []).append(place)
        self.groups, self.epoch = list(members.values()), 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order `__iter__` gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = range(len(self.groups))
        if self.shuffle:
            generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
            order = torch.randperm(len(self.groups), generator=generator).tolist()
        return (place for group in order for place in self.groups[group])

    def __len__(self) -> int:
        return self.size


def share(size: int, batch_size: int, rank: int, world: int) -> range:
    """The clips that one of several processes evaluates: a contiguous part of whole batches; no clip is repeated.

    Together the processes have the batches of one process, in its order. Only where there are fewer batches than
    processes, single clips are divided instead.

    Args:
        size: number of clips.
        batch_size: of each process.
        rank: index of the process.
        world: number of processes.

    Raises:
        ArgumentError: fewer clips than processes.

    Example:
        >>> [list(share(7, 2, rank, 3)) for rank in range(3)]
        [[0, 1], [2, 3], [4, 5, 6]]
    """
    if size < world:
        raise ArgumentError(
            "trainer.devices",
            f"{world} processes for {size} clips",
            "a clip for each process",
            f"Set it to {size} or less.",
        )
    unit = batch_size if size > (world - 1) * batch_size else 1
    units = -(-size // unit)
    return range(units * rank // world * unit, min(units * (rank + 1) // world * unit, size))


class ResumableBatches(Sampler[list[int]]):
    """Batches of an `EpochOrder`; the next pass starts at batch `start`, later passes at the first batch.

    In training, k processes share each step: together they read the k * `batch_size` clips that one process with a
    batch of that size would read. The last step is padded with the first clips of the order to a multiple of k, so that
    all processes have equally many batches of equal size. In evaluation no clip is repeated, and processes may have
    different numbers of batches, see `share`.

    Args:
        sampler: the order.
        batch_size: clips a batch of one process; the last batch may be smaller.
        rank: index of this process.
        world: number of processes.
        training: whether to share each step, or the whole set without repetition.

    Example:
        >>> batches = ResumableBatches(EpochOrder(5, seed=0, shuffle=False), batch_size=2)
        >>> batches.start = 1
        >>> list(batches), list(batches)
        ([[2, 3], [4]], [[0, 1], [2, 3], [4]])
        >>> [list(ResumableBatches(EpochOrder(5, seed=0, shuffle=False), 2, rank, world=2)) for rank in (0, 1)]
        [[[0, 1], [4]], [[2, 3], [0]]]
    """

    def __init__(
        self, sampler: EpochOrder, batch_size: int, rank: int = 0, world: int = 1, training: bool = True
    ) -> None:
        self.sampler, self.batch_size, self.start = sampler, batch_size, 0
        self.rank, self.world, self.training = rank, world, training

    def __iter__(self) -> Iterator[list[int]]:
        order, start, world = list(self.sampler), self.start, self.world
        self.start = 0
        if not self.training:
            order, world = [order[place] for place in share(len(order), self.batch_size, self.rank, world)], 1
        for step in range(start, len(self)):
            batch = order[step * self.batch_size * world : (step + 1) * self.batch_size * world]
            own = -(-len(batch) // world)
            batch += itertools.islice(itertools.cycle(order), own * world - len(batch))
            place = self.rank if self.training else 0
            yield batch[place * own : (place + 1) * own]

    def __len__(self) -> int:
        if self.training:
            return math.ceil(len(self.sampler) / (self.batch_size * self.world))
        return math.ceil(len(share(len(self.sampler), self.batch_size, self.rank, self.world)) / self.batch_size)


class ErrorsAsValues(Dataset):
    """A dataset that returns its typed errors instead of raising them.

    PyTorch turns an error of a worker process into text and loses its type. `ClipLoader` raises the returned error.

    Args:
        dataset: any map-style dataset.

    Example:
        >>> class Broken(Dataset):
        ...     def __len__(self): return 1
        ...     def __getitem__(self, index): raise CheckpointError("clip", "nothing", "a clip", "Leave it out.")
        >>> type(ErrorsAsValues(Broken())[0]).__name__
        'CheckpointError'
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the dataset, where it has `set_epoch`."""
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
    """A DataLoader over an `ErrorsAsValues` dataset; it raises the error that its `collate_fn` returns.

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
                    "num_workers",
                    f"{self.num_workers}, and {_shared_memory()}: a batch does not fit",
                    "room for two batches a worker",
                    "Give the container more (docker run --shm-size 8g, Kubernetes: an emptyDir of medium Memory at "
                    "/dev/shm), use smaller batches, or set num_workers to 0.",
                ) from error
            if "killed by signal" in str(error):
                raise ArgumentError(
                    "num_workers",
                    f"{self.num_workers}, of which the system ended one ({error})",
                    "memory for each worker",
                    "Use fewer workers or smaller batches.",
                ) from error
            raise


def _shared_memory() -> str:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return "shared memory that is full"
    disk = shutil.disk_usage(folder)
    return f"{disk.total / 2**20:,.0f} MiB of shared memory in {folder}, {disk.free / 2**20:,.0f} MiB of it free"


class ResumableLoader(ClipLoader):
    """A DataLoader whose position in an epoch can be saved and restored, with any number of workers.

    Lightning stores `state_dict` in the loop's state. A batch counts when the loader yields it, not when a worker reads
    it. The loader has its own random generator, which (seed, epoch) sets before each pass. With the global generator,
    each pass would draw a number and so change dropout, and a resumed run would seed its workers differently.

    `rank` and `world` divide an epoch among processes, see `ResumableBatches`. Lightning must therefore not insert its
    own sampler; the command line sets `use_distributed_sampler: false`. A position inside an epoch holds for any number
    of processes, as long as a step has equally many clips in all.

    Args:
        dataset: a map-style dataset.
        batch_size: clips a batch of one process.
        seed: of the order.
        shuffle: whether each epoch has a new order.
        rank: index of this process.
        world: number of processes.
        groups: see `EpochOrder`.
        training: see `ResumableBatches`.
        options: further arguments of `DataLoader`, such as `num_workers` and `collate_fn`.

    Example:
        >>> loader = ResumableLoader(torch.arange(6), batch_size=2)
        >>> position = iter(loader)
        >>> next(position).tolist()
        [0, 1]
        >>> resumed = ResumableLoader(torch.arange(6), batch_size=2)
        >>> resumed.load_state_dict(loader.state_dict())
        >>> [batch.tolist() for batch in resumed]
        [[2, 3], [4, 5]]
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world: int = 1,
        groups: Sequence[str] | None = None,
        training: bool = True,
        **options: Any,
    ) -> None:
        order = EpochOrder(len(dataset), seed, shuffle, groups)
        super().__init__(
            dataset,
            batch_sampler=ResumableBatches(order, batch_size, rank, world, training),
            generator=torch.Generator().manual_seed(seed),
            **options,
        )
        self.consumed = 0
        self.restored: dict[str, Any] = {}

    @property
    def order(self) -> EpochOrder:
        """The order of the clips."""
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
        # at the end of an epoch a trainer may save before or after it counts the epoch; the epoch's number tells which
        if not state.get("consumed") or state["epoch"] != self.order.epoch:
            return 0
        differ = {name: (state.get(name), ours) for name, ours in self._identity().items() if state.get(name) != ours}
        if differ:
            raise CheckpointError(
                "position in the training data",
                f"(then, now) {differ}",
                f"the same settings, to go on after step {state['consumed']} of an epoch",
                "Resume with the run's own settings (`clips_a_step` is batch_size times the number "
                "of processes), or from a checkpoint at the end of an epoch.",
            )
        return state["consumed"]

    def _identity(self) -> dict[str, int]:
        return {
            "epoch": self.order.epoch,
            "clips": self.order.size,
            "groups": len(self.order.groups),
            "clips_a_step": self.batch_sampler.batch_size * self.batch_sampler.world,
            "seed": self.order.seed,
        }

    def state_dict(self) -> dict[str, int]:
        """Number of batches yielded in the current epoch, and the settings that determine which batches those are."""
        return self.restored or {"consumed": self.consumed, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass skip the batches that were already yielded, if it is a pass through the same epoch.

        That pass raises `CheckpointError` if other settings would give other batches.
        """
        self.restored = dict(state)
