"""What loggers of a classifier's answers share: a picture of every watched validation and of each test."""

from abc import abstractmethod
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from ..hooks.drawings import Drawings
from ..hooks.evaluation import Stage
from ..hooks.predictions import Predictions, Tally

__all__ = ["ReportLogger"]


class ReportLogger(Drawings, Predictions):
    """Draws what a validation or test added up to."""

    @abstractmethod
    def draw(self, report: dict[str, Any]) -> NDArray[np.uint8] | None:
        """The picture `(H, W, 3)` of a report; None if there is nothing to show."""

    def tallied(self, trainer: Trainer, tally: Tally, stage: Stage) -> None:
        report = tally.report()
        if report is None or not trainer.is_global_zero:
            return
        picture = self.attempted(trainer, lambda: self.draw(report))
        if picture is not None:
            self.keep(trainer, stage, picture)
