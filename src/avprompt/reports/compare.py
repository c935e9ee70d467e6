"""`avprompt compare`: finished runs in one table for each task, seeds grouped, beside published figures.

Runs whose settings are the same but for the seed are one variant. Every figure carries a mark, a letter that stands for
data, encoders and protocol: only figures with the same mark were measured under the same conditions. Rows on the same
data by the same protocol are tested against each other, see `avprompt.reports.significance`.
"""

from __future__ import annotations

from pathlib import Path

from avprompt.errors import ArgumentError
from avprompt.files import write_whole
from avprompt.plots.saving import check_formats, save_figure
from avprompt.reports.published import Figure, read_published
from avprompt.reports.rendering import html_page, latex, markdown, write_csv
from avprompt.reports.runs import read_results, read_runs
from avprompt.reports.size_plot import size_figure
from avprompt.reports.tables import drop_empty, long_rows, metrics_of, published_tables, tables
from avprompt.reports.variants import Variant, gather
from avprompt.reports.verdicts import (
    PAIR_COLUMNS,
    headline,
    pair_rows,
    paired_tests,
    pairs_table,
    power_table,
    untested,
)


def source_of(part: str, figures: list[Figure]) -> str:
    """The one source of published percentages that has a text in its name, or that is the text.

    Raises:
        ArgumentError: none has it, or several.

    Example:
        >>> source_of("poster (BMVC 2025), table 1", read_published())
        'AV-STFP poster (BMVC 2025), table 1'
    """
    known = list(dict.fromkeys(figure.source for figure in figures if figure.unit == "percent"))
    found = [source for source in known if source == part] or [source for source in known if part in source]
    if len(found) != 1:
        raise ArgumentError(
            "table",
            part,
            f"a part of the name of one of: {'; '.join(found or known)}",
            "Write more of its name." if found else "Correct it.",
        )
    return found[0]


def compare(
    folders: list[Path],
    csv_file: Path | None = None,
    out: Path | None = None,
    tensorboard: Path | None = None,
    pairs: bool = False,
    power: bool = False,
    table: str | None = None,
    format: str = "png",
) -> None:
    """Print finished runs in one table for each task: seeds grouped, beside published figures, parameters, time,
    memory; then paired tests of the rows.

    Runs whose settings are the same but for the seed are one variant. Variants of a published ablation stand in its
    order. Every figure has a mark that stands for data, encoders and protocol, explained below the table. Rows are
    tested against the best one over the seeds and clips that they share; one that is not told apart from it says so.
    Evaluations of a part of a split are marked and not tested.

    Args:
        folders: searched for result.json.
        csv_file: also write there each run's metrics, parameters, seed, epochs and seconds.
        out: also write there compare.csv (all metrics), pairs.csv (all tests), compare.md, compare.tex and
            compare.html, and for each task a plot of its main metric over trainable parameters, <task>-size.png.
        tensorboard: also write there, for `tensorboard --logdir`, hyper-parameters, curves and bars of all variants.
        pairs: show the tests of every two rows, not only of each with the best one.
        power: also show how many seeds or clips it takes to tell two rows apart, at the spread that was seen.
        table: show this published table instead, every row as printed and ours beside, such as 'DG-SCT (NeurIPS 2023),
            table 1'; a part of its name that no other table has will do.
        format: of the plots: png, pdf, svg, or several: pdf,svg.

    Raises:
        ArgumentError: no published table, or several, have `table` in their names; an unknown format.
        DatasetError: there is no result in any folder, or a broken outcomes.csv.
    """
    formats = check_formats(format)
    figures, runs = read_published(), read_runs(folders)
    variants, tested, built = gather(runs, figures), [], []
    plotted: dict[str, tuple[list[Variant], str]] = {}
    if table is not None:
        built = [drop_empty(own) for own in published_tables(source_of(table, figures), variants, figures)]
    for task in () if table is not None else dict.fromkeys(variant.task for variant in variants):
        mine = [variant for variant in variants if variant.task == task]
        shown = metrics_of(mine, figures)
        plotted[task] = mine, headline(mine, shown)
        found = paired_tests(mine, shown)
        tested += found
        built += [drop_empty(table) for table in tables(mine, figures, found)]
        for tests in found:
            if tests.metric != headline(mine, shown):
                continue
            if not tests.pairs:
                built[-1].remarks += untested(tests, pairs)
            else:
                built.append(drop_empty(pairs_table(tests, pairs)))
                built += [drop_empty(power_table(tests, pairs))] if power else []
    print(markdown(built))
    if csv_file is not None:
        write_csv(Path(csv_file), read_results(folders))
    if out is not None:
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        write_csv(out / "compare.csv", long_rows(variants, figures, tested))
        write_csv(out / "pairs.csv", pair_rows(tested), PAIR_COLUMNS)
        for name, write in (("md", markdown), ("tex", latex), ("html", html_page)):
            write_whole(out / f"compare.{name}", write(built).encode())
        for task, (mine, metric) in plotted.items():
            save_figure(size_figure(mine, metric), out / f"{task}-size", formats)
    if tensorboard is not None:
        from avprompt.reports.dashboard import write_dashboard

        place = write_dashboard(Path(tensorboard), variants, figures, markdown(built))
        print(f"the comparison alone: tensorboard --logdir {place}")
