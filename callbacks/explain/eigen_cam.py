"""Eigen-CAM: a layer's maps projected on their principal component; no class, no gradient.

Muhammad and Yeasin 2020, arXiv:2008.00299. Symbols: A `activation` as a matrix of h w positions by C channels,
A = U S V^T, v the right singular vector of the component.
"""

from typing import Any, ClassVar, Literal, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_vision.inspection.layers import read_maps

from ..hooks._checks import flag, whole
from ._cam import CAMLogger, layer_or_last, upsampled

__all__ = ["EigenCAMLogger", "eigen_cam", "eigen_cam_maps"]


def eigen_cam_maps(activation: Tensor, centre: bool = False, component: int = 0) -> Tensor:
    """Eigen-CAM of a layer's maps, at their own size, `(B, h, w)`: ReLU(A v).

    The sign of v, which a decomposition leaves open, is the one with which the maps as they came project on v with a
    positive mean over positions. The decomposition is that of A A^T or A^T A, whichever is smaller, in float64, where
    squaring costs no digit of a float32: exact, and faster than one of A itself.

    Args:
        activation: `(B, C, h, w)`; an image with one that is not finite has a map of NaN.
        centre: Whether each channel's mean over positions is taken off before the decomposition.
        component: Which singular vector, 0 for the largest singular value.

    Raises:
        ValueError: there are not so many components.
    """
    matrix = activation.flatten(2).double()
    finite = matrix.isfinite().all((1, 2))[:, None, None]
    # No decomposition takes NaN.
    matrix = torch.where(finite, matrix, 0)
    count = min(matrix.shape[1:])
    if not 0 <= component < count:
        raise ValueError(
            f"Eigen-CAM: component is {component}, and the layer's maps have {count}; give one from 0 to {count - 1}."
        )
    mean = matrix.mean(2, keepdim=True)
    shifted = matrix - mean if centre else matrix
    if matrix.shape[2] <= matrix.shape[1]:
        squares, places = torch.linalg.eigh(shifted.mT @ shifted)
        place = places[..., -1 - component, None]
        vector = shifted @ place
        projection = squares[:, -1 - component, None, None].clamp_min(0).sqrt() * place
    else:
        vector = torch.linalg.eigh(shifted @ shifted.mT).eigenvectors[..., -1 - component, None]
        projection = shifted.mT @ vector
    turned = torch.where(mean.mT @ vector < 0, -projection, projection)
    turned = torch.where(finite, turned, torch.nan)
    return turned.squeeze(2).unflatten(1, activation.shape[2:]).relu().float()


def eigen_cam(
    model: nn.Module, images: Tensor, layer: str | None = None, centre: bool = False, component: int = 0
) -> Tensor:
    """Eigen-CAM maps of a batch, `(B, H, W)`: rectified, then upsampled bilinearly to the images, not normalised.

    They show what the layer is most active about, whatever the class. The model is run in eval mode, once, and left as
    it was.

    Args:
        model: Any module; CNN, ViT or Swin. With a `layer` it may answer anything, else logits `(B, K)`.
        images: `(B, C, H, W)`, normalised as the model takes them.
        layer: Dotted name of the layer; None takes the last one that has maps.
        centre: Whether each channel's mean over positions is taken off first, as the grad-cam package does.
        component: Which principal component, 0 for the first.

    Raises:
        ValueError: there is no such layer, or it has no maps; there are not so many components.

    Example:
        >>> import timm, torch
        >>> from lightning_vision.callbacks import eigen_cam
        >>> eigen_cam(timm.create_model("resnet18", num_classes=5), torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 64, 64])

    Reference: Muhammad and Yeasin 2020, arXiv:2008.00299
    """
    activation, _ = read_maps(model, images, layer_or_last(model, images, layer))
    return upsampled(eigen_cam_maps(activation, centre, component), images)


@final
class EigenCAMLogger(CAMLogger):
    """Logs what a layer is most active about, whatever the class, on fixed samples after each validation (Eigen-CAM).

    It draws when a validation or test is over, one forward of the samples without gradients; modes, random streams,
    hooks and what waits to be accumulated are left as they were. The sheet goes to every logger that takes pictures and
    as a PNG into `media/` of the run's folder.

    Args:
        layer: Dotted name of the layer inside the module, as `network.layer4`; None takes the last one that has maps.
        target: The class that a map explains: each image's `predicted` one, its `label`, or a class by number; it
            changes no map here.
        samples: Images on the sheet, chosen once, spread over the classes, >= 1.
        every_n_epochs: While fitting, validations of every n-th epoch are drawn, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which draws nothing.
        alpha: Share of the map's colours over the image, 0 to 1.
        component: Which principal component of the layer's maps, 0 for the first.
        centre: Whether each channel's mean over positions is taken off first. False is the paper's.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the pictures are called.

    Shape:
        Images `(B, C, H, W)`, logits `(B, K)`; the layer's output `(B, C, h, w)`, `(B, h, w, C)` or tokens `(B, N, C)`.

    Raises:
        ValueError: an argument out of its range; before the first step, if there is no such layer; in the sanity check,
            a `validate` or a `test`, if the layer, or any, has no maps, or not so many components. In a later
            validation of a fit that is told once, and the training goes on.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import EigenCAMLogger
        >>> trainer = Trainer(callbacks=[EigenCAMLogger(component=1)], accelerator="cpu", logger=False)

    Reference: Muhammad and Yeasin 2020, arXiv:2008.00299

    BibTeX:
        @inproceedings{muhammad2020eigencam,
          title = {Eigen-CAM: Class Activation Map using Principal Components},
          author = {Muhammad, Mohammed Bany and Yeasin, Mohammed},
          booktitle = {International Joint Conference on Neural Networks},
          year = {2020},
          eprint = {2008.00299},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The sign of the component, which the paper leaves to the decomposition, is the one of a positive mean; negative
        values are cut off; other components than the first can be asked for.

    See also:
        `eigen_cam`, the maps themselves; `GradCAMLogger` for a class.
    """

    title: ClassVar[str] = "eigen_cam"

    def __init__(
        self,
        layer: str | None = None,
        target: Literal["predicted", "label"] | int = "predicted",
        samples: int = 8,
        every_n_epochs: int = 1,
        alpha: float = 0.5,
        component: int = 0,
        centre: bool = False,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(layer, target, samples, every_n_epochs, alpha, image_key, target_key, name)
        whole(type(self).__name__, "component", component, 0)
        flag(type(self).__name__, "centre", centre)
        self.component, self.centre = component, centre

    def maps(
        self, pl_module: LightningModule, images: Tensor, layer: str, class_index: int | Tensor | None
    ) -> tuple[Tensor, Any]:
        activation, answer = read_maps(pl_module, images, layer)
        return eigen_cam_maps(activation, self.centre, self.component), answer
