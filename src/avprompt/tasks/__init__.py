"""Tasks: a LightningModule for each, over a source of features."""

from avprompt.tasks.avar import AVAR
from avprompt.tasks.ave import AVE, AVELinear
from avprompt.tasks.ave_classic import AVEClassic
from avprompt.tasks.avqa import AVQA, AVQAGrounding
from avprompt.tasks.avs import AVS
from avprompt.tasks.avvp import AVVP
from avprompt.tasks.base import AVPromptTask
from avprompt.tasks.contrastive import Contrastive
from avprompt.tasks.denoising import LabelDenoising

__all__ = [
    "AVAR",
    "AVE",
    "AVQA",
    "AVS",
    "AVVP",
    "AVEClassic",
    "AVELinear",
    "AVPromptTask",
    "AVQAGrounding",
    "Contrastive",
    "LabelDenoising",
]
