"""What the seams share that draw a validation or a test: the pictures' name, their files, and what a failure costs.

Public hooks used: those of `evaluation.py`, `on_fit_end`.
"""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from ._media import keep_picture
from .evaluation import Evaluation, Stage

__all__ = ["Drawings"]

Drawn = TypeVar("Drawn")


class Drawings(Evaluation):
    """Draws watched validations and tests, as files in `media/STAGE/NAME/` and for all loggers that take pictures.

    While fitting, what fails to be drawn is told once, and the training goes on; in a sanity check, a `validate` or a
    `test` it is raised.

    Args:
        others: Go to the next base class, among them `every_n_epochs` and `name`.

    Raises:
        ValueError: at set-up, if another callback calls its pictures alike.
    """

    # What the pictures are called in files and loggers, unless the callback has a name.
    title: ClassVar[str]

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self._tried = self._failed = False

    @property
    def called(self) -> str:
        """What the pictures are called."""
        return self.name or self.title

    def attempted(self, trainer: Trainer, draw: Callable[[], Drawn]) -> Drawn | None:
        """What `draw` returns, or while fitting None where it raises."""
        self._tried = self._tried or not trainer.sanity_checking
        try:
            return draw()
        except Exception as error:  # of any kind: what a network of these weights answers cannot be known before
            if trainer.state.fn != "fit" or trainer.sanity_checking:
                raise
            if not self._failed:
                rank_zero_warn(
                    f"{type(self).__name__}: a picture could not be drawn ({error or type(error).__name__}); the "
                    "training goes on without it, and the next one is tried again."
                )
            self._failed = True
            return None

    def keep(self, trainer: Trainer, stage: Stage, picture: NDArray[np.uint8], added: str = "") -> None:
        """Write a picture `(H, W, 3)` and hand it to the loggers; `added` follows the pictures' name."""
        keep_picture(trainer, stage, "_".join(filter(None, (self.called, added))), picture)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._tried = self._failed = False
        alike = [it for it in self.rivals(trainer, Drawings) if isinstance(it, Drawings) and it.called == self.called]
        if alike and not self.off:
            raise ValueError(
                f"{type(self).__name__}: {type(alike[0]).__name__} also calls its pictures {self.called!r}, and they "
                "would write the same files; give one of them another name."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        if not (self.off or self._tried) and trainer.is_global_zero:
            rank_zero_warn(f"{type(self).__name__}: no validation was drawn in this fit, so there are no pictures.")
