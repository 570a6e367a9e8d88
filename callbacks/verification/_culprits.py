"""Which part of a module is the first that makes numbers that are not finite out of numbers that are."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["Culprits", "is_finite", "not_finite", "numbers", "tensors_in"]


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of numbers with a fraction in nested containers."""
    return [it for it in _leaves(value) if it.is_floating_point() or it.is_complex()]


def _leaves(value: Any) -> Iterator[Tensor]:
    return (it for it in tree_leaves(value) if isinstance(it, Tensor))


def is_finite(value: Any) -> bool:
    """Whether all numbers in nested containers are finite."""
    return all(bool(it.detach().isfinite().all()) for it in tensors_in(value))


def not_finite(value: Tensor) -> str:
    """How many numbers of a tensor are not finite, and where the first stands.

    >>> not_finite(torch.tensor([[0.0, 1.0], [torch.nan, torch.inf]]))
    '1 NaN and 1 infinite of 4 numbers, first in sample 1'
    """
    value = value.detach()
    kinds = {"NaN": int(value.isnan().sum()), "infinite": int(value.isinf().sum())}
    counts = " and ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    first = f", first in sample {int((~value.isfinite()).nonzero()[0, 0])}" if value.ndim > 1 else ""
    return f"{counts} of {value.numel():,} numbers{first}"


def numbers(value: Tensor) -> str:
    """Shape of a tensor, and its range if it is finite, as `(2, 3) from -1 to 2, mean 0.5`."""
    value = value.detach().float()
    if not value.numel() or not is_finite(value):
        return f"{tuple(value.shape)}"
    low, high = value.aminmax()
    return f"{tuple(value.shape)} from {low:.3g} to {high:.3g}, mean {value.mean():.3g}"


class Culprits:
    """Listens to a module's parts while it computes, forward and backward; a context.

    Forward, a part is to blame if it puts out what is not finite though all that it was given is; backward, if the
    gradients of what it was given or of its own parameters are not finite though those of its outputs are. Of a part
    and those inside it the innermost is named. One whose infinities, without NaN, a later part takes in and answers
    with finite numbers, such as a mask before a softmax, is not to blame.

    Args:
        module: Whose parts; it itself is none of them, nor are parts of TorchScript, which take no hooks.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._hooks = ExitStack()
        self._forward: list[tuple[str, str, bool]] = []  # name, words, whether there is NaN
        self._taken_in: list[tuple[str, str, bool]] = []
        self.last = ""  # the last part that answered, and answered with finite numbers
        self._given: str | None = None  # the first part that was given what is not finite while nobody was to blame
        self._calls: list[bool] = []  # of those under way, whether all that they were given is finite
        self._out: dict[str, bool] = {}  # whether all gradients of a part's outputs are finite
        self._backward: list[tuple[str, str]] = []

    def __enter__(self) -> "Culprits":
        with ExitStack() as stack:
            for name, part in self._module.named_modules():
                if name and not isinstance(part, torch.jit.ScriptModule):
                    before, after = partial(self._enters, name), partial(self._leaves, name)
                    stack.callback(part.register_forward_pre_hook(before, with_kwargs=True).remove)
                    stack.callback(part.register_forward_hook(after, with_kwargs=True).remove)
            for name, parameter in self._module.named_parameters():
                if parameter.requires_grad:
                    hook = partial(self._reached, name.rpartition(".")[0], f"its parameter `{name}`")
                    stack.callback(parameter.register_hook(hook).remove)
            self._hooks = stack.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self._hooks.close()

    @property
    def forward(self) -> str:
        """Who is to blame in the forward pass, in words; nothing if nobody is."""
        found = self._forward or self._taken_in
        if not found:
            return ""
        name, words, _ = found[0]
        inside = f"{name}."
        # What a part beside the path took in, such as an anchor generator, may have gone on all the same.
        if taken := [it for it in self._taken_in if it[0].startswith(inside)]:
            return taken[0][1]
        if self._given is not None and self._given.startswith(inside):
            words += f"; it is its own forward that does, `{self._given}` was given it"
        return words

    @property
    def backward(self) -> str:
        """Who is to blame in the backward pass, in words; nothing if nobody is."""
        if not self._backward:
            return ""
        name, words = self._backward[0]
        for other, innermost in self._backward:
            if other.startswith(f"{name}."):
                name, words = other, innermost
        return words

    @property
    def given_outside(self) -> str | None:
        """The first part that was given numbers that are not finite, which no part had made."""
        return None if self._forward or self._taken_in else self._given

    @property
    def spoilt(self) -> bool:
        """Whether a part was given a gradient that is not finite."""
        return not all(self._out.values())

    def _enters(self, name: str, part: nn.Module, args: Any, kwargs: Any) -> None:
        given = tensors_in((args, kwargs))
        # Not when it answers, for it may write in place.
        self._calls.append(is_finite(given))
        if self._given is None and not self._forward and not self._calls[-1]:
            self._given = name
        for it in given:
            if it.requires_grad:
                it.register_hook(partial(self._reached, name, "what it was given"))

    def _leaves(self, name: str, part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        put_out, was_finite = tensors_in(output), self._calls.pop()
        self._out[name] = True
        for it in put_out:
            if it.requires_grad:
                it.register_hook(partial(self._left, name))
        finite = is_finite(put_out)
        if finite and not was_finite:
            self._taken_in += [it for it in self._forward if not it[2]]
            self._forward = [it for it in self._forward if it[2]]
        if finite:
            self.last = name
        elif was_finite:
            bad = next(it for it in put_out if not is_finite(it))
            had = ", ".join(numbers(it) for it in tensors_in((args, kwargs))[:2]) or "no numbers"
            kind = type(part).__name__
            words = f"`{name}` ({kind}) put out {not_finite(bad)}, though what it was given is finite: {had}"
            self._forward.append((name, words, bool(bad.isnan().any())))

    def _left(self, name: str, gradient: Tensor) -> None:
        if not is_finite(gradient):
            self._out[name] = False

    def _reached(self, name: str, what: str, gradient: Tensor) -> None:
        if self._out.get(name, False) and not is_finite(gradient):
            kind = type(self._module.get_submodule(name)).__name__
            words = (
                f"`{name}` ({kind}) gave {what} a gradient with {not_finite(gradient)}, though the gradient of what it "
                "put out is finite"
            )
            self._backward.append((name, words))
