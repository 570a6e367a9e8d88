"""WeightDecayRamp against its closed form, a loop written by hand and the decays that an optimizer really sees."""

import math
import re
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_vision.callbacks import WarmUpCosine, WeightDecayRamp
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class Decays(Callback):
    """The weight decays of every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append([group["weight_decay"] for group in optimizer.param_groups])


class Grouped(Plain):
    """Weights decay, biases and norms do not; AdamW, whose decay is apart from the gradient."""

    def configure_optimizers(self) -> Any:
        matrices = [it for it in self.parameters() if it.ndim > 1]
        vectors = [it for it in self.parameters() if it.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.01)


def trained(*callbacks: Callback, module: Plain | None = None, batches: int = 60, **options: Any) -> Plain:
    """In epochs of ten batches."""
    torch.manual_seed(0)
    module = module or Grouped(dropout=0.0)
    quiet_trainer(limit_val_batches=0, callbacks=list(callbacks), **options).fit(module, plain_loader(batches))
    return module


def by_hand(total: int, start: float = 0.04, end: float = 0.4) -> list[float]:
    return [end - (end - start) * (1 + math.cos(math.pi * step / total)) / 2 for step in range(total)]


@pytest.mark.parametrize(
    ("settings", "options", "start", "total"),
    [
        ({}, {"max_epochs": 2}, 0.04, 20),
        ({"start": "own"}, {"max_epochs": 5, "max_steps": 13}, 0.3, 13),
        ({}, {"max_epochs": 2, "accumulate_grad_batches": 4}, 0.04, 6),
    ],
)
def test_decays_are_those_of_the_formula_and_only_where_there_is_one(
    settings: dict[str, Any], options: dict[str, Any], start: float, total: int
) -> None:
    seen = Decays()
    trained(WeightDecayRamp(**settings), seen, **options)
    assert [first for first, _ in seen.seen] == pytest.approx(by_hand(total, start), rel=1e-12)
    assert {second for _, second in seen.seen} == {0.0}


def test_training_equals_a_loop_written_by_hand_and_a_straight_ramp_does_not() -> None:
    ours = trained(WeightDecayRamp(), max_epochs=2)

    def loop(decays: list[float]) -> torch.Tensor:
        torch.manual_seed(0)
        module = Grouped(dropout=0.0)
        optimizer = module.configure_optimizers()
        batches = [batch for _ in range(2) for batch in list(plain_loader(60))[:10]]
        for (image, target), decay in zip(batches, decays, strict=True):
            optimizer.param_groups[0]["weight_decay"] = decay
            optimizer.zero_grad()
            module.loss(image, target).backward()
            optimizer.step()
        return module.network[-1].weight

    weights = ours.network[-1].weight
    assert torch.equal(weights, loop(by_hand(20)))
    straight = [0.04 + 0.36 * step / 20 for step in range(20)]
    assert not torch.allclose(weights, loop(straight), rtol=1e-4)


def test_it_leaves_learning_rates_to_others() -> None:
    seen = Decays()
    trained(WarmUpCosine(), WeightDecayRamp(), seen, max_epochs=1)
    assert [first for first, _ in seen.seen] == pytest.approx(by_hand(10), rel=1e-12)


def test_a_training_without_an_end_keeps_the_start_and_says_so() -> None:
    ramp = WeightDecayRamp(start=0.1)
    warning = ramp.plan(training=None)
    assert warning is not None and warning.endswith("set max_epochs or max_steps.")
    assert ramp.decay(10**6, own=0.3) == 0.1


def test_what_has_no_weight_decay_is_refused() -> None:
    class Undecayed(Plain):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    message = (
        "WeightDecayRamp: no parameter group of Undecayed has a weight decay (SGD), so there is nothing to change; "
        "give the optimizer a weight_decay above 0."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trained(WeightDecayRamp(), module=Undecayed(), max_epochs=1)


@pytest.mark.parametrize("settings", [{"start": -0.1}, {"end": math.inf}, {"end": True}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^WeightDecayRamp: (start|end) is .*; give a finite number"):
        WeightDecayRamp(**settings)
