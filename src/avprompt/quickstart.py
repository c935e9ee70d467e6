"""`avprompt quickstart`: from nothing to a tested result on a laptop."""

from __future__ import annotations

import time
from pathlib import Path

from avprompt.errors import ConfigError
from avprompt.media.prepare import prepare
from avprompt.sweep import Cell, run_cell, summarise
from avprompt.synth.ave import synthesize

EXPERIMENT = Path("experiments/quickstart.yaml")
ROWS = {
    "no prompts": ["--model.init_args.backbone.init_args.prompts=avprompt.prompts.NoPrompts"],
    "DG-SCT": [],
}


def quickstart(data: Path = Path("data/quickstart"), out: Path = Path("runs/quickstart"), videos: int = 400,
               epochs: int = 6, seed: int = 0, threads: int = 2) -> None:
    """Generate a world, prepare it, train with and without prompts, test, and print what came out.

    Run it from the root of the source tree. What is already there is used again, finished runs included.

    Args:
        data: folder of the generated world.
        out: folder of the runs.
        videos: clips to generate; six tenths are for training.
        epochs: of training.
        seed: of world and training.
        threads: of each training.

    Raises:
        ConfigError: not called from the root of the source tree, or a run failed.
    """
    if not EXPERIMENT.is_file():
        raise ConfigError(EXPERIMENT, "no such file here", "the root of the avprompt source tree", "Change into it.")
    begun = time.monotonic()
    data, out = Path(data), Path(out)
    print("1/4 generate a world in AVE's format")
    synthesize(data, videos, seed)
    print("2/4 prepare it")
    prepare(data / "videos", data / "store", size=64, sample_rate=16000)
    cells = []
    for step, (row, flags) in enumerate(ROWS.items(), 3):
        overrides = [*flags, "--data.init_args.root", str(data), "--trainer.max_epochs", str(epochs)]
        cell = Cell(row, seed, EXPERIMENT, overrides, out / row.replace(" ", "_"))
        cells.append(cell)
        print(f"{step}/4 fit and test: {row} (progress in {cell.folder / 'log.txt'})", flush=True)
        problem = None if cell.result.is_file() else run_cell(cell, threads)
        if problem:
            raise ConfigError(row, problem, "a finished run", "Read the log; then call quickstart again.")
    print(f"\n{summarise(cells, 'test_accuracy', out)}")
    print("test_accuracy: percent of seconds with the right category, background included")
    print(f"{time.monotonic() - begun:.0f} s in all. Curves and hyper-parameters: tensorboard --logdir {out}")
