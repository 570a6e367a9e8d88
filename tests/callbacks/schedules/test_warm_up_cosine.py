"""WarmUpCosine against its closed form, torch's schedules and the rates that an optimizer really sees.

What any schedule must survive (resume, accumulation, skipped steps, two ranks) is proved in `hooks/test_schedule.py`.
"""

import math
import re
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_vision.callbacks import WarmUpCosine
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class Rates(Callback):
    """The learning rate of every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def rates(schedule: WarmUpCosine, batches: int = 60, **options: Any) -> list[float]:
    """What `Plain`, whose own rate is 0.05, is trained with in epochs of ten batches."""
    seen = Rates()
    trainer = quiet_trainer(limit_val_batches=0, callbacks=[schedule, seen], **options)
    trainer.fit(Plain(), plain_loader(batches))
    return seen.seen


def by_hand(rise: int, total: int, floor: float = 0.0) -> list[float]:
    up = [floor + (1 - floor) * (step + 1) / (rise + 1) for step in range(rise)]
    down = [floor + (1 - floor) * (1 + math.cos(math.pi * step / (total - rise))) / 2 for step in range(total - rise)]
    return [0.05 * factor for factor in (up + down)[:total]]


@pytest.mark.parametrize(
    ("settings", "options", "rise", "total"),
    [
        ({"warmup": 1, "interval": "epoch"}, {"max_epochs": 3}, 10, 30),
        ({"warmup": 1, "interval": "epoch"}, {"max_epochs": 6}, 10, 60),
        ({"warmup": 4}, {"max_epochs": 5, "max_steps": 17}, 4, 17),
        ({"warmup": 1, "interval": "epoch"}, {"max_epochs": 4, "accumulate_grad_batches": 4}, 3, 12),
        ({"eta_min": 0.1}, {"max_steps": 12, "max_epochs": -1}, 0, 12),
        ({"warmup": 3, "eta_min": 0.2}, {"max_steps": 12}, 3, 12),
    ],
)
def test_the_rates_are_those_of_the_formula_as_long_as_the_training_is(
    settings: dict[str, Any], options: dict[str, Any], rise: int, total: int
) -> None:
    seen = rates(WarmUpCosine(**settings, replace=True), **options)

    assert seen == pytest.approx(by_hand(rise, total, settings.get("eta_min", 0.0)), rel=1e-12)
    assert len(seen) == total


def test_without_warm_up_it_is_torchs_cosine() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    theirs = CosineAnnealingLR(optimizer, T_max=20, eta_min=0.05 * 0.1)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()

    assert rates(WarmUpCosine(eta_min=0.1, replace=True), max_epochs=2) == pytest.approx(expected, rel=1e-9)


def test_no_step_is_taken_at_rate_zero() -> None:
    assert min(rates(WarmUpCosine(warmup=1, interval="epoch", replace=True), 6, max_epochs=4)) > 0


def test_a_training_that_ends_inside_the_warm_up_is_warned_of() -> None:
    schedule = WarmUpCosine(warmup=3, interval="epoch", replace=True)
    message = (
        "WarmUpCosine: training ends after 20 optimizer steps, inside the warm-up of 30; lower warmup=3 (epochs), or "
        "train longer."
    )

    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        assert rates(schedule, max_epochs=2) == pytest.approx(by_hand(30, 60)[:20], rel=1e-12)


def test_a_training_without_an_end_keeps_the_highest_rate_and_says_so() -> None:
    schedule = WarmUpCosine(warmup=2)
    warning = schedule.plan(epoch=10, training=None)

    assert warning is not None and warning.endswith("set max_epochs or max_steps.")
    assert [schedule.factor(step) for step in (0, 1, 2, 10**6)] == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_epochs_of_unknown_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^WarmUpCosine: the optimizer steps of an epoch are not known here"):
        WarmUpCosine(warmup=1, interval="epoch").plan(epoch=None, training=10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": -1}, "WarmUpCosine: warmup is -1; give a whole number of at least 0."),
        ({"eta_min": 1.5}, "WarmUpCosine: eta_min is 1.5; give a number from 0 to 1."),
        ({"interval": "batch"}, "WarmUpCosine: interval is 'batch'; give 'step' or 'epoch'."),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        WarmUpCosine(**settings)
