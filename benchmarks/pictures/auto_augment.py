"""A photograph and what AutoAugment, RandAugment, TrivialAugment and AugMix make of it."""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image
from torchvision.transforms.v2.functional import resize

from lightning_vision.datamodules.augmentation import AugMix, AutoAugment, RandAugment, TrivialAugment

__all__ = ["draw"]

SIDES = (40, 44)


def draw() -> Figure:
    """A row a method: the photograph and four changes of it, each by draws of its own, the operations below."""
    photograph = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)
    images = resize(photograph[:, :, 90:565], list(SIDES)).repeat(4, 1, 1, 1)
    methods = {
        "AutoAugment": AutoAugment("imagenet"),
        "RandAugment": RandAugment(num_ops=2, magnitude=9),
        "TrivialAugment": TrivialAugment(),
        "AugMix": AugMix(),
    }
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    axes = figure.subplots(len(methods), 1 + len(images))
    for row, (name, method) in zip(axes, methods.items(), strict=True):
        uniform = torch.rand(len(images), method.draws, generator=torch.Generator().manual_seed(8))
        plans = method.plans(uniform, SIDES)
        chains = len(plans) // len(images)
        below = [" + ".join(step for step, _ in plan) or "nothing" for plan in plans]
        names = below if chains == 1 else [f"{chains} chains"] * len(images)
        shown = [images[0], *method.apply(images, uniform)]
        for axis, image, text in zip(row, shown, ["as it is", *names], strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(text.replace(" + ", "\n"), fontsize=7)
        row[0].set_ylabel(name, fontsize=8)
    return figure
