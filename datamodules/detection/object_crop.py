"""Patches cut out around objects and resized to the whole image."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ..augmentation._checks import interval
from ._pasting import paste
from ._placing import fraction, move_objects
from .annotations import Annotations
from .box_augmentation import BoxAugmentation

__all__ = ["ObjectCrop"]

ATTEMPTS = 20


@final
class ObjectCrop(BoxAugmentation):
    """Cuts a patch out of each image that overlaps an object enough, and resizes it to the whole.

    SSD's random crop. Each image draws how much the patch must overlap some object, as intersection over union, or that
    it stays whole; of twenty patches the first counts that does so and has an object's centre in it. If none does, the
    image stays whole. Objects whose centres are in the patch stay.

    Args:
        scale: Smallest and largest height and width of the patch, fractions of the image's, above 0 to 1.
        ratio: Smallest and largest width over height of the patch, in units of the image's.
        overlaps: Least intersections over union that are drawn from, each as often; 0 asks for a centre alone.
        prob: Fraction of the images that draw one of `overlaps`; 0 leaves all as they are.

    Shape:
        uint8 `(B, C, H, W)` to the same.

    Raises:
        ValueError: `scale` or `ratio` is no interval, `overlaps` no fractions, `prob` no fraction; images are not uint8
            `(B, 1 or 3, H, W)`.

    Example:
        >>> from lightning_vision.datamodules.detection import pack_boxes
        >>> annotations = pack_boxes([torch.tensor([[8, 8, 16, 24]])], [torch.tensor([1])], size=(32, 32))
        >>> images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
        >>> len(ObjectCrop()(images, annotations)[1].boxes)
        1

    Reference: Liu et al. 2016, arXiv:1512.02325

    BibTeX:
        @inproceedings{liu2016ssd,
          title = {{SSD}: Single Shot {MultiBox} Detector},
          author = {Liu, Wei and Anguelov, Dragomir and Erhan, Dumitru and Szegedy, Christian and Reed, Scott and
            Fu, Cheng-Yang and Berg, Alexander C.},
          booktitle = {European Conference on Computer Vision},
          year = {2016},
          eprint = {1512.02325},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Its patches have 0.1 to 1 of the size; as torchvision, height and width are drawn from 0.3 to 1. An image for
        which no patch is found stays whole, where the authors' code draws another overlap.

    See also:
        `ScaleJitter`, which does not look for objects.
    """

    draws = 2 + 4 * ATTEMPTS

    def __init__(
        self,
        scale: Sequence[float] = (0.3, 1.0),
        ratio: Sequence[float] = (0.5, 2.0),
        overlaps: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
        prob: float = 6 / 7,
    ) -> None:
        self.scale = interval("ObjectCrop", "scale", scale, 1e-3, 1.0)
        self.ratio = interval("ObjectCrop", "ratio", ratio, 1e-3, 1e3)
        self.overlaps = [fraction("ObjectCrop", "overlaps", value) for value in overlaps]
        if not self.overlaps:
            raise ValueError("ObjectCrop: overlaps is empty; give at least one fraction, or prob=0.")
        self.prob = fraction("ObjectCrop", "prob", prob)

    def apply(self, images: Tensor, annotations: Annotations, uniform: Tensor) -> tuple[Tensor, Annotations]:
        self.check(images, annotations, uniform)
        if self.prob == 0:
            return images, annotations
        size = (images.shape[2], images.shape[3])
        windows = self.windows(annotations, uniform, size)
        edges = windows[annotations.sample].double()
        kept = annotations.keep(_centred(annotations.boxes.double(), edges[:, None])[:, 0])
        places = windows.new_tensor([0, 0, *size]).repeat(len(images), 1)
        moved = move_objects(kept, windows, places, size, 0.0)
        return paste(torch.empty_like(images, memory_format=torch.contiguous_format), images, windows, places), moved

    def windows(self, annotations: Annotations, uniform: Tensor, size: tuple[int, int]) -> Tensor:
        """What is cut out of each image: first row, first column, height and width, int64 `(B, 4)`.

        Args:
            annotations: What `apply` takes.
            uniform: Likewise, `(B, draws)`.
            size: Height and width of the images, pixels.
        """
        draws = uniform.double()
        own, count = draws.new_tensor(size), len(uniform)
        tries = draws[:, 2:].view(count, ATTEMPTS, 4)
        sides = ((self.scale[0] + (self.scale[1] - self.scale[0]) * tries[..., :2]) * own).floor().clamp(min=1)
        patches = torch.cat([(tries[..., 2:] * (own - sides + 1)).floor(), sides], 2)
        shape = sides[..., 1] / sides[..., 0] * (size[0] / size[1])
        least = draws.new_tensor(self.overlaps)[(draws[:, 0] * len(self.overlaps)).long()]
        boxes, sample = annotations.boxes.double(), annotations.sample
        near = patches[sample]
        inside, overlap = _centred(boxes, near), _overlap(boxes, near)
        rows = sample[:, None].expand_as(overlap)
        best = draws.new_zeros(count, ATTEMPTS).scatter_reduce(0, rows, overlap, "amax")
        centres = draws.new_zeros(count, ATTEMPTS).scatter_reduce(0, rows, inside.double(), "amax")
        objects = torch.bincount(sample, minlength=count)[:, None]
        wanted = (best >= least[:, None]) & (centres > 0) | (objects == 0)
        fits = (shape >= self.ratio[0]) & (shape <= self.ratio[1]) & wanted
        first = patches[torch.arange(count, device=uniform.device), fits.int().argmax(1)]
        cut = fits.any(1) & (draws[:, 1] < self.prob)
        return torch.where(cut[:, None], first, torch.cat([0 * own, own])).long()


def _centred(boxes: Tensor, patches: Tensor) -> Tensor:
    """Whether boxes `(M, 4)` have their centres in patches `(M, N, 4)`: bool `(M, N)`."""
    across, down = (boxes[:, :2] + boxes[:, 2:]).div(2)[:, None].unbind(2)
    top, left, height, width = patches.unbind(2)
    return (across > left) & (across < left + width) & (down > top) & (down < top + height)


def _overlap(boxes: Tensor, patches: Tensor) -> Tensor:
    """Intersections of boxes `(M, 4)` with patches `(M, N, 4)` over their unions, `(M, N)`."""
    starts = patches[..., :2].flip(2)
    sides = patches[..., 2:].flip(2)
    low, high = boxes[:, None, :2].maximum(starts), boxes[:, None, 2:].minimum(starts + sides)
    common = (high - low).clamp(min=0).prod(2)
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None] + sides.prod(2)
    return common / (whole - common)
