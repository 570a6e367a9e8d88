"""Numbers by dotted names: each place they may lie, and a sentence for each that is none.

What sets them while a training runs is proved in `test_values.py`.
"""

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import nn

from lightning_vision.callbacks import MixUp
from lightning_vision.callbacks.hooks._attributes import find
from support.modules import Plain
from support.trainers import quiet_trainer


@dataclass(frozen=True)
class Frozen:
    rate: float = 0.1


class Pair(NamedTuple):
    low: float = 0.1


@dataclass
class Settings:
    strength: float = 0.5
    steps: int = 3
    fast: bool = True
    pair: Pair = field(default_factory=Pair)


class Guarded:
    """A number behind a property, one that cannot be set, and what is none."""

    fixed = property(lambda self: 0.5)

    def __init__(self) -> None:
        self._rate = 0.25

    @property
    def rate(self) -> float:
        return self._rate

    @rate.setter
    def rate(self, value: float) -> None:
        self._rate = value


class Full(Plain):
    """All the places of which a name may speak."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Dropout(0.1), nn.Identity(), nn.Dropout(0.3)])
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("temperature", torch.tensor(2.0))
        self.register_buffer("count", torch.tensor([3]))
        self.register_buffer("means", torch.zeros(4))
        self.settings, self.frozen, self.guarded = Settings(), Frozen(), Guarded()
        self.rates = [0.1, 0.2]
        self.table = {"alpha": 0.4, "deep": [{"beta": 1}]}
        self.closed = MappingProxyType({"alpha": 0.4})
        self.single = np.float32(0.5)


class Data(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.magnitude = 9


def places(name: str, module: Any = None, datamodule: Any = None, callbacks: Any = (), kind: Any = None) -> list[Any]:
    """What is found in a fit that is about to begin."""
    module = module or Full()
    trainer = quiet_trainer(callbacks=list(callbacks))
    trainer.datamodule = datamodule  # type: ignore[attr-defined]
    groups = [{"params": [module.network[0].weight]}, {"params": [module.network[0].bias], "weight_decay": 0.0}]
    trainer.strategy.optimizers = [(kind or torch.optim.SGD)(groups, lr=0.1, weight_decay=1e-3)]
    return find("Ramp", name, trainer, module)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("network.3.p", 0.5),
        ("blocks.2.p", 0.3),
        ("settings.strength", 0.5),
        ("settings.steps", 3),
        ("guarded.rate", 0.25),
        ("rates.1", 0.2),
        ("table.alpha", 0.4),
        ("table.deep.0.beta", 1),
        ("single", 0.5),
        ("temperature", 2.0),
        ("count", 3),
    ],
)
def test_a_number_is_found_read_and_set_wherever_it_lies(name: str, own: float) -> None:
    (place,) = places(name)

    assert float(place.get()) == own
    assert isinstance(place.get(), type(own)) or name in ("single", "temperature", "count")
    place.set(7)
    assert float(place.get()) == 7


def test_a_buffer_is_filled_where_it_lies_so_that_all_who_hold_it_see_it() -> None:
    module = Full()
    held, counted = module.temperature, module.count
    for name, value in (("temperature", 0.25), ("count", 4.6)):
        (place,) = places(name, module)
        place.set(value)

    assert held is module.temperature and float(held) == 0.25
    assert counted is module.count and counted.tolist() == [5]


def test_a_pattern_finds_the_number_of_every_submodule_that_has_one() -> None:
    found = places("blocks.*.p")

    assert [(it.name, it.get()) for it in found] == [("blocks.0.p", 0.1), ("blocks.2.p", 0.3)]
    assert [it.name for it in places("*.p")] == ["network.3.p", "blocks.0.p", "blocks.2.p"]


def test_parameter_groups_without_weight_decay_stay_without() -> None:
    (decay,), momenta = places("optimizer.weight_decay"), places("optimizer.momentum")
    decay.set(0.5)
    for it in momenta:
        it.set(0.9)

    assert [group["weight_decay"] for group in decay.owner.param_groups] == [0.5, 0.0]
    assert [group["momentum"] for group in momenta[0].owner.param_groups] == [0.9, 0.9]


def test_a_group_that_a_checkpoint_exchanged_is_still_the_one_that_is_set() -> None:
    (decay,) = places("optimizer.weight_decay")
    decay.owner.load_state_dict(decay.owner.state_dict())
    decay.set(0.25)

    assert decay.owner.param_groups[0]["weight_decay"] == 0.25


def test_the_datamodule_and_other_callbacks_have_roots_of_their_own() -> None:
    data, one, two = Data(), MixUp(), MixUp(alpha=0.4, name="a.b")
    places("datamodule.magnitude", datamodule=data)[0].set(5)
    places("callbacks.MixUp.alpha", callbacks=[one])[0].set(0.6)
    places("callbacks.MixUp.alpha", callbacks=[one, two])[0].set(0.7)
    places("callbacks.MixUp[a.b].alpha", callbacks=[one, two])[0].set(0.8)
    places("callbacks.MixUp.alpha", callbacks=[two])[0].set(0.9)  # by its class, for there is one of it

    assert (data.magnitude, one.alpha, two.alpha) == (5, 0.7, 0.9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.2.pp", "'blocks.2.pp': Full.blocks.2 has no 'pp'; there are p"),
        ("blocks.3.p", "'blocks.3.p': Full.blocks has no '3'; there are "),
        ("setings.strength", "'setings.strength': Full has no 'setings'; there are settings"),
        ("rates.2", "'rates.2': Full.rates has no '2'; it has positions 0 to 1."),
        ("table.beta", "'table.beta': Full.table has no 'beta'; there are "),
        ("settings", "'settings' is a Settings, which is no number; name one."),
        ("settings.fast", "'settings.fast' is True, which is no number; name one."),
        ("scale", "'scale' is a parameter, which is the optimizer's to move; name a number or a buffer."),
        ("means", "'means' is a tensor of shape (4,); name a number, or a tensor of one."),
        ("frozen.rate", "'frozen.rate' cannot be set, for its Frozen does not let it (cannot assign to field 'rate');"),
        ("guarded.fixed", "'guarded.fixed' cannot be set, for its Guarded does not let it (property"),
        ("settings.pair.low", "'settings.pair.low' cannot be set, for its Pair does not let it ("),
        ("closed.alpha", "'closed.alpha' cannot be set, for its mappingproxy does not let it ("),
        (
            "network.*.rate",
            "'network.*.rate': 6 submodules match 'network.*', and none has a number 'rate'; see the na",
        ),
        ("settings..strength", "'settings..strength' is no dotted name of a number; give one such as"),
        ("optimizer.lr", "'optimizer.lr' is a learning rate, which belongs to a schedule of the module's or of the ho"),
        ("optimizer.betas", "no parameter group (SGD) has a 'betas'; there are "),
        ("optimizer.nesterov", "'optimizer.nesterov' is False, which is no number; name one."),
        (
            "datamodule.magnitude",
            "'datamodule.magnitude' is asked of the datamodule, and this fit was given loaders; p",
        ),
        ("callbacks.CutMix.alpha", "'callbacks.CutMix.alpha': the Trainer has no such callback; there are MixUp."),
        ("callbacks.MixUp.beta", "'callbacks.MixUp.beta': MixUp has no 'beta'; there are "),
    ],
)
def test_what_is_none_is_refused_in_a_sentence(name: str, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        places(name, callbacks=[MixUp()])

    assert str(refusal.value).startswith(f"Ramp: {message}")
    assert str(refusal.value).endswith(".")


def test_betas_are_told_to_be_no_number() -> None:
    with pytest.raises(ValueError, match=r"'optimizer.betas' is \(0.9, 0.999\), which is no number; name one\.$"):
        places("optimizer.betas", kind=torch.optim.AdamW)


def test_a_callback_that_is_switched_off_is_refused_for_nobody_would_read_it() -> None:
    with pytest.raises(ValueError, match=r"'callbacks.MixUp.alpha': MixUp is switched off by its own settings, so no"):
        places("callbacks.MixUp.alpha", callbacks=[MixUp(alpha=0.0)])
