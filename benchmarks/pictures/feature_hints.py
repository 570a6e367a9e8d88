"""The picture of feature hints: what a teacher's layer says of digits, and what a thin student's is brought to say."""

import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_vision.callbacks import HintAdapter, hint_loss

from ._trained_digits import digits, trained

__all__ = ["draw"]

STEPS, SHOWN = 150, 6


def draw() -> Figure:
    """Six digits, one of a teacher's 32 channels, the same of a student of 6 through its adapter, and the loss."""
    images, labels = digits()
    teacher = trained(labels, 10)[:3]
    with torch.no_grad():
        hints = teacher(images)
    channel = int(hints.var(dim=(0, 2, 3)).argmax())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1))
        adapter = HintAdapter(torch.Size([2, 6, 8, 8]), hints.shape)
        adam = torch.optim.Adam([*student.parameters(), *adapter.parameters()], 0.01)
        before, losses = adapter(student(images[:SHOWN])).detach(), list[float]()
        for _ in range(STEPS):
            batch = torch.randint(len(images), (32,))
            adam.zero_grad()
            loss = hint_loss(adapter(student(images[batch])), hints[batch])
            loss.backward()
            adam.step()
            losses.append(loss.item())
    after = adapter(student(images[:SHOWN])).detach()
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    maps, curve = figure.subfigures(1, 2, width_ratios=(1.6, 1))
    rows = {"the teacher": hints[:SHOWN], "student, adapted,\nat first": before, "after": after}
    grid = maps.subplots(1 + len(rows), SHOWN)
    for axes, image in zip(grid[0], images, strict=False):
        axes.imshow(image[0], cmap="gray_r")
    bound = float(hints[:SHOWN, channel].abs().max())
    for line, (name, found) in zip(grid[1:], rows.items(), strict=True):
        for axes, features in zip(line, found, strict=True):
            axes.imshow(features[channel], cmap="coolwarm", vmin=-bound, vmax=bound)
        line[0].set_ylabel(name, fontsize=9)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    axes = curve.subplots()
    axes.plot(losses, "C3")
    axes.set(xlabel="optimizer steps of student and adapter", ylabel="hint_loss, all 32 channels", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    return figure
