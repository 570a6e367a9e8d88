"""The replaced seam: layers give way to others, and what they became may learn from the network that was there before.

The parent is its parameters and buffers by name, in the callback's state alone: no module holds it, so neither files'
weights nor optimizers nor DDP know of it, and a resumed run has the same one. Public hooks used: those of `network.py`
and `loss.py`, and `on_train_start`.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ._added import is_aside
from ._parent import parents_outputs
from .distilling import Distilling
from .loss import Loss
from .network import Network

__all__ = ["Replaced"]


class Replaced(Network, Loss):
    """Replaces layers at set-up, and adds terms that compare the network with its parent if one of them has a weight.

    `parent` holds the tensors that the module had before its layers were replaced; it is saved, and equal on all ranks.
    A module keeps its parent for further fits with this callback; one whose layers were replaced before, by somebody
    else, is its own parent, as it is when the fit begins, which a warning tells.

    Args:
        others: Go to the next base classes: `weights` of the terms, `name`.

    Raises:
        ValueError: before the first step, if a term has a weight and there is no parent of this module.
    """

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self.parent: dict[str, Tensor] = {}
        self._originals: Mapping[str, nn.Module] = {}
        self._replaced_in: ref[LightningModule] | None = None

    @property
    def off(self) -> bool:
        # Terms of the loss may weigh nothing while layers are replaced.
        return super(Loss, self).off

    @abstractmethod
    def originals(self, pl_module: LightningModule) -> Mapping[str, nn.Module]:
        """Layers as they were, without values, by the path of what stands in their place; `parent` has the values."""

    @abstractmethod
    def listened(self, pl_module: LightningModule) -> Sequence[str]:
        """Paths of the submodules whose outputs `term` needs."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Those of an earlier fit; layers are listened to when they have been replaced.
        self.outputs_of = ()
        before = _tensors(pl_module)
        kinds = (Distilling,) if self.silent else (Distilling, Network)
        for other in [it for kind in kinds for it in self.rivals(trainer, kind)] if stage == "fit" else ():
            raise ValueError(
                f"{type(self).__name__}: the Trainer also has {other.state_key}, and what the network was before "
                "either depends on who comes first; let them fit one after the other."
            )
        super().setup(trainer, pl_module, stage)
        if self.off or self.silent:
            return
        replaced = not before.keys() <= _tensors(pl_module).keys()
        if replaced or self._replaced_in is None or self._replaced_in() is not pl_module:
            self.parent, self._replaced_in = {}, None
            # What a file holds comes from another parent than the weights that it is loaded over.
            if not trainer.ckpt_path and (replaced or stage == "fit"):
                self.parent = {name: it.detach().clone() for name, it in before.items()}
                self._replaced_in = ref(pl_module)
                if not replaced:
                    rank_zero_warn(
                        f"{type(self).__name__}: layers of {type(pl_module).__name__} were replaced before, and what "
                        "it was then is not known; it learns from what it is now."
                    )
        if stage == "fit":
            if trainer.ckpt_path:
                self.parent = {}
            self.listen(pl_module, self.listened(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.off or self.silent:
            return
        # Ranks that drew other weights got those of the first when the strategy wrapped the module.
        parent = trainer.strategy.broadcast({name: it.cpu() for name, it in self.parent.items()})
        self.parent = {name: it.to(pl_module.device) for name, it in parent.items()}
        self._originals = self.originals(pl_module)
        self.undo_later(self._forget_originals)
        with self._as_it_was(pl_module):
            shapes = {name: it.shape for name, it in _tensors(pl_module).items()}
        if shapes != {name: it.shape for name, it in self.parent.items()}:
            kind = type(pl_module).__name__
            raise ValueError(
                f"{type(self).__name__}: {kind} is to learn from the network that it was, which is not known: another "
                "callback changed its layers, or this run goes on from a checkpoint that holds no such network; begin "
                "with the network as it was, or give the terms of the loss the weight 0."
            )
        self._replaced_in = ref(pl_module)

    def parents_outputs(self, pl_module: LightningModule, images: Tensor, paths: Sequence[str]) -> dict[str, Tensor]:
        """What submodules of the parent put out for images `(B, C, H, W)`, in evaluation mode, without gradients."""
        with self._as_it_was(pl_module):
            return parents_outputs(pl_module, self.parent, images, paths)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"parent": {name: it.cpu() for name, it in self.parent.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.parent = dict(state_dict["parent"])

    def __getstate__(self) -> dict[str, Any]:
        # A copy has replaced nothing.
        return vars(self) | {"_replaced_in": None, "_originals": {}}

    @contextmanager
    def _as_it_was(self, pl_module: LightningModule) -> Iterator[None]:
        """The module with its former layers; each stands wherever what replaced it does."""
        standing = {id(pl_module.get_submodule(path)): it for path, it in self._originals.items()}
        places = [it for it in pl_module.named_modules(remove_duplicate=False) if id(it[1]) in standing]
        try:
            for path, layer in places:
                pl_module.set_submodule(path, standing[id(layer)])
            yield
        finally:
            for path, layer in places:
                pl_module.set_submodule(path, layer)

    def _forget_originals(self) -> None:
        self._originals = {}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: it for name, it in tensors if not is_aside(name)}
