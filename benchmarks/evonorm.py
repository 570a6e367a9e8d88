"""What EvoNorm costs: a step of a swapped network against batch norm and against timm's own, and the swap itself."""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import EvoNorm2dS0
from torch import nn

from lightning_vision.callbacks import swap_norms

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Forward and backward of ResNet-18 on 32 pixels; one swap of ResNet-50.

    Args:
        quick: One repetition of one step.
    """
    images = torch.randn(2 if quick else 16, 3, 32, 32)
    networks = {
        "batch norm": timm.create_model("resnetv2_18", num_classes=10),
        "timm": timm.create_model("resnetv2_18", num_classes=10, norm_layer=partial(EvoNorm2dS0, groups=32)),
        "S0": _swapped("S0"),
        "B0": _swapped("B0"),
    }
    sides = {name: unprepared(_stepping(it, images)) for name, it in networks.items()}
    large = "resnet18" if quick else "resnet50"
    sides["made"] = unprepared(lambda: timm.create_model(large))
    sides["swap"] = lambda: partial(swap_norms, timm.create_model(large))
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    what = "a step, ResNet-18 V2, EvoNorm"
    return [
        Row.slowdown(f"{what}-S0", "timm's `EvoNorm2dS0` as made", times["S0"], times["timm"], "cpu", "<= 1.05"),
        Row.slowdown(f"{what}-S0", "timm's batch norm and ReLU", times["S0"], times["batch norm"], "cpu"),
        Row.slowdown(f"{what}-B0", "timm's batch norm and ReLU", times["B0"], times["batch norm"], "cpu"),
        Row.slowdown("swapping ResNet-50", "timm's making it", times["swap"], times["made"], "cpu", "<= 1.00"),
    ]


def _swapped(variant: Any) -> nn.Module:
    network: nn.Module = timm.create_model("resnetv2_18", num_classes=10)
    swap_norms(network, variant)
    return network


def _stepping(network: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        network(images).square().mean().backward()

    return step
