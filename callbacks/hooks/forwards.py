"""The forwards seam: what chosen layers put out is changed, in training and in evaluation, by torch's forward hooks.

Public hook used: `setup`; hooks that came after the first call of a compiled module would not be seen.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from .method import Method, Place

__all__ = ["Forwards"]


class Forwards(Method):
    """Changes the outputs of layers from set-up to teardown, in a fit, `validate`, `test` and `predict` alike.

    Weights, files and keys are those of the network itself, which computes without the change when the run is over.

    Args:
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: at set-up, what `chosen` raises; in the first batch, if a layer puts out no tensor.
    """

    place = Place.NETWORK

    @abstractmethod
    def chosen(self, pl_module: LightningModule) -> Iterable[str]:
        """Dotted names of the layers; a ValueError if the module does not fit."""

    @abstractmethod
    def changed(self, layer: str, output: Tensor) -> Tensor:
        """What stands in the place of a layer's output; gradients pass through it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.off:
            return
        for name in self.chosen(pl_module):
            layer = pl_module.get_submodule(name)
            self.undo_later(layer.register_forward_hook(self._changer(name)).remove)

    def _changer(self, name: str) -> Callable[[nn.Module, Any, Any], Tensor]:
        def change(layer: nn.Module, inputs: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"{type(self).__name__}: layer {name!r} puts out a {type(output).__name__} and no tensor; name "
                    "another one with layers=."
                )
            return self.changed(name, output)

        return change
