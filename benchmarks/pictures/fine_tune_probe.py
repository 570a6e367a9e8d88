"""The picture of FineTuneProbe: what a network that has seen other digits is worth at few labels."""

import torch
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from torch import Generator, Tensor

from lightning_vision.callbacks.probes._fine_tuning import fine_tuned, from_scratch, own_tensors
from lightning_vision.callbacks.probes.linear_heads import batches_of_an_epoch, few_a_class

from ._trained_digits import digits, trained

__all__ = ["draw"]

COUNTS, STEPS, BANK = (1, 2, 5, 10, 20), 60, 1000


class _Network(LightningModule):
    def __init__(self, network: torch.nn.Sequential) -> None:
        super().__init__()
        self.network = network

    def features(self, image: Tensor) -> Tensor:
        found: Tensor = self.network(image)
        return found


def draw() -> Figure:
    """A network that learned to tell 0 to 4 from 5 to 9, fine-tuned to tell all ten, and the same from scratch."""
    images, labels = digits()
    module = _Network(trained((labels > 4).long(), 2)[:-1])
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, begin in (("from what it knows", own_tensors), ("from scratch", from_scratch)):
        shares = []
        for count in COUNTS:
            random = Generator().manual_seed(0)
            chosen = few_a_class(labels[:BANK], count, random)
            batches = [it for _ in range(STEPS) for it in batches_of_an_epoch(len(chosen), 256, random)]
            with torch.random.fork_rng():
                torch.manual_seed(0)
                tensors = begin(module)
            module.train()
            tuned = fine_tuned("It", module, tensors, images[chosen], labels[chosen], 10, 0.05, batches, random)
            module.eval()
            right = tuned.classes(module, images[BANK:]) == labels[BANK:]
            shares.append(float(right.double().mean()))
        axes.plot(COUNTS, shares, "-o", label=name)
    axes.set(xlabel="labels of each class", ylabel="accuracy on 797 others", xscale="log", xticks=COUNTS)
    axes.set_xticks(COUNTS, [str(it) for it in COUNTS])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
