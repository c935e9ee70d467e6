"""Lightning callbacks."""

from avprompt.callbacks.pictures import ValidationPictures
from avprompt.callbacks.predictions import PredictionWriter
from avprompt.callbacks.report import RunReport
from avprompt.callbacks.resume import ExactResume, InterruptCheckpoint, LastCheckpoint, TaskCheckpoint

__all__ = ["ExactResume", "InterruptCheckpoint", "LastCheckpoint", "PredictionWriter", "RunReport", "TaskCheckpoint",
           "ValidationPictures"]
