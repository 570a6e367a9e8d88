"""TrivialAugment: one operation an image, of any strength."""

from typing import final

from torch import Tensor

from ._affine import Fill, Interpolation
from ._checks import check_images
from ._spaces import SIGNED, Space
from ._steps import Plan, apply_plans
from .augmentation import Augmentation
from .operations import OPERATIONS

__all__ = ["TrivialAugment"]

NAMES = tuple(name for name in OPERATIONS if name != "Invert")
SPACE = Space(NAMES, shear=0.99, across=lambda side: 32.0, degrees=135.0, blend=0.99, bits=(8, 6))


@final
class TrivialAugment(Augmentation):
    """Change each image by one operation of a strength drawn at random."""

    draws = 3

    def __init__(self, num_magnitude_bins: int = 31, interpolation: Interpolation = "nearest", fill: Fill = 0) -> None:
        self.num_magnitude_bins = num_magnitude_bins
        self.interpolation = interpolation
        self.fill = fill

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        check_images("TrivialAugment", images, uniform, self.draws)
        return apply_plans(images, self.plans(uniform, *images.shape[-2:]), self.interpolation, self.fill)

    def plans(self, uniform: Tensor, height: int, width: int) -> list[Plan]:
        """The step of each image, an operation with a magnitude, that the numbers `(B, draws)` stand for."""
        bins, result = self.num_magnitude_bins, []
        for which, strength, sign in uniform.tolist():
            name = SPACE.names[int(which * len(SPACE.names))]
            magnitude = SPACE.magnitudes(name, bins, height, width)[int(strength * bins)]
            result.append([(name, -magnitude if name in SIGNED and sign < 0.5 else magnitude)])
        return result
