"""Running a network with the decisions of its non-linear units recorded, or with recorded ones in their place.

One private habit of torch is relied on: functions of `torch.nn.functional` hand themselves to a mode at their top; what
they call further inside is seen by running their body with that door shut. A test of attention modules, which are made
of such functions, fails when they begin otherwise.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

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
DOORS = {"has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"}
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
            return HANDLERS[name](self, func, *args, **kwargs)
        if (
            isinstance(func, FunctionType)
            and func.__module__ == F.__name__
            and not DOORS.isdisjoint(func.__code__.co_names)
        ):
            with self:
                return _body(func)(*args, **kwargs)
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


def _body(func: FunctionType) -> Callable[..., Any]:
    """The function without what it does first, which is to ask for a mode."""
    inside = {**func.__globals__, **dict.fromkeys(DOORS, lambda *_: False)}
    body = FunctionType(func.__code__, inside, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


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


def _standardised(mode: FrozenDecisions, x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    def statistics() -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        return mean, (variance + eps).rsqrt()

    mean, scale = mode.decided(statistics)
    return (x - mean) * scale


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    mode: FrozenDecisions,
    _: Any,
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *__: Any,
) -> Tensor:
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    return _scaled(_standardised(mode, input, dims, eps), weight, bias)


def _rms_norm(
    mode: FrozenDecisions,
    _: Any,
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    least = torch.finfo(input.dtype).eps if eps is None else eps
    return _scaled(input * mode.decided(lambda: (input.square().mean(dims, True) + least).rsqrt()), weight, None)


def _group_norm(
    mode: FrozenDecisions,
    _: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *__: Any,
) -> Tensor:
    groups = _standardised(mode, input.reshape(len(input), num_groups, -1), (2,), eps).view_as(input)
    shape = (-1,) + (1,) * (input.ndim - 2)
    return _scaled(groups, *(None if it is None else it.view(shape) for it in (weight, bias)))


def _instance_norm(
    mode: FrozenDecisions,
    func: Callable[..., Any],
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    if use_input_stats:
        return _group_norm(mode, func, input, input.shape[1], weight, bias, eps)
    return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


def _attention(
    mode: FrozenDecisions,
    _: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key, value = (it.repeat_interleave(query.shape[-3] // it.shape[-3], -3) for it in (key, value))

    def weights() -> Tensor:
        products = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        seen = attn_mask
        if is_causal:
            seen = torch.ones(products.shape[-2:], dtype=torch.bool, device=products.device).tril()
        if seen is not None:
            products = products.masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else products + seen
        return products.softmax(-1)

    attended: Tensor = mode.decided(weights) @ value
    return attended


def _max_pool(mode: FrozenDecisions, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    name = func.__name__.removesuffix("_with_indices")
    both = bool(kwargs.pop("return_indices", False)) or func.__name__ != name
    pool = getattr(F, name)
    places = mode.decided(lambda: pool(input.detach(), *args, return_indices=True, **kwargs)[1])
    flat = -int(name[-2])
    values = input.flatten(flat).gather(-1, places.flatten(flat)).view(places.shape)
    return (values, places) if both else values


def _of_two(mode: FrozenDecisions, func: Callable[..., Any], input: Tensor, other: Tensor) -> Tensor:
    return torch.where(mode.decided(lambda: func(input, other) == input), input, other)


def _largest(
    mode: FrozenDecisions, func: Callable[..., Any], input: Tensor, dim: Any = (), keepdim: bool = False
) -> Tensor:
    def share() -> Tensor:
        chosen = input == func(input, dim, keepdim=True)
        return chosen / chosen.sum(dim, keepdim=True)

    return (input * mode.decided(share)).sum(dim, keepdim=keepdim)


def _glu(mode: FrozenDecisions, _: Any, input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * mode.decided(gate.sigmoid)


HANDLERS: dict[str, Callable[..., Any]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "scaled_dot_product_attention": _attention,
    **{f"max_pool{n}d{end}": _max_pool for n in (1, 2, 3) for end in ("", "_with_indices")},
    **{f"adaptive_max_pool{n}d{end}": _max_pool for n in (1, 2, 3) for end in ("", "_with_indices")},
    "maximum": _of_two,
    "minimum": _of_two,
    "amax": _largest,
    "amin": _largest,
    "glu": _glu,
}
