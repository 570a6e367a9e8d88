"""CyclicalLR against torch's schedule, the paper's formula in fractions and loops written by hand.

What any schedule must survive (resume, accumulation, skipped steps, two ranks) is proved in `hooks/test_schedule.py`,
momentum in general in `hooks/test_momentum.py`.
"""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CyclicLR

from lightning_vision.callbacks import CyclicalLR
from lightning_vision.callbacks.schedules.cyclical_lr import between, cycle_height, cycle_scale
from support.compare import distance
from support.data import plain_loader
from support.modules import Plain, small_network
from support.optimizer_settings import BASES, Decayed, Settings
from support.resuming import record

MODES = [("triangular", 1.0), ("triangular2", 1.0), ("exp_range", 0.99)]
modes = pytest.mark.parametrize(("mode", "gamma"), MODES, ids=[mode for mode, _ in MODES])


# ---------------------------------------------------------------------------------------------------------------------
# The row of the catalogue of methods: torch in all modes, minima and maxima, the closed form.
# ---------------------------------------------------------------------------------------------------------------------


def torch_settings(optimizer, steps, **options):
    """(rate, momentum) of each step by torch's schedule."""
    schedule = CyclicLR(optimizer, 0.01, 0.06, **options)
    (group,) = optimizer.param_groups
    rows = []
    for _ in range(steps):
        rows.append((group["lr"], group["betas"][0] if "betas" in group else group["momentum"]))
        optimizer.step()
        schedule.step()
    return rows


@modes
@pytest.mark.parametrize("down", [None, 3, 12])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_row_185_step_by_step_it_is_torchs_schedule(mode, gamma, down, kind):
    parameter, momentum = torch.zeros(1, requires_grad=True), {"momentum": 0.9} if kind is torch.optim.SGD else {}
    sizes = {"step_size_up": 7, "step_size_down": down, "mode": mode, "gamma": gamma}
    ours = CyclicalLR(**sizes, base_lr=0.01, max_lr=0.06)
    expected = torch_settings(kind([parameter], lr=1.0, **momentum), 100, **sizes)
    rows = [(ours.factor(step), ours.momentum(step)) for step in range(100)]

    assert rows == [pytest.approx(row, rel=1e-12) for row in expected]


@modes
def test_row_185_minima_and_maxima_are_exact_at_the_multiples_of_the_step_size(mode, gamma):
    schedule = CyclicalLR(step_size_up=5, base_lr=0.01, max_lr=0.06, mode=mode, gamma=gamma)
    scales = [cycle_scale(step, 10, mode, gamma) for step in range(5, 10**6, 10**5)]
    tops = [schedule.factor(step) for step in range(5, 10**6, 10**5)]
    factors = [schedule.factor(step) for step in range(101)]
    turns = [it for it in range(1, 100) if (factors[it] - factors[it - 1]) * (factors[it + 1] - factors[it]) < 0]

    assert {schedule.factor(step) for step in range(0, 10**6, 10**5)} == {0.01}
    assert tops == [between(0.01, 0.06, scale) for scale in scales]
    assert tops[0] == (0.06 if mode != "exp_range" else between(0.01, 0.06, gamma**5))
    assert turns == list(range(5, 100, 5)) or mode == "exp_range"


@modes
def test_row_185_step_by_step_it_is_the_papers_formula(mode, gamma):
    """In fractions, with stepsize 7; the scale as floats, for gamma^t has no short fraction."""
    schedule = CyclicalLR(step_size_up=7, base_lr=0.01, max_lr=0.06, mode=mode, gamma=gamma)
    for step in range(200):
        cycle = 1 + step // 14
        height = max(Fraction(0), 1 - abs(Fraction(step, 7) - 2 * cycle + 1))
        scale = {"triangular": 1.0, "triangular2": 2.0 ** (1 - cycle), "exp_range": gamma**step}[mode]

        assert schedule.factor(step) == pytest.approx(0.01 + 0.05 * float(height) * scale, rel=1e-12)


def test_a_triangle_by_hand():
    assert [cycle_height(step, 1, 1) for step in range(4)] == [0.0, 1.0, 0.0, 1.0]
    assert [cycle_height(step, 4, 2) for step in range(7)] == [0.0, 0.25, 0.5, 0.75, 1.0, 0.5, 0.0]
    assert [cycle_height(3 * 10**17 + step, 2, 4) for step in (0, 2, 5)] == [0.0, 1.0, 0.25]
    assert [cycle_scale(step, 6, "exp_range", 0.5) for step in (0, 1, 6)] == [1.0, 0.5, 0.5**6]


# ---------------------------------------------------------------------------------------------------------------------
# On Trainers: the knobs are rates, groups keep their ratio, and a loop by hand.
# ---------------------------------------------------------------------------------------------------------------------


def rows_of(schedule, module=None, epochs=2, **options):
    """(rates, momenta) of each step."""
    settings = Settings()
    torch.manual_seed(1)
    run = record(module or Decayed(0.0), plain_loader, [schedule, settings], max_epochs=epochs, **options)
    return settings.rows, run


def test_the_highest_group_goes_between_the_bounds_and_the_other_keeps_its_ratio():
    rows, _ = rows_of(CyclicalLR(step_size_up=5, base_lr=0.01, max_lr=0.06))
    highest, other = (list(it) for it in zip(*(rates for rates, _ in rows), strict=True))

    assert highest == pytest.approx([0.01 + 0.05 * cycle_height(step, 5, 5) for step in range(20)], rel=1e-14)
    assert other == pytest.approx([rate * BASES[1] / BASES[0] for rate in highest], rel=1e-14)


def test_without_bounds_each_group_falls_to_a_quarter_of_its_own_rate():
    rows, _ = rows_of(CyclicalLR(step_size_up=5))

    assert rows[0][0] == pytest.approx([base / 4 for base in BASES], rel=1e-15)
    assert rows[5][0] == list(BASES)
    assert [rows[step][1] for step in (0, 5)] == [[0.9, 0.9], [0.8, 0.8]]


def test_epochs_are_counted_in_their_optimizer_steps():
    by_epoch, _ = rows_of(CyclicalLR(step_size_up=1, interval="epoch"), accumulate_grad_batches=4)
    by_step, _ = rows_of(CyclicalLR(step_size_up=3), accumulate_grad_batches=4)

    assert by_epoch == by_step
    assert len(by_step) == 6


def by_hand(lowest=0.01, highest=0.06, momenta=(0.9, 0.8), up=4):
    """A loop over the paper's triangle; both groups' rates are set, and momentum."""
    torch.manual_seed(1)
    network = small_network(dropout=0.0)
    groups = [{"params": network[:-1].parameters()}, {"params": network[-1].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    for step, (image, target) in enumerate([*plain_loader(), *plain_loader()]):
        height = 1 - abs(step % (2 * up) / up - 1)
        rate = lowest * (1 - height) + highest * height
        for group, base in zip(optimizer.param_groups, BASES, strict=True):
            group["lr"] = base * (rate / BASES[0])
            group["momentum"] = momenta[0] * (1 - height) + momenta[1] * height
        optimizer.zero_grad()
        F.cross_entropy(network(image), target).backward()
        optimizer.step()
    return network.state_dict(prefix="network.")


def test_equals_a_loop_by_hand_and_wrong_ones_are_noticed():
    _, run = rows_of(CyclicalLR(step_size_up=4, base_lr=0.01, max_lr=0.06))
    weights = run.state["weights"]

    assert distance(weights, by_hand()) == 0.0
    for wrong in ({"momenta": (0.9, 0.9)}, {"momenta": (0.8, 0.9)}, {"up": 5}, {"lowest": 0.0}, {"highest": 0.08}):
        assert distance(weights, by_hand(**wrong)) > 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Refusals.
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"step_size_up": -1}, "step_size_up is -1; give a whole number of at least 0."),
        ({"step_size_down": 0}, "step_size_down is 0; give a whole number of at least 1."),
        ({"base_lr": -0.1}, "base_lr is -0.1; give a finite number of at least 0."),
        ({"max_lr": 0}, "max_lr is 0; give a number above 0."),
        ({"base_lr": 2.0, "max_lr": 1.0}, "base_lr=2.0 is above max_lr=1.0; exchange them."),
        ({"mode": "sine"}, "mode is 'sine'; give 'triangular', 'triangular2' or 'exp_range'."),
        ({"gamma": "0.9"}, "gamma is '0.9'; give a factor above 0 and at most 1."),
        ({"gamma": 1.5}, "gamma is 1.5; give a factor above 0 and at most 1."),
        ({"cycle_momentum": 1}, "cycle_momentum is 1; give True or False."),
        (
            {"base_momentum": 0.95},
            "momentum goes from base_momentum=0.95 to max_momentum=0.9; give 0 <= base_momentum <= max_momentum < 1.",
        ),
        ({"interval": "batch"}, "interval is 'batch'; give 'step' or 'epoch'."),
    ],
)
def test_a_setting_outside_its_range_is_refused(settings, sentence):
    with pytest.raises(ValueError) as error:
        CyclicalLR(**settings)

    assert str(error.value) == f"CyclicalLR: {sentence}"


def test_a_lower_bound_above_the_modules_own_rate_is_refused():
    with pytest.raises(ValueError) as error:
        rows_of(CyclicalLR(step_size_up=5, base_lr=0.1))

    assert str(error.value) == (
        "CyclicalLR: base_lr=0.1 is above 0.08, the highest rate of the module, which is the upper bound without "
        "max_lr; give max_lr, or a lower base_lr."
    )


def test_bounds_for_groups_without_any_rate_are_refused():
    class Still(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0, momentum=0.9)

    with pytest.raises(ValueError, match=r"^CyclicalLR: all learning rates of the module are 0, so no factor makes "):
        rows_of(CyclicalLR(step_size_up=5, max_lr=0.1), Still())


@pytest.mark.parametrize(
    ("schedule", "lengths"),
    [
        (CyclicalLR(7), "after 20 optimizer steps.*train for 14 or 28 steps to end there"),
        (CyclicalLR(2, interval="epoch"), "after 20 optimizer steps.*train for 4 epochs to end there"),
    ],
    ids=["steps", "epochs"],
)
def test_an_end_in_mid_cycle_is_warned_about_and_the_right_lengths_named(schedule, lengths):
    with pytest.warns(UserWarning, match=lengths):
        rows_of(schedule)


def test_epochs_of_unknown_length_are_refused():
    with pytest.raises(ValueError, match=r"^CyclicalLR: how many optimizer steps an epoch has is not known"):
        CyclicalLR(2, interval="epoch").plan(None, 20)
