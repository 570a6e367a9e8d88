"""LRRangeTest: its rule on curves and quadratics, a loop by hand, and what it leaves (nothing but a report).

That a fit after it is the fit without it under all conditions is also held by the conformance suite, which compares
everything of the two runs, beside other callbacks in `conformance/test_forerun.py`.
"""

import csv
import math
import threading
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from PIL import Image
from timm.optim.lookahead import Lookahead
from torchmetrics.classification import MulticlassAccuracy

from lightning_vision.callbacks import CyclicalLR, ExactResume, LRRangeTest, OneCycle
from lightning_vision.callbacks.schedules.lr_range_test import diverges, proposed_rates, rates_between, smoothed
from lightning_vision.datamodules import Digits
from support.compare import distance
from support.conformance.checks import EVERYTHING
from support.conformance.conditions import Condition
from support.conformance.runs import compare, fit
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Plain, TwoOptimizers, small_network
from support.optimizer_settings import BASES, Decayed, Settings
from support.resuming import KilledError, newest, record
from support.trainers import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Quadratic(LightningModule):
    """Loss h (w - noise)^2 / 2 for each weight."""

    def __init__(self, curvatures, noise=0.0):
        super().__init__()
        self.curvatures, self.noise = torch.tensor(curvatures), noise
        self.weight = torch.nn.Parameter(torch.ones(len(curvatures)))

    def training_step(self, batch, batch_idx):
        away = self.weight - self.noise * torch.randn(len(self.curvatures))
        return (self.curvatures * away.square()).sum() / 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def tried(module, test, loader=plain_loader, **options):
    """The test after a short fit, and what was printed."""
    torch.manual_seed(0)
    said = StringIO()
    with redirect_stdout(said):
        quiet_trainer(**{"max_steps": 1, "callbacks": [test]} | options).fit(module, loader())
    return test, said.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# The row of the catalogue of methods: everything is put back, and quadratics.
# ---------------------------------------------------------------------------------------------------------------------


class Remembering(Plain):
    """With a metric and a buffer that no checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(10)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def training_step(self, batch, batch_idx):
        self.seen += 1
        self.accuracy.update(self(batch[0]), batch[1])
        self.log("train/accuracy", self.accuracy)
        self.log("seen", self.seen)
        return super().training_step(batch, batch_idx)


def runs(*callbacks, **options):
    torch.manual_seed(1)
    return fit(Condition(**options), callbacks, module=Remembering())


@pytest.mark.parametrize(
    "options", [{}, {"precision": "fp16", "accumulate": 2, "clip": "norm"}], ids=["plain", "fp16, accumulated, clipped"]
)
def test_row_185_the_range_test_restores_model_and_optimizer_bit_for_bit(options):
    """Weights, buffers, optimizers, streams, metrics, logs and the loader's place are those of a run without it."""
    assert compare(runs(LRRangeTest(num_steps=8), **options), runs(**options), EVERYTHING) == []


def test_row_185_it_is_noticed_when_something_is_not_restored(monkeypatch):
    monkeypatch.setattr("lightning_vision.callbacks.hooks._trial_steps._write", lambda weights, values: None)
    found = compare(runs(LRRangeTest(num_steps=8)), runs(), EVERYTHING)

    assert [line.partition(" ")[0] for line in found][:2] == ["module", "optimizers"]


@pytest.mark.parametrize("mode", ["linear", "exponential"])
@pytest.mark.parametrize(("curvature", "noise"), [(1.3, 0.0), (40.0, 0.0), (4.0, 0.1)])
def test_row_185_on_a_quadratic_max_lr_lies_below_the_divergence_limit(curvature, mode, noise):
    """Gradient descent on h w^2 / 2 diverges above 2 / h."""
    test, _ = tried(Quadratic([curvature], noise), LRRangeTest(1e-4, 2.0, 100, mode))
    low, high = proposed_rates(*curve(test))

    assert 0.01 / curvature < high < 2 / curvature
    assert 0 < low <= high / 4


def test_row_185_among_several_curvatures_noise_shows_the_steepest():
    for mode in ("linear", "exponential"):
        test, _ = tried(Quadratic([4.0, 0.4, 0.04], 0.1), LRRangeTest(1e-4, 2.0, 100, mode))

        assert test.found.lr < 2 / 4.0


def test_images_that_are_augmented_and_shuffled_come_as_without_it():
    seen = []
    for tests in ((), (LRRangeTest(num_steps=30, max_lr=0.1),)):
        torch.manual_seed(0)
        module, batches = Plain(), []
        module.on_train_batch_start = lambda batch, index, batches=batches: batches.append(batch[0].clone())
        quiet_trainer(max_epochs=1, callbacks=list(tests), limit_val_batches=0).fit(module, datamodule=Digits())
        seen.append(torch.cat(batches))

    assert torch.equal(*seen)


# ---------------------------------------------------------------------------------------------------------------------
# The rule.
# ---------------------------------------------------------------------------------------------------------------------


def curve(test):
    return [row["lr"] for row in test.found.rows], [row["loss"] for row in test.found.rows]


def test_rates_are_equally_far_apart_or_in_equal_ratios():
    assert rates_between(0.0, 0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert rates_between(0.001, 1.0, 4, "exponential") == pytest.approx([0.001, 0.01, 0.1, 1.0])


def test_windows_are_centred_and_small_losses_survive_large_ones():
    assert smoothed([6.0, 0.0, 0.0, 3.0], 1).tolist() == [6.0, 0.0, 0.0, 3.0]
    assert smoothed([6.0, 0.0, 0.0, 3.0], 3).tolist() == [4.0, 2.0, 1.0, 2.0]
    assert smoothed([1e30, 1.0, 1e-30, 1e-30, 1e-30], 3)[3] == pytest.approx(1e-30)


@pytest.mark.parametrize(
    ("losses", "window", "ended"),
    [
        ([2.0, 1.0, 3.9], 1, False),
        ([2.0, 1.0, 4.1], 1, True),
        ([2.0, 1.0, 4.1], 2, False),
        ([2.0, math.inf], 5, True),
        ([2.0, math.nan], 5, True),
        ([-1.0, 1.9], 1, False),
        ([-1.0, 2.1], 1, True),
    ],
)
def test_it_ends_where_a_window_is_four_times_the_lowest(losses, window, ended):
    assert diverges(losses, window, 4.0) is ended


def test_to_watch_is_as_long_for_each_loss_and_says_what_all_losses_say(monkeypatch):
    generator, averaged, mean = torch.Generator().manual_seed(0), [], np.mean
    losses = (torch.rand(60, generator=generator) + 1).tolist()
    losses[40:50] = [9.0] * 10
    means = [float(mean(losses[max(0, end - 5) : end])) for end in range(1, 61)]
    expected = [means[at] > 4 * min(means[: at + 1]) for at in range(60)]
    monkeypatch.setattr(np, "mean", lambda them: averaged.append(len(them)) or mean(them))
    ends = LRRangeTest(window=5).ends()

    assert [ends(it) for it in losses] == expected == [diverges(losses[: at + 1], 5, 4.0) for at in range(60)]
    assert len(averaged) == 60 + 60 * 61 // 2
    assert any(expected)


def test_bounds_by_hand():
    """The fall from 2 to 1 is begun at 1.9, which is 0.3, but a quarter of half the lowest one's 0.6 is less."""
    rates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]

    assert proposed_rates(rates, [2.0, 2.0, 1.9, 1.5, 1.2, 1.0, 8.0], 1) == (0.075, 0.3)
    assert proposed_rates(rates, [2.0, 1.95, 1.5, 1.4, 1.3, 1.2, 1.0], 1) == (0.0875, 0.35)
    assert proposed_rates([0.001, 0.01, 0.1, 1.0], [2.0, 1.8, 1.0, math.nan], 1) == (0.01, 0.05)
    assert proposed_rates(rates, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6], 1) is None
    assert proposed_rates(rates[:1], [math.nan], 5) is None


# ---------------------------------------------------------------------------------------------------------------------
# A loop by hand, what is written, and what follows.
# ---------------------------------------------------------------------------------------------------------------------


def by_hand(rates, accumulate=1, ratio=BASES[1] / BASES[0], momentum=0.9):
    """Losses of SGD before each step, on the loader's batches from the first one on, again and again."""
    torch.manual_seed(1)
    network = small_network(dropout=0.0)
    optimizer = torch.optim.SGD([{"params": it.parameters()} for it in (network[:-1], network[-1])], 1, momentum)
    batches, losses = list(plain_loader(20)), []
    for step, rate in enumerate(rates):
        optimizer.zero_grad()
        found = []
        for number in range(accumulate * step, accumulate * (step + 1)):
            image, target = batches[number % len(batches)]
            loss = F.cross_entropy(network(image), target)
            (loss / accumulate).backward()
            found.append(float(loss))
        for group, share in zip(optimizer.param_groups, (1.0, ratio), strict=True):
            group["lr"] = rate * share
        optimizer.step()
        losses.append(sum(found) / accumulate)
    return losses


@pytest.mark.parametrize("accumulate", [1, 3])
def test_its_losses_are_those_of_a_loop_by_hand_and_wrong_ones_are_noticed(accumulate):
    torch.manual_seed(1)
    module, test = Decayed(0.0), LRRangeTest(0.01, 0.5, 12)
    trainer = quiet_trainer(max_steps=1, callbacks=[test], accumulate_grad_batches=accumulate)
    trainer.fit(module, plain_loader(20))
    rates, losses = curve(test)

    assert losses == by_hand(rates, accumulate)
    for wrong in ({"ratio": 1.0}, {"momentum": 0.0}):
        assert max(abs(a - b) for a, b in zip(losses, by_hand(rates, accumulate, **wrong), strict=True)) > 1e-3


class Flat(LightningModule):
    """A linear layer, of which the mean over two ranks is that over both ranks' images."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_two_ranks_take_the_same_steps_and_propose_the_same(two_ranks, tmp_path):
    def ranked(module, *tests, **options):
        torch.manual_seed(1)
        made = module()
        torch.manual_seed(2 + dist.get_rank())
        shard = ResumableLoader(labelled_images(120), 6, dist.get_rank(), 2)
        ddp = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "max_epochs": 1}
        return record(made, lambda: shard, tests, **ddp, **options).state["weights"]

    def case(folder):
        test, linear = LRRangeTest(1e-3, 2.0, 20), LRRangeTest(1e-3, 0.5, 10)
        apart = distance(ranked(Plain), ranked(Plain, test, default_root_dir=folder))
        ranked(Flat, linear, default_root_dir=folder)
        return test.found, apart, linear.found

    (first, apart, linear), (second, _, _) = two_ranks(case, tmp_path)
    torch.manual_seed(1)
    one = LRRangeTest(1e-3, 0.5, 10)
    quiet_trainer(max_steps=1, callbacks=[one]).fit(Flat(), ResumableLoader(labelled_images(120), 12))

    assert first == second
    assert first.lr is not None
    assert apart == 0.0
    assert [it["loss"] for it in linear.rows] == pytest.approx(curve(one)[1], rel=1e-5)


def test_it_writes_a_table_a_picture_and_a_line_with_settings(tmp_path):
    test, said = tried(Quadratic([4.0]), LRRangeTest(1e-4, 1.0, 50))
    low, high = proposed_rates(*curve(test))
    (picture,) = Path("media/train/lr_range_test").iterdir()
    with open("report/lr_range_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))

    assert said == (
        f"LRRangeTest: base_lr={low:g} and max_lr={high:g}: --callbacks.cyclical_lr.base_lr {low:g} "
        f"--callbacks.cyclical_lr.max_lr {high:g}, or --callbacks.one_cycle.max_lr {high:g}; the curve is in "
        f"{Path('report/lr_range_test.csv').resolve()}\n"
    )
    assert list(rows[0]) == ["step", "lr", "loss", "smoothed"]
    assert [float(row["loss"]) for row in rows] == pytest.approx(curve(test)[1], rel=1e-5)
    assert Image.open(picture).size == (640, 360)


def test_it_stops_early_where_the_loss_diverges():
    test, _ = tried(Quadratic([4.0]), LRRangeTest(1e-4, 10.0, 100))

    assert 2 < len(test.found.rows) < 20


def test_where_the_loss_never_falls_nothing_is_proposed():
    test, said = tried(Quadratic([100.0]), LRRangeTest(0.5, 1.0, 10))

    assert test.found.lr is None
    assert said.startswith("LRRangeTest: the loss never fell between 0.5 and ")


def test_a_first_loss_that_is_not_finite_is_no_matter_of_rates():
    test, said = tried(Quadratic([float("nan")]), LRRangeTest(num_steps=10))

    assert test.found.lr is None
    assert said.startswith("LRRangeTest: the first loss is nan, before any step was taken, so no rate is to blame; ")


def test_where_the_loss_still_falls_at_the_end_it_says_so():
    _, said = tried(Quadratic([1.0]), LRRangeTest(1e-4, 0.1, 40, window=1))

    assert "max_lr=0.05 or more, for the loss still fell at the last rate:" in said


def test_used_the_proposal_is_the_rate_of_the_highest_group():
    settings, test = Settings(), LRRangeTest(1e-3, 2.0, 30, then="use")
    tried(Decayed(), test, callbacks=[test, settings], max_steps=3)

    assert [rates for rates, _ in settings.rows] == [[test.found.lr, test.found.lr * (BASES[1] / BASES[0])]] * 3


@pytest.mark.parametrize("schedule", [CyclicalLR(3), OneCycle(pct_start=0.5)])
def test_used_it_is_what_a_schedule_takes_for_the_modules_own_rate(schedule):
    settings, test = Settings(), LRRangeTest(1e-3, 2.0, 30, then="use")
    tried(Decayed(), test, callbacks=[schedule, settings, test], max_steps=8)

    assert max(rates[0] for rates, _ in settings.rows) == pytest.approx(test.found.lr, rel=1e-12)


def test_used_beside_bounds_that_are_given_the_given_ones_hold():
    settings, test = Settings(), LRRangeTest(1e-3, 2.0, 30, then="use")
    tried(Decayed(), test, callbacks=[CyclicalLR(3, max_lr=0.77), settings, test], max_steps=6)

    assert max(rates[0] for rates, _ in settings.rows) == pytest.approx(0.77, rel=1e-12)


@pytest.mark.parametrize("schedules", [lambda: [], lambda: [CyclicalLR(4)]], ids=["constant", "cyclical"])
def test_a_resumed_run_does_not_repeat_it_and_keeps_the_rate(schedules, tmp_path):
    def run(**options):
        torch.manual_seed(1)
        settings, test = Settings(), LRRangeTest(1e-3, 2.0, 30, then="use")
        saving = [ModelCheckpoint(tmp_path, every_n_train_steps=6)] if "kill_at" in options else []
        loader = ResumableLoader(labelled_images(60), 6)
        record(Decayed(), lambda: loader, [*schedules(), settings, ExactResume(), test, *saving], **options)
        return settings.rows, test.found

    straight, found = run(max_epochs=1)
    run(max_epochs=1, kill_at=7)
    resumed, again = run(max_epochs=1, ckpt_path=newest(tmp_path))

    assert found is not None
    assert again is None
    assert resumed == straight[6:]


@pytest.mark.parametrize("schedules", [(), (CyclicalLR(4),)], ids=["constant", "cyclical"])
def test_a_fit_that_is_prolonged_keeps_the_rate(schedules):
    torch.manual_seed(0)
    settings, test = Settings(), LRRangeTest(1e-3, 0.5, 30, "exponential", then="use")
    trainer, module = quiet_trainer(max_steps=8, callbacks=[*schedules, settings, test]), Decayed()
    trainer.fit(module, plain_loader())
    trainer.fit_loop.epoch_loop.max_steps = 20
    trainer.fit(module, plain_loader())
    highest = [max(rates[0] for rates, _ in rows) for rows in (settings.rows[:8], settings.rows[8:])]

    assert highest == pytest.approx([test.found.lr] * 2, rel=1e-12)


def test_stopped_no_step_is_taken():
    module = Plain()
    before = {name: it.clone() for name, it in module.state_dict().items()}
    test = LRRangeTest(num_steps=5, then="stop")
    trainer = quiet_trainer(max_epochs=2, callbacks=[test])
    trainer.fit(module, plain_loader())

    assert trainer.global_step == 0
    assert test.found is not None
    assert distance(module.state_dict(), before) == 0.0


class Draws(Plain):
    """Noise from a generator of its own, and a running mean in a plain tensor that the loss reads."""

    def __init__(self):
        super().__init__()
        self.noise, self.mean, self.steps = torch.Generator().manual_seed(3), torch.zeros(1, 1, 8, 8), [0]

    def training_step(self, batch, batch_idx):
        image, target = batch
        self.mean = 0.9 * self.mean + 0.1 * image.mean(0, keepdim=True)
        self.steps[0] += 1
        return super().training_step((image - self.mean + torch.randn(8, generator=self.noise), target), batch_idx)


def test_what_a_module_keeps_in_plain_attributes_is_put_back():
    made = []
    for tests in ((), (LRRangeTest(num_steps=8),)):
        torch.manual_seed(1)
        module = Draws()
        quiet_trainer(max_steps=4, callbacks=list(tests)).fit(module, plain_loader())
        made.append(module)

    assert distance(*(it.state_dict() for it in made)) == 0.0
    assert made[1].steps == [4]
    assert torch.equal(made[0].mean, made[1].mean)


class LooksAhead(Plain):
    def configure_optimizers(self):
        return Lookahead(torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9), k=2)


def test_an_optimizer_with_attributes_of_its_own_is_copied_with_them():
    states = []
    for tests in ((), (LRRangeTest(num_steps=7),)):
        torch.manual_seed(1)
        module = LooksAhead()
        quiet_trainer(max_steps=5, callbacks=list(tests)).fit(module, plain_loader())
        states.append(module.state_dict())

    assert len(tests[0].found.rows) > 4
    assert distance(*states) == 0.0


def test_steps_accumulate_as_lightnings_scheduler_says_for_the_first_epoch():
    class Counts(Plain):
        calls = 0

        def training_step(self, batch, batch_idx):
            type(self).calls += 1
            return super().training_step(batch, batch_idx)

    test = LRRangeTest(1e-3, 1e-2, num_steps=3, then="stop")
    tried(Counts(), test, callbacks=[test, GradientAccumulationScheduler({0: 4, 1: 2})], max_epochs=2, max_steps=-1)

    assert Counts.calls == 12


def test_after_an_exception_inside_the_weights_are_back():
    class Breaks(Plain):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise KilledError
            return super().training_step(batch, batch_idx)

    module = Breaks()
    before = {name: it.clone() for name, it in module.state_dict().items()}
    with pytest.raises(KilledError):
        tried(module, LRRangeTest(num_steps=8, max_lr=0.1))

    assert distance(module.state_dict(), before) == 0.0


def test_a_rehearsal_has_none():
    test, said = tried(Plain(), LRRangeTest(num_steps=8), fast_dev_run=True)

    assert (test.found, said) == (None, "")


# ---------------------------------------------------------------------------------------------------------------------
# Refusals.
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mode": "cos"}, "mode is 'cos'; give 'linear' or 'exponential'."),
        ({"min_lr": -1.0}, "min_lr is -1.0; give a finite number of at least 0."),
        ({"min_lr": 2.0}, "max_lr=1.0 is not above min_lr=2.0; raise it."),
        (
            {"min_lr": 0.0, "mode": "exponential"},
            "min_lr is 0, from which no ratio leads up; give a rate above 0, or 'linear'.",
        ),
        ({"num_steps": 1}, "num_steps is 1, and a curve takes at least 2; give more, or 0 for no test."),
        ({"window": 0}, "window is 0; give a whole number of at least 1."),
        ({"divergence": 1}, "divergence is 1, which every loss reaches; give a number above 1."),
        ({"then": "go"}, "then is 'go'; give 'report', 'use' or 'stop'."),
    ],
)
def test_a_setting_outside_its_range_is_refused(settings, sentence):
    with pytest.raises(ValueError) as error:
        LRRangeTest(**settings)

    assert str(error.value) == f"LRRangeTest: {sentence}"


class Closes(Plain):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1)


class Locks(Plain):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        optimizer.lock = threading.Lock()
        return optimizer


class Silent(Plain):
    def training_step(self, batch, batch_idx):
        return None


class Late(Plain):
    def on_train_start(self):
        self.scale = 2.0

    def training_step(self, batch, batch_idx):
        return self.scale * super().training_step(batch, batch_idx)


class Frozen(Plain):
    def configure_optimizers(self):
        return None


class Locked:
    """A loader that cannot be copied."""

    def __iter__(self):
        return iter(plain_loader())

    def __len__(self):
        return 10

    def __deepcopy__(self, memo):
        raise TypeError("it holds a lock")


@pytest.mark.parametrize(
    ("module", "settings", "loader", "sentence"),
    [
        (TwoOptimizers, {}, plain_loader, "TwoOptimizers optimises manually, so its training_step takes steps itself"),
        (Plain, {"then": "use"}, plain_loader, "then='use' sets a rate, and StepLR of Plain would set another; add "),
        (Plain, {}, lambda: [plain_loader(), plain_loader()], "it reads one training loader and there are several; "),
        (Plain, {}, Locked, "the training loader, a Locked, cannot be copied (it holds a lock), so reading from it "),
        (Closes, {}, plain_loader, "LBFGS computes the loss several times in each step, so there is no loss before "),
        (Locks, {}, plain_loader, "SGD cannot be copied for steps that leave no trace, for its lock cannot (cannot "),
        (
            Late,
            {},
            plain_loader,
            "training_step of Late failed (AttributeError: 'Late' object has no attribute 'scale') ",
        ),
        (Frozen, {}, plain_loader, "Frozen has no optimizer, so there is no rate to try; return one from "),
        (Silent, {}, plain_loader, "training_step of Silent returned no loss for a batch, so there is nothing to "),
    ],
    ids=[
        *("manual", "a schedule of the module's", "several loaders", "no copy", "closure", "a lock", "set up late"),
        *("no optimizer", "no loss"),
    ],
)
def test_what_cannot_be_tried_is_refused(module, settings, loader, sentence):
    with pytest.raises(ValueError) as error:
        tried(module(), LRRangeTest(**settings), loader)

    assert str(error.value).startswith(f"LRRangeTest: {sentence}")


@pytest.mark.parametrize(
    ("then", "options", "sentence"),
    [
        (
            "stop",
            {"min_epochs": 1},
            "then='stop' ends the fit before its first step, and min_epochs=1 or min_steps=None",
        ),
        ("stop", {"min_steps": 3}, "then='stop' ends the fit before its first step, and min_epochs=1 or min_steps=3"),
        ("report", {"overfit_batches": 1}, "overfit_batches=1 trains on a few batches alone, and the test would read"),
    ],
)
def test_a_trainer_that_goes_on_or_reads_other_batches_is_refused(then, options, sentence):
    with pytest.raises(ValueError) as error:
        tried(Plain(), LRRangeTest(num_steps=3, then=then), **options)

    assert str(error.value).startswith(f"LRRangeTest: {sentence}")


def test_two_are_refused():
    with pytest.raises(ValueError, match="LRRangeTest: the Trainer has several, and one is enough before a fit"):
        tried(Plain(), LRRangeTest(name="a"), callbacks=[LRRangeTest(name="a"), LRRangeTest(name="b")])
