"""What two thin layers save in a ViT, what their teacher costs in a fit, and what factorising takes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from lightning_vision.callbacks import LowRank, factorise

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Forward, and forward and backward, of a ViT-S on 32 pixels; fits of a ViT-Ti; making and factorising a ViT-S.

    Args:
        quick: One repetition, with narrow networks.
    """
    images = torch.randn(2 if quick else 8, 3, 32, 32)
    width, repetitions = (96, (1, 0)) if quick else (384, (5, 1))
    make = partial(_vit, width)
    ratios = (1.5, 2.0, 3.0)
    sides = {}
    for ratio in (None, *ratios):
        network = make()
        if ratio is not None:
            factorise(network, ratio)
        sides[f"forward {ratio}"] = unprepared(_answering(network, images))
        sides[f"step {ratio}"] = unprepared(_stepping(network, images))
    sides["made"] = unprepared(make)
    sides["factorised"] = lambda: partial(factorise, make(), 2.0)
    batches = batches_of(4 if quick else 16, 2 if quick else 3)
    fit = partial(fitting, lambda: _Answers(_vit(96)), batches, 1)
    sides["plain fit"] = fit()
    sides["silent fit"] = fit(partial(LowRank, distil_weight=0.0, perturbation_weight=0.0))
    sides["taught fit"] = fit(LowRank)
    times = {name: clocks["wall"] for name, clocks in take_turns(sides, *repetitions).items()}
    found = [
        Row.slowdown(f"{what} of a ViT, ratio {ratio:g}", "the dense one", times[f"{key} {ratio}"], dense, "wall", bar)
        for key, what in (("forward", "the forward"), ("step", "forward and backward"))
        for dense in [times[f"{key} None"]]
        for ratio, bar in zip(ratios, ("", "<= 1.00", "<= 0.90"), strict=True)
    ]
    found += [
        Row.slowdown("a fit with `LowRank`, no terms", "without", times["silent fit"], times["plain fit"], "wall"),
        Row.slowdown("a fit with `LowRank`, both terms", "without", times["taught fit"], times["plain fit"], "wall"),
        Row.slowdown("factorising a ViT", "timm's making it", times["factorised"], times["made"], "wall"),
    ]
    return found


class _Answers(Plain):
    """With a forward, by which the original is asked."""

    def forward(self, images: torch.Tensor) -> Any:
        return self.network(images)


def _vit(width: int) -> nn.Module:
    model: nn.Module = timm.create_model(
        "vit_small_patch16_224", img_size=32, patch_size=4, embed_dim=width, num_heads=6, depth=4, num_classes=10
    )
    return model


def _answering(network: nn.Module, images: torch.Tensor) -> Callable[[], Any]:
    def answer() -> None:
        with torch.inference_mode():
            network(images)

    return answer


def _stepping(network: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        network(images).square().mean().backward()

    return step
