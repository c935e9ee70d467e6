"""Every number that a user can give has a range, and a number outside of it is refused by the name of its flag."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from lightning.pytorch.callbacks import Callback

from avprompt.cli import run
from avprompt.cli.checks import takes_a_class
from avprompt.cli.main import FUNCTIONS
from avprompt.data_modules import AVDataModule
from avprompt.errors import ArgumentError, ConfigError
from avprompt.media.prepare import prepare
from avprompt.ranges import FOREIGN, Range, check_ranges, hints, ranges
from avprompt.synthetic import SYNTHETIC_DATASETS
from avprompt.tasks import AVPromptTask

PACKAGES = ("tasks", "data_modules", "methods", "encoders", "heads", "callbacks")
#: commands whose arguments are a function's
COMMANDS = [
    prepare,
    *SYNTHETIC_DATASETS.values(),
    *(getattr(importlib.import_module(module), name) for name, module in FUNCTIONS.items()),
]


def types(hint: Any) -> Iterator[Any]:
    """The types in a type hint, each with the ranges that stand beside it."""
    if typing.get_origin(hint) is Annotated or (inspect.isclass(hint) and not typing.get_args(hint)):
        yield hint
    for part in typing.get_args(hint) if typing.get_origin(hint) not in (Annotated, typing.Literal) else ():
        yield from types(part) if not isinstance(part, list) else ()


def everything() -> list[type]:
    """Every class of ours that a YAML file can name: those of declared types, and of their arguments' types in turn."""
    for name in PACKAGES:
        package = importlib.import_module(f"avprompt.{name}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"avprompt.{name}.{module.name}")
    found: set[type] = set()
    todo: list[Any] = [AVPromptTask, AVDataModule, Callback]
    while todo:
        kind = todo.pop()
        todo += (
            kind.__subclasses__()
            if kind.__module__.startswith(("avprompt.", "torch.optim")) or kind is Callback
            else []
        )
        if kind in found or not kind.__module__.startswith("avprompt."):
            continue
        found.add(kind)
        todo += [
            part
            for hint in hints(kind).values()
            if takes_a_class(hint)
            for part in types(hint)
            if inspect.isclass(part)
        ]
    return sorted(found, key=lambda kind: kind.__qualname__)


EVERYTHING = everything()


def wrong(allowed: Range) -> float:
    """A number outside of a range."""
    if allowed.low > float("-inf"):
        return allowed.low if allowed.above else allowed.low - 1
    return float("nan")


def test_the_walk_finds_what_there_is() -> None:
    names = {kind.__name__ for kind in EVERYTHING}
    assert names >= {"DGSCT", "AVEDataModule", "WarmupCosine", "AVE", "PSP", "HTSAT", "PredictionWriter", "CoOp"}
    assert len(names) > 80


@pytest.mark.parametrize("kind", [*EVERYTHING, *COMMANDS], ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
def test_every_number_has_a_range(kind: Any) -> None:
    """And a number outside of it is refused, alone, in a list, and in a mapping."""
    for name, hint in hints(kind).items():
        bare = [part for part in types(hint) if part in (int, float)]
        assert not bare or name == "return", f"{name}: declare a range of avprompt.ranges instead of {hint}"
        for allowed in ranges(hint):
            bad = wrong(allowed)
            given = {dict: {"some": bad}, list: [bad], None: bad}[shape(hint)]
            with pytest.raises(ArgumentError, match=f"^--there.{name}: got .*; expected {str(allowed)[:9]}"):
                check_ranges(kind, {name: given}, "--there.")


def shape(hint: Any) -> type | None:
    """`list` or `dict` where an argument takes numbers only in a list, a tuple or a mapping."""
    parts = (hint, *typing.get_args(hint))
    if any(typing.get_origin(part) is Annotated for part in parts):
        return None
    return next(
        dict if typing.get_origin(part) is dict else list
        for part in parts
        if typing.get_origin(part) in (list, tuple, dict)
    )


@pytest.mark.parametrize("package", FOREIGN)
def test_ranges_of_foreign_classes_name_arguments_that_exist(package: str) -> None:
    """Of Lightning's trainer, and of some optimizer or schedule."""
    import torch
    from lightning import Trainer

    kinds = (
        [Trainer]
        if package == "lightning"
        else [
            kind
            for module in (torch.optim, torch.optim.lr_scheduler)
            for kind in vars(module).values()
            if inspect.isclass(kind)
        ]
    )
    known = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters} | {"warmup"}
    assert FOREIGN[package].keys() <= known


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model.prompt_lr=-0.1", "--model.prompt_lr: got -0.1; expected above 0"),
        ("--model.optimizer.lr=0", r"--model.optimizer.lr: got 0.0; expected above 0"),
        ("--trainer.max_epochs=-2", "--trainer.max_epochs: got -2; expected at least -1"),
        ("--data.shots=0", "--data.shots: got 0; expected at least 1"),
        ("--model.method_losses={balance: .nan}", "--model.method_losses: got nan; expected a finite number"),
        ("--model.backbone.prompts.num_tokens=0", "--model.backbone.prompts.num_tokens: got 0; expected at least 1"),
    ],
)
def test_a_flag_out_of_range_is_named(flag: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        run(["fit", "--config", "quickstart", "--data.root", "/tmp", flag])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep", "quickstart_ablation", "--workers", "0"], "--workers: got 0; expected at least 1"),
        (["quickstart", "--videos", "-3"], "--videos: got -3; expected at least 1"),
        (
            ["data", "prepare", "--videos", "/tmp", "--out", "/tmp/x", "--size", "-1"],
            "--size: got -1; expected at least 1",
        ),
        (["data", "synth", "ave", "--root", "/tmp/x", "--noise", "-1"], "--noise: got -1.0; expected at least 0"),
    ],
)
def test_a_command_out_of_range_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        run(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit --trainer.max_epoch=1", "--trainer.max_epoch: got no such argument.*Did you mean max_epochs"),
        ("fit --data.batchsize=2", "--data.batchsize: got no such argument.*AVEDataModule. Did you mean batch_size"),
        ("fit --model.backbone.prompts.alfa=1", "--model.backbone.prompts.alfa: .*of DGSCT. Did you mean alpha"),
        ("fit --model.optimizer.lrr=1", "--model.optimizer.lrr: .*of Adam. Did you mean lr"),
        ("fit --data.batch_size two", "--data.batch_size: got 'two'; expected int. "),
        ("fit --trainer.max_epochs x", "--trainer.max_epochs: got 'x'; expected int or null. "),
        ("fit --model.prompt_lr x", "--model.prompt_lr: got 'x'; expected float or null. "),
        ("fit --data.layout tape", "--data.layout: got 'tape'; expected one of 'store', 'folders'. "),
        ("fit --model.backbone.prompts DGSTC", "prompts: got DGSTC; .*Did you mean DGSCT"),
        ("fit --model.backbone.prompts avprompt.methods.DGSTC", "DGSTC; .*Did you mean DGSCT"),
        ("fit fast", "fast: got a word that belongs to no flag"),
        ("sweep x --wrokers=1", "--wrokers: got no such flag.*Did you mean --workers.*`avprompt sweep --help`"),
        ("quickstart --task avx", "--task: got 'avx'; expected one of 'ave', "),
        ("data prepar", "got prepar; .*Did you mean prepare"),
        ("convert", "source, target.*: got nothing"),
        ("experiments --sho", "--sho: got no such flag.*Did you mean --show"),
    ],
)
def test_a_wrong_flag_gives_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = words.split()
    more = ["--config", "quickstart", "--data.root", "/tmp"] if command == "fit" else []
    with pytest.raises(ConfigError, match=message) as error:
        run([command, *more, *rest])
    assert "\n" not in str(error.value) and "usage" not in capsys.readouterr().err
