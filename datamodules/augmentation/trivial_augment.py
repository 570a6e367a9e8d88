"""TrivialAugment: one operation an image, of any strength.

Müller and Hutter 2021, arXiv:2103.10158, Algorithm 1, with the wide space of its Table 1.
"""

from typing import final

from torch import Tensor

from ._affine import Fill, Interpolation, check_outside
from ._checks import whole
from ._spaces import Space
from ._steps import Plan, Planned
from .operations import OPERATIONS

__all__ = ["TrivialAugment"]

NAMES = tuple(name for name in OPERATIONS if name != "Invert")
SPACE = Space(NAMES, shear=0.99, across=lambda side: 32.0, degrees=135.0, blend=0.99, bits=(8, 6))


@final
class TrivialAugment(Planned):
    """Changes each image by one operation of any strength, both drawn at random; there is nothing to tune.

    Every operation and every strength is equally likely, doing nothing is one operation, and a magnitude is turned to
    the negative half of the time where the operation has a sign. Images are changed as torchvision's
    `TrivialAugmentWide` changes them, bit for bit on a CPU, each with draws of its own.

    Args:
        num_magnitude_bins: How finely strengths are told apart, >= 2; 31 as the paper.
        interpolation: `nearest` or `bilinear`, of the operations that move pixels; torchvision's default.
        fill: What they let in from outside, 0..255, for all channels or a list of one a channel; 0 is black.

    Shape:
        uint8 `(B, C, H, W)`, 0..255, C is 1 or 3, to the same.

    Raises:
        ValueError: fewer than 2 bins; an unknown interpolation or fill; images that are not uint8 `(B, 1 or 3, H, W)`.

    Example:
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> TrivialAugment()(images).shape
        torch.Size([2, 3, 32, 32])

    Reference: Müller and Hutter 2021, arXiv:2103.10158

    BibTeX:
        @inproceedings{muller2021trivialaugment,
          title = {{TrivialAugment}: Tuning-free Yet State-of-the-Art Data Augmentation},
          author = {M{\\"u}ller, Samuel G. and Hutter, Frank},
          booktitle = {International Conference on Computer Vision},
          year = {2021},
          eprint = {2103.10158},
          archivePrefix = {arXiv},
        }

    See also:
        `RandAugment`, with several operations of one strength; `AutoAugment`, whose choice was learned.
    """

    draws = 3

    def __init__(self, num_magnitude_bins: int = 31, interpolation: Interpolation = "nearest", fill: Fill = 0) -> None:
        whole("TrivialAugment", "num_magnitude_bins", num_magnitude_bins, 2)
        check_outside("TrivialAugment", interpolation, fill)
        self.num_magnitude_bins = num_magnitude_bins
        self.interpolation = interpolation
        self.fill = fill

    def plans(self, uniform: Tensor, sides: tuple[int, int]) -> list[Plan]:
        """The step that each image takes.

        Args:
            uniform: What `apply` takes, `(B, 3)`: the operation, its strength and its sign.
            sides: Height and width, pixels.

        Returns:
            For each image one name of an operation and its magnitude.
        """
        bins = self.num_magnitude_bins
        return [
            [SPACE.step(NAMES[int(which * len(NAMES))], int(strength * bins), bins, sign, sides)]
            for which, strength, sign in uniform.tolist()
        ]
