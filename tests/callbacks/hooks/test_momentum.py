"""Momentum that the schedule seam moves: whose it is, in files, after the fit and after a resume."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vision.callbacks import ExactResume
from lightning_vision.callbacks.hooks._group_settings import momentum_of
from lightning_vision.callbacks.hooks.schedule import Schedule
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, TwoOptimizers
from support.optimizer_settings import BASES, Decayed, Settings
from support.resuming import KilledError, newest, record


class Falling(Schedule):
    """Halves rates every four steps and lets momentum fall by a hundredth with each."""

    neutral = ({"flat": True},)

    def __init__(self, replace=True, flat=False, still=False, name=None):
        super().__init__(replace=replace, name=name)
        self.flat, self.still = flat, still

    def factor(self, step):
        return 0.5 ** (step // 4)

    def momentum(self, step):
        return None if self.still else 0.8 - step / 100

    def plan(self, epoch, training):
        return None


class Mixed(Plain):
    """Adam with and without beta1."""

    def configure_optimizers(self):
        groups = [
            {"params": self.network[:-1].parameters(), "betas": (0.7, 0.99)},
            {"params": self.network[-1].parameters(), "betas": (0.0, 0.99)},
        ]
        return torch.optim.Adam(groups, lr=0.01)


class Keep(Callback):
    """The optimizers, for a look after the fit; may end it early."""

    def __init__(self, fails_at=None):
        self.fails_at = fails_at

    def on_train_batch_end(self, trainer, *args):
        self.optimizers = trainer.optimizers
        if trainer.global_step == self.fails_at:
            raise KilledError


def loader():
    return ResumableLoader(labelled_images(60), 6)


def fitted(module, schedule, *callbacks, **options):
    settings = Settings()
    torch.manual_seed(1)
    run = record(module, loader, [schedule, settings, *callbacks], **{"max_epochs": 1} | options)
    return settings.rows, run


FALLING = [0.8 - step / 100 for step in range(10)]


def test_momentum_follows_the_step_and_a_group_without_one_keeps_none():
    sgd, _ = fitted(Decayed(), Falling())
    adam, _ = fitted(Mixed(), Falling())

    assert [momenta for _, momenta in sgd] == [[it, it] for it in FALLING]
    assert [momenta for _, momenta in adam] == [[it, 0.0] for it in FALLING]


def test_adams_other_beta_stays():
    keep = Keep()
    fitted(Mixed(), Falling(), keep)

    assert [group["betas"][1] for group in keep.optimizers[0].param_groups] == [0.99, 0.99]


def test_a_schedule_without_momentum_leaves_it_alone():
    rows, _ = fitted(Decayed(), Falling(still=True))

    assert rows == [([base * 0.5 ** (step // 4) for base in BASES], [0.9, 0.9]) for step in range(10)]


def test_manual_optimisation_moves_the_momentum_of_all_optimizers():
    rows, _ = fitted(TwoOptimizers(), Falling())

    assert [momenta for _, momenta in rows] == [[0.8 - step / 100] for step in range(0, 20, 2) for _ in range(2)]


@pytest.mark.parametrize("fails_at", [None, 3])
@pytest.mark.parametrize(("module", "own"), [(Decayed, [0.9, 0.9]), (Mixed, [0.7, 0.0])])
def test_after_the_fit_optimizers_have_their_own_momentum(module, own, fails_at):
    keep = Keep(fails_at)
    fitted(module(), Falling(), keep)

    assert [momentum_of(group) for group in keep.optimizers[0].param_groups] == own


def test_files_hold_the_modules_own_momentum_and_a_resumed_run_goes_on(tmp_path):
    writer = ModelCheckpoint(tmp_path, every_n_train_steps=6)
    straight, _ = fitted(Decayed(), Falling(), ExactResume())
    fitted(Decayed(), Falling(), ExactResume(), writer, kill_at=7)
    groups = torch.load(newest(tmp_path), weights_only=True)["optimizer_states"][0]["param_groups"]
    resumed, _ = fitted(Decayed(), Falling(), ExactResume(), ckpt_path=newest(tmp_path))
    without, _ = fitted(Decayed(), Falling(flat=True), ExactResume(), ckpt_path=newest(tmp_path))

    assert [group["momentum"] for group in groups] == [0.9, 0.9]
    assert resumed == straight[6:]
    assert [momenta for _, momenta in without] == [[0.9, 0.9]] * 4


def test_where_no_group_has_momentum_moving_it_is_refused():
    class Bare(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    with pytest.raises(ValueError) as error:
        fitted(Bare(), Falling())

    assert str(error.value) == (
        "Falling: no parameter group of Bare has a momentum or a beta1 (SGD), so there is none to move; give the "
        "optimizer one above 0, or pass cycle_momentum=False."
    )


def test_base_rates_can_be_given_another_height_and_keep_their_ratio():
    class Higher(Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == 4:
                schedule.rebase(0.4)

    schedule = Falling(still=True)
    rows, _ = fitted(Decayed(), schedule, Higher())

    assert schedule.own_rate == 1.0
    assert [rates for rates, _ in rows[5:8]] == [pytest.approx([0.2, 0.05], rel=1e-15)] * 3
