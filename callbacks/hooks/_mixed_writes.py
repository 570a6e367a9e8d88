"""A torch function that writes mixed values into a plain tensor, which becomes mixed until the step ends."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._halves import Halves

if TYPE_CHECKING:
    from ._mixed_calls import Call
    from ._mixed_labels import MixedTensor, Mixture

__all__ = ["as_loss", "into_plain"]

_SUMS = {"__iadd__", "__isub__", "add_", "sub_"}


def into_plain(call: "Call", target: Tensor, mixture: "Mixture") -> Any:
    """What the function returns, having written.

    Args:
        call: The function.
        target: What it writes into.
        mixture: Of its mixed arguments.
    """
    args, kwargs = call.own_args
    gradient = torch.is_grad_enabled() and (target.requires_grad or any(it.own.requires_grad for it in call.found))
    if gradient and (call.name not in _SUMS or any(it.own.ndim for it in call.found)):
        raise mixture.refusal(f"{call.name} writes labels into a tensor with a gradient, so it cannot be mixed")
    if gradient:
        return call.run(as_loss)
    base = target if target._base is None else target._base
    if type(target) is not Tensor or type(base) is not Tensor:
        return call.func(*args, **kwargs)
    written = [target] if base is target else [base, target]
    # Whoever else holds this memory would read own labels only, unseen: a view taken earlier, an alias.
    if _holders(target) > len(written) or base.dtype != target.dtype:
        raise mixture.refusal(f"{call.name} writes labels into memory of several tensors, so it cannot be mixed")
    before = _memory(target).clone()

    def rewrite(pick: Callable[[Any], Any]) -> Tensor:
        def fitting(mixed: "MixedTensor") -> Any:
            # A mixed count is a fraction, which a counter of integers does not take.
            value = pick(mixed)
            fraction = isinstance(value, Tensor) and value.is_floating_point() and not target.is_floating_point()
            return value.to(target.dtype) if fraction else value

        memory = before.clone()
        rest, others = call.swapped(fitting)
        copied = _like(target, memory)
        if call.kwargs.get("out") is None:
            call.func(copied, *rest[1:], **others)
        else:
            call.func(*rest, **others | {"out": copied})
        return memory

    def run(tensor: Tensor, pick: Callable[[Any], Any]) -> Any:
        return _like(tensor, rewrite(pick))

    own, twin = call.func(*args, **kwargs), call.twin(rewrite)
    for tensor in written:
        value, other = tensor.detach(), _like(tensor, twin)
        share = call.share(value, other, partial(run, tensor))
        tensor.__class__ = call.kind  # others may hold the object
        vars(tensor).update(own=value, twin=other, mixture=mixture, share=share)
        mixture.keep(tensor)  # type: ignore[arg-type]  # it is one now
    return own


def as_loss(mixed: "MixedTensor") -> Tensor:
    """The mixed value of a loss of one number, of other values that of the own labels."""
    return mixed.mixed_value() if mixed.own.requires_grad and mixed.own.ndim == 0 else mixed.own


def _memory(tensor: Tensor) -> Tensor:
    """All elements that lie in the memory of the tensor, one after the other."""
    return tensor.detach().as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


def _like(tensor: Tensor, memory: Any) -> Any:
    """The view of `memory` that `tensor` is of its own; of two halves' memory, two."""
    if isinstance(memory, Halves):
        first, second = (_like(tensor, it) for it in (memory.first, memory.second))
        return replace(memory, first=first, second=second)
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _holders(tensor: Tensor) -> int:
    """How many tensors lie in the same memory."""
    # Private, but torch has no public count; one is the storage object that is asked.
    return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)) - 1
