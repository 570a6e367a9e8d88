"""Parameters that a callback adds to a module and the module's optimizers step, in files of a plain run's form.

They hang on the module from set-up on, so that optimizers and DDP have them. A checkpoint's module and optimizers are
those of a run without them; their values, and what optimizers keep of them, stand in the callback's state.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from ._plain_optimizers import added_states, held, with_added, without_added
from .method import Method, callbacks_of

__all__ = ["TrainedParts"]


class TrainedParts(Method):
    """Base of the seams whose parameters train beside the module's own.

    A seam hangs them on the module and names them in `_parameters`, says `_at_work`, and calls `_rest` before it takes
    them off. A fit that is not resumed begins with new ones.

    Raises:
        ValueError: before the first batch, if no optimizer has them; when a checkpoint is loaded, if `take_back` does
            not find its own in it.
    """

    # Whether the module's own optimizers, and DDP, train them.
    by_optimizers: ClassVar[bool] = True

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self._at_work = False  # from set-up to the fit's end
        self._parameters: dict[str, nn.Parameter] = {}  # by name, also after the fit
        self._optimizers: list[Optimizer] = []
        self._kept: dict[str, Any] = {}  # state after a fit, or from a checkpoint
        self._checkpoint: dict[str, Any] = {}  # the one that this fit resumes, until its optimizers are restored

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """What the callback's state holds of the parts as they are now, on the CPU."""

    @abstractmethod
    def take_back(self, values: Mapping[str, Any]) -> None:
        """Put what `values` once returned into the parts, in place; a ValueError if they are others."""

    @abstractmethod
    def untrained(self, name: str, pl_module: LightningModule) -> str:
        """The sentence that says that no optimizer has the parameter of this name, and what to do."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._kept, self._checkpoint, self._parameters = {}, {}, {}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.state.fn != "fit" or not self._at_work:
            return
        self._checkpoint = checkpoint
        self._kept = dict(checkpoint.get("callbacks", {}).get(self.state_key, {}))
        if self._kept and (self._parameters or self.by_optimizers):
            self.take_back(self._kept)
        if self._optimizers:
            # In the middle of a fit, as a search for a learning rate does.
            self._give_optimizers(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not self._at_work:
            return
        self._optimizers = list(trainer.optimizers)
        for name, parameter in self._parameters.items() if self.by_optimizers else ():
            if not held(self._optimizers, parameter):
                raise ValueError(self.untrained(name, pl_module))
        self._give_optimizers(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        together = self._for_all(trainer)
        if together:
            added, states = _named(together), checkpoint["optimizer_states"]
            for number, optimizer in enumerate(trainer.optimizers):
                states[number] = without_added(states[number], optimizer, added)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **(self._record() if self._at_work else self._kept)}

    def _record(self) -> dict[str, Any]:
        optimizers = self._optimizers if self.by_optimizers else []
        return {**self.values(), "optimizers": [added_states(it, self._parameters) for it in optimizers]}

    def _rest(self) -> None:
        """The fit is over: the state stays as it is now."""
        if self._at_work:
            self._kept = self._record()
        self._at_work, self._optimizers, self._checkpoint = False, [], {}

    def _give_optimizers(self, trainer: Trainer) -> None:
        """Make the optimizers' states in the checkpoint, which Lightning is about to restore, those of this fit."""
        if not self._parameters or not self.by_optimizers:
            self._kept, self._checkpoint = {}, {}
        together = self._for_all(trainer)
        states = self._checkpoint.get("optimizer_states", []) if together else []
        for number, (state, optimizer) in enumerate(zip(states, self._optimizers, strict=False)):
            kept = {
                f"{it.state_key}/{name}": own
                for it in together
                for name, own in dict(*it._kept.get("optimizers", [])[number : number + 1]).items()
            }
            states[number] = with_added(state, optimizer, _named(together), kept)
        for it in together:
            it._kept, it._checkpoint = {}, {}

    def _for_all(self, trainer: Trainer) -> list["TrainedParts"]:
        """All whose parameters the module's optimizers have, if this is the last of them; it acts for the others, too.

        Parameters are numbered through an optimizer's groups, so added ones come out of them and go in at once.
        """
        together = [it for it in callbacks_of(trainer) if isinstance(it, TrainedParts) and it.by_optimizers]
        together = [it for it in together if it._parameters]
        return together if together[-1:] == [self] else []


def _named(together: list[TrainedParts]) -> dict[str, nn.Parameter]:
    # The state key keeps apart two that call a part alike.
    return {f"{it.state_key}/{name}": parameter for it in together for name, parameter in it._parameters.items()}
