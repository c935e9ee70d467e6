"""Checks on configurations that the parser lets pass: what it would ignore, keep or override without a word."""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path
from typing import Any

import yaml

from avprompt.errors import ConfigError
from avprompt.media.text import read_text

#: what the data module knows of the model's sizes; the CLI fills it in, and writing it would have no effect
SIZES = ("num_classes", "segments", "video_dim", "mask_size", "vocabulary_size", "class_names")
LINKED = tuple(f"model.{middle}{size}" for size in SIZES for middle in ("init_args.", ""))

Source = tuple[str, dict[str, Any]]


def expand(value: Any) -> Any:
    """A value of a YAML file or flag with `~/` at the beginning of every text in it replaced by the home folder."""
    if isinstance(value, dict):
        return {key: expand(content) for key, content in value.items()}
    if isinstance(value, list):
        return [expand(content) for content in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def expand_flag(arg: str) -> str:
    """A word of the command line likewise, also after `=`, where shells leave it as it is."""
    name, equals, value = arg.partition("=")
    return f"{name}={expand(value)}" if equals and name.startswith("-") else expand(arg)


def read_yaml(path: Path) -> Any:
    """A YAML file with its includes in place: a value that names a YAML file beside it stands for that file's content.

    Raises:
        ConfigError: the file is missing or no YAML.
    """
    if not path.is_file():
        raise ConfigError("--config", path, "an existing YAML file", "Shipped ones are in experiments/.")
    try:
        content = expand(yaml.safe_load(read_text(path, "a YAML file", error=ConfigError)))
    except yaml.YAMLError as error:
        raise ConfigError(path, f"no YAML ({error})", "a YAML file", "Correct the file.") from error
    return _include(content, path.parent)


def _include(node: Any, folder: Path) -> Any:
    if isinstance(node, dict):
        return {key: _include(value, folder) for key, value in node.items()}
    if isinstance(node, list):
        return [_include(value, folder) for value in node]
    if isinstance(node, str) and node.endswith((".yaml", ".yml")) and (folder / node).is_file():
        return read_yaml(folder / node)
    return node


def sources(args: list[str]) -> list[Source]:
    """What every --config file and every flag says, in the order in which they apply: (origin, nested content).

    Raises:
        ConfigError: a value that is no YAML.
    """
    found, queue = [], list(args)
    while queue:
        flag = queue.pop(0)
        if not flag.startswith("-"):
            continue
        name, equals, value = flag.partition("=")
        if not equals:
            if not queue or queue[0].startswith("--"):
                continue
            value = queue.pop(0)
        name = name.lstrip("-")
        if name in ("config", "c"):
            found.append((value, read_yaml(Path(value)) or {}))
            continue
        try:
            content: Any = read_yaml(Path(value)) if value.endswith((".yaml", ".yml")) else expand(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ConfigError(flag, f"no YAML ({error})", "a value in YAML", "Correct it, or quote it.") from error
        for part in reversed(name.removesuffix("+").split(".")):
            content = {part: content}
        found.append((flag, content))
    return found


def check_top_level(found: list[Source], known: set[str]) -> None:
    """Unknown top-level keys of a file are errors even where they are empty.

    Raises:
        ConfigError: names the key and the file.
    """
    for origin, content in found:
        unknown = sorted(set(content) - known) if isinstance(content, dict) else ["not a mapping"]
        if unknown and not origin.startswith("-"):
            raise ConfigError(origin, f"top-level {unknown}", f"keys among {sorted(known)}", "Correct the spelling.")


def get_nested(tree: Any, path: str) -> Any:
    """The value at a dotted path, `None` where there is none."""
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested configuration -> dotted names and plain values."""
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flatten(value, f"{prefix}{key}.").items()}
    value = tree if isinstance(tree, (bool, int, float, str)) or tree is None else str(tree)
    return {prefix.rstrip("."): "none" if value is None else value}


def check_linked(found: list[Source]) -> None:
    """Arguments that are linked from the data module may not be written.

    Raises:
        ConfigError: names the argument and where it stands.
    """
    for origin, content in found:
        for path in LINKED:
            if get_nested(content, path) is not None:
                raise ConfigError(path, f"{get_nested(content, path)} in {origin}", "no value: the data module sets it",
                                  "Remove it; change the data module's own arguments instead.")


def accepts(class_path: str, argument: str) -> bool:
    """Whether a class's constructor has this argument.

    Raises:
        ConfigError: there is no such class.
    """
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError("class_path", class_path, "a class that can be imported", f"Correct it ({error}).") from error
    for kind in inspect.getmro(found):
        if "__init__" in vars(kind):
            parameters = inspect.signature(kind.__init__).parameters
            # a constructor that hands **options on takes its parent's arguments too
            if argument in parameters or all(p.kind != p.VAR_KEYWORD for p in parameters.values()):
                return argument in parameters
    return False


def check_stale(found: list[Source]) -> None:
    """An argument given for one class may not slip into another that replaces it.

    The parser keeps the arguments of the old class that the new one happens to know.

    Raises:
        ConfigError: names class, argument and both origins.
    """
    classes: dict[str, str] = {}
    given: dict[str, dict[str, str]] = {}

    def walk(node: Any, path: str, origin: str) -> None:
        if isinstance(node, str) and path in classes:
            node = {"class_path": node}  # the short form: a class without arguments
        if not isinstance(node, dict):
            return
        arguments, replacement = node.get("init_args") or {}, node.get("class_path")
        if replacement is not None:
            before = classes.get(path)
            if before is not None and before != replacement:
                for argument, where in given.pop(path, {}).items():
                    if argument not in arguments and accepts(replacement, argument):
                        raise ConfigError(
                            f"{path}.init_args.{argument}", f"a value for {before} in {where}, kept for {replacement}",
                            "every argument that both classes have to be given anew",
                            f"Say {argument} beside class_path: {replacement} in {origin}.")
            classes[path] = replacement
        if path in classes:
            given.setdefault(path, {}).update(dict.fromkeys(arguments, origin))
        for key, value in node.items():
            walk(value, f"{path}.{key}".lstrip("."), origin)

    for origin, content in found:
        walk(content, "", origin)
