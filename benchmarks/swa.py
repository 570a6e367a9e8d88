"""What an equal average of the weights costs: a training beside Lightning's own, one update beside torch's."""

from functools import partial

import timm
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn, update_bn

from lightning_vision.callbacks import SWA
from lightning_vision.callbacks.averaging.swa import swa_share

from .fits import Plain, batches_of, fitting
from .logging_tax import cnn
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]

EPOCHS = 4


def rows(quick: bool) -> list[Row]:
    """Train a small network with batch norm for four epochs, two of them averaged, and update averages alone.

    Args:
        quick: One repetition of few steps and updates.
    """
    return [*_training_rows(*(2, 1, 0) if quick else (60, 21, 1)), *_update_rows(*(2, 1, 0) if quick else (50, 15, 1))]


def _training_rows(steps: int, repetitions: int, warmup: int) -> list[Row]:
    """Lightning's trains an epoch more, in which it only measures; ours measures in a pass of its own."""
    batches = batches_of(32, steps)
    side = partial(fitting, _module, batches, EPOCHS)
    lightnings = partial(StochasticWeightAveraging, swa_lrs=0.01, swa_epoch_start=0.5, annealing_epochs=1)
    sides = {
        "plain": side(),
        "ours": side(partial(SWA, start_fraction=0.5)),
        "averaged": side(partial(SWA, start_fraction=0.5, bn_batches=0)),
        "lightnings": side(lightnings),
        "update_bn": lambda: partial(update_bn, batches, _module().network),
    }
    times = {name: it["cpu"] for name, it in take_turns(sides, repetitions, warmup).items()}
    both = [a + b for a, b in zip(times["averaged"], times["update_bn"], strict=True)]
    return [
        Row.slowdown("a training, `SWA`", "`StochasticWeightAveraging`", times["ours"], times["lightnings"], "cpu"),
        Row.slowdown("a training, `SWA`", "without an average", times["ours"], times["plain"], "cpu"),
        Row.slowdown("a training, `SWA(bn_batches=0)`", "without an average", times["averaged"], times["plain"], "cpu"),
        Row.slowdown("a training, `SWA`", "the line above and torch's `update_bn`", times["ours"], both, "cpu"),
    ]


def _module() -> Plain:
    torch.manual_seed(0)
    return Plain(cnn())


def _update_rows(updates: int, repetitions: int, warmup: int) -> list[Row]:
    network = timm.create_model("resnet18")
    current: list[Tensor] = list(network.parameters())
    own = [it.detach().clone() for it in current]
    theirs = AveragedModel(network, multi_avg_fn=get_swa_multi_avg_fn())

    def update() -> None:
        for number in range(updates):
            with torch.no_grad():
                torch._foreach_lerp_(own, current, swa_share(number))

    def torchs_update() -> None:
        for _ in range(updates):
            theirs.update_parameters(network)

    times = take_turns({"ours": unprepared(update), "torch": unprepared(torchs_update)}, repetitions, warmup)
    seconds = {side: [it / updates for it in found["cpu"]] for side, found in times.items()}
    return [
        Row.slowdown(
            "one update, ResNet-18", "torch's `AveragedModel`, foreach", seconds["ours"], seconds["torch"], "cpu"
        )
    ]
