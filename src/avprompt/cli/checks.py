"""Checks on configurations that the parser lets pass: what it would ignore, keep or override without a word."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import importlib
import inspect
import os
import pathlib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from avprompt.configs import CommandLine, Source, Whole, get_nested, is_spec, parameters
from avprompt.errors import ConfigError, DatasetError, did_you_mean
from avprompt.ranges import check_ranges

#: sizes that the data module tells the task through a link of the parser; a value in a file would have no effect
SIZES = ("num_classes", "segments", "video_dim", "mask_size", "vocabulary_size", "class_names")


def check_top_level(sources: list[Source], known: set[str]) -> None:
    """Refuse unknown top-level keys of a file, empty ones too.

    Raises:
        ConfigError: names the key and the file.
    """
    for origin, content in sources:
        unknown = sorted(set(content) - known) if isinstance(content, dict) else ["not a mapping"]
        if unknown and not origin.startswith("-"):
            raise ConfigError(origin, f"top-level {unknown}", f"keys among {sorted(known)}", "Correct the spelling.")


def check_linked(sources: list[Source]) -> None:
    """Refuse values of arguments that are linked from the data module.

    Raises:
        ConfigError: names the argument and where it stands.
    """
    for origin, content in sources:
        for path in (f"model.{middle}{size}" for size in SIZES for middle in ("init_args.", "")):
            if get_nested(content, path) is not None:
                raise ConfigError(
                    path,
                    f"{get_nested(content, path)} in {origin}",
                    "no value: the data module sets it",
                    "Remove it; change the data module's own arguments instead.",
                )


def check_stale(line: CommandLine) -> None:
    """Refuse to replace a class on the command line without its arguments.

    The arguments of the old class are dropped, see `avprompt.configs`. Where the new class has them too, a reader could
    think that they still hold, so they must be repeated beside the new `class_path`. A fragment is complete.

    Raises:
        ConfigError: names class, argument and both origins.
    """
    for change in line.replaced:
        if not is_spec(change.over) or isinstance(change.over, Whole):
            continue
        key, new = f"{change.path}.init_args", change.over["class_path"]
        old, known = change.under.get("init_args") or {}, parameters(new)
        given = [get_nested(content, key) or {} for _, content in line.sources[change.place :]]
        stale = [name for name in old if name in known and not any(name in arguments for arguments in given)]
        if stale:
            where = next(
                origin
                for origin, content in reversed(line.sources[: change.place])
                if stale[0] in (get_nested(content, key) or {})
            )
            flags = " ".join(f"--{change.path}.{name} {old[name]}" for name in stale).replace(".init_args", "")
            raise ConfigError(
                change.path.replace(".init_args", ""),
                f"{new} without {', '.join(stale)}, which {where} gives to {change.under['class_path']}",
                "every argument that the two classes share to be repeated",
                f"Repeat them with the values that you want, such as {flags}; or name a fragment.",
            )


#: callbacks that Lightning refuses to run without a logger
NEED_A_LOGGER = ("LearningRateMonitor", "DeviceStatsMonitor", "ThroughputMonitor")


def check_folders(data: Namespace, predicting: bool) -> None:
    """Refuse folders of data that are not there, before weights are read and anything is decoded.

    Args:
        data: arguments of the data module.
        predicting: whether `predict_root` is read.

    Raises:
        DatasetError: names the flag and the folder, and folders beside it that are spelt alike.
    """
    own = data.get("predict_root") if predicting else None
    names = ["predict_root"] if own else ["root", "feature_cache", "published_features"]
    for name in names:
        folder = data.get(name)
        if folder is None or Path(folder).expanduser().is_dir():
            continue
        folder = Path(folder).expanduser()
        above = next(place for place in folder.absolute().parents if place.is_dir())
        beside = [] if above != folder.absolute().parent else [path.name for path in above.iterdir() if path.is_dir()]
        raise DatasetError(
            f"--data.{name}",
            f"{folder}, which is no folder",
            "an existing folder",
            f"{did_you_mean(folder.name, beside)}"
            + (
                "`avprompt data verify --root X` says what belongs into it; `avprompt quickstart` makes its own data."
                if name == "root"
                else "Correct the path."
            ),
        )


# --- classes are built where an argument declares one, and nowhere else

#: types of arguments whose values are data, whatever a file says
PLAIN = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type(None),
    list,
    tuple,
    dict,
    set,
    frozenset,
    object,
    type,
    os.PathLike,
    pathlib.PurePath,
    enum.Enum,
    datetime.timedelta,
)


@functools.cache
def restrict_parser() -> None:
    """Have the parser build classes for arguments that declare one, not for those that take any value.

    By itself jsonargparse builds whatever class a value names where an argument has no type: a text of a logger would
    run a shell command. Modules that start processes, load pickles and the like cannot be named at all.
    """
    set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=[])


def takes_a_class(declared: Any) -> bool:
    """Whether a type hint declares a class that is built from a configuration.

    >>> takes_a_class(Any), takes_a_class(str | None), takes_a_class(dict[str, Any]), takes_a_class(Callable)
    (False, False, False, False)
    >>> from torch.optim import Optimizer
    >>> takes_a_class(Optimizer | str), takes_a_class(list[Optimizer]), takes_a_class(Callable[..., Optimizer])
    (True, True, True)
    """
    inner = typing.get_args(declared)
    if typing.get_origin(declared) is Callable:
        return bool(inner) and takes_a_class(inner[-1])
    if inner and typing.get_origin(declared) is not typing.Literal:
        return any(takes_a_class(part) for part in inner)
    return (
        inspect.isclass(declared) and declared not in (Any, Callable, *PLAIN) and not issubclass(declared, PLAIN[-4:])
    )


@functools.cache
def declared_arguments(kind: Any) -> dict[str, Any]:
    """Arguments of a class or function with their type hints, as the parser finds them: parents' and forwarded ones
    too."""
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if inspect.isclass(kind) else parser.add_function_arguments
    add(kind, fail_untyped=False, sub_configs=True)
    return {
        action.dest: action._typehint
        for action in parser._actions
        if hasattr(action, "_typehint") and not action.dest.endswith(".help")
    }


def check_classes(config: Any, declared: dict[str, Any]) -> None:
    """Refuse a class where no argument declares one, before any is built.

    Args:
        config: as the parser understood it.
        declared: type hints of its topmost arguments, such as those of `trainer`.

    Raises:
        ConfigError: names the argument and the class.
    """
    for name, value in _entries(config):
        if name in declared and isinstance(declared[name], dict):
            for key, inner in _entries(value):
                _check_value(inner, f"{name}.{key}", declared[name].get(key))
        else:
            _check_value(value, name, declared.get(name))


def _entries(value: Any) -> list[tuple[str, Any]]:
    return list(
        vars(value).items() if isinstance(value, Namespace) else (value.items() if isinstance(value, dict) else ())
    )


def _check_value(value: Any, path: str, declared: Any) -> None:
    entries = dict(_entries(value))
    if isinstance(value, (list, tuple, set)):
        for number, inner in enumerate(value):
            _check_value(inner, f"{path}.{number}", declared)
    elif not isinstance(entries.get("class_path"), str):
        for kind in (declared, *typing.get_args(declared)):
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                check_ranges(kind, entries, f"--{path}.".replace(".init_args", ""))
        for key, inner in entries.items():
            _check_value(inner, f"{path}.{key}", declared)
    else:
        named, given = entries["class_path"], entries.get("init_args")
        if not takes_a_class(declared):
            raise ConfigError(
                path,
                f"class_path: {named}",
                "a plain value: this argument declares no class",
                "Only classes of declared types are built. Remove it, and do not run a stranger's file "
                "before you have read it.",
            )
        module, _, name = named.rpartition(".")
        kind = getattr(importlib.import_module(module), name)  # the parser has imported it
        check_ranges(kind, dict(_entries(given)), f"--{path}.".replace(".init_args", ""))
        nested = [
            (key, inner) for key, inner in _entries(given) if isinstance(inner, (list, tuple, set)) or _entries(inner)
        ]
        hints = declared_arguments(kind) if nested else {}
        for key, inner in nested:
            _check_value(inner, f"{path}.init_args.{key}", hints.get(key))
        extra = entries.get("dict_kwargs")
        if extra:
            taken = inspect.signature(kind).parameters.values()
            if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in taken):
                raise ConfigError(
                    f"{path}.dict_kwargs",
                    list(dict(_entries(extra))),
                    f"none: {named} takes no others",
                    "Remove them, or correct the names of the class's own arguments.",
                )
            _check_value(extra, f"{path}.dict_kwargs", None)
