"""Computing a training step again without a trace in buffers, torchmetrics, logs and random streams."""

import ctypes
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.random.mtrand import get_bit_generator
from torchmetrics import Metric

from ._around import Around
from ._metric_states import read_metrics, write_metrics

__all__ = ["Replay", "Streams", "read_streams", "rewind"]

# Each of the process's random streams: what puts its state back, and the state.
Streams = list[tuple[Callable[[Any], Any], Any]]


class _NumpyStream:
    """numpy's global stream, read and put back in a microsecond while nothing draws from it.

    `numpy.random.get_state` takes a tenth of a millisecond. The memory that it copies is compared instead, at the
    address that numpy publishes; what is not in there, a normal number kept for the next call, can neither come nor go
    without it as long as there is none. `tests/callbacks/hooks/test_ascent.py` fails when numpy changes this.
    """

    def __init__(self) -> None:
        self._memory, self._state = b"", np.random.get_state(legacy=False)

    def _read_memory(self) -> bytes:
        generator = get_bit_generator()
        if not isinstance(generator, np.random.MT19937):
            return b""
        # 624 words and the position among them.
        return ctypes.string_at(generator.ctypes.state_address, 625 * 4)

    def read(self) -> dict[str, Any]:
        memory = self._read_memory()
        if not memory or memory != self._memory or self._state["has_gauss"]:
            self._memory, self._state = memory, np.random.get_state(legacy=False)
        return self._state

    def write(self, state: dict[str, Any]) -> None:
        if self.read() is not state:
            np.random.set_state(state)


_numpy_stream = _NumpyStream()


def read_streams(device: torch.device) -> Streams:
    """The global streams of Python, numpy, torch and, where the run uses it, the CUDA device."""
    streams: Streams = [
        (random.setstate, random.getstate()),
        (_numpy_stream.write, _numpy_stream.read()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if device.type == "cuda":
        streams.append((partial(torch.cuda.set_rng_state, device=device), torch.cuda.get_rng_state(device)))
    return streams


def rewind(streams: Streams) -> None:
    """Put every stream back to where it was read."""
    for put_back, state in streams:
        put_back(state)


class Replay:
    """What has to be put back after a module has computed a step again; made anew when its parts may have changed.

    Args:
        trainer: Of the module, and of the device where it computes.

    Attributes:
        running: How many are computing without a trace now, one within another.
    """

    running: ClassVar[int] = 0

    def __init__(self, trainer: Trainer) -> None:
        pl_module = trainer.lightning_module
        self.module, self.device = pl_module, trainer.strategy.root_device
        self._loggers = trainer.loggers
        self.parameters = list(pl_module.parameters())
        paths = [name.rpartition(".") for name, _ in pl_module.named_buffers()]
        self._buffers = [(pl_module.get_submodule(path), name) for path, _, name in paths]
        # Reading metrics walks the module and moves their states to the CPU, so it is left out where there are none.
        self._has_metrics = any(isinstance(part, Metric) for part in pl_module.modules())

    @contextmanager
    def without_trace(self, graph: bool = False) -> Iterator[None]:
        """Inside, neither module nor loggers log numbers; at the end, also by an exception, all else is put back.

        Args:
            graph: Backward passes come later, of what was computed before and of what is computed inside: no buffer is
                written in place, the module computes with copies of them.
        """
        streams = read_streams(self.device)
        buffers = [getattr(owner, name) for owner, name in self._buffers]
        # An expanded buffer can only be replaced, never written in place, so it needs no copy.
        written = [buffer for buffer in buffers if buffer is not None and 0 not in buffer.stride()]
        # torch's foreach functions refuse an empty list.
        copies = list(torch._foreach_clone(written)) if written else []
        if graph:
            lent = {id(buffer): copy for buffer, copy in zip(written, copies, strict=True)}
            written = []
            for (owner, name), buffer in zip(self._buffers, buffers, strict=True):
                if id(buffer) in lent:
                    setattr(owner, name, lent[id(buffer)])
        metrics = read_metrics(self.module, ()) if self._has_metrics else {}
        muted = [Around(self.module, name, _say_nothing) for name in ("log", "log_dict")]
        # What a module of the house counts past `self.log`.
        if hasattr(scalars := getattr(self.module, "scalars", None), "log"):
            muted.append(Around(scalars, "log", _say_nothing))
        muted += [Around(logger, "log_metrics", _say_nothing) for logger in self._loggers]
        Replay.running += 1
        try:
            yield
        finally:
            Replay.running -= 1
            for around in muted:
                around.undo()
            if written:
                with torch.no_grad():
                    torch._foreach_copy_(written, copies)
            for (owner, name), buffer in zip(self._buffers, buffers, strict=True):
                if getattr(owner, name) is not buffer:
                    setattr(owner, name, buffer)
            if self._has_metrics:
                write_metrics(self.module, metrics)
            rewind(streams)


def _say_nothing(proceed: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Take the place of `LightningModule.log` and `Logger.log_metrics`."""
