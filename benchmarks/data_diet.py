"""What a data diet costs and saves, and GraNd of a batch beside a loop of backward passes."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad

from lightning_vision.backbones import create
from lightning_vision.callbacks import DataDiet
from lightning_vision.callbacks.curation.scores import grand

from .fits import epochs_on_digits
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train on digits with and without; score 64 images by both means.

    Args:
        quick: One repetition of two epochs.
    """
    epochs, repetitions, warmup = (2, 1, 0) if quick else (8, 7, 1)
    scored = partial(DataDiet, keep_fraction=1.0, score_epoch=1, network="network")
    sides = {
        "none": epochs_on_digits(epochs),
        "scored": epochs_on_digits(epochs, scored),
        "ours": epochs_on_digits(epochs, partial(DataDiet, score_epoch=1, network="network")),
    }
    times = take_turns(sides, repetitions, warmup)
    torch.manual_seed(0)
    network = create("resnet8_cifar", num_classes=10, in_channels=1).eval()
    images, targets = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
    weights = list(network.parameters())

    def loop() -> Tensor:
        norms = []
        for image, target in zip(images, targets, strict=True):
            gradients = grad(F.cross_entropy(network(image[None]), target[None]), weights)
            norms.append(torch.cat([it.flatten() for it in gradients]).norm())
        return torch.stack(norms)

    scores = {"ours": unprepared(lambda: grand(network, images, targets)), "loop": unprepared(loop)}
    scoring = take_turns(scores, repetitions, warmup)
    none, only, ours = (times[side]["cpu"] for side in sides)
    return [
        Row.slowdown(f"{epochs} epochs, samples scored by EL2N", "without", only, none, "cpu"),
        Row.slowdown(f"{epochs} epochs with `DataDiet`", "without", ours, none, "cpu"),
        Row.slowdown("GraNd of 64 images", "a loop of `grad`", scoring["ours"]["cpu"], scoring["loop"]["cpu"], "cpu"),
    ]
