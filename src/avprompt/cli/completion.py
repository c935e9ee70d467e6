"""`avprompt completion`: a script with which a shell completes commands, flags and their values."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avprompt.cli.listing import KINDS
from avprompt.cli.parsing import PlainParser
from avprompt.configs import EXPERIMENTS
from avprompt.errors import ConfigError

SHELLS = ("bash", "zsh", "tcsh")
#: completes a --config: names of experiments and YAML files
CONFIGS = {
    "bash": '_avprompt_config() {{ compgen -W "{names}" -- "$1"; compgen -f -X "!*.yaml" -- "$1"; }}',
    "zsh": "_avprompt_config() {{ compadd -- {names}; _files -g '*.yaml' }}",
    "tcsh": "",
}


def completion(args: list[str], functions: dict[str, str], positional: tuple[str, ...]) -> None:
    """Print the completion script of a shell; building it takes some seconds.

    Args:
        args: name of the shell.
        functions: module of every command that is one function, by the command's name.
        positional: those of them whose arguments without a default are given by their place.

    Raises:
        ConfigError: shtab is not installed.
    """
    parser = PlainParser(
        prog="avprompt completion",
        allow_abbrev=False,
        description=(
            "Print a script that completes commands, flags and names of experiments. For bash: avprompt completion bash > "
            "~/.local/share/bash-completion/completions/avprompt"
        ),
    )
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(args).shell
    if importlib.util.find_spec("shtab") is None:
        raise ConfigError("completion", "no shtab", "the extra `completion`", "Run pip install 'avprompt[completion]'.")
    print(script(shell, functions, positional))


def script(shell: str, functions: dict[str, str], positional: tuple[str, ...]) -> str:
    """The completion script of a shell.

    Args:
        shell: one of `SHELLS`.
        functions: see `completion`.
        positional: see `completion`.
    """
    from avprompt.cli.lightning import PARSING, AVPromptCLI, Trainer
    from avprompt.datasets.verify import verify
    from avprompt.media.prepare import prepare
    from avprompt.synthetic import SYNTHETIC_DATASETS

    class Parser(AVPromptCLI):
        """Builds the parser and nothing else."""

        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise StopIteration

    cli = Parser.__new__(Parser)
    with contextlib.suppress(StopIteration):
        cli.__init__([])  # type: ignore[misc]  # of its own class
    commands = cli.parser._subcommands_action
    for name, like in (("params", "validate"), ("visualize", "predict")):
        commands.add_subcommand(name, cli._prepare_subcommand_parser(Trainer, like, **PARSING))
    for name, module in functions.items():
        command = getattr(importlib.import_module(module), name)
        commands.add_subcommand(name, function_parser(command, positional=name in positional))
    add_group(commands, "data", {"prepare": prepare, "verify": verify, "synth": SYNTHETIC_DATASETS})
    names = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
    shown = function_parser()
    shown.add_argument("name", choices=names)
    shown.add_argument("--show", action="store_true")
    shown.add_argument("--copy", type=Path)
    commands.add_subcommand("experiments", shown)
    for name in ("list", "weights", "doctor"):
        asked = function_parser()
        if name != "doctor":
            asked.add_argument(
                "kind" if name == "list" else "experiment", nargs="?", choices=KINDS if name == "list" else names
            )
        for flag in ("--json", *(("--fetch", "--hash") if name == "weights" else ())):
            asked.add_argument(flag, action="store_true")
        commands.add_subcommand(name, asked)
    converted = function_parser()
    converted.add_argument("source", type=Path)
    converted.add_argument("--task", choices=["ave", "avvp", "avs_s4", "avs_ms3", "avqa", "fewshot", "pretrain"])
    commands.add_subcommand("convert", converted)
    shells = function_parser()
    shells.add_argument("shell", choices=SHELLS)
    commands.add_subcommand("completion", shells)
    for parser in commands._name_parser_map.values():
        for action in parser._actions:
            if action.dest == "config" and shell != "tcsh":
                action.complete = {shell: "_avprompt_config"}
    preamble = CONFIGS[shell].format(names=" ".join(names))
    return cli.parser.get_completion_script(f"shtab-{shell}", preambles=[preamble])


def function_parser(function: Callable[..., Any] | None = None, positional: bool = False) -> Any:
    """A parser of a function's arguments.

    Args:
        function: whose signature and docstring are the options and their help; `None` adds none.
        positional: whether arguments without a default are given by their place.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    if function is not None:
        parser.add_function_arguments(function, as_positional=positional)
    return parser


def add_group(commands: Any, name: str, functions: dict[str, Any]) -> None:
    """Add a command whose subcommands are functions, or groups of functions in turn.

    Args:
        commands: subcommands of a parser, which get this one.
        name: of the command.
        functions: by the name of their subcommand.
    """
    parser = function_parser()
    commands.add_subcommand(name, parser)
    below = parser.add_subcommands()
    for key, value in functions.items():
        if isinstance(value, dict):
            add_group(below, key, value)
        else:
            below.add_subcommand(key, function_parser(value))
