"""Metrics, one file a task; each says which protocol it follows."""

from avprompt.metrics.ave import AVEAccuracy

__all__ = ["AVEAccuracy"]
