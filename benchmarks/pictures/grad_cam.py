"""The picture of GradCAMLogger: the sheet of a small network that learned for seconds to tell digits on photographs."""

from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_vision.callbacks import grad_cam
from lightning_vision.callbacks.explain.sheet import contact_sheet, overlay
from lightning_vision.datamodules import PlacedDigits

__all__ = ["draw"]

WIDTHS = [(3, 12, 1), (12, 24, 2), (24, 48, 2), (48, 48, 1)]
EPOCHS = 12


def draw() -> Figure:
    """Two rows of four: of each digit from 0 to 7 the first test image that the network tells."""
    data = PlacedDigits(canvas="photo")
    data.setup()
    mean, std = (torch.tensor(it)[:, None, None] for it in data.statistics)
    train, test = data.train_set, data.test_set
    assert train is not None and test is not None
    network = _trained(train, mean, std)
    fetched = test.fetch(torch.arange(len(test)))
    assert fetched.target is not None
    told = network((fetched.image / 255 - mean) / std).argmax(1) == fetched.target
    chosen = torch.stack([((fetched.target == label) & told).nonzero()[0, 0] for label in range(8)])
    images = (fetched.image[chosen] / 255 - mean) / std
    sure, said = network(images).detach().softmax(1).max(1)
    cells = []
    for index, heat in enumerate(grad_cam(network, images)):
        pixels = fetched.image[chosen[index]].permute(1, 2, 0).contiguous().numpy()
        caption = f"said {int(said[index])} ({float(sure[index]):.2f})\nis {index}"
        cells.append(([pixels, overlay(pixels, heat.numpy())], caption))
    sheet = contact_sheet(cells)
    figure = Figure(figsize=(sheet.shape[1] / 100, sheet.shape[0] / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet)
    axes.set_axis_off()
    return figure


def _trained(train: Any, mean: Tensor, std: Tensor) -> nn.Sequential:
    """Four convolutions, whose last maps are 8x8, and a pooled linear head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stages = [
            nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after, stride in WIDTHS
        ]
        network = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    order = torch.Generator().manual_seed(0)
    adam = torch.optim.AdamW(network.parameters())
    rates = torch.optim.lr_scheduler.OneCycleLR(adam, 0.01, epochs=EPOCHS, steps_per_epoch=len(train) // 64)
    for epoch in range(EPOCHS):
        for index in torch.randperm(len(train), generator=order).split(64)[:-1]:
            batch = train.fetch(index, epoch)
            loss = F.cross_entropy(network((batch.image / 255 - mean) / std), batch.target)
            adam.zero_grad()
            loss.backward()
            adam.step()
            rates.step()
    return network.eval()
