"""What answers to augmented images depend on, as plain data that can be compared."""

import hashlib
import json
import math
from typing import Any

import torch
from torch import Tensor

from ..augmentation.augmentation import Augmentation
from ._uniforms import uniforms
from .datamodule import VisionDataModule

__all__ = ["fingerprint", "first_difference"]

PROBED = 64
# By how much the mean of an augmented image may differ between processors, as a share of it and where it is near 0.
TOLERANCE = 0.01


def fingerprint(data: VisionDataModule, seed: int, augmented: bool = True) -> dict[str, Any]:
    """Classes, training images, their size, what augments and what normalises them.

    Of the images count and labels are all there, pixels those of 64 samples spread over the set, less files that are
    left out; of an augmentation its settings and the mean of what it makes of each of these samples, on the CPU. Only
    the mean, because processors with other instructions round some interpolated pixels differently.

    Args:
        data: Set up.
        seed: Of the augmentation's draws.
        augmented: Whether the augmentation has a part in it; else images count as they are before it.
    """
    images, augmentation = data.train_set, data.augmentation if augmented else None
    assert images is not None
    probed = images.fetch(torch.linspace(0, len(images) - 1, min(len(images), PROBED)).long())
    pixels = result = probed.image
    if augmentation is not None:
        result = augmentation.apply(pixels, uniforms(probed.index, augmentation.draws, seed, 0))
    means = result.double().mean((1, 2, 3)).tolist()
    found = {
        "classes": data.class_names,
        "image size": list(result.shape[1:]),
        "training images": [len(images), _digest(images.targets), _digest(pixels)],
        "augmentation": {"settings": _described(augmentation), "means": means},
        "normalisation": list(data.statistics),
    }
    return dict(json.loads(json.dumps(found)))


def first_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """The name of the first thing in which two fingerprints differ."""
    return next((name for name, value in ours.items() if not _alike(name, theirs.get(name), value)), None)


def _alike(name: str, theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return theirs.keys() == ours.keys() and first_difference(theirs, ours) is None
    if name == "means" and isinstance(theirs, list) and len(theirs) == len(ours):
        pairs = zip(theirs, ours, strict=True)
        return all(math.isclose(*pair, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for pair in pairs)
    return bool(theirs == ours)


def _digest(tensor: Tensor | None) -> str | None:
    if tensor is None:
        return None
    form = f"{tuple(tensor.shape)} {tensor.dtype} ".encode()
    return hashlib.blake2b(form + tensor.contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def _described(value: Any) -> Any:
    """Names and settings; of what data cannot express the class."""
    if isinstance(value, Augmentation):
        public = {name: it for name, it in sorted(vars(value).items()) if not name.startswith("_")}
        return [type(value).__name__, {name: _described(it) for name, it in public.items()}]
    if isinstance(value, (list, tuple)):
        return [_described(it) for it in value]
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
