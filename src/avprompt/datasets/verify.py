"""`avprompt data verify`: the files that a dataset needs, and those that are there."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from avprompt.datasets import naming
from avprompt.datasets.registry import DATASETS
from avprompt.errors import ArgumentError, DatasetError, WriteError
from avprompt.files import write_whole
from avprompt.media.readers import STORE_TREE, ClipReader, StoreReader, open_reader


def verify(
    root: Path,
    dataset: Literal[tuple(DATASETS)] = "ave",  # type: ignore[valid-type]  # the command line reads it
    layout: Literal["store", "folders"] | None = None,
    report: Path | None = None,
    deep: bool = False,
    rename: bool = False,
    shards: str | None = None,
) -> bool:
    """Print the expected folder tree and the numbers of clips of each split that are found, missing and unusable.

    Names, headers and sizes of files are checked; `deep` reads them all.

    Args:
        root: the dataset's folder.
        dataset: the dataset whose annotations are read.
        layout: `store` (from `avprompt data prepare`) or `folders` (of the published code); `null` is `store` for every
            dataset whose media a store can hold.
        report: CSV file of every clip that cannot be used, or that is short or silent; `None` is root/verify.csv. Where
            it cannot be written, the clips are printed instead.
        deep: compare each clip of a store with the digest of what was written; decode everything in folders.
        rename: give the clips of a store the ids of the annotations, by the likely rule that is printed where few names
            match.
        shards: where the tar files of a store of shards lie, if not in root/store/shards: a path, or an address that fsspec
            knows.

    Returns:
        Whether every clip can be used.

    Raises:
        DatasetError: annotation files or the layout's folders are missing, or nothing can be renamed.
        AnnotationError: an annotation file breaks its format.
        ArgumentError: `rename` where clips do not lie in a store.
    """
    root, published = Path(root).expanduser(), DATASETS[dataset].published
    layout = layout or ("store" if published.stored else "folders")
    tree = STORE_TREE if layout == "store" else published.tree
    print("\n".join([f"{root}/", *(f"  {name}" for name in (*published.files, *tree))]))
    if not root.is_dir():
        raise DatasetError("root", root, "an existing folder", "Check the path.")
    splits = published.read(root)
    for remark in published.remarks(splits):
        print(remark)
    reader = open_reader(layout, root, None, published.folders, shards)
    wanted = {item.id for items in splits.values() for item in items}
    renaming = naming.likely(reader.ids() - wanted, wanted - reader.ids()) if reader.ids() and wanted else None
    if rename:
        if not isinstance(reader, StoreReader):
            raise ArgumentError("rename", "true", "clips in a store", "Files of your own are yours to rename.")
        if renaming is None:
            raise DatasetError(
                root,
                "no clip whose other name could be told",
                "names that differ by a rule",
                "Rename the video files, and prepare them again.",
            )
        reader.store.rename(renaming.names)
        print(f"{len(renaming.names)} clips of the store renamed: {renaming.rule}")
        reader, renaming = open_reader(layout, root, None, published.folders, shards), None
    rows, unusable = _table(splits, reader, deep)
    _explain(reader, wanted, renaming)
    if isinstance(reader, StoreReader) and (stray := reader.store.ids() - reader.entries.keys()):
        print(f"{len(stray)} folders of the store are in no row of its manifest: {', '.join(sorted(stray)[:3])}")
    _report(Path(report).expanduser() if report else root / "verify.csv", rows, unusable)
    return not unusable


def _table(splits: dict[str, list[Any]], reader: ClipReader, deep: bool) -> tuple[list[tuple[str, str, str]], int]:
    """Print the counts; (split, clip, problem) of what is not as it should be, and how many clips cannot be used."""
    entries = reader.entries if isinstance(reader, StoreReader) else {}
    rows, unusable, checked = [], 0, {}
    print(f"\n{'split':<8}{'rows':>8}{'clips':>8}{'found':>8}{'missing':>9}{'unusable':>10}{'short':>8}{'silent':>8}")
    for split, items in splits.items():
        counts: Counter[str] = Counter()
        for clip in tqdm(
            list(dict.fromkeys(item.id for item in items)),
            desc=split,
            unit="clip",
            disable=None if deep else True,
            leave=False,
        ):
            if clip not in checked:
                checked[clip] = reader.inspect(clip) or (reader.digest_problem(clip) if deep else None)
            problem = checked[clip]
            kind = "found" if problem is None else "missing" if problem.startswith("missing") else "unusable"
            counts[kind] += 1
            if problem is None and clip in entries and entries[clip].status != "ok":
                counts[entries[clip].status] += 1
                problem = f"usable, {entries[clip].status}: {entries[clip].reason}"
            if problem is not None:
                rows.append((split, clip, problem))
        unusable += counts["missing"] + counts["unusable"]
        clips = counts["found"] + counts["missing"] + counts["unusable"]
        print(
            f"{split:<8}{len(items):>8}{clips:>8}{counts['found']:>8}{counts['missing']:>9}{counts['unusable']:>10}"
            f"{counts['short']:>8}{counts['silent']:>8}"
        )
    return rows, unusable


def _explain(reader: ClipReader, wanted: set[str], renaming: naming.Renaming | None) -> None:
    """Where few names match, show both sides and what may be behind it."""
    there = reader.ids()
    if not there - wanted or len(there & wanted) >= len(wanted) / 2:
        return
    print(
        f"\nOnly {len(there & wanted)} of {len(wanted)} annotated clips are there by name."
        f"\n  annotations ask for  {', '.join(sorted(wanted - there)[:3])}"
        f"\n  there are            {', '.join(sorted(there - wanted)[:3])}"
    )
    if renaming is None:
        print("No rule that downloaders follow makes one of the other.")
        return
    name, clip = next(iter(renaming.names.items()))
    print(f"Likely: {renaming.rule}. {len(renaming.names)} would match, {name} as {clip}.")
    print(
        "Run the same command with --rename true to give the store's clips these ids; video files stay as they are."
        if isinstance(reader, StoreReader)
        else "Rename the files by it."
    )


def _report(path: Path, rows: list[tuple[str, str, str]], unusable: int) -> None:
    """Write what is not as it should be, or print it where nothing can be written."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["split", "id", "problem"])
    writer.writerows(rows)
    try:
        write_whole(path, table.getvalue().encode())
        where = str(path)
    except WriteError as error:
        where = "the lines above"
        print(
            f"\n{path} cannot be written ({error.got}; --report names another file)"
            + (f":\n{table.getvalue()}" if rows else "")
        )
    print(f"\n{unusable} clips cannot be used; details in {where}" if unusable else "\nevery clip can be used")
