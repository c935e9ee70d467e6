"""`avprompt list`: the methods, encoders, tasks, datasets and experiments that there are, from their registries."""

from __future__ import annotations

import importlib
import inspect
import json
from typing import Any

from avprompt.cli.parsing import PlainParser
from avprompt.configs import EXPERIMENTS

KINDS = ("methods", "encoders", "tasks", "datasets", "experiments")


def described(package: str, base: type | tuple[type, ...]) -> list[dict[str, Any]]:
    """Public classes of a package with the first sentence of their docstrings.

    Args:
        package: below `avprompt`.
        base: class that they are of.
    """
    module = importlib.import_module(f"avprompt.{package}")
    kinds = [
        kind
        for name in module.__all__
        if inspect.isclass(kind := getattr(module, name))
        and issubclass(kind, base)
        and not inspect.isabstract(kind)
        and kind not in (base if isinstance(base, tuple) else (base,))
    ]
    return [
        {
            "name": kind.__name__,
            "class_path": f"avprompt.{package}.{kind.__name__}",
            "about": " ".join(inspect.getdoc(kind).split("\n\n")[0].split()),
        }
        for kind in kinds
    ]


def entries(kind: str) -> list[dict[str, Any]]:
    """What there is of a kind.

    Args:
        kind: one of `KINDS`.

    Example:
        >>> [entry["name"] for entry in entries("datasets")][:2]
        ['ave', 'kinetics_sounds']
    """
    if kind == "methods":
        from avprompt.methods import PromptMethod

        return described("methods", PromptMethod)
    if kind == "encoders":
        from avprompt.encoders import FrozenEncoder
        from avprompt.encoders.text import TextTower

        return described("encoders", (FrozenEncoder, TextTower))
    if kind == "tasks":
        from avprompt.tasks import AVPromptTask

        return described("tasks", AVPromptTask)
    if kind == "datasets":
        from avprompt.datasets.registry import DATASETS

        return [
            {"name": name, "about": f"{info.name}: {', '.join(info.published.files)}"}
            for name, info in DATASETS.items()
        ]
    from avprompt.cli.experiments import COLUMNS, row
    from avprompt.reports.published import read_published

    figures = read_published()
    rows = [dict(zip(COLUMNS, (path.stem, *row(path, figures)))) for path in sorted(EXPERIMENTS.glob("*.yaml"))]
    return [
        {
            "name": found["experiment"],
            "about": f"{found['task']}, {found['method']}, {found['encoders']}"
            + (f"; published {found['published']}" if found["published"] else ""),
            **found,
        }
        for found in rows
    ]


def listing(args: list[str]) -> None:
    """`avprompt list [methods|encoders|tasks|datasets|experiments] [--json]`."""
    parser = PlainParser(
        prog="avprompt list",
        allow_abbrev=False,
        description=(
            "List what there is. A name of a class stands for it in YAML, such as --model.backbone.prompts LAVISH."
        ),
    )
    parser.add_argument("kind", nargs="?", choices=KINDS, help="of what is listed; all without it")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(args)
    found = {kind: entries(kind) for kind in ([given.kind] if given.kind else KINDS)}
    if given.json:
        print(json.dumps(found))
        return
    for kind, items in found.items():
        width = max(len(item["name"]) for item in items)
        print(f"{kind} ({len(items)})")
        for item in items:
            print(f"  {item['name']:<{width}}  {item['about']}")
        print()
