"""The batch seam: which batches are changed, in which order, with which random draws, and what is left behind."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from lightning_vision.callbacks.hooks.batch import Batch
from support.data import ResumableLoader, labelled_images
from support.modules import DictBatches, Plain
from support.trainers import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:Checkpoint directory")
Named = namedtuple("Named", "picture digit")


class Brighter(Batch):
    """Adds the batch's random number to the images, and remembers it."""

    neutral = ({"on": False},)

    def __init__(self, seed=0, on=True, name=None):
        super().__init__(seed=seed, image_key="image", target_key="target", name=name)
        self.on, self.drawn = on, []

    def change(self, batch, random):
        self.drawn.append(random.random())
        return self.fields.replaced(batch, self.fields.image(batch) + self.drawn[-1], self.fields.target(batch))


class Seen(Callback):
    """What every reader of the training batches sees."""

    def __init__(self):
        self.batches, self.validated = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validated.append(batch)


def fit(folder, callbacks, module=None, collate=None, ckpt_path=None, **options):
    torch.manual_seed(1)
    loader = ResumableLoader(labelled_images(18), 6, collate_fn=collate)
    trainer = quiet_trainer(
        default_root_dir=folder, callbacks=callbacks, **{"max_epochs": 1, "num_sanity_val_steps": 1} | options
    )
    trainer.fit(
        module or Plain(), loader, ResumableLoader(labelled_images(12), 6, collate_fn=collate), ckpt_path=ckpt_path
    )
    return trainer


def stream(count, seed=0, rank=0, start=0):
    return [np.random.default_rng((seed, rank, start + i)).random() for i in range(count)]


def as_named(samples):
    return Named(*torch.utils.data.default_collate(samples))


def as_mapping(samples):
    return dict(zip(("image", "target"), torch.utils.data.default_collate(samples), strict=True))


@pytest.mark.parametrize(
    "module, collate, kind",
    [(Plain, None, list), (Plain, lambda it: tuple(torch.utils.data.default_collate(it)), tuple),
     (Plain, as_named, Named), (DictBatches, as_mapping, dict)],
    ids=["list", "tuple", "namedtuple", "dict"],
)  # fmt: skip
def test_every_reader_sees_the_changed_training_batches(tmp_path, module, collate, kind):
    brighter, seen, plain = Brighter(), Seen(), Seen()
    fit(tmp_path, [seen, brighter], module(), collate)
    fit(tmp_path, [plain], module(), collate)

    assert stream(3) == brighter.drawn
    for changed, own, drawn in zip(seen.batches, plain.batches, brighter.drawn, strict=True):
        assert kind is type(changed)
        assert torch.equal(brighter.fields.image(own) + drawn, brighter.fields.image(changed))
        assert torch.equal(brighter.fields.target(own), brighter.fields.target(changed))
    assert len(seen.validated) == len(plain.validated) > 2
    for changed, own in zip(seen.validated, plain.validated, strict=True):
        assert torch.equal(brighter.fields.image(own), brighter.fields.image(changed))


def test_draws_are_a_function_of_the_seed_and_the_number_of_batches(tmp_path):
    brighter = Brighter(seed=5)
    trainer = fit(tmp_path, [brighter], max_epochs=2, accumulate_grad_batches=2)
    assert stream(6, seed=5) == brighter.drawn
    assert brighter.state_dict() == {"batches": 6}

    trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed = Brighter(seed=5)
    fit(tmp_path, [resumed], max_epochs=3, accumulate_grad_batches=2, ckpt_path=tmp_path / "two.ckpt")
    assert stream(3, seed=5, start=6) == resumed.drawn


@pytest.mark.parametrize("run", ["validate", "test"])
def test_evaluating_an_older_file_does_not_rewind_the_draws(tmp_path, run):
    brighter, loader = Brighter(), ResumableLoader(labelled_images(18), 6)
    trainer = fit(tmp_path, [brighter])
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(trainer.lightning_module, loader)
    getattr(trainer, run)(trainer.lightning_module, loader, ckpt_path=tmp_path / "one.ckpt", verbose=False)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, loader)

    assert stream(9) == brighter.drawn
    assert brighter.state_dict() == {"batches": 9}


def test_a_new_run_of_the_same_callback_draws_anew(tmp_path):
    brighter = Brighter()
    fit(tmp_path, [brighter])
    fit(tmp_path, [brighter])

    assert stream(3) * 2 == brighter.drawn


def test_draws_differ_between_ranks(two_ranks, tmp_path):
    def drawn(folder):
        brighter = Brighter()
        fit(folder, [brighter], strategy="ddp", devices=2, use_distributed_sampler=False)
        return brighter.drawn

    assert [stream(3, rank=0), stream(3, rank=1)] == two_ranks(drawn, tmp_path)


def test_two_act_in_their_canonical_order_whatever_the_list(tmp_path):
    class Doubling(Brighter):
        def change(self, batch, random):
            return self.fields.replaced(batch, self.fields.image(batch) * 2, self.fields.target(batch))

    images = []
    for order in (1, -1):
        seen = Seen()
        fit(tmp_path, [*[Brighter(), Doubling()][::order], seen])
        images.append(seen.batches[0][0])
    plain = Seen()
    fit(tmp_path, [plain])

    assert torch.equal(images[0], (plain.batches[0][0] + stream(1)[0]) * 2)
    assert torch.equal(images[1], images[0])


def test_nothing_is_left_on_the_strategy_and_nothing_installed_when_off(tmp_path):
    off = Brighter(on=False)
    trainer = fit(tmp_path, [off])
    assert off.drawn == []

    class Fails(Plain):
        def training_step(self, batch, batch_idx):
            assert "batch_to_device" in vars(self.trainer.strategy)
            raise RuntimeError("step")

    with pytest.raises(RuntimeError, match="step"):
        fit(tmp_path, [Brighter()], module := Fails())
    assert "batch_to_device" not in vars(trainer.strategy)
    assert "batch_to_device" not in vars(module.trainer.strategy)


def test_a_step_that_fetches_its_batches_is_refused(tmp_path):
    class Fetching(Plain):
        def training_step(self, dataloader_iter):
            raise AssertionError

    with pytest.raises(ValueError) as raised:
        fit(tmp_path, [Brighter()], Fetching())

    expected = (
        "Brighter: training_step of Fetching takes `dataloader_iter`, so its batches cannot be reached; let it take "
        "`batch`."
    )
    assert expected == str(raised.value)


def test_a_step_that_fetches_its_batches_is_left_alone_where_nothing_trains(tmp_path):
    class Fetching(Plain):
        def training_step(self, dataloader_iter):
            raise AssertionError

    for brighter, run in ((Brighter(), "validate"), (Brighter(), "test")):
        trainer = quiet_trainer(default_root_dir=tmp_path, callbacks=[brighter])
        getattr(trainer, run)(Fetching(), ResumableLoader(labelled_images(12), 6), verbose=False)
        assert brighter.drawn == []


@pytest.mark.parametrize("seed", [-1, 1.5, True, None])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError) as raised:
        Brighter(seed=seed)

    assert f"Brighter: seed is {seed!r}; give a whole number of at least 0." == str(raised.value)
