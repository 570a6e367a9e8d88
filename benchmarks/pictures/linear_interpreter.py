"""The picture of LinearInterpreterLogger: what pixels add to the class, and what a network answers most to."""

import numpy as np
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_vision.callbacks import LinearInterpreter, LinearInterpreterLogger
from lightning_vision.callbacks.explain.sheet import signed_picture

from ._trained_digits import digits, trained

__all__ = ["draw"]

COLUMNS = 6


class Told(LightningModule):
    """What the logger is given: a module that is called with images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def draw() -> Figure:
    """Six digits, the last of each class, and a network that read them all."""
    images, classes = digits()
    network = trained(classes, 10)
    chosen = [int((classes == digit).nonzero()[-1]) for digit in range(COLUMNS)]
    images, classes = images[chosen], classes[chosen]
    interpreter = LinearInterpreter(network)
    terms = interpreter.terms(images, classes)
    values, _, vectors = interpreter.singular_vectors(images)
    logger = LinearInterpreterLogger()
    maps, _ = logger.explain(Told(network), images, classes)
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots(3, COLUMNS)
    for index in range(COLUMNS):
        image = images[index].permute(1, 2, 0).expand(-1, -1, 3).numpy()
        pixels, bias = float(terms.contributions[index].sum()), float(terms.bias[index])
        axes[0, index].imshow(image)
        axes[1, index].imshow(logger.paint((255 * image).astype(np.uint8), maps[index].numpy()))
        axes[2, index].imshow(signed_picture(vectors[index, 0].sum(0).numpy()))
        axes[0, index].set_xlabel(f"is {int(classes[index])}")
        axes[1, index].set_xlabel(f"{pixels:+.2f} pixels\n{bias:+.2f} bias")
        axes[2, index].set_xlabel(f"s = {float(values[index, 0]):.2f}")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for name, row in zip(("image", "contributions", "singular vector"), axes, strict=True):
        row[0].set_ylabel(name)
    return figure
