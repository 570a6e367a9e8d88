"""The schedule seam on Trainers: rates follow `global_step` through resume, accumulation, skipped steps and two ranks.

The schedule here halves the rate every four steps; the mathematics of the real ones is proved beside them.
"""

import copy
import itertools
import warnings

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, IterableDataset

from lightning_vision.callbacks import ExactResume, OneCycle, WarmRestarts, WeightDecayRamp
from lightning_vision.callbacks.hooks.schedule import Schedule
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import PastLightning, Plain, TwoOptimizers
from support.resuming import KilledError, differences, newest, record
from support.trainers import quiet_trainer


class Halving(Schedule):
    """Halves the rates every four steps."""

    neutral = ({"flat": True},)

    def __init__(self, replace=False, flat=False, name=None):
        super().__init__(replace=replace, name=name)
        self.flat = flat
        self.lengths = None

    def factor(self, step):
        return 0.5 ** (step // 4)

    def plan(self, epoch, training):
        self.lengths = epoch, training


class Counting(Halving):
    """Wrong: it counts its own calls instead of reading where the Trainer stands."""

    def __init__(self, replace=False):
        super().__init__(replace)
        self.calls = -2  # before the first batch it is asked twice, at the start and by that batch

    def factor(self, step):
        self.calls += 1
        return super().factor(max(0, self.calls) // 2)


class Unscheduled(Plain):
    """Two groups with rates of their own and no schedule."""

    def configure_optimizers(self):
        groups = [
            {"params": self.network[:-1].parameters(), "lr": 0.08},
            {"params": self.network[-1].parameters(), "lr": 0.02},
        ]
        return torch.optim.SGD(groups, momentum=0.9)


class Rates(Callback):
    """`(global_step, rates)` of every optimizer step."""

    def __init__(self):
        self.rows = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rows.append((trainer.global_step, [group["lr"] for group in optimizer.param_groups]))


def loader(count=60):
    return ResumableLoader(labelled_images(count), 6)


def expected(steps, bases=(0.08, 0.02)):
    return [(step, [base * 0.5 ** (step // 4) for base in bases]) for step in steps]


# ---------------------------------------------------------------------------------------------------------------------
# Rates.
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 20), (3, 8)])
def test_each_group_gets_the_factor_times_its_own_base_rate(accumulate, steps):
    """Ten micro-batches an epoch in windows of three make four steps, the last window is short."""
    rates, schedule = Rates(), Halving()
    record(Unscheduled(), loader, [rates, schedule], max_epochs=2, accumulate_grad_batches=accumulate)

    assert rates.rows == expected(range(steps))
    assert schedule.lengths == (steps // 2, steps)


def test_a_rate_held_as_a_tensor_is_written_in_place():
    class OneTensor(Plain):
        def configure_optimizers(self):
            self.rate = torch.tensor(0.08, dtype=torch.float64)
            return torch.optim.SGD(self.parameters(), lr=self.rate)

    module = OneTensor()
    record(module, loader, [Halving()], max_epochs=1)

    assert module.rate.item() == 0.08 * 0.5**2


def test_a_step_that_the_scaler_skipped_counts():
    """Scaled by 2**22 gradients overflow in fp16 until the scale has been halved often enough."""
    rates, weights = Rates(), []

    class Weights(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            weights.append(pl_module.network[-1].weight.clone())

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**22))
    run = record(Unscheduled(), loader, [rates, Weights(), Halving()], max_epochs=1, plugins=[plugin])

    skipped = [torch.equal(before, after) for before, after in itertools.pairwise(weights)]
    assert skipped[0]
    assert not skipped[-1]
    assert rates.rows == expected(range(10))
    assert run.state["steps"] == (10, 1)


def test_the_rate_is_there_for_a_learning_rate_monitor():
    run = record(Unscheduled(), loader, [LearningRateMonitor(), Halving()], max_epochs=1, log_every_n_steps=1)
    logged = [row["lr-SGD/pg2"] for _, row in run.rows if "lr-SGD/pg2" in row]

    assert logged == [0.02 * 0.5 ** (step // 4) for step in range(10)]


def test_manual_optimisation_counts_the_steps_of_all_optimizers_together():
    seen = []

    class AtBatch(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append((type(optimizer).__name__, trainer.global_step, optimizer.param_groups[0]["lr"]))

    schedule = Halving()
    record(TwoOptimizers(), loader, [AtBatch(), schedule], max_epochs=1)

    assert seen == [
        row
        for step in range(0, 20, 2)
        for row in (("SGD", step, 0.05 * 0.5 ** (step // 4)), ("Adam", step + 1, 0.01 * 0.5 ** (step // 4)))
    ]
    assert schedule.lengths == (None, None)


# ---------------------------------------------------------------------------------------------------------------------
# Resume.
# ---------------------------------------------------------------------------------------------------------------------


def straight_killed_resumed(module, folder, saving, kill_at, callbacks, loaders=loader, **options):
    def run(part, seed, **how):
        torch.manual_seed(1)
        model = module()
        torch.manual_seed(seed)
        rates = Rates()
        writer = ModelCheckpoint(folder / part, filename="{epoch}-{step}", save_top_k=-1, **saving)
        return rates, record(model, loaders, [*callbacks(), rates, ExactResume(), writer], **options, **how)

    straight = run("straight", 3)
    killed = run("killed", 3, kill_at=kill_at)
    if dist.is_initialized():
        dist.barrier()
    return straight, killed, run("killed", 4, ckpt_path=newest(folder / "killed"))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("module", [Unscheduled, Plain, TwoOptimizers])
def test_a_run_resumed_in_mid_cycle_equals_the_straight_one(module, accumulate, tmp_path):
    options = {"max_epochs": 3}
    if module is not TwoOptimizers:
        options["accumulate_grad_batches"] = accumulate
    straight, killed, resumed = straight_killed_resumed(
        module, tmp_path, {"every_n_train_steps": 6}, 7, lambda: [Halving(replace=True)], **options
    )

    assert differences(straight[1], killed[1], resumed[1]) == []
    assert resumed[0].rows == straight[0].rows[-len(resumed[0].rows) :]


def test_resume_under_sparse_validation_is_not_an_epoch_off(tmp_path):
    """Validation every second epoch and files at each epoch's end, where others came back an epoch early."""
    straight, killed, resumed = straight_killed_resumed(
        Unscheduled,
        tmp_path,
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        35,
        lambda: [Halving()],
        lambda: (loader(), loader(12)),
        max_epochs=5,
        check_val_every_n_epoch=2,
    )

    assert differences(straight[1], killed[1], resumed[1]) == []
    assert resumed[0].rows == expected(range(30, 50))


def test_counting_calls_instead_of_steps_is_noticed(tmp_path):
    straight, killed, resumed = straight_killed_resumed(
        Unscheduled, tmp_path, {"every_n_train_steps": 6}, 7, lambda: [Counting()], max_epochs=3
    )

    assert straight[0].rows == expected(range(30))
    assert resumed[0].rows != straight[0].rows[-len(resumed[0].rows) :]
    assert differences(straight[1], killed[1], resumed[1]) != []


def test_two_ranks_resume_with_equal_weights_and_members(two_ranks, tmp_path):
    def case(folder):
        schedules = []

        def callbacks():
            schedules.append(WarmRestarts(4, 2, 0.1, snapshots=2, replace=True))
            return schedules[-1:]

        def shard():
            return ResumableLoader(labelled_images(120), 6, dist.get_rank(), 2)

        ddp = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "max_epochs": 2}
        saving = {"every_n_train_steps": 6}
        straight, killed, resumed = straight_killed_resumed(Plain, folder, saving, 7, callbacks, shard, **ddp)
        found = differences(straight[1], killed[1], resumed[1])
        return found, straight[0].rows, schedules[0].state_dict(), schedules[2].state_dict()

    first, second = two_ranks(case, tmp_path)

    assert first[0] + second[0] == []
    assert first[1] == second[1] == [(step, [0.05 * WarmRestarts(4, 2, 0.1).factor(step)]) for step in range(20)]
    for state in (first[3], second[2], second[3]):
        assert state["steps"] == [4, 12]
        for member, other in zip(state["members"], first[2]["members"], strict=True):
            assert all(torch.equal(member[name], other[name]) for name in other)


# ---------------------------------------------------------------------------------------------------------------------
# What it leaves alone, takes the place of and puts back.
# ---------------------------------------------------------------------------------------------------------------------


def test_off_leaves_the_run_and_the_modules_schedule_as_they_are():
    runs = []
    for callbacks in ([], [Halving(flat=True)], [WarmRestarts(4, eta_min=1.0, snapshots=2, replace=True)]):
        torch.manual_seed(0)
        runs.append(record(Plain(), loader, callbacks, max_epochs=2))

    for other in runs[1:]:
        assert differences(runs[0], other, other) == []


@pytest.mark.parametrize("ending", ["end", "exception"])
def test_the_modules_own_schedule_is_back_after_the_fit_and_untouched(ending):
    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            self.kinds = [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs]
            self.configs = trainer.lr_scheduler_configs

        def on_train_batch_end(self, trainer, *args):
            if ending == "exception" and trainer.global_step == 3:
                raise KilledError

    watch = Watch()
    record(Plain(), loader, [watch, Halving(replace=True)], max_epochs=1)

    assert watch.kinds == ["_Rate"]
    assert [(type(it.scheduler).__name__, it.scheduler.last_epoch) for it in watch.configs] == [("StepLR", 0)]


def test_the_base_rate_is_where_a_replaced_schedule_began():
    class WarmedUp(Plain):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.08)
            return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1)]

    rates = Rates()
    record(WarmedUp(), loader, [rates, Halving(replace=True)], max_epochs=1)

    assert rates.rows == expected(range(10), (0.08,))


def test_a_second_fit_on_the_same_trainer_goes_on_where_the_first_ended():
    rates = Rates()
    trainer = quiet_trainer(max_epochs=1, callbacks=[Halving(), rates])
    module = Unscheduled()
    trainer.fit(module, loader())
    trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_progress.current.completed + 1
    trainer.fit(module, loader())

    assert rates.rows == expected(range(20))


@pytest.mark.parametrize("module", [Unscheduled, Plain])
def test_a_file_has_the_keys_of_a_plain_run_and_loads_without_the_callback(module, tmp_path):
    files = []
    for name, callbacks in (("plain", []), ("halved", [Halving(replace=True)])):
        torch.manual_seed(0)
        writer = ModelCheckpoint(tmp_path / name, every_n_train_steps=4)
        record(module(), loader, [writer, *callbacks], max_steps=4, max_epochs=-1)
        files.append(torch.load(newest(tmp_path / name), weights_only=True))
    plain, halved = files

    assert halved["state_dict"].keys() == plain["state_dict"].keys()
    groups = [file["optimizer_states"][0]["param_groups"] for file in files]
    assert [group.keys() for group in groups[1]] == [group.keys() for group in groups[0]]
    kept = [state.keys() for state in halved["lr_schedulers"] if state]
    assert kept == [state.keys() for state in plain["lr_schedulers"]]
    assert set(halved["callbacks"]) == set(plain["callbacks"])
    path = newest(tmp_path / "halved")
    for callbacks in ([], [Halving(replace=True)]):
        run = record(module(), loader, callbacks, max_steps=6, max_epochs=-1, ckpt_path=path)
        assert run.state["steps"][0] == 6


def test_weights_only_files_resume_nothing_but_load(tmp_path):
    writer = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_weights_only=True)
    record(Unscheduled(), loader, [writer, WarmRestarts(2, snapshots=1)], max_steps=4, max_epochs=-1)

    assert "callbacks" not in torch.load(newest(tmp_path), weights_only=True)
    assert Unscheduled.load_from_checkpoint(newest(tmp_path), weights_only=True).network is not None


def test_once_lightnings_averaging_has_taken_its_place_it_sets_no_rates():
    used = []

    class Used(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            used.append(optimizer.param_groups[-1]["lr"])

    averaging = StochasticWeightAveraging(swa_lrs=0.5, swa_epoch_start=1, annealing_epochs=1)
    record(Unscheduled(), lambda: plain_loader(12), [averaging, Halving(), Used()], max_epochs=4)

    assert (used[:2], set(used[2:])) == ([0.02, 0.02], {0.5})


def test_a_rehearsal_says_nothing_of_an_unknown_end():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="OneCycle")
        warnings.filterwarnings("error", message="WeightDecayRamp")
        record(Plain(), loader, [OneCycle(replace=True), WeightDecayRamp()], fast_dev_run=True)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals.
# ---------------------------------------------------------------------------------------------------------------------


def refusal(module, callbacks, loaders=loader, **options):
    with warnings.catch_warnings(), pytest.raises(ValueError) as error:
        warnings.simplefilter("ignore")
        record(module, loaders, callbacks, **{"max_epochs": 2} | options)
    return str(error.value)


def test_a_module_with_a_schedule_is_refused():
    assert refusal(Plain(), [Halving()]) == (
        "Halving: Plain has a schedule of its own (StepLR), and two cannot set one rate; pass replace=True to take its "
        "place, or leave it out of configure_optimizers."
    )


def test_two_schedules_are_refused():
    assert refusal(Unscheduled(), [Halving(), WarmRestarts(2, replace=True)]) in (
        "Halving: Halving and WarmRestarts would set the same learning rates; keep one of them.",
        "Halving: WarmRestarts and Halving would set the same learning rates; keep one of them.",
    )


def test_a_group_that_comes_later_is_refused():
    class Unfreeze(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 2:
                pl_module.extra = torch.nn.Parameter(torch.zeros(1))
                trainer.optimizers[0].add_param_group({"params": [pl_module.extra]})

    assert refusal(Unscheduled(), [Unfreeze(), Halving()]) == (
        "Halving: SGD of Unscheduled had 2 parameter groups when training was set up and has 3 now, whose base rate is "
        "not known; return all groups from configure_optimizers."
    )


class Endless(IterableDataset):
    """Ten images, and no length."""

    def __iter__(self):
        return iter([labelled_images(10)[index] for index in range(10)])


@pytest.mark.parametrize(
    ("module", "callbacks", "loaders"),
    [
        (Unscheduled, [], lambda: DataLoader(Endless(), 2)),
        (TwoOptimizers, [], loader),
        (Unscheduled, [GradientAccumulationScheduler({1: 2})], loader),
    ],
    ids=["no length", "manual", "accumulation that changes"],
)
def test_epochs_of_unknown_length_are_refused_as_a_unit_and_steps_are_not(module, callbacks, loaders):
    sentence = refusal(module(), [WarmRestarts(1, interval="epoch"), *copy.deepcopy(callbacks)], loaders)

    assert sentence == (
        "WarmRestarts: how many optimizer steps an epoch has is not known (a loader without length, manual "
        "optimisation or a GradientAccumulationScheduler); give t_0 in steps with interval='step'."
    )
    assert record(module(), loaders, [WarmRestarts(2), *callbacks], max_epochs=2).state["steps"][1] == 2


def test_a_rehearsal_of_one_step_is_not_refused_for_its_length():
    for schedule in (WarmRestarts(4), WarmRestarts(4, interval="epoch")):
        run = record(Unscheduled(), loader, [schedule], fast_dev_run=True)
        assert run.state["steps"][0] == 1

    sentence = refusal(Unscheduled(), [WarmRestarts(4)], max_steps=1, max_epochs=-1)
    assert sentence.startswith("WarmRestarts: the first cycle takes 4 optimizer steps and training ends after 1;")


def test_steps_that_go_past_lightning_are_refused():
    assert refusal(PastLightning(), [Halving()]).startswith("Halving: SGD was stepped past Lightning")
    record(PastLightning(), loader, [Halving(flat=True)], max_epochs=1)
