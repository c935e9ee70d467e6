"""Processor time of a sweep's run in a process that begins anew, and in one that is forked.

    python benchmarks/sweep_overhead.py --runs 4 [--root data/quickstart]

A run takes one training step, validates one batch and tests one. Both ways alternate run by run. What the process takes
that others are forked from is needed once a sweep. The last line says whether both ways gave the same weights and
metrics, bit for bit. Linux alone tells processor times of processes that still run.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
from pathlib import Path

import torch

from avprompt.configs import EXPERIMENTS, find_file
from avprompt.sweeps.local import execute
from avprompt.sweeps.run import SweepRun
from avprompt.sweeps.warm import Warm

ONE_STEP = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=1",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.num_sanity_val_steps=0",
]


def synthesize(root: Path) -> Path:
    """40 clips, prepared."""
    from avprompt.media.prepare import prepare
    from avprompt.synthetic import SYNTHETIC_DATASETS

    SYNTHETIC_DATASETS["ave"](root, workers=1, videos=40, seed=7)
    prepare(root / "videos", root / "store", size=64, sample_rate=16000, workers=1)
    return root


def used_by_children() -> float:
    """Seconds of user and system time of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def used_by(process: int) -> tuple[float, float]:
    """Seconds of user and system time of a process, and of those that it has waited for."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:15]]
    return ticks[0] + ticks[1], ticks[2] + ticks[3]


def same(runs: list[SweepRun]) -> bool:
    """Whether two runs ended with the same weights and metrics."""
    weights = [
        torch.load(run.folder / "fit" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in runs
    ]
    metrics = [[run.outcome(stage)["metrics"] for stage in ("fit", "test")] for run in runs]
    return metrics[0] == metrics[1] and all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--config", default="quickstart")
    given = parser.parse_args()
    config = find_file(given.config, EXPERIMENTS)
    with tempfile.TemporaryDirectory() as folder, Warm() as warm:
        flags = [*ONE_STEP, f"--data.root={given.root or synthesize(Path(folder, 'data'))}"]
        anew, forked, equal = [], [], []
        for seed in range(given.runs):
            runs = [
                SweepRun(way, seed, config, flags, Path(folder, f"{way}{seed}").absolute())
                for way in ("anew", "forked")
            ]
            begun = used_by_children()
            problem = execute(runs[0], 1)
            anew.append(used_by_children() - begun)
            begun = used_by(warm.server.pid)[1] if warm.server else 0.0
            problem = problem or execute(runs[1], 1, warm.begin)
            if problem:
                raise SystemExit(f"{problem}\n{runs[0].log.read_text()}")
            own, all_forked = used_by(warm.server.pid)
            forked.append(all_forked - begun)
            equal.append(same(runs))
    print(
        "seconds of processor time                     " + "".join(f"   run {number}" for number in range(given.runs))
    )
    for name, values in (("anew", anew), ("forked", forked)):
        print(
            f"{name:<45}" + "".join(f"{value:8.2f}" for value in values) + f"   median {statistics.median(values):.2f}"
        )
    print(f"the process that is forked, once: {own:.2f}")
    print(f"the same weights and metrics: {equal}")


if __name__ == "__main__":
    main()
