"""What a test may not leave behind in its process, as probes that can be read, compared and put back."""

import inspect
import os
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric.utilities import registry
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch.nn.modules import module as nn_module
from torch.optim import Optimizer
from torch.optim import optimizer as optim_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = ["PROBES", "Probe", "fixed_seed", "leaks", "read_all"]

# Entry points that a method is tempted to patch.
PATCHABLE: dict[str, Any] = {
    "torch.nn.functional": F,
    "Module": torch.nn.Module,
    "Optimizer": Optimizer,
    "Tensor": torch.Tensor,
    "Trainer": L.Trainer,
    "LightningModule": L.LightningModule,
    "LightningDataModule": L.LightningDataModule,
    "Callback": L.Callback,
    "Strategy": Strategy,
    "SingleDeviceStrategy": SingleDeviceStrategy,
    "DDPStrategy": DDPStrategy,
}

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

# Every Trainer asks all installed packages for callbacks of theirs, 12 ms; nothing is installed while tests run.
registry.entry_points = cache(registry.entry_points)

# Written by libraries while they are imported (LD_LIBRARY_PATH and QT_ by OpenCV), by pytest, and by Lightning's
# `seed_everything` (PL_).
ENVIRONMENT_NOISE = (
    "PYTEST_",
    "KMP_",
    "LD_LIBRARY_PATH",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "TORCHINDUCTOR_",
    "COV_",
    "QT_QPA_",
)


@dataclass(frozen=True)
class Probe:
    """One aspect of the process: `read` returns a comparable value, `restore` puts an earlier one back."""

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], None]


def _global_hooks() -> dict[str, Any]:
    return {
        name: hooks
        for module in (nn_module, optim_module)
        for name, hooks in vars(module).items()
        if name.startswith("_global_") and name.endswith("_hooks")
    }


def _restore_hooks(before: dict[str, dict[int, Any]]) -> None:
    for name, hooks in _global_hooks().items():
        hooks.clear()
        hooks.update(before[name])


def _patchable(owner: Any) -> dict[str, Any]:
    return {name: it for name, it in vars(owner).items() if inspect.isroutine(it) or isinstance(it, property)}


def _read_attributes() -> dict[str, Any]:
    return {f"{label}.{name}": value for label, owner in PATCHABLE.items() for name, value in _patchable(owner).items()}


def _restore_attributes(before: dict[str, Any]) -> None:
    for label, owner in PATCHABLE.items():
        for name in _patchable(owner):
            if f"{label}.{name}" not in before:
                delattr(owner, name)
    for key, value in before.items():
        label, name = key.rsplit(".", 1)
        if vars(PATCHABLE[label]).get(name) is not value:
            setattr(PATCHABLE[label], name, value)


def _read_modes() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return tuple(_get_current_function_mode_stack()), tuple(_get_current_dispatch_mode_stack())


def _restore_modes(before: tuple[tuple[Any, ...], tuple[Any, ...]]) -> None:
    stacks = (_get_current_function_mode_stack, _get_current_dispatch_mode_stack)
    for stack, earlier in zip(stacks, before, strict=True):
        while len(stack()) > len(earlier):
            stack()[-1].__exit__(None, None, None)


def _restore_handlers(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def _read_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_NOISE)}


def _restore_environment(before: dict[str, str]) -> None:
    for key in _read_environment().keys() - before.keys():
        del os.environ[key]
    os.environ.update(before)


def _restore_process_group(before: bool) -> None:
    if not before and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# Guards entered to cover a guard that a test lost: inference mode can only be left by the object that entered it.
_covering_guards: list[torch.inference_mode] = []


def _restore_inference_mode(before: bool) -> None:
    _covering_guards.append(torch.inference_mode(before))
    _covering_guards[-1].__enter__()


PROBES = (
    Probe("global hooks", lambda: {name: dict(hooks) for name, hooks in _global_hooks().items()}, _restore_hooks),
    Probe("patched attributes", _read_attributes, _restore_attributes),
    Probe("function or dispatch modes", _read_modes, _restore_modes),
    Probe("signal handlers", lambda: {it: signal.getsignal(it) for it in HANDLED}, _restore_handlers),
    Probe("environment variables", _read_environment, _restore_environment),
    Probe("process group", torch.distributed.is_initialized, _restore_process_group),
    Probe("inference mode", torch.is_inference_mode_enabled, _restore_inference_mode),
    Probe("grad mode", torch.is_grad_enabled, lambda on: torch._C._set_grad_enabled(on)),
    Probe("autocast", lambda: torch.is_autocast_enabled("cpu"), lambda on: torch.set_autocast_enabled("cpu", on)),
    Probe("default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Probe(
        "deterministic algorithms",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    Probe("number of threads", torch.get_num_threads, torch.set_num_threads),
    Probe("anomaly mode", torch.is_anomaly_enabled, lambda on: torch.autograd.set_detect_anomaly(on)),
    Probe("matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
)


def read_all() -> dict[str, Any]:
    return {probe.name: probe.read() for probe in PROBES}


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, Mapping):
        return ", ".join(sorted(str(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)))
    return f"{before!r} -> {after!r}"


def leaks(before: dict[str, Any]) -> list[str]:
    """One line for each probe whose value is no longer `before`'s; the old value is put back."""
    found = []
    for probe in PROBES:
        after = probe.read()
        if after != before[probe.name]:
            found.append(f"{probe.name}: {_difference(before[probe.name], after)}")
            probe.restore(before[probe.name])
    return found


def fixed_seed() -> None:
    """Let every test start from the same random streams, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
