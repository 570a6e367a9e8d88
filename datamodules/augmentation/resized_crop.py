"""Inception's crop: a box of random area and shape, resized."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ._boxes import ATTEMPTS, draw_boxes
from ._checks import check_images, interval, window
from ._resize import resize_boxes
from .augmentation import Augmentation

__all__ = ["ResizedCrop"]


@final
class ResizedCrop(Augmentation):
    """Cuts a box of random area and shape out of each image, resizes it and mirrors half of them.

    torchvision's `RandomResizedCrop(antialias=True)` and `RandomHorizontalFlip`, a draw of its own for each image.
    Ten boxes are tried; if none fits, the largest centred one of an allowed shape is taken.

    Args:
        size: Result, pixels: one side or height and width; None is the images' own size.
        scale: Smallest and largest area of the box, fractions of the image's, above 0 to 1.
        ratio: Smallest and largest width over height of the box.
        flip: Mirror an image left to right with probability one half.

    Shape:
        uint8 `(B, C, H, W)` to `(B, C, *size)`.

    Raises:
        ValueError: `size` is no size, `scale` or `ratio` no interval; images are not uint8 `(B, 1 or 3, H, W)`.

    Example:
        >>> images = torch.zeros(2, 3, 64, 48, dtype=torch.uint8)
        >>> ResizedCrop(size=32)(images).shape
        torch.Size([2, 3, 32, 32])

    Reference: Szegedy et al. 2015, arXiv:1409.4842

    BibTeX:
        @inproceedings{szegedy2015going,
          title = {Going Deeper with Convolutions},
          author = {Szegedy, Christian and Liu, Wei and Jia, Yangqing and Sermanet, Pierre and Reed, Scott and
            Anguelov, Dragomir and Erhan, Dumitru and Vanhoucke, Vincent and Rabinovich, Andrew},
          booktitle = {Conference on Computer Vision and Pattern Recognition},
          year = {2015},
          eprint = {1409.4842},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Shapes are uniform in their logarithm, as torchvision draws them, and the interpolation is always bilinear.

    See also:
        `ShiftCrop`, which keeps the scale.
    """

    draws = 2 * ATTEMPTS + 3

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: bool = True,
    ) -> None:
        self.size, self.flip = window("ResizedCrop", size), flip
        self.scale = interval("ResizedCrop", "scale", scale, 1e-6, 1.0)
        self.ratio = interval("ResizedCrop", "ratio", ratio, 1e-3, 1e3)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        check_images("ResizedCrop", images, uniform, self.draws)
        here = (images.shape[2], images.shape[3])
        return resize_boxes(images, self.boxes(uniform, here), self._mirrors(uniform), self.size or here)

    def source_boxes(self, uniform: Tensor, size: tuple[int, int]) -> Tensor:
        top, left, height, width = self.boxes(uniform, size).float().unbind(1)
        boxes = torch.stack([left, top, left + width, top + height], 1)
        mirrored = boxes[:, [2, 1, 0, 3]]
        return torch.where(self._mirrors(uniform)[:, None], mirrored, boxes)

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.size or size

    def boxes(self, uniform: Tensor, size: tuple[int, int]) -> Tensor:
        """First row, first column, height and width of each image's box, int64 `(B, 4)`.

        Args:
            uniform: What `apply` takes, `(B, draws)`.
            size: Height and width of the images, pixels.
        """
        height, width, fits = draw_boxes(uniform[:, : 2 * ATTEMPTS], size, self.scale, self.ratio, size, 1)
        shape = min(max(size[1] / size[0], self.ratio[0]), self.ratio[1])
        centred = min(size[0], round(size[1] / shape)), min(size[1], round(size[0] * shape))
        height, width = height.where(fits, centred[0]), width.where(fits, centred[1])
        places = uniform[:, -3:-1].double()
        top = torch.where(fits, places[:, 0] * (size[0] - height + 1), (size[0] - height) // 2).long()
        left = torch.where(fits, places[:, 1] * (size[1] - width + 1), (size[1] - width) // 2).long()
        return torch.stack([top, left, height, width], 1)

    def _mirrors(self, uniform: Tensor) -> Tensor:
        return (uniform[:, -1] < 0.5) & self.flip
