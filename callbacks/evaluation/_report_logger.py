"""What loggers of a classifier's answers share: a picture of every watched validation and of each test."""

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from ..hooks._media import keep_picture, media_folder
from ..hooks.evaluation import Stage
from ..hooks.predictions import Predictions, Tally

__all__ = ["ReportLogger"]


class ReportLogger(Predictions):
    """Draws what a validation or test added up to, as files in `media/STAGE/TITLE/` and for all loggers."""

    # What the pictures are called in files and loggers, unless the callback has a name.
    title: ClassVar[str]

    @abstractmethod
    def draw(self, report: dict[str, Any]) -> NDArray[np.uint8] | None:
        """The picture `(H, W, 3)` of a report; None if there is nothing to show."""

    def tallied(self, trainer: Trainer, tally: Tally, stage: Stage) -> None:
        folder, report = media_folder(trainer), tally.report()
        picture = self.draw(report) if report is not None and trainer.is_global_zero else None
        if picture is not None:
            keep_picture(trainer, folder, stage, self.name or self.title, picture)
