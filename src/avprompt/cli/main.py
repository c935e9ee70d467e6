"""The entry point: finds the command, runs it, and turns bad input into one message."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from avprompt import __version__
from avprompt.cli.optional_packages import leave_out_extras
from avprompt.cli.remembered import remembered
from avprompt.cli.screen import QUIET, Interrupts, plain_screen
from avprompt.cli.signatures import check_keys
from avprompt.configs import check_files, expand_flag, expand_home
from avprompt.errors import AVPromptError, ConfigError, did_you_mean
from avprompt.files import full_disks
from avprompt.signals import exit_code

HELP = f"""avprompt {__version__}: parameter-efficient prompting of frozen image and audio encoders

usage: avprompt COMMAND [options]

  fit | validate | test | predict   run an experiment: avprompt fit --config ave_dgsct
  list                              list methods, encoders, tasks, datasets and experiments
  experiments                       list the experiments that ship; print one, or copy it to change it
  weights                           list the files of weights that experiments need, found or missing; fetch them
  doctor                            say what this machine has, what is missing, and what that means
  params                            count the parameters that an experiment trains, freezes and saves
  data prepare                      turn folders of videos into the store that training reads
  data verify                       list which files a dataset needs and which exist
  data synth ave|llp|...            write a synthetic dataset in the format of a real one
  data stats                        measure the spectrograms of an experiment's training split
  data features                     compute the frozen backbone's features of every clip once
  convert                           turn the authors' released checkpoints into ours
  sweep                             run the variants of a table with several seeds, here or on a cluster; resumable
  compare                           print finished runs beside the published figures
  report                            write a page about a run: curves, intervals, categories, clips, settings
  efficiency                        measure parameters, GFLOPs, seconds and memory of a training step
  visualize                         predict the test split with pictures of truth, prediction and maps; with --features
                                    also t-SNE with and without prompts, frequency maps and temporal gates, and with
                                    --umap UMAP; with --format pdf,svg for papers, as `predict` too
  demo                              open a page on this machine that takes a video or a webcam clip and shows what a
                                    trained network says of it
  quickstart                        generate, prepare, train, test and compare on this machine, in minutes
  completion bash|zsh|tcsh          print a script that completes commands and flags in this shell

`avprompt COMMAND --help` explains each command; `--quiet` leaves out everything but results and problems. `--config` takes a file, or the name of an experiment that ships.
Flags come after `--config` and override it: --data.batch_size 4 --model.backbone.prompts.spatial false
"""
#: OpenMP's threads sleep while they wait: on a busy machine spinning ones cost ten times what they wait for
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
#: functions whose first argument is a list
SEVERAL = ("compare", "efficiency")
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
COMMANDS = (
    *TRAINER_COMMANDS,
    "visualize",
    "params",
    "data",
    "list",
    "experiments",
    "weights",
    "doctor",
    "completion",
    "convert",
    "sweep",
    "compare",
    "report",
    "efficiency",
    "demo",
    "quickstart",
)
#: commands that are one function, whose signature and docstring are options and help
FUNCTIONS = {
    "sweep": "avprompt.sweeps.sweep",
    "compare": "avprompt.reports.compare",
    "report": "avprompt.reports.report",
    "efficiency": "avprompt.cli.efficiency",
    "demo": "avprompt.demo",
    "quickstart": "avprompt.cli.quickstart",
}


def convert(args: list[str]) -> None:
    """`avprompt convert --task ave IN.pt OUT.ckpt`."""
    from avprompt.cli.parsing import Parser

    parser = Parser(prog="avprompt convert", description="Turn the authors' released checkpoints into ours.")
    parser.add_argument("source", type=Path, help="the authors' .pt file")
    parser.add_argument("target", type=Path, help="checkpoint to write, .ckpt; the encoders are written beside it")
    parser.add_argument(
        "--task",
        type=str,
        required=True,
        help="task that it was trained on: ave, avvp, avs_s4, "
        "avs_ms3, avqa, fewshot, or pretrain (VGG-Sound, for zero-shot transfer)",
    )
    parser.add_argument(
        "--audio_scale",
        type=float,
        help="fewshot, pretrain: CLAP's scale of cosines, the exponential "
        "of logit_scale_a in CLAP's own file, which the authors' file lacks",
    )
    given = parser.parse_args(args)
    from avprompt.convert import convert as run

    options = {} if given.audio_scale is None else {"audio_scale": given.audio_scale}
    run(given.task, given.source, given.target, **options)


def function(args: list[str], command: str) -> None:
    """Run a command of `FUNCTIONS`."""
    import importlib

    from jsonargparse import auto_cli

    from avprompt.cli.parsing import Parser
    from avprompt.ranges import checked

    if command in SEVERAL:  # folders or files stand side by side: `avprompt compare runs/a runs/b --out tables`
        count = next((place for place, arg in enumerate(args) if arg.startswith("-")), len(args))
        args = args if args[:1] and args[0].startswith("[") else [json.dumps(args[:count]), *args[count:]]
        args = [
            "--all=true" if arg == "--all" and after not in ("true", "false") else arg
            for arg, after in zip(args, [*args[1:], ""])
        ]
    options = {}
    if command == "sweep":  # the parser's own --config would be a file of these arguments
        options = {"config_help": "the sweep file, instead of as first argument"}
        args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
        if "--config" in args[:-1]:
            place = args.index("--config")
            args = [args[place + 1], *args[:place], *args[place + 2 :]]
    called = checked(getattr(importlib.import_module(FUNCTIONS[command]), command))
    if command == "demo":  # auto_cli takes an argument `config` for its own, and drops it
        parser = Parser(prog="avprompt demo", allow_abbrev=False)
        parser.add_function_arguments(called, as_group=False)
        parser.description = (called.__doc__ or "").partition("Args:")[0]
        called(**vars(parser.instantiate(parser.parse_args(args))))
        return
    auto_cli(
        called,
        args=args,
        parser_class=Parser,
        allow_abbrev=False,
        prog=f"avprompt {command}",
        as_positional=command != "quickstart",
        **options,
    )


def trainer(args: list[str]) -> None:
    """Run `fit`, `validate`, `test` or `predict`."""
    if len(args) == 1:
        raise ConfigError(
            f"avprompt {args[0]}",
            "no --config",
            "an experiment",
            f"Try `avprompt {args[0]} --config quickstart`; `avprompt experiments` lists what ships.",
        )
    check_files(args)
    check_keys(args)
    from avprompt.cli.lightning import AVPromptCLI

    AVPromptCLI(args)


def pictures(args: list[str]) -> list[str]:
    """The words of `predict` with `--features`, `--umap` (features too) and `--format`, which say what is drawn, as
    arguments of callbacks.

    Raises:
        ConfigError: `--format` without formats.

    >>> pictures(["--config", "x", "--format", "pdf,svg"])[3:]
    ['--trainer.callbacks+=avprompt.callbacks.PredictionWriter', '--trainer.callbacks.formats=[pdf, svg]']
    """
    umap, features = "--umap" in args, "avprompt.callbacks.feature_pictures.FeaturePictures"
    drawn = [features] * (umap or "--features" in args)
    args = [
        part
        for arg in args
        if arg not in ("--features", "--umap")
        for part in (arg.split("=", 1) if arg.startswith("--format=") else [arg])
    ]
    formats = ""
    if "--format" in args:
        place = args.index("--format")
        if place + 1 == len(args) or args[place + 1].startswith("-"):
            raise ConfigError(
                "--format", "nothing", "png, pdf, svg, or several: pdf,svg", "Say which, or leave it out."
            )
        formats = args[place + 1].strip("[]")
        args = [*args[:place], *args[place + 2 :]]
        drawn.append("avprompt.callbacks.PredictionWriter")
    written = ", ".join(part.strip() for part in formats.split(","))
    return [
        "predict",
        *args,
        *(
            flag
            for name in drawn
            for flag in (
                f"--trainer.callbacks+={name}",
                *(["--trainer.callbacks.umap=true"] if umap and name == features else []),
                *([f"--trainer.callbacks.formats=[{written}]"] if formats else []),
            )
        ),
    ]


def run(args: list[str]) -> None:
    """Run a command line.

    Args:
        args: words after `avprompt`.

    Raises:
        AVPromptError: bad input; `main` turns it into a message.

    >>> run(["experiments", "zeroshot_quickstart", "--show"])  # doctest: +ELLIPSIS
    # ...
    """
    try:
        with full_disks():
            dispatch(args)
    except (ValueError, TypeError) as error:  # jsonargparse wraps what a class's constructor raises
        from avprompt.cli.parsing import cause

        if (typed := cause(error)) is None or typed is error:
            raise
        raise typed from None


@functools.cache
def expand_files() -> None:
    """Have `~` stand for the home folder in every YAML file and value that a parser loads."""
    import yaml
    from jsonargparse import get_loader, set_loader

    from avprompt.cli.checks import restrict_parser

    restrict_parser()
    load = get_loader("yaml")
    set_loader("yaml", lambda text: expand_home(load(text)), (yaml.YAMLError,))


def dispatch(args: list[str]) -> None:
    """Find the command and run it."""
    args = [expand_flag(arg) for arg in args]
    expand_files()
    command, rest = (args[0], args[1:]) if args else ("--help", [])
    if command in ("--help", "-h"):
        print(HELP)
    elif command == "--version":
        print(__version__)
    elif command == "predict":
        trainer(pictures(rest))
    elif command in TRAINER_COMMANDS:
        trainer(args)
    elif command == "visualize":
        if not rest:
            trainer(args)
        trainer([*pictures(rest), "--data.predict_root", "null"])
    elif command == "params":
        check_files(rest)
        check_keys([word for word in rest if word != "--json"])
        from avprompt.cli.params import params

        params(rest)
    elif command == "data":
        from avprompt.cli.data import data

        data(rest)
    elif command == "list":
        from avprompt.cli.listing import listing

        listing(rest)
    elif command == "weights":
        from avprompt.cli.weights import weights

        weights(rest)
    elif command == "doctor":
        from avprompt.cli.doctor import doctor

        doctor(rest)
    elif command == "experiments":
        from avprompt.cli.experiments import experiments

        experiments(rest)
    elif command == "completion":
        from avprompt.cli.completion import completion

        completion(rest, FUNCTIONS, ("sweep",))
    elif command == "convert":
        convert(rest)
    elif command in FUNCTIONS:
        function(rest, command)
    else:
        raise ConfigError(
            "COMMAND",
            command,
            "a command of `avprompt --help`",
            f"{did_you_mean(command, COMMANDS)}Correct the spelling.",
        )


def main(args: list[str] | None = None) -> None:
    """Run the program: bad input becomes one message and exit code 2; `AVPROMPT_DEBUG=1` shows the traceback.

    Args:
        args: words after `avprompt`; `None` takes those of the process.
    """
    for name, value in WAITING.items():  # read when torch is imported, which nothing has done yet
        os.environ.setdefault(name, value)
    leave_out_extras()
    args = sys.argv[1:] if args is None else args
    if "--quiet" in args:  # also for the processes that this one starts
        os.environ[QUIET] = "1"
        args = [arg for arg in args if arg != "--quiet"]
    interrupts = Interrupts()
    try:
        with interrupts.watched(), plain_screen():
            remembered(args, run)
    except BaseException as error:
        processes = sys.modules.get("avprompt.processes")  # not imported where nothing ran: it takes torch
        several = processes is not None and processes.world() > 1
        if several:
            processes.together.tell(error)
        if isinstance(error, AVPromptError) and not os.environ.get("AVPROMPT_DEBUG"):
            print(f"avprompt: {type(error).__name__}: {error}", file=sys.stderr)
            code: int | str | None = 2
        elif interrupts.seen and not os.environ.get("AVPROMPT_DEBUG"):
            print(
                "\navprompt: stopped by Ctrl-C; the same command begins again, and a training that has begun goes on "
                "with --ckpt_path last",
                file=sys.stderr,
            )
            code = 128 + signal.SIGINT
        elif isinstance(error, SystemExit):
            code = exit_code(error)
        elif several:
            traceback.print_exc()
            code = 1
        else:
            raise
        if several:
            processes.together.leave(code if isinstance(code, int) else 1)
        sys.exit(code)
