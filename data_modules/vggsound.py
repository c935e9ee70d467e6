"""VGG-Sound(40K): what DG-SCT is pretrained on before it meets other datasets without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avprompt.data_modules.few_shot import EventDataModule
from avprompt.datasets import vggsound
from avprompt.errors import DatasetError
from avprompt.media.readers import ClipReader


class VGGSoundDataModule(EventDataModule):
    """VGG-Sound(40K) from its two annotation files, which are yours to bring.

    Adds `event` (B, T, C + 1) float32, one-hot with background last. See `avprompt.datasets.vggsound` for the files, and
    `FewShotDataModule` and `AVDataModule` for every other argument.

    Args:
        category_file: names of the categories, one a line in the order of their indices; a relative path begins at
            `root`.
        label_file: csv of the videos; likewise.
        options: see `FewShotDataModule` and `AVDataModule`.

    Raises:
        DatasetError: from `setup`, when one of the two files is missing (until then there are 141 categories without
            names), or there is no validation split to select on.
        AnnotationError: the category file breaks its format; from `setup`, also the other one.
    """

    published = vggsound.PUBLISHED

    def __init__(self, root: Path, category_file: Path = Path(vggsound.CATEGORY_FILE),
                 label_file: Path = Path(vggsound.LABEL_FILE), **options: Any) -> None:
        super().__init__(root, **options)
        self.category_file, self.label_file = self.root / category_file, self.root / label_file
        # read here, not in `setup`: the model is sized by it before any data is looked at
        self.class_names, self.num_classes, self.unread = (), vggsound.CATEGORIES, None
        try:
            self.class_names = vggsound.read_categories(self.category_file)
        except DatasetError as error:
            self.unread = error  # the published number will do for `avprompt params`; `setup` raises this
        else:
            self.num_classes = len(self.class_names)

    def setup(self, stage: str) -> None:
        if self.unread is not None:
            raise self.unread
        super().setup(stage)

    def read_annotations(self) -> dict[str, list[vggsound.Video]]:
        return vggsound.read_splits(self.label_file, self.class_names, self.sampling.segments)

    def _available(self, split: str, items: list[vggsound.Video], reader: ClipReader) -> list[vggsound.Video]:
        if split == "val" and not items:
            raise DatasetError(self.label_file, "no row of a validation split", "rows whose split begins with val",
                               "Set `validation_split: test`: the released procedure selects on the test split.")
        return super()._available(split, items, reader)
