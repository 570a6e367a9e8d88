"""Running a network with the decisions of its non-linear units recorded, or with recorded ones in their place."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from ._composed_functions import composed_body
from ._linear_functions import HANDLERS

__all__ = ["FrozenDecisions", "SuspiciousFunctions"]

# Straight pieces: the decision is the piece.
PIECES = {"relu", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "threshold", "abs", "absolute", "hardshrink"}
PIECES |= {"softshrink", "clamp", "clip", "clamp_min", "clamp_max"}
# Curves: the decision is the slope of the chord from act(0).
CURVES = {"silu", "gelu", "hardswish", "elu", "celu", "selu", "mish", "tanh", "softplus", "softsign", "tanhshrink"}
CURVES |= {"logsigmoid", "log_sigmoid"}
# Gates, attention weights and statistics: the decision is the value.
VALUES = {"sigmoid", "hardsigmoid", "softmax", "softmin", "detach", "var", "std", "var_mean", "std_mean", "rsqrt"}
VALUES |= {"norm", "vector_norm", "reciprocal", "rtruediv", "rdiv", "sign", "heaviside", "floor", "ceil", "round"}
DIVISIONS = {"div", "divide", "true_divide", "truediv", "itruediv"}
NEAR_ZERO = 1e-4  # below it a chord is drawn to here: its slope is off by as much, what it gives by the square


class FrozenDecisions(TorchFunctionMode):
    """Inside, functions that decide act linearly: on the first run as they decide, after `replay` as they decided then.

    What is in none of the lists above runs as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._decisions: list[Any] = []
        self._next: int | None = None

    def replay(self) -> "FrozenDecisions":
        """The same object, back at the first decision."""
        self._next = 0
        return self

    def decided(self, decide: Callable[[], Any]) -> Any:
        """What `decide` says on the first run, and what it said then on others."""
        if self._next is None:
            with torch.no_grad():
                self._decisions.append(tree_map(_constant, decide()))
            return self._decisions[-1]
        self._next += 1
        return self._decisions[self._next - 1]

    def other(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """A function that is taken to be linear; whole numbers and truth values that it gives are decisions, too."""
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and not (result.is_floating_point() or result.is_complex()):
            return self.decided(lambda: result)
        return result

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if name in PIECES or name in CURVES or name in VALUES:
            return self._pointwise(name, func, args, kwargs)
        if name in DIVISIONS and len(args) > 1 and isinstance(args[1], Tensor):
            return func(args[0], self.decided(lambda: args[1]), *args[2:], **kwargs)
        if name in HANDLERS:
            return HANDLERS[name](self.decided, func, *args, **kwargs)
        inner = composed_body(func)
        if inner is not None:
            with self:
                return inner(*args, **kwargs)
        return self.other(name, func, args, kwargs)

    def _pointwise(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        x = kwargs["input"] if "input" in kwargs else args[0]
        rest = args if "input" in kwargs else args[1:]
        others = {key: value for key, value in kwargs.items() if key not in ("input", "inplace")}
        underscored = func.__name__.endswith("_") and not func.__name__.startswith("__")
        act = (getattr(torch, name, None) or getattr(F, name)) if underscored else func
        if name in VALUES:
            result = self.decided(lambda: act(x, *rest, **others))
        else:
            line = _piece if name in PIECES else _chord
            slope, offset = self.decided(lambda: line(lambda it: act(it, *rest, **others), x.detach()))
            result = x * slope if offset is None else x * slope + offset
        return x.copy_(result) if underscored or kwargs.get("inplace") else result


class SuspiciousFunctions(FrozenDecisions):
    """Notes which functions that are taken to be linear are not: halfway to zero they do not give the mean.

    `found` has the name of each and what it gave, in the order of the run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, Tensor]] = []

    def other(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        wanting = any(isinstance(it, Tensor) and it.requires_grad for it in tree_leaves((args, kwargs)))
        bent = wanting and _bent(func, args, kwargs)
        result = super().other(name, func, args, kwargs)
        if bent and isinstance(result, Tensor) and result.requires_grad:
            self.found.append((name, result))
        return result


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _bent(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> bool:
    def at(factor: float) -> Any:
        def scaled(it: Any) -> Any:
            return it.detach() * factor if isinstance(it, Tensor) and it.requires_grad else it

        return func(*tree_map(scaled, args), **tree_map(scaled, kwargs))

    with torch.no_grad():
        whole, half, none = at(1.0), at(0.5), at(0.0)
    if not isinstance(whole, Tensor) or not whole.is_floating_point():
        return False
    scale = max(float(whole.abs().max()), float(none.abs().max()), 1e-30) if whole.numel() else 1.0
    return bool(whole.numel()) and not float((2 * half - whole - none).abs().max()) <= 1e-3 * scale


def _piece(act: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Slope and offset of the piece that each number is on."""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        value = act(x)
        (slope,) = torch.autograd.grad(value.sum(), x)
    offset = value.detach() - slope * x.detach()
    return slope, offset if bool(offset.any()) else None


def _chord(act: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Slope and offset of the line through act(0) and act(x)."""
    start = act(torch.zeros_like(x))
    x = torch.where(x.abs() < NEAR_ZERO, NEAR_ZERO, x)
    return (act(x) - start) / x, start if bool(start.any()) else None
