"""What schedules move of an optimizer's parameter groups: learning rates and momentum.

Momentum is SGD's and RMSprop's `momentum` and the first of Adam's `betas`.
"""

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["momentum_of", "own_rates", "set_momentum", "set_rate"]


def own_rates(optimizer: Optimizer) -> list[float]:
    """The rates that a module gave its parameter groups, also where a schedule of its own has moved them since."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def set_rate(group: MutableMapping[str, Any], rate: float | Tensor) -> None:
    """Give a parameter group another learning rate; one that is held as a tensor is written in place."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def momentum_of(group: MutableMapping[str, Any]) -> float:
    """A group's momentum, 0 where it has none.

    >>> momentum_of({"momentum": 0.9}), momentum_of({"betas": (0.8, 0.999)}), momentum_of({"lr": 0.1})
    (0.9, 0.8, 0.0)
    """
    betas = group.get("betas")
    return float(group.get("momentum", 0.0) if betas is None else betas[0])


def set_momentum(group: MutableMapping[str, Any], momentum: float) -> None:
    """Give another momentum to a group that has one."""
    if group.get("betas") is None:
        group["momentum"] = momentum
    else:
        group["betas"] = (momentum, *group["betas"][1:])
