"""Eigen-CAM: a layer's maps projected on their principal component; no class, no gradient.

Muhammad and Yeasin 2020, arXiv:2008.00299. Symbols: A `activation` as a matrix of h w positions by C channels,
A = U S V^T, v the right singular vector of the component.
"""

from typing import Any, ClassVar, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_vision.inspection.layers import Reading, read_layer

from ..hooks._checks import flag, whole
from ._cam import CAMLogger, layer_or_last, upsampled

__all__ = ["EigenCAMLogger", "eigen_cam", "eigen_cam_maps"]


def eigen_cam_maps(activation: Tensor, centre: bool = False, component: int = 0) -> Tensor:
    """Eigen-CAM of a layer's maps, at their own size, `(B, h, w)`: ReLU(A v).

    The sign of v, which a decomposition leaves open, is the one with which the maps as they came project on v with a
    positive mean over positions. The decomposition is that of A A^T or A^T A, whichever is smaller, in float64, where
    squaring costs no digit of a float32: exact, and faster than one of A itself.

    Args:
        activation: `(B, C, h, w)`.
        centre: Whether each channel's mean over positions is taken off before the decomposition.
        component: Which singular vector, 0 for the largest singular value.

    Raises:
        ValueError: there are not so many components.
    """
    matrix = activation.flatten(2).double()
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
    return turned.squeeze(2).unflatten(1, activation.shape[2:]).relu().float()


def eigen_cam(
    model: nn.Module, images: Tensor, layer: str | None = None, centre: bool = False, component: int = 0
) -> Tensor:
    """Eigen-CAM maps of a batch, `(B, H, W)`: rectified, then upsampled bilinearly to the images, not normalised.

    They show what the layer is most active about, whatever the class. The model is run in eval mode, once, and left as
    it was.

    Args:
        model: Any module that answers logits `(B, K)` to images; CNN, ViT or Swin.
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
    reading = read_layer(model, images, layer_or_last(model, images, layer), gradient=False)
    return upsampled(eigen_cam_maps(reading.activation, centre, component), images)


@final
class EigenCAMLogger(CAMLogger):
    """Logs what a layer is most active about, whatever the class, on fixed samples after each validation (Eigen-CAM).

    It draws when a validation or test is over, one forward of the samples without gradients; modes, random streams,
    hooks and what waits to be accumulated are left as they were. The sheet goes to every logger that takes pictures and
    as a PNG into `media/` beside the run.

    Args:
        component: Which principal component of the layer's maps, 0 for the first.
        centre: Whether each channel's mean over positions is taken off first. False is the paper's.
        others: As `CAMLogger` documents them: `layer`, `target`, which changes no map here, `samples`,
            `every_n_epochs`, `alpha`, `image_key`, `target_key`, `name`.

    Shape:
        Images `(B, C, H, W)`, logits `(B, K)`; the layer's output `(B, C, h, w)`, `(B, h, w, C)` or tokens `(B, N, C)`.

    Raises:
        ValueError: an argument out of its range; before the first step, if there is no such layer; in the first
            validation, sanity check included, if the layer, or any, has no maps, or not so many components.

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
    gradient: ClassVar[bool] = False

    def __init__(self, *, component: int = 0, centre: bool = False, **others: Any) -> None:
        super().__init__(**others)
        whole(type(self).__name__, "component", component, 0)
        flag(type(self).__name__, "centre", centre)
        self.component, self.centre = component, centre

    def maps(self, pl_module: LightningModule, images: Tensor, reading: Reading) -> Tensor:
        return eigen_cam_maps(reading.activation, self.centre, self.component)
