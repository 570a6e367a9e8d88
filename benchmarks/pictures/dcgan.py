"""The picture of DCGAN: what the generator makes of the same ten draws as the two networks learn."""

import torch
from matplotlib.figure import Figure
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_vision.generation import DCGAN

from ._made_digits import grid_of
from ._trained_digits import digits

__all__ = ["draw"]

STOPS = (0, 100, 250, 700)


def draw() -> Figure:
    """A row a stage of the training, a column a label; weights are averages."""
    images, labels = digits()
    rows = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DCGAN(channels=32, levels=2, num_classes=10, in_channels=1, image_size=8)
        average = AveragedModel(model.network, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=True)
        adams = [
            torch.optim.Adam(it.parameters(), lr=1e-3, betas=(0.5, 0.999))
            for it in (model.network.discriminator, model.network.generator)
        ]
        for step in range(STOPS[-1] + 1):
            if step in STOPS:
                trained, model.network = model.network, average.module
                rows.append((f"{step} steps", model.sample(10)))
                model.network = trained
            batch = torch.randint(len(images), (64,))
            forgery = model.forge((images[batch] * 2 - 1, labels[batch]), step)
            for adam, terms in zip(adams, (model.discriminator_terms, model.generator_terms), strict=True):
                model.zero_grad()
                next(iter(terms(forgery).values())).backward()
                adam.step()
            average.update_parameters(model.network)
    return grid_of(rows, [str(digit) for digit in range(10)])
