"""VGG-Sound(40K): DG-SCT is pretrained on it for zero-shot transfer to other datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avprompt.data_modules.few_shot import EventDataModule
from avprompt.datasets import vggsound
from avprompt.errors import DatasetError
from avprompt.media.readers import ClipReader


class VGGSoundDataModule(EventDataModule):
    """VGG-Sound(40K) from its two annotation files, which its authors hand out and avprompt does not ship.

    Batches have `event` (B, T, C + 1) float32, one-hot with background last. `avprompt.datasets.vggsound` describes the
    files; `FewShotDataModule` and `AVDataModule` describe the other arguments.

    Args:
        root: folder of annotations and media.
        category_file: names of the categories, one a line in the order of their indices. A relative path starts at
            `root`.
        label_file: csv file of the videos. A relative path starts at `root`.
        options: see `FewShotDataModule` and `AVDataModule`.

    Raises:
        DatasetError: from `setup`, when one of the two files is missing (before, the module has 141 categories without
            names), or when checkpoints are selected on a validation split that has no rows.
        AnnotationError: the category file breaks its format; from `setup`, also the label file.

    Example:
        >>> VGGSoundDataModule(Path("data/vggsound")).num_classes
        141
    """

    info = vggsound.INFO

    def __init__(
        self,
        root: Path,
        category_file: Path = Path(vggsound.CATEGORY_FILE),
        label_file: Path = Path(vggsound.LABEL_FILE),
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.category_file, self.label_file = self.root / category_file, self.root / label_file
        # read before `setup`: the model is built with these sizes before any data are read
        self.class_names, self.num_classes, self.unread = (), vggsound.CATEGORIES, None
        try:
            self.class_names = vggsound.read_categories(self.category_file)
        except DatasetError as error:
            self.unread = error  # `avprompt params` needs only the published number; `setup` raises the error
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
            raise DatasetError(
                self.label_file,
                "no row of a validation split",
                "rows whose split begins with val",
                "Set `validation_split: test`: the released procedure selects on the test split.",
            )
        return super()._available(split, items, reader)
