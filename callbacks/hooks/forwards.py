"""The forwards seam: what chosen layers put out is changed, in training and in evaluation, by torch's forward hooks.

Public hooks used: `on_fit_start` and the start of a validation, test and prediction. By then all callbacks have been
set up, so what changes the network's layers has done so; and no compiled module has been called yet, after which
torch's hooks would not be seen.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from .method import Method, Place

__all__ = ["Forwards"]


class Forwards(Method):
    """Changes the outputs of layers from the start of a run to its end, in a fit and in any evaluation.

    Weights, files and keys are those of the network itself, which computes without the change when the run is over. A
    run in which no layer was called, or none put out what could be changed, ends with a warning.

    Args:
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: before the first step, what `chosen` raises; in the first batch, if a layer puts out no tensor.
    """

    place = Place.NETWORK

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self._hooks = ExitStack()
        self._idle = False  # whether there are layers and nothing of them was changed yet

    @abstractmethod
    def chosen(self, pl_module: LightningModule) -> Iterable[str]:
        """Dotted names of the layers; a ValueError if the module does not fit."""

    @abstractmethod
    def changed(self, layer: str, output: Tensor) -> Tensor:
        """What stands in the place of a layer's output, or the very output; gradients pass through it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.undo_later(self._hooks.close)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._begin(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn != "fit":
            self._begin(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        self._begin(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_start(trainer, pl_module)
        self._begin(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if self._idle:
            rank_zero_warn(
                f"{type(self).__name__}: it changed nothing, for its layers ({', '.join(self.chosen(pl_module))}) were "
                "not called or put out no more than may pass; name other layers with layers=, or check the settings."
            )

    def state_dict(self) -> dict[str, Any]:
        # So that a file tells of it.
        return super().state_dict() | ({} if self.off else {"changed": True})

    def _begin(self, pl_module: LightningModule) -> None:
        self._hooks.close()
        self._idle = not self.off
        for name in () if self.off else self.chosen(pl_module):
            layer = pl_module.get_submodule(name)
            self._hooks.callback(layer.register_forward_hook(self._changer(name)).remove)

    def _changer(self, name: str) -> Callable[[nn.Module, Any, Any], Tensor]:
        def change(layer: nn.Module, inputs: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"{type(self).__name__}: layer {name!r} puts out a {type(output).__name__} and no tensor; name "
                    "another one with layers=."
                )
            result = self.changed(name, output)
            self._idle = self._idle and result is output
            return result

        return change
