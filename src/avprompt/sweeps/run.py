"""One run of a sweep: its files, what defines it, and the commands that make it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from avprompt.configs import UNTRAINED, get_nested, sources


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: a variant of an experiment with one seed.

    Args:
        variant: name of the variant.
        seed: of weights and data order.
        config: the experiment's file.
        overrides: flags that make the variant; `--config=FILE` among them is laid over the experiment.
        folder: where the run writes; it is finished when test/result.json is there.
        axis: name and value of the argument that the sweep changes in every variant, where it has one.
        zero_shot: nothing is trained: the run only tests.
        varied: path in the configuration and value, where the variant changes this argument alone.

    Example:
        >>> SweepRun("all", 1, Path("quickstart.yaml"), [], Path("runs/all-seed1"), ("shots", 4)).name
        'all, shots 4, seed 1'
    """

    variant: str
    seed: int
    config: Path
    overrides: list[str]
    folder: Path
    axis: tuple[str, Any] | None = None
    zero_shot: bool = False
    varied: tuple[str, Any] | None = None

    @property
    def name(self) -> str:
        """The name that messages print."""
        return ", ".join([self.variant, *(["{} {}".format(*self.axis)] if self.axis else []), f"seed {self.seed}"])

    @property
    def result(self) -> Path:
        """This file exists once the run is finished."""
        return self.folder / "test" / "result.json"

    @property
    def log(self) -> Path:
        """Output of its processes; locked as long as one of them lives."""
        return self.folder / "log.txt"

    @property
    def failure(self) -> Path:
        """This file exists once the run has failed, and says why."""
        return self.folder / "failed.json"

    @property
    def record(self) -> Path:
        """This file says what the run was started with; a folder with it is one that a sweep made."""
        return self.folder / "run.json"

    @property
    def made(self) -> list[Path]:
        """What a sweep has made in the folder, without its log."""
        return [
            path
            for path in (*(self.folder / stage for stage in ("fit", "test")), self.failure, self.record)
            if path.exists() or path.is_symlink()
        ]

    def is_foreign(self) -> bool:
        """Whether the folder holds files that no sweep has made: it is not empty and has no record of a sweep."""
        record = read_json(self.record)
        if isinstance(record, dict) and "recipe" in record:
            return False
        if not self.folder.is_dir():
            return self.folder.exists()
        # another sweep may be about to write its record
        ours = (self.log.name, "earlier", f".{self.record.name}")
        return any(not path.name.startswith(ours) for path in self.folder.iterdir())

    @cached_property
    def recipe(self) -> list[Any]:
        """Everything that defines the run except its seed: content of files and flags, in the order in which they
        apply."""
        found = sources(["--config", str(self.config), *self.overrides])
        return json.loads(json.dumps([content for _, content in found], default=str))

    def outcome(self, stage: str) -> dict[str, Any] | None:
        """Content of the result.json of a stage; `None` where it is missing or incomplete."""
        return read_json(self.folder / stage / "result.json")

    def start(self) -> Path | None:
        """The newest checkpoint of a training that was stopped."""
        folder = self.folder / "fit" / "checkpoints"
        found = [path for path in (folder / "last.ckpt", folder / "interrupted.ckpt") if path.is_file()]
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)

    def commands(self) -> dict[str, list[str]]:
        """Command lines by stage: `fit`, then `test` of the checkpoint that the validation split selected; or `test`
        alone."""
        best = None if self.zero_shot else self.folder / "fit" / "checkpoints" / "best.ckpt"
        logger = "--trainer.logger"
        common = [
            "--config",
            str(self.config),
            *self.overrides,
            "--seed_everything",
            str(self.seed),
            "--data.seed",
            str(self.seed),
            f"{logger}.save_dir",
            str(self.folder.parent),
            f"{logger}.name",
            self.folder.name,
            "--trainer.enable_progress_bar",
            "false",
            f"{logger}.version",
        ]
        found = {} if self.zero_shot else {"fit": self.start()}
        return {
            stage: [stage, *common, stage, *(["--ckpt_path", str(checkpoint)] if checkpoint else [])]
            for stage, checkpoint in {**found, "test": best or UNTRAINED}.items()
        }


def last_line(log: Path) -> str:
    """The last line of a log that `avprompt.callbacks.EpochLines` has written, empty where there is none."""
    return next(reversed(epoch_lines(log)), "")


def epoch_lines(log: Path) -> list[str]:
    """The lines that `avprompt.callbacks.EpochLines` has written into a log."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [line for line in lines if line.startswith("epoch ")]


def read_json(path: Path) -> Any:
    """The content of a JSON file, `None` where there is none or it was cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def last(recipe: list[Any], path: str) -> Any:
    """The value at a dotted path that applies in the end, `None` where none is given."""
    return next((value for content in reversed(recipe) if (value := get_nested(content, path)) is not None), None)
