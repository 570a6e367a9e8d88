"""Teachers from a name, a file or a ready network; no module of the student's ever holds them."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lightning_vision.backbones.create import create
from lightning_vision.base.weights import load_weights, module_from_checkpoint, read_weights

__all__ = ["Renormalised", "Teacher", "build_teachers", "fingerprint", "lend", "statistics_of", "timms_statistics"]

Teacher = nn.Module | str


def build_teachers(
    owner: str,
    teacher: Teacher | Sequence[Teacher],
    weights: str,
    num_classes: int,
    in_channels: int,
    argument: str = "teacher",
) -> list[nn.Module]:
    """Networks as they come, on the CPU if they were not somewhere else.

    Args:
        owner: Who speaks in a refusal.
        teacher: A network; the path of a checkpoint (`*.ckpt`), whose module is the teacher; or a name of timm's. A
            list of them makes several.
        weights: Of a name: `pretrained`, timm's own; `random`; or a file.
        num_classes: Of a name with `random` weights; others tell it themselves.
        in_channels: Likewise, and of timm's own weights, which are fitted to it.
        argument: What a refusal calls it.

    Raises:
        ValueError: a file is missing, holds code or is of another architecture; a name is unknown.
    """
    built = []
    for it in list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]:
        if isinstance(it, nn.Module):
            built.append(it)
            continue
        if not isinstance(it, str):
            raise ValueError(f"{owner}: {argument} is {it!r}; give a network, a checkpoint's path, a name, or a list.")
        try:
            if Path(it).suffix == ".ckpt":
                built.append(module_from_checkpoint(it))
            else:
                built.append(_by_name(it, weights, num_classes, in_channels))
        except (ConnectionError, FileNotFoundError, ValueError) as error:
            raise ValueError(f"{owner}: {argument} {it!r}: {str(error).rstrip('.')}.") from error
    return built


def _by_name(name: str, weights: str, num_classes: int, in_channels: int) -> nn.Module:
    if weights == "random":
        return create(name, num_classes=num_classes, in_channels=in_channels)
    if weights == "pretrained":
        told = timm.get_pretrained_cfg(name) if ":" not in name and timm.is_model(name) else None
        # Not the student's: timm would give another number of classes a classifier that has learned nothing.
        num_classes = num_classes if told is None else told.num_classes
        return create(name, num_classes=num_classes, in_channels=in_channels, pretrained=True)
    found = read_weights(weights)
    network = create(name, num_classes=num_classes, in_channels=in_channels)
    classes, channels = (_size(network, found, key, dim) for key, dim in (("classifier", 0), ("first_conv", 1)))
    if classes is None:
        raise ValueError(
            f"{weights} holds no classifier of this network, so it cannot teach; give one that was trained"
        )
    if (classes, channels or in_channels) != (num_classes, in_channels):
        network = create(name, num_classes=classes, in_channels=channels or in_channels)
    load_weights(network, weights)
    return network


def _size(network: nn.Module, found: Mapping[str, Tensor], key: str, dim: int) -> int | None:
    """A dimension of the weight of the layer that timm's configuration names, in a file that may have prefixes."""
    named = (getattr(network, "pretrained_cfg", None) or {}).get(key) or ()
    for layer in [named] if isinstance(named, str) else named:
        for name, value in found.items():
            if f".{name}".endswith(f".{layer}.weight"):
                return value.shape[dim]
    return None


def lend(network: nn.Module) -> ExitStack:
    """Put a network into evaluation mode, its parameters without gradient; closed, modes and device are as before.

    Only what is changed is put back, so the same network may be lent to several.
    """
    undo = ExitStack()
    training = [part for part in network.modules() if part.training]
    needing = [it for it in network.parameters() if it.requires_grad]
    device = next((it.device for it in network.parameters()), None)
    for part in training:
        part.training = False
    network.requires_grad_(False)

    def give_back() -> None:
        for part in training:
            part.training = True
        for it in needing:
            it.requires_grad_(True)
        if device is not None:
            network.to(device)

    undo.callback(give_back)
    return undo


class Renormalised:
    """Images that were normalised for one network, as another one had them: x std / std' + (mean - mean') / std'.

    Args:
        of: Mean and standard deviation of each channel that were taken away from the images.
        wanted: Those that the other network had.
    """

    def __init__(self, of: tuple[list[float], list[float]], wanted: tuple[list[float], list[float]]) -> None:
        (mean, std), (their_mean, their_std) = (torch.tensor(it, dtype=torch.float64) for it in (of, wanted))
        self._scale = (std / their_std).float()[:, None, None]
        self._shift = ((mean - their_mean) / their_std).float()[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """Images `(B, C, H, W)` of their own type."""
        self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        return (images * self._scale + self._shift).to(images.dtype)


def statistics_of(source: Any) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation by which images are normalised for a module or by a datamodule; None if not known."""
    told = getattr(source, "preprocessing", None)
    if not isinstance(told, Mapping):
        return None
    mean, std = told.get("mean"), told.get("std")
    return None if mean is None or std is None else ([float(it) for it in mean], [float(it) for it in std])


def timms_statistics(network: nn.Module, weights: str) -> tuple[list[float], list[float]] | None:
    """The same of a network with timm's own weights."""
    told = getattr(network, "pretrained_cfg", None) or {}
    known = weights == "pretrained" and {"mean", "std"} <= told.keys()
    return (list(told["mean"]), list(told["std"])) if known else None


def fingerprint(network: nn.Module) -> str:
    """By which a network's weights are known again: names, shapes and some numbers of each tensor, hashed."""
    told = hashlib.sha256()
    for name, it in [*network.named_parameters(), *network.named_buffers()]:
        told.update(f"{name} {tuple(it.shape)} ".encode())
        flat = it.detach().reshape(-1)
        told.update(str(flat[:: max(len(flat) // 16, 1)].to("cpu", torch.float64).tolist()).encode())
    return told.hexdigest()[:16]
