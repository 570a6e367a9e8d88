"""Grad-CAM: where the maps of a layer speak for a class, weighted by the class score's mean gradient.

Selvaraju et al. 2016, arXiv:1610.02391, Eq. 1 and 2. Symbols: A `activation`, dy/dA `gradient`, both `(B, C, h, w)`.
"""

from typing import Any, ClassVar, Literal, final

import numpy as np
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_vision.inspection.layers import read_layer

from ..hooks._checks import flag
from ._cam import CAMLogger, layer_or_last, upsampled
from .guided_backprop import gradient_picture, guided_backprop

__all__ = ["GradCAMLogger", "grad_cam", "grad_cam_maps", "guided_grad_cam"]


def grad_cam_maps(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM of a layer's maps, at their own size, `(B, h, w)`.

    ReLU(sum_k alpha_k A^k) with alpha_k the mean over positions of dy/dA^k, Eq. 1 and 2; float32 at least.
    """
    weights = gradient.float().mean((2, 3), keepdim=True)
    # Not as a matrix product, which autocast would round.
    return (weights * activation).sum(1).relu()


def grad_cam(
    model: nn.Module, images: Tensor, layer: str | None = None, class_index: int | Tensor | None = None
) -> Tensor:
    """Grad-CAM maps of a batch, `(B, H, W)`: rectified, then upsampled bilinearly to the images, not normalised.

    The model is run in eval mode and left as it was, gradients and train flags included.

    Args:
        model: Any module that answers logits `(B, K)` to images; CNN, ViT or Swin; its parameters may be frozen.
        images: `(B, C, H, W)`, normalised as the model takes them.
        layer: Dotted name of the layer whose maps are weighted; None takes the last one that has maps.
        class_index: Class explained, one for all or int64 `(B,)`; None is each image's predicted one.

    Raises:
        ValueError: there is no such layer, or it has no maps; a class is outside 0..K-1; the answer is no `(B, K)`.

    Example:
        >>> import timm, torch
        >>> from lightning_vision.callbacks import grad_cam
        >>> grad_cam(timm.create_model("resnet18", num_classes=5), torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 64, 64])

    Reference: Selvaraju et al. 2016, arXiv:1610.02391
    """
    reading = read_layer(model, images, layer_or_last(model, images, layer), class_index)
    return upsampled(grad_cam_maps(reading.activation, reading.gradient), images)


def guided_grad_cam(
    model: nn.Module, images: Tensor, layer: str | None = None, class_index: int | Tensor | None = None
) -> Tensor:
    """Guided Grad-CAM of a batch, `(B, C, H, W)`: the guided gradient, weighted by place with the Grad-CAM map.

    Args:
        model: Any module that answers logits `(B, K)` to images and has ReLUs; its parameters may be frozen.
        images: `(B, C, H, W)`, floating, normalised as the model takes them.
        layer: Dotted name of the layer whose maps are weighted; None takes the last one that has maps.
        class_index: Class explained, one for all or int64 `(B,)`; None is each image's predicted one.

    Raises:
        ValueError: what `grad_cam` refuses; no ReLU lies between images and answer.

    Example:
        >>> import timm, torch
        >>> from lightning_vision.callbacks import guided_grad_cam
        >>> guided_grad_cam(timm.create_model("resnet18", num_classes=5), torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 3, 64, 64])

    Reference: Selvaraju et al. 2016, arXiv:1610.02391
    """
    return grad_cam(model, images, layer, class_index)[:, None] * guided_backprop(model, images, class_index)


@final
class GradCAMLogger(CAMLogger):
    """Logs where in the image the evidence for a class lies, on fixed samples after each validation (Grad-CAM).

    It draws when a validation or test is over, one forward of the samples and one backward from the class scores down
    to the layer; gradients, modes, random streams, hooks and what waits to be accumulated are left as they were. The
    sheet goes to every logger that takes pictures and as a PNG into `media/` of the run's folder.

    Args:
        layer: Dotted name of the layer inside the module, as `network.layer4`; None takes the last one that has maps.
        target: The class that a map explains: each image's `predicted` one, its `label`, or a class by number.
        samples: Images on the sheet, chosen once, spread over the classes, >= 1.
        every_n_epochs: While fitting, validations of every n-th epoch are drawn, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which draws nothing.
        alpha: Share of the map's colours over the image, 0 to 1.
        guided: Show Guided Grad-CAM, the guided gradient weighted by the map, as a picture of its own, where `alpha`
            says nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the pictures are called.

    Shape:
        Images `(B, C, H, W)`, logits `(B, K)`; the layer's output `(B, C, h, w)`, `(B, h, w, C)` or tokens `(B, N, C)`.

    Raises:
        ValueError: an argument out of its range; before the first step, if there is no such layer; in the sanity check,
            a `validate` or a `test`, if the layer, or any, has no maps, or if `guided` and there is no ReLU. In a later
            validation of a fit that is told once, and the training goes on.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import GradCAMLogger
        >>> trainer = Trainer(callbacks=[GradCAMLogger(samples=8)], accelerator="cpu", logger=False)

    Reference: Selvaraju et al. 2016, arXiv:1610.02391

    BibTeX:
        @inproceedings{selvaraju2017gradcam,
          title = {Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based Localization},
          author = {Selvaraju, Ramprasaath R. and Cogswell, Michael and Das, Abhishek and Vedantam, Ramakrishna and
                    Parikh, Devi and Batra, Dhruv},
          booktitle = {International Conference on Computer Vision},
          year = {2017},
        }

    Differs from the paper:
        Maps keep their size; colours are scaled by each map's maximum when it is drawn.

    See also:
        `grad_cam` and `guided_grad_cam`, the maps themselves.
    """

    title: ClassVar[str] = "grad_cam"

    def __init__(
        self,
        layer: str | None = None,
        target: Literal["predicted", "label"] | int = "predicted",
        samples: int = 8,
        every_n_epochs: int = 1,
        alpha: float = 0.5,
        guided: bool = False,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(layer, target, samples, every_n_epochs, alpha, image_key, target_key, name)
        flag(type(self).__name__, "guided", guided)
        self.guided = guided

    def maps(
        self, pl_module: LightningModule, images: Tensor, layer: str, class_index: int | Tensor | None
    ) -> tuple[Tensor, Any]:
        reading = read_layer(pl_module, images, layer, class_index)
        return grad_cam_maps(reading.activation, reading.gradient), reading.logits

    def explain(
        self, pl_module: LightningModule, images: Tensor, class_index: int | Tensor | None
    ) -> tuple[Tensor, Any]:
        maps, answer = super().explain(pl_module, images, class_index)
        if self.guided:
            maps = maps[:, None] * guided_backprop(pl_module, images, class_index)
        return maps, answer

    def paint(self, image: NDArray[np.uint8], values: NDArray[Any]) -> NDArray[np.uint8]:
        return gradient_picture(values) if self.guided else super().paint(image, values)
