"""`avprompt experiments`: which experiments ship, what one says, and a copy of it to change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from avprompt.cli.parsing import PlainParser
from avprompt.configs import EXPERIMENTS, find_file, get_nested, is_spec, load_class, parameters, read_yaml, spec_of
from avprompt.errors import ConfigError

if TYPE_CHECKING:
    from avprompt.reports.published import Figure

SIDES = ("visual", "audio")
COLUMNS = ("experiment", "task", "method", "encoders", "published")


def experiments(args: list[str]) -> None:
    """List the experiments that ship, or print or copy one of them with all that it inherits.

    Args:
        args: nothing, or a name and `--show` or `--copy [DIR]`.

    Raises:
        ConfigError: no experiment has this name, or there is a file of this name already.
    """
    parser = PlainParser(
        prog="avprompt experiments",
        allow_abbrev=False,
        description="List the experiments that ship: task, method, encoders, and the published figure in percent. With "
        "a name, print or copy that experiment. `avprompt fit --config NAME` runs it from any folder; a file NAME.yaml "
        "in the current folder comes first.",
    )
    parser.add_argument("name", nargs="?", help="of an experiment, such as ave_dgsct")
    parser.add_argument("--show", action="store_true", help="print it with all that it inherits, as a name alone does")
    parser.add_argument(
        "--copy", nargs="?", const=".", metavar="DIR", help="write it to DIR/NAME.yaml, by default here"
    )
    given = parser.parse_args(args)
    if given.name is None:
        if given.show or given.copy:
            parser.error("--show and --copy need the name of an experiment")
        from avprompt.reports.published import read_published

        figures = read_published()
        print(table([(path.stem, *row(path, figures)) for path in sorted(EXPERIMENTS.glob("*.yaml"))]))
        return
    path = find_file(given.name, EXPERIMENTS, "avprompt experiments", places=(EXPERIMENTS,))
    text = resolved(path)
    if given.copy is None:
        print(text, end="")
        return
    target = Path(given.copy) / path.name
    if target.exists():
        raise ConfigError("--copy", f"{target}, which exists", "a folder without such a file", "Choose another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"{target}: run it with `avprompt fit --config {target}`")


def resolved(path: Path) -> str:
    """An experiment as one file that needs no other: its header, and all that it inherits.

    Args:
        path: of the experiment.
    """
    import yaml

    lines = path.read_text(encoding="utf-8").split("\n")
    header = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    content = yaml.safe_dump(read_yaml(path), sort_keys=False, allow_unicode=True, width=120)
    return "\n".join([*header, content])


def row(path: Path, figures: list[Figure]) -> tuple[str, ...]:
    """Task, method, encoders and published figure of an experiment.

    Args:
        path: of the experiment.
        figures: all that are published.
    """
    from avprompt.reports.settings import encoder_name

    content = read_yaml(path)
    arguments = content["model"]["init_args"]
    backbone = arguments["backbone"]["init_args"]
    visual, audio = (encoder_name(with_defaults(spec_of(backbone[side]))).partition(",")[0] for side in SIDES)
    task, method, texts = (
        get_nested(spec_of(spec), "class_path") or ""
        for spec in (content["model"], backbone.get("prompts"), arguments.get("visual_texts"))
    )
    names = [name.rpartition(".")[2] for name in (task, method, texts)]
    method = names[2] if names[1] == "NoPrompts" and names[2] not in ("", "FixedEmbeddings") else names[1]
    if "head" in arguments and method in ("", "NoPrompts"):
        method = spec_of(arguments["head"])["class_path"].rpartition(".")[2]
    encoders = f"{visual} for both" if audio == "shared" else f"{visual} + {audio}"
    return names[0], method, encoders, published(path.stem, content, figures)


def published(name: str, content: dict[str, Any], figures: list[Figure]) -> str:
    """The published figure of the metric that an experiment selects by, empty where none is known.

    Args:
        name: of the experiment, which begins with its task.
        content: of the experiment, in the long form.
        figures: all that are published.
    """
    from avprompt.reports.settings import encoder_name

    config = {part: with_defaults(content[part]) for part in ("model", "data")}
    backbone = get_nested(config, "model.init_args.backbone.init_args")
    visual, audio = (encoder_name(spec_of(backbone[side])).partition(",")[0] for side in SIDES)
    audio = f"{visual} (shared)" if audio == "shared" else audio
    task: Any = load_class(content["model"]["class_path"])
    metrics = task.monitor.removeprefix("val_"), "accuracy"
    found = [
        figure
        for figure in figures
        if (name + "_").startswith(f"{figure.task}_")
        and figure.metric in metrics
        and figure.value is not None
        and (not figure.row or "shot" in figure.row)
        and visual.startswith(figure.visual)
        and audio.startswith(figure.audio)
        and figure.describes(config)
    ]
    best = max(found, key=lambda figure: (len(figure.task), len(figure.settings.split())), default=None)
    return "" if best is None else f"{best.metric} {best.value:g}"


def with_defaults(content: Any) -> Any:
    """A configuration with the defaults of avprompt's own classes.

    Args:
        content: in the long form.
    """
    if not isinstance(content, dict):
        return content
    if not is_spec(content) or not content["class_path"].startswith("avprompt."):
        return {key: with_defaults(value) for key, value in content.items()}
    defaults = {
        name: parameter.default
        for name, parameter in parameters(content["class_path"]).items()
        if parameter.default is not parameter.empty
    }
    return {**content, "init_args": {**defaults, **with_defaults(content.get("init_args") or {})}}


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows below the names of the columns, aligned.

    Args:
        rows: cells, as many as `COLUMNS`.
    """
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in (COLUMNS, *rows)
    )
