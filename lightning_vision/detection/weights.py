"""Weights for a detector from a file."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_vision.base.weights import mismatch, read_weights

from .published import published_state, published_weights
from .settings import DetectorSettings

__all__ = ["copy_detector_weights", "start_from"]

# What stands before a network's names in files: nothing, or what holds it in modules and wrappers.
WRAPPERS = ("", "network.", "module.", "module.network.")


def start_from(network: nn.Module, weights: str, backbone: Any, settings: DetectorSettings) -> dict[str, Any] | None:
    """Copy a file's weights into a detector, or those that torchvision publishes for it.

    Args:
        network: A `DetectionNetwork`.
        weights: Path, or torchvision's name, such as `FCOS_ResNet50_FPN_Weights.COCO_V1`.
        backbone: What the network was built on.
        settings: What the network was told.

    Returns:
        The preprocessing of published weights whose classes the detector keeps, None otherwise.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the weights are another architecture's.
    """
    published = published_weights(weights, backbone)
    if published is None:
        copy_detector_weights(network, read_weights(weights), settings.num_classes, weights)
        return None
    state, names, ids = published_state(published, settings.num_classes)
    copy_detector_weights(network, state, settings.num_classes, weights)
    sizes = {"channels": 3, "image_size": settings.image_size, "resize": "letterbox"}
    return (
        {"class_names": names, "category_ids": ids, "mean": network.mean, "std": network.std, **sizes} if ids else None
    )


def copy_detector_weights(network: nn.Module, found: Mapping[str, Tensor], num_classes: int, source: str) -> None:
    """Copy weights into a detector; layers whose size depends on K stay as they are where K differs, and are named.

    Args:
        network: A `DetectionNetwork`.
        found: Tensors by name, of a detector of the same kind: a checkpoint's, a network's or torchvision's model's.
        num_classes: K of the network.
        source: What messages call the tensors.

    Raises:
        ValueError: they are another architecture's.
    """
    own = network.state_dict()
    # Names in torchvision's files begin below our `model.`.
    offers = [(outer, inner) for outer in WRAPPERS for inner in ("", "model.")]
    outer, inner = max(offers, key=lambda it: sum(it[0] + name.removeprefix(it[1]) in found for name in own))
    file = {inner + name.removeprefix(outer): value for name, value in found.items() if name.startswith(outer)}
    differing = [name for name in own if name in file and own[name].shape != file[name].shape]
    classes = {_classes_of(own[name], file[name], num_classes) for name in differing}
    problem = mismatch(own, file) if differing and (len(classes) > 1 or None in classes) else ""
    if not problem:
        # Loaded before it is judged: torchvision's layers know the older names of theirs.
        said = network.load_state_dict({**file, **{name: own[name] for name in differing}}, strict=False)
        missing = [name for name in said.missing_keys if not name.endswith("num_batches_tracked")]
        problem = mismatch(own, file) if missing or said.unexpected_keys else ""
    if problem:
        raise ValueError(f"{source} holds weights of another detector: {problem}")
    if differing:
        rank_zero_warn(
            f"{source} knows {classes.pop()} classes and the detector {num_classes}, so these layers start untrained: "
            f"{', '.join(differing)}"
        )


def _classes_of(own: Tensor, found: Tensor, num_classes: int) -> int | None:
    """How many classes the file's layer is for, None where the shapes differ in another way."""
    if own.ndim == 0 or own.shape[1:] != found.shape[1:]:
        return None
    theirs, rest = divmod(len(found) * (num_classes + 1), len(own))
    return theirs - 1 if rest == 0 and theirs > 1 else None
