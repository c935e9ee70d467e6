"""Which card takes which experiment at which batch and time an epoch, and what published tables cost: computed figures.

    avprompt efficiency --all --device meta --out efficiency.csv
    python benchmarks/cards.py efficiency.csv
    python benchmarks/cards.py efficiency.csv --sweeps dgsct_modules dgsct_directions --seeds 3

Nothing is measured here. GFLOPs of the forward pass and what it keeps for the backward pass in float32 come from the
file. Fixed memory is 4 bytes for every parameter, 12 for every trained one (gradient, Adam), and 1.5 GB for CUDA and
workspaces. A step is three forward passes, an upper bound for frozen encoders, at 40 % of the card's published dense
bf16 rate. The host's launches are not in it: at small batches they take longer, whatever the card.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from avprompt.configs import EXPERIMENTS, find_file, get_nested, load_yaml, read_yaml
from avprompt.sweeps.plan import read_sweep
from avprompt.sweeps.run import SweepRun, last

#: card -> published dense bf16 rate in TFLOP/s
RATES = {"RTX 4090": 165, "A100": 312, "H100": 989}
#: GB of cards
MEMORY = (24, 40, 80)
SHARE, PASSES, WORKSPACE = 0.4, 3, 1.5
#: data module, and its setting where it has several -> training clips (questions for MUSIC-AVQA) of the published split
CLIPS = {
    "AVEDataModule": 3_339,
    "LLPDataModule": 10_000,
    "AVSBenchDataModule s4": 3_452,
    "AVSBenchDataModule ms3": 296,
}


def clips_of(experiment: dict) -> int | None:
    """Training clips of an experiment's dataset, `None` where the published split is not listed above."""
    name = (get_nested(experiment, "data.class_path") or "").rpartition(".")[2]
    if get_nested(experiment, "data.init_args.shots"):
        return None
    setting = get_nested(experiment, "data.init_args.setting") or "s4"
    return CLIPS.get(name, CLIPS.get(f"{name} {setting}"))


def hours(gflops: float, clips: float, rate: float) -> float:
    """Hours of training on so many clips, see above.

    >>> round(hours(901, 3339, 989) * 60, 1)
    0.4
    """
    return PASSES * gflops * clips / (SHARE * rate * 1000) / 3600


def fixed(row: dict[str, str]) -> float:
    """GB that do not depend on the batch."""
    return (4 * float(row["total"]) + 12 * float(row["trainable"])) / 1e9 + WORKSPACE


def batch(row: dict[str, str], memory: float) -> int:
    """The largest batch that fits."""
    return max(0, int((memory - fixed(row)) // float(row["kept_gb"])))


def experiments(rows: dict[str, dict[str, str]]) -> list[list[str]]:
    """A line for each experiment of the file whose split is known."""
    lines = []
    for name, row in rows.items():
        if (clips := clips_of(read_yaml(find_file(name, EXPERIMENTS)))) is None:
            continue
        gflops = float(row["forward_gflops_a_clip"])
        lines.append(
            [
                f"`{name}`, {clips:,} clips",
                f"{gflops:.0f}",
                f"{fixed(row):.1f}",
                f"{float(row['kept_gb']):.2f}",
                *(str(batch(row, memory)) for memory in MEMORY),
                *(f"{60 * hours(gflops, clips, rate):.1f}" for rate in RATES.values()),
            ]
        )
    return lines


def cost(runs: list[SweepRun], rows: dict[str, dict[str, str]]) -> tuple[int, list[float]] | None:
    """Runs of a sweep and their GPU hours a card; a variant counts as the experiment that it changes. `None` where an
    experiment is not in the file, or its split or epochs are not known."""
    total = [0.0] * len(RATES)
    for run in runs:
        clips = clips_of(read_yaml(run.config))
        epochs = last(run.recipe, "trainer.max_epochs")
        if clips is None or run.config.stem not in rows or not epochs or epochs < 1:
            return None
        gflops = float(rows[run.config.stem]["forward_gflops_a_clip"])
        total = [spent + hours(gflops, clips * epochs, rate) for spent, rate in zip(total, RATES.values())]
    return len(runs), total


def tables(names: list[str], rows: dict[str, dict[str, str]], seeds: int) -> list[list[str]]:
    """A line for each sweep and task whose experiments are in the file."""
    lines = []
    for name in names:
        path = find_file(name, EXPERIMENTS / "sweeps")
        tasks = load_yaml(path).get("tasks") or {None: {}}
        for task in tasks:
            runs, _ = read_sweep(path, list(range(seeds)), Path("runs"), task)
            found = cost(runs, rows)
            label = f"`{name}`" + (f", {task}" if task else "")
            spent = ["not known"] * len(RATES) if found is None else [f"{own:.1f}" for own in found[1]]
            lines.append([label, str(len(runs)), *spent])
    return lines


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="the CSV file of `avprompt efficiency --device meta`")
    parser.add_argument("--sweeps", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    with given.figures.open(newline="", encoding="utf-8") as file:
        rows = {row["experiment"]: row for row in csv.DictReader(file)}
    cards = [f"{name}, minutes an epoch" for name in RATES]
    header = [
        "experiment",
        "GFLOPs a clip",
        "fixed, GB",
        "kept a clip, GB",
        *(f"batch in {gb} GB" for gb in MEMORY),
        *cards,
    ]
    print(markdown(header, experiments(rows)))
    if given.sweeps:
        print(
            f"\n{markdown(['sweep', 'runs', *(f'{name}, hours' for name in RATES)], tables(given.sweeps, rows, given.seeds))}"
        )


if __name__ == "__main__":
    main()
