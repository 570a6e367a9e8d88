"""The layers of a network that have weights: how many are left of each, and what it computes for an image."""

import csv
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._added import is_added
from ._live_tensors import plain_name

__all__ = ["FlopCount", "LayerRow", "layer_rows", "layer_table", "layers_with_weights", "write_layer_table"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
COLUMNS = ("layer", "shape", "parameters", "kept", "sparsity", "dense_flops", "effective_flops")


def layers_with_weights(module: nn.Module) -> dict[str, tuple[nn.Module, nn.Parameter]]:
    """Linear and convolutional layers by their weight's name as `named_parameters` has it, with that weight.

    A weight that several layers share stands there once. What a callback has added is left out, and so is a weight that
    a parametrisation computes.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, tuple[nn.Module, nn.Parameter]] = {}
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            weight = dict(layer.named_parameters(recurse=False)).get("weight")
            if weight is not None and not is_added(names[id(weight)]):
                found.setdefault(names[id(weight)], (layer, weight))
    return found


class FlopCount:
    """Counts what Linear and convolutional layers compute from now on until `stop`.

    A multiplication and an addition are two operations, as `torch.utils.flop_counter` has it; biases are not counted,
    nor is anything that is no such layer. Compiled code runs eagerly meanwhile, for hooks do not fire in it.

    Args:
        module: Whose layers they are.
    """

    def __init__(self, module: nn.Module) -> None:
        # Operations of dense layers so far, by the weight's name.
        self.flops: dict[str, int] = {}
        self._names = {id(weight): name for name, (_, weight) in layers_with_weights(module).items()}
        self._stack = ExitStack()
        if "torch._dynamo" in sys.modules:
            self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        for layer in module.modules():
            if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and id(layer.weight) in self._names:
                self._stack.callback(layer.register_forward_hook(self._count).remove)

    def stop(self) -> None:
        """Take the hooks off; twice does nothing."""
        self._stack.close()

    def _count(self, layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        name = self._names.get(id(layer.weight))
        if name is None:
            # Somebody asks the network with other weights in its place.
            return
        # Each weight is used once at each position: of the outputs, or of the inputs where these are spread out.
        if isinstance(layer, TRANSPOSED):
            positions = inputs[0].numel() // layer.in_channels
        else:
            positions = output.numel() // (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
        self.flops[name] = self.flops.get(name, 0) + 2 * layer.weight.numel() * positions


@dataclass(frozen=True)
class LayerRow:
    """A row of the table.

    Args:
        layer: Its name.
        shape: Of its weight.
        parameters: Numbers in its weight.
        kept: Those that are not masked.
        dense_flops: Operations for an image if all were there, None if not known.
    """

    layer: str
    shape: tuple[int, ...]
    parameters: int
    kept: int
    dense_flops: int | None

    @property
    def sparsity(self) -> float:
        """Share of its weights that are gone, in [0, 1]."""
        return 1 - self.kept / self.parameters

    @property
    def effective_flops(self) -> int | None:
        """Operations that are left if none is spent on a zero."""
        return None if self.dense_flops is None else round(self.dense_flops * self.kept / self.parameters)


def layer_rows(
    module: nn.Module, masks: Mapping[str, Tensor], flops: Mapping[str, int] | None = None
) -> list[LayerRow]:
    """A row for each Linear and convolutional layer, in the module's order.

    Args:
        module: Whose layers they are.
        masks: Boolean, by parameter name, True where a weight is kept; a layer without one is dense.
        flops: What `FlopCount` found, for an image; None if nothing was counted.
    """
    rows = []
    for name, (_, weight) in layers_with_weights(module).items():
        kept = int(masks[name].sum()) if name in masks else weight.numel()
        layer = plain_name(name).removesuffix(".weight")
        dense = None if flops is None else flops.get(name, 0)
        rows.append(LayerRow(layer, tuple(weight.shape), weight.numel(), kept, dense))
    return rows


def layer_table(rows: list[LayerRow]) -> str:
    """The rows in words, with their sum as the last one."""
    total = _sum(rows)
    width = max(len(row.layer) for row in [*rows, total])
    lines = [
        f"{'layer':{width}} {'shape':>16} {'parameters':>11} {'kept':>11} {'sparsity':>8} {'FLOPs':>9} {'left':>9}"
    ]
    for row in [*rows, total]:
        shape = "x".join(map(str, row.shape))
        lines.append(
            f"{row.layer:{width}} {shape:>16} {row.parameters:11,} {row.kept:11,} {row.sparsity:8.2%} "
            f"{_short(row.dense_flops):>9} {_short(row.effective_flops):>9}"
        )
    return "\n".join(lines)


def write_layer_table(rows: list[LayerRow], file: Path) -> None:
    """Write the rows and their sum as CSV; sparsity has six digits, operations are those of one image."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        for row in [*rows, _sum(rows)]:
            shape, sparsity = "x".join(map(str, row.shape)), f"{row.sparsity:.6f}"
            cells = [row.layer, shape, row.parameters, row.kept, sparsity, row.dense_flops, row.effective_flops]
            writer.writerow(cells)


@dataclass(frozen=True)
class _Sum(LayerRow):
    """All rows together, whose operations are not its density's share of the dense ones."""

    left: int | None

    @property
    def effective_flops(self) -> int | None:
        return self.left


def _sum(rows: list[LayerRow]) -> _Sum:
    dense = [row.dense_flops for row in rows if row.dense_flops is not None]
    left = [row.effective_flops for row in rows if row.effective_flops is not None]
    known = len(dense) == len(rows)
    parameters, kept = sum(row.parameters for row in rows), sum(row.kept for row in rows)
    return _Sum("total", (), parameters, kept, sum(dense) if known else None, sum(left) if known else None)


def _short(operations: int | None) -> str:
    if operations is None:
        return "?"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if operations >= size:
            return f"{operations / size:.3g} {unit}"
    return str(operations)
