"""Numbers that a training reads while it runs, found by dotted names, so that a callback can move them.

The first part of a name says where to look, all others are attributes, keys or positions:

- `optimizer.KEY`: this entry of each parameter group that has it, of all optimizers;
- `datamodule. ...`: the datamodule of the fit;
- `callbacks.KEY. ...`: another callback, by its state key, or by its class if the Trainer has one of it;
- anything else: the module. With `*`, `?` or `[...]` in it, the last part of each submodule whose path matches.
"""

import difflib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import reduce
from numbers import Real
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from .method import Method, callbacks_of

__all__ = ["Attribute", "find"]

RATES = ("lr", "initial_lr", "max_lr", "min_lr")


@dataclass(frozen=True)
class Attribute:
    """One place that holds a number.

    Args:
        name: Its full name.
        owner: Object, list, mapping or optimizer that has it.
        key: What it is called there.
        group: Number of the optimizer's parameter group. The group itself is none to keep: a checkpoint exchanges it.
        groups: How many groups the optimizer has.
        inherited: Whether the owner itself has none, and reads its class's.
    """

    name: str
    owner: Any
    key: str
    group: int | None = None
    groups: int = 0
    inherited: bool = False

    @property
    def place(self) -> tuple[int, int | None, str]:
        """By which two names of one place are told to be one."""
        return id(self.owner), self.group, self.key

    def get(self) -> Any:
        """The number, of Python's, or a tensor of one element."""
        return _part(self._holder(), self.key)

    def set(self, value: float) -> None:
        """Put a number in its place; a tensor is filled, so that whoever holds it sees the number too."""
        holder = self._holder()
        now = _part(holder, self.key)
        if isinstance(now, Tensor):
            with torch.no_grad():
                now.fill_(value if now.is_floating_point() else round(value))
        elif isinstance(holder, list):
            holder[int(self.key)] = value
        elif isinstance(holder, MutableMapping):
            holder[self.key] = value
        else:
            setattr(holder, self.key, value)

    def put_back(self, own: float) -> None:
        """Let it be what it was before it was set."""
        self.set(own)
        if self.inherited and self.key in vars(self.owner):
            delattr(self.owner, self.key)

    def _holder(self) -> Any:
        return self.owner if self.group is None else self.owner.param_groups[self.group]


def find(owner: str, name: str, trainer: Trainer, pl_module: LightningModule) -> list[Attribute]:
    """The places of a name, at least one, of which each holds a number that can be set.

    Args:
        owner: Who speaks in a refusal.
        name: See above.
        trainer: It is in a fit whose optimizers are made.
        pl_module: Its module.

    Raises:
        ValueError: there is nothing of the name, or no number, or none that can be set, or one that is others' to move.
    """
    root, _, rest = name.partition(".")
    if root == "optimizer":
        return _of_groups(owner, rest, trainer, pl_module)
    start: Any = pl_module
    path, parts = type(pl_module).__name__, name.split(".")
    if root == "datamodule":
        start, path, parts = getattr(trainer, "datamodule", None), "datamodule", parts[1:]
        if start is None:
            raise ValueError(
                f"{owner}: {name!r} is asked of the datamodule, and this fit was given loaders; pass fit a datamodule=."
            )
    elif root == "callbacks":
        start, rest = _callback(owner, name, rest, trainer)
        path, parts = start.state_key, rest.split(".")
    elif any(it in name for it in "*?["):
        return _of_submodules(owner, name, pl_module)
    if not all(parts):
        raise ValueError(f"{owner}: {name!r} is no dotted name of a number; give one such as 'criterion.temperature'.")
    return [_at(owner, name, start, parts, path)]


def _at(owner: str, name: str, start: Any, parts: list[str], path: str) -> Attribute:
    """The number at the end of `parts`, walked from `start`, which is called `path`."""
    holder = start
    for number, part in enumerate(parts):
        try:
            value = _part(holder, part)
        except (AttributeError, LookupError, ValueError):
            where = ".".join([path, *parts[:number]])
            raise ValueError(f"{owner}: {name!r}: {where} has no {part!r}; {_there(holder, part)}.") from None
        if number < len(parts) - 1:
            holder = value
    if (why := _no_number(value)) is not None:
        raise ValueError(f"{owner}: {name!r} {why}")
    found, before = Attribute(name, holder, parts[-1]), parts[-1] in _own(holder)
    try:
        found.set(value.item() if isinstance(value, Tensor) else value)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"{owner}: {name!r} cannot be set, for its {type(holder).__name__} does not let it ({error}); name "
            "something that can."
        ) from None
    if not before and parts[-1] in _own(holder):
        delattr(holder, parts[-1])
        found = replace(found, inherited=True)
    return found


def _of_submodules(owner: str, pattern: str, pl_module: LightningModule) -> list[Attribute]:
    path, _, key = pattern.rpartition(".")
    held = [(name, it) for name, it in pl_module.named_modules() if fnmatchcase(name, path)]
    numbers = [name for name, it in held if _no_number(getattr(it, key, None)) is None]
    if not numbers:
        most = f"{len(held)} submodules match {path!r}, and none has a number {key!r}"
        raise ValueError(f"{owner}: {pattern!r}: {most}; see the names with print({type(pl_module).__name__}).")
    return [_at(owner, f"{it}.{key}", pl_module, [*it.split("."), key], type(pl_module).__name__) for it in numbers]


def _of_groups(owner: str, key: str, trainer: Trainer, pl_module: LightningModule) -> list[Attribute]:
    optimizers = trainer.optimizers
    if key in RATES:
        raise ValueError(
            f"{owner}: 'optimizer.{key}' is a learning rate, which belongs to a schedule of the module's or of the "
            "house; take WarmUpCosine, WarmUpSteps, WarmRestarts, CyclicalLR or OneCycle."
        )
    kinds = " and ".join(type(it).__name__ for it in optimizers) or "no optimizer"
    found = [
        Attribute(f"optimizer.{key}", it, key, number, len(it.param_groups))
        for it in optimizers
        for number, group in enumerate(it.param_groups)
        # Norms and biases, which are usually spared from decay, stay spared.
        if key in group and not (key == "weight_decay" and not group[key])
    ]
    if not found and key == "weight_decay":
        raise ValueError(
            f"{owner}: no parameter group of {type(pl_module).__name__} has a weight decay ({kinds}), so there is "
            "nothing to change; give the optimizer a weight_decay above 0."
        )
    if not found:
        there: dict[str, Any] = reduce(lambda all_, it: {**all_, **it.param_groups[0]}, optimizers, {})
        numbers = [it for it, value in there.items() if _no_number(value) is None and it not in RATES]
        raise ValueError(f"{owner}: no parameter group ({kinds}) has a {key!r}; {_nearest(numbers, key)}.")
    for it in found:
        if (why := _no_number(it.get())) is not None:
            raise ValueError(f"{owner}: {it.name!r} {why}")
    return found


def _callback(owner: str, name: str, rest: str, trainer: Trainer) -> tuple[Any, str]:
    """A callback, and what of the name is left."""
    callbacks = callbacks_of(trainer)
    kinds = [type(it).__name__ for it in callbacks]
    known = {type(it).__name__: it for it in callbacks if kinds.count(type(it).__name__) == 1}
    known |= {it.state_key: it for it in callbacks}
    # State keys may have dots in them.
    key = max((it for it in known if rest.startswith(f"{it}.")), key=len, default=None)
    if key is None:
        raise ValueError(
            f"{owner}: {name!r}: the Trainer has no such callback; {_nearest(list(known), rest.partition('.')[0])}."
        )
    found = known[key]
    if isinstance(found, Method) and found.off:
        raise ValueError(
            f"{owner}: {name!r}: {found.state_key} is switched off by its own settings, so nobody would read the "
            "number; give it a setting that is on, in the place of which the first value steps."
        )
    return found, rest.removeprefix(f"{key}.")


def _own(holder: Any) -> Mapping[str, Any]:
    own: Mapping[str, Any] = getattr(holder, "__dict__", {})
    return own


def _part(holder: Any, part: str) -> Any:
    if isinstance(holder, Mapping):
        return holder[part]
    if isinstance(holder, (list, tuple)) and part.isdecimal():
        return holder[int(part)]
    return getattr(holder, part)


def _no_number(value: Any) -> str | None:
    """Why it is none that can be set."""
    if isinstance(value, nn.Parameter):
        return "is a parameter, which is the optimizer's to move; name a number or a buffer."
    if isinstance(value, Tensor):
        shape = tuple(value.shape)
        return None if value.numel() == 1 else f"is a tensor of shape {shape}; name a number, or a tensor of one."
    if isinstance(value, Real) and not isinstance(value, bool):
        return None
    shown = repr(value)
    return f"is {shown if len(shown) < 60 else f'a {type(value).__name__}'}, which is no number; name one."


def _there(holder: Any, part: str) -> str:
    if isinstance(holder, (list, tuple)):
        return f"it has positions 0 to {len(holder) - 1}" if holder else "it is empty"
    if isinstance(holder, Mapping):
        return _nearest([str(it) for it in holder], part)
    names = list(getattr(holder, "__dict__", ()))
    names += [it for it in dir(type(holder)) if isinstance(getattr(type(holder), it, None), property)]
    if isinstance(holder, nn.Module):
        names += [*dict(holder.named_children()), *dict(holder.named_buffers(recurse=False))]
    return _nearest([it for it in dict.fromkeys(names) if not it.startswith("_") and it != "training"], part)


def _nearest(names: list[str], wanted: str) -> str:
    close = difflib.get_close_matches(wanted, names, n=5, cutoff=0.4) or names[:20]
    return f"there are {', '.join(close)}" if close else "it has nothing"
