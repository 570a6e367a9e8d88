"""What looking for NaN costs in every step, beside torch's anomaly detection, and what finding its maker costs."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lightning_vision.backbones import create
from lightning_vision.callbacks import NonFiniteCheck

from .fits import Plain, batches_of, fitting
from .logging_tax import cnn
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


class Anomalies(Callback):
    """torch's own: the backward pass is checked function by function, and remembers where each was called."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        torch.autograd.set_detect_anomaly(True)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        torch.autograd.set_detect_anomaly(False)


def rows(quick: bool) -> list[Row]:
    """Train `resnet20_cifar` on batches of 64, and a small network, where what a step costs beside arithmetic shows.

    Args:
        quick: One repetition of two steps.
    """
    resnet = partial(create, "resnet20_cifar", num_classes=10, in_channels=3)
    images, few = batches_of(*(4, 2) if quick else (64, 15)), batches_of(32, 2 if quick else 200)
    turns = (1, 0) if quick else (7, 1)
    made: dict[str, Callable[[], Callback]] = {action: partial(NonFiniteCheck, action) for action in _ACTIONS}
    found = []
    for what, network, batches in (("`resnet20_cifar`, batch 64", resnet, images), ("CNN-16, batch 32", cnn, few)):
        plain = partial(fitting, lambda network=network: Plain(network()), batches, 1)
        sides: dict[str, Side] = {"plain": plain(), "torch": plain(Anomalies)}
        times = take_turns(sides | {name: plain(make) for name, make in made.items()}, *turns)
        cpu = {name: clocks["cpu"] for name, clocks in times.items()}
        for name in made:
            bar = "<= 1.05" if network is resnet else ""
            found.append(Row.slowdown(f"{what}, {name}", "without it", cpu[name], cpu["plain"], "cpu", bar))
        against = "torch's `set_detect_anomaly`"
        found.append(Row.slowdown(f"{what}, stop", against, cpu["stop"], cpu["torch"], "cpu", "<= 1.00"))
    return [*found, _finding(resnet, images[:2], turns)]


_ACTIONS = ("stop", "skip", "rollback")


def _finding(network: Callable[[], Any], batches: Any, turns: tuple[int, int]) -> Row:
    """Two steps, the first of which is not finite and skipped, beside two that are."""
    bad = [(batches[0][0] * torch.nan, batches[0][1]), batches[1]]

    def quietly(side: Side) -> Side:
        def prepare() -> Callable[[], Any]:
            run = side()

            def silent() -> None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    run()

            return silent

        return prepare

    check = partial(NonFiniteCheck, "skip")
    sides = {
        name: quietly(fitting(lambda: Plain(network()), it, 1, check)) for name, it in (("bad", bad), ("good", batches))
    }
    times = take_turns(sides, *turns)
    return Row.slowdown(
        "two steps, one that is named and skipped", "two good ones", times["bad"]["cpu"], times["good"]["cpu"], "cpu"
    )
