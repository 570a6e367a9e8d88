"""Which classes a classifier takes for which, as a picture of every validation."""

from typing import Any, ClassVar, final

import numpy as np
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from ..hooks._metadata import Pixels
from ._report_logger import ReportLogger
from ._tally import MATRIX, ClassTally

__all__ = ["ConfusionLogger"]


@final
class ConfusionLogger(ReportLogger):
    """Logs the confusion matrix of every validation and test to all loggers and as PNG files.

    It counts the logits that the module's forward gives in a step against the labels of the batch, of any module and
    over all processes. A row is a class, a column what it was taken for; colours are shares of the class. Of more than
    24 classes the most confused are drawn. Training sees nothing of it. The module's `calibration` and `multilabel` are
    heeded where it has them.

    Args:
        every_n_epochs: While fitting, validations of every n-th epoch are drawn, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which draws nothing.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the pictures are called.

    Shape:
        Logits `(B, K)`, of which a single one decides between the classes 0 and 1; labels int `(B,)` (outside 0..K-1
        are passed over), or, of a module that says `multilabel = False`, probabilities `(B, K)`, the largest of which
        is the class.

    Raises:
        ValueError: an argument out of its range; in the first batch, sanity check included, if a step asks forward for
            no logits, labels do not fit them, an image may have several labels, or there are more than 4,096 classes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import ConfusionLogger
        >>> trainer = Trainer(callbacks=[ConfusionLogger()], accelerator="cpu", logger=False)

    See also:
        `ClassificationReport`, which writes table and matrix of a fit's best validation, once.
    """

    title: ClassVar[str] = "confusion"

    def __init__(self, every_n_epochs: int = 1, target_key: str = "target", name: str | None = None) -> None:
        super().__init__(every_n_epochs=every_n_epochs, image_key=None, target_key=target_key, name=name)

    def tally(self, pl_module: LightningModule, names: list[str] | None, pixels: Pixels | None) -> ClassTally:
        return _Matrix(0, names, pixels, pl_module)

    def draw(self, report: dict[str, Any]) -> NDArray[np.uint8]:
        # Here, for matplotlib takes a while to import and most runs end elsewhere.
        from ._sheets import confusion_sheet

        return confusion_sheet(report)


class _Matrix(ClassTally):
    """One that has a matrix, or says at once why not."""

    def _begin(self, logits: Tensor, target: Tensor) -> None:
        super()._begin(logits, target)
        if self._multilabel:
            raise ValueError(
                "ConfusionLogger: an image may have several labels here, so none is taken for another; log "
                "MistakesLogger, or let ClassificationReport write its table."
            )
        if self._matrix is None:
            raise ValueError(
                f"ConfusionLogger: {logits.shape[1]:,} classes are more than the {MATRIX:,} a matrix is kept of; let "
                "ClassificationReport write its table, or leave this one out."
            )
