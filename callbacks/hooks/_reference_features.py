"""Features of real images, and the file in which they are kept from one run to the next."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["Reference", "read_reference", "write_reference"]


@dataclass(frozen=True)
class Reference:
    """What made images are compared with.

    Args:
        features: Of real images, float32 `(N, D)` on the CPU.
        labels: Their classes, int64 `(N,)`; None where they have none.
        shape: C, H and W of the images.
    """

    features: Tensor
    labels: Tensor | None
    shape: tuple[int, ...]

    def first(self, count: int) -> "Reference":
        """Those of the first images."""
        return Reference(self.features[:count], None if self.labels is None else self.labels[:count], self.shape)


def write_reference(path: str, reference: Reference, told: Mapping[str, str]) -> None:
    """Write a file beside its place and move it there, so that it is whole whenever it is there.

    Args:
        path: Its folder is made if it is missing.
        reference: On the CPU.
        told: What the features depend on, by name.
    """
    tensors = {"features": reference.features.contiguous()}
    if reference.labels is not None:
        tensors["labels"] = reference.labels.contiguous()
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    save_file(tensors, beside, {**told, "images": " x ".join(map(str, reference.shape))})
    beside.replace(file)


def read_reference(owner: str, path: str, told: Mapping[str, str]) -> Reference | None:
    """What such a file holds; None if there is none.

    Raises:
        ValueError: the file is damaged, or its features depend on something else.
    """
    if not Path(path).is_file():
        return None
    try:
        with safe_open(path, "pt") as opened:
            found: dict[str, str] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it has no iterator
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{owner}: statistics {path!r} are damaged or no safetensors file ({error}).") from error
    features = tensors.get("features", torch.empty(0))
    if features.ndim != 2 or "images" not in found:
        raise ValueError(f"{owner}: statistics {path!r} hold no features of images; name another file.")
    for name, value in told.items():
        if found.get(name) != value:
            raise ValueError(
                f"{owner}: statistics {path!r} were taken with {name} {found.get(name)}, here there are {name} "
                f"{value}; name another file, or delete this one to have it written anew."
            )
    return Reference(features, tensors.get("labels"), tuple(map(int, found["images"].split(" x "))))
