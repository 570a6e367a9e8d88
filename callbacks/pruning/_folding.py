"""Batch norms folded into the layers before them for a while, so that channels can be added as what they really are."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_vision.inspection.at_rest import at_rest

from ._channels import ChannelGroup

__all__ = ["folded_norms"]


@contextmanager
def folded_norms(model: nn.Module, images: Tensor, groups: Sequence[ChannelGroup]) -> Iterator[None]:
    """Inside, each batch norm that alone follows a layer of its group has scale and deviation 1, its own in that layer.

    At the end it has its scale and variance again, and its layer and mean are divided by them, so that the network
    computes what it did inside; only a scale of zero, by which nothing is divided, becomes 1 for good. A norm that is
    not the only one to read its layer, or that has no statistics, stays as it is.

    Args:
        model: In any mode; changed in place.
        images: `(B, C, H, W)`, on which is tried that a folded norm changes no output.
        groups: Of channels, whose layers are looked at.
    """
    pairs = [pair for pair in _followed(model, images, groups) if _changes_nothing(model, images, *pair)]
    kept = [(layer, norm, *_fold(layer, norm)) for layer, norm in pairs]
    yield
    for it in kept:
        _unfold(*it)


def _followed(model: nn.Module, images: Tensor, groups: Sequence[ChannelGroup]) -> list[tuple[nn.Module, nn.Module]]:
    """Layers and batch norms to which the layer's output is handed as it is."""
    parts = {name: model.get_submodule(name) for group in groups for name in {it.layer for it in group.members}}
    makers = {it.layer for group in groups for it in group.members if it.role != "reads"}
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}
    found: list[tuple[nn.Module, nn.Module]] = []

    def keep(layer: nn.Module, given: Any, output: Tensor) -> None:
        # The tensor is kept beside its address, which nobody else can have so.
        outputs[id(output)] = layer, output

    def look(norm: nn.Module, given: Any) -> None:
        if id(given[0]) in outputs:
            found.append((outputs[id(given[0])][0], norm))

    with at_rest(model), torch.no_grad(), ExitStack() as stack:
        for name, part in parts.items():
            if isinstance(part, _BatchNorm):
                if part.running_var is not None:
                    stack.callback(part.register_forward_pre_hook(look).remove)
            elif name in makers:
                stack.callback(part.register_forward_hook(keep).remove)
        model(images.clone())
    return [pair for pair in found if sum(pair[0] is it[0] or pair[1] is it[1] for it in found) == 1]


@torch.no_grad()
def _changes_nothing(model: nn.Module, images: Tensor, layer: nn.Module, norm: nn.Module) -> bool:
    stores = [store for part in (layer, norm) for store in (part._parameters, part._buffers)]
    before = [(it, it.clone()) for store in stores for it in store.values() if it is not None]
    with at_rest(model), torch.no_grad(), ExitStack() as stack:
        for tensor, value in before:
            stack.callback(partial(tensor.copy_, value))
        expected = model(images.clone())
        _fold(layer, norm)
        found = model(images.clone())
    return bool((found - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6)


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Fold, and return the norm's scale and variance."""
    variance = norm.running_var.clone()
    scale = torch.ones_like(variance) if norm.weight is None else norm.weight.clone()
    _scale(layer, norm, scale / (variance + norm.eps).sqrt())
    norm.running_var.fill_(1 - norm.eps)
    if norm.weight is not None:
        norm.weight.fill_(1)
    return scale, variance


@torch.no_grad()
def _unfold(layer: Any, norm: Any, scale: Tensor, variance: Tensor) -> None:
    used = scale != 0
    factor = torch.where(used, (variance + norm.eps).sqrt() / torch.where(used, scale, 1), 1)
    _scale(layer, norm, factor)
    norm.running_var.copy_(torch.where(used, variance, norm.running_var))
    if norm.weight is not None:
        norm.weight.copy_(torch.where(used, scale, 1))


def _scale(layer: Any, norm: Any, factor: Tensor) -> None:
    """Multiply what each channel of the layer is made of, and the mean that the norm takes from it."""
    dim = 1 if getattr(layer, "transposed", False) and layer.groups == 1 else 0
    layer.weight.movedim(dim, -1).mul_(factor)
    norm.running_mean.mul_(factor)
    if layer.bias is not None:
        layer.bias.mul_(factor)
