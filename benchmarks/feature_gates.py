"""What gates with a pass of their own cost: an epoch with them against one without, and against passes by hand."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.optim import Adam

from lightning_vision.backbones import create
from lightning_vision.callbacks import FeatureGates
from lightning_vision.callbacks.pruning.feature_gates import residual_branches

from .fits import Batches, Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


class Gate(nn.Module):
    """A gate as a parametrisation of a batch norm's weight or bias."""

    def __init__(self, raw: nn.Parameter) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, value: Tensor) -> Tensor:
        return value * self.raw.sigmoid()


def network() -> Plain:
    """ResNet-20 for small images."""
    torch.manual_seed(0)
    return Plain(create("resnet20_cifar", num_classes=10, in_channels=3))


def rows(quick: bool) -> list[Row]:
    """Train `resnet20_cifar` on batches of 32 images, with a gate for each channel of its nine branches.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(32, 2 if quick else 8)
    sides: dict[str, Side] = {
        "plain": fitting(network, batches, 1),
        "hand": partial(partial, _by_hand, batches),
        "fixed": fitting(network, batches, 1, partial(FeatureGates, gate_lr=0.0)),
        "ours": fitting(network, batches, 1, FeatureGates),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    what, hand = "an epoch with `FeatureGates`", "two passes by hand, gates by `register_parametrization`"
    return [
        Row.slowdown(what, "without it", times["ours"], times["plain"], "cpu", "<= 2.00"),
        Row.slowdown(what, hand, times["ours"], times["hand"], "cpu", "<= 1.05"),
        Row.slowdown("an epoch with fixed gates", "without it", times["fixed"], times["plain"], "cpu", "<= 1.10"),
    ]


def _by_hand(batches: Batches) -> nn.Module:
    module = network()
    optimizer = module.configure_optimizers()
    raws = []
    for name in residual_branches(module):
        layer = module.get_submodule(name)
        raw = nn.Parameter(torch.zeros(len(layer.get_parameter("weight"))), requires_grad=False)
        for it in ("weight", "bias"):
            register_parametrization(layer, it, Gate(raw))
        raws.append(raw)
    gates = Adam(raws, lr=0.01)
    module.train()
    for image, target in batches:
        optimizer.zero_grad()
        F.cross_entropy(module.network(image), target).backward()
        optimizer.step()
        for raw in raws:
            raw.requires_grad_(True)
        for raw, gradient in zip(
            raws, torch.autograd.grad(F.cross_entropy(module.network(image), target), raws), strict=True
        ):
            raw.requires_grad_(False)
            raw.grad = gradient
        gates.step()
    return module
