"""Checkpoints of networks that callbacks changed: made anew before weights are loaded, or told of."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule

from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.callbacks.hooks.forwards import Forwards
from lightning_vision.callbacks.hooks.gates import Gates
from lightning_vision.callbacks.hooks.network import Network
from lightning_vision.catalogue import find

__all__ = ["changing", "load_changed", "module_to_change", "tell_of_other_functions"]


def changing(callbacks: Iterable[Callback | None]) -> list[Network]:
    """Those that change layers before weights are loaded."""
    return [it for it in callbacks if isinstance(it, Network) and not it.off]


def module_to_change(path: str | Path, checkpoint: Mapping[str, Any], callbacks: Sequence[Network]) -> LightningModule:
    """The module that a checkpoint names; if callbacks are to change it, its weights are not all loaded yet.

    Raises:
        ValueError: as `module_from_checkpoint`; where a callback is missing that changed the network, it is named.
    """
    try:
        with warnings.catch_warnings():
            # Of names that differ; those that still do when all is loaded are refused.
            warnings.filterwarnings("ignore", "Found keys")
            return module_from_checkpoint(path, strict=False if callbacks else None)
    except ValueError as error:
        raise ValueError(f"{error}{_way_out(checkpoint, callbacks)}") from error


def load_changed(module: LightningModule, checkpoint: Mapping[str, Any], callbacks: Sequence[Network]) -> None:
    """Let callbacks change the module's layers, then load the checkpoint's weights into them.

    It is for evaluations: in a fit, a callback's own set-up changes the network and keeps what was there before.

    Raises:
        ValueError: the weights are of another architecture; where a callback is missing that made it, it is named.
    """
    for callback in callbacks:
        if told := callback.change(module):
            print(told)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except ValueError as error:
        raise ValueError(f"{error}{_way_out(checkpoint, callbacks)}") from error


def tell_of_other_functions(checkpoint: Mapping[str, Any]) -> None:
    """Print which callbacks, that are not here any more, changed what layers put out while the checkpoint trained."""
    for kind in _kinds(checkpoint, (Forwards, Gates)):
        print(
            f"the checkpoint was trained with {kind}, and without it computes another function; the program has none "
            "of its changes"
        )


def _way_out(checkpoint: Mapping[str, Any], callbacks: Sequence[Network]) -> str:
    there = {type(it).__name__ for it in callbacks}
    missing = [kind for kind in _kinds(checkpoint, Network) if kind not in there]
    return f"; it was trained with {' and '.join(missing)}, so add the callback as it was then" if missing else ""


def _kinds(checkpoint: Mapping[str, Any], wanted: type[Any] | tuple[type[Any], ...]) -> list[str]:
    kinds = dict.fromkeys(key.partition("[")[0] for key in checkpoint.get("callbacks", {}))
    entries = [entry for entry in map(find, kinds) if entry is not None and entry.kind == "callback"]
    return [entry.name for entry in entries if issubclass(entry.load(), wanted)]
