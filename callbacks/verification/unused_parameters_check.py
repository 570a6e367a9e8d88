"""Unused parameters: those that no optimizer has, that never have a gradient, or that several optimizers move."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from ..hooks._added import is_added
from ..hooks._findings import Action
from ..hooks._live_tensors import plain_name
from ..hooks.gradients import Gradients

__all__ = ["UnusedParametersCheck", "grouped", "held_twice", "in_no_optimizer"]


def in_no_optimizer(module: nn.Module, optimizers: Sequence[Optimizer]) -> list[str]:
    """Names of parameters that require a gradient and stand in no optimizer; not those that callbacks have added.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> in_no_optimizer(network, [torch.optim.SGD(network[0].parameters())])
    ['1.weight', '1.bias']
    """
    held = {id(it) for optimizer in optimizers for it in _held(optimizer)}
    named = module.named_parameters()
    return [plain_name(name) for name, it in named if it.requires_grad and id(it) not in held and not is_added(name)]


def held_twice(module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, tuple[int, ...]]:
    """By name of a parameter that stands in several optimizers, their numbers.

    Of groups of one optimizer torch itself refuses it.
    """
    places: dict[int, list[int]] = {}
    for number, optimizer in enumerate(optimizers):
        for parameter in _held(optimizer):
            places.setdefault(id(parameter), []).append(number)
    found = {plain_name(name): tuple(places.get(id(it), ())) for name, it in module.named_parameters()}
    return {name: numbers for name, numbers in found.items() if len(numbers) > 1}


def grouped(module: nn.Module, names: Collection[str]) -> list[str]:
    """Names of parameters; in place of those of a whole part the part's, with their number.

    Whole is a part all of whose parameters that require a gradient are among the names.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    >>> grouped(network, ["0.bias", "1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias"])
    ['0.bias', '1 (4 parameters)']
    """
    names, parts = set(names), dict[str, int]()
    for path, part in module.named_modules():
        own = {plain_name(f"{path}.{name}") for name, it in part.named_parameters() if it.requires_grad}
        path = plain_name(f"{path}.")[:-1]
        if path and len(own) > 1 and own <= names and not any(path.startswith(f"{it}.") for it in parts):
            parts[path] = len(own)
    found: dict[str, None] = {}
    for name in (plain_name(it) for it, _ in module.named_parameters()):
        if name in names:
            part = next((it for it in parts if name.startswith(f"{it}.")), None)
            found[name if part is None else f"{part} ({parts[part]} parameters)"] = None
    return list(found)


@final
class UnusedParametersCheck(Gradients):
    """Names parameters that do not train although they look it, by the gradients of the first optimizer steps.

    Before the first step: parameters that require a gradient and stand in no optimizer, and those that stand in
    several, which all move them. After `steps` steps of each optimizer, or when the fit ends: parameters that never
    had a gradient, with which DDP stops, and frozen ones that still have a gradient, so that their optimizer goes on to
    move them, be it by weight decay. Only after `steps` steps: parameters whose gradient was always exactly zero, and
    optimizers that took none while another one took so many. A part that is unused as a whole is named once.

    Gradients are read after each step, of the parameters that its optimizer holds, so that of a GAN's two optimizers
    each answers for its own network; of accumulated micro-batches it takes one with a gradient.

    Args:
        steps: Optimizer steps that are read before it says "never", of each optimizer, >= 1. Layers behind one that
            starts at zero have a gradient of zero for a step or two, so a fit with fewer, as `fast_dev_run`, says
            nothing of those.
        action: `error` raises, `warn` says it. Neutral: `off`.
        name: Part of the state key.

    Raises:
        ValueError: from the constructor, for a setting out of range.
        RuntimeError: with `action="error"`, when training starts or after the last step that was read.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import UnusedParametersCheck
        >>> trainer = Trainer(callbacks=[UnusedParametersCheck()], accelerator="cpu", logger=False)

    See also:
        `FrozenPartCheck`, which watches that what is frozen stays where it is.
    """

    def __init__(self, steps: int = 5, action: Action = "warn", name: str | None = None) -> None:
        super().__init__(steps=steps, action=action, name=name)
        self._module: LightningModule | None = None
        self._optimizers: list[Optimizer] = []
        # By parameter, whether it ever had a gradient, as a number on the device that is above 0 if one was not zero.
        self._alive: dict[int, Tensor] = {}
        self._lingering: set[int] = set()  # frozen ones that had a gradient

    def begin(self, pl_module: LightningModule, optimizers: Sequence[Optimizer]) -> Sequence[str]:
        self._forget()
        self.undo_later(self._forget)
        self._module, self._optimizers = pl_module, list(optimizers)
        found = []
        if forgotten := in_no_optimizer(pl_module, optimizers):
            found.append(
                f"{_listed(pl_module, forgotten)} require a gradient and stand in no optimizer, so they keep their "
                "first values; hand them to one in configure_optimizers, or freeze them by requires_grad_(False)."
            )
        if twice := held_twice(pl_module, optimizers):
            numbers = " and ".join(map(str, sorted({it for them in twice.values() for it in them})))
            found.append(
                f"{_listed(pl_module, twice)} stand in the optimizers {numbers}, which all move them; give each "
                "parameter to one."
            )
        return found

    def read(self, optimizer: Optimizer) -> None:
        for parameter in _held(optimizer):
            gradient = parameter.grad
            if gradient is None:
                continue
            if not parameter.requires_grad:
                self._lingering.add(id(parameter))
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            count = torch.count_nonzero(values.detach())
            self._alive[id(parameter)] = self._alive.get(id(parameter), 0) + count

    def conclude(self, taken: Sequence[int]) -> Sequence[str]:
        module, found = self._module, []
        if module is None:
            return []
        # A transfer for all of them.
        alive = (
            dict(zip(self._alive, torch.stack([*self._alive.values()]).tolist(), strict=True)) if self._alive else {}
        )
        stepped = {id(it) for count, held in zip(taken, self._optimizers, strict=True) if count for it in _held(held)}
        named = [(plain_name(name), it) for name, it in module.named_parameters() if id(it) in stepped and it.numel()]
        trained = [(name, it) for name, it in named if it.requires_grad]
        steps = f"{min(it for it in taken if it)} steps" if any(taken) else "no steps"
        if unused := [name for name, it in trained if id(it) not in alive]:
            found.append(
                f"{_listed(module, unused)} had no gradient in {steps}: the loss does not depend on them, and DDP "
                "stops there unless it has strategy='ddp_find_unused_parameters_true'; use them in the "
                "forward, or remove or freeze them."
            )
        known = {
            id(it)
            for count, held in zip(taken, self._optimizers, strict=True)
            if count == self.steps
            for it in _held(held)
        }
        if dead := [name for name, it in trained if id(it) in known and alive.get(id(it)) == 0]:
            found.append(
                f"{_listed(module, dead)} had a gradient of exactly zero in {self.steps} steps: what they compute is "
                "multiplied by zero, cut off or detached; look behind them for a mask, a dead ReLU or a factor of 0."
            )
        if moving := [name for name, it in named if id(it) in self._lingering and not it.requires_grad]:
            found.append(
                f"{_listed(module, moving)} are frozen and still have a gradient, with which their optimizer moves "
                "them, by momentum and weight decay too; set their grad to None, or leave them out of the optimizer."
            )
        idle = [number for number, count in enumerate(taken) if not count]
        if idle and max(taken) == self.steps:
            found.append(
                f"of {len(taken)} optimizers number {', '.join(map(str, idle))} took no step; step it in "
                "training_step, or do not return it from configure_optimizers."
            )
        return found

    def _forget(self) -> None:
        self._module, self._optimizers, self._alive, self._lingering = None, [], {}, set()


def _held(optimizer: Optimizer) -> Iterator[Any]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _listed(module: nn.Module, names: Collection[str]) -> str:
    """At most ten, in words that begin a sentence."""
    found = grouped(module, names)
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return f"parameters {', '.join(found[:10])}{more}"
