"""The picture of FrozenPartCheck: what becomes of a frozen teacher whose batch norms run in training mode."""

import copy

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_vision.callbacks.verification._tensors import fingerprints

from ._trained_digits import digits

__all__ = ["draw"]

STEPS = 60


def draw() -> Figure:
    """The teacher's accuracy as it is asked about inverted images, resting and in training mode; its weights stand."""
    images, labels = digits()
    teacher = _trained(images, labels)
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for resting in (True, False):
        accuracies, first = _asked(copy.deepcopy(teacher), images, labels, resting)
        way = "evaluation" if resting else "training"
        axes.plot(accuracies, linewidth=2, label=f"frozen, in {way} mode")
        if first is not None:
            axes.axvline(first, color="C3", linestyle=":", label=f"FrozenPartCheck, after step {first}")
    axes.set(xlabel="optimizer steps of the student", ylabel="teacher's accuracy, validation", xlim=(0, STEPS))
    axes.set_ylim(0.8, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    return figure


def _trained(images: Tensor, labels: Tensor) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
        conv += [nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
        network = nn.Sequential(*conv, nn.Flatten(), nn.Linear(256, 10))
        adam = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(300):
            batch = torch.randint(1000, (64,))
            adam.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            adam.step()
    return network.requires_grad_(False).eval()


@torch.no_grad()
def _asked(teacher: nn.Sequential, images: Tensor, labels: Tensor, resting: bool) -> tuple[list[float], int | None]:
    """Its accuracy before each step and after the last, and after which step its fingerprint first changes."""
    generator = torch.Generator().manual_seed(0)
    tensors = [*teacher.parameters(), *teacher.buffers()]
    then, first, accuracies = fingerprints(tensors), None, []
    for step in range(STEPS + 1):
        if first is None and not torch.equal(fingerprints(tensors), then):
            first = step
        teacher.eval()
        accuracies.append(float((teacher(images[1000:]).argmax(1) == labels[1000:]).float().mean()))
        teacher.train(not resting)
        batch = torch.randint(1000, (64,), generator=generator)
        # As a student's augmentation makes them.
        teacher(1 - images[batch])
    return accuracies, first
