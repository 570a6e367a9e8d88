"""WarmRestarts against the closed form, torch's and timm's schedules, and loops written from Eq. 5.

What any schedule must survive (resume, accumulation, skipped steps, two ranks) is proved in `hooks/test_schedule.py`,
snapshots in general in `hooks/test_ensemble.py`.
"""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from lightning_vision.callbacks import ExactResume, WarmRestarts
from lightning_vision.callbacks.schedules.warm_restarts import cosine_annealing, restart_position, restart_start
from support.compare import distance
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, small_network
from support.resuming import newest, record

BASES = (0.08, 0.02)  # trunk and head, as layer-wise decay would set them


class Decayed(Plain):
    """Two groups with learning rates of their own, no schedule."""

    def configure_optimizers(self):
        groups = [
            {"params": self.network[:-1].parameters(), "lr": BASES[0]},
            {"params": self.network[-1].parameters(), "lr": BASES[1]},
        ]
        return torch.optim.SGD(groups, momentum=0.9)


class Rates(Callback):
    """The learning rates of every optimizer step, as the optimizer itself sees them."""

    def __init__(self):
        self.rows = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rows.append([group["lr"] for group in optimizer.param_groups])


def rates_of(schedule, steps):
    return [schedule.factor(step) for step in range(steps)]


def batches(epochs, count=60, size=6):
    for epoch in range(epochs):
        loader = ResumableLoader(labelled_images(count), size)
        loader.sampler.set_epoch(epoch)
        yield from loader


# ---------------------------------------------------------------------------------------------------------------------
# The mathematics.
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t_0", "t_mult"), [(1, 1), (7, 1), (1, 2), (10, 2), (3, 3), (50, 10)])
def test_positions_are_those_of_counting_step_by_step(t_0, t_mult):
    cycle, t_cur, t_i = 0, 0, t_0
    for step in range(2000):
        assert restart_position(step, t_0, t_mult) == (cycle, t_cur, t_i)
        t_cur += 1
        if t_cur == t_i:
            cycle, t_cur, t_i = cycle + 1, 0, t_i * t_mult


@pytest.mark.parametrize("t_mult", [2, 3])
@pytest.mark.parametrize("t_0", [1, 7, 1000])
def test_restarts_are_exact_far_beyond_what_logarithms_can_tell(t_0, t_mult):
    start, length, cycle = 0, t_0, 0
    while start < 10**18:
        assert restart_start(cycle, t_0, t_mult) == start
        assert restart_position(start, t_0, t_mult) == (cycle, 0, length)
        assert restart_position(start + length - 1, t_0, t_mult) == (cycle, length - 1, length)
        start, length, cycle = start + length, length * t_mult, cycle + 1


@pytest.mark.parametrize(("peak", "floor"), [(1.0, 0.0), (0.5, 0.1), (1.0, 1.0)])
def test_cosine_is_eq_5_where_it_can_be_done_by_hand(peak, floor):
    by_hand = {
        0: peak,
        2: floor + (peak - floor) * 0.75,
        3: (peak + floor) / 2,
        4: floor + (peak - floor) / 4,
        6: floor,
    }

    assert [cosine_annealing(t, 6, peak, floor) for t in by_hand] == pytest.approx(
        list(by_hand.values()), rel=1e-15, abs=1e-16
    )


# ---------------------------------------------------------------------------------------------------------------------
# The row of the catalogue of methods: torch, closed form, restarts, resume.
# ---------------------------------------------------------------------------------------------------------------------


def torch_rates(t_0, t_mult, floor, steps, per_epoch=None):
    """Rates of torch's schedule at base rate 0.3, stepped by batch, or by fractions of an epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = CosineAnnealingWarmRestarts(optimizer, t_0, t_mult, eta_min=floor * 0.3)
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if per_epoch is None else schedule.step((step + 1) / per_epoch)
    return rates


row_172 = pytest.mark.parametrize(("t_0", "t_mult", "floor"), [(10, 1, 0.0), (10, 2, 0.0), (7, 3, 0.1), (1, 2, 0.01)])


@row_172
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_row_172_step_by_step_it_is_torchs_schedule(t_0, t_mult, floor):
    rates = [0.3 * factor for factor in rates_of(WarmRestarts(t_0, t_mult, floor), 300)]
    # By epochs of 16 steps, whose fractions floats hold exactly.
    by_epoch = WarmRestarts(t_0, t_mult, floor, interval="epoch")
    by_epoch.plan(16, None)
    rates_by_epoch = [0.3 * factor for factor in rates_of(by_epoch, 800)]

    assert rates == pytest.approx(torch_rates(t_0, t_mult, floor, 300), rel=1e-12)
    assert rates_by_epoch == pytest.approx(torch_rates(t_0, t_mult, floor, 800, per_epoch=16), rel=1e-12)


@row_172
def test_row_172_step_by_step_it_is_the_closed_form(t_0, t_mult, floor):
    """In fractions: T_cur is what remains of t once whole cycles are taken off."""
    expected = []
    for step in range(300):
        t_cur, t_i = Fraction(step), t_0
        while t_cur >= t_i:
            t_cur, t_i = t_cur - t_i, t_i * t_mult
        expected.append(floor + (1 - floor) * (1 + math.cos(math.pi * t_cur / t_i)) / 2)

    assert rates_of(WarmRestarts(t_0, t_mult, floor), 300) == pytest.approx(expected, rel=1e-12)


@row_172
def test_row_172_restarts_are_on_their_step_and_nowhere_else(t_0, t_mult, floor):
    """At t_0, t_0 (1 + t_mult), ..., and there the rate is eta_max, exactly; a cycle of one step has no fall."""
    schedule = WarmRestarts(t_0, t_mult, floor)
    restarts = [sum(t_0 * t_mult**i for i in range(cycles)) for cycles in range(1, 40)]
    factors = rates_of(schedule, 300)
    rises = [step for step in range(1, 300) if factors[step] > factors[step - 1]]

    assert rises == [step for step in restarts if step < 300 and (t_0, step) != (1, 1)]
    assert {schedule.factor(step) for step in [0, *restarts]} == {1.0}


def test_row_172_a_resumed_run_goes_through_the_same_rates(tmp_path):
    straight, first, rest = Rates(), Rates(), Rates()
    for rates, options in ((straight, {}), (first, {"kill_at": 13}), (rest, {"resume": True})):
        resume = {"ckpt_path": newest(tmp_path)} if options.pop("resume", False) else {}
        saving = [ModelCheckpoint(tmp_path, every_n_train_steps=13)] if rates is first else []
        schedule = WarmRestarts(5, 2, 0.1)
        loader = ResumableLoader(labelled_images(60), 6)
        callbacks = [schedule, rates, ExactResume(), *saving]
        record(Decayed(), lambda loader=loader: loader, callbacks, max_epochs=4, **options, **resume)

    assert first.rows + rest.rows == straight.rows
    assert straight.rows == [[base * WarmRestarts(5, 2, 0.1).factor(step) for base in BASES] for step in range(40)]


@pytest.mark.parametrize(("t_mult", "decay", "floor"), [(1, 1.0, 0.0), (2, 0.5, 0.0), (3, 0.9, 0.01), (1, 0.5, 0.05)])
def test_equal_to_timm_with_growing_cycles_and_decaying_peaks(t_mult, decay, floor):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    options = {"cycle_mul": t_mult, "cycle_decay": decay, "cycle_limit": 1000, "t_in_epochs": False}
    theirs = CosineLRScheduler(optimizer, 10, lr_min=floor * 0.3, **options)
    ours = WarmRestarts(10, t_mult, floor, restart_decay=decay)
    steps = 40 if t_mult == 1 else 200  # five peaks of half the height each stay above the floor
    for step in range(steps):
        theirs.step_update(step)

        assert 0.3 * ours.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_a_peak_never_sinks_below_the_floor():
    schedule = WarmRestarts(10, eta_min=0.3, restart_decay=0.5)

    assert [schedule.factor(step) for step in (0, 10, 20, 25, 29)] == [1.0, 0.5, 0.3, 0.3, 0.3]


# ---------------------------------------------------------------------------------------------------------------------
# A hand-written loop, and schedules that are wrong.
# ---------------------------------------------------------------------------------------------------------------------


def by_hand(rate, snapshots_at=(), epochs=3, accumulate=1):
    """Train as Eq. 5 says with `rate(step)`; the weights, and those at the given steps."""
    torch.manual_seed(1)
    network = small_network(dropout=0.0)
    groups = [{"params": network[:-1].parameters()}, {"params": network[-1].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    kept, step = {}, 0
    for epoch in range(epochs):
        window = list(batches(epoch + 1))[epoch * 10 :]
        for index, (image, target) in enumerate(window):
            (F.cross_entropy(network(image), target) / accumulate).backward()
            if (index + 1) % accumulate and index + 1 < len(window):
                continue
            for group, base in zip(optimizer.param_groups, BASES, strict=True):
                group["lr"] = base * rate(step)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step in snapshots_at:
                kept[step] = {name: it.clone() for name, it in network.state_dict(prefix="network.").items()}
    return network.state_dict(prefix="network."), kept


def sgdr(step, floor=0.1):
    """t_0 = 5, t_mult = 2, unrolled: cycles begin at 0, 5, 15."""
    begin, length = next(it for it in ((15, 20), (5, 10), (0, 5)) if step >= it[0])
    return floor + (1 - floor) * (1 + math.cos(math.pi * (step - begin) / length)) / 2


def by_the_callback(**options):
    """The callback and the weights after the run that `by_hand(sgdr)` does by hand."""
    schedule = WarmRestarts(5, 2, 0.1, snapshots=2)
    torch.manual_seed(1)
    loader = ResumableLoader(labelled_images(60), 6)
    return schedule, record(Decayed(0.0), lambda: loader, [schedule], max_epochs=3, **options).state["weights"]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_equals_a_loop_by_hand_with_snapshots_and_a_short_last_window(accumulate):
    """Ten micro-batches an epoch in windows of three: steps of 3, 3, 3 and 1."""
    schedule, trained = by_the_callback(accumulate_grad_batches=accumulate)
    weights, kept = by_hand(sgdr, (5, 15), accumulate=accumulate)

    assert distance(trained, weights) == 0.0
    assert schedule.steps == list(kept)
    for member, expected in zip(schedule.members, kept.values(), strict=True):
        assert distance(member, expected) == 0.0


def absolute_floor(step, base):
    return 0.008 + (base - 0.008) * sgdr(step, floor=0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda step: sgdr(max(0, step - 1)), id="one step late"),
        pytest.param(lambda step: sgdr(step) if step not in (5, 15) else 0.1, id="a restart late"),
        pytest.param(lambda step: sgdr(step, floor=0.0), id="without the floor"),
        pytest.param(lambda step: sgdr(step % 5), id="cycles that do not grow"),
        pytest.param(lambda step: absolute_floor(step, BASES[1]) / BASES[1], id="the same floor for all groups"),
        pytest.param(lambda step: sgdr(step // 3), id="counting updates of another window"),
    ],
)
def test_a_wrong_schedule_is_noticed(wrong):
    _, trained = by_the_callback()

    assert distance(trained, by_hand(wrong)[0]) > 1e-4


def test_a_snapshot_after_the_restart_is_noticed():
    schedule, _ = by_the_callback()
    _, late = by_hand(sgdr, (6, 16))

    for member, wrong in zip(schedule.members, late.values(), strict=True):
        assert distance(member, wrong) > 1e-4


def test_epochs_are_counted_in_their_optimizer_steps():
    rates = Rates()
    schedule = WarmRestarts(1, 2, interval="epoch")
    loader = ResumableLoader(labelled_images(60), 6)
    record(Decayed(), lambda: loader, [schedule, rates], max_epochs=3, accumulate_grad_batches=4)

    assert rates.rows == [[base * WarmRestarts(3, 2).factor(step) for base in BASES] for step in range(9)]


# ---------------------------------------------------------------------------------------------------------------------
# Refusals.
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"t_0": 0}, "WarmRestarts: t_0 is 0; give a whole number of at least 1."),
        ({"t_0": True}, "WarmRestarts: t_0 is True; give a whole number of at least 1."),
        ({"t_0": 2.5}, "WarmRestarts: t_0 is 2.5; give a whole number of at least 1."),
        ({"t_0": 5, "t_mult": 0}, "WarmRestarts: t_mult is 0; give a whole number of at least 1."),
        ({"t_0": 5, "snapshots": -1}, "WarmRestarts: snapshots is -1; give a whole number of at least 0."),
        (
            {"t_0": 5, "eta_min": 1.5},
            "WarmRestarts: eta_min is 1.5; give a number from 0 to 1.",
        ),
        (
            {"t_0": 5, "restart_decay": 0.0},
            "WarmRestarts: restart_decay is 0.0; give a factor above 0 and at most 1.",
        ),
        ({"t_0": 5, "interval": "batch"}, "WarmRestarts: interval is 'batch'; give 'step' or 'epoch'."),
    ],
)
def test_a_setting_outside_its_range_is_refused(settings, sentence):
    with pytest.raises(ValueError) as error:
        WarmRestarts(**settings)

    assert str(error.value) == sentence


def test_a_first_cycle_longer_than_training_is_refused():
    with pytest.raises(ValueError) as error:
        record(Decayed(), lambda: ResumableLoader(labelled_images(60), 6), [WarmRestarts(21)], max_epochs=2)

    assert str(error.value) == (
        "WarmRestarts: the first cycle takes 21 optimizer steps and training ends after 20; lower t_0=21 (steps), or "
        "train longer."
    )


@pytest.mark.parametrize(
    ("schedule", "options", "lengths"),
    [
        (WarmRestarts(5, 2), {"max_epochs": 2}, "after 20 optimizer steps.*train for 15 or 35 steps"),
        (WarmRestarts(1, 2, interval="epoch"), {"max_epochs": 2}, "after 20 optimizer steps.*train for 1 or 3 epochs"),
        (WarmRestarts(4), {"max_steps": 7, "max_epochs": -1}, "after 7 optimizer steps.*train for 4 or 8 steps"),
    ],
    ids=["steps", "epochs", "max_steps"],
)
def test_an_end_in_mid_cycle_is_warned_about_and_the_right_lengths_named(schedule, options, lengths):
    with pytest.warns(UserWarning, match=lengths):
        record(Decayed(), lambda: ResumableLoader(labelled_images(60), 6), [schedule], **options)


@pytest.mark.parametrize("schedule", [WarmRestarts(10), WarmRestarts(2, interval="epoch")], ids=["steps", "epochs"])
def test_an_end_at_a_minimum_is_not_warned_about(schedule, recwarn):
    record(Decayed(), lambda: ResumableLoader(labelled_images(60), 6), [schedule], max_epochs=2)

    assert [str(it.message) for it in recwarn if "WarmRestarts" in str(it.message)] == []
