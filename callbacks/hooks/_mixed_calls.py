"""One torch function of mixed labels: computed in both worlds, or in one where that is the answer.

`_mixed_labels.py` says what the two worlds are; its `MixedTensor` hands each function that it is given to a `Call`.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._sample_shares import blend, keeps_samples_apart, reduces_samples, weight_of_labels

if TYPE_CHECKING:
    from ._mixed_labels import MixedTensor, Mixture

__all__ = ["Call"]

# A result of these depends on shapes only.
_FRESH = ("new_tensor", "new_zeros", "new_ones", "new_full", "new_empty")
# Views behind attributes; all other attributes are read from the own labels.
_VIEWS = {"T", "mT", "H", "mH", "data", "real"}
_USES_OF_A_LOSS = {"backward", "grad", "retain_grad", "register_hook"}
# Twice would be two draws, or two updates of running statistics.
_ONCE_ONLY = {"batch_norm", "instance_norm", "dropout", "bernoulli", "multinomial", "gumbel_softmax", "normal", "rrelu"}
_SUMS = {"__iadd__", "__isub__", "add_", "sub_"}
# What they return is no tensor, so nothing that is computed from it can be mixed.
_WAYS_OUT = {"tolist", "item", "numpy", "__array__", "__int__", "__index__", "__float__", "__bool__", "__contains__"}
_WAYS_OUT |= {"is_nonzero", "equal", "allclose"}


class Call:
    """One torch function with at least one mixed argument."""

    def __init__(
        self, kind: "type[MixedTensor]", func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.kind, self.func, self.args, self.kwargs = kind, func, args, kwargs
        self.name: str = getattr(func, "__name__", "")
        self.found: list[MixedTensor] = []
        self.own_args = self._swap((args, kwargs), self._take_own)

    def _take_own(self, mixed: "MixedTensor") -> Tensor:
        self.found.append(mixed)
        return mixed.own

    def run(self, pick: "Callable[[MixedTensor], Any]", **changed: Any) -> Any:
        args, kwargs = self._swap((self.args, self.kwargs), pick)
        return self.func(*args, **kwargs | changed)

    def result(self) -> Any:
        own_args, own_kwargs = self.own_args
        if not any(mixed.mixture.is_live for mixed in self.found):
            return self.func(*own_args, **own_kwargs)
        mixture = self.found[0].mixture
        if any(mixed.requires_grad for mixed in self.found):
            raise mixture.refusal("this loss is a torch.autograd.Function of the labels, which cannot be mixed")
        losses = [mixed for mixed in self.found if mixed.own.requires_grad and mixed.own.ndim == 0]
        if losses and (self.name in _USES_OF_A_LOSS or not torch.is_grad_enabled()):
            return self.run(_as_loss)
        if self.name in _ONCE_ONLY:
            raise mixture.refusal(f"the labels go through {self.name}, which cannot be computed twice")
        target = self._target()
        if isinstance(target, (tuple, list)):
            raise mixture.refusal(f"{self.name} writes labels into several tensors at once, so it cannot be mixed")
        if isinstance(target, Tensor) and not isinstance(target, self.kind):
            return self._into_plain(target, mixture)
        own = self.func(*own_args, **own_kwargs)
        if self.name == "__setitem__":
            self.run(_as_twin)
            if any(mixed.share is None for mixed in self.found):
                self.args[0].share = None
            return own
        if self._is_plain(own):
            if losses:
                return self.run(_as_loss)
            if self.name in _WAYS_OUT and not mixture.left_torch:
                mixture.left_torch = not np.array_equal(own, self.run(_as_twin))
            return own
        if isinstance(own, Tensor) and losses and not own.requires_grad:
            return self.run(_as_loss)
        return self.paired(own)

    def _is_in_place(self) -> bool:
        name = self.name
        if name.endswith("__"):
            # `__invert__` begins as `__iadd__` does, but writes nothing.
            return name == "__setitem__" or (name.startswith("__i") and name != "__invert__")
        return name.endswith("_")

    def _target(self) -> Any:
        """What the function writes into, if anything."""
        if self.kwargs.get("out") is not None:
            return self.kwargs["out"]
        return self.args[0] if self._is_in_place() else None

    def _is_plain(self, own: Any) -> bool:
        if self.name == "__get__":
            descriptor: Any = self.func
            return descriptor.__self__.__name__ not in _VIEWS
        if self.name.endswith("_like") or self.name in _FRESH:
            return True
        return not any(isinstance(it, Tensor) for it in (own if isinstance(own, (tuple, list)) else (own,)))

    def paired(self, own: Any) -> Any:
        """The result in both worlds, `own` being known."""
        mixture = self.found[0].mixture
        if isinstance(mixture.lam, Tensor) and all(isinstance(mixed.share, Tensor) for mixed in self.found):
            value = self._reduced(mixture.lam)
            if value is not None:
                return self.kind.of(own, value, mixture, 0.0)
        twin = self.run(_as_twin)
        share = self._share(own, twin, self.run)
        if isinstance(own, Tensor):
            return self._pair(own, twin, share)
        pairs = [self._pair(left, right, share) for left, right in zip(own, twin, strict=True)]
        return type(own)(pairs)

    def _pair(self, own: Any, twin: Any, share: float | Tensor | None) -> Any:
        mixture = self.found[0].mixture
        if not isinstance(own, Tensor):
            return own
        if own.requires_grad and share is None:
            raise mixture.refusal_of_shares(self.name)
        if own.requires_grad != twin.requires_grad:
            raise mixture.refusal(f"{self.name} has a gradient for some labels only, so it cannot be mixed")
        changed: MixedTensor | None = self._target()
        if changed is not None:
            changed.share = share
            vars(changed).pop("value", None)
            return changed
        return self.kind.of(own, twin, mixture, share)

    def _share(self, own: Any, twin: Any, run: Callable[[Callable[[Any], Any]], Any]) -> float | Tensor | None:
        mixture = self.found[0].mixture
        if not isinstance(mixture.lam, Tensor):
            return mixture.lam
        shares = [mixed.share for mixed in self.found]
        if all(isinstance(share, float) for share in shares):
            return 0.0
        if not all(isinstance(share, Tensor) for share in shares):
            return None
        # What is written in place over mixed labels cannot be tried again.
        done = isinstance(self._target(), self.kind)
        return mixture.lam if done or keeps_samples_apart(run, own, twin, mixture.size) else None

    def _reduced(self, lam: Tensor) -> Tensor | None:
        """The mixed value of a loss or a sum over samples; None for other functions."""
        if self.kwargs.get("reduction") in ("mean", "sum", "batchmean"):
            own, twin = (self.run(pick, reduction="none") for pick in (_as_own, _as_twin))
            if len(own) != len(lam):
                return None
            total = blend(own, twin, lam)
            if self.kwargs["reduction"] == "sum":
                return total.sum()
            if self.kwargs["reduction"] == "batchmean":
                return total.sum() / len(lam)
            own_weight = weight_of_labels(self.func, *self.own_args)
            twin_weight = weight_of_labels(self.func, *self._swap((self.args, self.kwargs), _as_twin))
            if own_weight is None or twin_weight is None:
                return total.mean()
            return total.sum() / blend(own_weight, twin_weight, lam).sum()
        if self.name not in ("sum", "mean") or not reduces_samples(self.args, self.kwargs):
            return None
        mixed = self.args[0]
        return self.func(blend(mixed.own, mixed.twin, lam), *self.args[1:], **self.kwargs)

    def _into_plain(self, target: Tensor, mixture: "Mixture") -> Any:
        """A function that writes mixed values into a plain tensor, which becomes mixed until the step ends."""
        args, kwargs = self.own_args
        gradient = torch.is_grad_enabled() and (target.requires_grad or any(it.own.requires_grad for it in self.found))
        if gradient and (self.name not in _SUMS or any(it.own.ndim for it in self.found)):
            raise mixture.refusal(f"{self.name} writes labels into a tensor with a gradient, so it cannot be mixed")
        if gradient:
            return self.run(_as_loss)
        base = target if target._base is None else target._base
        if type(target) is not Tensor or type(base) is not Tensor:
            return self.func(*args, **kwargs)
        written = [target] if base is target else [base, target]
        # Whoever else holds this memory would read own labels only, unseen: a view taken earlier, an alias.
        if _holders(target) > len(written) or base.dtype != target.dtype:
            raise mixture.refusal(f"{self.name} writes labels into memory of several tensors, so it cannot be mixed")
        before = _memory(target).clone()

        def rewrite(pick: Callable[[Any], Any]) -> Tensor:
            memory = before.clone()
            rest, others = self._swap((self.args, self.kwargs), pick)
            copied = _like(target, memory)
            if self.kwargs.get("out") is None:
                self.func(copied, *rest[1:], **others)
            else:
                self.func(*rest, **others | {"out": copied})
            return memory

        def run(tensor: Tensor, pick: Callable[[Any], Any]) -> Tensor:
            return _like(tensor, rewrite(pick))

        own, twin = self.func(*args, **kwargs), rewrite(_as_twin)
        for tensor in written:
            value, other = tensor.detach(), _like(tensor, twin)
            share = self._share(value, other, partial(run, tensor))
            tensor.__class__ = self.kind  # others may hold the object
            vars(tensor).update(own=value, twin=other, mixture=mixture, share=share)
            mixture.keep(tensor)  # type: ignore[arg-type]  # it is one now
        return own

    def _swap(self, value: Any, pick: "Callable[[MixedTensor], Any]") -> Any:
        """The argument with `pick` of each mixed tensor in it."""
        if isinstance(value, self.kind):
            return pick(value)
        kind = type(value)
        if kind is tuple or kind is list:
            return kind([self._swap(item, pick) for item in value])
        if kind is dict:
            return {key: self._swap(item, pick) for key, item in value.items()}
        return value


def _as_own(mixed: "MixedTensor") -> Tensor:
    return mixed.own


def _as_twin(mixed: "MixedTensor") -> Tensor:
    return mixed.twin


def _as_loss(mixed: "MixedTensor") -> Tensor:
    return mixed.mixed_value() if mixed.own.requires_grad and mixed.own.ndim == 0 else mixed.own


def _memory(tensor: Tensor) -> Tensor:
    """All elements that lie in the memory of the tensor, one after the other."""
    return tensor.detach().as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


def _like(tensor: Tensor, memory: Tensor) -> Tensor:
    """The view of `memory` that `tensor` is of its own."""
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _holders(tensor: Tensor) -> int:
    """How many tensors lie in the same memory."""
    # Private, but torch has no public count; one is the storage object that is asked.
    return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)) - 1
