"""A SAM step in the Trainer against two plain steps there, and against another SAM in a loop written by hand."""

from collections.abc import Callable
from functools import partial

import pytorch_optimizer
import torch
import torch.nn.functional as F
from torch import nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import SAM

from .fits import Batches, Plain, batches_of, fitting
from .logging_tax import cnn
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

RHO = 0.05


def rows(quick: bool) -> list[Row]:
    """Train a ResNet-20, whose arithmetic outweighs any loop, and a small network, where the loop shows.

    Args:
        quick: One repetition of one step.
    """
    resnet = partial(create, "resnet20_cifar", num_classes=10, in_channels=3)
    return [
        *_rows("`resnet20_cifar`, batch 64", resnet, batches_of(64, 1 if quick else 8), *(1, 0) if quick else (9, 1)),
        *_rows("CNN-16, batch 32", cnn, batches_of(32, 1 if quick else 100), *(1, 0) if quick else (9, 1), bars=False),
    ]


def _rows(
    what: str, network: Callable[[], nn.Module], batches: Batches, repetitions: int, warmup: int, bars: bool = True
) -> list[Row]:
    ends: dict[str, nn.Module] = {}

    def start() -> nn.Module:
        torch.manual_seed(0)
        return network()

    def kept(side: str, prepare: Side) -> Side:
        def prepare_kept() -> Callable[[], None]:
            run = prepare()
            return lambda: ends.update({side: run()})

        return prepare_kept

    module = lambda: Plain(start())  # noqa: E731
    sides = {
        "two plain": fitting(module, batches, 2),
        "by hand": kept("by hand", lambda: partial(_by_hand, start(), batches)),
        "ours": kept("ours", fitting(module, batches, 1, partial(SAM, rho=RHO))),
    }
    cpu = {name: clocks["cpu"] for name, clocks in take_turns(sides, repetitions, warmup).items()}
    ours, peer = ends["ours"].network, ends["by hand"]
    torch.testing.assert_close(dict(ours.named_parameters()), dict(peer.named_parameters()))
    limits = ("<= 1.05", "<= 1.00") if bars else ("", "")
    return [
        Row.slowdown(
            f"`SAM`, {what}", "two plain steps in the Trainer", cpu["ours"], cpu["two plain"], "cpu", limits[0]
        ),
        Row.slowdown(f"`SAM`, {what}", "pytorch-optimizer's, by hand", cpu["ours"], cpu["by hand"], "cpu", limits[1]),
    ]


def _by_hand(network: nn.Module, batches: Batches) -> nn.Module:
    optimizer = pytorch_optimizer.SAM(network.parameters(), torch.optim.SGD, rho=RHO, lr=0.01, momentum=0.9)
    for images, targets in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(images), targets).backward()
        optimizer.first_step(zero_grad=True)
        F.cross_entropy(network(images), targets).backward()
        optimizer.second_step()
    return network
