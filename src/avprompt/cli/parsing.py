"""What parsers say about a wrong flag, as one typed error instead of pages of usage."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import Any, NoReturn

import jsonargparse

import avprompt
from avprompt.configs import load_class, parameters
from avprompt.errors import AVPromptError, ConfigError, did_you_mean


class OneError:
    """A parser that raises one `ConfigError` where it would print its usage and end the program."""

    prog: str
    _option_string_actions: dict[str, Any]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the typed error behind a problem, or one that says the same as the parser's message.

        Raises:
            ConfigError: names the flag, what it got, and what it takes.
        """
        if not getattr(self, "exit_on_error", True):  # of a class's arguments within another parser
            super().error(message, ex)  # type: ignore[misc]  # of the parser that it is mixed into
        if (typed := cause(ex)) is not None:
            raise typed from None
        prog = self.prog.split(" [")[0].removesuffix(" [options]")
        raise explain(message, self._option_string_actions, f"`{prog} --help` lists the flags.") from None


class Parser(OneError, jsonargparse.ArgumentParser):
    """Of a command that is a function."""


class PlainParser(OneError, argparse.ArgumentParser):
    """Of a command with a few flags of its own."""


def cause(error: BaseException | None) -> AVPromptError | None:
    """The typed error behind one that a parser raised."""
    seen = error
    while seen is not None and not isinstance(seen, AVPromptError):
        seen = seen.__cause__ or seen.__context__
    return seen


def explain(message: str, flags: Iterable[str] = (), hint: str = "") -> ConfigError:
    """A typed error that says what a parser's message says.

    Args:
        message: of jsonargparse or argparse.
        flags: that the parser knows.
        hint: where they are listed.

    Example:
        >>> print(explain('Parser key "seed_everything":\\n  Expected a <class \\'int\\'>. Got value: x'))
        --seed_everything: got 'x'; expected int. Correct it.
        >>> print(explain("unrecognized arguments: --epoch=3", ["--epochs"]))
        --epoch: got no such flag; expected a flag of this command. Did you mean --epochs?
    """
    keys = re.findall(r'Parser key "([^"]+)"', message)
    flag = "--" + ".".join(keys).replace(".init_args", "") if keys else ""
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        name = found[1].partition("=")[0]
        if not name.startswith("-"):
            return ConfigError(name, "a word that belongs to no flag", "flags", hint or "Remove it.")
        return ConfigError(name, "no such flag", "a flag of this command", f"{did_you_mean(name, flags)}{hint}".strip())
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        owner = re.findall(r"class_path(?: |=)'([\w.]+)'", message[: found.start()] if keys else message) or re.findall(
            r"class_path='([\w.]+)'", message
        )
        named = re.findall(r"class_path='([\w.]+)'", message[found.end() :])
        owner = named[:1] if "callable class: Option" in message else owner
        known = [name for name in parameters(owner[-1]) if name not in ("self", "args", "kwargs")] if owner else []
        whose = owner[-1].rpartition(".")[2] if owner else "the class"
        return ConfigError(
            f"{flag}.{found[1]}",
            "no such argument",
            f"an argument of {whose}",
            did_you_mean(found[1], known).strip() or f"It has {', '.join(known) or 'none'}.",
        )
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return ConfigError(
            flag,
            found[1],
            "the path of a class",
            f"{did_you_mean(found[1], classes(message))}Such as avprompt.methods.DGSCT.",
        )
    if found := re.search(r"given class_path '([^']+)':\s+(module|Import|No module|.*has no attr)", message):
        return ConfigError(flag, found[1], "a class that can be imported", class_hint(found[1]))
    if found := re.search(r"arguments are required: (.*)", message):
        return ConfigError(found[1], "nothing", "a value for each", hint or "Give it.")
    if found := re.search(r"argument (\S+): expected (.*)", message):
        return ConfigError(found[1], "no value", found[2], hint or "Give one.")
    if found := re.search(r"argument (\S+): invalid choice: '?([^']*)'? \(choose from (.*)\)", message):
        choices = re.findall(r"[\w.-]+", found[3])
        return ConfigError(found[1], found[2], f"one of {', '.join(choices)}", did_you_mean(found[2], choices) + hint)
    got = re.findall(r"Got value: (.*)", message) or re.findall(
        r"Given value: (?:NestedArg\(key='.*?', val=)?(.*)", message
    )
    takes = re.findall(r"Subtypes: \[(.*)\]", message[message.rfind('Parser key "') :]) or re.findall(
        r"Expected an? (.*?)(?:\. Got value|$)", message, re.MULTILINE
    )
    if flag and got and takes:
        value = got[0].strip().removesuffix(")") if "NestedArg" in message else got[0].strip()
        return ConfigError(flag, repr(value.strip("'\"")), plain_types(takes[0]), "Correct it.")
    return ConfigError(flag or "the command line", " ".join(message.split()), "something else", hint or "Correct it.")


def plain_types(text: str) -> str:
    """Type hints as people write them.

    Example:
        >>> plain_types("typing.Annotated[int, Range(low=1)], <class 'NoneType'>"), plain_types("<class 'bool'>")
        ('int or null', 'bool')
        >>> plain_types("typing.Literal['store', 'folders']")
        "one of 'store', 'folders'"
    """
    text = re.sub(r"<class '(?:[\w]+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"typing\.Annotated\[(\w+), Range\([^)]*\)\]", r"\1", text)
    if found := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return f"one of {found[1]}"
    text = re.sub(r"(?:\w+\.)+(\w+)", r"\1", text).replace("NoneType", "null").replace("str", "text")
    parts = re.split(r", (?![^\[]*\])", text)
    return " or ".join(part.strip("^$") for part in parts)


def classes(message: str) -> set[str]:
    """Names of the classes that an argument takes, as a parser's message lists them, and of those that are public."""
    found = set(avprompt.__all__)
    for path in re.findall(r"<class '((?:\w+\.)+\w+)'>", message):
        todo = [load_class(path)] if path.startswith(("avprompt.", "lightning.", "torch.")) else []
        while todo:
            kind = todo.pop()
            found.add(kind.__name__)
            todo += kind.__subclasses__()
    return found


def class_hint(path: str) -> str:
    """What a class that cannot be found may be meant to be."""
    try:
        load_class(path)
    except ConfigError as error:
        return error.hint
    return "Correct the spelling."
