"""Ramp against its formulas, a loop written by hand and the numbers that a step really reads.

Where numbers may lie is proved in `hooks/test_attributes.py`, when they are set and put back in `hooks/test_values.py`,
precisions, resuming and processes in `conformance/`.
"""

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from lightning_vision import main
from lightning_vision.callbacks import MixUp, Ramp, WeightDecayRamp
from lightning_vision.callbacks.schedules._stretch import moved
from support.compare import distance, seeded
from support.data import plain_loader
from support.modules import Plain, TwoOptimizers
from support.trainers import QUIET, quiet_trainer


class Sharpened(Plain):
    """Cross entropy of logits over a temperature, and what it was in each step."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.temperature, self.seen = 4.0, []  # type: ignore[var-annotated]

    def loss(self, image: torch.Tensor, target: Any) -> torch.Tensor:
        return F.cross_entropy(self(image) / self.temperature, target)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(self.temperature)
        return super().training_step(batch, batch_idx)


def trained(*callbacks: Callback, module: Any = None, count: int = 60, **options: Any) -> Any:
    """In epochs of ten batches."""
    module = module or seeded(Sharpened)
    quiet_trainer(limit_val_batches=0, callbacks=list(callbacks), **options).fit(module, plain_loader(count))
    return module


def test_curves_are_those_of_the_formulas_and_meet_their_ends_exactly() -> None:
    for start, end in ((0.1, 0.3), (7.0, 0.1), (-1.0, -3.0)):
        shares = [step / 7 for step in range(8)]
        cosine = [start + (end - start) * (1 - math.cos(math.pi * it)) / 2 for it in shares]

        assert [moved(it, start, end) for it in shares] == pytest.approx([start + (end - start) * it for it in shares])
        assert [moved(it, start, end, "cosine") for it in shares] == pytest.approx(cosine)
        assert [moved(it, start, end, "exponential") for it in shares] == pytest.approx(
            [start * (end / start) ** it for it in shares]
        )
        for shape in ("linear", "cosine", "exponential"):
            assert [moved(it, start, end, shape) for it in (-1, 0, 1, 2)] == [start, start, end, end]


@pytest.mark.parametrize(
    ("settings", "options", "expected"),
    [
        ({"end": 2.0}, {"max_epochs": 1}, [4.0 - step / 5 for step in range(10)]),
        ({"end": 2.0, "start": 3.0}, {"max_steps": 4}, [3.0, 2.75, 2.5, 2.25]),
        ({"end": 2.0, "begin": 0.5, "length": 0.25}, {"max_steps": 8}, [4.0] * 5 + [3.0] + [2.0] * 2),
        ({"end": 2.0, "begin": 2, "length": 2, "interval": "step"}, {"max_steps": 6}, [4.0] * 3 + [3.0] + [2.0] * 2),
        ({"end": 2.0, "begin": 2, "interval": "step"}, {"max_steps": 6}, [4.0] * 3 + [3.5, 3.0, 2.5]),
        ({"end": 2.0, "begin": 0.1, "length": 0.4, "interval": "epoch"}, {"max_steps": 6}, [4, 4, 3.5, 3, 2.5, 2]),
        ({"end": 1.0, "begin": 0.4, "interval": "epoch"}, {"max_epochs": 1}, [4.0] * 5 + [3.5, 3.0, 2.5, 2.0, 1.5]),
        ({"end": 1.0, "shape": "exponential"}, {"max_steps": 4}, [4.0, 2**1.5, 2.0, 2**0.5]),
        ({"end": 1.0, "whole": True}, {"max_steps": 6}, [4, 4, 3, 2, 2, 2]),
        ({"end": "own", "start": 1.0}, {"max_steps": 3}, [1.0, 2.0, 3.0]),
    ],
    ids=["training", "start", "shares", "steps", "rest of steps", "epochs", "rest of epochs", "factor", "whole", "own"],
)  # fmt: skip
def test_a_step_reads_the_value_of_its_moment(
    settings: dict[str, Any], options: dict[str, Any], expected: list[float]
) -> None:
    module = trained(Ramp("temperature", **settings), **options)

    assert module.seen == pytest.approx(expected)
    assert module.temperature == 4.0
    assert "whole" not in settings or all(isinstance(it, int) for it in module.seen)


def by_hand(steps: int, shift: int = 0, shape: str = "cosine") -> Plain:
    """Trains with the temperature's ramp from 4 to 1."""
    module = seeded(Sharpened)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.8)
    for step, (image, target) in enumerate([*plain_loader(60)] * 2):
        share = (step + shift) / steps
        module.temperature = moved(share, 4.0, 1.0, shape)  # type: ignore[arg-type]
        module.loss(image, target).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return module


def test_training_equals_a_loop_written_by_hand_and_three_wrong_ones_do_not() -> None:
    ours = trained(Ramp("temperature", end=1.0, shape="cosine"), max_epochs=2).state_dict()

    assert distance(ours, by_hand(20).state_dict()) == 0.0
    for wrong in ({"shift": 1}, {"shape": "linear"}, {"steps": 10}):
        assert distance(ours, by_hand(**{"steps": 20} | wrong).state_dict()) > 1e-3


def test_of_weight_decay_it_is_the_ramp_of_that_name() -> None:
    theirs = trained(WeightDecayRamp(0.04, 0.4), module=seeded(Plain, 0.0), max_epochs=2)
    ours = trained(Ramp("optimizer.weight_decay", 0.4, 0.04, shape="cosine"), module=seeded(Plain, 0.0), max_epochs=2)

    assert distance(ours.state_dict(), theirs.state_dict()) < 1e-7


def test_another_callbacks_number_moves() -> None:
    seen = []

    class Noting(MixUp):
        def draw(self, shape: torch.Size, random: Any) -> Any:
            seen.append(round(self.alpha, 6))
            return super().draw(shape, random)

    mixup = Noting(alpha=0.2)
    trained(Ramp("callbacks.Noting.alpha", end=1.0), mixup, module=Plain(), max_steps=4)

    assert seen == [0.2, 0.4, 0.6, 0.8]
    assert mixup.alpha == 0.2


def test_where_steps_cannot_be_told_it_follows_epochs() -> None:
    class Manual(TwoOptimizers):
        temperature, seen = 4.0, []  # type: ignore[var-annotated]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.seen.append(self.temperature)
            super().training_step(batch, batch_idx)

    module = trained(Ramp("temperature", end=2.0), module=Manual(), count=12, max_epochs=4)

    assert module.seen == [4.0, 4.0, 3.5, 3.5, 3.0, 3.0, 2.5, 2.5]


def test_a_rehearsal_stays_at_the_start() -> None:
    assert trained(Ramp("temperature", end=1.0, start=2.0), fast_dev_run=3).seen == [2.0] * 3


def test_the_command_moves_a_setting_of_a_callback_by_its_class(tmp_path: Any) -> None:
    words = ["--config", "classification/digits", "--config", "callbacks/mixup", "--config", "callbacks/ramp", *QUIET]
    words += ["--callbacks.ramp.attribute", "callbacks.MixUp.alpha", "--trainer.max_epochs", "1"]
    words += ["--trainer.limit_train_batches", "3", "--trainer.default_root_dir", str(tmp_path)]
    words += ["--trainer.accelerator", "cpu"]
    run = main(["fit", *words])

    assert run.metrics["val/loss"] > 0


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (
            {},
            {"max_epochs": -1},
            "Ramp: the training has no end that can be told, so nobody knows how long the rest of it is; give the "
            "Trainer max_epochs or max_steps, or a length= with interval='epoch' or 'step'.",
        ),
        (
            {"interval": "step"},
            {"max_epochs": 1, "module": TwoOptimizers()},
            "Ramp: the optimizer steps of this training cannot be told (manual optimisation, an endless loader, or "
            "accumulation that changes); give a length=, or interval='epoch'.",
        ),
        (
            {"shape": "exponential", "start": "own", "end": -1.0},
            {"max_epochs": 1},
            "Ramp: an exponential from 0.5 to -1 does not exist, for both must be above or below 0; give other ends, "
            "or shape='linear'.",
        ),
    ],
    ids=["no end", "no steps", "signs"],
)
def test_what_cannot_be_is_refused_before_the_first_step(
    settings: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    module = {"module": Plain()} | options
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trained(Ramp("network.3.p", **{"end": 0.1} | settings), **module)

    assert module["module"].global_step == 0


def test_a_stretch_past_the_end_of_the_training_is_warned_of() -> None:
    message = (
        "Ramp: the training has 4 steps, and the stretch from 2 on goes past its end, so it is not all walked; give a "
        "smaller begin= or length=."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        trained(Ramp("temperature", 1.0, begin=2, length=3, interval="step"), max_steps=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attribute": ""}, "attribute is ''; give a dotted name, such as 'criterion.temperature'."),
        ({"end": math.inf}, "end is inf; give a finite number, or own."),
        ({"start": True}, "start is True; give a finite number, or own."),
        ({"shape": "round"}, "shape is 'round'; give linear, cosine or exponential."),
        ({"interval": "batch"}, "interval is 'batch'; give training, epoch or step."),
        ({"begin": -1}, "begin is -1; give a finite number of at least 0."),
        ({"length": 0}, "length is 0; give a number above 0."),
        ({"whole": 1}, "whole is 1; give True or False."),
        (
            {"begin": 0.5, "length": 0.6},
            "begin=0.5 and length=0.6 are shares of the training and go past its end; give less than 1 in all, or "
            "interval='epoch' or 'step'.",
        ),
        (
            {"start": 0.0, "shape": "exponential"},
            "an exponential from 0 to 1 does not exist, for both must be above or below 0; give other ends, or "
            "shape='linear'.",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'Ramp: {message}')}$"):
        Ramp(**{"attribute": "temperature", "end": 1.0} | settings)
