"""Arguments of classes, read from their source text: a misspelt key is found before torch is imported.

The parser checks everything again, with types. What this module cannot read, such as a class outside of Python files,
it leaves to the parser.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avprompt.configs import get_nested, is_spec, read_arguments
from avprompt.errors import ConfigError, did_you_mean

#: packages whose source is read; others are left to the parser
READ = ("avprompt", "lightning")
#: top-level keys of an experiment, and flags of Lightning's commands
TOP = frozenset(
    {
        "base",
        "config",
        "seed_everything",
        "trainer",
        "model",
        "data",
        "ckpt_path",
        "weights_only",
        "verbose",
        "return_predictions",
        "print_config",
        "help",
        "c",
        "h",
    }
)
TRAINER = "lightning.pytorch.trainer.trainer.Trainer"


@functools.cache
def _file(module: str) -> Path | None:
    """Source of a module, found without importing it or its parents."""
    package, *rest = module.split(".")
    if package not in READ:
        return None
    spec = importlib.util.find_spec(package)  # of a package at the top: imports nothing
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, *rest)
        for found in (path / "__init__.py", path.with_suffix(".py")):
            if found.is_file():
                return found
    if rest[:1] == ["data_modules"]:  # beside src/ in the source tree
        path = Path(__file__).resolve().parents[3].joinpath(*rest)
        return next((found for found in (path / "__init__.py", path.with_suffix(".py")) if found.is_file()), None)
    return None


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _find(class_path: str) -> tuple[str, ast.ClassDef] | None:
    """Module and definition of a class, followed through `from module import Class`."""
    module, _, name = class_path.rpartition(".")
    path = _file(module)
    if path is None:
        return None
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(f"{node.module}.{alias.name}")
    return None


@functools.cache
def arguments(class_path: str) -> frozenset[str] | None:
    """Names of the arguments of a class's constructor, with those of parents that its `**options` may be handed to.

    Args:
        class_path: such as `avprompt.methods.DGSCT`.

    Returns:
        The names, or `None` where the source does not tell.

    >>> sorted(arguments("avprompt.encoders.TinyHTSAT"))
    ['frozen', 'pretrained', 'released_mode']
    >>> arguments("torch.optim.Adam") is None
    True
    """
    found = _find(class_path)
    if found is None:
        return None
    module, node = found
    init = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    own: frozenset[str] = frozenset()
    if init is not None:
        own = frozenset(argument.arg for argument in (*init.args.args[1:], *init.args.kwonlyargs))
        if init.args.kwarg is None:
            return own
    elif any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return None
    for base in node.bases:
        above = arguments(_resolve(module, ast.unparse(base)))
        if above is None:
            return None
        own |= above
    return own if node.bases else (own if init is not None else None)


def _resolve(module: str, name: str) -> str:
    """Path of a name that a module uses for a class."""
    path = _file(module)
    first, _, rest = name.partition(".")
    for node in _tree(path).body if path else []:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == first:
                    return ".".join(filter(None, (node.module, alias.name, rest)))
    return f"{module}.{name}"


def unknown(content: Any, path: str = "") -> Iterator[tuple[str, str, frozenset[str]]]:
    """Keys of a configuration in the long form that no class has: dotted path, class, and the names that it has.

    >>> [found[:2] for found in unknown({"class_path": "avprompt.encoders.TinyHTSAT", "init_args": {"frozn": True}})]
    [('frozn', 'avprompt.encoders.TinyHTSAT')]
    """
    if isinstance(content, list):
        for number, item in enumerate(content):
            yield from unknown(item, f"{path}.{number}" if path else str(number))
    if not isinstance(content, dict):
        return
    inner = content
    if is_spec(content):
        inner = content.get("init_args") or {}
        names = arguments(content["class_path"])
        yield from (
            (f"{path}.{key}".lstrip("."), content["class_path"], names)
            for key in inner
            if names is not None and key not in names
        )
    for key, value in inner.items():
        yield from unknown(value, f"{path}.{key}".lstrip("."))


def check_keys(args: list[str]) -> None:
    """Refuse a key or flag that no class has, before anything slow is imported.

    Args:
        args: words of the command line, with or without the command.

    Raises:
        ConfigError: names the key, where it stands, and names that are spelt alike; or see `read_arguments`.

    >>> check_keys(["fit", "--config", "quickstart", "--trainer.max_epoch", "2"])
    Traceback (most recent call last):
        ...
    avprompt.errors.ConfigError: --trainer.max_epoch: got no such argument; expected an argument of Trainer. Did you mean \
max_epochs or min_epochs or max_steps?
    """
    line = read_arguments(args)
    trainer = arguments(TRAINER) or frozenset()
    found = [(key, "", TOP) for key in line.content if key not in TOP]
    found += [
        (f"trainer.{key}", TRAINER, trainer)
        for key in get_nested(line.content, "trainer") or {}
        if trainer and key not in trainer
    ]
    for key, owner, names in [*found, *unknown(line.content)]:
        origin = next((origin for origin, content in reversed(line.sources) if _stands(content, key)), "")
        where = "" if origin.startswith("-") or not origin else f" in {origin}"
        word = key.rpartition(".")[2]
        if not owner:
            raise ConfigError(
                f"--{key}",
                f"no such flag{where}",
                "a flag of this command",
                did_you_mean(word, names).strip() or "`avprompt fit --help` lists the flags.",
            )
        raise ConfigError(
            f"--{key}",
            f"no such argument{where}",
            f"an argument of {owner.rpartition('.')[2]}",
            did_you_mean(word, names).strip() or f"It has {', '.join(sorted(names))}.",
        )


def _stands(content: Any, key: str) -> bool:
    """Whether a source gives a value to a dotted key without `init_args`."""
    for part in key.split("."):
        if isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
            continue
        if not isinstance(content, dict):
            return False
        inner = content.get("init_args") if isinstance(content.get("init_args"), dict) else {}
        if part not in content and part not in inner:
            return False
        content = inner[part] if part in inner else content[part]
    return True
