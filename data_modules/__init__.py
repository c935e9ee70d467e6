"""LightningDataModules, one for each dataset (LLP has two: parsing and classification)."""

from avprompt.data_modules.ave import AVEDataModule
from avprompt.data_modules.avsbench import AVSBenchDataModule
from avprompt.data_modules.base import AVDataModule
from avprompt.data_modules.kinetics_sounds import KineticsSoundsDataModule
from avprompt.data_modules.llp import LLPClassificationDataModule, LLPDataModule
from avprompt.data_modules.music_avqa import MUSICAVQADataModule
from avprompt.data_modules.vggsound import VGGSoundDataModule

__all__ = [
    "AVDataModule",
    "AVEDataModule",
    "AVSBenchDataModule",
    "KineticsSoundsDataModule",
    "LLPClassificationDataModule",
    "LLPDataModule",
    "MUSICAVQADataModule",
    "VGGSoundDataModule",
]
