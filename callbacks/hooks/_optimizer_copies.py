"""Copies of optimizers that take steps of their own on the same parameters.

torch's `Optimizer.__getstate__` gives away defaults, state and groups alone, so `copy.deepcopy` loses what a subclass
keeps beside them, as timm's `Lookahead` the optimizer in it. Here all attributes are copied but two kinds: dictionaries
of hooks, with `_hooks` in their names, are empty, and functions that others have put in the place of the class's own,
as a schedule of torch does with `step`, are left out. `tests/callbacks/hooks/test_optimizer_copies.py` fails where
torch keeps them elsewhere.
"""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

__all__ = ["asks_for_closure", "twin_of"]


def asks_for_closure(optimizer: Optimizer) -> bool:
    """Whether it, or one inside it, cannot take a step without a function that computes the loss, as `LBFGS`."""
    steps = (list(inspect.signature(type(it).step).parameters.values())[1:] for it in _inside(optimizer, set()))
    return any(it.default is it.empty and it.kind is it.POSITIONAL_OR_KEYWORD for step in steps for it in step)


def twin_of(owner: str, optimizer: Optimizer, shared: Iterable[object]) -> Any:
    """A copy without hooks.

    Args:
        owner: Who speaks in a refusal.
        optimizer: What is in its attributes is copied, too, other optimizers likewise.
        shared: What is not: parameters, the module and the like.

    Raises:
        ValueError: something in it cannot be copied.
    """
    memo: dict[int, Any] = {id(it): it for it in shared}
    pairs = [(it, object.__new__(type(it))) for it in _inside(optimizer, set())]
    memo |= {id(own): twin for own, twin in pairs}
    for own, twin in pairs:
        for name, value in vars(own).items():
            if "_hooks" in name:
                vars(twin)[name] = OrderedDict[int, Any]()
            elif not (callable(value) and callable(getattr(type(own), name, None))):
                try:
                    vars(twin)[name] = copy.deepcopy(value, memo)
                except Exception as error:  # of any kind: it is a stranger's object
                    raise ValueError(
                        f"{owner}: {type(own).__name__} cannot be copied for steps that leave no trace, for its {name} "
                        f"cannot ({error}); leave the test out, or give it what can be copied."
                    ) from error
    return memo[id(optimizer)]


def _inside(value: Any, seen: set[int]) -> Iterator[Optimizer]:
    """The optimizer itself, and those in its attributes and in containers there."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Optimizer):
        yield value
        parts: Iterable[Any] = [it for name, it in vars(value).items() if name not in ("state", "param_groups")]
    elif isinstance(value, Mapping):
        parts = value.values()
    else:
        parts = value if isinstance(value, (list, tuple, set)) else ()
    for part in parts:
        yield from _inside(part, seen)
