"""Tasks: one LightningModule each, over one backbone."""

from avprompt.tasks.ave import AVE
from avprompt.tasks.avqa import AVQA, AVQAGrounding
from avprompt.tasks.avs import AVS
from avprompt.tasks.avvp import AVVP
from avprompt.tasks.base import AVPromptTask

__all__ = ["AVE", "AVQA", "AVQAGrounding", "AVS", "AVVP", "AVPromptTask"]
