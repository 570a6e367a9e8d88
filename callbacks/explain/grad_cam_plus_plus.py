"""Grad-CAM++: maps weighted by gradients that count where they are positive, each position by a share of its own.

Chattopadhyay et al. 2017, arXiv:1710.11063, Eq. 5, 19 and 20. Symbols: A `activation`, S the class's logit, Y = exp(S),
dS/dA `gradient`, both `(B, C, h, w)`.
"""

from typing import Any, ClassVar, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_vision.inspection.layers import read_layer

from ._cam import CAMLogger, layer_or_last, upsampled

__all__ = ["GradCAMPlusPlusLogger", "grad_cam_plus_plus", "grad_cam_plus_plus_maps"]


def grad_cam_plus_plus_maps(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM++ of a layer's maps, at their own size, `(B, h, w)`.

    ReLU(sum_k w_k A^k), Eq. 20, with w_k the sum over positions of alpha ReLU(dS/dA^k), Eq. 5, and alpha by Eq. 19:
    (dS/dA)^2 / (2 (dS/dA)^2 + sum_ab A_ab (dS/dA)^3). Where dS/dA is not 0 that is 1 / (2 + sum_ab A_ab dS/dA), in
    which no small gradient is lost; where it is 0, or this denominator is, the position counts nothing. The factor
    exp(S) of dY/dA, one for a whole image, is left out.
    """
    activation, gradient = activation.float(), gradient.float()
    denominator = 2 + activation.sum((2, 3), keepdim=True) * gradient
    weights = torch.where(denominator == 0, 0, gradient.relu() / denominator).sum((2, 3))
    return torch.einsum("bchw,bc->bhw", activation, weights).relu()


def grad_cam_plus_plus(
    model: nn.Module, images: Tensor, layer: str | None = None, class_index: int | Tensor | None = None
) -> Tensor:
    """Grad-CAM++ maps of a batch, `(B, H, W)`: rectified, then upsampled bilinearly to the images, not normalised.

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
        >>> from lightning_vision.callbacks import grad_cam_plus_plus
        >>> grad_cam_plus_plus(timm.create_model("resnet18", num_classes=5), torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 64, 64])

    Reference: Chattopadhyay et al. 2017, arXiv:1710.11063
    """
    reading = read_layer(model, images, layer_or_last(model, images, layer), class_index)
    return upsampled(grad_cam_plus_plus_maps(reading.activation, reading.gradient), images)


@final
class GradCAMPlusPlusLogger(CAMLogger):
    """Logs where the evidence for a class lies, all of several objects of it, on fixed samples (Grad-CAM++).

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
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the pictures are called.

    Shape:
        Images `(B, C, H, W)`, logits `(B, K)`; the layer's output `(B, C, h, w)`, `(B, h, w, C)` or tokens `(B, N, C)`.

    Raises:
        ValueError: an argument out of its range; before the first step, if there is no such layer; in the sanity check,
            a `validate` or a `test`, if the layer, or any, has no maps. In a later validation of a fit that is told
            once, and the training goes on.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import GradCAMPlusPlusLogger
        >>> trainer = Trainer(callbacks=[GradCAMPlusPlusLogger(samples=8)], accelerator="cpu", logger=False)

    Reference: Chattopadhyay et al. 2017, arXiv:1710.11063

    BibTeX:
        @inproceedings{chattopadhyay2018gradcampp,
          title = {Grad-CAM++: Generalized Gradient-Based Visual Explanations for Deep Convolutional Networks},
          author = {Chattopadhyay, Aditya and Sarkar, Anirban and Howlader, Prantik and Balasubramanian, Vineeth N.},
          booktitle = {IEEE Winter Conference on Applications of Computer Vision},
          year = {2018},
          eprint = {1710.11063},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The factor exp(S), which an image's map has throughout, is left out; colours are scaled by each map's maximum
        when it is drawn. The maps of a transformer may be negative, which the paper's derivation does not foresee.

    See also:
        `grad_cam_plus_plus`, the maps themselves; `GradCAMLogger`, whose weights are plain means.
    """

    title: ClassVar[str] = "grad_cam_plus_plus"

    def maps(
        self, pl_module: LightningModule, images: Tensor, layer: str, class_index: int | Tensor | None
    ) -> tuple[Tensor, Any]:
        reading = read_layer(pl_module, images, layer, class_index)
        return grad_cam_plus_plus_maps(reading.activation, reading.gradient), reading.logits
