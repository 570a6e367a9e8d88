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

from ._halves import Halves
from ._mixed_calls import Call
from ._sample_shares import blend

__all__ = ["MixedTensor", "Mixture", "resolved"]


class Mixture:
    """What all mixed tensors of one batch share.

    Args:
        owner: Who mixes; the subject of the errors.
        lam: Share of the own label, 0..1: one for the batch, or `(B,)`.
        size: B.
        beside: Where the batch has two halves (`_halves.py`), images as they were and mixed ones, what the loss of the
            second is multiplied by; None where it has not.
    """

    def __init__(self, owner: str, lam: float | Tensor, size: int, beside: float | None = None) -> None:
        self.owner, self.lam, self.size, self.beside = owner, lam, size, beside
        self.losses = 0
        self.is_live = self.left_torch = False
        self._made: list[weakref.ref[MixedTensor]] = []

    @contextmanager
    def live(self) -> Iterator[None]:
        """Mix inside; outside, functions of the labels are those of the own ones.

        `losses` counts those that were mixed, `left_torch` says whether labels were read out as numbers, which cannot
        be mixed, and would have been others in the twin's world.
        """
        self.losses, self.left_torch, self.is_live = 0, False, True
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

    @property
    def way_out(self) -> str:
        """The end of an error: what to do where a loss cannot be mixed."""
        if self.beside is None:
            return "pass targets='soft' or targets='sampled'"
        return "give the mean of what each sample costs, as F.cross_entropy does, or take MixUp with targets='soft'"

    def refusal(self, what: str) -> ValueError:
        """The error that `what` cannot be mixed."""
        return ValueError(f"{self.owner}: {what}; {self.way_out}.")

    def refusal_of_shares(self, name: str) -> ValueError:
        """The error that the function of this name cannot be mixed because samples have shares of their own."""
        way_out = self.way_out if self.beside is not None else self.way_out.replace("pass", "pass per_sample=False,")
        return ValueError(
            f"{self.owner}: {name} compares the labels of different samples, whose shares differ; {way_out}."
        )


class MixedTensor(Tensor):
    """A tensor that was computed from mixed labels; its own data is what it would be without mixing.

    `detach()` of a loss of one number is the mixed value, plain, as `item()` is: `loss / loss.detach()` divides by it.

    Attributes:
        own: The value for the own labels, a plain tensor with its gradient.
        twin: The value for the partners' labels. Where samples have shares of their own and have been reduced to one
            number, it is the mixed value already, or that of each half.
        share: What of the mixed value is `own`: a number, `(B,)`, or None where no mixed value is defined.
        mixture: Of which batch.
    """

    own: Tensor
    twin: Tensor | Halves
    share: float | Tensor | None
    mixture: Mixture

    @staticmethod
    def of(own: Tensor, twin: Tensor | Halves, mixture: Mixture, share: float | Tensor | None) -> "MixedTensor":
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
            return Call(MixedTensor, func, args, kwargs or {}).result()

    def mixed_value(self) -> Tensor:
        """`share * own + (1 - share) * twin`, plain."""
        kept: Tensor | None = self.__dict__.get("value")
        if kept is not None:
            return kept
        if self.share is None:
            raise self.mixture.refusal_of_shares("this loss")
        twin = self.twin.value if isinstance(self.twin, Halves) else self.twin
        self.mixture.losses += twin.requires_grad
        value = self.__dict__["value"] = blend(self.own, twin, self.share)
        return value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.own.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return deepcopy(self.own, memo)


def resolved(output: Any) -> Any:
    """What a step returned with plain tensors: mixed where there is a gradient, of the own labels elsewhere."""

    def resolve(mixed: MixedTensor) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return mixed.mixed_value() if mixed.own.requires_grad else mixed.own

    return apply_to_collection(output, MixedTensor, resolve)


def _settle(mixed: MixedTensor) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        # A loss that was stored keeps the mixed value, for logs.
        is_loss = mixed.own.requires_grad and mixed.share is not None
        mixed.data = (mixed.mixed_value() if is_loss else mixed.own).detach()
        mixed.__class__ = Tensor  # type: ignore[assignment]  # the same object, wherever it is held
        mixed.__dict__.clear()
