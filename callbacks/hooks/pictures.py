"""The pictures seam: a few fixed samples, drawn again after each validation, for files and for all loggers."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from ._checks import whole
from ._fields import Fields
from ._metadata import class_names, normalised_by
from ._samples import Chosen, Samples
from ._unnoticed import as_if_nobody_looked
from .drawings import Drawings
from .evaluation import Stage

__all__ = ["Pictures"]


class Pictures(Drawings):
    """Draws pictures of the module on samples chosen once, so that what changes from picture to picture is the module.

    The samples are chosen in the first watched validation, or in the test, of the first process: as many of every class
    as there is room for, of a class the first ones. They are no part of a checkpoint: a resumed run chooses again,
    which gives the same ones unless the validation loader shuffles. `draw` runs when all batches of a validation or
    test are over, while averaged weights still stand in the module, with gradients enabled even where Lightning uses
    inference mode; it may do to the module whatever `as_if_nobody_looked` puts back. Each picture goes to
    `media/STAGE/NAME/` beside the run's checkpoints, as `step_NUMBER.png`, and to every logger that takes pictures. A
    sanity check draws too and throws away, so that what cannot be drawn is known before training; a rehearsal
    (`fast_dev_run`) writes nothing.

    Args:
        samples: How many images, >= 1.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second. There may be none.
        others: Go to the next base class, among them `every_n_epochs` and `name`.

    Raises:
        ValueError: `samples` is no integer >= 1; in the first batch, sanity check included, if there are no
            images in it.
    """

    def __init__(self, *, samples: int, image_key: str, target_key: str, **others: Any) -> None:
        super().__init__(**others)
        kind = type(self).__name__
        whole(kind, "samples", samples, 1)
        self.samples, self.image_key, self.target_key = samples, image_key, target_key
        self.fields = Fields(kind, image_key, target_key)
        self._chosen: Chosen | None = None
        self._fixed: dict[Stage, Samples] = {}

    @abstractmethod
    def draw(self, pl_module: LightningModule, samples: Samples) -> Mapping[str, NDArray[np.uint8]]:
        """The pictures, `(H, W, 3)`, by what is added to the title, empty for a single one.

        Args:
            pl_module: The module without a wrapper, in eval mode.
            samples: On the CPU.
        """

    def check(self, pl_module: LightningModule) -> None:
        """Raise a ValueError for what can be known to fail before any batch comes."""

    def forget(self) -> None:
        """A run begins, maybe with another module, of which nothing is known yet."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._fixed = {}
        self.forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not self.off:
            self.check(pl_module)

    def starts(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        self.check(pl_module)
        wanted = trainer.is_global_zero and stage not in self._fixed
        self._chosen = Chosen(self.samples) if wanted else None

    def batch_ends(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        if self._chosen is None:
            return
        images, targets = self._read(batch)
        shapes = [images.shape[1:]] if isinstance(images, Tensor) else [getattr(it, "shape", ()) for it in images]
        if any(len(shape) != 3 for shape in shapes):
            raise ValueError(
                f"{type(self).__name__}: a batch holds {tuple(getattr(images, 'shape', shapes[0]))} where images "
                "(B, C, H, W), or a list of (C, H, W), are to be drawn; say with image_key= where they stand."
            )
        self._chosen.add(images, targets)

    def _read(self, batch: Any) -> tuple[Any, Any]:
        """Images and labels of a batch, which may be the images alone."""
        if isinstance(batch, Tensor):
            return batch, None
        if isinstance(batch, Mapping):
            if self.target_key not in batch:
                keys = ", ".join(map(repr, batch))
                rank_zero_warn(
                    f"{type(self).__name__}: batches have no labels under {self.target_key!r}, their keys are {keys}; "
                    "the pictures show none, unless target_key= says where they stand."
                )
            return self.fields.image(batch), batch.get(self.target_key)
        images = self.fields.image(batch)
        return images, self.fields.target(batch) if len(batch) > 1 else None

    def epoch_ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        chosen, self._chosen = self._chosen, None
        samples = self._fixed.get(stage)
        if samples is None and chosen is not None:
            samples = chosen.samples(class_names(trainer, pl_module), normalised_by(trainer))
        if samples is None or not trainer.is_global_zero:
            return
        if not trainer.sanity_checking:
            self._fixed[stage] = samples
        for added, picture in (self.attempted(trainer, lambda: self._drawn(trainer, pl_module, samples)) or {}).items():
            self.keep(trainer, stage, picture, added)

    def _drawn(self, trainer: Trainer, pl_module: LightningModule, samples: Samples) -> Mapping[str, NDArray[np.uint8]]:
        with as_if_nobody_looked(trainer, pl_module):
            return self.draw(pl_module, samples)
