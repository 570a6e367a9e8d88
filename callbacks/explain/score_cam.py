"""Score-CAM: maps weighted by the score that the class gets from the image seen through each of them, no gradient.

Wang et al. 2019, arXiv:1910.01279, Eq. 6 to 9 and Algorithm 1. Symbols: A `activation` `(B, C, h, w)`, H the masks,
X_b the baseline, an image of zeros.
"""

from typing import Any, ClassVar, Literal, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest
from lightning_vision.inspection.layers import read_maps
from lightning_vision.inspection.scores import class_scores

from ..hooks._checks import whole
from ._cam import CAMLogger, layer_or_last, upsampled

__all__ = ["ScoreCAMLogger", "score_cam", "score_cam_maps", "score_cam_masks"]


def score_cam_masks(maps: Tensor, images: Tensor) -> Tensor:
    """Maps `(N, h, w)` as masks of the size of `images`, `(N, H, W)`: upsampled, then from 0 to 1 each, Eq. 7 and 8.

    A map that is the same everywhere becomes a mask of zeros.
    """
    stretched = upsampled(maps, images)
    low, high = (it[:, None, None] for it in stretched.flatten(1).aminmax(dim=1))
    return (stretched - low) / (high - low).clamp_min(torch.finfo(stretched.dtype).tiny)


def score_cam_maps(
    model: nn.Module, images: Tensor, activation: Tensor, class_index: Tensor, batch_size: int = 64
) -> Tensor:
    """Score-CAM of a layer's maps, at their own size, `(B, h, w)`.

    ReLU(sum_k alpha_k A^k) with alpha the softmax over channels of the class's logits for the images X H^k. The
    baseline's logit, which Eq. 6 takes off all of them alike, makes no difference to a softmax and is not asked for.

    Args:
        model: Called B C / `batch_size` times, in eval mode; it is left as it was.
        images: `(B, 3, H, W)` or of other channels, normalised, so that zeros are the mean colour.
        activation: `(B, C, h, w)`.
        class_index: Class explained, int64 `(B,)`.
        batch_size: Masked images at once, >= 1.
    """
    channels = activation.shape[1]
    maps, scores = activation.flatten(0, 1), []
    with at_rest(model), torch.no_grad():
        for start in range(0, len(maps), batch_size):
            part = maps[start : start + batch_size]
            owner = torch.arange(start, start + len(part), device=images.device) // channels
            masked = images[owner] * score_cam_masks(part, images)[:, None].to(images.dtype)
            scores.append(class_scores(model(masked), class_index[owner])[0].float())
    weights = torch.cat(scores).view(-1, channels).softmax(1)
    return torch.einsum("bchw,bc->bhw", activation.float(), weights).relu()


def score_cam(
    model: nn.Module,
    images: Tensor,
    layer: str | None = None,
    class_index: int | Tensor | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Score-CAM maps of a batch, `(B, H, W)`: rectified, then upsampled bilinearly to the images, not normalised.

    Each image is asked about once for every channel of the layer: 512 times at the end of a ResNet-18, 2,048 times at
    the end of a ResNet-50. The model is run in eval mode and left as it was.

    Args:
        model: Any module that answers logits `(B, K)` to images; CNN, ViT or Swin; it need not be differentiable.
        images: `(B, C, H, W)`, normalised as the model takes them: zeros, which masks let through, are the mean colour.
        layer: Dotted name of the layer whose maps are weighted; None takes the last one that has maps.
        class_index: Class explained, one for all or int64 `(B,)`; None is each image's predicted one.
        batch_size: Masked images at once, >= 1; it changes memory and time, not the maps.

    Raises:
        ValueError: there is no such layer, or it has no maps; a class is outside 0..K-1; the answer is no `(B, K)`;
            `batch_size` is no integer >= 1.

    Example:
        >>> import timm, torch
        >>> from lightning_vision.callbacks import score_cam
        >>> score_cam(timm.create_model("resnet18", num_classes=5), torch.rand(2, 3, 32, 32), layer="layer1").shape
        torch.Size([2, 32, 32])

    Reference: Wang et al. 2019, arXiv:1910.01279
    """
    whole("score_cam", "batch_size", batch_size, 1)
    activation, answer = read_maps(model, images, layer_or_last(model, images, layer))
    _, chosen = class_scores(answer, class_index)
    return upsampled(score_cam_maps(model, images, activation, chosen, batch_size), images)


@final
class ScoreCAMLogger(CAMLogger):
    """Logs the parts of the image that earn a class its score, by showing the model only those parts (Score-CAM).

    It draws when a validation or test is over and asks about each sample once for every channel of the layer, without
    gradients: with 4 samples and 512 channels that is a validation of 2,048 images more. Modes, random streams, hooks
    and what waits to be accumulated are left as they were. The sheet goes to every logger that takes pictures and as a
    PNG into `media/` of the run's folder.

    Args:
        layer: Dotted name of the layer inside the module, as `network.layer4`; None takes the last one that has maps.
        target: The class that a map explains: each image's `predicted` one, its `label`, or a class by number.
        samples: Images on the sheet, chosen once, spread over the classes, >= 1; few, for each costs as many forwards
            as the layer has channels.
        every_n_epochs: While fitting, validations of every n-th epoch are drawn, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which draws nothing.
        alpha: Share of the map's colours over the image, 0 to 1.
        batch_size: Masked images at once, >= 1; it changes memory and time, not the maps.
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
        >>> from lightning_vision.callbacks import ScoreCAMLogger
        >>> trainer = Trainer(callbacks=[ScoreCAMLogger(every_n_epochs=10)], accelerator="cpu", logger=False)

    Reference: Wang et al. 2019, arXiv:1910.01279

    BibTeX:
        @inproceedings{wang2020scorecam,
          title = {Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks},
          author = {Wang, Haofan and Wang, Zifan and Du, Mengnan and Yang, Fan and Zhang, Zijian and Ding, Sirui and
                    Mardziel, Piotr and Hu, Xia},
          booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops},
          year = {2020},
          eprint = {1910.01279},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Nothing in Algorithm 1. A map that is the same everywhere, for which Eq. 8 is 0 / 0, is a mask of zeros.

    See also:
        `score_cam`, the maps themselves; `GradCAMLogger`, which costs one forward and one backward.
    """

    title: ClassVar[str] = "score_cam"

    def __init__(
        self,
        layer: str | None = None,
        target: Literal["predicted", "label"] | int = "predicted",
        samples: int = 4,
        every_n_epochs: int = 1,
        alpha: float = 0.5,
        batch_size: int = 64,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(layer, target, samples, every_n_epochs, alpha, image_key, target_key, name)
        whole(type(self).__name__, "batch_size", batch_size, 1)
        self.batch_size = batch_size

    def maps(
        self, pl_module: LightningModule, images: Tensor, layer: str, class_index: int | Tensor | None
    ) -> tuple[Tensor, Any]:
        activation, answer = read_maps(pl_module, images, layer)
        _, chosen = class_scores(answer, class_index)
        return score_cam_maps(pl_module, images, activation, chosen, self.batch_size), answer
