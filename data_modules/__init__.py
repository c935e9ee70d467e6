"""LightningDataModules, one a dataset."""

from avprompt.data_modules.ave import AVEDataModule
from avprompt.data_modules.base import AVDataModule

__all__ = ["AVDataModule", "AVEDataModule"]
