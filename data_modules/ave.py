"""AVE: audio-visual event localisation in ten-second clips."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from avprompt.data_modules.few_shot import EventDataModule
from avprompt.datasets import ave


class AVEDataModule(EventDataModule):
    """AVE from its official annotations (Annotations.txt and the three split files in `root`).

    Adds `event` (B, T, C + 1) float32, one-hot with background last. See `avprompt.datasets.ave` for what the published
    files hold besides, and `FewShotDataModule` and `AVDataModule` for every other argument.

    Args:
        categories: names of the event categories in the order of their indices; `None` reads root/categories.txt, and
            without that file they are AVE's own 28. Where both are given they must agree.
        drop_leaked: leave out of training the clips that are also evaluated on (18 in AVE). They are reported anyway.
        options: see `FewShotDataModule` and `AVDataModule`.
    """

    published = ave.PUBLISHED

    def __init__(self, root: Path, categories: list[str] | None = None, drop_leaked: bool = False,
                 **options: Any) -> None:
        super().__init__(root, **options)
        # read here, not in `setup`: the model is sized by it before any data is looked at
        self.class_names = tuple(categories) if categories else ave.read_categories(self.root)
        self.num_classes = len(self.class_names)
        self.drop_leaked = drop_leaked

    def read_annotations(self) -> dict[str, list[ave.Event]]:
        splits = ave.read_splits(self.root, self.class_names, self.sampling.segments)
        shared = ave.leaked(splits)
        if any(shared.values()):
            what = "left out of training" if self.drop_leaked else "kept (drop_leaked: true leaves them out)"
            counts = ", ".join(f"{len(ids)} with {split} ({', '.join(ids[:3])} ...)"
                               for split, ids in shared.items() if ids)
            warnings.warn(f"training clips that are also evaluated on: {counts}; {what}", stacklevel=2)
        if self.drop_leaked:
            out = {clip for ids in shared.values() for clip in ids}
            splits["train"] = [event for event in splits["train"] if event.id not in out]
        return splits
