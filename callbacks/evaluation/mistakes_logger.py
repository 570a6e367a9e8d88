"""On which images a classifier is most sure and wrong, as a sheet of every validation."""

from typing import Any, ClassVar, final

import numpy as np
from lightning.pytorch import LightningModule
from numpy.typing import NDArray

from ..hooks._checks import whole
from ..hooks._metadata import Pixels
from ._report_logger import ReportLogger
from ._tally import ClassTally

__all__ = ["MistakesLogger"]


@final
class MistakesLogger(ReportLogger):
    """Logs a sheet of the most confident mistakes of every validation and test to all loggers and as PNG files.

    Under each image stand what the module said, how surely, and what it is. Mistakes are those of all processes, found
    among the logits that the module's forward gives in a step, of any module. Where nothing is wrong, or batches hold
    no images, there is no sheet. Training sees nothing of it. The module's `multilabel`, `calibration` and `thresholds`
    are heeded where it has them, as `ClassificationReport` does.

    Args:
        worst: Mistakes on the sheet, images, >= 1. They are kept as uint8 of at most 96 pixels a side.
        every_n_epochs: While fitting, validations of every n-th epoch are drawn, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which draws nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the pictures are called.

    Shape:
        Images `(B, C, H, W)`, normalised by the datamodule's `mean` and `std` if it has them; logits `(B, K)`, of which
        a single one decides between the classes 0 and 1; labels int `(B,)` (outside 0..K-1 are passed over), or 0 and 1
        `(B, K)` for several labels an image, where each is a decision of its own, yes above its threshold, else above a
        half.

    Raises:
        ValueError: an argument out of its range; in the first batch, sanity check included, if a step asks forward for
            no logits or labels do not fit them.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import MistakesLogger
        >>> trainer = Trainer(callbacks=[MistakesLogger(worst=12)], accelerator="cpu", logger=False)

    See also:
        `ClassificationReport`, which writes the sheet of a fit's best validation, once.
    """

    title: ClassVar[str] = "mistakes"

    def __init__(
        self,
        worst: int = 24,
        every_n_epochs: int = 1,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_epochs=every_n_epochs, image_key=image_key, target_key=target_key, name=name)
        whole("MistakesLogger", "worst", worst, 1)
        self.worst = worst

    def tally(self, pl_module: LightningModule, names: list[str] | None, pixels: Pixels | None) -> ClassTally:
        return ClassTally(self.worst, names, pixels, pl_module, matrix=False)

    def draw(self, report: dict[str, Any]) -> NDArray[np.uint8] | None:
        # Here, for matplotlib takes a while to import and most runs end elsewhere.
        from ._sheets import mistake_sheet

        return None if report["images"] is None else mistake_sheet(report)
