"""The contract of an augmentation that moves boxes along with the pixels, and several one after the other."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from ..augmentation._checks import check_images
from .annotations import Annotations

__all__ = ["BoxAugmentation", "BoxChain", "pack_boxes"]


def pack_boxes(boxes: list[Tensor], labels: list[Tensor], size: tuple[int, int]) -> Annotations:
    """Annotations of images of your own that come as they are: without crowds, each image numbered by its place.

    Args:
        boxes: For each image left, top, right and bottom of its objects, pixels, `(m, 4)`.
        labels: For each image the classes of its objects, 1..K, `(m,)`.
        size: Height and width of the images, pixels.

    Example:
        >>> boxes, labels = [torch.tensor([[2, 3, 8, 9]]), torch.zeros(0, 4)], [torch.tensor([1]), torch.zeros(0)]
        >>> pack_boxes(boxes, labels, size=(16, 16)).sample.tolist()
        [0]
    """
    counts = torch.tensor([len(own) for own in labels], dtype=torch.long)
    corners = torch.cat([torch.zeros(0, 4), *(own.reshape(-1, 4) for own in boxes)])
    return Annotations(
        boxes=corners,
        labels=torch.cat([torch.zeros(0, dtype=torch.long), *labels]).long(),
        sample=torch.arange(len(counts)).repeat_interleave(counts),
        crowd=torch.zeros(len(corners), dtype=torch.bool),
        area=(corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]),
        image_id=torch.arange(len(counts)),
        placement=torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(len(counts), 1),
        size=torch.tensor(size).repeat(len(counts), 1),
    )


class BoxAugmentation(ABC):
    """Changes each image of a batch, its boxes and its masks alike.

    All that is random about it are `draws` uniform numbers an image, which `apply` is given, so a batch is a function
    of them. Methods that mix images take their partners from the batch, by the order of a column of these numbers; in
    all others no image is moved by its neighbours. Datamodules draw the numbers as a function of (seed, epoch, sample);
    called as a function it draws them itself.

    Example:
        >>> from lightning_vision.datamodules.detection import HorizontalFlip, pack_boxes
        >>> images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
        >>> annotations = pack_boxes([torch.tensor([[2, 3, 8, 9]])], [torch.tensor([1])], size=(16, 16))
        >>> HorizontalFlip(prob=1.0)(images, annotations)[1].boxes.tolist()
        [[8.0, 3.0, 14.0, 9.0]]
    """

    draws: int
    """Uniform numbers that one image needs."""

    @abstractmethod
    def apply(self, images: Tensor, annotations: Annotations, uniform: Tensor) -> tuple[Tensor, Annotations]:
        """The augmented images and where their objects are now.

        Boxes end at the edges. Objects of which too little is left in the image are dropped; crowds move along.

        Args:
            images: uint8 `(B, C, H, W)`, 0..255, C is 1 or 3; left alone.
            annotations: Their objects; left alone.
            uniform: Random numbers in [0, 1), float32 `(B, draws)`, on the images' device.

        Returns:
            uint8 `(B, C, H', W')`, another size only where one is asked for, and the objects left. `placement` follows
            the pixels of the image itself, with a negative scale where it was mirrored; `image_id` and `size` stay, and
            `area` is still that of the whole object in its original.
        """

    def __call__(
        self, images: Tensor, annotations: Annotations, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Annotations]:
        """`apply` with numbers drawn here, from torch's global stream without a `generator` (one of the CPU)."""
        uniform = torch.rand(len(images), self.draws, generator=generator)
        return self.apply(images, annotations, uniform.to(images.device))

    def check(self, images: Tensor, annotations: Annotations, uniform: Tensor) -> None:
        """Refuse what is no batch of bytes with objects, or comes with the wrong numbers.

        Raises:
            ValueError: images are not uint8 `(B, 1 or 3, H, W)`, or numbers or annotations are not of B images.
        """
        name = type(self).__name__
        check_images(name, images, uniform, self.draws)
        if len(annotations) != len(images):
            raise ValueError(
                f"{name}: annotations is of {len(annotations)} images and images of {len(images)}; give those of the "
                "same batch."
            )


@final
class BoxChain(BoxAugmentation):
    """Applies several box augmentations one after the other, each with numbers of its own.

    Args:
        stages: In the order in which they act; none leaves the batch as it is.

    Shape:
        uint8 `(B, C, H, W)` to what the last stage makes of it; `draws` is the sum of the stages'.

    Raises:
        ValueError: A stage is no `BoxAugmentation`; images are not uint8 `(B, 1 or 3, H, W)`.

    Example:
        >>> from lightning_vision.datamodules.detection import HorizontalFlip, ScaleJitter
        >>> BoxChain([ScaleJitter(), HorizontalFlip()]).draws
        5
    """

    def __init__(self, stages: list[BoxAugmentation]) -> None:
        if strangers := [type(stage).__name__ for stage in stages if not isinstance(stage, BoxAugmentation)]:
            raise ValueError(
                f"BoxChain: stages has {', '.join(strangers)} in it; give augmentations that move boxes; others go "
                "into PixelsOnly."
            )
        self.stages = list(stages)
        self.draws = sum(stage.draws for stage in stages)

    def apply(self, images: Tensor, annotations: Annotations, uniform: Tensor) -> tuple[Tensor, Annotations]:
        self.check(images, annotations, uniform)
        parts = uniform.split([stage.draws for stage in self.stages], dim=1)
        for stage, part in zip(self.stages, parts, strict=True):
            images, annotations = stage.apply(images, annotations, part)
        return images, annotations
