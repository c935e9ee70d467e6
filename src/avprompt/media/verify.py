"""What a dataset needs, and what of it is there."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from avprompt.errors import DatasetError
from avprompt.media import ave
from avprompt.media.readers import READERS
from avprompt.media.store import ClipStore, read_manifest

ANNOTATIONS: dict[str, tuple[tuple[str, ...], Callable[..., dict[str, list]]]] = {
    "ave": (("Annotations.txt", *ave.SPLITS.values()), ave.read_splits),
}


def clip_problem(layout: str, root: Path, clip_id: str, seen: dict) -> str | None:
    """Why a clip cannot be used, `None` if it can; `seen` keeps what was listed once."""
    if layout == "store":
        entries = seen.setdefault("entries", read_manifest(ClipStore(root / "store").manifest_path))
        entry = entries.get(clip_id)
        if entry is None:
            return "missing: not in the store's manifest"
        return None if entry.usable else f"{entry.status}: {entry.reason}"
    absent = [name for name, path in (("frames", root / "frames" / clip_id), ("wave", root / "wave" / f"{clip_id}.npy"))
              if not path.exists()]
    return f"missing: {' and '.join(absent)}" if absent else None


def verify(
    root: Path,
    dataset: Literal["ave"] = "ave",
    layout: Literal["store", "folders"] = "store",
    categories: Path | None = None,
    report: Path | None = None,
) -> bool:
    """Print the expected folder tree and how many clips of each split are found, missing and unusable.

    Args:
        root: the dataset's folder.
        dataset: whose annotations to read.
        layout: `store` (from `avprompt data prepare`) or `folders` (the published code's).
        categories: file with one category a line, where they are not the dataset's own.
        report: CSV of every clip that cannot be used; `None` is root/verify.csv.

    Returns:
        Whether every clip can be used.

    Raises:
        DatasetError: annotation files or the layout's folders are missing.
        AnnotationError: an annotation file breaks its format.
    """
    root = Path(root)
    files, read = ANNOTATIONS[dataset]
    print("\n".join([f"{root}/", *(f"  {name}" for name in files),
                     *(f"  {line}" for line in READERS[layout].tree().splitlines())]))
    if not root.is_dir():
        raise DatasetError("root", root, "an existing folder", "Check the path.")
    names = () if categories is None else (tuple(categories.read_text(encoding="utf-8").splitlines()),)
    splits, seen, problems = read(root, *names), {}, []
    print(f"\n{'split':<8}{'rows':>8}{'clips':>8}{'found':>8}{'missing':>9}{'unusable':>10}")
    for split, items in splits.items():
        clips = {item.id: clip_problem(layout, root, item.id, seen) for item in items}
        missing = sum(1 for why in clips.values() if why and why.startswith("missing"))
        bad = sum(1 for why in clips.values() if why) - missing
        print(f"{split:<8}{len(items):>8}{len(clips):>8}{len(clips) - missing - bad:>8}{missing:>9}{bad:>10}")
        problems += [(split, clip, why) for clip, why in clips.items() if why]
    if dataset == "ave":
        for split, ids in ave.leaked(splits).items():
            if ids:
                print(f"{len(ids)} training clips are also in split {split}: {', '.join(ids)}")
    path = report or root / "verify.csv"
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "id", "problem"])
        writer.writerows(problems)
    print(f"\n{len(problems)} problems, listed in {path}" if problems else "\nevery clip can be used")
    return not problems
