"""WarmUpSteps against its closed form, torch's MultiStepLR and the rates that an optimizer really sees.

What any schedule must survive (resume, accumulation, skipped steps, two ranks) is proved in `hooks/test_schedule.py`,
and that it is Big Transfer's rule in `tests/lightning_vision/classification/test_bit.py`.
"""

import re
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim.lr_scheduler import MultiStepLR

from lightning_vision.callbacks import WarmUpSteps
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class Rates(Callback):
    """The learning rate of every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def rates(schedule: WarmUpSteps, **options: Any) -> list[float]:
    """What `Plain`, whose own rate is 0.05, is trained with in epochs of ten batches."""
    seen = Rates()
    trainer = quiet_trainer(limit_val_batches=0, callbacks=[schedule, seen], **options)
    trainer.fit(Plain(), plain_loader(60))
    return seen.seen


def test_milestones_in_steps_are_counted_from_the_beginning() -> None:
    seen = rates(WarmUpSteps(milestones=[6, 9], warmup=4, replace=True), max_steps=12)
    factors = [0, 0.25, 0.5, 0.75, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]

    assert seen == pytest.approx([0.05 * factor for factor in factors], rel=1e-12)


def test_epochs_may_be_fractions() -> None:
    """Every 2.4 epochs of ten steps are steps 24, 48 and 72; the warm-up covers half an epoch."""
    seen = rates(WarmUpSteps(every=2.4, gamma=0.97, warmup=0.5, interval="epoch", replace=True), max_epochs=8)

    assert seen[:5] == pytest.approx([0, 0.01, 0.02, 0.03, 0.04])
    assert seen[5:24] == [0.05] * 19
    assert seen[24:] == pytest.approx([0.05 * 0.97] * 24 + [0.05 * 0.97**2] * 24 + [0.05 * 0.97**3] * 8)


@pytest.mark.parametrize("epoch", [1250, 1251, 313, 7])
def test_no_fall_comes_a_step_late_by_rounding(epoch: int) -> None:
    schedule = WarmUpSteps(every=2.4, gamma=0.5, interval="epoch")
    schedule.plan(epoch, None)
    factors = [schedule.factor(step) for step in range(20 * epoch)]
    # In whole numbers: 2.4 epochs are 12 epochs over 5.
    assert factors == [0.5 ** (step * 5 // (12 * epoch)) for step in range(20 * epoch)]


def test_without_warm_up_it_is_torchs_multi_step() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    theirs = MultiStepLR(optimizer, [5, 11, 12], gamma=0.3)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()

    assert rates(WarmUpSteps([5, 11, 12], gamma=0.3, replace=True), max_steps=20) == pytest.approx(expected, rel=1e-9)


def test_a_training_that_ends_inside_the_warm_up_is_warned_of() -> None:
    message = (
        "WarmUpSteps: training ends after 20 optimizer steps, inside the warm-up of 30; lower warmup=3 (epochs), or "
        "train longer."
    )

    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        rates(WarmUpSteps(every=5, warmup=3, interval="epoch", replace=True), max_epochs=2)


def test_epochs_of_unknown_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^WarmUpSteps: the optimizer steps of an epoch are not known here"):
        WarmUpSteps(every=1, interval="epoch").plan(epoch=None, training=10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": -1}, "WarmUpSteps: warmup is -1; give a finite number of at least 0."),
        ({"gamma": "1"}, "WarmUpSteps: gamma is '1'; give a factor above 0 and at most 1."),
        ({"gamma": 0}, "WarmUpSteps: gamma is 0; give a factor above 0 and at most 1."),
        ({"interval": "batch"}, "WarmUpSteps: interval is 'batch'; give 'step' or 'epoch'."),
        ({"every": 0}, "WarmUpSteps: every is 0; give a number of steps above 0."),
        ({"milestones": [3], "every": 2}, "WarmUpSteps: both milestones=[3] and every=2 were given; drop one of them."),
        ({"milestones": [3, 2]}, "WarmUpSteps: milestones are [3, 2]; give ascending numbers of steps above 0."),
        ({"milestones": [0, 2]}, "WarmUpSteps: milestones are [0, 2]; give ascending numbers of steps above 0."),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        WarmUpSteps(**settings)
