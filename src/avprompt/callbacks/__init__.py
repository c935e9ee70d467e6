"""Lightning callbacks."""

from avprompt.callbacks.pictures import ValidationPictures
from avprompt.callbacks.predictions import PredictionWriter
from avprompt.callbacks.report import RunReport, count_parameters
from avprompt.callbacks.resume import ExactResume, InterruptCheckpoint, LastCheckpoint, TaskCheckpoint

__all__ = ["ExactResume", "InterruptCheckpoint", "LastCheckpoint", "PredictionWriter", "RunReport", "TaskCheckpoint",
           "ValidationPictures", "count_parameters"]
