"""Pictures for loggers: TensorBoard, W&B, MLflow, Comet, and a folder beside the table of a CSV logger."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAKE_PICTURES = (TensorBoardLogger, WandbLogger, MLFlowLogger, CometLogger, CSVLogger)


def drawing(loggers: Iterable[Logger]) -> list[Logger]:
    """The loggers that take pictures.

    Example:
        >>> [type(logger).__name__ for logger in drawing([CSVLogger("runs")])]
        ['CSVLogger']
    """
    return [logger for logger in loggers if isinstance(logger, TAKE_PICTURES)]


def log_picture(logger: Logger, name: str, figure: Figure, step: int) -> None:
    """Give a logger a picture.

    Args:
        logger: one of `drawing`.
        name: with `/` between groups, such as `validation/0_clip`.
        figure: the picture.
        step: of the training.

    Example:
        >>> import tempfile
        >>> from matplotlib.figure import Figure
        >>> logger = CSVLogger(tempfile.mkdtemp(), name="", version="")
        >>> log_picture(logger, "validation/a", Figure(), 7)
        >>> [path.name for path in Path(logger.log_dir).rglob("*.png")]
        ['a.000007.png']
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(name, figure, step)
    elif isinstance(logger, CometLogger):
        logger.experiment.log_figure(figure_name=name, figure=figure, step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_figure(logger.run_id, figure, f"{name}.{step:06d}.png")
    elif isinstance(logger, WandbLogger):
        from PIL import Image

        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100)
        with Image.open(file) as picture:
            logger.log_image(name, [picture.convert("RGB")], step=step)
    else:
        path = Path(logger.log_dir) / f"{name}.{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)
