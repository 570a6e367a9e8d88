"""GeodesicMix: one matching beside POT's transport, and a training beside plain and mixed ones."""

from collections.abc import Callable
from functools import partial

import ot
import timm
import torch
from torch import Tensor

from lightning_vision.callbacks import GeodesicMix, MixUp, optimal_matching

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Match two sets of 64 images (3, 32, 32); train a ResNet-18 on batches of 16 of them.

    Args:
        quick: One repetition of few.
    """
    size = 8 if quick else 64
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, size, 3 * 32 * 32, generator=generator)
    even = torch.full((size,), 1 / size, dtype=torch.float64)
    assert abs(optimal_matching(one, other).cost - float(_by_pot(one, other, even))) < 1e-3
    batches = batches_of(4 if quick else 16, 1 if quick else 4)
    sides: dict[str, Side] = {
        "ours": unprepared(partial(optimal_matching, one, other)),
        "pot": unprepared(partial(_by_pot, one, other, even)),
        "plain": fitting(_resnet, batches, 1),
        "mixup": fitting(_resnet, batches, 1, partial(MixUp, alpha=1.0)),
        "searched": fitting(_resnet, batches, 1, partial(GeodesicMix, reg_weight=0.0)),
        "smooth": fitting(_resnet, batches, 1, GeodesicMix),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (11, 1)).items()}
    trained = "training ResNet-18, five points"
    return [
        Row.slowdown(f"matching {size} images with {size}", "POT, `ot.emd2`", times["ours"], times["pot"], "cpu"),
        Row.slowdown(trained, "timm's ResNet-18", times["searched"], times["plain"], "cpu"),
        Row.slowdown(trained, "`MixUp`", times["searched"], times["mixup"], "cpu"),
        Row.slowdown(f"{trained}, smooth along them", "timm's ResNet-18", times["smooth"], times["plain"], "cpu"),
    ]


def _resnet() -> Plain:
    return Plain(timm.create_model("resnet18", num_classes=10))


def _by_pot(one: Tensor, other: Tensor, even: Tensor) -> float:
    transport: Callable[..., float] = ot.emd2
    return transport(even.numpy(), even.numpy(), ot.dist(one.double().numpy(), other.double().numpy()))
