"""AugMix: an image mixed with several chains of operations on it."""

from typing import final

import torch
from torch import Tensor

from ._affine import Fill, Interpolation
from ._checks import check_images
from ._spaces import SIGNED, Space
from ._steps import Plan, apply_plans
from .augmentation import Augmentation

__all__ = ["AugMix", "augmix_weights"]

BINS = 10
PLAIN = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Posterize", "Solarize", "AutoContrast", "Equalize")
ALL = (*PLAIN, "Brightness", "Color", "Contrast", "Sharpness")
SPACE = Space(ALL, shear=0.3, across=lambda side: side / 3.0, degrees=30.0, blend=0.9, bits=(4, 4))


@final
class AugMix(Augmentation):
    """Mix each image with several chains of operations on it."""

    def __init__(
        self,
        severity: int = 3,
        width: int = 3,
        depth: int = -1,
        all_ops: bool = True,
        interpolation: Interpolation = "bilinear",
        fill: Fill = 0,
    ) -> None:
        self.severity = severity
        self.width = width
        self.depth = depth
        self.names = ALL if all_ops else PLAIN
        self.interpolation = interpolation
        self.fill = fill
        self.draws = 1 + width * (2 + 3 * (depth if depth > 0 else 3))

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        check_images("AugMix", images, uniform, self.draws)
        plans = self.plans(uniform, *images.shape[-2:])
        chains = apply_plans(images.repeat_interleave(self.width, 0), plans, self.interpolation, self.fill)
        weights = augmix_weights(uniform[:, : 1 + self.width])[..., None, None, None]
        result = weights[:, 0] * images
        for number in range(self.width):
            result += weights[:, 1 + number] * chains[number :: self.width]
        return result.to(torch.uint8)

    def plans(self, uniform: Tensor, height: int, width: int) -> list[Plan]:
        """The steps of each chain of each image, image by image, that the numbers `(B, draws)` stand for."""
        result = []
        for row in uniform[:, 1 + self.width :].reshape(len(uniform) * self.width, -1).tolist():
            plan = []
            depth = self.depth if self.depth > 0 else 1 + int(row[0] * 3)
            for step in range(depth):
                which, strength, sign = row[1 + 3 * step : 4 + 3 * step]
                name = self.names[int(which * len(self.names))]
                magnitude = SPACE.magnitudes(name, BINS, height, width)[int(strength * self.severity)]
                plan.append((name, -magnitude if name in SIGNED and sign < 0.5 else magnitude))
            result.append(plan)
        return result


def augmix_weights(uniform: Tensor) -> Tensor:
    """Shares of the image and of its chains in the mixture: `(B, 1 + width)` from uniform numbers of that shape.

    The image's is Beta(1, 1), which is uniform; the chains share the rest by Dirichlet(1, ..., 1), which is exponential
    numbers over their sum.
    """
    own = uniform[:, :1]
    chains = -torch.log1p(-uniform[:, 1:].double())
    return torch.cat([own, (1 - own) * (chains / chains.sum(1, keepdim=True)).float()], 1)
