"""What it costs to ask each criterion of pruning once, beside magnitude, and what movement adds to each step."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from lightning_vision.backbones import create
from lightning_vision.callbacks.pruning._criterion import Criterion, Moment
from lightning_vision.callbacks.pruning.magnitude import Magnitude
from lightning_vision.callbacks.pruning.movement import Movement
from lightning_vision.callbacks.pruning.rate_distortion import RateDistortion
from lightning_vision.callbacks.pruning.reactivation import Reactivation
from lightning_vision.callbacks.pruning.synflow import SynFlow

from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]

SPARSITY = 0.9


def rows(quick: bool) -> list[Row]:
    """Ask for a tenth of the weights of `resnet20_cifar`, with a batch of 32 images where one is needed.

    Args:
        quick: One repetition on `resnet8_cifar` with two images, two rounds of SynFlow and one rate.
    """
    torch.manual_seed(0)
    network = create("resnet8_cifar" if quick else "resnet20_cifar", num_classes=10, in_channels=3)
    images = torch.randn(2 if quick else 32, 3, 32, 32)
    moment = _moment(network, images)
    total = sum(weight.numel() for weight in moment.weights.values())
    count = total - round(SPARSITY * total)
    parameters = {name: it for name, it in network.named_parameters() if name in moment.weights}
    movement = Movement()

    def step() -> None:
        network.zero_grad()
        F.cross_entropy(network(images), torch.zeros(len(images), dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]

    step()
    movement.observe(parameters)
    criteria: dict[str, Criterion] = {
        "`Magnitude`": Magnitude(),
        "`Movement`": movement,
        "`SynFlow`, 100 rounds": SynFlow(2 if quick else 100),
        "`RateDistortion`, 10 rates": RateDistortion((0.5,)) if quick else RateDistortion(),
        "`Reactivation` of half, and `Magnitude`": Reactivation(Magnitude(), 0.5),
    }
    sides: dict[str, Side] = {
        "torch": partial(_torch, network),
        "step": unprepared(step),
        "observe": unprepared(lambda: movement.observe(parameters)),
        **{name: unprepared(partial(it.keep, moment, count)) for name, it in criteria.items()},
    }
    seconds = {name: times["cpu"] for name, times in take_turns(sides, *((1, 0) if quick else (5, 1))).items()}
    theirs = "torch's `prune.global_unstructured`"
    return [
        *(Row.slowdown(name, theirs, seconds[name], seconds["torch"], "cpu") for name in criteria),
        Row.slowdown(
            "`Movement` sees a step", "forward and backward", seconds["observe"], seconds["step"], "cpu", "<= 0.05"
        ),
    ]


def _moment(network: Any, images: torch.Tensor) -> Moment:
    weights = {name: it.detach() for name, it in network.named_parameters() if it.ndim > 1}
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    return Moment(0, weights, kept, network, images, torch.Generator())


def _torch(network: nn.Module) -> Callable[[], None]:
    layers = [it for it in copy.deepcopy(network).modules() if isinstance(it, (nn.Conv2d, nn.Linear))]
    pairs = [(layer, "weight") for layer in layers]
    return partial(prune.global_unstructured, pairs, prune.L1Unstructured, amount=SPARSITY)
