"""Image files with packed objects, decoded when they are fetched."""

import torch
from torch import Tensor

from lightning_vision.images import BadImageError, Fit, FittedImage, placement_of, read_fitted

from ..common._sets import Fetched, OnBadImage, decode_each
from ._objects import Objects
from ._sets import BoxedImages
from .annotations import Annotations

__all__ = ["BoxedFiles"]


class BoxedFiles(BoxedImages):
    """The images of a split.

    Args:
        objects: Images and what is on them; a size of 0 x 0 is one that only the file knows.
        channels: 1 or 3.
        image_size: Height and width, pixels.
        fit: `letterbox` or `squash`, as in `lightning_vision.images.fit_image`.
        on_bad_image: `error` stops at a file that cannot be decoded or has another size than `objects` says, `skip`
            leaves it out of its batch.
    """

    def __init__(
        self,
        objects: Objects,
        channels: int,
        image_size: tuple[int, int],
        fit: Fit = "letterbox",
        on_bad_image: OnBadImage = "error",
    ) -> None:
        self.objects, self.channels, self.image_size = objects, channels, image_size
        self.fit, self.on_bad_image = fit, on_bad_image

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def paths(self) -> list[str]:
        return self.objects.paths

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        images, index, skipped = decode_each(self._read, index, self.paths, self.on_bad_image)
        size = torch.tensor([image.size for image in images])
        placement = torch.tensor([image.placement for image in images])
        pixels = torch.stack([image.pixels for image in images])
        return Fetched(pixels, self._annotations(index, size, placement, masks=True), index, skipped)

    def annotations(self, index: Tensor, epoch: int = 0) -> Annotations:
        size = self.objects.size[index % len(self)]
        placement = [
            placement_of((max(1, high), max(1, wide)), self.image_size, self.fit) for high, wide in size.tolist()
        ]
        return self._annotations(index, size, torch.tensor(placement), masks=False)

    def _read(self, number: int) -> FittedImage:
        path = self.paths[number]
        image = read_fitted(path, self.channels, self.image_size, self.fit)
        height, width = self.objects.size[number].tolist()
        if height and (height, width) != image.size:
            turned = ", turned as its EXIF orientation says" if (width, height) == image.size else ""
            raise BadImageError(
                f"the image {path} has {image.size[1]} x {image.size[0]} pixels{turned}, but its annotations are for "
                f"{width} x {height}"
            )
        return image

    def _annotations(self, index: Tensor, size: Tensor, placement: Tensor, masks: bool) -> Annotations:
        numbers, it = index % len(self), self.objects
        rows, sample = it.rows(numbers)
        where = placement[sample]
        boxes = it.boxes[rows] * where[:, :2].repeat(1, 2) + where[:, 2:].repeat(1, 2)
        return Annotations(
            boxes,
            it.labels[rows],
            sample,
            it.crowd[rows],
            it.area[rows],
            it.image_id[numbers],
            placement,
            size,
            self._masks(rows, boxes, size[sample], where) if masks and it.shapes is not None else None,
        )

    def _masks(self, rows: Tensor, boxes: Tensor, size: Tensor, placement: Tensor) -> Tensor:
        masks = torch.zeros(len(rows), *self.image_size, dtype=torch.uint8)
        for number, row in enumerate(rows.tolist()):
            shape = int(self.objects.shape[row])
            if shape < 0:
                left, top, right, bottom = boxes[number].round().int().clamp(min=0).tolist()
                masks[number, top:bottom, left:right] = 1
            else:
                assert self.objects.shapes is not None
                high, wide = size[number].tolist()
                masks[number] = self.objects.shapes.mask(shape, (high, wide), placement[number], self.image_size)
        return masks
