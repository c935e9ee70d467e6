"""The order of clips: a pure function of seed and epoch, resumable anywhere, whole under any number of processes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from avprompt.data_modules import AVEDataModule
from avprompt.errors import ArgumentError, CheckpointError, ClipDecodeError
from avprompt.media.samplers import EpochOrder, ErrorsAsValues, ResumableLoader, share


class Numbers(Dataset):
    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> int:
        return index


class Draws(Numbers):
    """Samples that are random numbers, drawn where they are read."""

    def __getitem__(self, index: int) -> float:
        return torch.rand(()).item()


def loader(workers: int = 0, data: Dataset | None = None, **options: object) -> ResumableLoader:
    return ResumableLoader(
        data or Numbers(), **{"batch_size": 4, "seed": 3, "shuffle": True, "num_workers": workers, **options}
    )


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


def test_the_order_depends_on_the_seed() -> None:
    assert epoch(loader(seed=3), 0) != epoch(loader(seed=4), 0)


def test_without_shuffling_every_epoch_is_the_same() -> None:
    assert sum(epoch(loader(shuffle=False), 5), []) == list(range(23))


def test_a_position_belongs_to_its_epoch() -> None:
    """A trainer may save at the end of an epoch before or after it counts that epoch."""
    running = loader()
    running.order.set_epoch(2)
    batches = iter(running)
    for _ in range(6):
        next(batches)  # the last one is out, the pass is not known to be over
    state = running.state_dict()
    assert state["consumed"] == 6 and state["epoch"] == 2
    again, following = loader(), loader()
    again.load_state_dict(state)
    following.load_state_dict(state)
    assert again.state_dict() == state  # saved again before anything was read
    assert epoch(again, 2) == [] and epoch(following, 3) == epoch(loader(), 3)


@pytest.mark.parametrize(
    ("change", "named"), [({"batch_size": 5}, "clips_a_step"), ({"seed": 4}, "seed"), ({"world": 2}, "clips_a_step")]
)
def test_resuming_inside_an_epoch_with_other_batches_is_an_error(change: dict[str, int], named: str) -> None:
    running = loader()
    batches = iter(running)
    next(batches)
    resumed = loader(**change)
    resumed.load_state_dict(running.state_dict())
    with pytest.raises(CheckpointError, match=f"'{named}'"):
        next(iter(resumed))
    resumed = loader(**change)
    resumed.load_state_dict(running.state_dict())
    assert epoch(resumed, 1) == epoch(loader(**change), 1)  # from the next epoch on it is anybody's choice


def test_workers_are_seeded_by_seed_and_epoch() -> None:
    """Not by how many passes this process has made: a resumed run has made fewer."""
    running = loader(2, Draws())
    first, second = epoch(running, 0), epoch(running, 1)
    assert first != second and epoch(loader(2, Draws()), 1) == second
    assert epoch(loader(2, Draws(), seed=4), 1) != second


@pytest.mark.parametrize("workers", [0, 2])
def test_typed_errors_cross_processes(workers: int) -> None:
    """torch alone would raise a RuntimeError whose text is the worker's traceback."""

    class Broken(Numbers):
        def __getitem__(self, index: int) -> int:
            if index == 7:
                raise ClipDecodeError("seven.mp4", "nothing", "something", "Look at it.")
            return index

    def collate(samples: list) -> object:
        return next((s for s in samples if isinstance(s, Exception)), samples)

    with pytest.raises(ClipDecodeError, match="^seven.mp4: got nothing; expected something. Look at it.$"):
        list(loader(workers, ErrorsAsValues(Broken()), collate_fn=collate))


@pytest.mark.parametrize("world", [1, 2, 4, 30])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_processes_have_as_many_batches_in_training(world: int, batch_size: int) -> None:
    shards = [epoch(loader(batch_size=batch_size, rank=rank, world=world), 5) for rank in range(world)]
    assert len({tuple(map(len, shard)) for shard in shards}) == 1 and shards[0]
    dealt = sum(sum(shards, []), [])
    assert set(dealt) == set(range(23)) and len(dealt) == -(-23 // world) * world
    assert [len(own) for own in shards] == [
        len(loader(batch_size=batch_size, rank=rank, world=world)) for rank in range(world)
    ]


@pytest.mark.parametrize("world", [2, 4])
def test_a_step_of_several_processes_has_the_clips_of_one(world: int) -> None:
    whole = epoch(loader(batch_size=4), 2)
    parts = [epoch(loader(batch_size=4 // world, rank=rank, world=world), 2) for rank in range(world)]
    assert [sum(step, []) for step in zip(*parts)][:5] == whole[:5] and len(parts[0]) == len(whole)
    assert sum((part[5] for part in parts), [])[:3] == whole[5]  # 23 clips: the last step is filled up


@pytest.mark.parametrize(
    ("size", "batch_size", "world"), [(23, 4, 2), (23, 4, 3), (23, 4, 6), (7, 16, 2), (3, 2, 3), (5, 2, 3), (24, 4, 5)]
)
def test_processes_repeat_nothing_in_evaluation(size: int, batch_size: int, world: int) -> None:
    """All together they have the batches of one process, in its order, as long as there are enough."""
    data = list(range(size))
    shards = [
        epoch(loader(data=data, shuffle=False, batch_size=batch_size, rank=rank, world=world, training=False), 0)
        for rank in range(world)
    ]
    assert all(shards) and sum(sum(shards, []), []) == data
    if -(-size // batch_size) >= world:
        assert sum(shards, []) == epoch(loader(data=data, shuffle=False, batch_size=batch_size), 0)


def test_more_processes_than_clips_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="4 processes for 3 clips"):
        share(3, 1, 0, 4)


def test_what_belongs_together_stays_together() -> None:
    groups = [f"video {place % 6}" for place in range(20)]
    orders = []
    for number in range(2):
        order = EpochOrder(20, 0, True, groups)
        order.set_epoch(number)
        orders.append(list(order))
        assert sorted(orders[-1]) == list(range(20)) and len(order) == 20
        assert len(list(itertools.groupby(groups[place] for place in orders[-1]))) == 6
    assert orders[0] != orders[1]
    assert list(EpochOrder(20, 0, False, groups=groups))[:4] == [0, 6, 12, 18]


def test_processes_resume_too() -> None:
    for rank in range(2):
        whole = epoch(loader(rank=rank, world=2), 1)
        running = loader(rank=rank, world=2)
        running.order.set_epoch(1)
        batches = iter(running)
        seen = [next(batches).tolist()]
        resumed = loader(rank=rank, world=2)
        resumed.load_state_dict(running.state_dict())
        assert seen + epoch(resumed, 1) == whole and len(whole) == 3


def test_a_position_holds_for_another_number_of_processes() -> None:
    whole, running = epoch(loader(), 1), loader()
    running.order.set_epoch(1)
    batches = iter(running)
    seen = [next(batches).tolist() for _ in range(2)]
    parts = []
    for rank in range(2):
        resumed = loader(batch_size=2, rank=rank, world=2)
        resumed.load_state_dict(running.state_dict())
        parts.append(epoch(resumed, 1))
    assert seen + [sum(step, []) for step in zip(*parts)][:3] == whole[:5]


class Steps(LightningModule):
    """Notes what it is trained on; saves a checkpoint after some step and stops there."""

    def __init__(self, folder: Path, stop: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.folder, self.stop, self.seen = folder, stop, []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.tolist())
        return self.weight * batch.sum()

    def on_train_batch_end(self, *_: object) -> None:
        if len(self.seen) == self.stop:
            self.trainer.save_checkpoint(self.folder / "stopped.ckpt")
            raise KeyboardInterrupt

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def run(folder: Path, workers: int, stop: int | None = None, ckpt_path: Path | None = None, **options: object) -> list:
    model = Steps(folder, stop)
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "max_epochs": 3,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )
    if stop is None:
        trainer.fit(model, loader(workers), ckpt_path=ckpt_path, weights_only=True)
    else:
        with pytest.raises(SystemExit):
            trainer.fit(model, loader(workers))
    return model.seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 6, 8, 12])
def test_a_stopped_training_goes_on_where_it_was(tmp_path: Path, workers: int, stop: int) -> None:
    """After the first batch, the last of an epoch, in the middle of the second, and before the third."""
    whole = run(tmp_path, 0)
    assert len(whole) == 18 and whole[:6] != whole[6:12] != whole[12:]
    assert whole[6:12] == epoch(loader(), 1)
    first = run(tmp_path, workers, stop)
    assert first + run(tmp_path, workers, ckpt_path=tmp_path / "stopped.ckpt") == whole


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_shortened_epoch_resumes_too(tmp_path: Path, stop: int) -> None:
    """`limit_train_batches` ends an epoch before the loader does; counting steps instead of epochs changes nothing."""
    for options in ({"limit_train_batches": 4}, {"limit_train_batches": 4, "max_epochs": -1, "max_steps": 12}):
        whole = run(tmp_path, 0, **options)
        assert len(whole) == 12 and whole[4:8] == epoch(loader(), 1)[:4]
        first = run(tmp_path, 0, stop, **options)
        assert first + run(tmp_path, 0, ckpt_path=tmp_path / "stopped.ckpt", **options) == whole


def test_spawned_workers(ave_root: Path) -> None:
    """What macOS and Windows do by default."""
    data = AVEDataModule(ave_root, batch_size=12, image_size=64, sample_rate=16000)
    data.setup("fit")
    here = [batch["id"] for batch in data.train_dataloader()]
    data.num_workers = 1
    loader = data.train_dataloader()
    loader.multiprocessing_context = "spawn"
    assert [batch["id"] for batch in loader] == here


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
                "are out of shared memory."
            ),
            "shared memory.*--shm-size.*num_workers to 0",
        ),
        (RuntimeError("unable to write to file </torch_7_1_0>: No space left on device (28)"), "--shm-size"),
        (OSError(28, "No space left on device"), "--shm-size"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            "Use fewer workers or smaller batches",
        ),
        (RuntimeError("something else"), None),
    ],
)
def test_too_little_memory_for_workers(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str | None) -> None:
    def failing(self: DataLoader) -> object:
        raise error
        yield

    monkeypatch.setattr(DataLoader, "__iter__", failing)
    with pytest.raises(ArgumentError if message else RuntimeError, match=message or "something else"):
        next(iter(loader(2)))
