"""What class activation maps share: the layer they read, the way up to the image's size, and their logger."""

from abc import abstractmethod
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_vision.inspection.layers import find_layer, spatial_layer

from ..hooks._checks import number
from ._map_logger import MapLogger
from .sheet import overlay

__all__ = ["CAMLogger", "check_layer", "layer_or_last", "upsampled"]


def layer_or_last(model: nn.Module, images: Tensor, layer: str | None) -> str:
    """`layer`, or the last one of `model` that has maps."""
    return spatial_layer(model, images) if layer is None else layer


def upsampled(maps: Tensor, images: Tensor) -> Tensor:
    """Maps `(B, h, w)` stretched bilinearly to the size of `images`, `(B, H, W)`, in float32."""
    return F.interpolate(maps.float()[:, None], images.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)


def check_layer(owner: str, pl_module: LightningModule, layer: str | None) -> None:
    """Refuse a name that no part of the module has, in the words of `find_layer`, behind the callback's name."""
    try:
        if layer is not None:
            find_layer(pl_module, layer)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from error


class CAMLogger(MapLogger):
    """Logs maps that are computed from what one layer puts out, laid over their images.

    Args:
        layer: Dotted name of the layer inside the module, as `network.layer4`; None takes the last one that has maps.
        target: The class that a map explains: each image's `predicted` one, its `label`, or a class by number.
        samples: Images on the sheet, chosen once, spread over the classes, >= 1.
        every_n_epochs: While fitting, validations of every n-th epoch are drawn, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which draws nothing.
        alpha: Share of the map's colours over the image, 0 to 1.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the pictures are called.

    Raises:
        ValueError: an argument out of its range; before the first step, if there is no such layer; in the sanity check,
            a `validate` or a `test`, if the layer, or any, has no maps. In a later validation of a fit that is told
            once, and the training goes on.
    """

    def __init__(
        self,
        layer: str | None = None,
        target: Literal["predicted", "label"] | int = "predicted",
        samples: int = 8,
        every_n_epochs: int = 1,
        alpha: float = 0.5,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(target, samples, every_n_epochs, image_key, target_key, name)
        number(type(self).__name__, "alpha", alpha, 0, 1)
        self.layer, self.alpha = layer, alpha
        self._found: str | None = None

    @abstractmethod
    def maps(
        self, pl_module: LightningModule, images: Tensor, layer: str, class_index: int | Tensor | None
    ) -> tuple[Tensor, Any]:
        """The maps `(N, h, w)`, >= 0, of what a layer puts out, and the answer: logits `(N, K)`, or detections.

        Args:
            pl_module: In eval mode.
            images: `(N, C, H, W)` on the device.
            layer: Dotted name.
            class_index: The class explained, one for all or int64 `(N,)`; None for each image's predicted one.
        """

    def forget(self) -> None:
        self._found = None

    def check(self, pl_module: LightningModule) -> None:
        check_layer(type(self).__name__, pl_module, self.layer)

    def explain(
        self, pl_module: LightningModule, images: Tensor, class_index: int | Tensor | None
    ) -> tuple[Tensor, Any]:
        self._found = self._found or layer_or_last(pl_module, images, self.layer)
        maps, answer = self.maps(pl_module, images, self._found, class_index)
        return upsampled(maps, images), answer

    def paint(self, image: NDArray[np.uint8], values: NDArray[Any]) -> NDArray[np.uint8]:
        return overlay(image, values, self.alpha)
