"""What hearing the first loss costs, once: a fit with and without the check, beside Lightning's sanity check."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lightning_vision.backbones import create
from lightning_vision.callbacks import InitialLossCheck

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns
from .validations import Validated

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train `resnet20_cifar` with batches of 32 for 20 steps.

    Args:
        quick: One repetition of two steps of 4.
    """
    size, steps = (4, 2) if quick else (32, 20)
    batches = batches_of(size, steps)

    def plain() -> Plain:
        torch.manual_seed(0)
        return Plain(create("resnet20_cifar", num_classes=10, in_channels=3))

    def sane(batches_looked_at: int) -> Side:
        def prepare() -> Callable[[], Any]:
            quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
            looks = {"num_sanity_val_steps": batches_looked_at, "check_val_every_n_epoch": 2, "max_epochs": 1}
            trainer = Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **looks)
            loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list will do
            module = Validated()
            return lambda: trainer.fit(module, loader, loader)

        return prepare

    sides: dict[str, Side] = {
        "plain": fitting(plain, batches, 1),
        "checked": fitting(plain, batches, 1, InitialLossCheck),
        "insane": sane(0),
        "sane": sane(2),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (15, 1)).items()}
    what = f"a fit of {steps} steps"
    return [
        Row.slowdown(what, "without it", times["checked"], times["plain"], "cpu"),
        Row.slowdown(what, "with Lightning's `num_sanity_val_steps=2`", times["checked"], times["sane"], "cpu"),
        Row.slowdown(
            "the same with Lightning's `num_sanity_val_steps=2`", "without that", times["sane"], times["insane"], "cpu"
        ),
    ]
