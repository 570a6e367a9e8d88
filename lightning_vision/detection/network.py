"""What a detector is to its module: losses of images with known objects, and detections."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

__all__ = ["DetectionNetwork", "TorchvisionDetector"]

Target = Mapping[str, Tensor]


class DetectionNetwork(nn.Module, ABC):
    """A detector apart from Lightning: `losses` for training, `detect` for use; called as a function it detects.

    Images are normalised, float `(B, C, H, W)` or a list of `(C, H, W)` of several sizes. A target holds the objects of
    an image: `boxes` float32 `(N, 4)` as left, top, right, bottom in pixels, `labels` int64 `(N,)` in 1..K, and for
    networks that draw masks `masks` uint8 `(N, H, W)`.
    """

    @property
    @abstractmethod
    def backbone(self) -> nn.Module:
        """The part that looks at the image before anything is about objects."""

    @abstractmethod
    def losses(self, images: Tensor | Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The terms of the loss by name, scalars that are to be added up, in training mode."""

    @abstractmethod
    def detect(self, images: Tensor | Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """For each image `boxes` `(D, 4)`, `labels` `(D,)` and `scores` `(D,)`, the best first, in evaluation mode."""

    def forward(self, images: Tensor | Sequence[Tensor]) -> list[dict[str, Tensor]]:
        return self.detect(images)


class TorchvisionDetector(DetectionNetwork):
    """One of torchvision's detectors, whole, which takes images as they come instead of normalising and resizing them.

    Under autocast anchors and boxes stay float32: a pixel of 300 is none in bfloat16.

    Args:
        model: With a `transform`, as all of torchvision's have; it is replaced.
        multiple: Images are padded below and on the right to a multiple of this, pixels.

    Raises:
        RuntimeError: `losses` was asked for in evaluation mode, or `detect` in training mode.
    """

    def __init__(self, model: nn.Module, multiple: int = 32) -> None:
        super().__init__()
        # What torchvision's published weights want images normalised with.
        transform: Any = model.transform
        self.mean, self.std = list(transform.image_mean), list(transform.image_std)
        model.transform = AsTheyAre(multiple)
        for module in model.modules():
            if isinstance(module, AnchorGenerator | DefaultBoxGenerator):
                module.register_forward_pre_hook(_precise_places)
        if hasattr(model, "head"):
            model.get_submodule("head").register_forward_hook(_precise_answers)
        self.model = model

    @property
    def backbone(self) -> nn.Module:
        whole = self.model.get_submodule("backbone")
        # Ours, torchvision's with a pyramid, torchvision's of SSD.
        names = [name for name in ("levels", "body", "features") if hasattr(whole, name)]
        return whole.get_submodule(names[0]) if names else whole

    def losses(self, images: Tensor | Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        if not self.training:
            raise RuntimeError("a detector has losses in training mode only; call train() first")
        losses: dict[str, Tensor] = self.model(images, [dict(target) for target in targets])
        return losses

    def detect(self, images: Tensor | Sequence[Tensor]) -> list[dict[str, Tensor]]:
        if self.training:
            raise RuntimeError("a detector detects in evaluation mode only; call eval() first")
        found: list[dict[str, Tensor]] = self.model(images)
        # FCOS and RetinaNet keep a place for the background, which stays silent only once it has been taught to.
        return [{name: value[image["labels"] > 0] for name, value in image.items()} for image in found]


class AsTheyAre(GeneralizedRCNNTransform):
    """torchvision's preparation without its resizing and normalising: images become one padded batch."""

    def __init__(self, multiple: int) -> None:
        super().__init__(1, 1, [0.0], [1.0], size_divisible=multiple)

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        if not isinstance(images, Tensor):
            return ImageList(self.batch_images(list(images), self.size_divisible), sizes), targets
        below, right = (-side % self.size_divisible for side in images.shape[-2:])
        padded = F.pad(images, (0, right, 0, below)) if below or right else images
        return ImageList(padded, sizes), targets


HALVES = (torch.bfloat16, torch.float16)


def _precise_places(generator: nn.Module, given: tuple[ImageList, list[Tensor]]) -> tuple[ImageList, list[Tensor]]:
    """Anchors have the precision of maps, of which nothing else is asked but their shapes."""
    images, maps = given
    return images, [torch.empty((), device=it.device).expand(it.shape) if it.dtype in HALVES else it for it in maps]


def _precise_answers(head: nn.Module, given: Any, answers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Boxes are decoded in the precision of the head's answers."""
    return {name: it.float() if it.dtype in HALVES else it for name, it in answers.items()}
