"""From the name of an architecture and a backbone to a network."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from torch import nn

from lightning_vision.catalogue import nearest

from .cascade_rcnn import cascade_rcnn
from .fcos import fcos
from .network import DetectionNetwork
from .published import check_number, published_architecture, published_detector
from .pyramid import Levels, ModuleLevels, TimmLevels
from .retinanet import retinanet
from .settings import DetectorSettings
from .ssd import ssd
from .ssdlite import ssdlite
from .two_stage import faster_rcnn, mask_rcnn

__all__ = ["build_detector", "default_strides"]

Architecture = Literal["fcos", "retinanet", "ssd", "ssdlite", "faster_rcnn", "cascade_rcnn", "mask_rcnn"]
# A builder takes levels, settings and, by keyword, what its architecture alone has: `options`.
Builder = Callable[..., DetectionNetwork]
BUILDERS: dict[str, Builder] = {
    "fcos": fcos,
    "retinanet": retinanet,
    "ssd": ssd,
    "ssdlite": ssdlite,
    "faster_rcnn": faster_rcnn,
    "cascade_rcnn": cascade_rcnn,
    "mask_rcnn": mask_rcnn,
}
STRIDES: dict[str, tuple[int, ...]] = {
    "fcos": (8, 16, 32, 64, 128),
    "retinanet": (8, 16, 32, 64, 128),
    "ssd": (8, 16, 32, 64, 128, 256),
    "ssdlite": (16, 32, 64, 128, 256, 512),
    "faster_rcnn": (4, 8, 16, 32, 64),
    "cascade_rcnn": (4, 8, 16, 32, 64),
    "mask_rcnn": (4, 8, 16, 32, 64),
}


def build_detector(
    architecture: Architecture,
    backbone: str | nn.Module,
    settings: DetectorSettings,
    strides: Sequence[int] | None = None,
    in_channels: int = 3,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> DetectionNetwork:
    """A detector on a backbone, apart from Lightning.

    Args:
        architecture: What finds the objects.
        backbone: Name of a network that timm builds with `features_only=True` or of one of torchvision's detectors, or
            a module that gives maps.
        settings: What all architectures are told.
        strides: Maps that are looked at, pixels; None is `default_strides`.
        in_channels: Channels C of the images.
        pretrained: Start the backbone from timm's weights, from its hub.
        options: Keyword arguments of the architecture's builder, or of torchvision's.

    Raises:
        ValueError: an architecture or option is unknown, the backbone lacks a stride, is a detector of another kind or
            has no weights of timm's.
    """
    if architecture not in BUILDERS:
        known = ", ".join(get_args(Architecture))
        raise ValueError(f"no architecture {architecture!r}{nearest(str(architecture), BUILDERS)}; there are {known}")
    whole = published_architecture(backbone) if isinstance(backbone, str) else None
    if isinstance(backbone, str) and whole is not None:
        if whole != architecture:
            raise ValueError(f"torchvision's {backbone} is {whole}, not {architecture}; pass architecture={whole!r}")
        if strides or in_channels != 3 or pretrained:
            raise ValueError(
                f"torchvision's {backbone} has strides of its own, 3 channels and no weights of timm; leave strides "
                "and pretrained out, and name its published weights in weights"
            )
        return published_detector(backbone, settings, options or {})
    builder = BUILDERS[architecture]
    takes = dict(list(inspect.signature(builder).parameters.items())[2:])
    for name, value in (options or {}).items():
        if name not in takes:
            raise ValueError(f"{architecture} has no option {name!r}{nearest(name, takes)}; it has {', '.join(takes)}")
        check_number(name, value, takes[name].default)
    wanted = strides or default_strides(architecture, settings.image_size)
    levels: Levels
    if isinstance(backbone, str):
        levels = TimmLevels(backbone, wanted, in_channels, pretrained, settings.image_size)
    elif pretrained:
        raise ValueError(
            f"timm has weights for networks that it builds by name, none for your {type(backbone).__name__}"
        )
    else:
        levels = ModuleLevels(backbone, wanted, in_channels, settings.image_size)
    return builder(levels, settings, **(options or {}))


def default_strides(architecture: str, image_size: tuple[int, int]) -> list[int]:
    """An architecture's own strides, without those that are too coarse for the image, but at least one.

    SSD looks at the whole image in the end, so its strides are finer than the shorter side. A pyramid's coarsest is the
    published 128 pixels for sides of 800, so at most a sixth of the side.

    Example:
        >>> default_strides("fcos", (512, 640)), default_strides("fcos", (128, 128)), default_strides("ssd", (128, 128))
        ([8, 16, 32, 64], [8, 16], [8, 16, 32, 64])
    """
    side = min(image_size)
    first, *more = STRIDES[architecture]
    coarsest = side - 1 if architecture in ("ssd", "ssdlite") else side // 6
    return [first, *(stride for stride in more if stride <= coarsest)]
