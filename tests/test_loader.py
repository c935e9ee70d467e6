"""The order of clips: a pure function of seed and epoch, resumable anywhere, whole under any number of processes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

from avprompt.media.samplers import EpochOrder, ResumableLoader


class Numbers(Dataset):
    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> int:
        return index


def loader(workers: int = 0, **options: object) -> ResumableLoader:
    return ResumableLoader(Numbers(), 4, seed=3, shuffle=True, num_workers=workers, **options)


def epoch(loader: ResumableLoader, number: int) -> list[list[int]]:
    loader.batch_sampler.sampler.set_epoch(number)
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_differ_and_repeat(workers: int) -> None:
    first, second = epoch(loader(workers), 0), epoch(loader(workers), 1)
    assert first != second and first == epoch(loader(0), 0)
    assert sorted(sum(first, [])) == list(range(23)) and len(first) == 6 and len(first[-1]) == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resume_continues_with_the_next_batch(workers: int, stop: int) -> None:
    whole, running = epoch(loader(), 2), loader(workers)
    running.batch_sampler.sampler.set_epoch(2)
    batches = iter(running)
    seen = [next(batches).tolist() for _ in range(stop)]
    state = running.state_dict()  # workers have fetched further batches by now
    resumed = loader(workers)
    resumed.load_state_dict(state)
    assert seen + epoch(resumed, 2) == whole
    assert epoch(resumed, 3) == epoch(loader(), 3)  # only the first pass is shortened


def test_iterating_draws_nothing_from_the_global_stream() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(loader(2))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_an_epoch_evenly(world: int) -> None:
    shards = []
    for rank in range(world):
        order = EpochOrder(23, 0, True, rank, world)
        order.set_epoch(5)
        shards.append(list(order))
        assert len(shards[-1]) == len(order)
    assert len({len(shard) for shard in shards}) == 1
    assert set(sum(shards, [])) == set(range(23)) and len(sum(shards, [])) == -(-23 // world) * world
