"""Changes of colour and light under boxes that stay where they are."""

from collections.abc import Sequence
from itertools import permutations
from typing import final

import torch
from torch import Tensor

from ..augmentation._checks import check_images, interval
from ..augmentation.augmentation import Augmentation
from ..augmentation.color_jitter import BRIGHTNESS, CONTRAST, HUE, NEUTRAL, SATURATION, jitter_by_image
from ._placing import fraction
from .annotations import Annotations
from .box_augmentation import BoxAugmentation

__all__ = ["PhotometricDistortion", "PixelsOnly"]

ORDERS = [(BRIGHTNESS, CONTRAST, SATURATION, HUE), (BRIGHTNESS, SATURATION, HUE, CONTRAST)]
CHANNELS = list(permutations(range(3)))


@final
class PixelsOnly(BoxAugmentation):
    """Applies an augmentation of images alone, which must leave every pixel in its place.

    Args:
        augmentation: One whose `moves_pixels` is False: `PhotometricDistortion`, `ColorJitter`, `RandomErasing`, or a
            `Chain` of such. What is erased keeps its box.

    Shape:
        uint8 `(B, C, H, W)` to the same; objects stay.

    Raises:
        ValueError: `augmentation` moves pixels, or is none; images are not uint8 `(B, 1 or 3, H, W)`.

    Example:
        >>> from lightning_vision.datamodules.augmentation import ColorJitter
        >>> PixelsOnly(ColorJitter(brightness=0.4)).draws
        5
    """

    def __init__(self, augmentation: Augmentation) -> None:
        if not isinstance(augmentation, Augmentation):
            raise ValueError(
                f"PixelsOnly: augmentation is {augmentation!r}; give an Augmentation, see `lightning_vision list`."
            )
        if augmentation.moves_pixels:
            raise ValueError(
                f"PixelsOnly: augmentation is {type(augmentation).__name__}, which moves pixels, and the boxes would "
                "stay where they were; give one whose moves_pixels is False, such as ColorJitter, and HorizontalFlip "
                "or ScaleJitter for what should move."
            )
        self.augmentation, self.draws = augmentation, augmentation.draws

    def apply(self, images: Tensor, annotations: Annotations, uniform: Tensor) -> tuple[Tensor, Annotations]:
        self.check(images, annotations, uniform)
        return self.augmentation.apply(images, uniform), annotations


@final
class PhotometricDistortion(Augmentation):
    """Distorts brightness, contrast, saturation, hue and the order of the channels, as SSD is trained.

    torchvision's `RandomPhotometricDistort`, a draw of its own for each image: brightness, contrast before or after the
    other two, saturation and hue change, and the channels change places, each with probability `prob`.

    Args:
        brightness: Smallest and largest factor of brightness, at least 0; 1 leaves it.
        contrast: Likewise.
        saturation: Likewise; grey images have none.
        hue: Smallest and largest turn of the colour circle, from -0.5 to 0.5; 0 leaves it.
        prob: Of each of the five changes, fraction; 0 leaves the images as they are.

    Shape:
        uint8 `(B, C, H, W)` to the same.

    Raises:
        ValueError: `prob` is no fraction, another setting no interval; images are not uint8 `(B, 1 or 3, H, W)`.

    Example:
        >>> PhotometricDistortion()(torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)).shape
        torch.Size([2, 3, 32, 32])

    Reference: Liu et al. 2016, arXiv:1512.02325

    BibTeX:
        @inproceedings{liu2016ssd,
          title = {{SSD}: Single Shot {MultiBox} Detector},
          author = {Liu, Wei and Anguelov, Dragomir and Erhan, Dumitru and Szegedy, Christian and Reed, Scott and
            Fu, Cheng-Yang and Berg, Alexander C.},
          booktitle = {European Conference on Computer Vision},
          year = {2016},
          eprint = {1512.02325},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        It names the distortions and leaves their ranges to Howard 2013; these are torchvision's, which multiplies
        brightness where SSD's own code adds up to 32 grey levels.

    See also:
        `ColorJitter`, which changes all of an image's factors, in random order.
    """

    draws = 11
    moves_pixels = False

    def __init__(
        self,
        brightness: Sequence[float] = (0.875, 1.125),
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: Sequence[float] = (-0.05, 0.05),
        prob: float = 0.5,
    ) -> None:
        name = "PhotometricDistortion"
        factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        ranges = [interval(name, what, value, 0.0, float("inf")) for what, value in factors.items()]
        self.ranges = [*ranges, interval(name, "hue", hue, -0.5, 0.5)]
        self.prob = fraction(name, "prob", prob)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        check_images("PhotometricDistortion", images, uniform, self.draws)
        if self.prob == 0:
            return images
        factors, order, channels = self.factors(uniform, images.shape[1])
        jittered = jitter_by_image(images, factors, order)
        if images.shape[1] == 1:
            return jittered
        return jittered[torch.arange(len(images), device=images.device)[:, None], channels]

    def factors(self, uniform: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
        """Factors of brightness, contrast, saturation and the turn of hue, their order, and that of the channels.

        Args:
            uniform: What `apply` takes, `(B, 11)`.
            channels: Of the images; with one there is no saturation to change.

        Returns:
            float64 `(B, 4)`, int64 `(B, 4)`, which of the four acts first, second, third and last, and int64 `(B, 3)`.
        """
        draws = uniform.double()
        ranges = draws.new_tensor(self.ranges)
        factors = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * draws[:, :4]
        factors = torch.where(draws[:, 4:8] < self.prob, factors, draws.new_tensor(NEUTRAL))
        if channels == 1:
            factors[:, SATURATION] = NEUTRAL[SATURATION]
        order = torch.tensor(ORDERS, device=uniform.device)[(draws[:, 8] * 2).long()]
        # The first of the permutations leaves the channels as they are.
        permutation = torch.where(draws[:, 9] < self.prob, (draws[:, 10] * len(CHANNELS)).long(), 0)
        return factors, order, torch.tensor(CHANNELS, device=uniform.device)[permutation]
