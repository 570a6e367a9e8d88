"""Labels of a mixed batch: to every reader the images' own, to a loss both those and their partners'.

Two worlds go through a training step side by side. In one the labels are y_a, the own ones, in the other y_b, those of
the partners. Each torch function of a `MixedTensor` is computed in both, so a loss L that was written for integer
labels arrives as the pair L(y_a), L(y_b), and is read as `lam L(y_a) + (1 - lam) L(y_b)`. Whatever else is read
(metrics, numbers, what is left after the step) is that of the own labels. Letters: B samples, lam share of the own
label.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from ._sample_shares import blend, keeps_samples_apart, reduces_samples, weight_of_labels

__all__ = ["MixedTensor", "Mixture", "resolved"]

# A result of these depends on shapes only.
_FRESH = ("new_tensor", "new_zeros", "new_ones", "new_full", "new_empty")
# Views behind attributes; all other attributes are read from the own labels.
_VIEWS = {"T", "mT", "H", "mH", "data", "real"}
_USES_OF_A_LOSS = {"backward", "grad", "retain_grad", "register_hook"}
# Twice would be two draws, or two updates of running statistics.
_ONCE_ONLY = {"batch_norm", "instance_norm", "dropout", "bernoulli", "multinomial", "gumbel_softmax", "normal", "rrelu"}
_SUMS = {"__iadd__", "__isub__", "add_", "sub_"}


class Mixture:
    """What all mixed tensors of one batch share.

    Args:
        owner: Who mixes; the subject of the errors.
        lam: Share of the own label, 0..1: one for the batch, or `(B,)`.
        size: B.
    """

    def __init__(self, owner: str, lam: float | Tensor, size: int) -> None:
        self.owner, self.lam, self.size = owner, lam, size
        self.losses = 0
        self.is_live = False
        self._made: list[weakref.ref[MixedTensor]] = []

    @contextmanager
    def live(self) -> Iterator[None]:
        """Mix inside; outside, functions of the labels are those of the own ones. `losses` counts those that were."""
        self.losses, self.is_live = 0, True
        try:
            yield
        finally:
            self.is_live = False
            for reference in self._made:
                tensor = reference()
                if tensor is not None:
                    _settle(tensor)
            self._made.clear()

    def keep(self, tensor: "MixedTensor") -> None:
        """Make it a plain tensor when the step ends, wherever it was put: a metric's state, a list, a log."""
        self._made.append(weakref.ref(tensor))

    def refusal(self, what: str) -> ValueError:
        """The error that `what` cannot be mixed."""
        return ValueError(f"{self.owner}: {what}; pass targets='soft' or targets='sampled'.")


class MixedTensor(Tensor):
    """A tensor that was computed from mixed labels; its own data is what it would be without mixing.

    Attributes:
        own: The value for the own labels, a plain tensor with its gradient.
        twin: The value for the partners' labels. Where samples have shares of their own and have been reduced to one
            number, it is the mixed value already.
        share: What of the mixed value is `own`: a number, `(B,)`, or None where no mixed value is defined.
        mixture: Of which batch.
    """

    own: Tensor
    twin: Tensor
    share: float | Tensor | None
    mixture: Mixture

    @staticmethod
    def of(own: Tensor, twin: Tensor, mixture: Mixture, share: float | Tensor | None) -> "MixedTensor":
        """Pair the two values; `own` keeps its storage."""
        # Without gradient: what C++ code takes from it behind our back is then no loss at all, rather than a wrong one.
        mixed = own.detach().as_subclass(MixedTensor)
        mixed.own, mixed.twin, mixed.mixture, mixed.share = own, twin, mixture, share
        if mixture.is_live:
            mixture.keep(mixed)
        return mixed

    @classmethod
    @torch.compiler.disable
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _Call(func, args, kwargs or {}).result()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.own.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return deepcopy(self.own, memo)


def mixed_value(mixed: MixedTensor) -> Tensor:
    """`share * own + (1 - share) * twin`, plain."""
    kept: Tensor | None = mixed.__dict__.get("value")
    if kept is not None:
        return kept
    if mixed.share is None:
        raise mixed.mixture.refusal("this loss compares the labels of different samples, whose shares differ")
    mixed.mixture.losses += mixed.twin.requires_grad
    value = mixed.__dict__["value"] = blend(mixed.own, mixed.twin, mixed.share)
    return value


def resolved(output: Any) -> Any:
    """What a step returned with plain tensors: mixed where there is a gradient, of the own labels elsewhere."""

    def resolve(mixed: MixedTensor) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return mixed_value(mixed) if mixed.own.requires_grad else mixed.own

    return apply_to_collection(output, MixedTensor, resolve)


def _settle(mixed: MixedTensor) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        # A loss that was stored keeps the mixed value, for logs.
        is_loss = mixed.own.requires_grad and mixed.share is not None
        mixed.data = (mixed_value(mixed) if is_loss else mixed.own).detach()
        mixed.__class__ = Tensor  # type: ignore[assignment]  # the same object, wherever it is held
        mixed.__dict__.clear()


class _Call:
    """One torch function with at least one mixed argument."""

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name: str = getattr(func, "__name__", "")
        self.found: list[MixedTensor] = []
        self.own_args = _swap((args, kwargs), self._take_own)

    def _take_own(self, mixed: MixedTensor) -> Tensor:
        self.found.append(mixed)
        return mixed.own

    def run(self, pick: Callable[[MixedTensor], Any], **changed: Any) -> Any:
        args, kwargs = _swap((self.args, self.kwargs), pick)
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
        if self._is_in_place() and isinstance(self.args[0], Tensor) and not isinstance(self.args[0], MixedTensor):
            return self._into_plain(self.args[0], mixture)
        own = self.func(*own_args, **own_kwargs)
        if self.name == "__setitem__":
            self.run(_as_twin)
            if any(mixed.share is None for mixed in self.found):
                self.args[0].share = None
            return own
        if self._is_plain(own):
            return self.run(_as_loss) if losses else own
        if isinstance(own, Tensor) and losses and not own.requires_grad:
            return self.run(_as_loss)
        return self.paired(own)

    def _is_in_place(self) -> bool:
        name = self.name
        return name.endswith("_") and (not name.endswith("__") or name.startswith("__i") or name == "__setitem__")

    def _is_plain(self, own: Any) -> bool:
        if self.name == "__get__":
            descriptor: Any = self.func
            return descriptor.__self__.__name__ not in _VIEWS
        if "out" in self.kwargs or self.name.endswith("_like") or self.name in _FRESH:
            return True
        return not any(isinstance(it, Tensor) for it in (own if isinstance(own, (tuple, list)) else (own,)))

    def paired(self, own: Any) -> Any:
        """The result in both worlds, `own` being known."""
        mixture = self.found[0].mixture
        if isinstance(mixture.lam, Tensor) and all(isinstance(mixed.share, Tensor) for mixed in self.found):
            value = self._reduced(mixture.lam)
            if value is not None:
                return MixedTensor.of(own, value, mixture, 0.0)
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
            raise mixture.refusal(f"{self.name} compares the labels of different samples, whose shares differ")
        if own.requires_grad != twin.requires_grad:
            raise mixture.refusal(f"{self.name} has a gradient for some labels only, so it cannot be mixed")
        if self._is_in_place():
            changed: MixedTensor = self.args[0]
            changed.share = share
            vars(changed).pop("value", None)
            return changed
        return MixedTensor.of(own, twin, mixture, share)

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
        done = self._is_in_place() and isinstance(self.args[0], MixedTensor)
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
            twin_weight = weight_of_labels(self.func, *_swap((self.args, self.kwargs), _as_twin))
            if own_weight is None or twin_weight is None:
                return total.mean()
            return total.sum() / blend(own_weight, twin_weight, lam).sum()
        if self.name not in ("sum", "mean") or not reduces_samples(self.args, self.kwargs):
            return None
        mixed = self.args[0]
        return self.func(blend(mixed.own, mixed.twin, lam), *self.args[1:], **self.kwargs)

    def _into_plain(self, target: Tensor, mixture: Mixture) -> Any:
        """A function that writes mixed values into a plain tensor, which becomes mixed until the step ends."""
        args, kwargs = self.own_args
        gradient = torch.is_grad_enabled() and (target.requires_grad or any(it.own.requires_grad for it in self.found))
        if gradient and (self.name not in _SUMS or any(it.own.ndim for it in self.found)):
            raise mixture.refusal(f"{self.name} writes labels into a tensor with a gradient, so it cannot be mixed")
        if gradient:
            return self.run(_as_loss)
        if type(target) is not Tensor:
            return self.func(*args, **kwargs)
        before = target.clone()

        def run(pick: Callable[[Any], Any]) -> Tensor:
            copied = before.clone()
            rest, others = _swap((self.args[1:], self.kwargs), pick)
            self.func(copied, *rest, **others)
            return copied

        own = self.func(*args, **kwargs)
        value, twin = target.detach(), run(_as_twin)
        share = self._share(value, twin, run)
        target.__class__ = MixedTensor  # others may hold the object
        vars(target).update(own=value, twin=twin, mixture=mixture, share=share)
        mixture.keep(target)  # type: ignore[arg-type]  # it is one now
        return own


def _as_own(mixed: MixedTensor) -> Tensor:
    return mixed.own


def _as_twin(mixed: MixedTensor) -> Tensor:
    return mixed.twin


def _as_loss(mixed: MixedTensor) -> Tensor:
    return mixed_value(mixed) if mixed.own.requires_grad and mixed.own.ndim == 0 else mixed.own


def _swap(value: Any, pick: Callable[[MixedTensor], Any]) -> Any:
    """The argument with `pick` of each mixed tensor in it."""
    if isinstance(value, MixedTensor):
        return pick(value)
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_swap(item, pick) for item in value])
    if kind is dict:
        return {key: _swap(item, pick) for key, item in value.items()}
    return value
