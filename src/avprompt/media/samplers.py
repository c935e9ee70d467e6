"""Data order that a resumed run continues exactly: a pure function of seed and epoch, counted as batches are consumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler


class EpochOrder(Sampler[int]):
    """Permutation of a dataset that depends on (seed, epoch) alone.

    Lightning calls `set_epoch` on a loader's `sampler` and on its batch sampler's `sampler`, not on the batch sampler.

    Args:
        size: clips in the dataset.
        seed: of the order.
        shuffle: `False` keeps the dataset's order in every epoch.
        rank: of this process.
        world: number of processes; the order is padded with its first clips so that every process has as many.
    """

    def __init__(self, size: int, seed: int, shuffle: bool, rank: int = 0, world: int = 1) -> None:
        self.size, self.seed, self.shuffle, self.rank, self.world = size, seed, shuffle, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.size))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        order += order[:-self.size % self.world]
        return iter(order[self.rank::self.world])

    def __len__(self) -> int:
        return -(-self.size // self.world)


class ResumableBatches(Sampler[list[int]]):
    """Batches of an `EpochOrder`, from batch `start` on in the next pass only.

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


class ResumableLoader(DataLoader):
    """DataLoader whose position can be saved and restored in the middle of an epoch, with any number of workers.

    Lightning stores `state_dict` in the loop's state. Batches are counted when they are handed out, not when a worker
    fetches them. The loader draws from a generator of its own: otherwise every pass would take a number from the global
    stream and shift dropout.

    Args:
        dataset: anything with `__len__` and `__getitem__`.
        batch_size: clips a batch.
        seed: of the order.
        shuffle: new order every epoch.
        rank: of this process.
        world: number of processes.
        options: further arguments of `DataLoader`, such as `num_workers` and `collate_fn`.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int = 0, shuffle: bool = False, rank: int = 0,
                 world: int = 1, **options: Any) -> None:
        order = EpochOrder(len(dataset), seed, shuffle, rank, world)
        super().__init__(dataset, batch_sampler=ResumableBatches(order, batch_size),
                         generator=torch.Generator().manual_seed(seed), **options)
        self.consumed = 0

    def __iter__(self) -> Iterator[Any]:
        self.consumed = self.batch_sampler.start
        for batch in super().__iter__():
            self.consumed += 1
            yield batch
        self.consumed = 0

    def state_dict(self) -> dict[str, int]:
        """Batches handed out in the epoch under way."""
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass begin after the batches already handed out."""
        self.batch_sampler.start = state["consumed"]
