"""The bodies of functions of `torch.nn.functional` that are made of others, as multi-head attention is.

Such a function hands itself to a mode at its top, and what it calls further inside, its softmax among others, is then
hidden from the mode. Its body is therefore run with that door shut. That relies on a private habit of torch, tried with
torch 2.15.0: the door is a global function called as in `DOORS`. A test of attention modules fails where it is not.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch.nn.functional as F

__all__ = ["composed_body"]

DOORS = {"has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"}


def composed_body(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function without what it does first, which is to ask for a mode; None if it is not made of others."""
    if not isinstance(func, FunctionType) or func.__module__ != F.__name__ or DOORS.isdisjoint(func.__code__.co_names):
        return None
    inside = {**func.__globals__, **dict.fromkeys(DOORS, lambda *_: False)}
    body = FunctionType(func.__code__, inside, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body
