"""A picture to every logger of a Trainer that takes pictures."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from numpy.typing import NDArray

__all__ = ["log_picture"]


def log_picture(loggers: Iterable[Logger], tag: str, picture: NDArray[np.uint8], step: int) -> None:
    """Hand a picture `(H, W, 3)` to TensorBoard, MLflow and every logger with a `log_image` of its own, as W&B's.

    Loggers that keep numbers only, as the CSV one, are passed over.

    Args:
        loggers: Those of the Trainer, in a process that logs.
        tag: Name of the picture, the same at every step, as `val/grad_cam`.
        picture: Pixels 0 to 255.
        step: Optimizer step.
    """
    for logger in loggers:
        writer: Any = logger
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, picture, step, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, key=tag, step=step)
        elif hasattr(logger, "log_image"):
            writer.log_image(tag, [picture], step=step)
