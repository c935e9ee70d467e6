"""Metrics, one file for each task; each metric says which protocol it follows."""

from avprompt.metrics.ave import AVEAccuracy
from avprompt.metrics.avqa import AVQAAccuracy
from avprompt.metrics.avs import AVSFScore, AVSJaccard
from avprompt.metrics.avvp import AVVPFScore

__all__ = ["AVEAccuracy", "AVQAAccuracy", "AVSFScore", "AVSJaccard", "AVVPFScore"]
