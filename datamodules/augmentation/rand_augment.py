"""RandAugment: a number of operations an image, all of one strength."""

from typing import final

from torch import Tensor

from ._affine import Fill, Interpolation
from ._checks import check_images
from ._spaces import SIGNED
from ._steps import Plan, apply_plans
from .augmentation import Augmentation
from .auto_augment import SPACE
from .operations import OPERATIONS

__all__ = ["RandAugment"]

NAMES = tuple(name for name in OPERATIONS if name != "Invert")


@final
class RandAugment(Augmentation):
    """Change each image by operations drawn at random, all of one strength."""

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        interpolation: Interpolation = "nearest",
        fill: Fill = 0,
    ) -> None:
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.num_magnitude_bins = num_magnitude_bins
        self.interpolation = interpolation
        self.fill = fill
        self.draws = 2 * num_ops

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        check_images("RandAugment", images, uniform, self.draws)
        return apply_plans(images, self.plans(uniform, *images.shape[-2:]), self.interpolation, self.fill)

    def plans(self, uniform: Tensor, height: int, width: int) -> list[Plan]:
        """The steps of each image, operations with magnitudes, that the numbers `(B, draws)` stand for."""
        result = []
        for row in uniform.tolist():
            plan = []
            for which, sign in zip(row[::2], row[1::2], strict=True):
                name = NAMES[int(which * len(NAMES))]
                magnitude = SPACE.magnitudes(name, self.num_magnitude_bins, height, width)[self.magnitude]
                plan.append((name, -magnitude if name in SIGNED and sign < 0.5 else magnitude))
            result.append(plan)
        return result
