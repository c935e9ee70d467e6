"""What is seen of runs while they run: a table on a terminal, lines elsewhere, and how long all of it will take."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from avprompt.durations import duration, in_seconds
from avprompt.sweeps.run import SweepRun, epoch_lines

#: a line of `avprompt.callbacks.EpochLines`
LINE = re.compile(r"epoch (\d+)/(\d+|\?):(?: loss (\S+),)?(?: (\w+) ([^\s,]+),)? (.+?)(?:, (.+) left)?")
COLUMNS = ("run", "epoch", "loss", "metric", "an epoch", "left")


@dataclass(frozen=True)
class Progress:
    """What the newest line of a run says.

    Args:
        epoch: that is done, from 1.
        epochs: in all; `None` where nothing but the steps end the run.
        loss: as printed; empty where there is none.
        metric: name and value as printed, likewise.
        seconds: of an epoch.

    Example:
        >>> Progress.read("epoch 2/6: loss 5.1610, val_accuracy 0.4137, 15 s, 1 min left")
        Progress(epoch=2, epochs=6, loss='5.1610', metric='val_accuracy 0.4137', seconds=15.0)
    """

    epoch: int
    epochs: int | None
    loss: str
    metric: str
    seconds: float

    @classmethod
    def read(cls, line: str) -> Progress | None:
        """Of a line; `None` where it is another program's."""
        if (found := LINE.fullmatch(line)) is None:
            return None
        epoch, epochs, loss, name, value, seconds, _ = found.groups()
        try:
            spent = in_seconds(seconds)
        except (KeyError, ValueError):
            return None
        metric = f"{name} {value}" if name else ""
        return cls(int(epoch), None if epochs == "?" else int(epochs), loss or "", metric, spent)

    @property
    def left(self) -> float | None:
        """Seconds to the end of the training, `None` where nobody knows."""
        return None if self.epochs is None else self.seconds * (self.epochs - self.epoch)


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder.

    Example:
        >>> folder_bytes(Path("no such folder"))
        0
    """
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Board:
    """Shows runs as they proceed.

    On a terminal it is a table of the runs under way, which is redrawn. Elsewhere it is a line for each epoch and for
    each run that begins or ends. How long all runs will take is unknown until an epoch has been measured: it is
    reckoned from the seconds that finished runs took, or from the first epochs of those under way.

    Args:
        runs: all of the sweep.
        workers: runs at a time.
        stream: where to.
        live: whether it is a terminal; `None` asks it.

    Example:
        >>> import io
        >>> with Board([], 2, io.StringIO()) as board:
        ...     board.expect(Path("."))[:49]
        'time: nothing is left to run; room: nothing more '
    """

    def __init__(
        self,
        runs: list[SweepRun],
        workers: int,
        stream: IO[str] | None = None,
        live: bool | None = None,
    ) -> None:
        self.runs, self.workers, self.stream = runs, workers, stream or sys.stderr
        self.live = self.stream.isatty() if live is None else live
        self.shown: dict[str, int] = {}
        self.took: dict[str, float] = {}
        self.look()
        self.drawn: Any = None
        self.said_left = ""

    # --- how long, how large

    def seconds_of_a_run(self, under_way: list[SweepRun] = []) -> float | None:  # noqa: B006
        """Mean of what finished runs took, or else what the newest epochs of those under way promise."""
        took = list(self.took.values())
        if not took:
            found = [self.progress(run) for run in under_way]
            took = [one.seconds * one.epochs for one in found if one is not None and one.epochs]
        return sum(took) / len(took) if took else None

    def look(self) -> None:
        """See which runs are finished."""
        for run in self.runs:
            if run.name not in self.took and run.outcome("test") is not None:
                found = [run.outcome(stage) for stage in ("fit", "test")]
                self.took[run.name] = sum(one["wall_s"] for one in found if one is not None)

    def left(self, todo: list[SweepRun], under_way: list[SweepRun]) -> float | None:
        """Seconds until all is done, `None` as long as nothing is measured."""
        if (each := self.seconds_of_a_run(under_way)) is None:
            return None
        begun = 0.0
        for run in under_way:
            found = self.progress(run)
            begun += each if found is None or found.left is None else min(each, found.left)
        waiting = len(todo) - len(under_way)
        return (begun + each * waiting) / max(1, min(self.workers, len(todo)))

    def expect(self, out: Path) -> str:
        """What is known of time and room on the disk before the runs begin."""
        todo = [run for run in self.runs if run.name not in self.took]
        done = [folder_bytes(run.folder) for run in self.runs if run.name in self.took]
        free = shutil.disk_usage(next(place for place in (out, *out.absolute().parents) if place.is_dir())).free
        room = f"{free / 1e9:,.1f} GB are free"
        if not todo:
            return f"time: nothing is left to run; room: nothing more is needed, {room}"
        if (left := self.left(todo, [])) is None:
            return f"time and room are reckoned from the first epoch and the first run, once they are measured; {room}"
        need = sum(done) / len(done) * len(todo)
        return f"time: about {duration(left)}, from {len(done)} finished; room: about {need / 1e6:,.0f} MB more, {room}"

    # --- what is seen

    @staticmethod
    def progress(run: SweepRun) -> Progress | None:
        """Of the run's newest line."""
        lines = epoch_lines(run.log)
        return Progress.read(lines[-1]) if lines else None

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.drawn is not None:
            self.drawn.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def update(self, under_way: list[SweepRun], todo: list[SweepRun]) -> None:
        """Show where the runs are.

        Args:
            under_way: runs whose processes work.
            todo: these, and those that wait.
        """
        if self.drawn is not None:
            self.drawn.update(self.table(under_way, todo))
        else:
            for run in under_way:
                lines = epoch_lines(run.log)
                if run.name not in self.shown:
                    self.say(f"now {run.name} ({run.log})")
                    self.shown[run.name] = max(0, len(lines) - 1)
                for line in lines[min(self.shown[run.name], len(lines)) :]:
                    self.say(f"{run.name}: {line}")
                self.shown[run.name] = len(lines)
        if not self.said_left and (left := self.left(todo, under_way)) is not None and todo:
            self.said_left = f"measured: about {duration(left)} for {len(todo)} of {len(self.runs)} runs"
            self.say(self.said_left)

    def ended(self, run: SweepRun, problem: str | None) -> None:
        """Say that a run has ended."""
        self.look()
        what = f"not finished: {run.name}: {problem}" if problem else f"finished: {run.name}"
        self.say(f"{what}; {len(self.took)}/{len(self.runs)} runs")

    def table(self, under_way: list[SweepRun], todo: list[SweepRun]) -> Any:
        """The runs under way, as rich draws them."""
        from rich.table import Table

        left = self.left(todo, under_way)
        done = f"{len(self.took)}/{len(self.runs)} runs finished"
        title = f"{done}, {'time left: measured after the first epoch' if left is None else f'{duration(left)} left'}"
        table = Table(title=title, title_justify="left", title_style="")
        for name in COLUMNS:
            table.add_column(name, justify="left" if name in ("run", "metric") else "right", overflow="fold")
        for run in under_way:
            found = self.progress(run)
            if found is None:
                table.add_row(run.name, "begins", "", "", "", "")
                continue
            ahead = "?" if found.left is None else duration(found.left)
            table.add_row(
                run.name,
                f"{found.epoch}/{found.epochs or '?'}",
                found.loss,
                found.metric,
                duration(found.seconds),
                ahead if found.epoch != found.epochs else "tests",
            )
        return table

    def __enter__(self) -> Board:
        if self.live:
            from rich.console import Console
            from rich.live import Live

            self.drawn = Live(
                console=Console(file=self.stream, force_terminal=True), refresh_per_second=4, transient=True
            )
            self.drawn.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.drawn is not None:
            self.drawn.stop()
            self.drawn = None
