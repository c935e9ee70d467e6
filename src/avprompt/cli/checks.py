"""Checks on configurations that the parser lets pass: what it would ignore, keep or override without a word."""

from __future__ import annotations

from avprompt.configs import CommandLine, Source, Whole, get_nested, is_spec, parameters
from avprompt.errors import ConfigError

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
                raise ConfigError(path, f"{get_nested(content, path)} in {origin}", "no value: the data module sets it",
                                  "Remove it; change the data module's own arguments instead.")


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
        given = [get_nested(content, key) or {} for _, content in line.sources[change.place:]]
        stale = [name for name in old if name in known and not any(name in arguments for arguments in given)]
        if stale:
            where = next(origin for origin, content in reversed(line.sources[:change.place])
                         if stale[0] in (get_nested(content, key) or {}))
            flags = " ".join(f"--{change.path}.{name} {old[name]}" for name in stale).replace(".init_args", "")
            raise ConfigError(change.path.replace(".init_args", ""),
                              f"{new} without {', '.join(stale)}, which {where} gives to {change.under['class_path']}",
                              "every argument that the two classes share to be repeated",
                              f"Repeat them with the values that you want, such as {flags}; or name a fragment.")
