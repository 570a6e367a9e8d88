"""What looking for leaks costs once: beside a gradient a sample by torch, and a fit with and without the check."""

import torch
import torch.nn.functional as F

from lightning_vision.backbones import create
from lightning_vision.callbacks import BatchLeakCheck
from lightning_vision.callbacks.verification.batch_leak_check import batch_leaks

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Look at `resnet20_cifar` with 32 images, and train it for 50 steps.

    Args:
        quick: One repetition of 4 images and two steps.
    """
    size, steps = (4, 2) if quick else (32, 50)
    batches = batches_of(size, steps)
    images, labels = batches[0]
    network = create("resnet20_cifar", num_classes=10, in_channels=3).eval()

    def gradients() -> list[bool]:
        given = images.clone().requires_grad_()
        leaks = []
        for number, row in enumerate(network(given)):
            (slope,) = torch.autograd.grad(row.sum(), given, retain_graph=True)
            leaks.append(bool(torch.cat([slope[:number], slope[number + 1 :]]).any()))
        return leaks

    def step() -> None:
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()

    def plain() -> Plain:
        torch.manual_seed(0)
        return Plain(create("resnet20_cifar", num_classes=10, in_channels=3))

    sides: dict[str, Side] = {
        "ours": unprepared(lambda: batch_leaks(lambda: network(images), network)),
        "gradients": unprepared(gradients),
        "step": unprepared(step),
        "plain": fitting(plain, batches, 1),
        "checked": fitting(plain, batches, 1, BatchLeakCheck),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what = f"all layers of `resnet20_cifar`, {size} images"
    return [
        Row.slowdown(what, "its logits alone, by `torch.autograd.grad`", times["ours"], times["gradients"], "cpu"),
        Row.slowdown(what, "a training step", times["ours"], times["step"], "cpu"),
        Row.slowdown(f"a fit of {steps} steps", "without it", times["checked"], times["plain"], "cpu"),
    ]
