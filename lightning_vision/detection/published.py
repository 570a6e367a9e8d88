"""torchvision's own detectors, whole, and the weights that it publishes for them."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import models
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD

from lightning_vision.catalogue import nearest

from .network import TorchvisionDetector
from .settings import DetectorSettings
from .two_stage import in_full_precision

__all__ = ["published_architecture", "published_detector", "published_size", "published_state", "published_weights"]

# What torchvision's names begin with.
PREFIXES = {
    "fcos_": "fcos",
    "retinanet_": "retinanet",
    "ssd300_": "ssd",
    "ssdlite320_": "ssdlite",
    "fasterrcnn_": "faster_rcnn",
    "maskrcnn_": "mask_rcnn",
}
KINDS: dict[str, type] = {
    "fcos": FCOS,
    "retinanet": RetinaNet,
    "ssd": SSD,
    "ssdlite": SSD,
    "faster_rcnn": FasterRCNN,
    "mask_rcnn": MaskRCNN,
}
# Whose norms torchvision gives an epsilon of 0. It is taken off their variances instead, so checkpoints hold all of it.
WITHOUT_EPSILON = (
    "RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
    "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
)
EPSILON = 1e-5  # of the norms as they are built


def published_architecture(backbone: str) -> str | None:
    """What kind of detector torchvision builds under a name, None where it builds none.

    Example:
        >>> published_architecture("fcos_resnet50_fpn"), published_architecture("resnet50")
        ('fcos', None)
    """
    if backbone not in models.list_models(models.detection):
        return None
    return next((kind for prefix, kind in PREFIXES.items() if backbone.startswith(prefix)), None)


def published_detector(backbone: str, settings: DetectorSettings, options: Mapping[str, Any]) -> TorchvisionDetector:
    """One of torchvision's detectors as it is published, with its own strides and anchors, untrained.

    Args:
        backbone: torchvision's name, for example `fcos_resnet50_fpn`.
        settings: Has the classes and what of the findings is given; anchors stay torchvision's.
        options: Further numbers that torchvision's class takes.

    Raises:
        ValueError: torchvision's class does not take an option, or not this kind of value.
    """
    prefix = "box_" if "rcnn" in backbone else ""
    found = {
        f"{prefix}score_thresh": settings.score_threshold,
        f"{prefix}nms_thresh": settings.nms_threshold,
        f"{prefix}detections_per_img": settings.max_detections,
    }
    classes = settings.num_classes + 1
    # Asked of the class: torchvision's functions take any name, and drop what nobody knows.
    kind = KINDS[published_architecture(backbone) or ""]
    takes = inspect.signature(kind).parameters
    numbers = [name for name, it in takes.items() if type(it.default) in (int, float)]
    known = [name for name in numbers if name not in ("min_size", "max_size", *found)]
    for name, value in options.items():
        if name not in known:
            raise ValueError(
                f"torchvision's {backbone} has no option {name!r}{nearest(name, known)}; it has {', '.join(known)}"
            )
        check_number(name, value, takes[name].default)
    model = models.get_model(backbone, weights=None, weights_backbone=None, num_classes=classes, **{**found, **options})
    if prefix:
        in_full_precision(model.rpn.head, model.roi_heads.box_predictor)
    return TorchvisionDetector(model, 1 if backbone.startswith("ssd") else 32)


def check_number(name: str, value: Any, default: Any) -> None:
    """Refuse for an option that is a number what is none, and for one that counts what is not whole."""
    kinds = {int: (int, "a whole number"), float: (int | float, "a number")}
    if type(default) in kinds:
        kind, said = kinds[type(default)]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError(f"options has {name}={value!r}; give {said}")


def published_weights(name: str, backbone: Any) -> Any:
    """Weights that torchvision publishes, None where `name` is no such name.

    Args:
        name: For example `FCOS_ResNet50_FPN_Weights.COCO_V1`.
        backbone: Whom they are for.

    Raises:
        ValueError: torchvision has no such weights, or they are another detector's.
    """
    if not re.fullmatch(r"\w+_Weights\.\w+", name):
        return None
    detectors = [it for it in models.list_models(models.detection) if published_architecture(it)]
    known = {str(weights): it for it in detectors for weights in models.get_model_weights(it)}
    if name not in known:
        raise ValueError(f"torchvision publishes no {name} for a detector{nearest(name, known)}")
    if known[name] != backbone:
        fitting = f"architecture={published_architecture(known[name])!r} and backbone={known[name]!r}"
        raise ValueError(f"{name} fits torchvision's own network only; pass {fitting}")
    return models.get_weight(name)


def published_size(backbone: str) -> int:
    """The side of images, pixels, that one of torchvision's detectors was made for.

    Example:
        >>> published_size("ssd300_vgg16"), published_size("fcos_resnet50_fpn")
        (300, 800)
    """
    return next((size for size in (300, 320) if f"{size}_" in backbone), 800)


def published_state(weights: Any, num_classes: int) -> tuple[dict[str, Tensor], list[str], list[int]]:
    """Tensors of published weights, and the names and ids of the classes that they know.

    torchvision's detectors answer for all of COCO's 90 category ids, of which ten are nobody's. Where K is the number
    of those that are somebody's, 80, the others' rows are left out, so label k is the k-th category of COCO's files.

    Args:
        weights: Of torchvision, as `published_weights` finds them; fetched into torch's hub folder.
        num_classes: K.

    Returns:
        Tensors by name; names and category ids in the order of the labels, empty where K is another number.

    Raises:
        ConnectionError: the weights are not on this machine and could not be fetched.
    """
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ConnectionError(
            f"{weights} could not be fetched ({type(error).__name__}); when offline, put a copy of {weights.url} into "
            f"{folder}"
        ) from error
    if str(weights) in WITHOUT_EPSILON:
        norms = [name for name in state if name.endswith("running_var")]
        state = {**state, **{name: state[name] - EPSILON for name in norms}}
    categories = weights.meta["categories"]
    real = [number for number, name in enumerate(categories) if name not in ("__background__", "N/A")]
    chosen = {len(real): real, len(categories) - 1: list(range(1, len(categories)))}.get(num_classes, [])
    if len(chosen) == len(real):
        rows = torch.tensor([0, *chosen])
        state = {name: _chosen_rows(name, value, rows, len(categories)) for name, value in state.items()}
    return state, [categories[number] for number in chosen], chosen


def _chosen_rows(name: str, value: Tensor, rows: Tensor, classes: int) -> Tensor:
    """A tensor of a layer that answers for `classes` classes, cut down to those in `rows`; others as they are."""
    answers = ("cls_logits", "classification_head.module_list", "box_predictor", "mask_fcn_logits")
    if not any(it in name for it in answers) or value.ndim == 0 or len(value) % classes:
        return value
    # Offsets of two-stage detectors are four a class; elsewhere classes follow one another, anchor by anchor.
    each = 4 if "bbox_pred" in name else 1
    grouped = value.reshape(-1, classes, each, *value.shape[1:])
    return grouped[:, rows].reshape(-1, *value.shape[1:])
