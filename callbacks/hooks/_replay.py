"""Computing a training step again without a trace in buffers, torchmetrics, logs and random streams."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

from ._around import Around
from ._metric_states import read_metrics, write_metrics

__all__ = ["Streams", "read_streams", "rewind", "without_trace"]

# Each of the process's random streams: what puts its state back, and the state.
Streams = list[tuple[Callable[[Any], Any], Any]]


def read_streams(device: torch.device) -> Streams:
    """The global streams of Python, numpy, torch and, where the run uses it, the CUDA device."""
    streams: Streams = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if device.type == "cuda":
        streams.append((partial(torch.cuda.set_rng_state, device=device), torch.cuda.get_rng_state(device)))
    return streams


def rewind(streams: Streams) -> None:
    """Put every stream back to where it was read."""
    for put_back, state in streams:
        put_back(state)


@contextmanager
def without_trace(pl_module: LightningModule, device: torch.device) -> Iterator[None]:
    """Inside, `log` and `log_dict` do nothing; at the end, also by an exception, all else is put back."""
    streams = read_streams(device)
    buffers = dict(pl_module.named_buffers())
    # An expanded buffer can only be replaced, never written in place, so it needs no copy.
    written = [buffer for buffer in buffers.values() if 0 not in buffer.stride()]
    copies = _copies(written)
    # Reading walks the module several times and moves states to the CPU, so it is left out where there is no metric.
    metrics = read_metrics(pl_module, ()) if any(isinstance(it, Metric) for it in pl_module.modules()) else {}
    muted = [Around(pl_module, name, _say_nothing) for name in ("log", "log_dict")]
    try:
        yield
    finally:
        for around in muted:
            around.undo()
        if written:
            with torch.no_grad():
                torch._foreach_copy_(written, copies)
        for name, buffer in pl_module.named_buffers():
            if buffer is not buffers.get(name, buffer):
                path, _, attribute = name.rpartition(".")
                setattr(pl_module.get_submodule(path), attribute, buffers[name])
        write_metrics(pl_module, metrics)
        rewind(streams)


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    # torch's foreach functions refuse an empty list.
    return list(torch._foreach_clone(tensors)) if tensors else []


def _say_nothing(proceed: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Take the place of `LightningModule.log`."""
