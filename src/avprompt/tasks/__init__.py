"""Tasks: one LightningModule each, over one backbone."""

from avprompt.tasks.ave import AVE
from avprompt.tasks.base import AVPromptTask

__all__ = ["AVE", "AVPromptTask"]
