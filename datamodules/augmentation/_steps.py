"""Operations one after the other, each image of a batch with its own."""

from abc import abstractmethod

import torch
from torch import Tensor

from ._affine import GEOMETRIC, Fill, Interpolation, channel_values
from ._by_sample import take_steps
from ._checks import check_images
from .augmentation import Augmentation
from .operations import OPERATIONS

__all__ = ["Plan", "Planned", "apply_by_batch", "apply_by_sample", "apply_plans"]

# The steps of one image: names of operations and magnitudes.
Plan = list[tuple[str, float]]


def apply_plans(images: Tensor, plans: list[Plan], interpolation: Interpolation, fill: Fill) -> Tensor:
    """Take each image through its steps.

    Args:
        images: uint8 `(B, C, H, W)`; left alone.
        plans: The steps of each image.
        interpolation: `nearest` or `bilinear`, of the operations that move pixels.
        fill: What they let in from outside, 0..255, one for all channels or one a channel.
    """
    # On a CPU a loop costs less than passes over memory, and one image stays in its cache.
    apply = apply_by_sample if images.device.type == "cpu" else apply_by_batch
    return apply(images, plans, interpolation, fill)


def apply_by_sample(images: Tensor, plans: list[Plan], interpolation: Interpolation, fill: Fill) -> Tensor:
    """`apply_plans`, image after image, on the CPU."""
    values = channel_values(fill, images.shape[1])
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    for source, sink, plan in zip(images.contiguous().numpy(), result.numpy(), plans, strict=True):
        sink[:] = take_steps(source, plan, interpolation, values)
    return result


def apply_by_batch(images: Tensor, plans: list[Plan], interpolation: Interpolation, fill: Fill) -> Tensor:
    """`apply_plans`, all images that have the same operation next at a time, on any device."""
    images = images.clone()
    for step in range(max(map(len, plans), default=0)):
        groups: dict[str, list[int]] = {}
        for number, plan in enumerate(plans):
            if step < len(plan):
                groups.setdefault(plan[step][0], []).append(number)
        for name, members in groups.items():
            chosen = torch.tensor(members, device=images.device)
            magnitude = torch.tensor([plans[number][step][1] for number in members], device=images.device)
            settings = {"interpolation": interpolation, "fill": fill} if name in GEOMETRIC else {}
            images[chosen] = OPERATIONS[name](images[chosen], magnitude, **settings)
    return images


class Planned(Augmentation):
    """An augmentation that says which operations each image goes through, as a plan."""

    interpolation: Interpolation
    fill: Fill

    @abstractmethod
    def plans(self, uniform: Tensor, sides: tuple[int, int]) -> list[Plan]:
        """The steps that each image takes.

        Args:
            uniform: What `apply` takes, `(B, draws)`.
            sides: Height and width, pixels.

        Returns:
            For each image names of operations and magnitudes.
        """

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        check_images(type(self).__name__, images, uniform, self.draws)
        plans = self.plans(uniform, (images.shape[2], images.shape[3]))
        return apply_plans(images, plans, self.interpolation, self.fill)
