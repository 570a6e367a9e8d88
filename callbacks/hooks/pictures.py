"""The pictures seam: a few fixed samples, drawn again after each validation, for files and for all loggers."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray

from ._checks import whole
from ._fields import Fields
from ._media import keep_picture, media_folder
from ._samples import Chosen, Samples
from ._told import class_names, normalised_by
from ._unnoticed import as_if_nobody_looked
from .evaluation import Evaluation, Stage

__all__ = ["Pictures"]


class Pictures(Evaluation):
    """Draws pictures of the module on samples chosen once, so that what changes from picture to picture is the module.

    The samples are chosen in the first watched validation, or in the test, of the first process: as many of every class
    as there is room for, of a class the first ones. `draw` runs when all batches of a validation or test are over,
    while averaged weights still stand in the module, with gradients enabled even where Lightning uses inference mode;
    it may do to the module whatever `as_if_nobody_looked` puts back. Each picture goes to `media/STAGE/NAME/` in the
    first logger's folder, else in the Trainer's `default_root_dir`, as `step_NUMBER.png`, and to every logger that
    takes pictures. A sanity check draws too and throws away, so that what cannot be drawn is known before training;
    a rehearsal (`fast_dev_run`) writes nothing.

    Args:
        samples: How many images, >= 1.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        others: Go to the next base class, among them `every_n_epochs` and `name`.

    Raises:
        ValueError: `samples` is no integer >= 1.
    """

    # What the pictures are called in files and loggers, unless the callback has a name.
    title: ClassVar[str]

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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._fixed = {}

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
        labelled = self.target_key in batch if isinstance(batch, Mapping) else len(batch) > 1
        self._chosen.add(self.fields.image(batch), self.fields.target(batch) if labelled else None)

    def epoch_ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        # Asked on all ranks, for Lightning broadcasts it.
        folder = media_folder(trainer)
        if not trainer.is_global_zero:
            return
        samples = self._fixed.get(stage) or self._known(trainer, pl_module)
        self._chosen = None
        if samples is None:
            return
        with as_if_nobody_looked(trainer, pl_module):
            pictures = self.draw(pl_module, samples)
        if trainer.sanity_checking:
            return
        self._fixed[stage] = samples
        for added, picture in pictures.items():
            title = "_".join(filter(None, (self.name or self.title, added)))
            keep_picture(trainer, folder, stage, title, picture)

    def _known(self, trainer: Trainer, pl_module: LightningModule) -> Samples | None:
        assert self._chosen is not None
        return self._chosen.samples(class_names(trainer, pl_module), normalised_by(trainer))
