"""Teachers from a name, a file or a ready network; no module of the student's ever holds them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_vision.backbones.create import create
from lightning_vision.base.weights import load_weights, module_from_checkpoint, read_weights

__all__ = ["Teacher", "build_teachers"]

Teacher = nn.Module | str


def build_teachers(
    owner: str, teacher: Teacher | Sequence[Teacher], weights: str, num_classes: int | None, in_channels: int | None
) -> list[nn.Module]:
    """Networks in evaluation mode whose parameters need no gradient, on the CPU.

    Args:
        owner: Who speaks in a refusal.
        teacher: A network; the path of a checkpoint (`*.ckpt`), whose module is the teacher; or a name of timm's. A
            list of them makes several.
        weights: Of a name: `pretrained`, timm's own; `random`; or a file.
        num_classes: Of a name without a file that tells it; None is the name's own number.
        in_channels: Of a name without a file that tells it; None is three.

    Raises:
        ValueError: a file is missing, holds code or is of another architecture; a name is unknown.
    """
    given = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
    built = [_build(owner, it, weights, num_classes, in_channels) for it in given]
    for network in built:
        network.eval().requires_grad_(False)
    return built


def _build(owner: str, teacher: Any, weights: str, num_classes: int | None, in_channels: int | None) -> nn.Module:
    if isinstance(teacher, nn.Module):
        return teacher
    if Path(teacher).suffix == ".ckpt":
        try:
            return module_from_checkpoint(teacher)
        except FileNotFoundError as error:
            raise ValueError(f"{owner}: teacher: {error}; give the path of a checkpoint.") from error
    network = create(
        teacher, num_classes=num_classes or 1000, in_channels=in_channels or 3, pretrained=weights == "pretrained"
    )
    if weights not in ("pretrained", "random"):
        read_weights(weights)
        load_weights(network, weights)
    return network
