"""A fault injector: it tests the suite's promises about kills, signals, full disks and damaged stores many times.

    python benchmarks/faults.py --minutes 30 [--seed 0] [--only kill,store]

It prints a table of promises, tries and failures, and exits with 1 if anything failed. A try takes about a second: it
runs in a process forked from this one, on a task of milliseconds (tests/stops.py) that depends on everything that a
resumed run has to restore: random generators, data order, schedule, batch norm, running means. tests/faults runs a
short form of it.
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has none of the threads that its parent had started
os.environ["CUDA_VISIBLE_DEVICES"] = ""
TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from lightning import Callback  # noqa: E402
from media_files import write_video  # noqa: E402
from stops import points, state, train  # noqa: E402
from store_damage import try_store  # noqa: E402

from avprompt.checkpoints import read_checkpoint  # noqa: E402
from avprompt.errors import AVPromptError, WriteError  # noqa: E402
from avprompt.files import full_disks  # noqa: E402
from avprompt.media import prepare as preparing  # noqa: E402
from avprompt.media.decode import Clip, Sampling  # noqa: E402
from avprompt.media.prepare import prepare  # noqa: E402
from avprompt.media.store import ClipStore, Entry, write_manifest  # noqa: E402
from avprompt.signals import exit_code  # noqa: E402

torch.set_num_threads(1)
#: seconds that every batch waits, so that a blow can fall anywhere in a run of fifteen batches
PAUSE = 0.03
#: how the videos of a try are prepared
PREPARED = {"segments": 2, "size": 16, "sample_rate": 8000, "workers": 1}


class Slow(Callback):
    """Waits a little before every batch."""

    def on_train_batch_start(self, trainer: object, pl_module: object, batch: object, batch_idx: int) -> None:
        time.sleep(PAUSE)


def fork(work: Callable[[], None], log: Path) -> int:
    """Run something in a process of its own; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            faulthandler.dump_traceback_later(50, file=file)  # `end` gives up after 60
            try:
                work()
                code = 0
            except SystemExit as stop:
                code = found if isinstance(found := exit_code(stop), int) else 1
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def end(child: int, seconds: float = 60.0) -> int | None:
    """Exit code of a process, negative for a signal; `None` where it had to be killed after a while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def run(folder: Path, start: Path | None = None) -> Callable[[], None]:
    """A training in a folder, from a checkpoint on, which leaves its final state there."""

    def work() -> None:
        trainer, _ = train(folder, Slow(), ckpt_path=start)
        torch.save(state(trainer), folder / "state.pt")

    return work


def newest(folder: Path) -> Path | None:
    """The checkpoint to go on from."""
    found = [path for path in (folder / "checkpoints").glob("*.ckpt") if path.stem in ("last", "interrupted")]
    return max(found, key=lambda path: read_checkpoint(path)["global_step"], default=None)


def same(folder: Path, whole: Path) -> list[str]:
    """How a run that was stopped and went on differs from one that was not; empty is right."""
    ours, theirs = (torch.load(place / "state.pt", weights_only=True) for place in (folder, whole))
    wrong = [f"{name} differs" for name in theirs if not torch.equal(ours[name], theirs[name])]
    shown, expected = points(folder), points(whole)
    for name in expected:
        mine, other = shown.get(name, []), expected[name]
        if [step for step, _ in mine] != [step for step, _ in other]:
            wrong.append(f"TensorBoard's {name} has steps {[step for step, _ in mine]}, not {[s for s, _ in other]}")
        elif not all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(mine, other)):
            wrong.append(f"TensorBoard's {name} has other values")
    return wrong


def stopped(numbers: tuple[int, ...]) -> Callable[[Path, Path, random.Random], list[str]]:
    """A try: one of these signals at a random moment, perhaps again while it goes on; then to the end."""

    def attempt(scratch: Path, whole: Path, rng: random.Random) -> list[str]:
        log = scratch / "log.txt"
        for _ in range(rng.choice((1, 1, 2, 3))):
            start = newest(scratch)
            child = fork(run(scratch, start), log)
            time.sleep(rng.uniform(0.05, 1.2))
            try:
                os.kill(child, number := rng.choice(numbers))
            except ProcessLookupError:
                break
            code = end(child)
            if code is None:
                return [f"signal {number}: the run did not end within a minute"]
            if code == 0:
                break
            # before training begins Lightning answers Ctrl-C with 1
            if code not in (-number, 128 + number, *((1,) if number == signal.SIGINT else ())):
                return [f"signal {number}: exit code {code}; {log.read_text()[-400:]}"]
            for path in (scratch / "checkpoints").glob("*.ckpt"):
                read_checkpoint(path)  # raises where it is not whole
            rests = [path.name for path in (scratch / "checkpoints").glob("*.partial")]
            if rests and number != signal.SIGKILL:
                return [f"signal {number}: unfinished files are left, {rests}"]
        if not (scratch / "state.pt").is_file() and (code := end(fork(run(scratch, newest(scratch)), log))) != 0:
            return [f"the run that goes on ends with {code}: {log.read_text()[-400:]}"]
        return same(scratch, whole)

    return attempt


def full_disk(scratch: Path, whole: Path, rng: random.Random) -> list[str]:
    """A try: no file may grow beyond a random size; the run ends with a typed error and its checkpoints stay whole."""
    log, limit = scratch / "log.txt", rng.randrange(200, 30_000)
    verdict = scratch / "verdict"

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            with full_disks():  # as every command has it
                train(scratch)
            verdict.write_text("done")
        except WriteError:
            verdict.write_text("WriteError")
        except OSError as error:
            verdict.write_text(f"OSError {error}")

    code = end(fork(work, log))
    said = verdict.read_text() if verdict.is_file() else f"exit code {code}: {log.read_text()[-300:]}"
    for path in (scratch / "checkpoints").glob("*.ckpt"):
        read_checkpoint(path)
    return [] if said in ("done", "WriteError") else [f"limit {limit}: {said}"]


def damaged(scratch: Path, whole: Path, rng: random.Random) -> list[str]:
    """A try: one damage to a store; the deep check names the clip, and reading ends with nothing but a typed error."""
    return try_store(whole, scratch / "store", rng)


def some_videos(folder: Path) -> Path:
    """A folder of six short videos, of which one is broken, and beside it their whole store."""
    videos = folder / "videos"
    videos.mkdir()
    for number in range(6):
        write_video(videos / f"{number}.mp4", seconds=1 + number % 2)
    (videos / "5.mp4").write_bytes(b"no video")
    prepare(videos, folder / "prepared", **PREPARED)
    return videos


def prepared(scratch: Path, videos: Path, rng: random.Random) -> list[str]:
    """A try: two shards, each killed or out of room at random moments, go on; merged, they are the whole store."""
    store, log = scratch / "store", scratch / "log.txt"
    form = {"frames": rng.choice(("raw", "raw", "jpeg"))}

    def work(shard: str | None, limit: int | None = None) -> Callable[[], None]:
        def prepare_part() -> None:
            preparing.PAUSE = 0
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                prepare(videos, store, shard=shard, **PREPARED, **form)
            except AVPromptError as error:
                if limit is None or "room" not in str(error):
                    raise

        return prepare_part

    for shard in ("1/2", "2/2", None):
        for _ in range(rng.choice((1, 2))):
            if rng.random() < 0.3:
                if (code := end(fork(work(shard, rng.randrange(100, 8000)), log))) != 0:
                    return [f"a full disk: shard {shard} ends with {code}: {log.read_text()[-2000:]}"]
                continue
            child = fork(work(shard), log)
            time.sleep(rng.uniform(0.0, 0.6))
            os.kill(child, signal.SIGKILL)
            end(child)
        if (code := end(fork(work(shard), log))) != 0:
            return [f"shard {shard} that goes on ends with {code}: {log.read_text()[-2000:]}"]
    if form["frames"] == "raw":
        whole = videos.parent / "prepared"
    else:
        whole = scratch / "whole"
        if end(fork(lambda: prepare(videos, whole, **PREPARED, **form), log)) != 0:
            return [f"the whole store: {log.read_text()[-600:]}"]
    ours, theirs = (
        {
            path.relative_to(place): path.read_bytes()
            for path in place.rglob("*")
            if path.is_file() and not path.name.startswith(".lock")
        }
        for place in (store, whole)
    )
    return [f"{path} differs" for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)]


def reference_store(folder: Path) -> Path:
    """A whole store of six small clips."""
    rng, store = np.random.default_rng(0), ClipStore(folder / "store")
    store.create(Sampling(segments=4, size=16, sample_rate=400))
    entries = []
    for number in range(6):
        clip = Clip(
            rng.integers(0, 256, (4, 16, 16, 3), np.uint8),
            rng.uniform(-1, 1, (4, 400)).astype(np.float32),
            np.array([True, True, number % 2 == 0, True]),
            4.0,
        )
        name = f"clip {number}"
        entries.append(
            Entry(name, "ok", "", 4.0, int(clip.valid.sum()), f"{name}.mp4 (9 bytes)", store.write(name, clip))
        )
    write_manifest(store.manifest_path, entries)
    return store.root


PROMISES: dict[str, tuple[str, Callable[[Path, Path, random.Random], list[str]], float]] = {
    "kill": (
        "SIGKILL anywhere, up to three times: the run that goes on is bit for bit the whole one, points too",
        stopped((signal.SIGKILL,)),
        3.0,
    ),
    "signal": (
        "SIGTERM or Ctrl-C anywhere: likewise, and the exit code says so",
        stopped((signal.SIGTERM, signal.SIGINT)),
        3.0,
    ),
    "disk": ("a disk that fills up at any file: a typed error, whole checkpoints", full_disk, 1.0),
    "prepare": (
        "SIGKILL or a full disk anywhere in the shards of `data prepare`: merged, they are the whole store",
        prepared,
        1.0,
    ),
    "store": ("any damage to a prepared store: named by --deep, no untyped error", damaged, 1.0),
}


def inject(minutes: float, seed: int, only: list[str]) -> dict[str, tuple[int, list[str]]]:
    """Tries until the time is up: promise -> number of tries, and what failed."""
    found: dict[str, tuple[int, list[str]]] = {name: (0, []) for name in only}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "whole").mkdir()
        if (code := end(fork(run(root / "whole"), root / "whole" / "log.txt"))) != 0:
            log = (root / "whole" / "log.txt").read_text()
            raise SystemExit(f"the run without faults ends with {code}: {log[-2000:]}")
        places = {"store": reference_store(root)}
        if "prepare" in only:
            places["prepare"] = some_videos(root)
        deadline, number = time.monotonic() + 60 * minutes, 0
        weights = [PROMISES[name][2] for name in only]
        while time.monotonic() < deadline:
            number += 1
            rng = random.Random(f"{seed} {number}")
            name = rng.choices(only, weights)[0]
            scratch = root / f"try{number}"
            scratch.mkdir()
            try:
                wrong = PROMISES[name][1](scratch, places.get(name, root / "whole"), rng)
            except Exception as error:  # a broken promise, whatever it raises, is a row of the table
                wrong = [f"{type(error).__name__}: {error}"]
            tries, failures = found[name]
            found[name] = tries + 1, failures + [f"try {number}: {line}" for line in wrong]
            if wrong:
                print(f"{name}, try {number}: {'; '.join(wrong)}", flush=True)
            shutil.rmtree(scratch, ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(PROMISES), help=f"some of {', '.join(PROMISES)}")
    given = parser.parse_args()
    found = inject(given.minutes, given.seed, given.only.split(","))
    print("\n| promise | tries | failures |\n|---|---|---|")
    for name, (tries, failures) in found.items():
        print(f"| {PROMISES[name][0]} | {tries} | {len({line.partition(':')[0] for line in failures})} |")
    sys.exit(any(failures for _, failures in found.values()))


if __name__ == "__main__":
    main()
