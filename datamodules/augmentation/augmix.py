"""AugMix: an image mixed with several chains of operations on it.

Hendrycks et al. 2020, arXiv:1912.02781, Algorithm 1. Symbols: k `width`, m the image's complement and w_i the chains'
shares of `augmix_weights`.
"""

from typing import final

import torch
from torch import Tensor

from ._affine import Fill, Interpolation, check_outside
from ._checks import check_images, whole
from ._spaces import Space
from ._steps import Plan, apply_plans
from .augmentation import Augmentation

__all__ = ["AugMix", "augmix_weights"]

BINS = 10
PLAIN = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Posterize", "Solarize", "AutoContrast", "Equalize")
ALL = (*PLAIN, "Brightness", "Color", "Contrast", "Sharpness")
SPACE = Space(ALL, shear=0.3, across=lambda side: side / 3.0, degrees=30.0, blend=0.9, bits=(4, 4))


@final
class AugMix(Augmentation):
    """Changes each image into a mixture of itself and several chains of operations on it, in random shares.

    Chains, operations and strengths are drawn for each image alone; the shares are Dirichlet(1, ..., 1) and Beta(1, 1).
    Chains and mixture are those of torchvision's `AugMix`, bit for bit on a CPU. The paper's consistency loss over
    three views is not part of it.

    Args:
        severity: Strengths go over the first `severity` of 10 bins, 1..10; 3 as the paper.
        width: Chains an image, >= 1; 3 as the paper.
        depth: Operations a chain, >= 1; -1, the paper's, draws 1, 2 or 3 for each chain.
        all_ops: Use brightness, contrast, color and sharpness too, as torchvision. False: the paper's nine, which leave
            out what ImageNet-C tests.
        interpolation: `bilinear` or `nearest`, of the operations that move pixels; torchvision's default.
        fill: What they let in from outside, 0..255, for all channels or a list of one a channel; 0 is black.

    Shape:
        uint8 `(B, C, H, W)`, 0..255, C is 1 or 3, to the same.

    Raises:
        ValueError: a number out of its range; an unknown interpolation or fill; images that are not uint8
            `(B, 1 or 3, H, W)`.

    Example:
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> AugMix(severity=3, width=3)(images).shape
        torch.Size([2, 3, 32, 32])

    Reference: Hendrycks et al. 2020, arXiv:1912.02781

    BibTeX:
        @inproceedings{hendrycks2020augmix,
          title = {{AugMix}: A Simple Data Processing Method to Improve Robustness and Uncertainty},
          author = {Hendrycks, Dan and Mu, Norman and Cubuk, Ekin D. and Zoph, Barret and Gilmer, Justin and
            Lakshminarayanan, Balaji},
          booktitle = {International Conference on Learning Representations},
          year = {2020},
          eprint = {1912.02781},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Alpha of both distributions is 1, the paper's choice, and no setting: for 1 a share is a closed form of uniform
        numbers. A strength is one of 10 bins, as in torchvision, where the authors' code draws real numbers.

    See also:
        `RandAugment`, whose images are changed and not mixed.
    """

    def __init__(
        self,
        severity: int = 3,
        width: int = 3,
        depth: int = -1,
        all_ops: bool = True,
        interpolation: Interpolation = "bilinear",
        fill: Fill = 0,
    ) -> None:
        whole("AugMix", "severity", severity, 1, BINS)
        whole("AugMix", "width", width, 1)
        if depth != -1:
            whole("AugMix", "depth", depth, 1)
        check_outside("AugMix", interpolation, fill)
        self.severity = severity
        self.width = width
        self.depth = depth
        self.names = ALL if all_ops else PLAIN
        self.interpolation = interpolation
        self.fill = fill
        self.draws = 1 + width * (2 + 3 * (3 if depth == -1 else depth))

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        check_images("AugMix", images, uniform, self.draws)
        plans = self.plans(uniform, (images.shape[2], images.shape[3]))
        weights = augmix_weights(uniform[:, : 1 + self.width])
        # On a CPU an image at a time, which its cache holds.
        size = 1 if images.device.type == "cpu" else max(len(images), 1)
        result = torch.empty_like(images, memory_format=torch.contiguous_format)
        for first in range(0, len(images), size):
            part = slice(first, first + size)
            own = images[part].repeat_interleave(self.width, 0)
            steps = plans[first * self.width : (first + size) * self.width]
            chains = apply_plans(own, steps, self.interpolation, self.fill)
            result[part] = self._mixed(images[part], chains, weights[part, :, None, None, None])
        return result

    def plans(self, uniform: Tensor, sides: tuple[int, int]) -> list[Plan]:
        """The steps that each chain takes.

        Args:
            uniform: What `apply` takes, `(B, draws)`: what `augmix_weights` takes, then for each chain its length and
                three numbers a step, the operation, its strength and its sign.
            sides: Height and width, pixels.

        Returns:
            For each chain, all of the first image and so on, names of operations and magnitudes.
        """
        result = []
        numbers = (self.draws - 1 - self.width) // self.width
        for length, *rest in uniform[:, 1 + self.width :].reshape(-1, numbers).tolist():
            depth = 1 + int(length * 3) if self.depth == -1 else self.depth
            steps = list(zip(rest[::3], rest[1::3], rest[2::3], strict=True))[:depth]
            result.append(
                [
                    SPACE.step(
                        self.names[int(which * len(self.names))], int(strength * self.severity), BINS, sign, sides
                    )
                    for which, strength, sign in steps
                ]
            )
        return result

    def _mixed(self, images: Tensor, chains: Tensor, weights: Tensor) -> Tensor:
        """Images `(B, C, H, W)` and chains `(B * width, C, H, W)` in their shares `(B, 1 + width, 1, 1, 1)`."""
        total = weights[:, 0] * images
        for number in range(self.width):
            total += weights[:, 1 + number] * chains[number :: self.width]
        return total.to(torch.uint8)


def augmix_weights(uniform: Tensor) -> Tensor:
    """Shares of an image and of its chains in an AugMix mixture, from uniform numbers.

    The image's share is Beta(1, 1), which is uniform; the chains divide the rest by Dirichlet(1, ..., 1), which is
    exponential numbers over their sum (Hendrycks et al. 2020, Algorithm 1).

    Args:
        uniform: In [0, 1), float32 `(B, 1 + width)`.

    Returns:
        float32 `(B, 1 + width)`, >= 0, rows sum to 1.
    """
    own = uniform[:, :1]
    # Away from 1 by half a step, no number makes all chains nothing.
    chains = -torch.log1p(-(uniform[:, 1:].double() + 2.0**-26))
    return torch.cat([own, (1 - own) * (chains / chains.sum(1, keepdim=True)).float()], 1)
