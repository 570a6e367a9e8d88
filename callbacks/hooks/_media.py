"""A picture of a run: as a file in its folder and to every logger of its Trainer that takes pictures."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from PIL import Image

from ._run_folder import run_folder

__all__ = ["keep_picture", "log_picture"]


def keep_picture(trainer: Trainer, stage: str, title: str, picture: NDArray[np.uint8]) -> None:
    """Write `media/STAGE/TITLE/step_NUMBER.png` in the run's folder and hand it to all loggers; not in a rehearsal.

    A file that cannot be written (a full disk, no permission) is told, and the run goes on.

    Args:
        trainer: Of a process that logs.
        stage: `val` or `test`.
        title: Name of the picture, the same at every step.
        picture: `(H, W, 3)`, 0 to 255.
    """
    if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning declares it nowhere
        return
    file = run_folder(trainer) / "media" / stage / title / f"step_{trainer.global_step:08d}.png"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A picture is written often and read seldom: little compression takes a third of the time.
        Image.fromarray(picture).save(file, compress_level=1)
    except OSError as error:
        # The same words at every step, which Python shows once.
        reason = error.strerror or error
        rank_zero_warn(f"pictures cannot be written into {file.parent} ({reason}); the run goes on without them.")
    log_picture(trainer.loggers, f"{stage}/{title}", picture, trainer.global_step)


def log_picture(loggers: Iterable[Logger], tag: str, picture: NDArray[np.uint8], step: int) -> None:
    """Hand a picture `(H, W, 3)` to TensorBoard, MLflow and every logger with a `log_image` of its own, as W&B's.

    Loggers that keep numbers only, as the CSV one, are passed over. What a logger raises is told, and the run goes on.

    Args:
        loggers: Those of the Trainer, in a process that logs.
        tag: Name of the picture, the same at every step, as `val/grad_cam`.
        picture: Pixels 0 to 255.
        step: Optimizer step.
    """
    for logger in loggers:
        try:
            _hand_over(logger, tag, picture, step)
        except Exception as error:  # of any kind: disk, network, a server's answer, a logger that somebody wrote
            kind = type(logger).__name__
            rank_zero_warn(f"{kind} did not take the picture {tag} ({error}); the run goes on without it.")


def _hand_over(logger: Any, tag: str, picture: NDArray[np.uint8], step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(tag, picture, step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, picture, key=tag, step=step)
    elif hasattr(logger, "log_image"):
        logger.log_image(tag, [picture], step=step)
