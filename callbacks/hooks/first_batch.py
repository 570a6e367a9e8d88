"""The first-batch seam: a fit's first batch is looked at before its step, which a method may run again and again.

Public hooks used: `on_fit_start` and `on_train_batch_start`. A fit that goes on from a checkpoint has a first batch,
too.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ._checks import takes_batches
from ._findings import Action, known_action, tell
from ._rerun import Rerun, StepFailedError
from .method import Method, Place

__all__ = ["FirstBatch"]


class FirstBatch(Method):
    """Judges a module by its first training batch, once a fit and before its first step, without a trace.

    All ranks look, each at its own batch, for a step may call the others.

    Args:
        action: `error` raises what is found, `warn` says it, `off` does not look.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: from the constructor, for another action; at set-up, if `training_step` takes a `dataloader_iter`.
        RuntimeError: with `action="error"`, before the first step, for what is found.
    """

    place: ClassVar[Place] = Place.OBSERVE
    neutral = ({"action": "off"},)

    def __init__(self, *, action: Action, **others: Any) -> None:
        super().__init__(**others)
        known_action(type(self).__name__, action)
        self.action: Action = action
        self._looked = False

    @abstractmethod
    def look(self, trainer: Trainer, pl_module: LightningModule, batch: Any, step: Rerun) -> Sequence[str]:
        """What is wrong, a sentence each; none if nothing is.

        Args:
            trainer: It is fitting.
            pl_module: The module without a wrapper, in training mode.
            batch: What its step will see; not to be changed.
            step: Computes the step without a trace, as often as it is called.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not self.off:
            takes_batches(type(self).__name__, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._looked = self.off

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._looked:
            return
        self._looked = True
        found: Sequence[str] = ()
        try:
            found = self.look(trainer, pl_module, batch, Rerun(trainer, pl_module, batch, batch_idx))
        except StepFailedError as error:
            rank_zero_warn(
                f"{type(self).__name__}: nothing was judged, for training_step of {type(pl_module).__name__} failed "
                f"when it was run ahead ({error}); if the fit fails there too, mend that, or leave the callback out."
            )
        tell(self, trainer, found)
