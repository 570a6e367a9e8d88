"""RandAugment: a number of operations an image, all of one strength.

Cubuk et al. 2020, arXiv:1909.13719, Fig. 2. Symbols: N `num_ops`, M `magnitude`.
"""

from typing import final

from torch import Tensor

from ._affine import Fill, Interpolation, check_outside
from ._checks import whole
from ._spaces import LEARNED
from ._steps import Plan, Planned

__all__ = ["RandAugment"]

NAMES = tuple(name for name in LEARNED.names if name != "Invert")


@final
class RandAugment(Planned):
    """Changes each image by operations drawn at random, a fixed number of them and all of one strength.

    Every operation is equally likely each time, doing nothing is one of them, and a magnitude is turned to the negative
    half of the time where the operation has a sign. Images are changed as torchvision's `RandAugment` changes them, bit
    for bit on a CPU, each with draws of its own.

    Args:
        num_ops: Operations an image, one after the other, >= 0; 2 as the paper on ImageNet. Neutral: 0.
        magnitude: Bin of the strength of all of them, 0 .. num_magnitude_bins - 1; 9 as the paper on ImageNet.
        num_magnitude_bins: How finely strengths are told apart, >= 2; 31 as the paper, whose strengths go to 30.
        interpolation: `nearest` or `bilinear`, of the operations that move pixels; torchvision's default.
        fill: What they let in from outside, 0..255, for all channels or a list of one a channel; 0 is black.

    Shape:
        uint8 `(B, C, H, W)`, 0..255, C is 1 or 3, to the same.

    Raises:
        ValueError: a number out of its range; an unknown interpolation or fill; images that are not uint8
            `(B, 1 or 3, H, W)`.

    Example:
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> RandAugment(num_ops=2, magnitude=9)(images).shape
        torch.Size([2, 3, 32, 32])

    Reference: Cubuk et al. 2020, arXiv:1909.13719

    BibTeX:
        @inproceedings{cubuk2020randaugment,
          title = {{RandAugment}: Practical Automated Data Augmentation with a Reduced Search Space},
          author = {Cubuk, Ekin D. and Zoph, Barret and Shlens, Jonathon and Le, Quoc V.},
          booktitle = {Conference on Computer Vision and Pattern Recognition Workshops},
          year = {2020},
          eprint = {1909.13719},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Magnitudes are torchvision's. Solarize grows stronger with the bin, as the others do.

    See also:
        `TrivialAugment`, which has nothing to set; `AutoAugment`, whose choice was learned.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        interpolation: Interpolation = "nearest",
        fill: Fill = 0,
    ) -> None:
        whole("RandAugment", "num_ops", num_ops, 0)
        whole("RandAugment", "num_magnitude_bins", num_magnitude_bins, 2)
        whole("RandAugment", "magnitude", magnitude, 0, num_magnitude_bins - 1)
        check_outside("RandAugment", interpolation, fill)
        self.num_ops = num_ops
        self.num_magnitude_bins = num_magnitude_bins
        self.magnitude = magnitude
        self.interpolation = interpolation
        self.fill = fill
        self.draws = 2 * num_ops

    @property
    def magnitude(self) -> float:
        """May be set between two batches, also between two bins, of which the nearer one is taken."""
        strength: float = vars(self)["magnitude"]
        return strength

    @magnitude.setter
    def magnitude(self, given: float) -> None:
        last = self.num_magnitude_bins - 1
        if not 0 <= given <= last:
            raise ValueError(f"RandAugment: magnitude is {given!r}; give a number from 0 to {last}.")
        # Under its public name, among what tells one augmentation from another.
        vars(self)["magnitude"] = given

    def plans(self, uniform: Tensor, sides: tuple[int, int]) -> list[Plan]:
        """The steps that each image takes.

        Args:
            uniform: What `apply` takes, `(B, draws)`: two numbers a step, the operation and its sign.
            sides: Height and width, pixels.

        Returns:
            For each image names of operations and magnitudes.
        """
        strength = int(self.magnitude + 0.5)
        return [
            [
                LEARNED.step(NAMES[int(which * len(NAMES))], strength, self.num_magnitude_bins, sign, sides)
                for which, sign in zip(row[::2], row[1::2], strict=True)
            ]
            for row in uniform.tolist()
        ]
