"""What a batch shows of the units that end in a ReLU: how often they are dead, and what enters them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest

from ._asking import answer

__all__ = ["Units", "call_name", "hooked", "read_units", "relus"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Units:
    """A layer's units at the ReLU that follows it; the fields are arguments of `reactivation_scores`.

    The gain is measured in root mean squares of the ReLU's input, so that layers compare.
    """

    relu: str
    dead: Tensor
    gain: Tensor
    low: Tensor
    high: Tensor
    size: Tensor


def read_units(module: nn.Module, images: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Units]:
    """What is known of the layers in front of ReLUs, by the weight's name, in the order of their calls."""
    found: dict[str, Units] = {}
    calls: dict[str, None] = {}
    last: tuple[str, nn.Module, Tensor, Tensor] | None = None

    def after_layer(name: str, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        nonlocal last
        # A leaf of its own, so that what happens between it and the ReLU can be differentiated.
        leaf = output.detach().requires_grad_()
        last = (f"{name}.weight", layer, args[0].detach(), leaf)
        return leaf.clone()

    def before_relu(name: str, relu: nn.Module, args: Any) -> None:
        calls[(call := call_name(name, calls))] = None
        if last is None or args[0].shape != last[3].shape or last[0] not in weights or last[0] in found:
            return
        weight, layer, inputs, leaf = last
        (slope,) = torch.autograd.grad(args[0].sum(), leaf, retain_graph=True, allow_unused=True)
        if slope is None:
            return
        entering, slope = _rows(layer, args[0].detach()), _rows(layer, slope)
        sided = (slope >= 0).all(0) | (slope <= 0).all(0)
        inputs = _rows(layer, inputs)
        # As the weight has them: a group's units see that group's inputs only.
        groups = getattr(layer, "groups", 1)
        low, high, size = (
            it.view(groups, -1).repeat_interleave(len(weights[weight]) // groups, dim=0)
            for it in (inputs.amin(0), inputs.amax(0), inputs.abs().mean(0))
        )
        dead = (entering <= 0).to(entering.dtype).mean(0)
        scale = entering.square().mean().sqrt()
        gain = torch.where(sided & (scale > 0), slope.mean(0) / scale, 0.0)
        found[weight] = Units(call, dead, gain, low, high, size)

    layers = {name: part for name, part in module.named_modules() if isinstance(part, LAYERS)}
    with at_rest(module), hooked(layers, after_layer, None), hooked(relus(module), None, before_relu):
        answer("Reactivation", module, images, weights)
    return found


def relus(module: nn.Module) -> dict[str, nn.Module]:
    """The ReLUs among the modules of a network, by name.

    Raises:
        ValueError: there is none.
    """
    parts = module.named_modules()
    found: dict[str, nn.Module] = {name: part for name, part in parts if isinstance(part, (nn.ReLU, nn.ReLU6))}
    if not found:
        raise ValueError(
            f"Reactivation: {type(module).__name__} has no `nn.ReLU` among its modules, so no unit can be dead; leave "
            "the share for reactivation 0."
        )
    return found


def _rows(layer: nn.Module, values: Tensor) -> Tensor:
    """`(images and places, channels)` of what a layer takes or gives."""
    return (values if isinstance(layer, nn.Linear) else values.movedim(1, -1)).flatten(0, -2)


def call_name(name: str, before: Mapping[str, Any]) -> str:
    """The name of this call of a module, after those in `before`."""
    times = 1 + sum(it.partition(":")[0] == name for it in before)
    return name if times == 1 else f"{name}:{times}"


@contextmanager
def hooked(
    parts: Mapping[str, nn.Module], after: Callable[..., Any] | None, before: Callable[..., Any] | None
) -> Iterator[None]:
    """Inside, forward hooks are at the parts, which are called with the part's name first."""
    handles = [part.register_forward_hook(partial(after, name)) for name, part in parts.items() if after]
    handles += [part.register_forward_pre_hook(partial(before, name)) for name, part in parts.items() if before]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
