"""Random erasing: a box of each image is replaced by black or by noise."""

from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor

from ..common._draws import draw_bits
from ._boxes import ATTEMPTS, draw_boxes
from ._checks import check_images, interval
from .augmentation import Augmentation

__all__ = ["RandomErasing"]


@final
class RandomErasing(Augmentation):
    """Erases a box of random area and shape from some of the images.

    torchvision's `RandomErasing`, a draw of its own for each image. Ten boxes are tried; if none fits, the image stays.

    Args:
        prob: Fraction of the images that lose a box; 0 leaves all as they are.
        scale: Smallest and largest area of the box, fractions of the image's.
        ratio: Smallest and largest height over width of the box.
        value: What it is filled with: 0 (black), or "noise", bytes uniform in 0..255 for each pixel and channel.

    Shape:
        uint8 `(B, C, H, W)` to the same.

    Raises:
        ValueError: `prob` is no fraction, `scale` or `ratio` no interval, `value` neither of the two; images are not
            uint8 `(B, 1 or 3, H, W)`.

    Example:
        >>> images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
        >>> bool((RandomErasing(prob=1.0)(images) == 0).any())
        True

    Reference: Zhong et al. 2020, arXiv:1708.04896

    BibTeX:
        @inproceedings{zhong2020random,
          title = {Random Erasing Data Augmentation},
          author = {Zhong, Zhun and Zheng, Liang and Kang, Guoliang and Li, Shaozi and Yang, Yi},
          booktitle = {AAAI Conference on Artificial Intelligence},
          year = {2020},
          eprint = {1708.04896},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Shapes are uniform in their logarithm and attempts end after ten, as in torchvision. The paper fills with noise,
        which is `value="noise"`; black is torchvision's default.
    """

    draws = 2 * ATTEMPTS + 5
    moves_pixels = False

    def __init__(
        self,
        prob: float = 0.5,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        value: int | Literal["noise"] = 0,
    ) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"RandomErasing: prob is {prob}; give a fraction from 0 to 1.")
        if value not in (0, "noise"):
            raise ValueError(f'RandomErasing: value is {value!r}; give 0 or "noise".')
        self.prob, self.value = prob, value
        self.scale = interval("RandomErasing", "scale", scale, 0.0, 1.0)
        self.ratio = interval("RandomErasing", "ratio", ratio, 1e-3, 1e3)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        check_images("RandomErasing", images, uniform, self.draws)
        boxes = self.boxes(uniform, (images.shape[2], images.shape[3]))
        first, second = (uniform[:, -2:].double() * 2**24).long().unbind(1)
        noise = draw_bits(first * 2**24 + second) if self.value == "noise" else None
        erase = erase_by_slices if images.device.type == "cpu" else erase_by_mask
        return erase(images, boxes, noise)

    def boxes(self, uniform: Tensor, size: tuple[int, int]) -> Tensor:
        """First row, first column, height and width of each image's box, int64 `(B, 4)`; zeros where it keeps all.

        Args:
            uniform: What `apply` takes, `(B, draws)`.
            size: Height and width of the images, pixels.
        """
        shape = (1 / self.ratio[1], 1 / self.ratio[0])
        limit = (size[0] - 1, size[1] - 1)
        height, width, fits = draw_boxes(uniform[:, : 2 * ATTEMPTS], size, self.scale, shape, limit, 0)
        places = uniform[:, -4:-2].double()
        top, left = (places[:, 0] * (size[0] - height + 1)).long(), (places[:, 1] * (size[1] - width + 1)).long()
        erased = fits & (uniform[:, -5] < self.prob)
        return torch.stack([top, left, height, width], 1) * erased[:, None]


def erase_by_slices(images: Tensor, boxes: Tensor, noise: Tensor | None) -> Tensor:
    """Fill a box of each image, one image after the other, on the CPU.

    Args:
        images: uint8 `(B, C, H, W)`; left alone.
        boxes: First row, first column, height and width, pixels, int64 `(B, 4)`; height 0 erases nothing.
        noise: Where each image's stream of noise begins, int64 `(B,)`; None fills with zeros.
    """
    result = images.clone(memory_format=torch.contiguous_format)
    pixels = _numbers(images)
    for position, (top, left, height, width) in enumerate(boxes.tolist()):
        rows, columns = slice(top, top + height), slice(left, left + width)
        fill = 0 if noise is None else _noise(noise[position] + pixels[:, rows, columns])
        result[position, :, rows, columns] = fill
    return result


def erase_by_mask(images: Tensor, boxes: Tensor, noise: Tensor | None) -> Tensor:
    """`erase_by_slices`, all images at once, on any device."""
    top, left, height, width = boxes.view(-1, 4, 1, 1, 1).unbind(1)
    row = torch.arange(images.shape[2], device=images.device)[:, None]
    column = torch.arange(images.shape[3], device=images.device)
    inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    fill = 0 if noise is None else _noise(noise.view(-1, 1, 1, 1) + _numbers(images))
    return torch.where(inside, fill, images)


def _numbers(images: Tensor) -> Tensor:
    """Numbers of an image's pixels, int64 `(C, H, W)`."""
    return torch.arange(images.shape[1:].numel(), device=images.device).view(images.shape[1:])


def _noise(number: Tensor) -> Tensor:
    """A random byte for each number."""
    return (draw_bits(number) & 255).to(torch.uint8)
