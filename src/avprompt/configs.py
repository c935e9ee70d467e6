"""Experiments and fragments: where they are found, what they inherit, and how flags change them.

An experiment is a YAML file. It may be written as changes to other files:

- `base:` names one file or a list of files, which the file overrides; later files override earlier ones. A name such
  as `ave_dgsct` is looked up beside the file and then among the experiments and fragments that ship; a path works too.
- A value that ends in `.yaml` stands for the content of that file, a *fragment*, looked up in the same places. A
  mapping with its own `base:` is a fragment with changes.
- Keys are written as flags are: `data.shots: 4` at the top of a file, and arguments of a class directly beside its
  `class_path`, without `init_args`.
- `null` deletes what the base says, so that the class's own default applies. A key that the base does not have keeps
  the value `null`.
- Another `class_path`, or a fragment that names a class, drops all arguments of the class that it replaces. A fragment
  without a `class_path` holds arguments for the class that the experiment names.

Everything else merges key by key; lists are replaced. The same rules hold for further `--config` files and for flags,
except that `null` there is the value `null`.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from avprompt.errors import CheckpointError, ConfigError, did_you_mean
from avprompt.media.text import read_text

#: (file or flag, nested content)
Source = tuple[str, dict[str, Any]]
SUFFIXES = (".yaml", ".yml")
SPEC = ("class_path", "init_args", "dict_kwargs")
#: value of `--ckpt_path` for a network as it is at the start
UNTRAINED = "none"
#: values of `--ckpt_path` that are no files
CHECKPOINTS = ("best", "last", "hpc", "registry", "null", UNTRAINED)
#: flags of the parser itself, which say nothing of a configuration
PARSER_FLAGS = ("help", "h", "print_config", "print_completion", "print_shtab")


def shipped(name: str) -> Path:
    """The folder `experiments` or `lightning_configs`: inside an installed package, or in the source tree."""
    package = Path(__file__).parent
    return next((folder for folder in (package / name, package.parents[1] / name) if folder.is_dir()), package / name)


EXPERIMENTS, FRAGMENTS = shipped("experiments"), shipped("lightning_configs")


def find_file(
    name: str | Path,
    folder: Path | None = None,
    subject: str = "--config",
    skip: tuple[Path, ...] = (),
    places: tuple[Path, ...] = (EXPERIMENTS, FRAGMENTS),
) -> Path:
    """The YAML file that a name or path means; `.yaml` may be left out.

    A file in `folder` comes first, then one in the folders experiments/ and lightning_configs/ of the current folder,
    then the one that ships.

    Args:
        name: such as `ave_dgsct`, `experiments/ave_dgsct.yaml`, `encoders/htsat.yaml`.
        folder: that paths are relative to; `None` is the current folder.
        subject: what names the file, for the message.
        skip: files that are not meant: a file that is named like its base.
        places: folders of shipped files.

    Raises:
        ConfigError: there is no such file; suggests names that are spelt alike.

    >>> find_file("ave_dgsct").name
    'ave_dgsct.yaml'
    """
    path = Path(expand_home(str(name)))
    below = path.relative_to(path.parts[0]) if path.parts[:1] in (("experiments",), ("lightning_configs",)) else path
    here = () if folder else tuple(Path(place.name) for place in places)
    candidates = [(folder or Path()) / path, *(place / below for place in (*here, *places))]
    for candidate in candidates:
        for file in (candidate, candidate.with_name(candidate.name + ".yaml")) if candidate.name else ():
            if file.is_file() and file.resolve() not in skip:
                return file
    names = {str(file.relative_to(place).with_suffix("")) for place in places for file in place.rglob("*.yaml")}
    hint = did_you_mean(below.with_suffix("") if below.suffix in SUFFIXES else below, names)
    raise ConfigError(
        subject,
        name,
        "an existing YAML file, or the name of one that ships",
        f"{hint}`avprompt experiments` lists the experiments.",
    )


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # C where it was built
    """Reads numbers as the parser of the command line does: 1e-3 is a number, a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in entries if not entry[0].endswith("timestamp")]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, subject: str | Path) -> Any:
    """YAML text as it stands, with `~/` at the beginning of texts replaced by the home folder.

    Raises:
        ConfigError: it is no YAML; names `subject`.
    """
    try:
        return expand_home(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        raise ConfigError(subject, f"no YAML ({error})", "a value in YAML", "Correct it, or quote it.") from error


def load_yaml(path: Path) -> Any:
    """A YAML file as it stands, without bases and fragments.

    Raises:
        ConfigError: it is no YAML, or not UTF-8.
    """
    return parse_yaml(read_text(path, "a YAML file", error=ConfigError), path)


def expand_home(value: Any) -> Any:
    """A value of a YAML file or flag with `~/` at the beginning of every text in it replaced by the home folder."""
    if isinstance(value, dict):
        return {key: expand_home(content) for key, content in value.items()}
    if isinstance(value, list):
        return [expand_home(content) for content in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def expand_flag(arg: str) -> str:
    """A word of the command line likewise, also after `=`, where shells leave it as it is."""
    name, equals, value = arg.partition("=")
    return f"{name}={expand_home(value)}" if equals and name.startswith("-") else expand_home(arg)


def read_yaml(path: Path | str) -> Any:
    """A YAML file with all that it inherits: bases below it, fragments in place, classes in the long form.

    Args:
        path: of a file, or the name of one that ships, see `find_file`.

    Raises:
        ConfigError: a file is missing or no YAML, a base is no name or inherits from itself, or a mapping changes
            something that is none; names the file and the key.

    >>> read_yaml("ave_dgsct")["model"]["class_path"]
    'avprompt.tasks.AVE'
    """
    return merge(None, _read(find_file(path), (), None))


@dataclass(frozen=True)
class Place:
    """Where values stand.

    Args:
        origin: file or flag, for messages.
        folder: that file names are relative to; `None` is the current folder.
        stack: files that are being read, the innermost last.
        file: whether it is a file, whose `null` deletes what its bases say, or the command line.
    """

    origin: str
    folder: Path | None = None
    stack: tuple[Path, ...] = ()
    file: bool = True

    def read(self, name: str, key: str, under: Any = None) -> Any:
        """What another file says, in the long form."""
        subject = f"{self.origin}: {key}" if key else self.origin
        return _read(find_file(name, self.folder, subject, self.stack[-1:]), self.stack, under)

    def lay(self, over: dict[str, Any], under: Any, key: str = "") -> Any:
        """What a mapping and its bases say together, in the long form."""
        over = dict(over)
        found: dict[str, Any] = {}
        bases = over.pop("base", None)
        bases = bases if isinstance(bases, list) else [] if bases is None else [bases]
        subject = f"{key}.base".removeprefix(".")
        if not all(isinstance(base, str) for base in bases):
            raise ConfigError(
                f"{self.origin}: {subject}", bases, "a name, a path, or a list of them", "Such as `base: ave_dgsct`."
            )
        for base in bases:
            content = self.read(base, subject, merge(under, found))
            if not isinstance(content, dict):
                raise ConfigError(
                    f"{self.origin}: {subject}",
                    f"{base}, which holds no mapping",
                    "files with keys and values",
                    "Name another file.",
                )
            found = merge(found, content, keep=True)
        return merge(found, expand(over, merge(under, found), self, key), delete=self.file, keep=True)


def _read(path: Path, stack: tuple[Path, ...], under: Any) -> Any:
    """What a file says, in the long form; `under` is what it is laid over, `stack` the files that are being read."""
    if path.resolve() in stack:
        chain = " -> ".join(file.name for file in (*stack[stack.index(path.resolve()) :], path))
        raise ConfigError(f"{path}: base", chain, "files that do not inherit from themselves", "Remove one of them.")
    content = load_yaml(path)
    place = Place(str(path), path.parent, (*stack, path.resolve()))
    return place.lay(nest(content), under) if isinstance(content, dict) else expand(content, None, place)


def nest(content: dict[Any, Any]) -> dict[str, Any]:
    """Dotted keys at the top of a file -> nested mappings, later lines over earlier ones.

    >>> nest({"data.shots": 4, "data.seed": 1})
    {'data': {'shots': 4, 'seed': 1}}
    """
    found: dict[str, Any] = {}
    for key, value in content.items():
        *parents, last = str(key).split(".")
        node = found
        for part in parents:
            inner = node.get(part)
            if isinstance(inner, str):  # a fragment or a class whose arguments follow
                inner = {"base" if inner.endswith(SUFFIXES) else "class_path": inner}
            node[part] = node = inner if isinstance(inner, dict) else {}
        node[last] = merge(node.get(last), value) if isinstance(value, dict) else value
    return found


class Whole(dict):
    """A class as a fragment describes it: it replaces what it is laid over instead of changing it."""


def expand(over: Any, under: Any, place: Place, key: str = "") -> Any:
    """What a file or flag says in the long form: fragments in place, arguments of classes below `init_args`.

    Args:
        over: content as written.
        under: what it is laid over; tells which values are classes.
        place: where it stands.
        key: dotted path of this value, for messages.

    Raises:
        ConfigError: see `read_yaml`.
    """
    if isinstance(over, str):
        if over.endswith(SUFFIXES) and not over.startswith("-"):  # which is a flag of a sweep
            over = place.read(over, key)
            return Whole(over) if is_spec(over) else over
        name = full_name(over, under) if is_spec(under) else ""
        return {"class_path": name} if "." in name else over
    if isinstance(over, list):
        return [expand(item, None, place, key) for item in over]
    if not isinstance(over, dict):
        return over
    if "base" in over:
        over = place.lay(over, None, key)
        return Whole(over) if is_spec(over) else over
    under = spec_of(under[-1] if isinstance(under, list) and under and not place.file else under)
    if place.file and "class_path" not in over and not (under is None or isinstance(under, dict)):
        raise ConfigError(
            f"{place.origin}: {key}",
            f"keys {sorted(map(str, over))} over {under}",
            "a value that can take its place",
            "Give a class_path too, or the whole value.",
        )
    if "class_path" not in over and not is_spec(under):
        below = under if isinstance(under, dict) else {}  # a class by its name alone, which the parser looks up
        return {
            name: expand(value, below.get(name), place, f"{key}.{name}".lstrip(".")) for name, value in over.items()
        }
    found: dict[str, Any] = {}
    if "class_path" in over:
        found["class_path"] = full_name(over["class_path"], under)
    below = under if isinstance(under, dict) and not changes(under, found) else {}
    arguments = long_form(over).get("init_args", {})
    if arguments or "init_args" in over:
        owner, known = found.get("class_path", below.get("class_path")), long_form(below).get("init_args", {})
        found["init_args"] = {}
        for name, value in arguments.items():
            plain = isinstance(value, dict) and not {"class_path", "base"} & value.keys()
            inner = default_class(owner, name) if plain and name not in known else known.get(name)
            found["init_args"][name] = expand(value, inner, place, f"{key}.{name}")
    if "dict_kwargs" in over:
        found["dict_kwargs"] = over["dict_kwargs"]
    return found


def merge(under: Any, over: Any, delete: bool = False, keep: bool = False) -> Any:
    """One content in the long form laid over another: the one mechanism behind bases, `--config` files and flags.

    Args:
        under: content, left as it is.
        over: content that wins.
        delete: `null` removes a key that `under` has, instead of being its value.
        keep: leave marks of `Whole` in place, for what is laid over more.

    >>> merge({"class_path": "a.B", "init_args": {"x": 1}}, {"class_path": "a.C", "init_args": {"y": 2}})
    {'class_path': 'a.C', 'init_args': {'y': 2}}
    >>> merge({"x": 1, "y": 2}, {"x": None}, delete=True)
    {'y': 2}
    """
    if isinstance(over, list):
        return [merge(None, item) for item in over]
    if not isinstance(over, dict):
        return over
    if isinstance(under, list) and under and "class_path" not in over:  # as for the parser: of the last item
        return [*under[:-1], merge(under[-1], over)]
    under = spec_of(under)
    if is_spec(over) and isinstance(under, dict) and not is_spec(under):  # arguments that waited for their class
        under = long_form(under)
    if isinstance(over, Whole) or changes(under, over) or not isinstance(under, dict):
        under = {}
    found = (Whole if keep and (isinstance(over, Whole) or isinstance(under, Whole)) else dict)(
        {"class_path": over["class_path"], **under} if is_spec(over) else under
    )
    for key, value in over.items():
        if value is None and delete and key in found:
            del found[key]
        else:
            found[key] = merge(found.get(key), value, delete, keep)
    return found


def long_form(value: dict[str, Any]) -> dict[str, Any]:
    """A class with arguments beside its `class_path` -> with all of them below `init_args`."""
    short = {name: inner for name, inner in value.items() if name not in SPEC}
    arguments = {**short, **(value.get("init_args") or {})}
    return {**{name: value[name] for name in SPEC if name in value}, **({"init_args": arguments} if arguments else {})}


def is_spec(value: Any) -> bool:
    """Whether a value describes a class: a mapping with a `class_path`."""
    return isinstance(value, dict) and isinstance(value.get("class_path"), str)


def spec_of(value: Any) -> Any:
    """The path of a class alone -> a mapping; other values as they are."""
    named = isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value)
    return {"class_path": value} if named else value


def changes(under: Any, over: Any) -> bool:
    """Whether `over` names another class than `under`."""
    return is_spec(under) and is_spec(over) and under["class_path"] != over["class_path"]


def full_name(name: str, under: Any) -> str:
    """The path of a class that is named without its module, as the parser finds it: beside the one that it replaces,
    or beside what that one extends.

    >>> full_name("NoPrompts", {"class_path": "avprompt.methods.DGSCT"})
    'avprompt.methods.NoPrompts'
    >>> full_name("CSVLogger", {"class_path": "avprompt.callbacks.GroupedTensorBoard"})
    'lightning.pytorch.loggers.CSVLogger'
    """
    if "." in name or not is_spec(under):
        return name
    places = [under["class_path"].rpartition(".")[0]]
    for base in load_class(under["class_path"]).__bases__:  # a class of a library that the suite's own one extends
        parts = base.__module__.split(".")
        places += [".".join(parts[:depth]) for depth in range(len(parts), 1, -1)]
    for place in places:
        if inspect.isclass(getattr(_module(f"{place}.{name}"), name, None)):
            return f"{place}.{name}"
    return name


def default_class(owner: str | None, argument: str) -> str | None:
    """Path of the class that is a constructor's default for an argument, `None` where there is none."""
    found = parameters(owner).get(argument) if owner else None
    default = None if found is None else found.default
    return (
        f"{default.__module__}.{default.__qualname__}"
        if inspect.isclass(default) and (default is not inspect.Parameter.empty)
        else None
    )


def parameters(class_path: str) -> dict[str, inspect.Parameter]:
    """Arguments of a class's constructor by name, with those of the parents that its `**options` are handed to.

    Raises:
        ConfigError: there is no such class.
    """
    found: dict[str, inspect.Parameter] = {}
    for kind in inspect.getmro(load_class(class_path)):
        if "__init__" in vars(kind):
            own = dict(inspect.signature(vars(kind)["__init__"]).parameters)
            found = {**own, **found}
            if all(parameter.kind != parameter.VAR_KEYWORD for parameter in own.values()):
                break
    return found


def load_class(class_path: str) -> type:
    """The class at a path.

    Raises:
        ConfigError: there is none.
    """
    module = _module(class_path)
    name = class_path.rpartition(".")[2]
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        raise ConfigError(
            "class_path",
            class_path,
            "a class that can be imported",
            f"{did_you_mean(name, getattr(module, '__all__', vars(module)))}Correct the spelling.",
        )
    return found


def _module(class_path: str) -> Any:
    try:
        return importlib.import_module(class_path.rpartition(".")[0])
    except (ImportError, ValueError) as error:
        raise ConfigError("class_path", class_path, "a class that can be imported", f"Correct it ({error}).") from error


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


@dataclass(frozen=True)
class Replaced:
    """A class that a later source replaces.

    Args:
        path: dotted, of the class.
        under: description that is dropped.
        over: what takes its place.
        place: of the source that says so, among `CommandLine.sources`.
    """

    path: str
    under: dict[str, Any]
    over: Any
    place: int


@dataclass
class CommandLine:
    """A command line, understood as the parser understands it.

    Args:
        sources: what each `--config` file and each flag says in the long form, in the order in which they apply.
        content: all of them merged.
        replaced: classes that a later source replaced.
        arguments: for the parser: files with all that they inherit, and nothing of a class that was replaced.
    """

    sources: list[Source] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)
    replaced: list[Replaced] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)


def read_arguments(args: list[str]) -> CommandLine:
    """Read `--config X` and flags in any order, long or short.

    Raises:
        ConfigError: see `read_yaml`; a flag's value is no YAML, or names a file that is not there.

    >>> line = read_arguments(["--config", "ave_dgsct", "--model.backbone.prompts.spatial", "false"])
    >>> get_nested(line.content, "model.init_args.backbone.init_args.prompts.init_args.spatial")
    False
    """
    line = CommandLine()
    items: list[tuple[Any, list[str] | None]] = []  # content, and the words of a flag that the parser gets as they are
    for name, value, words in _split(args):
        if name is None:
            items.append((None, words))
            continue
        if name in ("config", "c"):
            path = find_file(value)
            origin, content, words = str(path), _read(path, (), line.content) or {}, None
        else:
            origin, content, words = _flag(name, value, words, line.content)
        line.sources.append((origin, copy.deepcopy(content)))
        if not isinstance(content, dict):
            continue
        for key, under, over in _replacements(line.content, content):
            line.replaced.append(Replaced(".".join(key), under, over, len(line.sources) - 1))
            for earlier, _ in items:
                _remove(earlier, key)
        items.append((content, words))
        line.content = merge(line.content, content)
    for content, words in items:
        if words is None:
            text = yaml.safe_dump(merge(None, content), sort_keys=False, allow_unicode=True, width=1000)
            line.arguments += [f"--config={text}"] if content else []
        elif content is None or not _empty(content):
            line.arguments += words
    return line


def check_files(args: list[str]) -> None:
    """Refuse files that are not there, before anything slow is imported.

    Raises:
        ConfigError: a `--config` names no YAML file.
        CheckpointError: `--ckpt_path` names no file.

    >>> check_files(["--config", "ave_dgsct", "--ckpt_path", "best"])
    """
    for name, value, _ in _split(args):
        if name in ("config", "c"):
            find_file(value)
        elif name == "ckpt_path" and value not in CHECKPOINTS and not (path := Path(expand_home(value))).is_file():
            raise CheckpointError(path, "no such file", "a checkpoint", "Check the path given to --ckpt_path.")


def sources(args: list[str]) -> list[Source]:
    """What every `--config` file and every flag says, in the order in which they apply, see `CommandLine`."""
    return read_arguments(args).sources


def _split(args: list[str]) -> Iterator[tuple[str | None, str, list[str]]]:
    """Name and value of every flag, `None` for words that say nothing of a configuration, and the words themselves."""
    queue = list(args)
    while queue:
        flag = queue.pop(0)
        name, equals, value = flag.lstrip("-").partition("=")
        if not flag.startswith("-") or name in PARSER_FLAGS or name.endswith(".help"):
            yield None, "", [flag]
        elif equals:
            yield name, value, [flag]
        elif not queue or queue[0].startswith("--"):
            yield None, "", [flag]
        else:
            yield name, queue[0], [flag, queue.pop(0)]


def _flag(name: str, value: str, words: list[str], under: dict[str, Any]) -> tuple[str, Any, list[str] | None]:
    """Origin and content of a flag, and its words for the parser; `None` where its content is for the parser.

    Its value may be a fragment: a file, `<folder>/<name>`, or a name in the folder that is called like the key.
    """
    flag, parts, appends = f"--{name}", name.removesuffix("+").split("."), name.endswith("+")
    places = [
        folder / below
        for folder in (Path(FRAGMENTS.name), FRAGMENTS)
        for below in (f"{value}.yaml", f"{parts[-1]}/{value}.yaml")
        if re.fullmatch(r"\w+(/\w+)?", value)
    ]
    file = value if value.endswith(SUFFIXES) else next((str(place) for place in places if place.is_file()), None)
    if file is None and parts == ["trainer"] and re.fullmatch(r"\w+", value):
        find_file(f"trainer/{value}", subject=flag)  # which names those that are spelt alike
    given = content = file or parse_yaml(value, flag)
    if appends:
        content = [*(get_nested(under, ".".join(parts)) or []), content]
    for part in reversed(parts):
        content = {part: content}
    content = expand(content, under, Place(flag, file=False))
    if file is None and not isinstance(given, dict):
        return flag, content, words
    return flag, content, None


def _replacements(under: Any, over: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Paths of classes in `under` that `over` replaces, with both descriptions."""
    if is_spec(under) and (not isinstance(over, dict) or isinstance(over, Whole) or changes(under, over)):
        yield path, under, over
    elif isinstance(under, dict) and isinstance(over, dict):
        for key in under.keys() & over.keys():
            yield from _replacements(under[key], over[key], (*path, key))


def _remove(tree: Any, path: tuple[str, ...]) -> None:
    """Delete the value at a path, if there is one."""
    for part in path[:-1]:
        tree = tree.get(part) if isinstance(tree, dict) else None
    if isinstance(tree, dict):
        tree.pop(path[-1], None)


def _empty(tree: Any) -> bool:
    """Whether nothing is left of a flag."""
    return isinstance(tree, dict) and all(_empty(value) for value in tree.values())
