"""Callables become plain data and come back; a class that a file names is checked before it is called."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_vision.base.hyperparameters import describe, plain_arguments, rebuild, resolve_class

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}


class Lookahead(torch.optim.SGD):
    """An optimizer around another one, to nest callables."""

    def __init__(self, params, inner: OptimizerCallable = torch.optim.SGD, lr: float = 0.1):
        super().__init__(params, lr=lr)
        self.inner = inner


@dataclass(frozen=True)
class Corner:
    """Plain data with names, one inside another."""

    side: int | None = None
    inner: "Corner | None" = None
    range: tuple[float, float] = (0.0, 1.0)


def parsed(*args):
    """What jsonargparse hands over for the two callables of a module."""

    def module(optimizer: OptimizerCallable = torch.optim.AdamW, lr_scheduler: LRSchedulerCallable | None = None):
        return {"optimizer": optimizer, "lr_scheduler": lr_scheduler}

    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(module, "module")
    config = parser.instantiate(parser.parse_args(list(args)))
    return module(**config.module)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (torch.optim.AdamW, {"class_path": "torch.optim.AdamW"}),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), SGD),
        (
            partial(torch.optim.Adam, betas=(0.5, 0.9)),
            {"class_path": "torch.optim.Adam", "init_args": {"betas": (0.5, 0.9)}},
        ),
        (Path("a") / "b", "a/b"),
        (np.float64(0.5), 0.5),
        ([1, {"a": np.int64(2)}], [1, {"a": 2}]),
        ({1: 2, "1": 3, (4, 5): 6}, {1: 2, "1": 3, (4, 5): 6}),
        (None, None),
        (
            [Corner(np.int64(3), Corner())],
            [{"side": 3, "inner": {"side": None, "inner": None, "range": (0.0, 1.0)}, "range": (0.0, 1.0)}],
        ),
    ],
    ids=["class", "partial", "tuple inside", "path", "numpy number", "nested", "keys", "none", "dataclass"],
)
def test_values_have_a_plain_form(value, plain):
    described = describe(value)

    assert (described, type(described)) == (plain, type(plain))


@pytest.mark.parametrize(
    "value",
    [lambda params: None, nn.Linear(2, 2), partial(torch.optim.SGD, [1]), partial(print, 1), object(), len],
    ids=["lambda", "module", "positional partial", "partial of a function", "object", "function"],
)
def test_what_data_cannot_express_is_told(value):
    with pytest.raises(TypeError, match="is no plain data"):
        describe(value)


def test_a_class_defined_in_a_function_is_told():
    class Hidden(torch.optim.SGD):
        pass

    with pytest.raises(TypeError, match="cannot be imported by its name"):
        describe(Hidden)


def test_what_the_parser_hands_over_is_described_with_all_its_arguments():
    given = parsed("--module.optimizer=SGD", "--module.optimizer.lr=0.3", "--module.lr_scheduler=StepLR",
                   "--module.lr_scheduler.step_size=2")  # fmt: skip
    optimizer, scheduler = describe(given["optimizer"]), describe(given["lr_scheduler"])

    assert (optimizer["class_path"], optimizer["init_args"]["lr"]) == ("torch.optim.SGD", 0.3)
    assert scheduler["class_path"] == "torch.optim.lr_scheduler.StepLR"
    assert scheduler["init_args"]["step_size"] == 2


def test_what_the_parser_nests_is_described_and_rebuilt():
    name = f"{__name__}.Lookahead"
    sys.modules.setdefault(__name__, sys.modules[Lookahead.__module__])
    given = parsed(f"--module.optimizer={name}", "--module.optimizer.inner=Adam", "--module.optimizer.inner.eps=0.5")
    description = describe(given["optimizer"])
    optimizer = rebuild(description, Optimizer)([nn.Parameter(torch.zeros(1))])
    inner = optimizer.inner([nn.Parameter(torch.zeros(1))])

    assert description["init_args"]["inner"]["class_path"] == "torch.optim.Adam"
    assert (type(optimizer), type(inner), inner.defaults["eps"]) == (Lookahead, torch.optim.Adam, 0.5)


class Block(nn.Module):
    """Modules as arguments, annotated in every way."""

    def __init__(self, act: nn.Module, norm: "nn.Module | None" = None, drop: nn.Dropout | None = None):
        super().__init__()
        self.act, self.norm, self.drop = act, norm, drop


class WiderBlock(Block):
    """Hands its arguments on, and takes what makes modules."""

    def __init__(self, make: Callable[[], nn.Module], **kwargs: Any):
        super().__init__(**kwargs)
        self.make = make


def test_an_argument_annotated_as_a_module_is_made_and_any_other_stays_callable():
    relu = {"class_path": "torch.nn.ReLU"}
    drop = {"class_path": "torch.nn.Dropout", "init_args": {"p": 0.25}}
    names = {"make": drop, "act": relu, "norm": relu, "drop": drop}
    sys.modules.setdefault(__name__, sys.modules[Block.__module__])
    block = rebuild({"class_path": f"{__name__}.WiderBlock", "init_args": names}, nn.Module)()

    assert [type(made) for made in (block.act, block.norm, block.drop)] == [nn.ReLU, nn.ReLU, nn.Dropout]
    assert block.drop.p == 0.25
    assert isinstance(block.make, partial)
    assert block.make().p == 0.25


def test_a_description_is_rebuilt_as_it_was():
    optimizer = rebuild(SGD, Optimizer)([nn.Parameter(torch.zeros(1))])

    assert (type(optimizer), optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (torch.optim.SGD, 0.1, 0.9)


def test_other_values_are_not_touched_by_rebuilding():
    made = partial(torch.optim.SGD, lr=0.1)

    assert [rebuild(value, Optimizer) for value in (made, None)] == [made, None]


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("os.system", "os.system was refused and not called: it is no subclass of Optimizer"),
        ("torch.nn.Linear", "torch.nn.Linear was refused and not called: it is no subclass of Optimizer"),
        ("builtins.eval", "builtins.eval was refused and not called: it is no subclass of Optimizer"),
        ("torch.optim.SDG", "torch.optim.SDG is not imported; import the module that defines this Optimizer"),
        ("torch.nowhere.SGD", "torch.nowhere.SGD cannot be imported"),
        ("SGD", "SGD is not imported"),
        (7, "7 is not imported"),
    ],
)
def test_other_classes_are_refused(class_path, message):
    with pytest.raises(ValueError, match=message):
        rebuild({"class_path": class_path, "init_args": {}}, Optimizer)


def test_a_class_below_a_description_is_checked_too():
    with pytest.raises(ValueError, match=r"os\.system was refused and not called"):
        rebuild({"class_path": "torch.optim.SGD", "init_args": {"lr": {"class_path": "os.system"}}}, Optimizer)


def test_a_module_of_strangers_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("open('ran', 'w')\nimport torch\nclass Mine(torch.optim.SGD): pass\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ValueError, match=r"stranger\.Mine is not imported"):
        resolve_class("stranger.Mine", Optimizer)
    assert not Path("ran").exists()


def test_a_class_of_strangers_is_found_once_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "acquaintance.py").write_text("import torch\nclass Mine(torch.optim.SGD): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine = __import__("acquaintance").Mine

    assert resolve_class("acquaintance.Mine", Optimizer, LRScheduler) is mine


def test_a_module_that_the_parser_built_is_described_by_what_was_typed():
    typed = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}
    arguments = {"backbone": nn.Linear(2, 3), "loss": nn.L1Loss(), "depth": 4}

    plain, left_out = plain_arguments(arguments, {"backbone": typed, "loss": typed})

    assert (plain, left_out) == ({"backbone": typed, "depth": 4}, {"loss": "L1Loss"})
