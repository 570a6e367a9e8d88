"""Which validations and tests are watched."""

import pytest

from lightning_vision.callbacks.hooks.evaluation import Evaluation
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class Notes(Evaluation):
    """Notes the epoch of what it is told."""

    def __init__(self, every_n_epochs):
        super().__init__(every_n_epochs=every_n_epochs)
        self.notes = []

    def starts(self, trainer, pl_module, stage):
        self.notes.append(("start", stage, trainer.current_epoch))

    def batch_ends(self, trainer, pl_module, outputs, batch, batch_index, stage):
        self.notes.append((batch_index, stage, trainer.current_epoch))

    def ends(self, trainer, pl_module, stage):
        self.notes.append(("end", stage, trainer.current_epoch))


def epochs(every_n_epochs, **options):
    callback = Notes(every_n_epochs)
    trainer = quiet_trainer(callbacks=[callback], num_sanity_val_steps=0, limit_train_batches=3, **options)
    trainer.fit(Plain(), plain_loader(), plain_loader(6))
    return [epoch for what, _, epoch in callback.notes if what == "start"]


@pytest.mark.parametrize(
    ("every_n_epochs", "options", "expected"),
    [
        (1, {"max_epochs": 3}, [0, 1, 2]),
        (2, {"max_epochs": 5}, [0, 2, 4]),
        (0, {"max_epochs": 2}, []),
        (2, {"max_epochs": 3, "val_check_interval": 2}, [0, 2]),
        # Validations after epochs 1, 3, 5, 7: none of them is an even one.
        (2, {"max_epochs": 8, "check_val_every_n_epoch": 2}, [1, 3, 5, 7]),
        (4, {"max_epochs": 8, "check_val_every_n_epoch": 2}, [1, 5]),
        (3, {"max_epochs": 8, "check_val_every_n_epoch": 2}, [1, 3, 7]),
        # Every seven batches of three an epoch: in epochs 2, 4 and 6.
        (1, {"max_epochs": 8, "check_val_every_n_epoch": None, "val_check_interval": 7}, [2, 4, 6]),
        (5, {"max_epochs": 8, "check_val_every_n_epoch": None, "val_check_interval": 7}, [2, 6]),
    ],
)
def test_validations_of_every_nth_epoch_are_watched_or_the_next_ones(every_n_epochs, options, expected):
    assert epochs(every_n_epochs, **options) == expected


def test_a_sanity_check_a_validation_and_a_test_are_watched_whatever_the_epoch():
    callback = Notes(7)
    trainer = quiet_trainer(callbacks=[callback], max_epochs=2, limit_train_batches=1)
    trainer.fit(Plain(), plain_loader(), plain_loader(6))
    trainer.validate(Plain(), plain_loader(6), verbose=False)
    trainer.test(Plain(), [plain_loader(6)], verbose=False)

    assert callback.notes == [
        *[("start", "val", 0), (0, "val", 0), ("end", "val", 0)] * 2,
        *[("start", "val", 2), (0, "val", 2), ("end", "val", 2)],
        *[("start", "test", 2), (0, "test", 2), ("end", "test", 2)],
    ]


@pytest.mark.parametrize("value", [-1, 1.5, True, "1"])
def test_a_number_of_epochs_that_is_none_is_refused(value):
    with pytest.raises(ValueError) as refusal:
        Notes(value)

    assert str(refusal.value) == f"Notes: every_n_epochs is {value!r}; give a whole number of at least 0."
