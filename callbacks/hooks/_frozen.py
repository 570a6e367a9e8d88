"""Freezing all of a module but some named parts, or some entries of a parameter, and its undo."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ._added import is_aside
from ._live_tensors import plain_name

__all__ = ["Frozen", "StandingEntries", "lies_in", "part_name"]


def lies_in(name: str, parts: Collection[str]) -> bool:
    """Whether a parameter or a part of a module is one of `parts` or lies inside one; names are compared part by part.

    >>> lies_in("network.fc.weight", ("network.fc",)), lies_in("network.fc2.weight", ("network.fc",))
    (True, False)
    """
    while name not in parts:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return False
    return True


def part_name(name: str) -> str:
    """A part's name in its module without the wrappers of `torch.compile`.

    >>> part_name("network._orig_mod"), part_name("network._orig_mod.fc")
    ('network', 'network.fc')
    """
    return plain_name(f"{name}.")[:-1]


class Frozen:
    """A module of which only some parts train; made, it is frozen, until `undo`.

    What was frozen or in evaluation before stays so. A part that contains a trained one keeps its mode, for its forward
    may depend on it (auxiliary outputs, dropout before the head); so does one without parameters that the module holds
    directly, such as a loss, a metric or an augmentation.

    Args:
        module: Which module.
        trained: Names of the parts, or of parameters, that train. A parameter with several names trains if one does.
        rests: Whether what holds no trained parameter goes into evaluation mode.
    """

    def __init__(self, module: LightningModule, trained: Collection[str], rests: bool = True) -> None:
        self.module, self.training = module, module.training
        trained = frozenset(trained)
        named = list(module.named_parameters(remove_duplicate=False))
        kept = {id(it) for name, it in named if lies_in(plain_name(name), trained) or is_aside(name)}
        self.parameters = [it for it in module.parameters() if id(it) not in kept and it.requires_grad]
        self.parts = _resting(module, trained) if rests else []
        for parameter in self.parameters:
            parameter.requires_grad_(False)
            # What is left of earlier steps would be stepped with once more.
            parameter.grad = None
        self.rest()

    def rest(self) -> None:
        """Put the frozen parts into evaluation mode again."""
        for part in self.parts:
            if part.training:
                part.training = False

    def undo(self) -> None:
        """Give parameters and parts back what they had, except that a module under evaluation keeps its parts so."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        if self.module.training is not self.training:
            return
        for part in self.parts:
            part.training = True


class StandingEntries:
    """Parameters that train in part; the other entries get no gradient and are put back after each optimizer step.

    A gradient of zero alone would not do: weight decay and momentum move what has none.

    Args:
        module: Whose parameters; the entries stand as they are now.
        masks: By parameter name, True for the entries that train, of the parameter's shape.
    """

    def __init__(self, module: LightningModule, masks: Mapping[str, Tensor]) -> None:
        named = {plain_name(name): it for name, it in module.named_parameters()}
        self._standing = [(named[name], mask.to(named[name].device)) for name, mask in masks.items()]
        self._values = [it.detach().clone() for it, _ in self._standing]
        self._hooks = [it.register_hook(partial(torch.mul, mask)) for it, mask in self._standing]

    @torch.no_grad()
    def restore(self, *_: Any) -> None:
        """Put the standing entries back."""
        for (parameter, mask), value in zip(self._standing, self._values, strict=True):
            parameter.copy_(torch.where(mask, parameter, value))

    def undo(self) -> None:
        """Let all entries train again."""
        for hook in self._hooks:
            hook.remove()


def _resting(module: LightningModule, trained: frozenset[str]) -> list[torch.nn.Module]:
    """The parts in training mode that hold no trained parameter, do not lie in a trained part, and are not bare."""
    bare = {name for name, part in module.named_children() if next(part.parameters(), None) is None}
    above = {it.rsplit(".", depth)[0] for it in trained for depth in range(1, it.count(".") + 1)}
    spared = {
        id(part)
        for name, part in module.named_modules(remove_duplicate=False)
        if not name or lies_in(part_name(name), trained | bare) or part_name(name) in above or is_aside(name)
    }
    return [part for part in module.modules() if id(part) not in spared and part.training]
