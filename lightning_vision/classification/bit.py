"""Big Transfer, Kolesnikov et al. 2019, arXiv:1912.11370: how to fine-tune, chosen from the data's size alone.

The BiT-HyperRule of section 3.3: three schedules by the number of training images, two resolutions by the images' size,
MixUp for all but small data, and a classifier that starts at zero.
"""

from dataclasses import dataclass

import torch
from torch import nn

from lightning_vision.base.param_groups import required_classifier

__all__ = ["HyperRule", "hyperrule", "zero_classifier"]

SMALL, LARGE = 20_000, 500_000  # training images: from here on medium, and large
PIXELS = 96 * 96  # an image of fewer pixels is small


@dataclass(frozen=True)
class HyperRule:
    """What Big Transfer's rule chooses for a set of images.

    Args:
        resize: Side of the square to which training images are resized, pixels.
        crop: Side of the square that is cut out of it at random, pixels; images to be judged are resized to it.
        steps: Length of the training, optimizer steps.
        warmup: Optimizer steps in which the learning rate rises from 0.
        decays: Optimizer steps after which the learning rate falls to a tenth.
        mixup_alpha: Both parameters of MixUp's Beta distribution; 0 is without.
        lr: Highest learning rate of stochastic gradient descent at `batch_size`.
        momentum: Its momentum.
        batch_size: Images an optimizer step.
    """

    resize: int
    crop: int
    steps: int
    warmup: int
    decays: tuple[int, ...]
    mixup_alpha: float
    lr: float = 0.003
    momentum: float = 0.9
    batch_size: int = 512


def hyperrule(dataset_size: int, image_size: tuple[int, int]) -> HyperRule:
    """Choose schedule, resolution and MixUp for fine-tuning from the size of the data.

    Small are fewer than 20,000 training images, large at least 500,000; an image of fewer than 96 x 96 pixels is small.

    Args:
        dataset_size: Number of training images, at least 1.
        image_size: Height and width of a typical image, pixels.

    Raises:
        ValueError: a number is not above 0.

    Example:
        >>> rule = hyperrule(dataset_size=1000, image_size=(32, 32))
        >>> rule.resize, rule.crop, rule.steps, rule.decays, rule.mixup_alpha
        (160, 128, 500, (200, 300, 400), 0.0)

    Reference: Kolesnikov et al. 2019, arXiv:1912.11370

    Differs from the paper:
        The released code resizes larger images to 512 and crops 480, the paper's text says 448 and 384, which are here.
        The paper warms up for 500 steps and decays after 30, 60 and 90% of the steps; for small data, where that leaves
        nothing, the released code's 100, 200, 300 and 400 of 500 steps are here.

    See also:
        The callback `WarmUpSteps(milestones=rule.decays, warmup=rule.warmup)`, which gives the learning rate its curve.
    """
    if dataset_size < 1 or min(image_size) < 1:
        raise ValueError(f"hyperrule: {dataset_size} images of {image_size} pixels are no data; give numbers above 0")
    resize, crop = (160, 128) if image_size[0] * image_size[1] < PIXELS else (448, 384)
    if dataset_size < SMALL:
        return HyperRule(resize, crop, 500, 100, (200, 300, 400), 0.0)
    steps = 10_000 if dataset_size < LARGE else 20_000
    return HyperRule(resize, crop, steps, 500, tuple(steps * tenths // 10 for tenths in (3, 6, 9)), 0.1)


def zero_classifier(network: nn.Module) -> None:
    """Set the weights and biases of a timm network's classifier to zero, so that all classes start equally likely.

    Raises:
        ValueError: the network does not say what its classifier is.
    """
    head = required_classifier(network, "zero_head")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith(head):
                parameter.zero_()
