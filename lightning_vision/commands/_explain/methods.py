"""Maps by the name of their method, for a network and a layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_vision import callbacks
from lightning_vision.callbacks.explain._captum import read_recipe
from lightning_vision.callbacks.explain.guided_backprop import gradient_picture
from lightning_vision.callbacks.explain.sheet import overlay, signed_picture
from lightning_vision.catalogue import nearest
from lightning_vision.commands._explain.subject import Subject
from lightning_vision.inspection.layers import spatial_layer

__all__ = ["DEFAULT", "MapMethod", "map_methods"]

DEFAULT = "grad_cam"
CAMS = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "score_cam", "eigen_cam")
GRADIENTS = ("guided_backprop", "guided_grad_cam")
OURS = (*CAMS, *GRADIENTS, "linear_interpreter")

Maps = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class MapMethod:
    """A way to make maps.

    Args:
        name: As it was asked for.
        maps: Of a model, images `(B, C, H, W)` and classes int64 `(B,)`: heat `(B, H, W)` or values `(B, C, H, W)`.
        paint: An image as pixels and its map as a picture.
        relevance: The maps as one number a pixel, `(B, H, W)`, large where it speaks for the class.
        told: What a reader has to know of the pictures.
    """

    name: str
    maps: Maps
    paint: Callable[[NDArray[np.uint8], NDArray[Any]], NDArray[np.uint8]]
    relevance: Callable[[Tensor], Tensor]
    told: str


def map_methods(subject: Subject, names: list[str] | str, layer: str | None) -> list[MapMethod]:
    """The methods called so, each tried on the subject's network.

    Args:
        subject: What is explained.
        names: One or several.
        layer: Dotted name; None takes the last one that has maps.

    Raises:
        ModuleNotFoundError: an attribution is asked for and captum is not installed.
        ValueError: there is no such method, it is given twice, none looks at the layer, or one cannot explain the
            network.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"--method {wanted}: give one method or several different ones")
    looking = [name for name in wanted if _looks_at_a_layer(name)]
    if layer is not None and not looking:
        raise ValueError(f"--layer {layer}: {' and '.join(wanted)} explain by the image and look at no layer")
    found = spatial_layer(subject.module, subject.probe) if looking and layer is None else layer
    methods = [_method(name, found if name in looking else None) for name in wanted]
    for method in methods:
        method.maps(subject.module, subject.probe, subject.probe.new_zeros(1).long())
    return methods


def _looks_at_a_layer(name: str) -> bool:
    if name in OURS:
        return name in CAMS or name == "guided_grad_cam"
    if name == name.lower() and "." not in name:
        known = nearest(name, OURS) or f"; there are {', '.join(OURS)}, and captum's as IntegratedGradients"
        raise ValueError(f"--method {name}: there is no such method{known}")
    return read_recipe("explain", name, None, None).at_layer


def _method(name: str, layer: str | None) -> MapMethod:
    called = name if layer is None else f"{name} at layer {layer}"
    if name in CAMS:
        return MapMethod(
            name, _maps(name, layer), overlay, lambda maps: maps, f"{called}: blue where it is 0, red at its maximum."
        )
    if name in GRADIENTS:
        return MapMethod(
            name,
            _maps(name, layer),
            lambda _, values: gradient_picture(values),
            lambda maps: maps.abs().amax(1),
            f"{called}: a gradient around grey, brighter where more of a colour speaks for the class.",
        )
    return MapMethod(
        name,
        _maps(name, layer),
        lambda _, values: signed_picture(values.sum(0)),
        lambda maps: maps.sum(1),
        f"{called}: red speaks for the class, blue against it.",
    )


def _maps(name: str, layer: str | None) -> Maps:
    if name == "linear_interpreter":
        return lambda model, images, classes: callbacks.LinearInterpreter(model).contributions(images, classes)
    if name not in OURS:
        return lambda model, images, classes: callbacks.attribute(model, images, name, classes, layer=layer)
    function = getattr(callbacks, name)
    if name == "eigen_cam":  # whatever the class
        return lambda model, images, classes: function(model, images, layer)
    if name == "guided_backprop":
        return lambda model, images, classes: function(model, images, classes)
    return lambda model, images, classes: function(model, images, layer, classes)
