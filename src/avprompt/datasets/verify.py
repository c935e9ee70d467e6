"""What a dataset needs, and what of it is there."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Literal

from avprompt.datasets import ave, avsbench, kinetics_sounds, llp, music_avqa, vggsound
from avprompt.errors import DatasetError
from avprompt.media.readers import STORE_TREE, Published, StoreReader, open_reader

DATASETS: dict[str, Published] = {"ave": ave.PUBLISHED, "kinetics_sounds": kinetics_sounds.PUBLISHED,
                                  "avs_s4": avsbench.PUBLISHED["s4"], "avs_ms3": avsbench.PUBLISHED["ms3"],
                                  "llp": llp.PUBLISHED,
                                  "music_avqa": music_avqa.PUBLISHED, "vggsound": vggsound.PUBLISHED}


def verify(
    root: Path,
    dataset: Literal["ave", "kinetics_sounds", "avs_s4", "avs_ms3", "llp", "music_avqa", "vggsound"] = "ave",
    layout: Literal["store", "folders"] | None = None,
    report: Path | None = None,
) -> bool:
    """Print the expected folder tree and how many clips of each split are found, missing and unusable.

    Files are looked at by name, header and size, not decoded.

    Args:
        root: the dataset's folder.
        dataset: whose annotations to read.
        layout: `store` (from `avprompt data prepare`) or `folders` (the published code's); `null` is a store wherever one
            can hold the dataset's media.
        report: CSV of every clip that cannot be used, or is used but short or silent; `None` is root/verify.csv.

    Returns:
        Whether every clip can be used.

    Raises:
        DatasetError: annotation files or the layout's folders are missing.
        AnnotationError: an annotation file breaks its format.
    """
    root, published = Path(root), DATASETS[dataset]
    layout = layout or ("store" if published.stored else "folders")
    tree = STORE_TREE if layout == "store" else published.tree
    print("\n".join([f"{root}/", *(f"  {name}" for name in (*published.files, *tree))]))
    if not root.is_dir():
        raise DatasetError("root", root, "an existing folder", "Check the path.")
    splits = published.read(root)
    for remark in published.remarks(splits):
        print(remark)
    reader = open_reader(layout, root, None, published.folders)
    entries = reader.entries if isinstance(reader, StoreReader) else {}
    rows, unusable = [], 0
    print(f"\n{'split':<8}{'rows':>8}{'clips':>8}{'found':>8}{'missing':>9}{'unusable':>10}{'short':>8}{'silent':>8}")
    for split, items in splits.items():
        counts: Counter[str] = Counter()
        for clip in dict.fromkeys(item.id for item in items):
            problem = reader.inspect(clip)
            kind = "found" if problem is None else "missing" if problem.startswith("missing") else "unusable"
            counts[kind] += 1
            if problem is None and clip in entries and entries[clip].status != "ok":
                counts[entries[clip].status] += 1
                problem = f"usable, {entries[clip].status}: {entries[clip].reason}"
            if problem is not None:
                rows.append((split, clip, problem))
        unusable += counts["missing"] + counts["unusable"]
        clips = counts["found"] + counts["missing"] + counts["unusable"]
        print(f"{split:<8}{len(items):>8}{clips:>8}{counts['found']:>8}{counts['missing']:>9}{counts['unusable']:>10}"
              f"{counts['short']:>8}{counts['silent']:>8}")
    path = Path(report) if report else root / "verify.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "id", "problem"])
        writer.writerows(rows)
    print(f"\n{unusable} clips cannot be used; details in {path}" if unusable else "\nevery clip can be used")
    return not unusable
