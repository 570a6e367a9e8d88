"""What is done for functions of torch that decide in more than one way: norms, attention, pooling, maxima, gates.

Each takes `decided`, which is asked with a function for what the first run found and answers it again in others, then
the function that torch was called with, and its arguments.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["HANDLERS"]

Decided = Callable[[Callable[[], Any]], Any]


def _standardised(decided: Decided, x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    def statistics() -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        return mean, (variance + eps).rsqrt()

    mean, scale = decided(statistics)
    return (x - mean) * scale


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    decided: Decided,
    _: Any,
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *__: Any,
) -> Tensor:
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    return _scaled(_standardised(decided, input, dims, eps), weight, bias)


def _rms_norm(
    decided: Decided,
    _: Any,
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    least = torch.finfo(input.dtype).eps if eps is None else eps
    return _scaled(input * decided(lambda: (input.square().mean(dims, True) + least).rsqrt()), weight, None)


def _group_norm(
    decided: Decided,
    _: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *__: Any,
) -> Tensor:
    groups = _standardised(decided, input.reshape(len(input), num_groups, -1), (2,), eps).view_as(input)
    shape = (-1,) + (1,) * (input.ndim - 2)
    return _scaled(groups, *(None if it is None else it.view(shape) for it in (weight, bias)))


def _instance_norm(
    decided: Decided,
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
        return _group_norm(decided, func, input, input.shape[1], weight, bias, eps)
    return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


def _attention(
    decided: Decided,
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

    attended: Tensor = decided(weights) @ value
    return attended


def _max_pool(decided: Decided, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    name = func.__name__.removesuffix("_with_indices")
    both = bool(kwargs.pop("return_indices", False)) or func.__name__ != name
    pool = getattr(F, name)
    places = decided(lambda: pool(input.detach(), *args, return_indices=True, **kwargs)[1])
    flat = -int(name[-2])
    values = input.flatten(flat).gather(-1, places.flatten(flat)).view(places.shape)
    return (values, places) if both else values


def _of_two(decided: Decided, func: Callable[..., Any], input: Tensor, other: Tensor) -> Tensor:
    return torch.where(decided(lambda: func(input, other) == input), input, other)


def _largest(decided: Decided, func: Callable[..., Any], input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    def share() -> Tensor:
        chosen = input == func(input, dim, keepdim=True)
        return chosen / chosen.sum(dim, keepdim=True)

    return (input * decided(share)).sum(dim, keepdim=keepdim)


def _glu(decided: Decided, _: Any, input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * decided(gate.sigmoid)


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
