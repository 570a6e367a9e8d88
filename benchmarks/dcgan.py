"""A training step of DCGAN beside bare loops over the same networks."""

import torch

from lightning_vision.generation import DCGAN
from lightning_vision.generation.adversarial import AdversarialModule

from .adversarial_steps import Made, step_rows
from .side_by_side import Row

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train on 64 images of 32 pixels, with labels.

    Args:
        quick: One repetition with four images.
    """
    count = 4 if quick else 64
    torch.manual_seed(0)
    image, label = torch.rand(count, 3, 32, 32) * 2 - 1, torch.randint(10, (count,))

    def make() -> DCGAN:
        return DCGAN(channels=32, num_classes=10, image_size=32)

    def forge(model: AdversarialModule) -> Made:
        return image, model.network.generator(torch.randn(count, 100), label), label, 0.0

    return step_rows(f"`DCGAN`, {count} images of 32 pixels", make, (image, label), forge, quick)
