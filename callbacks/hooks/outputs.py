"""The outputs seam: what chosen layers put out in every batch of a validation or test, read while its steps run.

Public hooks used: those of `evaluation.py`, `on_fit_start`; torch's forward hooks, during the batches.
"""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from .evaluation import Evaluation, Stage

__all__ = ["Outputs"]


class Outputs(Evaluation):
    """Reads outputs of layers in all batches of watched validations and tests, on every rank, a sanity check's too.

    A compiled module runs those batches eagerly, for torch's hooks do not fire in compiled code.

    Args:
        others: Go to the next base class, among them `every_n_epochs` and `name`.

    Raises:
        ValueError: before the first step, what `watched` raises.
    """

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self._hooks = ExitStack()

    @abstractmethod
    def watched(self, pl_module: LightningModule) -> Iterable[str]:
        """Dotted names of the layers; a ValueError if the module does not fit."""

    @abstractmethod
    def read(self, layer: str, output: Tensor) -> None:
        """A layer has put out a tensor, which must not be changed or kept."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.undo_later(self._hooks.close)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not self.off:
            self.watched(pl_module)

    def batch_starts(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        if "torch._dynamo" in sys.modules:
            self._hooks.enter_context(torch.compiler.set_stance("force_eager"))
        for name in self.watched(pl_module):
            layer = pl_module.get_submodule(name)
            self._hooks.callback(layer.register_forward_hook(self._reader(name)).remove)

    def batch_ends(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        self._hooks.close()

    def _reader(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def read(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.read(name, output.detach())

        return read
