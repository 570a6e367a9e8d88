"""What noise on the style of features costs: one layer beside the formula as it stands, and a training of a ResNet."""

from collections.abc import Callable
from functools import partial

import timm
import torch
from torch import Tensor
from torch.nn.functional import instance_norm

from lightning_vision.callbacks import StyleAugment
from lightning_vision.callbacks.mixing.feature_style import restyle

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Move the style of maps (32, 64, 56, 56), with gradient; train a ResNet-18 on 32 pixels.

    Args:
        quick: One repetition of few.
    """
    size = 2 if quick else 32
    maps = torch.randn(size, 64, 56, 56, requires_grad=True)
    shift, scale = torch.randn(2, size, 64, 1, 1).mul_(0.1).requires_grad_()
    torch.testing.assert_close(restyle(maps, shift, scale), _by_the_formula(maps, shift, scale), atol=1e-4, rtol=1e-4)
    batches = batches_of(2 if quick else 16, 1 if quick else 4)
    sides: dict[str, Side] = {
        "ours": unprepared(_moving(partial(restyle, shift=shift, scale=scale), maps)),
        "formula": unprepared(_moving(partial(_by_the_formula, shift=shift, scale=scale), maps)),
        "torch": unprepared(_moving(instance_norm, maps)),
        "plain": fitting(_resnet, batches, 1),
        "always": fitting(_resnet, batches, 1, partial(StyleAugment, p=1.0)),
        "half": fitting(_resnet, batches, 1, partial(StyleAugment, p=0.5)),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (11, 1)).items()}
    what, trained = "moving the style of a layer, with gradient", "training ResNet-18, five layers"
    return [
        Row.slowdown(what, "the authors' formula, line by line", times["ours"], times["formula"], "cpu"),
        Row.slowdown(what, "torch's `instance_norm`, which moves none", times["ours"], times["torch"], "cpu"),
        Row.slowdown(f"{trained}, always", "timm's ResNet-18", times["always"], times["plain"], "cpu"),
        Row.slowdown(f"{trained}, half of the time", "timm's ResNet-18", times["half"], times["plain"], "cpu"),
    ]


def _resnet() -> Plain:
    module = Plain(timm.create_model("resnet18", num_classes=10))
    module.example_input_array = torch.zeros(1, 3, 32, 32)
    module.forward = module.network.forward  # type: ignore[method-assign]  # `Plain` has none
    return module


def _moving(move: Callable[[Tensor], Tensor], maps: Tensor) -> Callable[[], None]:
    def run() -> None:
        move(maps).sum().backward()

    return run


def _by_the_formula(maps: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    mean = maps.mean(dim=[2, 3], keepdim=True)
    std = (maps.var(dim=[2, 3], keepdim=True) + 1e-6).sqrt()
    return (maps - mean) / std * (std + scale) + (mean + shift)
