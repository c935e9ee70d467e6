"""`avprompt quickstart`: generate data, train, test and compare on a laptop."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avprompt.configs import EXPERIMENTS, find_file, get_nested, read_yaml
from avprompt.durations import duration
from avprompt.errors import ConfigError
from avprompt.media.prepare import prepare
from avprompt.ranges import Count, Natural
from avprompt.sweeps.local import execute
from avprompt.sweeps.run import SweepRun, epoch_lines
from avprompt.sweeps.screen import Progress, folder_bytes
from avprompt.sweeps.table import summarise
from avprompt.sweeps.warm import Warm
from avprompt.synthetic import SYNTHETIC_DATASETS

ROWS = {
    "no prompts": ["--model.backbone.prompts=avprompt.methods.NoPrompts"],
    "DG-SCT": [],
}


@dataclass(frozen=True)
class Plan:
    """One task's quickstart.

    Args:
        experiment: name of its YAML file in experiments/.
        synthesize: function that writes its synthetic dataset.
        metric: name of the metric in the table, and its meaning in a few words.
        stored: whether the media go through a prepared store.
        options: further arguments of `synthesize`; `videos` is 400 otherwise.
    """

    experiment: str
    synthesize: Callable[..., Any]
    metric: tuple[str, str]
    stored: bool = True
    options: dict[str, Any] = field(default_factory=dict)


#: videos that are made to see how long the others will take, and how large they will be
SAMPLE = 40
IOU = "test_miou", "percent, mean overlap of predicted and sounding pixels"
PLANS = {
    "ave": Plan(
        "quickstart",
        SYNTHETIC_DATASETS["ave"],
        ("test_accuracy", "percent of seconds with the right category, background included"),
    ),
    "avvp": Plan(
        "avvp_quickstart",
        SYNTHETIC_DATASETS["llp"],
        ("test_segment_type", "percent, segment-level F-score, mean of audio, visual and audio-visual events"),
    ),
    "avs_s4": Plan("avs_s4_quickstart", SYNTHETIC_DATASETS["avsbench"], IOU, False, {"setting": "s4"}),
    "avs_ms3": Plan("avs_ms3_quickstart", SYNTHETIC_DATASETS["avsbench"], IOU, False, {"setting": "ms3"}),
    "avqa": Plan(
        "avqa_quickstart",
        SYNTHETIC_DATASETS["music_avqa"],
        ("test_average", "percent of questions answered correctly"),
        True,
        {"videos": 1200, "questions_per_video": 6, "kinds": ["Counting", "Existential"]},
    ),
}


def make(plan: Plan, root: Path, seed: int, options: dict[str, Any]) -> Iterator[str]:
    """Generate a dataset and prepare it; says before each step what it is."""
    yield "1/4 generate a synthetic dataset"
    plan.synthesize(root, seed=seed, **options)
    yield "2/4 prepare it" if plan.stored else "2/4 nothing to prepare: frames and masks are files already"
    if plan.stored:
        prepare(root / "videos", root / "store", size=64, sample_rate=16000)


def sampled(plan: Plan, seed: int, options: dict[str, Any]) -> tuple[float, float]:
    """Seconds and bytes of a video of the dataset, measured on a few that are thrown away."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        begun = time.monotonic()
        with contextlib.redirect_stderr(io.StringIO()):
            list(make(plan, Path(folder, "data"), seed, {**options, "videos": SAMPLE}))
        return (time.monotonic() - begun) / SAMPLE, folder_bytes(Path(folder)) / SAMPLE


@contextlib.contextmanager
def shown(log: Path, more: int = 0, pause: float = 0.5) -> Iterator[None]:
    """Print a training's lines, one an epoch, while it runs in a process of its own, and after the first one how long
    it and those that follow will take.

    Args:
        log: where that process writes.
        more: trainings like it that follow.
        pause: seconds between two looks.
    """
    ended, before = threading.Event(), len(epoch_lines(log))

    def follow() -> None:
        printed, last = before, False
        while not last:
            last = ended.wait(pause)
            lines = epoch_lines(log)
            printed = min(printed, len(lines))  # the log begins anew
            for line in lines[printed:]:
                print(f"    {line}", flush=True)
                found = Progress.read(line)
                if more and found is not None and found.epoch == 1 and found.epochs:
                    left = found.seconds * (found.epochs * (1 + more) - 1)
                    print(f"    measured: about {duration(left)} for this training and {more} more", flush=True)
            printed = len(lines)

    thread = threading.Thread(target=follow, name="avprompt-shown", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def quickstart(
    task: Literal["ave", "avvp", "avs_s4", "avs_ms3", "avqa"] = "ave",
    data: Path | None = None,
    out: Path | None = None,
    videos: Count | None = None,
    epochs: Count | None = None,
    seed: Natural = 0,
    threads: Count = 2,
) -> None:
    """Generate a dataset, prepare it, train with and without prompts, test, and print the results.

    Works in any folder: data/ and runs/ appear there. What is already there is used again, finished runs included.

    Args:
        task: event localisation, video parsing, segmentation (one or several sources), question answering.
        data: folder of the synthetic dataset; `None` is the experiment's own.
        out: folder of the runs; `None` is runs/<name of the experiment>.
        videos: clips to generate, six tenths of them for training; `None` is 400, and 1200 for question answering.
        epochs: of training; `None` is the experiment's own.
        seed: of dataset and training.
        threads: processor threads of each training.

    Raises:
        ConfigError: a run failed; names its log.
    """
    plan = PLANS[task]
    experiment = find_file(plan.experiment, EXPERIMENTS)
    begun = time.monotonic()
    data = Path(data or get_nested(read_yaml(experiment), "data.init_args.root"))
    out = Path(out or Path("runs") / plan.experiment)
    options = {"videos": 400, **plan.options, **({} if videos is None else {"videos": videos})}
    free = shutil.disk_usage(next(place for place in (data, *data.absolute().parents) if place.is_dir())).free
    known = "how long the trainings take is said after the first epoch, and how large they are after the first one"
    if options["videos"] < 4 * SAMPLE or data.exists():
        print(f"{free / 1e9:,.1f} GB are free on the disk; {known}", flush=True)
    else:
        seconds, size = (each * options["videos"] for each in sampled(plan, seed, options))
        print(
            f"the dataset takes about {duration(seconds)} and {size / 1e6:,.0f} MB on the disk, measured on {SAMPLE} "
            f"videos, of which {free / 1e9:,.1f} GB are free; {known}",
            flush=True,
        )
    for said in make(plan, data, seed, options):
        print(said, flush=True)
    runs = []
    with Warm() as warm:
        for number, (row, flags) in enumerate(ROWS.items(), 3):
            overrides = [*flags, "--data.root", str(data)]
            overrides += [] if epochs is None else ["--trainer.max_epochs", str(epochs)]
            run = SweepRun(row, seed, experiment, overrides, out / row.replace(" ", "_"))
            runs.append(run)
            print(f"{number}/4 fit and test: {row} (all that it says: {run.log})", flush=True)
            with shown(run.log, len(ROWS) - len(runs)):
                problem = None if run.result.is_file() else execute(run, threads, warm.begin)
            if problem:
                raise ConfigError(row, problem, "a finished run", "Read the log, then call quickstart again.")
            print(f"    {folder_bytes(run.folder) / 1e6:,.0f} MB in {run.folder}", flush=True)
    metric, meaning = plan.metric
    print(f"\n{summarise(runs, metric, out)}")
    print(f"{metric}: {meaning}")
    print(f"{time.monotonic() - begun:.0f} s in all. Curves, pictures and hyper-parameters: tensorboard --logdir {out}")
