"""A sheet of made images after every validation, of the same numbers each time."""

import math
from typing import ClassVar, final

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray

from ..hooks._checks import whole
from ..hooks._image_grid import image_grid
from ..hooks._metadata import as_pixels
from ..hooks.drawings import Drawings
from ..hooks.evaluation import Stage
from ..hooks.making import Making

__all__ = ["SampleSheet"]

# Images that are made at a time; classes that have a column each.
TOGETHER, COLUMNS = 64, 16


@final
class SampleSheet(Drawings, Making):
    """Shows images that the module makes after every validation and test, for all loggers and as PNG files.

    They are the same numbers each time, so the sheet shows what training makes of the same draws. A module that makes
    images on demand has a column for each class. Averaged weights stand in the module by then, and are what is shown.
    The first process makes them, and training sees nothing of it: random streams, modes and buffers are put back.
    Pixels are told by the datamodule's `mean` and `std`, or the module's `preprocessing`; where nobody says how images
    were normalised, each is stretched to its own range.

    Args:
        samples: How many images, >= 1.
        columns: Images in a row, >= 1; None takes the number of classes of a module that makes up to 16 on demand, else
            the root of `samples`.
        seed: Fixes the images, at least 0.
        every_n_epochs: While fitting, validations of every n-th epoch are drawn, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which makes nothing.
        name: Part of the state key, and what the pictures are called instead of `samples`.

    Shape:
        `sample(count)` of the module answers `(count, C, H, W)`, normalised.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, if the module has no `sample`; in the
            sanity check, a `validate` or a `test`, if it answers with something else than images.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import SampleSheet
        >>> trainer = Trainer(callbacks=[SampleSheet(samples=16)], accelerator="cpu", logger=False)

    See also:
        `GenerationScores`, which says in numbers how far they are from real ones.
    """

    title: ClassVar[str] = "samples"

    def __init__(
        self,
        samples: int = 64,
        columns: int | None = None,
        seed: int = 0,
        every_n_epochs: int = 1,
        name: str | None = None,
    ) -> None:
        super().__init__(seed=seed, every_n_epochs=every_n_epochs, name=name)
        whole("SampleSheet", "samples", samples, 1)
        if columns is not None:
            whole("SampleSheet", "columns", columns, 1)
        self.samples, self.columns = samples, columns

    def epoch_ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        if not trainer.is_global_zero:
            return
        picture = self.attempted(trainer, lambda: self._drawn(trainer, pl_module))
        if picture is not None:
            self.keep(trainer, stage, picture)

    def _drawn(self, trainer: Trainer, pl_module: LightningModule) -> NDArray[np.uint8]:
        classes = self.labelled(pl_module)
        columns = self.columns or (classes if 1 < classes <= COLUMNS else math.ceil(math.sqrt(self.samples)))
        # A sanity check proves that it can be done.
        count = min(self.samples, columns) if trainer.sanity_checking else self.samples
        pieces = [range(it, min(it + TOGETHER, count)) for it in range(0, count, TOGETHER)]
        made = list(self.made(trainer, pl_module, pieces, torch.arange(classes) if classes else None))
        return image_grid(as_pixels(torch.cat(made), self.normalised(trainer, pl_module)).cpu(), columns)
