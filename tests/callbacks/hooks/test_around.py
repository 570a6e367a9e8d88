"""Actions after a module's hook come and go in any order and leave the module as it was."""

import copy
import pickle
from itertools import permutations

import pytest
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_vision.callbacks.hooks._around import last_word


class Hooked(LightningModule):
    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_start(self):
        self.calls.append("hook")
        return "returned"

    def called(self):
        self.calls.clear()
        assert self.on_train_start() == "returned"
        return list(self.calls)


def stacked(module, names="abc"):
    return {name: last_word(module, "on_train_start", lambda name=name: module.calls.append(name)) for name in names}


@pytest.mark.parametrize("order", permutations("abc"), ids="".join)
def test_actions_are_taken_off_in_any_order(order):
    module = Hooked()
    words = stacked(module)
    left = ["a", "b", "c"]
    assert module.called() == ["hook", *left]

    for name in order:
        words[name].undo()
        words[name].undo()
        left.remove(name)
        assert module.called() == ["hook", *left]
    assert "on_train_start" not in vars(module)


def test_a_hook_that_the_module_was_given_comes_back():
    module = Hooked()
    given = module.on_train_start = lambda: module.calls.append("given") or "returned"
    words = stacked(module, "ab")
    assert module.called() == ["given", "a", "b"]

    words["a"].undo()
    words["b"].undo()
    assert module.on_train_start is given


def test_an_action_may_take_itself_off():
    module = Hooked()

    def once():
        module.calls.append("once")
        word.undo()

    word = last_word(module, "on_train_start", once)
    stacked(module, "a")

    assert module.called() == ["hook", "once", "a"]
    assert module.called() == ["hook", "a"]


def test_what_a_stranger_has_put_around_it_stays():
    module = Hooked()
    word = stacked(module, "a")["a"]
    inner = module.on_train_start
    outer = module.on_train_start = lambda: module.calls.append("outer") or inner()
    word.undo()

    assert module.on_train_start is outer
    assert module.called() == ["outer", "hook"]


@pytest.mark.parametrize(("name", "inside"), [("a", []), ("b", ["a"]), ("c", ["a", "b"])])
def test_what_lies_inside_of_one_can_be_called_without_it(name, inside):
    module = Hooked()
    words = stacked(module)

    assert words[name].inside() == "returned"
    assert module.calls == ["hook", *inside]


def test_lightning_takes_the_hook_for_the_modules_own():
    module = Hooked()
    stacked(module, "a")

    assert is_overridden("on_train_start", module)


@pytest.mark.parametrize("given", [False, True], ids=["the class's", "given to the module"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_a_copy_of_the_module_runs_its_own_hook_and_none_of_the_actions(copied, given):
    module = Hooked()
    if given:
        module.on_train_start = module.on_train_start
    word = stacked(module, "a")["a"]
    twin = copied(module)
    module.calls.clear()

    assert twin.called() == ["hook"]
    assert module.calls == []
    assert module.called() == ["hook", "a"]
    word.undo()
    assert twin.called() == module.called() == ["hook"]
    inner = last_word(twin, "on_train_start", lambda: twin.calls.append("twin's"))
    assert (twin.called(), module.called()) == (["hook", "twin's"], ["hook"])
    inner.undo()
    assert twin.called() == ["hook"]
