"""`avprompt compare`: finished runs in one table for each task, seeds grouped, beside published figures.

Runs whose settings are the same but for the seed are one variant. Every figure carries a mark, a letter that stands for
data, encoders and protocol: only figures with the same mark were measured under the same conditions.
"""

from __future__ import annotations

from pathlib import Path

from avprompt.files import write_whole
from avprompt.reports.published import read_published
from avprompt.reports.rendering import html_page, latex, markdown, write_csv
from avprompt.reports.runs import read_results, read_runs
from avprompt.reports.tables import drop_empty, long_rows, tables
from avprompt.reports.variants import gather


def compare(folders: list[Path], csv_file: Path | None = None, out: Path | None = None,
            tensorboard: Path | None = None) -> None:
    """Print finished runs in one table for each task: seeds grouped, beside published figures, parameters, time,
    memory.

    Runs whose settings are the same but for the seed are one variant. Variants of a published ablation stand in its
    order. Every figure has a mark that stands for data, encoders and protocol, explained below the table.

    Args:
        folders: searched for result.json.
        csv_file: also write there each run's metrics, parameters, seed, epochs and seconds.
        out: also write there compare.csv (all metrics), compare.md, compare.tex and compare.html.
        tensorboard: also write there, for `tensorboard --logdir`, hyper-parameters, curves and bars of all variants.

    Raises:
        DatasetError: there is no result in any folder.
    """
    figures, runs = read_published(), read_runs(folders)
    variants = gather(runs, figures)
    built = [drop_empty(table) for table in tables(variants, figures)]
    print(markdown(built))
    if csv_file is not None:
        write_csv(Path(csv_file), read_results(folders))
    if out is not None:
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        write_csv(out / "compare.csv", long_rows(variants, figures))
        for name, write in (("md", markdown), ("tex", latex), ("html", html_page)):
            write_whole(out / f"compare.{name}", write(built).encode())
    if tensorboard is not None:
        from avprompt.reports.dashboard import write_dashboard

        place = write_dashboard(Path(tensorboard), variants, figures, markdown(built))
        print(f"the comparison alone: tensorboard --logdir {place}")
