"""AVE: audio-visual event localisation in ten-second clips."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

from avprompt.data_modules.few_shot import EventDataModule
from avprompt.datasets import ave
from avprompt.errors import ArgumentError
from avprompt.media.readers import ClipReader


class AVEDataModule(EventDataModule):
    """AVE from its official annotations: Annotations.txt and the three split files in `root`.

    Batches have `event` (B, T, C + 1) float32, one-hot with background last, and `category` (B,) int64.
    `avprompt.datasets.ave` describes the published files; `FewShotDataModule` and `AVDataModule` describe the other
    arguments.

    Args:
        root: folder of annotations and media.
        categories: names of the event categories in the order of their indices. `None` reads root/categories.txt or,
            where there is no such file, takes AVE's own 28. If both are given, they must agree.
        drop_leaked: leave clips out of training that are also in the validation or test split (18 in AVE). They are
            reported in either case.
        background_clips: train on the 178 further published clips without any event too, whose category is C, as the
            weakly supervised setting does; needs `published_features`.
        options: see `FewShotDataModule` and `AVDataModule`.

    Raises:
        ArgumentError: `background_clips` without published features, or a few shots with them.

    Example:
        >>> data = AVEDataModule(Path("data/ave"), shots=4)
        >>> data.num_classes, data.segments, data.class_names[0]
        (28, 10, 'Church bell')
    """

    info = ave.INFO

    def __init__(
        self,
        root: Path,
        categories: list[str] | None = None,
        drop_leaked: bool = False,
        background_clips: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if background_clips and (self.published_features is None or self.shots is not None):
            raise ArgumentError(
                "background_clips",
                background_clips,
                "false, unless `published_features` names a folder and all clips are trained on",
                "They are published as features only.",
            )
        self.background_clips = background_clips
        # read before `setup`: the model is built with these sizes before any data are read
        self.class_names = tuple(categories or self.info.class_names(self.root))
        self.num_classes = len(self.class_names)
        self.drop_leaked = drop_leaked

    def _available(self, split: str, items: list[ave.Event], reader: ClipReader) -> list[ave.Event]:
        extra = cast(ave.H5Features, reader).background() if self.background_clips and split == "train" else []
        return super()._available(split, [*items, *extra], reader)

    def read_annotations(self) -> dict[str, list[ave.Event]]:
        splits = ave.read_splits(self.root, self.class_names, self.sampling.segments)
        shared = ave.leaked(splits)
        if any(shared.values()):
            what = "left out of training" if self.drop_leaked else "kept (drop_leaked: true leaves them out)"
            counts = ", ".join(
                f"{len(ids)} with {split} ({', '.join(ids[:3])} ...)" for split, ids in shared.items() if ids
            )
            warnings.warn(f"training clips that are also evaluated on: {counts}; {what}", stacklevel=2)
        if self.drop_leaked:
            out = {clip for ids in shared.values() for clip in ids}
            splits["train"] = [event for event in splits["train"] if event.id not in out]
        return splits
