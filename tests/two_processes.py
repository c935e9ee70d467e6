"""What each of several processes of a test runs: `python two_processes.py MODE ARGUMENT`, see test_processes.py."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import torch
from lightning import LightningModule
from torch import Tensor, distributed, nn
from torch.utils.data import Dataset

from avprompt.errors import ClipDecodeError

matplotlib.use("agg")
warnings.filterwarnings("ignore")
RANK, WORLD = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])


def note(folder: str, name: str, content: Any) -> None:
    """Leave what was found for the test."""
    (Path(folder) / f"{name}.{RANK}.json").write_text(json.dumps(content))


def commands(folder: str) -> None:
    """Run the command lines of commands.json, one after the other, and note how long each takes and computes."""
    from avprompt.cli import run

    seconds = {}
    for name, args in json.loads((Path(folder) / "commands.json").read_text()).items():
        begun, busy = time.monotonic(), time.process_time()
        run(args)
        seconds[name] = [round(time.monotonic() - begun, 2), round(time.process_time() - busy, 2)]
        note(folder, "seconds", seconds)


def halves(batch: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """The clips of one process."""
    return {key: value[rank * len(value) // world : (rank + 1) * len(value) // world] for key, value in batch.items()}


def gradients(folder: str) -> None:
    """Loss and gradients of a batch in one process, of its parts in all, and of its parts without gathering."""
    from avprompt.cli import parts_of

    distributed.init_process_group("gloo", rank=RANK, world_size=WORLD)
    found = {}
    for name, args in json.loads((Path(folder) / "commands.json").read_text()).items():
        task, data = parts_of(args)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        task.eval()  # batch norms and dropout aside
        with torch.no_grad():
            for key, parameter in task.backbone.prompts.named_parameters():
                if key.endswith("gate"):
                    parameter.fill_(0.5)

        def step(own: dict[str, Any], gather: bool, task: LightningModule = task) -> tuple[Tensor, Tensor]:
            task.gather = gather
            for part in task.modules():
                if hasattr(part, "gather"):
                    part.gather = gather
            task.zero_grad()
            loss, _ = task.total_loss(task(own), own)
            loss.backward()
            grads = torch.cat(
                [
                    (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                    for p in task.parameters()
                    if p.requires_grad
                ]
            )
            return loss.detach(), grads

        whole, expected = step(batch, False)
        results = {}
        for gather in (True, False):
            loss, grads = step(halves(batch, RANK, WORLD), gather)
            distributed.all_reduce(grads)
            distributed.all_reduce(loss)
            results[str(gather)] = [
                float((loss / WORLD - whole).abs() / whole),
                float((grads / WORLD - expected).norm() / expected.norm()),
            ]
        found[name] = results
        if name == "quickstart":  # the loss of all is finite in no process, and all name the same clips
            own = halves(batch, RANK, WORLD)
            own["audio"] = own["audio"] * (float("nan") if RANK == 1 else 1.0)
            task.gather = True
            loss, _ = task.total_loss(task(own), own)
            note(folder, "nan", [bool(torch.isfinite(loss)), task._culprits(own), f"clip {', '.join(batch['id'][2:])}"])
    note(folder, "gradients", found)


def metrics(folder: str) -> None:
    """Every metric over uneven pieces of a set, by three processes and by the first two of them."""
    from test_processes import cases

    from avprompt.media.samplers import share

    distributed.init_process_group("gloo", rank=RANK, world_size=WORLD)
    groups = {3: distributed.new_group([0, 1, 2]), 2: distributed.new_group([0, 1])}
    for world, group in groups.items():
        found = {}
        for name, (metric, inputs, batch_size) in cases().items() if world > RANK else ():
            metric.process_group = group
            place = share(len(inputs[0]), batch_size, RANK, world)
            for first in range(place.start, place.stop, batch_size):
                end = min(first + batch_size, place.stop)
                metric.update(*(part[first:end] for part in inputs))
            value = metric.compute()
            found[name] = value if isinstance(value, dict) else float(value)
            metric.reset()
            assert not any(isinstance(state, list) and state for state in metric.metric_state.values())
        note(folder, f"metrics.{world}", found)


class Clips(Dataset):
    """Numbers, one of which may be NaN or raise."""

    def __init__(self, broken: str) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Tensor:
        if index == 20 and self.broken == f"decode{RANK}":
            raise ClipDecodeError("twenty.mp4", "nothing", "a video", "Look at it.")
        if index == 20 and self.broken == f"memory{RANK}":
            os.kill(os.getpid(), 9)
        return torch.tensor([float(index)])


class Line(LightningModule):
    """The smallest network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-4)


def failure(folder: str) -> None:
    """Training in which one process fails at the 20th number it reads, as a command of avprompt."""
    import avprompt.cli

    def train(args: list[str]) -> None:
        from lightning import Trainer
        from lightning.pytorch.loggers import TensorBoardLogger

        from avprompt.callbacks import ExactResume, FailTogether, InterruptCheckpoint
        from avprompt.media.samplers import ResumableLoader

        broken = (Path(folder) / "broken").read_text()
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=WORLD,
            strategy="ddp",
            enable_progress_bar=False,
            logger=TensorBoardLogger(folder),
            use_distributed_sampler=False,
            callbacks=[ExactResume(), InterruptCheckpoint(), FailTogether()],
        )
        loader = ResumableLoader(Clips(broken), 4)  # all processes read the same numbers
        trainer.fit(Line(), loader)

    sys.modules["avprompt.cli.main"].dispatch = train
    avprompt.cli.main([])


if __name__ == "__main__":
    sys.argv, (mode, argument) = ["avprompt"], sys.argv[1:]
    {"commands": commands, "gradients": gradients, "metrics": metrics, "failure": failure}[mode](argument)
