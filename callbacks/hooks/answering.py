"""The answering seam: what parts of the network put out is changed, for the module's own loss alone.

The module's `training_step` sees the change; a validation, a prediction and whoever calls the network between two steps
see the network as it is. Public hooks used: those of `taught.py`; torch's forward hooks.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from .taught import Taught

__all__ = ["Answering"]


class Answering(Taught):
    """Changes what parts of the network put out while `training_step` runs; teachers may add terms to its loss.

    Raises:
        ValueError: what `Taught` raises; before the first step, if another class changes the output of the same part.
    """

    @abstractmethod
    def changed_parts(self, network: nn.Module) -> Sequence[str]:
        """Paths below the network; asked once a fit, when teachers and trained parts are there."""

    @abstractmethod
    def answered(self, path: str, given: Any, output: Any) -> Any:
        """What stands in the place of a part's output, or the very output.

        Args:
            path: Of the part.
            given: The first of its arguments.
            output: What it put out.
        """

    def ready(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what does not fit once loaders are there, before the first step."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off:
            return
        changed = self._changed(pl_module)
        for rival in cast(list[Answering], self.rivals(trainer, Answering)):
            if type(rival) is not type(self) and set(changed.values()) & set(rival._changed(pl_module).values()):
                raise ValueError(
                    f"{type(self).__name__}: {rival.state_key} changes what the same part of the network puts out, and "
                    "one would undo the other; give one of the two another network=, or leave it out."
                )
        for path, part in changed.items():
            # After all of `listen`, also those of others, which therefore hear what the network itself puts out.
            self.undo_later(part.register_forward_hook(self._changer(path)).remove)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not self.off:
            self.ready(trainer, pl_module)

    def _changed(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        network = pl_module.get_submodule(self.outputs_of[0])
        return {path: network.get_submodule(path) for path in self.changed_parts(network)}

    def _changer(self, path: str) -> Callable[[nn.Module, Any, Any], Any]:
        return partial(self._change, path)

    def _change(self, path: str, part: nn.Module, given: Any, output: Any) -> Any:
        # None outside of `training_step`.
        return output if self._outputs is None else self.answered(path, given[0] if given else None, output)
