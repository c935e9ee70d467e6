"""LightningDataModules, one a dataset."""

from avprompt.data_modules.ave import AVEDataModule
from avprompt.data_modules.avsbench import AVSBenchDataModule
from avprompt.data_modules.base import AVDataModule
from avprompt.data_modules.llp import LLPDataModule
from avprompt.data_modules.music_avqa import MUSICAVQADataModule

__all__ = ["AVDataModule", "AVEDataModule", "AVSBenchDataModule", "LLPDataModule", "MUSICAVQADataModule"]
