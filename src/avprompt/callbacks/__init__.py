"""Lightning callbacks."""

from avprompt.callbacks.checkpointing import InterruptCheckpoint, LastCheckpoint, TaskCheckpoint
from avprompt.callbacks.grouped_tensorboard import GroupedTensorBoard
from avprompt.callbacks.outcomes import OutcomeWriter
from avprompt.callbacks.pictures import ValidationPictures
from avprompt.callbacks.predictions import PredictionWriter
from avprompt.callbacks.progress import EpochLines
from avprompt.callbacks.report import RunReport
from avprompt.callbacks.resume import ExactResume
from avprompt.callbacks.run_folder import run_folder
from avprompt.callbacks.steps import StepMeter
from avprompt.callbacks.together import FailTogether

__all__ = [
    "EpochLines",
    "ExactResume",
    "FailTogether",
    "GroupedTensorBoard",
    "InterruptCheckpoint",
    "LastCheckpoint",
    "OutcomeWriter",
    "PredictionWriter",
    "RunReport",
    "StepMeter",
    "TaskCheckpoint",
    "ValidationPictures",
    "run_folder",
]
