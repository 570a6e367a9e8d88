"""What a module and its parts, or a training set, keep in plain attributes is put back.

An attribute gets its old object back, and the object its old content: a tensor its numbers, a container what it held, a
generator its state. One that is new is deleted. What torch itself keeps in a module is left to others, but for the
names of its parameters, buffers and parts. Objects of other classes are put in their places, whatever became of them.

A training set is followed into what it is made of: other datasets, and what is called, as transforms are. Its tensors,
its arrays and what long lists hold are the data, which nobody copies.
"""

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import Dataset

__all__ = ["attributes_kept", "data_kept"]

_CONTAINERS: tuple[Any, ...] = (OrderedDict, dict, list, set, deque, bytearray)  # a class before the one it is made of
_LONG = 1000
_PLAIN = (type, FunctionType, BuiltinFunctionType)
_OF_TORCH = vars(nn.Module()).keys()
_NAMES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


@contextmanager
def attributes_kept(module: nn.Module) -> Iterator[None]:
    """At the end, also by an exception, plain attributes of all parts are as they were at the beginning.

    Values of registered parameters and buffers, hooks, gradients and train flags are not looked at. A module that is
    hidden in a container is, with the values of its buffers, too.
    """
    keeper = _Keeper([*module.modules(), *module.parameters(), *module.buffers()])
    for part in module.modules():
        keeper.attributes(part)
    try:
        yield
    finally:
        keeper.put_back()


@contextmanager
def data_kept(loaders: Any, here: bool = False) -> Iterator[None]:
    """At the end, also by an exception, what loaders read from in this process is as it was at the beginning.

    A dataset that counts its samples, or draws from a generator of its own, then gives the next reader what it would
    have given without this one. Workers have a copy of it, so there is nothing to keep. What has a place outside of
    attributes, as a file that is read on or a Python generator, stays where it was read to.

    Args:
        loaders: One, or a collection as Lightning takes it.
        here: Datasets are asked in this process, whatever workers their loaders have.
    """
    keeper = _Keeper([], data=True)
    for loader in CombinedLoader(loaders).flattened:
        if here or not getattr(loader, "num_workers", 0):
            keeper.dataset(getattr(loader, "dataset", None))
            keeper.dataset(getattr(loader, "collate_fn", None))
    try:
        yield
    finally:
        keeper.put_back()


class _Keeper:
    """Ways to put back what was seen.

    Args:
        known: Objects that are not followed.
        data: What is seen is a training set.
    """

    def __init__(self, known: list[Any], data: bool = False) -> None:
        self._data = data
        self._known = {id(it): it for it in known}  # held, for a number is given anew once its object is gone
        self._undo: list[Callable[[], object]] = []

    def put_back(self) -> None:
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def attributes(self, part: nn.Module) -> None:
        # A scripted part keeps all that its code may write in a place of its own.
        if isinstance(part, torch.jit.ScriptModule):
            return
        own = vars(part)
        self._variables(own, frozenset(_OF_TORCH))
        for names in (own[it] for it in _NAMES if it in own):
            self._undo.append(_content_of(names))

    def dataset(self, value: Any) -> None:
        self._follow(value)
        # Whatever its class is.
        if id(value) not in self._known and hasattr(value, "__dict__") and not isinstance(value, _PLAIN):
            self._known[id(value)] = value
            self._variables(vars(value))

    def _variables(self, own: dict[str, Any], but: frozenset[str] = frozenset()) -> None:
        before = {name: value for name, value in own.items() if name not in but}

        def undo() -> None:
            for name in [name for name in own if name not in before and name not in but]:
                del own[name]
            for name, value in before.items():
                if name not in own or own[name] is not value:
                    own[name] = value

        self._undo.append(undo)
        for value in before.values():
            self._follow(value)

    def _follow(self, value: Any) -> None:
        if id(value) in self._known:
            return
        if isinstance(value, (*_CONTAINERS, tuple)):
            self._known[id(value)] = value
            if not isinstance(value, tuple):
                self._undo.append(_content_of(value))
            parts: Any = value.values() if isinstance(value, dict) else value
            if not (isinstance(value, bytearray) or (self._data and len(parts) > _LONG)):
                for part in list(parts):
                    self._follow(part)
            if hasattr(value, "__dict__"):
                self._variables(vars(value))
        elif isinstance(value, nn.Module):
            for part in value.modules():
                if id(part) not in self._known:
                    self._known[id(part)] = part
                    self.attributes(part)
            for buffer in value.buffers():
                self._follow(buffer)
        elif self._data and isinstance(value, (Tensor, np.ndarray)):
            pass
        elif self._data and isinstance(value, MethodType):
            self._follow(value.__self__)
        elif self._data and (isinstance(value, Dataset) or (callable(value) and not isinstance(value, _PLAIN))):
            self._known[id(value)] = value
            if isinstance(value, partial):
                self._follow((value.func, value.args, value.keywords))
            self._variables(getattr(value, "__dict__", {}))
        elif (undo := _value_of(value)) is not None:
            self._known[id(value)] = value
            self._undo.append(undo)


def _content_of(container: Any) -> Callable[[], object]:
    """By the methods of the container's plain class, past those of its own: `Counter.update` would add."""
    kind = next(it for it in _CONTAINERS if isinstance(container, it))
    before: Any = [*container.items()] if isinstance(container, dict) else [*container]

    def undo() -> None:
        now: Any = [*container.items()] if isinstance(container, dict) else [*container]
        if len(now) != len(before) or not all(map(_is, now, before)):
            kind.clear(container)
            (kind.update if isinstance(container, (dict, set)) else kind.extend)(container, before)

    return undo


def _is(now: Any, before: Any) -> bool:
    return now is before or (
        isinstance(now, tuple) and isinstance(before, tuple) and len(now) == len(before) == 2
        and now[0] is before[0] and now[1] is before[1]
    )  # fmt: skip


def _value_of(value: Any) -> Callable[[], object] | None:
    if isinstance(value, Tensor):
        return _numbers_of(value)
    if isinstance(value, np.ndarray) and value.flags.writeable:
        copy = value.copy()
        return lambda: np.copyto(value, copy)
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if isinstance(value, np.random.Generator):
        bits, inner = value.bit_generator, value.bit_generator.state
        return lambda: setattr(bits, "state", inner)
    if isinstance(value, np.random.RandomState):
        old = value.get_state()
        return lambda: value.set_state(old)
    if isinstance(value, random.Random):
        drawn = value.getstate()
        return lambda: value.setstate(drawn)
    return None


def _numbers_of(tensor: Tensor) -> Callable[[], object] | None:
    plain = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_nested)
    # One that is expanded cannot be written in place, one that is not made yet has no numbers.
    if not plain or nn.parameter.is_lazy(tensor) or 0 in tensor.stride():
        return None
    place, copy = tensor.detach(), tensor.detach().clone()

    def undo() -> None:
        if (tensor.shape, tensor.dtype, tensor.data_ptr()) != (place.shape, place.dtype, place.data_ptr()):
            tensor.data = place
        if not torch.equal(place, copy):
            # Only there may a tensor that was made there be written.
            with torch.inference_mode(place.is_inference()):
                place.copy_(copy)

    return undo
