"""The contract of an augmentation: a pure function of images and uniform random numbers."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Augmentation"]


class Augmentation(ABC):
    """Changes each image of a batch in its own way.

    All that is random about it are `draws` uniform numbers an image, which `apply` is given: the same images and
    numbers make the same batch, and no image is moved by the others of its batch. Datamodules draw them as a function
    of (seed, epoch, sample); called as a function it draws them itself.

    Example:
        >>> from lightning_vision.datamodules.augmentation import RandAugment
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> RandAugment()(images, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 32, 32])
    """

    draws: int
    """Uniform numbers that one image needs."""

    @property
    def moves_pixels(self) -> bool:
        """Whether a pixel may end elsewhere, so that boxes would have to move along."""
        return True

    @abstractmethod
    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        """The augmented images.

        Args:
            images: uint8 `(B, C, H, W)`, 0..255, C is 1 or 3; left alone.
            uniform: Random numbers in [0, 1), float32 `(B, draws)`, on the images' device.

        Returns:
            uint8 `(B, C, H', W')`; another size only where the augmentation is asked for one.
        """

    def source_boxes(self, uniform: Tensor, size: tuple[int, int]) -> Tensor:
        """The part of its image that each result shows: left, top, right and bottom, pixels of it, float32 `(B, 4)`.

        A mirrored result reads its box from right to left, so left is the larger of the two; a box may reach beyond the
        image, as its window does.

        Args:
            uniform: What `apply` takes, `(B, draws)`.
            size: Height and width of the images, pixels.

        Raises:
            ValueError: pixels move, and not as a box does.
        """
        if self.moves_pixels:
            raise ValueError(
                f"{type(self).__name__} moves pixels and tells no box of what an image still shows; give an "
                "augmentation that crops, mirrors, recolours or erases, as the policies light, standard and erasing do"
            )
        return uniform.new_tensor([0, 0, size[1], size[0]], dtype=torch.float32).repeat(len(uniform), 1)

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the results for images of `size`, pixels."""
        return size

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`apply` with numbers drawn here, from torch's global stream without a `generator` (one of the CPU)."""
        uniform = torch.rand(len(images), self.draws, generator=generator)
        return self.apply(images, uniform.to(images.device))
