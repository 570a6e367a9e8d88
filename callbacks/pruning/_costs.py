"""What a network costs when each group keeps so many channels: operations, or time measured on this machine.

A layer's cost depends on how many channels it makes and on how many it reads, so the cost of one channel depends on
how many others stay: the total is a sum of products of widths. `marginal` is its slope, what one channel more of a
group costs at given widths, with which a knapsack can be filled; `total` says what the choice then really costs.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest

from ..hooks._layer_table import FlopCount
from ._channels import CONVOLUTIONS, ChannelGroup

__all__ = ["Costs", "Flags", "Floats", "Table", "flop_costs", "latency_costs", "latency_table"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
# Seconds of a layer: the fractions of its width out and in that were measured, and a row for each of the first.
Table = dict[str, list[list[float]]]
WIDTHS = (0.125, 0.25, 0.5, 0.75, 1.0)
REPETITIONS = 7


class Costs:
    """The cost of a network by the number of channels that each of its groups keeps.

    Args:
        model: The network at its full width.
        groups: Its groups.
        of_layer: By a layer's name, its cost as a function of the fractions of its outputs and of its inputs left.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        of_layer: Mapping[str, Callable[[float, float], float]],
    ) -> None:
        self.sizes = np.array([group.size for group in groups], dtype=np.float64)
        self._of_layer = list(of_layer.values())
        rows = {name: row for row, name in enumerate(of_layer)}
        # By layer, group and side, the share of the layer's width that is one channel of the group.
        self._share = np.zeros((2, len(rows), len(groups)))
        for column, group in enumerate(groups):
            for member in group.members:
                if member.layer in rows:
                    name, dim = next(iter(member.tensors.items()))
                    width = model.get_parameter(name).shape[dim]
                    share = len(member.position) / group.size / width
                    self._share[int(member.role == "reads"), rows[member.layer], column] = share

    def total(self, kept: Floats) -> float:
        """The cost when group number g keeps `kept[g]` channels."""
        return sum(self._by_layer(kept))

    def marginal(self, kept: Floats) -> Floats:
        """What one channel of each group costs at these widths: the cost without the last of them, taken off."""
        at = self._by_layer(kept)
        slopes = []
        for column in range(len(kept)):
            one_less = kept.copy()
            one_less[column] -= 1
            touched = np.flatnonzero(self._share[:, :, column].any(axis=0))
            outputs, inputs = self._left(one_less)
            less = [self._of_layer[row](outputs[row], inputs[row]) for row in touched]
            slopes.append(max(sum(at[row] for row in touched) - sum(less), 0.0))
        return np.array(slopes)

    def _by_layer(self, kept: Floats) -> list[float]:
        outputs, inputs = self._left(kept)
        return [cost(*left) for cost, *left in zip(self._of_layer, outputs, inputs, strict=True)]

    def _left(self, kept: Floats) -> Floats:
        left: Floats = 1 - self._share @ (self.sizes - kept)
        return left


def flop_costs(model: nn.Module, groups: Sequence[ChannelGroup], images: Tensor) -> Costs:
    """Operations of Linear and convolutional layers for these images, two for a multiplication and its addition."""
    with at_rest(model), torch.no_grad():
        count = FlopCount(model)
        try:
            model(images)
        finally:
            count.stop()
    flops = {name.removesuffix(".weight"): value for name, value in count.flops.items()}
    return Costs(model, groups, {name: partial(_product, float(value)) for name, value in flops.items()})


def _product(flops: float, outputs: float, inputs: float) -> float:
    return flops * outputs * inputs


def latency_table(model: nn.Module, groups: Sequence[ChannelGroup], images: Tensor) -> Table:
    """Seconds of each Linear and convolutional layer at several widths, the medians of several runs on this machine.

    A layer that no group touches is measured at its full width alone. The first row of a layer's entry has the
    fractions of its inputs, each further row a fraction of its outputs and the seconds.
    """
    shapes: dict[str, torch.Size] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            hooks.append(layer.register_forward_pre_hook(partial(_note_shape, shapes, name)))
    with at_rest(model), torch.no_grad():
        try:
            model(images)
        finally:
            for hook in hooks:
                hook.remove()
        roles: dict[str, set[str]] = {}
        for group in groups:
            for member in group.members:
                roles.setdefault(member.layer, set()).add(member.role)
        return {name: _measured(model.get_submodule(name), it, roles.get(name, set())) for name, it in shapes.items()}


def _note_shape(shapes: dict[str, torch.Size], name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    shapes[name] = inputs[0].shape


def _measured(layer: Any, shape: torch.Size, roles: set[str]) -> list[list[float]]:
    outputs = WIDTHS if roles & {"makes", "carries"} else (1.0,)
    inputs = WIDTHS if "reads" in roles else (1.0,)
    rows = [list(inputs)]
    for out in outputs:
        rows.append([out, *(_seconds(layer, shape, out, into) for into in inputs)])
    return rows


def _seconds(layer: Any, shape: torch.Size, outputs: float, inputs: float) -> float:
    weight = layer.weight
    if isinstance(layer, nn.Linear):
        given = (*shape[:-1], max(1, round(shape[-1] * inputs)))
        narrow: nn.Module = nn.Linear(given[-1], max(1, round(layer.out_features * outputs)), layer.bias is not None)
    else:
        depthwise = layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels
        into = max(1, round(layer.in_channels * (outputs if depthwise else inputs)))
        if layer.groups > 1 and not depthwise:
            into = layer.in_channels
        out = into if depthwise else max(1, round(layer.out_channels * outputs))
        given = (shape[0], into, *shape[2:])
        others = {key: getattr(layer, key) for key in ("kernel_size", "stride", "dilation")}
        if not isinstance(layer.padding, str):
            others["padding"] = layer.padding
        kind = next(it for it in CONVOLUTIONS if isinstance(layer, it))
        narrow = kind(into, out, groups=into if depthwise else layer.groups, bias=layer.bias is not None, **others)
    narrow = narrow.to(weight)
    # Values do not matter; torch's own stream is put back by `at_rest`.
    example = torch.zeros(given, dtype=weight.dtype, device=weight.device)
    spent = []
    for _ in range(REPETITIONS + 2):
        begin = time.perf_counter()
        narrow(example)
        if weight.is_cuda:
            torch.cuda.synchronize(weight.device)
        spent.append(time.perf_counter() - begin)
    return median(spent[2:])


def latency_costs(model: nn.Module, groups: Sequence[ChannelGroup], table: Table) -> Costs:
    """Seconds by a table, linear between the widths that were measured; a function of the table alone."""
    return Costs(model, groups, {name: partial(_interpolated, rows) for name, rows in table.items()})


def _interpolated(rows: list[list[float]], outputs: float, inputs: float) -> float:
    at_outputs = [float(np.interp(inputs, rows[0], row[1:])) for row in rows[1:]]
    return float(np.interp(outputs, [row[0] for row in rows[1:]], at_outputs))
