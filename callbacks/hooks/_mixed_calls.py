"""One torch function of mixed labels: computed in both worlds, or in one where that is the answer.

`_mixed_labels.py` says what the two worlds are; its `MixedTensor` hands each function that it is given to a `Call`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._halves import Halves, by_halves, halves_of
from ._mixed_writes import as_loss, into_plain
from ._sample_shares import blend, keeps_samples_apart, mean_or_sum, reduces_samples, weight_of_labels

if TYPE_CHECKING:
    from ._mixed_labels import MixedTensor

__all__ = ["Call"]

# A result of these depends on shapes only.
_FRESH = ("new_tensor", "new_zeros", "new_ones", "new_full", "new_empty")
# Views behind attributes; all other attributes are read from the own labels.
_VIEWS = {"T", "mT", "H", "mH", "data", "real"}
_USES_OF_A_LOSS = {"backward", "grad", "retain_grad", "register_hook"}
# Twice would be two draws, or two updates of running statistics.
_ONCE_ONLY = {"batch_norm", "instance_norm", "dropout", "bernoulli", "multinomial", "gumbel_softmax", "normal", "rrelu"}
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
        args, kwargs = self.swapped(pick)
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
            return self._of_losses()
        if self.name in _ONCE_ONLY:
            raise mixture.refusal(f"the labels go through {self.name}, which cannot be computed twice")
        target = self._target()
        if isinstance(target, (tuple, list)):
            raise mixture.refusal(f"{self.name} writes labels into several tensors at once, so it cannot be mixed")
        if isinstance(target, Tensor) and not isinstance(target, self.kind):
            return into_plain(self, target, mixture)
        own = self.func(*own_args, **own_kwargs)
        if self.name == "__setitem__":
            self.twin(self.run)
            if any(mixed.share is None for mixed in self.found):
                self.args[0].share = None
            return own
        if self._is_plain(own):
            if losses:
                return self.run(as_loss)
            if self.name in _WAYS_OUT and not mixture.left_torch:
                mixture.left_torch = not np.array_equal(own, self.run(_as_first))
            return own
        if isinstance(own, Tensor) and losses and not own.requires_grad:
            return self._of_losses()
        return self.paired(own)

    def _of_losses(self) -> Any:
        """The result for mixed losses, without gradient."""
        value, mixture = self.run(as_loss), self.found[0].mixture
        if mixture.beside is None or not isinstance(value, Tensor):
            return value
        # It is of both halves, so beside values of single samples it is refused.
        return self.kind.of(value, value, mixture, 0.0)

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
                return self.kind.of(_readable(own, value), value, mixture, 0.0)
        twin = self.twin(self.run)
        own = own if self._target() is not None else _readable(own, twin)
        share = self.share(own, twin, self.run)
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
            changed.twin, changed.share = twin, share
            vars(changed).pop("value", None)
            return changed
        return self.kind.of(own, twin, mixture, share)

    def share(self, own: Any, twin: Any, run: Callable[[Callable[[Any], Any]], Any]) -> float | Tensor | None:
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

    def twin(self, run: Callable[[Callable[[Any], Any]], Any]) -> Any:
        """The result in the twin's world."""
        if any(isinstance(mixed.twin, Halves) for mixed in self.found):
            return halves_of(self.name, self.args, self.found, run)
        return run(_as_twin)

    def _reduced(self, lam: Tensor) -> Tensor | Halves | None:
        """The mixed value of a loss or a sum over samples; None for other functions."""
        mixture, how = self.found[0].mixture, self.kwargs.get("reduction")
        if how in ("mean", "sum", "batchmean"):
            own, twin = (self.run(pick, reduction="none") for pick in (_as_own, _as_twin))
            if len(own) != len(lam):
                return None
            swapped = self.swapped(_as_twin)
            weights = [weight_of_labels(self.func, *it) for it in (self.own_args, swapped)]

            def loss(rows: slice) -> Tensor:
                return mean_or_sum(
                    how, own[rows], twin[rows], lam[rows], [it if it is None else it[rows] for it in weights]
                )

            return by_halves(loss, mixture, how == "sum", own.numel())
        if self.name not in ("sum", "mean") or not reduces_samples(self.args, self.kwargs):
            return None
        mixed = self.args[0]

        def reduced(rows: slice) -> Tensor:
            total = blend(mixed.own[rows], mixed.twin[rows], lam[rows])
            return self.func(total, *self.args[1:], **self.kwargs)

        return by_halves(reduced, mixture, self.name == "sum", mixed.own.numel())

    def swapped(self, pick: "Callable[[MixedTensor], Any]") -> Any:
        """The arguments, by position and by name, with `pick` of each mixed tensor among them."""
        return self._swap((self.args, self.kwargs), pick)

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


def _as_twin(mixed: "MixedTensor") -> Any:
    return mixed.twin


def _as_first(mixed: "MixedTensor") -> Tensor:
    return mixed.twin.first if isinstance(mixed.twin, Halves) else mixed.twin


def _readable(own: Any, twin: Any) -> Any:
    """What readers see: that of the images as they were, where it does not grow with the number of samples."""
    # A copy: what is written in place over one is not to be written over the other.
    return twin.first.clone() if isinstance(twin, Halves) and not twin.counted else own
