"""The states of a module's torchmetrics as plain data; Lightning saves only those that are declared persistent.

Two attributes of torchmetrics are private and written here, for it has no public way to put a metric back: without the
count of updates `compute` warns that there were none, with an old cached result it returns that one.
`tests/callbacks/hooks/test_metric_states.py` fails when torchmetrics changes either.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

__all__ = ["read_metrics", "write_metrics"]


def read_metrics(module: nn.Module, leave_out: Collection[int]) -> dict[str, dict[str, Any]]:
    """By submodule name: the count of updates and the states on the CPU; `leave_out` holds ids of metrics to skip."""
    for part in module.modules():
        if isinstance(part, MetricCollection):
            # Of a compute group only the first member is updated; asking for the items brings the others up to date.
            part.items(copy_state=False)
    return {
        name: {"updates": part.update_count, "states": _move(part.metric_state, torch.device("cpu"))}
        for name, part in module.named_modules()
        if isinstance(part, Metric) and id(part) not in leave_out
    }


def write_metrics(module: nn.Module, saved: dict[str, dict[str, Any]]) -> None:
    """Put states back into the metrics of the same names; names that are gone are passed over."""
    for name, part in module.named_modules():
        if isinstance(part, Metric) and name in saved:
            for state, value in _move(saved[name]["states"], part.device).items():
                setattr(part, state, value)
            part._update_count, part._computed = saved[name]["updates"], None


def _move(states: dict[str, Tensor | list[Tensor]], device: torch.device) -> dict[str, Any]:
    # Cloned: an update that works in place must not reach the saved copy.
    return {
        name: [part.detach().to(device, copy=True) for part in value]
        if isinstance(value, list)
        else value.detach().to(device, copy=True)
        for name, value in states.items()
    }
