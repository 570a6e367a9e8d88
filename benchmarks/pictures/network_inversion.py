"""The picture of network inversion: a photograph made anew from deeper and deeper layers."""

import torch
from matplotlib.figure import Figure

from lightning_vision.backbones import create
from lightning_vision.explain.network_inversion import invert_layer
from lightning_vision.images import normalise

from ._photographs import temple
from ._trained_digits import rows_of

__all__ = ["draw"]

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def draw() -> Figure:
    """A ResNet-8 as it is before training, whose layers lose what their shapes and rectifiers lose."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create("resnet8_cifar", num_classes=10, in_channels=3)
    image = normalise(temple(48)[None], MEAN, STD)
    shown, told = [image], ["original"]
    for layer in ("stem", "stages.0", "stages.1", "stages.2", "head"):
        found = invert_layer(network, image, layer, steps=150, mean=MEAN, std=STD)
        shown.append(found.images)
        told.append(f"{layer}\nerror {found.error.item():.3f}")
    return rows_of([("", torch.cat(shown) * 0.25 + 0.5, told)])
