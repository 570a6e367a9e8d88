"""SWA equals torch's `AveragedModel` and `update_bn` in a loop by hand, and leaves the training what it is."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, StochasticWeightAveraging
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn, update_bn
from torch.utils.data import DataLoader

from lightning_vision.callbacks import SWA, ExactResume, WarmRestarts
from lightning_vision.callbacks.averaging.swa import swa_share
from support.compare import distance
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, TwoOptimizers
from support.resuming import Recorder
from support.trainers import quiet_trainer


class Still(Plain):
    """Without dropout, so that measuring draws nothing."""

    def __init__(self):
        super().__init__(dropout=0.0)


def loaders():
    return ResumableLoader(labelled_images(60), 6), DataLoader(labelled_images(24, seed=1), 6)


def fitted(*callbacks, module=Still, data=None, **options):
    """The module after epochs of ten steps, and its Trainer."""
    torch.manual_seed(3)
    made = module()
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 4, "num_sanity_val_steps": 0} | options)
    trainer.fit(made, *(data or loaders()))
    return made, trainer


def by_hand(start, every, mutant="", epochs=4):
    """A loop as torch's documentation writes it: the averaged network, and the trained one."""
    torch.manual_seed(3)
    module = Still()
    optimizer = module.configure_optimizers()["optimizer"]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.8)
    average = AveragedModel(module.network, multi_avg_fn=get_swa_multi_avg_fn())
    loader, steps = ResumableLoader(labelled_images(60), 6), 0
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for image, target in loader:
            optimizer.zero_grad()
            F.cross_entropy(module(image), target).backward()
            optimizer.step()
            schedule.step()
            steps += 1
            if steps >= start and (steps - start) % every == 0:
                average.update_parameters(module.network)
    if mutant != "statistics of training":
        update_bn(loader, average)
    averaged = {f"network.{name}": value for name, value in average.module.state_dict().items()}
    return averaged, module.state_dict()


def floats(state):
    return {name: value for name, value in state.items() if value.is_floating_point()}


CASES = {
    "epochs": ({"start_fraction": 0.5}, (20, 10)),
    "from a step, at ends of epochs": ({"start_step": 15}, (20, 10)),
    "steps": ({"start_step": 12, "every_n_steps": 7}, (12, 7)),
    "fraction and steps": ({"start_fraction": 0.3, "every_n_steps": 4}, (12, 4)),
    "one before the end": ({}, (30, 10)),
}


@pytest.mark.parametrize("case", CASES)
def test_average_statistics_and_training_equal_torchs_in_a_loop_by_hand(case):
    settings, hand = CASES[case]
    swa = SWA(**settings)
    module, _ = fitted(swa)
    average, raw = by_hand(*hand)

    assert distance(floats(module.state_dict()), floats(average)) == 0.0
    assert all(torch.equal(value, raw[name]) for name, value in swa.state_dict()["raw"].items())
    assert module.network[1].num_batches_tracked == raw["network.1.num_batches_tracked"] == 40


@pytest.mark.parametrize(
    ("hand", "mutant"), [((20, 10), "statistics of training"), ((10, 10), ""), ((20, 5), ""), ((19, 10), "")]
)
def test_a_wrong_average_is_noticed(hand, mutant):
    module, _ = fitted(SWA(start_fraction=0.5))
    wrong, _ = by_hand(*hand, mutant)

    assert distance(floats(module.state_dict()), floats(wrong)) > 1e-4


def test_an_average_of_a_straight_line_is_its_middle():
    """The average of the weights 4, 5, 6, 7 and 8 is 6."""

    class Line(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def training_step(self, batch):
            return -self.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    module, _ = fitted(SWA(start_step=4, every_n_steps=1), module=Line, max_steps=8, data=(loaders()[0],))

    assert pytest.approx(6.0, abs=1e-12) == module.weight.item()


def test_shares_make_an_equal_average():
    left = [1.0]
    for updates in range(9):
        left = [it * (1 - swa_share(updates)) for it in left] + [swa_share(updates)]

    assert pytest.approx([0.1] * 10, abs=1e-15) == left


def test_every_validation_scores_measured_statistics_and_the_best_file_holds_them(tmp_path):
    class Judged(Still):
        def on_validation_epoch_end(self):
            seen.append(copy.deepcopy(self.state_dict()))

    seen = []
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="val/loss", save_top_k=-1)
    fitted(SWA(start_fraction=0.25), best, module=Judged, enable_checkpointing=True)
    for epoch, scored in enumerate(seen):
        filed = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]

        assert distance(filed, scored) == 0.0
        if epoch > 0:
            judge = Still()
            judge.load_state_dict(scored)
            loader = ResumableLoader(labelled_images(60), 6)
            loader.sampler.set_epoch(epoch)
            update_bn(loader, judge.network)
            assert distance(floats(judge.state_dict()), floats(scored)) == 0.0


# What Lightning's own callback does to a training, each beside what this one does.


def rates(*callbacks, module=Plain):
    recorder = Recorder()
    _, trainer = fitted(*callbacks, LearningRateMonitor("step"), module=module, logger=recorder, log_every_n_steps=1)
    found = [(step, name, it) for step, row in recorder.rows for name, it in row.items() if name.startswith("lr-")]
    losses = [(step, row["train/loss_step"]) for step, row in recorder.rows if "train/loss_step" in row]
    return found, losses, trainer


@pytest.mark.filterwarnings("ignore:.*Swapping scheduler")
def test_schedule_length_and_losses_are_those_of_a_run_without_it_unlike_lightnings():
    plain_rates, plain_losses, plain = rates()
    own_rates, own_losses, own = rates(SWA(start_fraction=0.5))
    their_rates, _, _ = rates(StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=0.5))

    assert plain_rates == own_rates != their_rates
    assert plain_losses == own_losses != []
    assert (own.global_step, own.current_epoch, own.max_epochs) == (40, 4, 4)
    assert plain.max_epochs == own.max_epochs


def test_two_optimizers_are_averaged_where_lightnings_refuses():
    swa = SWA(start_fraction=0.5, bn_batches=0)
    _, trainer = fitted(swa, module=TwoOptimizers)

    assert trainer.global_step == 80
    assert swa.updates == 2
    with pytest.raises(Exception, match="SWA currently works with 1 `optimizer`"):
        fitted(StochasticWeightAveraging(swa_lrs=0.05), module=TwoOptimizers)


def test_it_counts_steps_where_lightnings_counts_epochs_and_needs_their_number():
    swa = SWA(start_step=5, every_n_steps=5)
    _, trainer = fitted(swa, max_epochs=-1, max_steps=18)

    assert trainer.global_step == 18
    assert swa.updates == 2  # 5, then 10 and 15
    assert SWA(start_fraction=0.5).start_step == 0
    halves = SWA(start_fraction=0.5, every_n_steps=3)
    fitted(halves, max_epochs=-1, max_steps=18)
    assert halves.updates == 3  # 9, then 12, 15 and 18


def test_the_average_of_the_lows_of_a_cyclical_rate_is_that_of_the_weights_at_the_restarts():
    weights = []

    class Kept(Still):
        def on_train_batch_end(self, *_):
            if self.trainer.global_step % 8 == 0:
                weights.append(self.network[5].weight.detach().double().clone())

    cycles = WarmRestarts(t_0=8, interval="step", replace=True)
    module, _ = fitted(SWA(start_step=8, every_n_steps=8), cycles, module=Kept)

    assert len(weights) == 5
    assert torch.allclose(module.network[5].weight.double(), torch.stack(weights).mean(0), atol=1e-7)


def test_measuring_leaves_loader_streams_metrics_and_logs_alone():
    """A loader with a generator of its own, workers that stay, dropout, and validation within epochs."""

    def run(*callbacks):
        generator = torch.Generator().manual_seed(1)
        kept = {"num_workers": 1, "persistent_workers": True}
        train = DataLoader(labelled_images(60), 6, shuffle=True, generator=generator, **kept)
        recorder = Recorder()
        options = {"val_check_interval": 4, "logger": recorder, "log_every_n_steps": 1, "max_epochs": 3}
        fitted(*callbacks, module=Plain, data=(train, loaders()[1]), **options)
        rows = [(step, {name: it for name, it in row.items() if "val" not in name}) for step, row in recorder.rows]
        return rows, generator.get_state(), torch.get_rng_state()

    plain, averaged = run(), run(SWA(start_step=4, every_n_steps=3))

    assert plain[0] == averaged[0] != []
    assert torch.equal(plain[1], averaged[1])
    assert torch.equal(plain[2], averaged[2])


@pytest.mark.parametrize(("saved_every", "resume_at"), [(7, 14), (10, 20), (13, 26)])
def test_a_resumed_run_equals_the_straight_one(saved_every, resume_at, tmp_path):
    ends = []
    for path in (None, tmp_path / f"step={resume_at}.ckpt"):
        torch.manual_seed(5 if path is None else 6)
        module, swa = Plain(), SWA(start_step=11, every_n_steps=4)
        writer = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=saved_every, save_top_k=-1)
        options = {"val_check_interval": 5, "num_sanity_val_steps": 2, "max_epochs": 3}
        trainer = quiet_trainer(callbacks=[swa, ExactResume(), writer], enable_checkpointing=True, **options)
        trainer.fit(module, *loaders(), ckpt_path=path, weights_only=True)
        ends.append({**module.state_dict(), **{f"raw.{name}": it for name, it in swa.state_dict()["raw"].items()}})

    assert distance(*ends) == 0.0


def test_half_the_batches_are_measured_on_if_wanted_and_none_are_with_zero():
    some, _ = fitted(SWA(start_fraction=0.5, bn_batches=3))
    none, _ = fitted(SWA(start_fraction=0.5, bn_batches=0))
    judge = Still()
    judge.load_state_dict(some.state_dict())
    loader = ResumableLoader(labelled_images(60), 6)
    loader.sampler.set_epoch(3)
    update_bn(list(loader)[:3], judge.network)

    assert torch.equal(judge.network[1].running_var, some.network[1].running_var)
    assert torch.equal(none.network[5].weight, some.network[5].weight)
    assert not torch.equal(none.network[1].running_var, some.network[1].running_var)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_fraction": 1.5}, "SWA: start_fraction is 1.5; give a number from 0 to 1."),
        ({"start_fraction": -0.1}, "SWA: start_fraction is -0.1; give a number from 0 to 1."),
        ({"start_step": -1}, "SWA: start_step is -1; give a whole number of at least 0."),
        (
            {"start_fraction": 0.5, "start_step": 3},
            "SWA: both start_fraction=0.5 and start_step=3 were given; leave one of them None.",
        ),
        ({"every_n_steps": 0}, "SWA: every_n_steps is 0; give a whole number of at least 1."),
        ({"bn_batches": -1}, "SWA: bn_batches is -1; give a whole number of at least 0."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        SWA(**settings)

    assert message == str(error.value)


def test_a_training_without_an_end_is_refused_before_it_begins():
    with pytest.raises(
        ValueError, match=r"^SWA: the training has no end of which start_fraction could be a part; give"
    ):
        fitted(SWA(start_fraction=0.5), max_epochs=-1)


def test_a_training_that_ends_before_the_average_begins_says_so():
    with pytest.warns(UserWarning, match="^SWA: the training ended before the average took in any weights, so scores"):
        fitted(SWA(start_step=100), max_epochs=1)


@pytest.mark.parametrize(("gamma", "spoken"), [(1.0, False), (0.2, True)])
def test_a_learning_rate_that_falls_while_weights_are_averaged_is_told_of(gamma, spoken):
    class Falling(Still):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(SWA(start_fraction=0.25), module=Falling)

    told = [str(it.message) for it in caught if "SWA: the learning rate fell from" in str(it.message)]
    assert spoken == (len(told) == 1)
