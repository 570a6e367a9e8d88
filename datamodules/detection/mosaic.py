"""Mosaics of four images around a random point."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from lightning_vision.images import GREY

from ..augmentation._checks import interval, whole
from ._partners import of_partners, partners
from ._pasting import paste
from ._placing import fraction, joined, move_objects
from .annotations import Annotations
from .box_augmentation import BoxAugmentation

__all__ = ["Mosaic"]


@final
class Mosaic(BoxAugmentation):
    """Puts four images of the batch around a random point, each with the corner of its quadrant cut off there.

    The image itself lies above and to the left of the point, with its lower right corner on it; the others, three
    different ones where the batch has four, touch it with their own corners. All four have the same factor of size;
    what reaches beyond the edges is cut off, what is missing is padded. Objects of all four are found in the result;
    its `image_id`, `size` and `placement` are those of the image itself.

    Args:
        prob: Fraction of the images that become a mosaic; 0 leaves all as they are.
        scale: Smallest and largest factor of size of the four, above 0 to 1; at 1 only quadrants are seen, and pixels
            stay as they are. Uniform in between.
        centre: Nearest and farthest place of the point, fractions of the height and of the width, from 0 to 1.
        min_visible: Least fraction of a box's area that must be left for its object to stay.
        fill: Value of the pixels that no image covers, 0..255.

    Shape:
        uint8 `(B, C, H, W)` to the same.

    Raises:
        ValueError: `scale` or `centre` is no interval, `prob` or `min_visible` no fraction, `fill` no byte; images are
            not uint8 `(B, 1 or 3, H, W)`.

    Example:
        >>> from lightning_vision.datamodules.detection import pack_boxes
        >>> annotations = pack_boxes([torch.tensor([[8, 8, 16, 24]])] * 4, [torch.tensor([1])] * 4, size=(32, 32))
        >>> images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        >>> mosaic = Mosaic(scale=(0.5, 0.5), centre=(0.5, 0.5))
        >>> mosaic(images, annotations)[1].sample.bincount().tolist()
        [4, 4, 4, 4]

    Reference: Bochkovskiy et al. 2020, arXiv:2004.10934

    BibTeX:
        @article{bochkovskiy2020yolov4,
          title = {{YOLOv4}: Optimal Speed and Accuracy of Object Detection},
          author = {Bochkovskiy, Alexey and Wang, Chien-Yao and Liao, Hong-Yuan Mark},
          journal = {arXiv preprint arXiv:2004.10934},
          year = {2020},
        }

    Differs from the paper:
        It says that four images are mixed and no more. The point's range is that of later YOLOs; those make a canvas of
        twice the side and cut the result out of it after a random affine map, here the four are resized at once.

    See also:
        `BoxMixUp`, which lays one image over the other.
    """

    draws = 5

    def __init__(
        self,
        prob: float = 1.0,
        scale: Sequence[float] = (0.5, 1.0),
        centre: Sequence[float] = (0.25, 0.75),
        min_visible: float = 0.1,
        fill: int = GREY,
    ) -> None:
        name = "Mosaic"
        self.prob, self.min_visible = fraction(name, "prob", prob), fraction(name, "min_visible", min_visible)
        self.scale = interval(name, "scale", scale, 1e-3, 1.0)
        self.centre = interval(name, "centre", centre, 0.0, 1.0)
        whole(name, "fill", fill, 0, 255)
        self.fill = fill

    def apply(self, images: Tensor, annotations: Annotations, uniform: Tensor) -> tuple[Tensor, Annotations]:
        self.check(images, annotations, uniform)
        if self.prob == 0:
            return images, annotations
        size = (images.shape[2], images.shape[3])
        windows, places = self.tiles(uniform, size)
        canvas = images.new_full((len(images), *images.shape[1:]), self.fill)
        own, *others = partners(uniform[:, 4], 4)
        parts = []
        for number, source in enumerate([own, *others]):
            canvas = paste(canvas, images[source], windows[number], places[number])
            tile = of_partners(annotations, source)
            parts.append(move_objects(tile, windows[number], places[number], size, self.min_visible))
        return canvas, joined(parts[0], parts[1:])

    def tiles(self, uniform: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What is cut out of the four images of each mosaic and where it goes, int64 `(4, B, 4)` each.

        Above left, above right, below left, below right; first row, first column, height and width of each. An image
        that becomes no mosaic is whole in the first and has a place of height 0 in the others.

        Args:
            uniform: What `apply` takes, `(B, 5)`.
            size: Height and width of the images, pixels.
        """
        draws = uniform.double()
        whole_side = draws.new_tensor(size)
        near, far = self.centre
        centre = ((near + (far - near) * draws[:, :2]) * whole_side).round()
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * draws[:, 2:3]
        mixed = draws[:, 3:4] < self.prob
        # Along each side: pixels before the point, pixels after it.
        places = torch.stack([centre, whole_side - centre]).minimum((scale * whole_side).round())
        cuts = (places / scale).round().clamp(min=1).minimum(whole_side)
        untouched = torch.cat([0 * whole_side, whole_side])
        windows, tiles = [], []
        for after in ((0, 0), (0, 1), (1, 0), (1, 1)):
            later = torch.tensor(after, device=uniform.device)
            place, window = (both.gather(0, later.expand(1, len(draws), 2))[0] for both in (places, cuts))
            # The corner that touches the point is the image's own.
            start = torch.where(later == 1, 0, whole_side - window)
            corner = torch.where(later == 1, centre, centre - place)
            # What has no width has no height either.
            place = place * (place > 0).all(1, keepdim=True)
            windows.append(torch.where(mixed, torch.cat([start, window], 1), untouched))
            tiles.append(torch.where(mixed, torch.cat([corner, place], 1), untouched if after == (0, 0) else 0))
        return torch.stack(windows).long(), torch.stack(tiles).long()
