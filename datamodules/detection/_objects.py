"""The images of a split and all their objects, in a few tensors however many there are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._shapes import Shapes

__all__ = ["Objects", "pack_objects", "rows_between"]


@dataclass(frozen=True)
class Objects:
    """N images and their M objects, those of an image together and in the order of the images.

    Args:
        paths: Image files, N.
        image_id: What the source calls the images, int64 `(N,)`.
        size: Height and width of the images, int64 `(N, 2)`, pixels.
        starts: Where the objects of each image begin and, last, where all end, int64 `(N + 1,)`.
        boxes: Left, top, right, bottom, float32 `(M, 4)`, pixels of the original images.
        labels: 1..K, int64 `(M,)`.
        crowd: Whether a box holds several objects, or one that is not to be judged, bool `(M,)`.
        area: Square pixels, float32 `(M,)`.
        source: What the source calls the objects, int64 `(M,)`, for messages.
        shape: Which of `shapes`, int64 `(M,)`; -1 stands for the whole box.
        shapes: Their outlines, where masks are wanted.
    """

    paths: list[str]
    image_id: Tensor
    size: Tensor
    starts: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    area: Tensor
    source: Tensor
    shape: Tensor
    shapes: Shapes | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def owner(self) -> Tensor:
        """The position of each object's image, int64 `(M,)`."""
        return torch.repeat_interleave(torch.arange(len(self)), self.starts.diff())

    def present(self, num_classes: int) -> Tensor:
        """Which classes each image shows, float32 0 and 1 `(N, K)`."""
        found = torch.zeros(len(self), num_classes)
        found[self.owner, self.labels - 1] = 1
        return found

    def rows(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The objects of some images and whose they are.

        Args:
            images: Positions, int64 `(B,)`.

        Returns:
            Positions of the objects and, 0..B - 1, of their images in `images`, int64 `(m,)` each.
        """
        return rows_between(self.starts, images)

    def keep(self, objects: Tensor) -> "Objects":
        """Only these objects, bool `(M,)`, of all images."""
        counts = torch.bincount(self.owner[objects], minlength=len(self))
        return replace(self._rows(objects), starts=_starts(counts))

    def select(self, images: Tensor) -> "Objects":
        """Only these images, positions int64 `(n,)`, with their objects."""
        rows, sample = self.rows(images)
        counts = torch.bincount(sample, minlength=len(images))
        return replace(
            self._rows(rows),
            paths=[self.paths[number] for number in images.tolist()],
            image_id=self.image_id[images],
            size=self.size[images],
            starts=_starts(counts),
        )

    def _rows(self, rows: Tensor) -> "Objects":
        names = ("boxes", "labels", "crowd", "area", "source", "shape")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def pack_objects(
    paths: list[str],
    image_id: Sequence[int],
    size: Sequence[tuple[int, int]],
    owner: Tensor,
    boxes: Tensor,
    labels: Tensor,
    crowd: Tensor,
    area: Tensor | None = None,
    source: Tensor | None = None,
    shape: Tensor | None = None,
    shapes: Shapes | None = None,
) -> Objects:
    """`Objects` out of objects in any order; without `area` that of the boxes, without `source` their numbers.

    Args:
        paths: Image files, N.
        image_id: What the source calls the images.
        size: Height and width of each image, pixels.
        owner: Position of each object's image, int64 `(M,)`.
        boxes: As in `Objects`, like all the others.
        labels: Likewise.
        crowd: Likewise.
        area: Likewise.
        source: Likewise.
        shape: Likewise.
        shapes: Likewise.
    """
    order = owner.argsort(stable=True)
    boxes = boxes.view(-1, 4)[order]
    sides = boxes[:, 2:] - boxes[:, :2]
    return Objects(
        paths,
        torch.tensor(list(image_id), dtype=torch.int64),
        torch.tensor(list(size), dtype=torch.int64).view(-1, 2),
        _starts(torch.bincount(owner, minlength=len(paths))),
        boxes,
        labels[order],
        crowd[order],
        sides.prod(1) if area is None else area[order],
        order if source is None else source[order],
        torch.full_like(order, -1) if shape is None else shape[order],
        shapes,
    )


def rows_between(starts: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """`Objects.rows` of whatever lies packed by image.

    Args:
        starts: Where the rows of each image begin and, last, where all end, int64 `(N + 1,)`.
        images: Positions, int64 `(B,)`.
    """
    first, counts = starts[images], starts[images + 1] - starts[images]
    sample = torch.repeat_interleave(torch.arange(len(images)), counts)
    within = torch.arange(len(sample)) - (counts.cumsum(0) - counts)[sample]
    return first[sample] + within, sample


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
