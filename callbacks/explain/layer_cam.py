"""Layer-CAM: each position of a layer's maps weighted by its own gradient, where that speaks for the class.

Jiang et al. 2021, doi:10.1109/TIP.2021.3089943. Symbols: A `activation`, g = dy/dA `gradient`, both `(B, C, h, w)`.
"""

from typing import Any, ClassVar, final

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_vision.inspection.layers import read_layer

from ._cam import CAMLogger, layer_or_last, upsampled

__all__ = ["LayerCAMLogger", "layer_cam", "layer_cam_maps"]


def layer_cam_maps(activation: Tensor, gradient: Tensor) -> Tensor:
    """Layer-CAM of a layer's maps, at their own size, `(B, h, w)`: ReLU(sum_k ReLU(g^k) A^k), position by position.

    In float32, for a product of halves loses small gradients.
    """
    return (gradient.float().relu() * activation.float()).sum(1).relu()


def layer_cam(
    model: nn.Module, images: Tensor, layer: str | None = None, class_index: int | Tensor | None = None
) -> Tensor:
    """Layer-CAM maps of a batch, `(B, H, W)`: rectified, then upsampled bilinearly to the images, not normalised.

    The model is run in eval mode and left as it was, gradients and train flags included.

    Args:
        model: Any module that answers logits `(B, K)` to images; CNN, ViT or Swin; its parameters may be frozen.
        images: `(B, C, H, W)`, normalised as the model takes them.
        layer: Dotted name of the layer whose maps are weighted, an early one for fine maps; None takes the last one
            that has maps.
        class_index: Class explained, one for all or int64 `(B,)`; None is each image's predicted one.

    Raises:
        ValueError: there is no such layer, or it has no maps; a class is outside 0..K-1; the answer is no `(B, K)`.

    Example:
        >>> import timm, torch
        >>> from lightning_vision.callbacks import layer_cam
        >>> layer_cam(timm.create_model("resnet18", num_classes=5), torch.rand(2, 3, 64, 64), layer="layer2").shape
        torch.Size([2, 64, 64])

    Reference: Jiang et al. 2021, doi:10.1109/TIP.2021.3089943
    """
    reading = read_layer(model, images, layer_or_last(model, images, layer), class_index)
    return upsampled(layer_cam_maps(reading.activation, reading.gradient), images)


@final
class LayerCAMLogger(CAMLogger):
    """Logs where the evidence for a class lies, finely enough to look at early layers, on fixed samples (Layer-CAM).

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
        >>> from lightning_vision.callbacks import LayerCAMLogger
        >>> trainer = Trainer(callbacks=[LayerCAMLogger(layer="network.layer2")], accelerator="cpu", logger=False)

    Reference: Jiang et al. 2021, doi:10.1109/TIP.2021.3089943

    BibTeX:
        @article{jiang2021layercam,
          title = {LayerCAM: Exploring Hierarchical Class Activation Maps for Localization},
          author = {Jiang, Peng-Tao and Zhang, Chang-Bin and Hou, Qibin and Cheng, Ming-Ming and Wei, Yunchao},
          journal = {IEEE Transactions on Image Processing},
          volume = {30},
          pages = {5875--5888},
          year = {2021},
          doi = {10.1109/TIP.2021.3089943},
        }

    Differs from the paper:
        One layer at a time: the paper's fusion of the maps of several layers is left to the reader. Maps keep their
        size; colours are scaled by each map's maximum when it is drawn.

    See also:
        `layer_cam`, the maps themselves; `GradCAMLogger`, which gives a channel one weight for all positions.
    """

    title: ClassVar[str] = "layer_cam"

    def maps(
        self, pl_module: LightningModule, images: Tensor, layer: str, class_index: int | Tensor | None
    ) -> tuple[Tensor, Any]:
        reading = read_layer(pl_module, images, layer, class_index)
        return layer_cam_maps(reading.activation, reading.gradient), reading.logits
