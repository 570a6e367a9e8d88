"""Images made larger and cut, or smaller and padded, with their boxes and masks."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from lightning_vision.images import GREY

from ..augmentation._checks import interval, whole, window
from ._pasting import paste
from ._placing import fraction, move_objects
from .annotations import Annotations
from .box_augmentation import BoxAugmentation

__all__ = ["ScaleJitter"]


@final
class ScaleJitter(BoxAugmentation):
    """Resizes each image by a random factor; cuts a window out of what is too large, pads what is too small.

    Large-scale jitter, with the paper's range; `ScaleJitter(scale=(0.8, 1.25))` is what the paper calls standard scale
    jitter, `ScaleJitter(scale=(0.25, 1.0), prob=0.5)` zooms out as SSD is trained. Proportions are kept, to a pixel.

    Args:
        scale: Smallest and largest factor, above 0; 1 fits the image into the result. Uniform in between.
        prob: Fraction of the images that get a factor, the others have 1; 0 leaves all as they are.
        size: Result, pixels: one side or height and width; None is the images' own size.
        min_visible: Least fraction of a box's area that must be left for its object to stay.
        fill: Value of the pixels around a small image, 0..255.

    Shape:
        uint8 `(B, C, H, W)` to `(B, C, *size)`.

    Raises:
        ValueError: `scale` is no interval, `prob` or `min_visible` no fraction, `size` no size, `fill` no byte; images
            are not uint8 `(B, 1 or 3, H, W)`.

    Example:
        >>> from lightning_vision.datamodules.detection import pack_boxes
        >>> annotations = pack_boxes([torch.tensor([[8, 8, 16, 24]])], [torch.tensor([1])], size=(32, 32))
        >>> images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
        >>> ScaleJitter(scale=(0.5, 0.5)).apply(images, annotations, torch.zeros(1, 4))[1].boxes.tolist()
        [[4.0, 4.0, 8.0, 12.0]]

    Reference: Ghiasi et al. 2021, arXiv:2012.07177

    BibTeX:
        @inproceedings{ghiasi2021simple,
          title = {Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation},
          author = {Ghiasi, Golnaz and Cui, Yin and Srinivas, Aravind and Qian, Rui and Lin, Tsung-Yi and
            Cubuk, Ekin D. and Le, Quoc V. and Zoph, Barret},
          booktitle = {Conference on Computer Vision and Pattern Recognition},
          year = {2021},
          eprint = {2012.07177},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        A small image lies anywhere in its padding. The window of a large one is cut in whole pixels before it is
        resized, which costs the less the larger the factor.

    See also:
        `ObjectCrop`, which looks where the objects are.
    """

    draws = 4

    def __init__(
        self,
        scale: Sequence[float] = (0.1, 2.0),
        prob: float = 1.0,
        size: int | Sequence[int] | None = None,
        min_visible: float = 0.1,
        fill: int = GREY,
    ) -> None:
        name = "ScaleJitter"
        self.scale = interval(name, "scale", scale, 1e-3, 1e3)
        self.prob, self.min_visible = fraction(name, "prob", prob), fraction(name, "min_visible", min_visible)
        self.size = window(name, size)
        whole(name, "fill", fill, 0, 255)
        self.fill = fill

    def apply(self, images: Tensor, annotations: Annotations, uniform: Tensor) -> tuple[Tensor, Annotations]:
        self.check(images, annotations, uniform)
        here = (images.shape[2], images.shape[3])
        size = self.size or here
        if size == here and (self.prob == 0 or self.scale == (1.0, 1.0)):
            return images, annotations
        windows, places = self.windows(uniform, here, size)
        canvas = images.new_full((*images.shape[:2], *size), self.fill)
        moved = move_objects(annotations, windows, places, size, self.min_visible)
        return paste(canvas, images, windows, places), moved

    def windows(self, uniform: Tensor, here: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What is cut out of each image and where it goes: first row, first column, height, width, int64 `(B, 4)`.

        Args:
            uniform: What `apply` takes, `(B, 4)`.
            here: Height and width of the images, pixels.
            size: Height and width of the results, pixels.
        """
        draws = uniform.double()
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * draws[:, :1]
        factor = torch.where(draws[:, 1:2] < self.prob, factor, 1.0) * min(size[0] / here[0], size[1] / here[1])
        own, wanted = draws.new_tensor(here), draws.new_tensor(size)
        resized = own * factor
        # Along each side either the window or the place is a part of the whole.
        window = torch.where(resized > wanted, wanted / factor, own).round().clamp(min=1).minimum(own)
        place = torch.where(resized > wanted, wanted, resized).round().clamp(min=1).minimum(wanted)
        starts = (draws[:, 2:] * (own - window + 1)).floor(), (draws[:, 2:] * (wanted - place + 1)).floor()
        return torch.cat([starts[0], window], 1).long(), torch.cat([starts[1], place], 1).long()
