"""What every callback of the house has from its base: one order, a name, an undo, refusals in a sentence."""

import pickle
from itertools import permutations

import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy

from lightning_vision.callbacks.hooks.method import Method, Place, callbacks_of
from support.data import plain_loader
from support.modules import Plain
from support.resuming import record
from support.trainers import quiet_trainer

calls = []


class Noted(Method):
    neutral = "it only notes that it is called"

    def on_train_batch_start(self, trainer, *args):
        calls.append(self.state_key)

    def state_dict(self):
        return {"seen": len(calls)}


class Early(Noted):
    place = Place.BATCH


class Late(Noted):
    place = Place.OBSERVE


class Foreign(Callback):
    def on_train_batch_start(self, trainer, *args):
        calls.append("foreign")


@pytest.fixture(autouse=True)
def no_calls():
    calls.clear()


def trainer_of(*callbacks, **options):
    return quiet_trainer(**{"max_steps": 1} | options, callbacks=list(callbacks))


def test_the_order_is_that_of_the_step_however_callbacks_are_listed():
    for listed in permutations([Late(), Early(name="b"), Early(name="a")]):
        calls.clear()
        trainer_of(*listed).fit(Plain(), plain_loader(6))

        assert calls == ["Early[a]", "Early[b]", "Late"]


def test_callbacks_of_others_keep_their_positions():
    others = [Foreign(), Foreign()]
    trainer = trainer_of(Late(), others[0], Early(name="b"), others[1], Early(name="a"))
    positions = [callbacks_of(trainer).index(other) for other in others]
    trainer.fit(Plain(), plain_loader(6))

    assert [callbacks_of(trainer).index(other) for other in others] == positions
    assert calls == ["Early[a]", "foreign", "Early[b]", "foreign", "Late"]


def test_setup_reaches_every_callback_once_though_it_sorts():
    reached = []

    class Sets(Noted):
        place = Place.LOSS

        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            reached.append((type(self).__name__, self.name))

    class Before(Sets):
        place = Place.BATCH

    trainer_of(Sets(), Before(), Sets(name="x"), Before(name="y")).fit(Plain(), plain_loader(6))

    assert len(reached) == 4
    assert set(reached) == {("Before", None), ("Before", "y"), ("Sets", None), ("Sets", "x")}


def test_the_state_key_is_class_and_name_and_no_setting():
    assert (Early().state_key, Early(name="left").state_key) == ("Early", "Early[left]")


def test_two_of_a_class_without_names_are_refused():
    class Stateless(Early):
        state_dict = Callback.state_dict

    with pytest.raises(
        ValueError,
        match=r"^Stateless: the Trainer has 2 callbacks with the state key '.*Stateless'; remove all but one, or give "
        r"each a name of its own.$",
    ):
        trainer_of(Stateless(), Stateless()).fit(Plain(), plain_loader(6))

    trainer_of(Stateless(name="a"), Stateless()).fit(Plain(), plain_loader(6))
    assert len(calls) == 2


@pytest.mark.parametrize("how", ["fit", "validate", "test", "predict"])
def test_every_entry_point_sorts_and_refuses(how):
    loader = plain_loader(6)
    trainer = trainer_of(Late(), Early())
    getattr(trainer, how)(Plain(), loader)
    assert [type(it) for it in callbacks_of(trainer) if isinstance(it, Noted)] == [Early, Late]

    class Stateless(Early):
        state_dict = Callback.state_dict

    with pytest.raises(ValueError, match="give each a name of its own"):
        getattr(trainer_of(Stateless(), Stateless()), how)(Plain(), loader)


def test_a_sharding_strategy_is_refused():
    trainer = trainer_of(Early())
    # A strategy is what set-up asks for; building FSDP on a GPU is not needed to ask it.
    trainer._accelerator_connector.strategy = FSDPStrategy()

    with pytest.raises(
        ValueError,
        match=r"^Early: FSDPStrategy keeps parameters and gradients to itself, and Early was not proved there; train "
        r"on one device or with strategy='ddp', or leave it out.$",
    ):
        Early().setup(trainer, Plain(), "fit")


def test_a_class_may_allow_other_strategies():
    class Anywhere(Early):
        strategies = (SingleDeviceStrategy, FSDPStrategy)

    trainer = trainer_of(Anywhere())
    trainer._accelerator_connector.strategy = FSDPStrategy()

    callbacks_of(trainer)[0].setup(trainer, Plain(), "fit")


SAVED = "^Early: the checkpoint holds the state of one "
CLAIM = ", which no callback of this Trainer claims; give yours that name, or leave it out of the Trainer to drop the "


@pytest.mark.parametrize(
    ("saved", "present", "which"),
    [(Early(name="a"), Early(), "with name='a'"), (Early(), Early(name="a"), "without a name")],
    ids=["named", "unnamed"],
)
def test_state_that_nobody_claims_is_refused_and_both_ways_out_work(tmp_path, saved, present, which):
    writer = ModelCheckpoint(tmp_path, filename="one")
    trainer_of(saved, writer, enable_checkpointing=True).fit(Plain(), plain_loader(6))

    def resume(*callbacks):
        loader = plain_loader(12)
        trainer_of(*callbacks, max_steps=2).fit(Plain(), loader, ckpt_path=tmp_path / "one.ckpt", weights_only=True)

    with pytest.raises(ValueError, match=SAVED + which + CLAIM):
        resume(present)
    calls.clear()
    resume(saved)
    resume(saved, Late())
    resume()
    assert calls


class Undoes(Early):
    def __init__(self, fails=""):
        super().__init__()
        self.fails, self.undone = fails, []

    def on_fit_start(self, trainer, pl_module):
        for number in range(3):
            self.undo_later(lambda number=number: self.undone.append(number))

    def on_train_batch_end(self, trainer, *args):
        if self.fails == "step":
            raise RuntimeError("in a step")

    def on_validation_start(self, trainer, pl_module):
        if self.fails == "validation":
            raise RuntimeError("in validation")


@pytest.mark.parametrize("fails", ["", "step", "validation"])
def test_undo_runs_once_and_backwards(fails):
    callback, module = Undoes(fails), Plain()

    def fit():
        record(module, lambda: (plain_loader(6), plain_loader(6)), [callback], max_epochs=1)

    if fails:
        with pytest.raises(RuntimeError, match=f"in a? ?{fails}"):
            fit()
    else:
        fit()
    assert callback.undone == [2, 1, 0]

    callback.fails = ""
    fit()
    assert callback.undone == [2, 1, 0] * 2


def test_an_undo_that_fails_does_not_keep_the_others_from_running():
    callback = Undoes()

    def fail():
        raise RuntimeError("in an undo")

    callback.undo_later(lambda: callback.undone.append("first"))
    callback.undo_later(fail)
    with pytest.raises(RuntimeError, match="in an undo"):
        callback.teardown(trainer_of(), Plain(), "fit")

    assert callback.undone == ["first"]


def test_it_can_be_pickled_before_and_after_a_run():
    callback = Early(name="a")
    before = pickle.loads(pickle.dumps(callback))
    trainer_of(callback).fit(Plain(), plain_loader(6))
    after = pickle.loads(pickle.dumps(callback))

    assert before.state_key == after.state_key == "Early[a]"
    trainer_of(after).fit(Plain(), plain_loader(6))
    assert calls == ["Early[a]"] * 2
