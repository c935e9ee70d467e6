"""Time an epoch without prompts from media and from features that were computed once, and print the ratio.

    python benchmarks/feature_cache.py --root data/quickstart [--config quickstart] [--epochs 5]

Both variants alternate in one run: each loads every training clip and does forward, backward and optimizer step. Beside
the seconds that pass stands the processor time, which does not depend on what else a machine does. The time of `avprompt
data features` is printed too; it is needed once.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from avprompt.cli import parts_of, run

PLAIN = ["--model.backbone.prompts", "avprompt.methods.NoPrompts"]


def clocks() -> tuple[float, float]:
    """Seconds that passed, and seconds of this process' processors."""
    return time.perf_counter(), time.process_time()


def epoch(task: object, data: object) -> tuple[float, float]:
    """Seconds and processor time of one epoch."""
    optimizer, begun = task.configure_optimizers()["optimizer"], clocks()
    for batch in data.train_dataloader():
        optimizer.zero_grad()
        sum(task.losses(task(batch), batch).values()).backward()
        optimizer.step()
    return tuple(now - then for now, then in zip(clocks(), begun))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--root", required=True)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    common = ["--config", given.config, "--data.root", given.root]
    with tempfile.TemporaryDirectory() as folder:
        out, begun = Path(folder) / "features", clocks()
        run(["data", "features", *common, *PLAIN, "--split", "train", "--out", str(out)])
        computed = [now - then for now, then in zip(clocks(), begun)]
        cached = [
            "--model.backbone",
            "avprompt.backbone.PrecomputedFeatures",
            "--model.backbone.cache",
            str(out),
            "--data.feature_cache",
            str(out),
        ]
        sides = {"media": parts_of([*common, *PLAIN]), "features": parts_of([*common, *cached])}
        for _, data in sides.values():
            data.validation_split = "train"  # features of the training split alone were computed
            data.setup("fit")
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(given.epochs):
            for name, (task, data) in sides.items():
                times[name].append(epoch(task.train(), data))
        size = sum(path.stat().st_size for path in out.iterdir())
    medians = {name: [statistics.median(own) for own in zip(*pairs)] for name, pairs in times.items()}
    for place, clock in enumerate(("seconds", "processor")):
        for name, pairs in times.items():
            own = [pair[place] for pair in pairs]
            print(
                f"{clock:<9} {name:<9} {medians[name][place]:8.2f} s an epoch "
                f"(median of {len(own)}; {min(own):.2f} to {max(own):.2f})"
            )
        ratio = medians["features"][place] / medians["media"][place]
        print(f"{clock:<9} ratio     {ratio:8.3f}   computed once in {computed[place]:.1f} s, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
