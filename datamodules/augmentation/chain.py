"""Augmentations one after the other."""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from ._checks import check_images
from .augmentation import Augmentation

__all__ = ["Chain"]


@final
class Chain(Augmentation):
    """Applies several augmentations one after the other, each with numbers of its own.

    Args:
        stages: In the order in which they act; none leaves the images as they are.

    Shape:
        uint8 `(B, C, H, W)` to what the last stage makes of it; `draws` is the sum of the stages'.

    Raises:
        ValueError: A stage is no `Augmentation`; images are not uint8 `(B, 1 or 3, H, W)`.

    Example:
        >>> from lightning_vision.datamodules.augmentation import RandomErasing, ShiftCrop
        >>> chain = Chain([ShiftCrop(padding=4, flip=True), RandomErasing(prob=0.5)])
        >>> chain(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, stages: list[Augmentation]) -> None:
        if strangers := [type(stage).__name__ for stage in stages if not isinstance(stage, Augmentation)]:
            raise ValueError(
                f"Chain: stages has {', '.join(strangers)} in it; give augmentations, see `lightning_vision list`."
            )
        self.stages = list(stages)
        self.draws = sum(stage.draws for stage in stages)

    @property
    def moves_pixels(self) -> bool:
        return any(stage.moves_pixels for stage in self.stages)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        check_images("Chain", images, uniform, self.draws)
        for stage, part in self._parts(uniform):
            images = stage.apply(images, part)
        return images

    def source_boxes(self, uniform: Tensor, size: tuple[int, int]) -> Tensor:
        corner, extent = uniform.new_zeros(1, 2), uniform.new_tensor([[size[1], size[0]]])
        boxes = torch.cat([corner, extent], 1).repeat(len(uniform), 1)
        for stage, part in self._parts(uniform):
            inner = stage.source_boxes(part, size) / uniform.new_tensor([size[1], size[0]] * 2)
            corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
            boxes = torch.cat([corner + inner[:, :2] * extent, corner + inner[:, 2:] * extent], 1)
            size = stage.size_after(size)
        return boxes

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        for stage in self.stages:
            size = stage.size_after(size)
        return size

    def _parts(self, uniform: Tensor) -> Iterator[tuple[Augmentation, Tensor]]:
        """Each stage with its numbers."""
        return zip(self.stages, uniform.split([stage.draws for stage in self.stages], dim=1), strict=True)
