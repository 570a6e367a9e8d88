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
from lightning_vision.commands._explain import METHODS
from lightning_vision.commands._explain.subject import Subject
from lightning_vision.inspection.layers import spatial_layer

__all__ = ["DEFAULT", "MapMethod", "known_methods", "map_methods"]

DEFAULT = "grad_cam"
CAMS = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "score_cam", "eigen_cam")
GRADIENTS = ("guided_backprop", "guided_grad_cam")

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
        class_free: Whether the maps are the same whatever the class.
    """

    name: str
    maps: Maps
    paint: Callable[[NDArray[np.uint8], NDArray[Any]], NDArray[np.uint8]]
    relevance: Callable[[Tensor], Tensor]
    told: str
    class_free: bool


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
    wanted, looking = known_methods(names)
    if layer is not None and not looking:
        verbs = ("explain", "look") if len(wanted) > 1 else ("explains", "looks")
        raise ValueError(f"--layer {layer}: {' and '.join(wanted)} {verbs[0]} by the image and {verbs[1]} at no layer")
    found = spatial_layer(subject.module, subject.probe) if looking and layer is None else layer
    methods = [_method(name, found if name in looking else None) for name in wanted]
    for method in methods:
        method.maps(subject.module, subject.probe, subject.probe.new_zeros(1).long())
    return methods


def known_methods(names: list[str] | str) -> tuple[list[str], list[str]]:
    """Methods by their names, and those of them that look at a layer, before a network is asked.

    Raises:
        ModuleNotFoundError: an attribution is asked for and captum is not installed.
        ValueError: there is no such method, or it is given twice.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"--method {wanted}: give one method or several different ones")
    return wanted, [name for name in wanted if _looks_at_a_layer(name)]


def _looks_at_a_layer(name: str) -> bool:
    if name in METHODS:
        return name in CAMS or name == "guided_grad_cam"
    if name == name.lower() and "." not in name:
        known = nearest(name, METHODS) or f"; there are {', '.join(METHODS)}, and captum's as IntegratedGradients"
        raise ValueError(f"--method {name}: there is no such method{known}")
    return read_recipe(f"--method {name}", name, None, None).at_layer


def _method(name: str, layer: str | None) -> MapMethod:
    called = name if layer is None else f"{name} at layer {layer}"
    if name in CAMS:
        free = name == "eigen_cam"
        told = f"{called}: blue where it is 0, red at its maximum{', whatever the class' if free else ''}."
        return MapMethod(name, _maps(name, layer), overlay, lambda maps: maps, told, free)
    if name in GRADIENTS:
        return MapMethod(
            name,
            _maps(name, layer),
            lambda _, values: gradient_picture(values),
            lambda maps: maps.abs().amax(1),
            f"{called}: a gradient around grey, brighter where more of a colour speaks for the class.",
            False,
        )
    free = name not in METHODS and not read_recipe(f"--method {name}", name, None, None).of_class
    told = (
        "red where its values are above 0, blue below, whatever the class"
        if free
        else "red speaks for the class, blue against it"
    )
    return MapMethod(
        name,
        _maps(name, layer),
        lambda _, values: signed_picture(values.sum(0)),
        lambda maps: maps.sum(1),
        f"{called}: {told}.",
        free,
    )


def _maps(name: str, layer: str | None) -> Maps:
    if name == "linear_interpreter":
        return lambda model, images, classes: callbacks.LinearInterpreter(model).contributions(images, classes)
    if name not in METHODS:
        return lambda model, images, classes: callbacks.attribute(model, images, name, classes, layer=layer)
    function = getattr(callbacks, name)
    if name == "eigen_cam":  # whatever the class
        return lambda model, images, classes: function(model, images, layer)
    if name == "guided_backprop":
        return lambda model, images, classes: function(model, images, classes)
    return lambda model, images, classes: function(model, images, layer, classes)
