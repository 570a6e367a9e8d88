"""The structure seam: whole channels are masked while a fit runs, and cut out of the module when it has ended.

While fitting, the module keeps its architecture, so files, optimizers, averages and resumes are those of a masked
network. After the fit its layers are narrower ones. Before a further fit with the same callback, or before a file is
loaded into it, they get their full width back, and they are cut again afterwards. Public hooks used: those of
`sparsity.py` and `loss.py`, and `setup` and `teardown`.
"""

import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ._around import Around, last_word
from ._fields import Fields
from .loss import Loss
from .sparsity import Sparsity

__all__ = ["Structure"]


class Structure(Sparsity, Loss):
    """Masks whole channels, teaches what is left by what was there before, and cuts when the fit has ended.

    `parent` holds the parameters and buffers that the module had before the first masks, by name, if a term of the loss
    has a weight; it is saved, and equal on all ranks. A fit that ends by an exception leaves the module at its full
    width, and so does one that ended before anything was masked.

    Args:
        image_key: Key of the images, if batches are mappings.
        others: Go to the next base classes: `include`, `exclude`, `weights` of the terms, `name`.

    Raises:
        ValueError: at set-up, if parts of the module are compiled; before the first step, if the batch has no images
            where they are looked for.
    """

    def __init__(self, *, image_key: str, **others: Any) -> None:
        super().__init__(**others)
        self.fields = Fields(type(self).__name__, image_key, "target")
        self.parent: dict[str, Tensor] = {}
        self._looked = False  # whether this fit's module was seen
        self._widen: Callable[[], None] | None = None
        self._narrowed: ref[LightningModule] | None = None
        self._cut_again = False

    @property
    def off(self) -> bool:
        # Terms of the loss may weigh nothing while channels are cut.
        return super(Loss, self).off

    @abstractmethod
    def look(self, trainer: Trainer, pl_module: LightningModule, images: Tensor) -> None:
        """Called on all ranks before a fit's first batch is trained, to find out what can be cut, or to refuse.

        Args:
            trainer: Of the fit.
            pl_module: At its full width, masked if the fit goes on with masks.
            images: Of the batch, `(B, C, H, W)`, on the module's device.
        """

    @abstractmethod
    def listened(self) -> list[str]:
        """Paths of the submodules whose outputs `term` needs once there is a parent."""

    @abstractmethod
    def narrow(self, pl_module: LightningModule) -> Callable[[], None]:
        """Cut out of the module what is zero in it; what is returned gives it its full width back, with its values."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._narrowed is not None and self._narrowed() is pl_module:
            if stage == "fit":
                self._give_width()
            else:
                # A file that this evaluation loads first.
                loads = Around(pl_module, "on_load_checkpoint", self._widen_and_load)
                self.undo_later(loads.undo)
        if stage == "fit":
            # Those of an earlier fit: there is no parent yet.
            self._looked, self.outputs_of = False, ()
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        for other in self.rivals(trainer, Structure):
            raise ValueError(
                f"{type(self).__name__}: the Trainer also has {other.state_key}, and what one cuts out the other would "
                "look for; keep one of them."
            )
        if any("_orig_mod" in name for name, _ in pl_module.named_modules()):
            raise ValueError(
                f"{type(self).__name__}: parts of {type(pl_module).__name__} are compiled, and their channels cannot "
                "be traced; leave them as they are and compile what is left after the fit."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.off and not self._looked:
            self._looked = True
            self.look(trainer, pl_module, self.fields.image(batch))
            if self.kept_masks:
                self._listen(pl_module)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.silent and not self.parent and self.due(trainer.global_step):
            self.parent = {name: value.detach().clone() for name, value in pl_module.named_parameters()}
            # Statistics of batch norm are each rank's own.
            buffers = {name: value.cpu() for name, value in pl_module.named_buffers()}
            buffers = trainer.strategy.broadcast(buffers)
            self.parent |= {name: value.to(pl_module.device, copy=True) for name, value in buffers.items()}
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def given(self, trainer: Trainer) -> None:
        super().given(trainer)
        self._listen(trainer.lightning_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if self._cut_again or (stage == "fit" and not self.off and self.kept_masks):

            def cut() -> None:
                word.undo()
                self._cut_again = False
                self._widen, self._narrowed = self.narrow(pl_module), ref(pl_module)

            # An average is put into the module by a callback that hears of the end after this one.
            word = last_word(pl_module, "teardown", cut)

    def forget(self) -> None:
        self.parent = {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"parent": dict(self.parent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.parent = dict(state_dict["parent"])

    def __getstate__(self) -> dict[str, Any]:
        # A copy has cut no module.
        return vars(self) | {"_widen": None, "_narrowed": None}

    def _give_width(self) -> None:
        if self._widen is not None:
            self._widen()
        self._widen, self._narrowed = None, None

    def _widen_and_load(self, proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._give_width()
        self._cut_again = True
        return proceed(*args, **kwargs)

    def _listen(self, pl_module: LightningModule) -> None:
        if self.silent:
            return
        # Callback state is loaded before the module has reached its device.
        self.parent = {name: value.to(pl_module.device) for name, value in self.parent.items()}
        if "torch._dynamo" in sys.modules:
            # What was compiled before would not see its layers' hooks.
            torch.compiler.reset()
        self.listen(pl_module, self.listened())
